"""Token ids and positions to the first hidden state: token vector + position vector, then dropout.

Rotary positions are not added here: attention turns queries and keys by them.

Sinusoidal positions are computed for the positions asked for, not looked up: nothing to store, grow or move, no last
position, and the same code under torch.compile and on the meta device.
"""

import math

import torch
from torch import Tensor, nn

from gptrs.model.config import ModelConfig


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """The fixed position vectors PE(p, 2i) = sin(p / 10000^(2i/dim)), PE(p, 2i + 1) = cos of the same angle.

    Args: positions: integers of any shape (...); dim: even width.
    Returns: float64 (..., dim). In float32 the angle alone would be off by 0.004 at position 100,000.
    Source: arXiv 1706.03762, section 3.5.
    Example: position 0 is (0, 1, 0, 1, …); position 1 starts with (sin 1, cos 1).
    """
    even = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64)
    frequencies = torch.exp(even * (-math.log(10_000.0) / dim))
    angles = positions.unsqueeze(-1) * frequencies  # (..., dim / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (..., dim)


class Sinusoids(nn.Module):
    """`sinusoids` as the part that stands where a learned table would: integers (...) → (..., C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, positions: Tensor) -> Tensor:
        return sinusoids(positions, self.dim)


class Embedding(nn.Module):
    """The vectors of tokens plus those of their positions.

    Attributes: token: a table (V, C); position: a table (max_seq_len, C) when learned, Sinusoids, or None when rotary.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.dim)
        self.position: nn.Module | None = None
        if config.position == "learned":
            self.position = nn.Embedding(config.max_seq_len, config.dim)
        elif config.position == "sinusoidal":
            self.position = Sinusoids(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Args: tokens: (B, T); positions: (T,), or (B, T) when they differ between sequences. Returns: (B, T, C)."""
        token: Tensor = self.token(tokens)  # (B, T, C)
        if self.position is not None:
            position: Tensor = self.position(positions).to(token.dtype)  # (T, C) or (B, T, C)
            token = token + position
        out: Tensor = self.dropout(token)  # (B, T, C)
        return out
