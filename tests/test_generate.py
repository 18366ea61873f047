"""Generation: what is drawn, when it stops, and that neither cache nor company changes it."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gptrs.generate import draw, generate, probabilities, stream
from gptrs.model import ModelConfig, Transformer
from gptrs.train.determinism import deterministic

SIZES = {"vocab_size": 37, "max_seq_len": 48, "dim": 32, "n_layers": 2, "n_heads": 4, "inter_dim": 64}
PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13, 14, 15]]
HALVES = torch.tensor([[0.2, 0.5, 0.1, 0.2]]).log()  # probabilities 0.2, 0.5, 0.1, 0.2 of the ids 0 to 3


@pytest.fixture(params=["learned", "sinusoidal"])
def model(request):
    """Sharper than a fresh model, so that the likeliest token is no toss-up between equals."""
    model = Transformer(ModelConfig(**SIZES, position=request.param), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def dist(**settings):
    settings = {"temperature": 1.0} | settings
    return probabilities(HALVES, **settings)[0].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.2, 0.5, 0.1, 0.2]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [2 / 7, 5 / 7, 0, 0]),  # ids 0 and 3 are equally likely: the lower one stays
        ({"top_k": 3}, [2 / 9, 5 / 9, 0, 2 / 9]),
        ({"top_k": 99}, [0.2, 0.5, 0.1, 0.2]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),  # the likeliest alone reaches 0.4
        ({"top_p": 0.6}, [2 / 7, 5 / 7, 0, 0]),
        ({"top_p": 0.8}, [2 / 9, 5 / 9, 0, 2 / 9]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 1.0}, [0.2, 0.5, 0.1, 0.2]),
        ({"min_p": 0.39}, [2 / 9, 5 / 9, 0, 2 / 9]),  # 0.2 is just above 0.39 · 0.5
        ({"min_p": 0.41}, [0, 1, 0, 0]),
        ({"min_p": 0.0}, [0.2, 0.5, 0.1, 0.2]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"top_p": 0.6, "min_p": 0.39}, [2 / 7, 5 / 7, 0, 0]),
        ({"temperature": 2.0, "min_p": 0.5}, [0.2792408, 0.4415184, 0, 0.2792408]),  # of the flattened one: roots
        ({"top_k": 2, "top_p": 0.7}, [0, 1, 0, 0]),  # of what top-k leaves, 5/7 reaches 0.7
        ({"top_k": 2, "top_p": 0.72}, [2 / 7, 5 / 7, 0, 0]),
        ({"temperature": 0.5}, [0.04 / 0.34, 0.25 / 0.34, 0.01 / 0.34, 0.04 / 0.34]),  # squares
        ({"temperature": 1e-30}, [0, 1, 0, 0]),
        ({"temperature": 1e30}, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_the_distribution_is_exactly_the_stated_one(settings, expected):
    assert dist(**settings) == pytest.approx(expected, abs=1e-7)
    assert [p == 0 for p in dist(**settings)] == [p == 0 for p in expected]


def test_the_distribution_is_that_of_the_warpers_of_transformers():
    logits = torch.randn(40, 500, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3
    for min_p in (0.01, 0.1, 0.6):
        for top_k, top_p in ((None, None), (50, None), (None, 0.9), (30, 0.8)):
            warped = TemperatureLogitsWarper(0.7)(None, logits)
            if top_k is not None:
                warped = TopKLogitsWarper(top_k)(None, warped)
            if top_p is not None:
                warped = TopPLogitsWarper(top_p)(None, warped)
            warped = MinPLogitsWarper(min_p)(None, warped)
            found = probabilities(logits, temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
            assert torch.allclose(found, warped.softmax(dim=-1), rtol=1e-12, atol=0)


def test_among_equals_the_lower_ids_stay():
    assert probabilities(torch.zeros(1, 5000), temperature=1.0, top_k=3, top_p=None).nonzero()[:, 1].tolist() == [
        0,
        1,
        2,
    ]


def test_a_draw_looks_the_uniform_number_up():
    distribution = torch.tensor([[0.5, 0.0, 0.25, 0.25, 0.0]], dtype=torch.float64)
    for uniform, token in [(0.0, 0), (0.499, 0), (0.5, 2), (0.749, 2), (0.75, 3), (1 - 2**-53, 3)]:
        assert draw(distribution, torch.tensor([uniform], dtype=torch.float64)).item() == token


def test_on_cuda_a_run_of_the_same_bits_adds_up_on_the_cpu():
    """torch 2.11 refuses running sums on CUDA where use_deterministic_algorithms is on, and the run has no samples."""
    added = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            added.extend([args[0].device.type] if "cumsum" in str(function) else [])
            return function(*args, **(kwargs or {}))

    for is_wanted, device in ((False, "cuda"), (True, "cpu")):
        with deterministic(is_wanted), FakeTensorMode(), Watching():  # the device's name, and no device
            logits, uniform = torch.empty(2, 50, device="cuda"), torch.empty(2, device="cuda", dtype=torch.float64)
            drawn = draw(probabilities(logits, temperature=1.0, top_k=None, top_p=0.9), uniform)
        assert drawn.is_cuda and added == [device] * 2
        added.clear()


def test_draws_have_the_distribution_they_are_drawn_from():
    n = 200_000
    uniform = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw(HALVES.double().exp().expand(n, 4), uniform)
    shares = torch.bincount(drawn, minlength=4) / n
    assert shares.tolist() == pytest.approx([0.2, 0.5, 0.1, 0.2], abs=4 * math.sqrt(0.25 / n))


def test_greedy_takes_the_likeliest_token_each_time(model):
    tokens = list(PROMPTS[0])
    for _ in range(10):
        tokens.append(model.eval()(torch.tensor([tokens]))[0, -1].argmax().item())
    assert generate(model, [PROMPTS[0]], max_new_tokens=10, temperature=0) == [tokens[5:]]
    assert generate(model, [PROMPTS[0]], max_new_tokens=10, top_k=1) == [tokens[5:]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_with_and_without_cache_generate_the_same(model, temperature):
    out = [
        generate(model, PROMPTS, max_new_tokens=25, temperature=temperature, seed=4, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert out[0] == out[1]
    assert [len(ids) for ids in out[0]] == [25, 25, 25]


def test_a_batch_gives_each_prompt_what_it_gets_alone(model):
    together = generate(model, PROMPTS, max_new_tokens=25, temperature=0)
    assert together == [generate(model, [prompt], max_new_tokens=25, temperature=0)[0] for prompt in PROMPTS]


def test_a_draw_depends_on_seed_and_place_not_on_company(model):
    together = generate(model, PROMPTS, max_new_tokens=20, seed=9)
    assert generate(model, PROMPTS[:1], max_new_tokens=20, seed=9)[0] == together[0]
    assert generate(model, [[30, 31], PROMPTS[1]], max_new_tokens=20, seed=9)[1] == together[1]
    assert generate(model, PROMPTS, max_new_tokens=12, seed=9) == [ids[:12] for ids in together]


def test_the_seed_decides_and_torchs_own_generator_is_left_alone(model):
    state = torch.get_rng_state()
    first = generate(model, PROMPTS, max_new_tokens=20, seed=1)
    assert generate(model, PROMPTS, max_new_tokens=20, seed=1) == first
    assert generate(model, PROMPTS, max_new_tokens=20, seed=2) != first
    assert generate(model, PROMPTS, max_new_tokens=20) != generate(model, PROMPTS, max_new_tokens=20)
    assert torch.equal(torch.get_rng_state(), state)
    same = generate(model, [[5], [5]], max_new_tokens=20, seed=1)
    assert same[0] != same[1]  # one prompt twice is two samples


def test_each_sequence_stops_at_its_own_stop_token(model):
    whole = generate(model, PROMPTS, max_new_tokens=25, seed=3)
    stop_tokens = {whole[0][4], whole[2][11]}
    stopped = generate(model, PROMPTS, max_new_tokens=25, seed=3, stop_tokens=stop_tokens)
    for full, short in zip(whole, stopped, strict=True):
        ends = [i for i, token in enumerate(full) if token in stop_tokens]
        assert short == (full[: ends[0] + 1] if ends else full)
    assert len(stopped[0]) <= 5
    assert len({len(ids) for ids in stopped}) > 1


def test_generation_ends_when_every_sequence_has_stopped(model):
    n_calls = 0

    def count(*_):
        nonlocal n_calls
        n_calls += 1

    model.embed.register_forward_hook(count)
    everything = range(SIZES["vocab_size"])
    assert [len(ids) for ids in generate(model, PROMPTS, max_new_tokens=20, stop_tokens=everything)] == [1, 1, 1]
    assert n_calls == 1


def test_a_stream_yields_what_generate_returns(model):
    settings = {"max_new_tokens": 15, "temperature": 0.8, "top_k": 20, "top_p": 0.95, "seed": 2}
    whole = generate(model, [PROMPTS[0]], **settings)[0]
    assert list(stream(model, PROMPTS[0], **settings)) == whole
    stop = whole[6]
    stopped = list(stream(model, PROMPTS[0], **settings, stop_tokens=[stop]))
    assert stopped == whole[: whole.index(stop) + 1]


def test_dropout_is_off_inside_and_every_module_keeps_its_mode():
    model = Transformer(ModelConfig(**SIZES, dropout=0.5))
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    ids = stream(model, PROMPTS[0], max_new_tokens=8, temperature=0)
    first = [next(ids)]
    assert [module.training for module in model.modules()] == modes  # also between two ids
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert first + list(ids) == generate(model, [PROMPTS[0]], max_new_tokens=8, temperature=0)[0]
    assert [module.training for module in model.modules()] == modes
    model.loss(torch.tensor(PROMPTS[:1]), torch.tensor(PROMPTS[:1])).backward()  # nothing of inference mode is left


def test_generation_may_fill_the_learned_positions_but_not_pass_them():
    model = Transformer(ModelConfig(**SIZES))
    assert len(generate(model, [[1, 2, 3]], max_new_tokens=45)[0]) == 45
    message = r"prompt 1 of 9 tokens and 40 new ones exceed the 48 learned positions; hint: .*lower max_new_tokens by 1"
    with pytest.raises(ValueError, match=message):
        generate(model, [[1], PROMPTS[2]], max_new_tokens=40)
    with pytest.raises(ValueError, match="exceed the 48 learned positions"):
        stream(model, [1], max_new_tokens=48)  # at the call, not at the first id


def test_a_prompt_that_leaves_no_room_is_to_be_shortened_whatever_shall_follow():
    message = r"and 5 new ones exceed the 48 learned positions; hint: shorten the prompt by 7 tokens or more$"
    with pytest.raises(ValueError, match=message):
        generate(Transformer(ModelConfig(**SIZES)), [[1] * 50], max_new_tokens=5)


@pytest.mark.parametrize(
    ("n_prompt", "n_new", "hint"),
    [
        (1, 100, "lower max_new_tokens by 53$"),  # a prompt of one token cannot be shorter
        (60, 48, "shorten the prompt and lower max_new_tokens, by 60 in all$"),
        (30, 30, "shorten the prompt or lower max_new_tokens by 12$"),
    ],
)
def test_what_does_not_fit_is_told_with_a_cure_that_cures(n_prompt: int, n_new: int, hint: str):
    with pytest.raises(ValueError, match=f"48 learned positions; hint: {hint}"):
        generate(Transformer(ModelConfig(**SIZES)), [[1] * n_prompt], max_new_tokens=n_new)


def test_sinusoidal_positions_generate_past_the_trained_length():
    model = Transformer(ModelConfig(**SIZES, position="sinusoidal"))
    with_cache, without = (
        generate(model, [[1, 2, 3]], max_new_tokens=90, seed=0, use_cache=use_cache) for use_cache in (True, False)
    )
    assert with_cache == without
    assert len(with_cache[0]) == 90


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], []], {}, r"prompt 1 has no tokens; hint"),
        ([[1, 37]], {}, r"prompt 0: expected ids below vocab_size \(37\), got 37"),
        ([[-1]], {}, r"prompt 0: .*got -1"),
        ([[1]], {"max_new_tokens": 0}, r"max_new_tokens must be 1 to 2147483647, got 0"),
        ([[1]], {"max_new_tokens": 10**22}, r"max_new_tokens must be 1 to 2147483647, got 10{22}"),
        ([[1]], {"temperature": -0.1}, r"temperature must be a number of at least 0, got -0\.1"),
        ([[1]], {"temperature": math.nan}, r"temperature must be a number of at least 0, got nan"),
        ([[1]], {"top_k": 0}, r"top_k must be at least 1, got 0; hint"),
        ([[1]], {"top_p": 0.0}, r"top_p must be above 0 and at most 1, got 0\.0"),
        ([[1]], {"min_p": 1.1}, r"min_p must be from 0 to 1, got 1\.1"),
        ([[1]], {"top_p": 1.1}, r"top_p must be above 0 and at most 1, got 1\.1"),
    ],
)
def test_impossible_requests_are_refused(prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(Transformer(ModelConfig(**SIZES)), prompts, **({"max_new_tokens": 4} | settings))


def test_a_diverged_model_is_named_instead_of_sampled():
    model = Transformer(ModelConfig(**SIZES))
    torch.nn.init.constant_(model.norm.bias, math.nan)
    with pytest.raises(ValueError, match="expected finite logits, got nan or infinity; hint"):
        generate(model, [[1]], max_new_tokens=2)


def test_no_prompts_give_no_answers():
    assert generate(Transformer(ModelConfig(**SIZES)), [], max_new_tokens=3) == []
