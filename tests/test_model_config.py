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
    sizes = {name: (c.n_layers, c.n_heads, c.dim, c.inter_dim) for name, c in PRESETS.items()}
    assert sizes == {
        "gpt2-small": (12, 12, 768, 3072),
        "gpt2-medium": (24, 16, 1024, 4096),
        "gpt2-large": (36, 20, 1280, 5120),
        "gpt2-xl": (48, 25, 1600, 6400),
    }
    assert {(c.vocab_size, c.max_seq_len, c.is_head_tied, c.position) for c in PRESETS.values()} == {
        (50_257, 1024, True, "learned")
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
        ({"position": "rope"}, r"position must be one of learned, sinusoidal, got 'rope'"),
        ({"position": "sinusoidal", "dim": 15, "n_heads": 3}, r"dim must be even .* got 15; hint: use dim=16"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"dropout": float("nan")}, r"dropout must be at least 0 and below 1, got nan"),
        ({"is_head_tied": 1}, r"is_head_tied must be true or false, got 1"),
        ({"norm_eps": 0.0}, r"norm_eps must be a positive number, got 0\.0"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SIZES | changes))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"got 'gpt2-smal'; hint: did you mean 'gpt2-small'"):
        ModelConfig.preset("gpt2-smal")
    with pytest.raises(ValueError, match=r"got 'n_layer'; hint: did you mean 'n_layers'"):
        ModelConfig.preset("gpt2-small", n_layer=2)


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
