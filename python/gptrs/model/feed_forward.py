"""The dense feed-forward layer: every position by itself, through a wider space."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model.config import ModelConfig
from gptrs.model.matmul import Linear


class FeedForward(nn.Module):
    """Two linear layers with GELU between, C → inter_dim → C; GELU in its tanh form, as GPT-2.

    Source: arXiv 1706.03762, section 3.3; GELU arXiv 1606.08415, section 2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.dim, config.inter_dim, bias=config.has_bias)
        self.down = Linear(config.inter_dim, config.dim, bias=config.has_bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))  # (B, T, C)
        return y


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), with gate and up in one matrix.

    Attributes: up: C → 2·width, rows ordered (gate | up); down: width → C.
    Source: arXiv 2002.05202, equation 6, without biases there.
    """

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.up = Linear(config.dim, 2 * width, bias=config.has_bias)
        self.down = Linear(width, config.dim, bias=config.has_bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(gated(self.up(x)))  # (B, T, C)
        return y


def feed_forward(config: ModelConfig) -> FeedForward | SwiGLU:
    """The model's kind of dense layer."""
    return FeedForward(config) if config.feed_forward == "gelu" else SwiGLU(config, config.inter_dim)


def gated(high: Tensor) -> Tensor:
    """silu(gate)·value of (gate | value): (…, 2·width) → (…, width). The backward pass keeps its input alone."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        y: Tensor = _Gated.apply(high)
        return y
    gate, value = high.chunk(2, dim=-1)  # (…, width) each
    return F.silu(gate) * value


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, high: Tensor) -> Tensor:
        ctx.save_for_backward(high)
        return gated_forward(high, dim=-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (high,) = ctx.saved_tensors
        return gated_backward(dy, high, dim=-1)


def gated_forward(high: Tensor, *, dim: int) -> Tensor:
    """silu(gate)·value of (gate | value), which stand one behind the other along `dim`; autograd does not see it."""
    gate, value = high.chunk(2, dim)
    return F.silu(gate).mul_(value)


def gated_backward(dy: Tensor, high: Tensor, *, dim: int) -> Tensor:
    """The gradient of (gate | value), which stand one behind the other along `dim`."""
    gate, value = high.chunk(2, dim)
    d_high = torch.empty_like(high)
    d_gate, d_value = d_high.chunk(2, dim)
    torch.mul(F.silu(gate), dy, out=d_value)
    torch.ops.aten.silu_backward.grad_input(dy * value, gate, grad_input=d_gate)
    return d_high
