"""Formulas against tensors: every number that is known before a model is built must be true of the built one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import sympify

from gptrs.model import PRESETS, ModelConfig, Transformer
from gptrs.model.count import flops_per_token, kv_bytes_per_token, n_params, of_model, parameters, table


def build(config):
    with torch.device("meta"):
        return Transformer(config)


def by_part(parts):
    return {(part.name, part.is_trainable): part.n_params for part in parts if part.n_params}


@st.composite
def configs(draw):
    n_heads = draw(st.integers(1, 3))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 40)),
        max_seq_len=draw(st.integers(1, 20)),
        dim=n_heads * draw(st.sampled_from([2, 4, 6])),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        inter_dim=draw(st.integers(1, 30)),
        position=draw(st.sampled_from(["learned", "sinusoidal"])),
        is_head_tied=draw(st.booleans()),
    )


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, total):
    config = PRESETS[name]
    assert n_params(config) == total
    assert sum(parameter.numel() for parameter in build(config).parameters()) == total


@settings(deadline=None, max_examples=60)
@given(configs())
def test_formulas_agree_with_a_built_model_part_by_part(config):
    assert by_part(parameters(config)) == by_part(of_model(build(config)))


@settings(deadline=None, max_examples=20)
@given(configs())
def test_the_written_formulas_give_the_numbers_beside_them(config):
    sizes = {name: getattr(config, name) for name in ("vocab_size", "max_seq_len", "dim", "n_layers", "inter_dim")}
    for part in parameters(config):
        formula = part.formula.split(" (")[0] if part.formula.startswith("0") else part.formula
        assert sympify(formula.replace("·", "*").replace("²", "**2")).subs(sizes) == part.n_params


def test_frozen_tensors_are_counted_apart():
    model = build(ModelConfig.preset("gpt2-small", n_layers=2))
    model.embed.requires_grad_(False)
    model.layers[0].attn.requires_grad_(False)
    counted = by_part(of_model(model))
    assert counted["token embedding", False] == 50_257 * 768
    assert counted["attention", True] == counted["attention", False] == 4 * 768**2 + 4 * 768
    assert sum(counted.values()) == n_params(model.config)


def test_the_table_adds_up():
    rows = table(PRESETS["gpt2-small"])
    assert rows[1] == ("position embedding", "max_seq_len·dim", "786,432", "0.63 %", "yes")
    assert rows[-1] == ("total", "", "124,439,808", "100.00 %", "")
    assert sum(int(row[2].replace(",", "")) for row in rows[:-1]) == 124_439_808
    assert sum(float(row[3].split()[0]) for row in rows[:-1]) == pytest.approx(100.0, abs=0.03)
    assert ("head", "0 (tied to the token embedding)", "0", "0.00 %", "yes") in rows


def test_fixed_positions_have_no_parameters():
    config = ModelConfig.preset("gpt2-small", position="sinusoidal")
    assert n_params(config) == 124_439_808 - 1024 * 768
    assert [part.is_trainable for part in parameters(config) if part.name == "position embedding"] == [False]


@pytest.mark.parametrize(
    ("name", "gflops"), [("gpt2-small", 0.855), ("gpt2-medium", 2.42), ("gpt2-large", 5.20), ("gpt2-xl", 10.28)]
)
def test_training_flops_are_those_of_the_palm_convention(name, gflops):
    assert flops_per_token(PRESETS[name], 1024) / 1e9 == pytest.approx(gflops, rel=2e-3)


def test_an_untied_token_table_adds_parameters_but_no_flops():
    tied, untied = PRESETS["gpt2-small"], ModelConfig.preset("gpt2-small", is_head_tied=False)
    assert n_params(untied) - n_params(tied) == 50_257 * 768
    assert flops_per_token(untied, 64) == flops_per_token(tied, 64)


def test_matrix_flops_agree_with_torch():
    """torch counts 2·m·n·k for each product it runs; the formula also counts biases and norms, and the whole square."""
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(vocab_size=512, max_seq_len=64, dim=128, n_layers=2, n_heads=2, inter_dim=512)
    tokens = torch.zeros(2, 64, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        build(config).loss(tokens, tokens)
    assert 3 * counter.get_total_flops() / tokens.numel() == pytest.approx(flops_per_token(config, 64), rel=0.02)


def test_cache_bytes_are_those_of_the_cache():
    from gptrs.model import KVCache

    assert kv_bytes_per_token(PRESETS["gpt2-small"]) == 36_864
    config = ModelConfig(vocab_size=9, max_seq_len=8, dim=12, n_layers=3, n_heads=2, inter_dim=4)
    cache = KVCache(config, 5, 7, dtype=torch.float32)
    assert cache.n_bytes == 5 * 7 * kv_bytes_per_token(config, n_bytes=4)
