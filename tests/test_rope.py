"""Rotary positions: turned pairs, distances alone, and YaRN's frequencies as transformers has them."""

import dataclasses

import pytest
import torch

from gptrs.model import ModelConfig
from gptrs.model.rope import frequencies, rotate, rotations, softmax_scale

CONFIG = ModelConfig(
    vocab_size=8, max_seq_len=64, dim=16, n_layers=1, n_heads=2, inter_dim=8, position="rope", rope_theta=100.0
)


def test_a_worked_example():
    """Width 8 and base 100: the pairs turn by 1, 10^-0.5, 0.1 and 10^-1.5 for each position."""
    assert frequencies(CONFIG).tolist() == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5])
    x = torch.tensor([1.0, 0.0] * 4, dtype=torch.float64).view(1, 1, 1, 8)
    turned = rotate(x, rotations(CONFIG, torch.tensor([2]))).flatten()
    angles = 2 * frequencies(CONFIG)
    assert torch.allclose(turned, torch.stack((angles.cos(), angles.sin()), dim=-1).flatten())


def test_a_rotation_is_a_product_of_complex_numbers():
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 7, 63], [5, 4, 3, 2, 1]])
    angles = positions.unsqueeze(-1) * frequencies(CONFIG)  # (B, T, D / 2)
    pairs = torch.view_as_complex(x.reshape(2, 3, 5, 4, 2))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)).flatten(-2)
    assert torch.allclose(rotate(x, rotations(CONFIG, positions)), expected, rtol=0, atol=1e-14)


def test_one_row_of_positions_stands_for_all():
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.arange(5)
    assert torch.equal(rotate(x, rotations(CONFIG, one)), rotate(x, rotations(CONFIG, one.expand(2, 5))))


def test_products_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def product(at_q: int, at_k: int) -> float:
        turned = [rotate(x, rotations(CONFIG, torch.tensor([p]))) for x, p in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    for distance in (0, 3, 40):
        first, *others = [product(start + distance, start) for start in (0, 1, 17, 100_000)]
        assert others == pytest.approx([first] * 3, abs=1e-9)
    assert product(3, 0) != pytest.approx(product(0, 3), abs=1e-3)


def test_half_precision_is_turned_in_single_and_comes_back_as_it_was():
    x = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    turns = rotations(CONFIG, torch.arange(4)).float()
    turned = rotate(x, turns)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), turns).bfloat16())


@pytest.mark.parametrize("preset", ["deepseek-v3", "deepseek-v2", "deepseek-v2-lite", "kimi-k2", "llama-small"])
def test_frequencies_are_those_of_transformers(preset):
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from gptrs.exchange import hf_config

    config = dataclasses.replace(ModelConfig.preset(preset), n_mtp_layers=0)
    keys = {key: value for key, value in hf_config.write(config).items() if key != "architectures"}
    theirs = AutoConfig.for_model(**keys)
    if config.rope_factor == 1.0:
        # transformers 4 has it in its table
        default = ROPE_INIT_FUNCTIONS.get("default") or LlamaRotaryEmbedding.compute_default_rope_parameters
        expected, factor = default(theirs, device=torch.device("cpu"))
    else:
        expected, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    assert factor == 1.0, "sines stay of length 1"
    assert torch.allclose(frequencies(config).float(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("theta", "original_len", "fast", "slow"),
    [
        (100.0, 10**6, 32.0, 1.0),  # both borders behind the last pair
        (100.0, 10**6, 1e5, 1e-3),  # one of them
        (10_000.0, 4096, 1.0, 1.0),  # one border for both
        (100.0, 500, 79.57747154594767, 79.57747154594767),  # on a pair: the ramp has no width
        (10_000.0, 8, 32.0, 1.0),  # the first before the first pair
        (10_000.0, 2, 32.0, 1.0),  # both
    ],
)
def test_borders_of_the_ramp_are_those_of_transformers(theta, original_len, fast, slow):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = dataclasses.replace(
        CONFIG,
        rope_theta=theta,
        rope_factor=8.0,
        rope_original_len=original_len,
        rope_beta_fast=fast,
        rope_beta_slow=slow,
    )
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": original_len, "rope_theta": theta}
    yarn |= {"beta_fast": fast, "beta_slow": slow}
    theirs = LlamaConfig(hidden_size=16, num_attention_heads=2, rope_theta=theta, rope_parameters=yarn)
    if not hasattr(theirs, "rope_parameters") or not theirs.rope_scaling:  # transformers 4 knows them by this name
        theirs = LlamaConfig(hidden_size=16, num_attention_heads=2, rope_theta=theta, rope_scaling=yarn)
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    assert torch.allclose(frequencies(config).float(), expected, rtol=1e-5, atol=0)


def test_scores_grow_with_the_stretch_of_the_context():
    assert softmax_scale(ModelConfig.preset("deepseek-v3")) == pytest.approx(0.1352337788608801, abs=1e-15)
    assert softmax_scale(CONFIG) == pytest.approx(8**-0.5)
    assert softmax_scale(dataclasses.replace(CONFIG, rope_factor=40.0, rope_mscale=0.0)) == pytest.approx(8**-0.5)
