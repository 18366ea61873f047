"""The model's sizes: presets, checks, and no torch until a model is built."""

import dataclasses
import subprocess
import sys

import pytest

from gptrs.model import PRESETS, ModelConfig

SIZES = {"vocab_size": 65, "max_seq_len": 64, "dim": 128, "n_layers": 4, "n_heads": 4, "inter_dim": 512}


def test_a_preset_is_found_under_both_spellings():
    assert ModelConfig.preset("gpt2-small") == ModelConfig.preset("gpt2_small") == PRESETS["gpt2-small"]
    assert ModelConfig.preset("gpt2-small").head_dim == 64


def test_gpt2_presets_have_the_published_sizes():
    presets = {name: config for name, config in PRESETS.items() if name.startswith("gpt2")}
    sizes = {name: (c.n_layers, c.n_heads, c.dim, c.inter_dim) for name, c in presets.items()}
    assert sizes == {
        "gpt2-small": (12, 12, 768, 3072),
        "gpt2-medium": (24, 16, 1024, 4096),
        "gpt2-large": (36, 20, 1280, 5120),
        "gpt2-xl": (48, 25, 1600, 6400),
    }
    assert {(c.vocab_size, c.max_seq_len, c.is_head_tied, c.position) for c in presets.values()} == {
        (50_257, 1024, True, "learned")
    }


def test_presets_stretch_their_context_as_their_released_configurations_say():
    """DeepSeek-V2's report, section 3.1.4: 0.0707·ln(factor) + 1; V2.5 and V3 have 0.1. Kimi-K2: beta_fast 1."""
    yarn = {
        name: (c.rope_factor, c.rope_original_len, c.rope_beta_fast, c.rope_beta_slow, c.rope_mscale, c.rope_theta)
        for name, c in PRESETS.items()
        if c.rope_factor != 1.0
    }
    assert yarn == {
        "deepseek-v2-lite": (40.0, 4096, 32.0, 1.0, 0.707, 10_000.0),
        "deepseek-v2": (40.0, 4096, 32.0, 1.0, 0.707, 10_000.0),
        "deepseek-v3": (40.0, 4096, 32.0, 1.0, 1.0, 10_000.0),
        "kimi-k2": (32.0, 4096, 1.0, 1.0, 1.0, 50_000.0),
    }


def test_overriding_dim_keeps_the_feed_forward_ratio():
    assert ModelConfig.preset("gpt2-small", dim=384).inter_dim == 4 * 384
    assert ModelConfig.preset("gpt2-small", dim=384, inter_dim=100).inter_dim == 100
    assert ModelConfig.preset("gpt2-small", n_layers=2) == dataclasses.replace(PRESETS["gpt2-small"], n_layers=2)


def test_only_learned_positions_end():
    assert ModelConfig(**SIZES).position_limit == 64
    assert ModelConfig(**SIZES, position="sinusoidal").position_limit is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 640, "n_heads": 6}, r"n_heads \(6\) must divide dim \(640\); hint: use n_heads=5 or dim=642"),
        ({"n_layers": 0}, r"n_layers must be an integer of at least 1, got 0"),
        ({"vocab_size": 50.0}, r"vocab_size must be an integer of at least 1, got 50\.0"),
        ({"max_seq_len": True}, r"max_seq_len must be an integer of at least 1, got True"),
        ({"position": "alibi"}, r"position must be one of learned, sinusoidal, rope, got 'alibi'"),
        ({"position": "sinusoidal", "dim": 15, "n_heads": 3}, r"dim must be even .* got 15; hint: use dim=16"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"dropout": float("nan")}, r"dropout must be at least 0 and below 1, got nan"),
        ({"is_head_tied": 1}, r"is_head_tied must be true or false, got 1"),
        ({"norm_eps": 0.0}, r"norm_eps must be a positive number, got 0\.0"),
        ({"norm_eps": "1e-5"}, r"norm_eps must be a number, got '1e-5'"),
        ({"dropout": None}, r"dropout must be a number, got None"),
        ({"dropout": True}, r"dropout must be a number, got True"),
        ({"n_layers": 20_000}, r"n_layers must be at most 16,384, got 20,000"),
        ({"dim": 2**21, "n_heads": 2}, r"dim must be at most 1,048,576, got 2,097,152"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SIZES | changes))


