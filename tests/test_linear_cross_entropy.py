"""The loss through the head some rows at a time, against the loss of all logits at once."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gptrs.model import ModelConfig, Transformer, next_token_loss
from gptrs.model import loss as losses


def case(dtype=torch.float64, n_ignored=5):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 8, 16, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(40, 16, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(40, (3, 8), generator=generator)
    targets.view(-1)[:n_ignored] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("rows", [1, 5, 24, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_loss_and_gradients_are_those_of_all_logits_at_once(monkeypatch, rows, dtype, tolerance):
    monkeypatch.setattr(losses, "_CHUNK_BYTES", rows * 40 * dtype.itemsize)
    hidden, weight, targets = case(dtype)
    loss, expected = losses.linear_cross_entropy(hidden, weight, targets), next_token_loss(hidden @ weight.T, targets)
    assert (loss - expected).abs() <= tolerance * 10
    for got, wanted in zip(
        torch.autograd.grad(3.0 * loss, (hidden, weight)), torch.autograd.grad(3.0 * expected, (hidden, weight)),
        strict=True,
    ):  # fmt: skip
        assert (got - wanted).abs().max() <= tolerance


def test_half_precision_is_summed_in_single():
    hidden, weight, targets = case(torch.bfloat16)
    loss, expected = losses.linear_cross_entropy(hidden, weight, targets), next_token_loss(hidden @ weight.T, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for got, wanted in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert got.dtype == torch.bfloat16
        assert (got - wanted).abs().max() < 0.01


def test_no_position_that_counts_gives_what_torch_gives():
    hidden, weight, targets = case(n_ignored=24)
    assert losses.linear_cross_entropy(hidden, weight, targets).isnan()
    assert next_token_loss(hidden @ weight.T, targets).isnan()


def test_one_side_alone_and_neither_can_be_asked_for():
    hidden, weight, targets = case()
    (whole,) = torch.autograd.grad(losses.linear_cross_entropy(hidden, weight, targets), (weight,))
    (alone,) = torch.autograd.grad(losses.linear_cross_entropy(hidden.detach(), weight, targets), (weight,))
    assert torch.equal(alone, whole)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = losses.linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert counter.get_total_flops() == 2 * 24 * 16 * 40  # the logits, and nothing of a gradient
    assert loss.item() == pytest.approx(next_token_loss(hidden @ weight.T, targets).item(), abs=1e-12)


def test_a_tied_head_gets_both_gradients():
    config = ModelConfig(vocab_size=40, max_seq_len=8, dim=16, n_layers=1, n_heads=2, inter_dim=32)
    model, tokens = Transformer(config).double(), torch.arange(24).view(3, 8)
    model.loss(tokens, tokens + 1).backward()
    got = model.embed.token.weight.grad.clone()
    model.zero_grad()
    next_token_loss(model(tokens), tokens + 1).backward()
    assert (got - model.embed.token.weight.grad).abs().max() < 1e-14
