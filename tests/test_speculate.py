"""Drafts by further-token modules: greedy and sampled output stays what it is without them, in fewer passes."""

import copy
import functools
import itertools
import math

import pytest
import torch

from gptrs.generate import complete, generate, stream_tokens
from gptrs.model import ModelConfig, Transformer
from gptrs.sampling import Sampling
from gptrs.speculate import Drafter, decide
from models import sharp

SIZES = {"vocab_size": 37, "max_seq_len": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "inter_dim": 64}
SMALL = {
    "vocab_size": 37, "n_layers": 2, "dim": 48, "n_heads": 2, "inter_dim": 64, "moe_inter_dim": 32, "kv_lora_rank": 16,
    "n_routed_experts": 4, "init_std": 0.02,
}  # fmt: skip
CONFIGS = {
    "learned": ModelConfig(**SIZES, n_mtp_layers=1),
    "grouped": ModelConfig(**SIZES, position="rope", n_kv_heads=2, n_mtp_layers=2),
    "latent": ModelConfig.preset("deepseek-tiny", **SMALL),
    "latent, two further tokens": ModelConfig.preset("deepseek-tiny", **SMALL, n_mtp_layers=2),
}
PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13, 14, 15]]


@functools.cache
def counting(config, V=37):
    """A model that has learned to count in steps of the first two tokens' difference, most of the time."""
    model = Transformer(config, seed=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        rows = (torch.randint(V, (32, 1), generator=generator) + torch.arange(14)) % V
        rows = torch.where(torch.rand(32, 14, generator=generator) < 0.05, 0, rows)
        model.loss(rows[:, :-1], rows[:, 1:], mtp_weight=1.0).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request):
    return counting(CONFIGS[request.param])


def same_and_accepted(model, prompts, n_drafts, **settings):
    """Asserts that drafts change nothing; the share of them that held."""
    settings = {"max_new_tokens": 40, "temperature": 0} | settings
    found = complete(model, prompts, n_drafts=n_drafts, **settings)
    assert [completion.ids for completion in found] == generate(model, prompts, **settings)
    return sum(c.n_accepted for c in found) / max(sum(c.n_drafted for c in found), 1)


@pytest.mark.parametrize("n_drafts", [1, 2, 3])
def test_greedy_output_is_the_same_with_and_without_drafts(trained, n_drafts):
    assert same_and_accepted(trained, PROMPTS[:1], n_drafts) > 0.3
    assert same_and_accepted(trained, PROMPTS, n_drafts) > 0.3
    assert same_and_accepted(trained, PROMPTS, n_drafts, prefill_chunk=4) > 0.3


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("n_drafts", [1, 3])
def test_drafts_that_do_not_hold_change_nothing_either(config, n_drafts):
    model = sharp(config).double()  # near ties would be settled by rounding in float32
    assert same_and_accepted(model, PROMPTS, n_drafts, max_new_tokens=20) < 0.5
    same_and_accepted(model, PROMPTS, n_drafts, max_new_tokens=20, repetition_penalty=1.3)


def test_sequences_end_where_they_end_without_drafts(trained):
    whole = generate(trained, PROMPTS, max_new_tokens=40, temperature=0)
    stop_tokens = {whole[0][5], whole[2][12]}
    same_and_accepted(trained, PROMPTS, 2, stop_tokens=stop_tokens)
    found = complete(trained, PROMPTS, max_new_tokens=40, temperature=0, n_drafts=2, stop_tokens=stop_tokens)
    assert found[0].ended_by == "stop_token" and found[0].ids[-1] in stop_tokens


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 5])
def test_no_token_more_than_asked_for(trained, max_new_tokens):
    same_and_accepted(trained, PROMPTS, 3, max_new_tokens=max_new_tokens)


def test_log_probabilities_and_penalties_are_those_without_drafts(trained):
    settings = {"max_new_tokens": 30, "temperature": 0, "logprobs": 3, "repetition_penalty": 1.05}
    plain, drafted = complete(trained, PROMPTS, **settings), complete(trained, PROMPTS, n_drafts=2, **settings)
    for a, b in zip(plain, drafted, strict=True):
        assert a.ids == b.ids and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert [[i for i, _ in place] for place in a.likeliest] == [[i for i, _ in place] for place in b.likeliest]


def test_a_stream_reports_drafts_and_yields_the_same(trained):
    settings = {"max_new_tokens": 30, "temperature": 0, "n_drafts": 2}
    tokens = list(stream_tokens(trained, PROMPTS[0], **settings))
    (whole,) = complete(trained, PROMPTS[:1], **settings)
    assert [token.id for token in tokens] == whole.ids
    assert (tokens[-1].n_drafted, tokens[-1].n_accepted) == (whole.n_drafted, whole.n_accepted)
    assert 0 < whole.n_accepted <= whole.n_drafted


def test_a_draft_that_holds_saves_a_pass():
    model, passes = counting(CONFIGS["latent"]), []
    model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    (found,) = complete(model, PROMPTS[:1], max_new_tokens=40, temperature=0, n_drafts=1)
    # One pass decides the first token, each other one and a draft that holds; the last may have no draft.
    assert 40 <= len(passes) + found.n_accepted <= 41 and len(passes) < 30


