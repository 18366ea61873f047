"""Rotary positions: neighbouring pairs of a query or key, turned by an angle that grows with the position.

    (x₀, x₁), (x₂, x₃), …   pair i at position p turns by p·f(i),   f(i) = rope_theta^(-2i / rope_dim)

The product of a query at p and a key at q then depends on p - q alone. Pairs are neighbours ("interleaved"), as
DeepSeek stores them; files that pair the two halves of a head are reordered when they are read. As with the fixed
sinusoids, the angles of the positions asked for are computed, in float64: there is no table to grow or move.
"""

import math

import torch
from torch import Tensor

from gptrs.model.config import ModelConfig


def frequencies(config: ModelConfig, *, device: torch.device | None = None) -> Tensor:
    """The angle of each pair per position, float64 (rope_dim / 2,); with rope_factor above 1, YaRN's.

    YaRN divides the frequencies of slow pairs by rope_factor, so that positions beyond rope_original_len stay inside
    of what training has seen, leaves fast ones alone, and blends linearly by pair between
    `rope_beta_fast` and `rope_beta_slow` rotations in rope_original_len.
    Source: RoFormer, arXiv 2104.09864, section 3.2.2; YaRN, arXiv 2309.00071, section 3.2.
    Example: rope_dim 4 and rope_theta 100 give (1, 0.1).
    """
    even = torch.arange(0, config.rope_dim, 2, device=device, dtype=torch.float64)
    plain = config.rope_theta ** (-even / config.rope_dim)  # (rope_dim / 2,)
    if config.rope_factor == 1.0:
        return plain
    first, last = (_pair_of(config, turns) for turns in (config.rope_beta_fast, config.rope_beta_slow))
    low, high = max(math.floor(first), 0), min(math.ceil(last), config.rope_dim - 1)
    pairs = torch.arange(config.rope_dim // 2, device=device, dtype=torch.float64)
    slowed = ((pairs - low) / ((high - low) or 0.001)).clamp(0.0, 1.0)  # (rope_dim / 2,), 0: as it is
    return plain * (1.0 - slowed) + plain / config.rope_factor * slowed


def rotations(config: ModelConfig, positions: Tensor) -> Tensor:
    """Cosines and sines of the angles at these positions: integers (...) → float64 (..., rope_dim / 2, 2)."""
    angles = positions.unsqueeze(-1) * frequencies(config, device=positions.device)  # (..., rope_dim / 2)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the pairs of x, (B, H, T, D), by the `rotations` of (T,) or (B, T) positions; returns x's shape and type.

    Computed in the wider type of both. Source: arXiv 2104.09864, section 3.4.2, equation 34.
    """
    cos, sin = (turns if turns.ndim == 3 else turns.unsqueeze(1)).unbind(-1)  # (T, D / 2) or (B, 1, T, D / 2) each
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)  # (B, H, T, D / 2) each
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)  # (B, H, T, D)


def softmax_scale(config: ModelConfig) -> float:
    """What query times key is multiplied by: 1 / √D, with YaRN times (0.1·rope_mscale·ln(rope_factor) + 1)².

    Source: arXiv 2309.00071, section 3.4, on both sides of the product as DeepSeek-V2's released code has it.
    Example: 0.1352337788608801 for deepseek-v3, 192^-0.5 · 1.3689².
    """
    growth = 0.1 * config.rope_mscale * math.log(config.rope_factor) + 1.0
    return growth**2 / math.sqrt(config.head_dim)


def _pair_of(config: ModelConfig, turns: float) -> float:
    """The pair, as a fraction, that turns this often in rope_original_len positions."""
    per_turn = config.rope_original_len / (turns * 2.0 * math.pi)
    return config.rope_dim * math.log(per_turn) / (2.0 * math.log(config.rope_theta))
