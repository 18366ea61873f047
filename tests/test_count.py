"""Formulas against tensors: every number that is known before a model is built must be true of the built one."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import sympify

from gptrs.model import PRESETS, ModelConfig, Transformer
from gptrs.model.count import (
    by_layer,
    flops_per_token,
    kv_bytes_per_token,
    layers_of_model,
    n_params,
    of_model,
    parameters,
    table,
    totals,
)


def build(config):
    with torch.device("meta"):
        return Transformer(config)


def by_part(parts):
    return {(part.name, part.is_trainable): part.n_params for part in parts if part.n_params}


@st.composite
def configs(draw):
    """Every kind of model, in small."""
    n_heads = draw(st.integers(1, 3))
    is_modern = draw(st.booleans())
    sizes = {
        "vocab_size": draw(st.integers(1, 40)),
        "max_seq_len": draw(st.integers(1, 20)),
        "dim": n_heads * draw(st.sampled_from([2, 4, 6])),
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": n_heads,
        "inter_dim": draw(st.integers(1, 30)),
        "position": draw(st.sampled_from(["learned", "sinusoidal"])),
        "is_head_tied": draw(st.booleans()),
        "n_kv_heads": draw(st.sampled_from([0, 1])),
        "norm": draw(st.sampled_from(["layer", "rms"])),
        "feed_forward": draw(st.sampled_from(["gelu", "swiglu"])),
        "has_bias": draw(st.booleans()),
        "n_mtp_layers": draw(st.integers(0, 2)),
    }
    if is_modern:
        sizes |= {"position": "rope", "n_kv_heads": 0, "kv_lora_rank": 3, "q_lora_rank": draw(st.sampled_from([0, 5]))}
        sizes |= {"qk_nope_head_dim": draw(st.integers(1, 3)), "qk_rope_head_dim": 2, "v_head_dim": 4}
    if draw(st.booleans()):
        sizes |= {"feed_forward": "swiglu", "has_bias": False, "n_routed_experts": 4, "n_activated_experts": 3}
        sizes |= {"moe_inter_dim": 7, "n_shared_experts": draw(st.integers(0, 2))}
        sizes |= {"n_dense_layers": draw(st.integers(0, sizes["n_layers"]))}
        sizes |= {"score_func": draw(st.sampled_from(["sigmoid", "softmax"]))}
    return ModelConfig(**sizes)


@pytest.mark.parametrize(
    ("name", "main", "activated"),
    [
        ("gpt2-small", 124_439_808, 124_439_808),
        ("gpt2-medium", 354_823_168, 354_823_168),
        ("gpt2-large", 774_030_080, 774_030_080),
        ("gpt2-xl", 1_557_611_200, 1_557_611_200),
        ("gpt3-175b", 174_604_259_328, 174_604_259_328),
        ("deepseek-v2-lite", 15_706_484_224, 2_661_150_208),
        ("deepseek-v2", 235_741_434_880, 21_375_800_320),
        ("deepseek-v3", 671_026_419_200, 37_552_297_472),
        ("kimi-k2", 1_026_408_232_448, 32_861_500_928),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, main, activated):
    found = totals(PRESETS[name])
    assert (found.main, found.activated) == (main, activated)
    assert n_params(PRESETS[name]) == main + found.further


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_built_has_the_parameters_of_the_formulas(name):
    config = PRESETS[name]
    model = build(config)
    assert by_part(parameters(config)) == by_part(of_model(model))
    assert {layer: sum(parts.values()) for layer, parts in by_layer(config).items()} == layers_of_model(model)
    assert n_params(config) == sum(parameter.numel() for parameter in model.parameters())
    assert totals(config).trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_further_token_is_counted_apart():
    found = totals(PRESETS["deepseek-v3"])
    assert found.further == 11_610_068_224 == n_params(PRESETS["deepseek-v3"]) - 671_026_419_200
    assert found.activated_without_lookup == 36_625_618_432
    assert found.trainable == found.total - 59 * 256  # the router biases
    assert totals(ModelConfig.preset("deepseek-v3", n_mtp_layers=0)).main == found.main


def test_layers_differ_where_the_model_does():
    layers = by_layer(PRESETS["deepseek-v3"])
    assert list(layers) == ["", *map(str, range(61)), "further 0"]
    assert layers["0"] == {"attention": 187_107_328, "feed-forward": 396_361_728, "norms": 2 * 7168}
    experts = {name: layers["3"][name] for name in ("router", "router biases", "routed experts", "shared experts")}
    assert sum(experts.values()) == 11_320_164_608 and experts["shared experts"] == 44_040_192
    assert layers["3"].keys() == layers["60"].keys() == {"attention", "norms", *experts}


@settings(deadline=None, max_examples=80)
@given(configs())
def test_formulas_agree_with_a_built_model_part_by_part(config):
    model = build(config)
    assert by_part(parameters(config)) == by_part(of_model(model))
    assert {layer: sum(parts.values()) for layer, parts in by_layer(config).items()} == layers_of_model(model)


def written(config):
    """The number that each part's formula gives when it is read as mathematics."""
    names = [field.name for field in dataclasses.fields(config)] + ["head_dim", "kv_heads"]
    sizes = {name: getattr(config, name) for name in names if type(getattr(config, name)) is int}
    for part in parameters(config):
        formula = part.formula.split(" (")[0] if part.formula.startswith("0") else part.formula
        yield part.name, int(sympify(formula.replace("·", "*").replace("²", "**2")).subs(sizes))


