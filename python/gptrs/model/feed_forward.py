"""The dense feed-forward layer: every position by itself, through a wider space."""

import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model.config import ModelConfig


class FeedForward(nn.Module):
    """Two linear layers with GELU between, C → inter_dim → C; GELU in its tanh form, as GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.inter_dim, bias=config.has_bias)
        self.down = nn.Linear(config.inter_dim, config.dim, bias=config.has_bias)

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
        self.up = nn.Linear(config.dim, 2 * width, bias=config.has_bias)
        self.down = nn.Linear(width, config.dim, bias=config.has_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)  # (B, T, width) each
        y: Tensor = self.down(F.silu(gate) * up)  # (B, T, C)
        return y


def feed_forward(config: ModelConfig) -> FeedForward | SwiGLU:
    """The model's kind of dense layer."""
    return FeedForward(config) if config.feed_forward == "gelu" else SwiGLU(config, config.inter_dim)
