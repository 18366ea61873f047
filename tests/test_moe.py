"""Mixtures of experts: the router after its equations, the grouped product against a loop, the balance."""

import pytest
import torch

from gptrs.model import ModelConfig, Transformer
from gptrs.model import moe as moes
from gptrs.model.moe import Experts, Router, balance, max_violation, rebalance

SIZES = {
    "vocab_size": 31, "max_seq_len": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "inter_dim": 32, "position": "rope",
    "norm": "rms", "feed_forward": "swiglu", "has_bias": False, "n_routed_experts": 12, "n_activated_experts": 3,
    "n_shared_experts": 1, "moe_inter_dim": 8, "route_scale": 1.5,
}  # fmt: skip
CONFIGS = {
    "sigmoid": ModelConfig(**SIZES),
    "top2 groups": ModelConfig(**SIZES, n_expert_groups=4, n_limited_groups=2),
    "max groups, softmax": ModelConfig(
        **SIZES, n_expert_groups=4, n_limited_groups=2, group_score="max", score_func="softmax", norm_topk_prob=False
    ),
    "softmax": ModelConfig(**SIZES, score_func="softmax", norm_topk_prob=False),
}


def filled(module, seed=0, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def chosen(config, weight, bias, x):
    """What one token takes, from the equations: {expert: weight}."""
    logits = (weight @ x).tolist()
    if config.score_func == "sigmoid":
        scores = [1 / (1 + 2.718281828459045**-s) for s in logits]
    else:
        total = sum(2.718281828459045**s for s in logits)
        scores = [2.718281828459045**s / total for s in logits]
    choice = [s + (0.0 if bias is None else float(bias[e])) for e, s in enumerate(scores)]
    size = len(choice) // config.n_expert_groups
    groups = [choice[g * size : (g + 1) * size] for g in range(config.n_expert_groups)]
    n_best = 2 if config.group_score == "top2" else 1
    strength = [sum(sorted(group)[-n_best:]) for group in groups]
    best = sorted(range(len(groups)), key=strength.__getitem__)[-config.n_limited_groups :]
    allowed = [e for e in range(len(choice)) if e // size in best]
    taken = sorted(allowed, key=choice.__getitem__)[-config.n_activated_experts :]
    total = sum(scores[e] for e in taken) if config.norm_topk_prob else 1.0
    return {e: scores[e] / total * config.route_scale for e in taken}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shift", [0.0, -3.0])  # below 0 all: masked experts must not come back at 0
def test_the_router_is_its_equations(config, shift):
    router = filled(Router(config), scale=0.7).double()
    if router.bias is not None:
        with torch.no_grad():
            router.bias.add_(shift)
        assert router.bias.min() < -0.5
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids, weights = router.choose(router.scores(x))
    for token, experts, given in zip(x, ids.tolist(), weights, strict=True):
        expected = chosen(config, router.weight, router.bias, token)
        assert dict(zip(experts, given.tolist(), strict=True)) == pytest.approx(expected, rel=1e-9)


WAYS = {"by expert": (True, False), "grouped": (False, True), "loop": (False, False)}


def by(way, monkeypatch):
    goes_by_expert, has_grouped = WAYS[way]
    monkeypatch.setattr(moes, "_goes_by_expert", lambda *_: goes_by_expert)
    monkeypatch.setattr(moes, "_has_grouped_product", lambda *_: has_grouped)


@pytest.mark.parametrize("skew", ["spread", "one expert", "some empty"])
@pytest.mark.parametrize(
    ("way", "dtype", "tolerance"),
    [
        ("grouped", torch.float32, 1e-5),
        ("grouped", torch.bfloat16, 0.05),
        ("by expert", torch.float64, 1e-13),
        ("by expert", torch.float32, 1e-5),
        ("by expert", torch.bfloat16, 0.05),
    ],
)
def test_each_way_equals_the_loop(monkeypatch, skew, way, dtype, tolerance):
    config = CONFIGS["sigmoid"]
    experts = filled(Experts(config)).to(dtype)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 16, generator=generator).to(dtype).requires_grad_()
    ids = torch.stack([torch.randperm(12, generator=generator)[:3] for _ in range(40)])
    ids = {"spread": ids, "one expert": torch.full_like(ids, 7), "some empty": ids % 5}[skew]
    weights = torch.rand(40, 3, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_()
    inputs = [x, weights, *experts.parameters()]
    out = {}
    for name in (way, "loop"):
        by(name, monkeypatch)
        y = experts(x, ids, weights)
        out[name] = (y, *torch.autograd.grad(y.to(weights.dtype).square().sum(), inputs))
    for a, b in zip(out[way], out["loop"], strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("is_traced", [False, moes._IS_TRACED])
def test_the_grouped_product_compiles_whatever_torch_knows_of_it(monkeypatch, is_traced):
    monkeypatch.setattr(moes, "_IS_TRACED", is_traced)
    experts = filled(Experts(CONFIGS["sigmoid"]))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 16, generator=generator).requires_grad_()
    ids, weights = torch.randint(5, (40, 3), generator=generator), torch.rand(40, 3, generator=generator)
    inputs = [x, *experts.parameters()]
    out = []
    torch.compiler.reset()
    for way in (experts, torch.compile(experts, backend="aot_eager", fullgraph=True)):
        y = way(x, ids, weights)
        out.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    torch.compiler.reset()
    for a, b in zip(*out, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_ways_are_chosen_by_device_type_and_alignment():
    x, experts = torch.zeros(1, 16), Experts(CONFIGS["sigmoid"])
    assert moes._goes_by_expert(x) and not moes._goes_by_expert(x.to("meta"))
    assert moes._has_grouped_product(x, experts.up, experts.down)


def test_experts_alone_ask_for_the_gradients_that_are_wanted():
    experts = filled(Experts(CONFIGS["sigmoid"])).double()
    x, ids = torch.randn(6, 16, dtype=torch.float64), torch.arange(18).view(6, 3) % 12
    weights = torch.rand(6, 3, dtype=torch.float64).requires_grad_()
    (whole,) = torch.autograd.grad(experts(x.clone().requires_grad_(), ids, weights).sum(), weights)
    experts.requires_grad_(False)
    (alone,) = torch.autograd.grad(experts(x, ids, weights).sum(), weights)
    assert torch.equal(whole, alone)
    with torch.no_grad():
        assert not experts(x, ids, weights).requires_grad


def test_no_token_is_dropped():
    config = CONFIGS["sigmoid"]
    experts = filled(Experts(config)).double()
    x = torch.randn(5, 16, dtype=torch.float64)
    y = experts(x, torch.full((5, 3), 4), torch.full((5, 3), 1 / 3, dtype=torch.float64))
    gate, up = (x @ experts.up[4].T).chunk(2, dim=-1)
    assert torch.allclose(y, (torch.nn.functional.silu(gate) * up) @ experts.down[4].T)


def test_doubles_and_sizes_that_are_not_aligned_have_no_grouped_product():
    experts = Experts(CONFIGS["sigmoid"]).double()
    assert not moes._has_grouped_product(torch.zeros(1, 16, dtype=torch.float64), experts.up, experts.down)
    experts = Experts(ModelConfig(**SIZES | {"moe_inter_dim": 6}))
    assert not moes._has_grouped_product(torch.zeros(1, 16), experts.up, experts.down)


def test_the_balance_term_is_one_when_all_is_equal_and_grows_with_skew():
    ids = torch.arange(12).view(1, 4, 3)
    flat = torch.full((1, 4, 12), 0.3)
    assert balance(flat, ids).item() == pytest.approx(1.0)
    skewed = flat.clone()
    skewed[..., 0] = 3.0
    assert balance(skewed, torch.zeros(1, 4, 3, dtype=torch.int64)).item() > 3
    both = balance(torch.cat((flat, skewed)), torch.cat((ids, torch.zeros_like(ids))))
    alone = balance(flat, ids), balance(skewed, torch.zeros_like(ids))
    assert both.item() == pytest.approx(sum(alone).item() / 2), "the mean over sequences, each by itself"
    skewed.requires_grad_()
    (grad,) = torch.autograd.grad(balance(skewed, torch.zeros(1, 4, 3, dtype=torch.int64)), skewed)
    assert (grad[..., 0] > 0).all() and (grad[..., 1:] < 0).all(), "the busy expert's score is to fall"


def test_a_token_that_fits_no_expert_leaves_the_balance_a_number():
    scores = torch.full((1, 2, 3), -1e4, requires_grad=True)  # whose sigmoids are 0 in single precision
    found = balance(scores.sigmoid(), torch.tensor([[[0], [1]]]))
    (grad,) = torch.autograd.grad(found, scores)
    assert found.item() == 0.0 and torch.equal(grad, torch.zeros_like(scores))


def test_loads_count_every_choice_in_training_until_they_are_taken():
    model = Transformer(CONFIGS["sigmoid"]).train()
    for T in (5, 7):
        model(torch.zeros(2, T, dtype=torch.int64))
    model.eval()
    model(torch.zeros(2, 9, dtype=torch.int64))
    (_, first), _ = model.experts()
    assert first.take_loads().sum().item() == 2 * (5 + 7) * 3
    assert first.take_loads() is None


def test_moving_the_bias_bounds_the_violation_on_skewed_data():
    """Tokens that all look alike: without the bias their favourites take everything."""
    config = CONFIGS["sigmoid"]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 16, generator=generator) + 0.3 * torch.randn(256, 16, generator=generator)
    found = {}
    for speed in (0.0, 0.01):
        router = filled(Router(config))
        with torch.no_grad():
            router.bias.zero_()
        for _ in range(300):
            ids, _ = router.choose(router.scores(x))
            rebalance(router, moes.count_choices(ids.view(1, -1), 12).squeeze(0), speed=speed)
        found[speed] = max_violation(moes.count_choices(ids.view(1, -1), 12).squeeze(0))
    assert found[0.0] > 1.5
    assert found[0.01] < 0.5


def test_the_bias_chooses_and_does_not_weigh():
    router = filled(Router(CONFIGS["sigmoid"]))
    scores = router.scores(torch.randn(4, 16))
    before = router.choose(scores)
    with torch.no_grad():
        router.bias.add_(5.0)  # all alike: nothing changes
    after = router.choose(scores)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not router.bias.requires_grad


def test_every_trained_tensor_of_a_deepseek_model_gets_a_gradient():
    config = ModelConfig.preset("deepseek-tiny", n_layers=2, vocab_size=64)
    model = Transformer(config).train()
    tokens = torch.randint(64, (4, 64), generator=torch.Generator().manual_seed(0))
    model.loss(tokens, tokens.roll(-1, 1), balance_weight=0.1).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "layers.1.ffn.router.bias", "further.0.block.ffn.router.bias",
    ]  # fmt: skip


def test_blocks_that_are_computed_again_change_nothing():
    config = ModelConfig.preset("deepseek-tiny", n_layers=3, vocab_size=64)
    tokens = torch.randint(64, (2, 32), generator=torch.Generator().manual_seed(0))
    found = []
    for checkpoints in (False, True):
        model = Transformer(config).double().train()
        model.checkpoints_blocks = checkpoints
        loss = model.loss(tokens, tokens.roll(-1, 1))
        loss.backward()
        loads = [moe.take_loads() for _, moe in model.experts()]
        found.append((loss, loads, [p.grad for p in model.parameters() if p.requires_grad]))
    (loss, loads, grads), (again, loads_again, grads_again) = found
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(loads, loads_again, strict=True)), "counted once"
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in zip(grads, grads_again, strict=True))