@settings(deadline=None, max_examples=20)
@given(configs())
def test_the_written_formulas_give_the_numbers_beside_them(config):
    assert dict(written(config)) == {part.name: part.n_params for part in parameters(config)}


@pytest.mark.parametrize("name", PRESETS)
def test_the_written_formulas_of_presets_give_their_numbers(name):
    assert dict(written(PRESETS[name])) == {part.name: part.n_params for part in parameters(PRESETS[name])}


def test_formulas_are_as_one_writes_them():
    formulas = {part.name: part.formula for part in parameters(PRESETS["gpt2-small"])}
    assert formulas["attention"] == "n_layers·(4·dim² + 4·dim)"
    assert formulas["feed-forward"] == "n_layers·(2·dim·inter_dim + inter_dim + dim)"
    formulas = {part.name: part.formula for part in parameters(PRESETS["deepseek-v2-lite"])}
    assert formulas["feed-forward"] == "3·n_dense_layers·dim·inter_dim"
    assert formulas["routed experts"] == "3·(n_layers - n_dense_layers)·n_routed_experts·dim·moe_inter_dim"
    assert formulas["position embedding"] == "0 (rotated queries and keys)"


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


def test_experts_cost_what_a_token_takes_of_them():
    """219.8 GFLOP of activated parameters and 61.4 of the full square of attention."""
    config = PRESETS["deepseek-v3"]
    assert flops_per_token(config, 4096) == 6 * 36_625_618_432 + 6 * 61 * 128 * (192 + 128) * 4096 == 281_158_321_152
    further = flops_per_token(config, 4096, has_further=True) - flops_per_token(config, 4096)
    block = totals(config).further - 248 * 44_040_192  # 8 of 256 experts
    assert further == 6 * (block + 129_280 * 7168) + 6 * 128 * 320 * 4096
    assert flops_per_token(PRESETS["gpt2-small"], 1024, has_further=True) == 855_166_464


DENSE = ModelConfig(vocab_size=512, max_seq_len=64, dim=128, n_layers=2, n_heads=2, inter_dim=512)


@pytest.mark.parametrize("config", [DENSE, PRESETS["deepseek-tiny"]])
def test_matrix_flops_agree_with_torch(config):
    """torch counts 2·m·n·k for each product it runs; the formula also counts biases and norms, and the whole square.

    On the CPU experts run one after the other: torch does not count their grouped product. Nor does torch 2.11 count
    the CPU's own kernel of attention, so its products are made one by one.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tokens = torch.zeros(2, 64, dtype=torch.int64)
    model = Transformer(config).double()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens, tokens)
    expected = flops_per_token(config, 64, has_further=True)
    assert 3 * counter.get_total_flops() / tokens.numel() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", ["gpt2-small", "llama-small", "deepseek-tiny"])
def test_cache_bytes_are_those_of_the_cache(name):
    from gptrs.model import new_cache

    config = PRESETS[name]
    cache = new_cache(config, 2, 7, dtype=torch.float32)
    assert cache.n_bytes == 2 * 7 * kv_bytes_per_token(config, n_bytes=4)


def test_cache_bytes_are_the_published_ones():
    names = ("gpt2-small", "deepseek-v2-lite", "deepseek-v3")
    assert [kv_bytes_per_token(PRESETS[name]) for name in names] == [36_864, 31_104, 70_272]
