"""Latent attention: its formula written out, its two forms, its cache."""

import dataclasses
import math

import pytest
import torch

from gptrs.model import LatentCache, ModelConfig, Transformer
from gptrs.model.mla import LatentAttention
from gptrs.model.rope import rotations

SIZES = {
    "vocab_size": 31, "max_seq_len": 64, "dim": 24, "n_layers": 2, "n_heads": 3, "inter_dim": 32, "position": "rope",
    "norm": "rms", "feed_forward": "swiglu", "has_bias": False, "kv_lora_rank": 10, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4, "v_head_dim": 5, "init_std": 0.3,
}  # fmt: skip
CONFIGS = {
    "plain": ModelConfig(**SIZES),
    "compressed queries": ModelConfig(**SIZES, q_lora_rank=7),
    "yarn": ModelConfig(**SIZES, rope_factor=4.0, rope_original_len=16, rope_mscale=1.0),
}


def layer_of(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = LatentAttention(config, 0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def states(T, B=2):
    return torch.randn(B, T, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def turned(x, angles):
    """Neighbouring pairs as complex numbers times e^(i·angle)."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def written_out(layer, config, x):
    """Head by head, query by query, after equations 9 to 19 of arXiv 2405.04434."""
    T = x.shape[1]
    turns = rotations(config, torch.arange(T))
    angles = torch.atan2(turns[..., 1], turns[..., 0])  # (T, rope / 2)
    q_in = x if layer.q_down is None else layer.q_norm(layer.q_down(x))
    down = layer.kv_down(x)
    latent, key = layer.kv_norm(down[..., : layer.rank]), turned(down[..., layer.rank :], angles)
    growth = 0.1 * config.rope_mscale * math.log(config.rope_factor) + 1.0
    heads = []
    for h in range(config.n_heads):
        q = q_in @ layer.q.weight[h * 10 : (h + 1) * 10].T
        q_nope, q_rope = q[..., :6], turned(q[..., 6:], angles)
        up = latent @ layer.kv_up.weight[h * 11 : (h + 1) * 11].T
        k_nope, v = up[..., :6], up[..., 6:]
        rows = []
        for t in range(T):
            scores = (q_nope[:, t, None] * k_nope[:, : t + 1]).sum(-1) + (q_rope[:, t, None] * key[:, : t + 1]).sum(-1)
            weights = (scores * growth**2 / math.sqrt(10)).softmax(-1)
            rows.append((weights.unsqueeze(-1) * v[:, : t + 1]).sum(1))
        heads.append(torch.stack(rows, dim=1))
    return torch.cat(heads, dim=-1) @ layer.output.weight.T


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("is_absorbed", [False, True])
def test_both_forms_are_the_formula(config, is_absorbed):
    layer, x = layer_of(config), states(9)
    turns = rotations(config, torch.arange(9))
    expected = written_out(layer, config, x)
    assert (layer(x, turns=turns, is_absorbed=is_absorbed) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("is_masked", [False, True])
def test_naive_equals_absorbed_in_outputs_and_gradients(config, is_masked):
    layer, x = layer_of(config), states(11).requires_grad_()
    turns = rotations(config, torch.arange(11))
    mask = None
    if is_masked:
        doc_ids = torch.tensor([[0] * 4 + [1] * 7, [0] * 11])
        mask = (doc_ids[:, :, None] == doc_ids[:, None]).tril().unsqueeze(1)  # (B, 1, T, T)
    weights = [x, *layer.parameters()]
    found = []
    for is_absorbed in (False, True):
        y = layer(x, turns=turns, mask=mask, is_absorbed=is_absorbed)
        found.append([y, *torch.autograd.grad(y.square().sum(), weights)])
    for naive, absorbed in zip(*found, strict=True):
        assert (naive - absorbed).abs().max() <= 1e-12 * naive.abs().max()


def test_few_new_positions_are_absorbed_and_many_are_not():
    layer = LatentAttention(ModelConfig.preset("deepseek-v2-lite", n_layers=1), 0)
    assert layer._costs_less_absorbed(1, 8192)
    assert not layer._costs_less_absorbed(8192, 8192)


@pytest.mark.parametrize("is_absorbed", [False, True])
def test_dropout_reaches_the_weights_in_training_alone(is_absorbed):
    layer, x = layer_of(dataclasses.replace(CONFIGS["plain"], dropout=0.5)), states(9)
    turns = rotations(CONFIGS["plain"], torch.arange(9))
    torch.manual_seed(0)
    assert not torch.equal(*(layer(x, turns=turns, is_absorbed=is_absorbed) for _ in range(2)))
    layer.eval()
    expected = layer_of(CONFIGS["plain"])(x, turns=turns, is_absorbed=is_absorbed)
    assert torch.equal(layer(x, turns=turns, is_absorbed=is_absorbed), expected)


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("cuts", [(20,), (10, 11, 20), (1, 3, 6, 20), tuple(range(1, 21))])
def test_cached_equals_uncached_for_any_chunks(config, cuts):
    model = Transformer(config, seed=3).double().eval()
    tokens = torch.randint(31, (3, 20), generator=torch.Generator().manual_seed(1))
    cache = LatentCache(config, 3, 20, dtype=torch.float64)
    chunks = [model(tokens[:, a:b], cache=cache) for a, b in zip((0, *cuts), cuts, strict=False)]
    assert torch.allclose(torch.cat(chunks, dim=1), model(tokens), rtol=0, atol=1e-10)


@torch.no_grad()
def test_sequences_of_different_lengths_equal_each_alone():
    config = CONFIGS["plain"]
    model = Transformer(config, seed=3).double().eval()
    tokens = torch.randint(31, (3, 14), generator=torch.Generator().manual_seed(1))
    lengths = (5, 1, 9)
    cache = LatentCache(config, 3, 24, dtype=torch.float64)
    model(tokens[:, :9], cache=cache)
    cache.crop(lengths)
    together = torch.cat([model(tokens[:, 9:12], cache=cache), model(tokens[:, 12:13], cache=cache)], dim=1)
    for row, length in enumerate(lengths):
        alone = model(torch.cat((tokens[row, :length], tokens[row, 9:13])).unsqueeze(0))[0]
        assert torch.allclose(together[row], alone[length:], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("preset", "n_bytes"), [("deepseek-v2-lite", 31_104), ("deepseek-v3", 70_272)])
def test_the_cache_takes_the_published_bytes_a_token(preset, n_bytes):
    config = dataclasses.replace(ModelConfig.preset(preset), n_mtp_layers=0)
    assert LatentCache(config, 2, 3, dtype=torch.bfloat16).n_bytes == 6 * n_bytes
