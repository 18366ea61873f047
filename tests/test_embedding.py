"""Positions: learned ones end, sinusoidal ones do not."""

import math

import pytest
import torch

from gptrs.model import ModelConfig, Transformer
from gptrs.model.embedding import Embedding, sinusoids

SIZES = {"vocab_size": 11, "max_seq_len": 16, "dim": 8, "n_layers": 2, "n_heads": 2, "inter_dim": 32}


def test_sinusoids_are_those_of_the_paper():
    dim, table = 6, sinusoids(torch.tensor([0, 1, 7, 100_000]), 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    for row, position in zip(table.tolist(), [0, 1, 7, 100_000], strict=True):
        for i in range(dim // 2):
            angle = position / 10_000 ** (2 * i / dim)
            assert row[2 * i] == pytest.approx(math.sin(angle), abs=1e-9)
            assert row[2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-9)


def test_the_input_is_token_plus_position():
    embed = Transformer(ModelConfig(**SIZES)).embed
    tokens = torch.tensor([[3, 1, 4], [1, 5, 9]])
    out = embed(tokens, torch.arange(3))
    assert torch.equal(out[1, 2], embed.token.weight[9] + embed.position.weight[2])
    each = embed(tokens, torch.tensor([[0, 1, 2], [7, 8, 9]]))
    assert torch.equal(each[0], out[0])
    assert torch.equal(each[1, 2], embed.token.weight[9] + embed.position.weight[9])


def test_sinusoidal_positions_run_past_the_trained_length():
    model = Transformer(ModelConfig(**SIZES, position="sinusoidal")).eval()
    tokens = torch.randint(11, (1, 100), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (1, 100, 11)
    assert torch.allclose(logits[:, :16], model(tokens[:, :16]), atol=1e-6)
    far = model(tokens[:, :4], positions=torch.arange(4) + 1_000_000)
    assert far.isfinite().all()
    assert not torch.allclose(far, logits[:, :4], atol=1e-3)


def test_learned_positions_end_with_a_hint():
    model = Transformer(ModelConfig(**SIZES))
    assert model(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 16, 11)
    message = r"at most max_seq_len \(16\) tokens with learned positions, got 17; hint: .*position='sinusoidal'"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 17, dtype=torch.int64))


def test_sinusoidal_positions_are_no_parameters_and_no_state():
    embed = Embedding(ModelConfig(**SIZES, position="sinusoidal"))
    assert [name for name, _ in embed.named_parameters()] == ["token.weight"]
    assert list(embed.state_dict()) == ["token.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_positions_take_the_dtype_of_the_tokens(dtype):
    embed = Transformer(ModelConfig(**SIZES, position="sinusoidal")).to(dtype).embed
    assert embed(torch.zeros(1, 4, dtype=torch.int64), torch.arange(4)).dtype == dtype