def test_scores_of_a_model_in_bf16_are_computed_in_single():
    router = filled(Router(CONFIGS["sigmoid"])).bfloat16()
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(router.scores(x), (x.float() @ router.weight.float().T).sigmoid())


def test_the_loss_weighs_further_tokens_and_the_sum_of_all_layers_balance():
    model = Transformer(ModelConfig(**SIZES, n_mtp_layers=1)).double()
    tokens = torch.randint(31, (2, 16), generator=torch.Generator().manual_seed(0))
    uses = []
    for _, moe in model.experts():
        moe.register_forward_hook(lambda _module, _given, out: uses.append(out[1].balance))
    losses = model.losses(tokens, tokens)
    assert len(uses) == 3
    assert losses["balance"].item() == pytest.approx(sum(uses).item(), rel=1e-12)
    expected = losses["next"] + 0.3 * losses["further"] + 1e-4 * losses["balance"]
    assert model.loss(tokens, tokens).item() == pytest.approx(expected.item(), rel=1e-12)


def test_every_matrix_that_writes_to_the_stream_starts_smaller():
    model = Transformer(ModelConfig(**SIZES | {"dim": 64, "moe_inter_dim": 64, "inter_dim": 64}, n_dense_layers=1))
    writers = ("attn.output.weight", "ffn.down.weight", "ffn.shared.down.weight", "ffn.experts.down")
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            std = 0.02 / 2 if name.endswith(writers) else 0.02  # √(2·n_layers) = 2
            assert weight.std().item() == pytest.approx(std, rel=0.1), name
