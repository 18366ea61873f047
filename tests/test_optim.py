"""AdamW: which tensors decay, clipping, and equality with the update written out."""

import math

import pytest
import torch
from torch import nn

from gptrs.model import ModelConfig, Transformer
from gptrs.train.optim import adamw, clip, set_learning_rate

SIZES = {"vocab_size": 32, "max_seq_len": 8, "dim": 8, "n_layers": 1, "n_heads": 2, "inter_dim": 16}


def make(model: nn.Module, lr: float = 0.1, weight_decay: float = 0.1) -> torch.optim.AdamW:
    return adamw(model, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), eps=1e-8)


def test_matrices_and_embeddings_decay_biases_and_norms_do_not() -> None:
    model = Transformer(ModelConfig(**SIZES))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in make(model).param_groups
    }
    assert groups[0.1] | groups[0.0] == set(names.values())
    assert {"embed.token.weight", "embed.position.weight"} <= groups[0.1]
    assert groups[0.0] == {name for name in names.values() if name.endswith("bias") or "norm" in name}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(group["params"]) for group in make(model).param_groups] == [1]


def test_one_update_equals_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(2.0)
    optimizer = make(model, lr=0.1, weight_decay=0.5)
    model.weight.grad = torch.full_like(model.weight, 3.0)
    optimizer.step()
    # first step: both moments, corrected for their start at zero, are the gradient and its square
    expected = 2.0 * (1 - 0.1 * 0.5) - 0.1 * 3.0 / (math.sqrt(9.0) + 1e-8)
    assert model.weight.item() == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_reaches_every_group() -> None:
    optimizer = make(Transformer(ModelConfig(**SIZES)))
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_clip_returns_the_norm_before_and_limits_it_after() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip(model.parameters(), 1.0).item() == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert clip(model.parameters(), 2.0).item() == pytest.approx(1.0, rel=1e-5)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_clip_zero_leaves_the_gradient() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip(model.parameters(), 0.0).item() == pytest.approx(5.0)
    assert model.weight.grad.tolist() == [[3.0, 4.0]]
