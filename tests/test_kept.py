"""Norms and gated products keep their input alone for the backward pass, with the numbers of torch's own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model.feed_forward import gated
from gptrs.model.norm import RMSNorm

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SHAPES = ((3, 5, 24), (2, 1, 7, 8), (4, 2), (0, 6))


def split_gate(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def results(function: Callable[[Tensor], Tensor], x: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    """The output, and the gradients of x and the weights for a random gradient of the output."""
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *weights], random(*y.shape, dtype=y.dtype, seed=2))]


def kept(function: Callable[[Tensor], Tensor], x: Tensor) -> set[int]:
    """The storages that the backward pass holds."""
    held = set()

    def pack(tensor: Tensor) -> Tensor:
        held.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)
    return held


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_norm_has_the_numbers_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = 3 * random(*shape, dtype=dtype, seed=0)
    weight = nn.Parameter(random(shape[-1], dtype=dtype, seed=1))
    pairs = []
    for kind in (RMSNorm, nn.RMSNorm):
        module = kind(shape[-1], eps=1e-3)
        module.weight = weight
        pairs.append(results(module, x, [weight]))
    (mine, *my_gradients), (theirs, *their_gradients) = pairs
    assert torch.equal(mine, theirs)
    for a, b in zip(my_gradients, their_gradients, strict=True):
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gated_product_has_the_numbers_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = 3 * random(*shape, dtype=dtype, seed=0)
    (mine, my_gradient), (theirs, their_gradient) = results(gated, x, []), results(split_gate, x, [])
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(my_gradient, their_gradient)


def test_gradients_are_those_of_small_steps() -> None:
    x = random(3, 6, dtype=torch.float64, seed=0).requires_grad_()
    norm = RMSNorm(6, eps=1e-3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x),
                                    (x, random(6, dtype=torch.float64, seed=1).requires_grad_()))  # fmt: skip
    assert torch.autograd.gradcheck(gated, (x,))


def test_they_keep_their_input_alone() -> None:
    x = random(64, 24, dtype=torch.float32, seed=0).requires_grad_()
    norm = RMSNorm(24, eps=1e-3)
    place = x.untyped_storage().data_ptr()
    assert kept(gated, x) == {place}
    assert kept(norm, x) == {place, norm.weight.untyped_storage().data_ptr()}
    assert len(kept(split_gate, x)) > 1  # what the plain form keeps: the test sees it
    assert len(kept(super(RMSNorm, norm).forward, x)) > 2


def test_frozen_weights_get_no_gradient() -> None:
    norm = RMSNorm(4, eps=1e-3)
    norm.weight.requires_grad_(False)
    x = random(2, 4, dtype=torch.float32, seed=0).requires_grad_()
    norm(x).sum().backward()
    assert norm.weight.grad is None
    assert x.grad is not None and x.grad.abs().sum() > 0
    norm.weight.requires_grad_(True)
    norm(x.detach()).sum().backward()
    assert norm.weight.grad is not None