LATENT = {"position": "rope", "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
EXPERTS = {
    "feed_forward": "swiglu", "has_bias": False, "n_routed_experts": 8, "n_activated_experts": 2, "moe_inter_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 4, "n_kv_heads": 3}, r"n_kv_heads \(3\) must divide n_heads \(4\); hint: use n_kv_heads=2"),
        ({"dim": 12, "position": "rope"}, r"dim / n_heads must be even to be rotated, got 3"),
        ({"v_head_dim": 16}, r"v_head_dim needs latent attention, got kv_lora_rank=0; hint: set kv_lora_rank"),
        (LATENT | {"position": "learned"}, r"latent attention rotates its positions, got position='learned'; hint"),
        (LATENT | {"n_kv_heads": 2}, r"latent attention has a key for each head, got n_kv_heads=2; hint: use 0"),
        (LATENT | {"qk_nope_head_dim": 0}, r"latent attention needs qk_nope_head_dim, got 0"),
        (LATENT | {"qk_rope_head_dim": 7}, r"qk_rope_head_dim must be even to be rotated, got 7"),
        ({"moe_inter_dim": 32}, r"moe_inter_dim needs experts, got n_routed_experts=0; hint: set n_routed_experts"),
        (EXPERTS | {"feed_forward": "gelu"}, r"experts are SwiGLU, got feed_forward='gelu'; hint: use 'swiglu'"),
        (EXPERTS | {"has_bias": True}, r"experts have no bias, got has_bias=True; hint: use has_bias=False"),
        (EXPERTS | {"n_activated_experts": 9}, r"n_activated_experts must be from 1 to n_routed_experts \(8\), got 9"),
        (EXPERTS | {"moe_inter_dim": 0}, r"moe_inter_dim must be at least 1 with experts, got 0"),
        (EXPERTS | {"n_dense_layers": 5}, r"n_dense_layers \(5\) must not exceed n_layers \(4\)"),
        (EXPERTS | {"n_expert_groups": 3}, r"n_expert_groups \(3\) must divide n_routed_experts \(8\)"),
        (
            EXPERTS | {"n_expert_groups": 2, "n_limited_groups": 3},
            r"n_limited_groups must be from 1 to n_expert_groups \(2\), got 3",
        ),
        (
            EXPERTS | {"n_expert_groups": 4, "n_activated_experts": 3},
            r"n_limited_groups \(1\) of 2 experts .* n_activated_experts \(3\); hint: use n_limited_groups=2",
        ),
        (
            EXPERTS | {"n_expert_groups": 8, "n_limited_groups": 2},
            r"group_score 'top2' needs groups of 2 experts or more, got 1; hint: use 'max'",
        ),
        ({"rope_factor": 0.5}, r"rope_factor must be at least 1, got 0\.5"),
        ({"rope_factor": 4.0, "rope_theta": 1.0}, r"rope_theta must be above 1 where rope_factor is, got 1\.0"),
        ({"rope_beta_slow": 40.0}, r"rope_beta_slow \(40\.0\) must not exceed rope_beta_fast \(32\.0\)"),
        ({"route_scale": 0.0}, r"route_scale must be a positive number, got 0\.0"),
        ({"norm": "batch"}, r"norm must be one of layer, rms, got 'batch'"),
        ({"n_mtp_layers": -1}, r"n_mtp_layers must be an integer of at least 0, got -1"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SIZES | changes))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"got 'gpt2-smal'; hint: did you mean 'gpt2-small'"):
        ModelConfig.preset("gpt2-smal")
    with pytest.raises(ValueError, match=r"got 'n_layer'; hint: did you mean 'n_layers'"):
        ModelConfig.preset("gpt2-small", n_layer=2)


def test_an_integer_in_a_field_of_numbers_becomes_a_float():
    config = ModelConfig(**SIZES, rope_theta=500_000, dropout=0)
    assert (repr(config.rope_theta), repr(config.dropout)) == ("500000.0", "0.0")
    assert config == ModelConfig(**SIZES, rope_theta=500_000.0)
    with pytest.raises(ValueError, match="rope_theta must be a number, got an integer of 1329 bits"):
        ModelConfig(**SIZES, rope_theta=10**400)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**SIZES).dim = 64


@pytest.mark.parametrize("module", ["gptrs.model", "gptrs.model.config", "gptrs.model.count"])
def test_sizes_and_counts_need_no_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_package_names_what_it_offers():
    import gptrs.model

    assert all(getattr(gptrs.model, name) is not None for name in gptrs.model.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Transfomer'"):
        _ = gptrs.model.Transfomer


def test_a_training_config_can_set_every_field_but_the_vocabulary():
    from gptrs.train.settings import ModelSettings

    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert {field.name for field in dataclasses.fields(ModelSettings)} == fields - {"vocab_size"} | {"preset"}