def test_drafts_are_those_of_the_modules_on_the_whole_text():
    """Cached, over rounds in which sequences of one batch keep different numbers of drafts."""
    for name in ("latent", "latent, two further tokens", "grouped"):
        model = copy.deepcopy(counting(CONFIGS[name])).double()
        D, rounds = len(model.further), []
        draft = Drafter.draft

        def noted(self, tokens, ends, n_drafts, *rest, draft=draft, rounds=rounds):
            guesses = draft(self, tokens, ends, n_drafts, *rest)
            rows = zip(tokens, ends, PROMPTS, strict=True)  # those that are not yet complete
            rounds.extend((r[: e + 1 + n_drafts].tolist(), n_drafts) for r, e, p in rows if e + 1 < len(p) + 25)
            return guesses

        Drafter.draft = noted
        try:
            complete(model, PROMPTS, max_new_tokens=25, temperature=0, n_drafts=D)
        finally:
            Drafter.draft = draft
        assert len(rounds) > 20
        for ids, n_drafts in rounds:
            whole = torch.tensor([ids])
            if whole.shape[1] <= D + 1:
                continue
            states = model.hidden(whole)
            found = [model.logits(state)[0].argmax(-1) for state, _ in model.further_states(states, whole, None, None)]
            n_known = len(ids) - n_drafts
            for k in range(1, n_drafts + 1):
                # Its last position is the last known one but one; what it says there stands k + 1 behind.
                assert found[k - 1][n_known - 2].item() == ids[n_known + k - 1], (name, k)


def test_learned_positions_may_be_filled_to_the_last_one():
    model = counting(CONFIGS["learned"])
    for prompts in (PROMPTS[:1], [PROMPTS[0], PROMPTS[0][:4]]):
        same_and_accepted(model, prompts, 3, max_new_tokens=59)


def test_a_compiled_pass_judges_drafts_as_well():
    torch.compiler.reset()
    model = sharp(CONFIGS["learned"]).double()
    plain = generate(model, PROMPTS, max_new_tokens=40, temperature=0)
    with torch.compiler.set_stance(force_backend="eager"):
        torch._dynamo.utils.counters.clear()
        found = generate(model, PROMPTS, max_new_tokens=40, temperature=0, n_drafts=1, is_compiled=True)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert found == plain
    torch.compiler.reset()


# ── sampling ──

P = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)  # the model's, place by place
Q = torch.tensor([[0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)  # what drafts are drawn from
CHI_SQUARE_999 = {3: 16.27, 15: 37.70, 63: 103.4}  # exceeded once in a thousand, by degrees of freedom


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("q", [Q[0], P[0], torch.tensor([0.97, 0.01, 0.01, 0.01], dtype=torch.float64)])
def test_a_judged_draft_is_distributed_as_the_model_alone_would_draw(q):
    """Whatever the drafts are drawn from; and as many hold as min(p, q) sums to."""
    n = 100_000
    generator = torch.Generator().manual_seed(5)
    drafts = torch.multinomial(q, n, replacement=True, generator=generator)[:, None]
    numbers = torch.rand(n, 2, 2, dtype=torch.float64, generator=generator)
    sampling = Sampling(max_new_tokens=1)
    tokens, n_decided = decide(sampling, P.log().expand(n, 2, 4), drafts, [q.expand(n, 4)], numbers, None)
    assert chi_square(torch.bincount(tokens[:, 0], minlength=4), n * P[0]) < CHI_SQUARE_999[3]
    is_held = n_decided == 2
    share = torch.minimum(P[0], q).sum().item()
    assert is_held.double().mean().item() == pytest.approx(share, abs=4 * math.sqrt(0.25 / n))
    assert torch.equal(tokens[is_held, 0], drafts[is_held, 0])
    further = torch.bincount(tokens[is_held, 1], minlength=4)
    assert chi_square(further, is_held.sum() * P[1]) < CHI_SQUARE_999[3]


@pytest.mark.parametrize("n_drafts", [0, 1, 2])
def test_sampled_sequences_have_the_model_s_distribution(n_drafts):
    """Three tokens out of four: the frequencies of all 64 against the products of their probabilities."""
    sizes = {"vocab_size": 4, "max_seq_len": 16, "dim": 16, "n_layers": 1, "n_heads": 2, "inter_dim": 16}
    model = sharp(ModelConfig(**sizes, n_mtp_layers=1), seed=3)
    with torch.no_grad():
        model.embed.token.weight.mul_(3.0)
    texts = torch.tensor(list(itertools.product(range(4), repeat=3)))  # (64, 3)
    table = model(torch.cat((torch.full((64, 1), 1), texts), dim=1)).double().div(0.8).log_softmax(-1)
    expected = table[:, :3].gather(-1, texts.unsqueeze(-1)).sum(dim=(1, 2)).exp().detach()  # (64,)
    assert expected.sum().item() == pytest.approx(1.0) and expected.max() > 3 / 64
    n = 20_000
    found = complete(model, [[1]] * n, max_new_tokens=3, temperature=0.8, seed=11, n_drafts=n_drafts)
    places = torch.tensor([c.ids for c in found]) @ torch.tensor([16, 4, 1])
    assert chi_square(torch.bincount(places, minlength=64), n * expected) < CHI_SQUARE_999[63]
    if n_drafts:
        assert 0.2 < sum(c.n_accepted for c in found) / sum(c.n_drafted for c in found) < 0.999


def test_a_seed_draws_the_same_with_drafts_whatever_the_company(trained):
    settings = {"max_new_tokens": 20, "seed": 9, "n_drafts": 2}
    together = generate(trained, PROMPTS, **settings)
    assert generate(trained, PROMPTS, **settings) == together
    assert generate(trained, PROMPTS[:1], **settings) == together[:1]
    assert generate(trained, PROMPTS, **settings | {"seed": 8}) != together


def test_top_k_of_one_is_greedy_with_drafts_too(trained):
    greedy = generate(trained, PROMPTS, max_new_tokens=30, temperature=0)
    assert generate(trained, PROMPTS, max_new_tokens=30, top_k=1, n_drafts=2) == greedy
