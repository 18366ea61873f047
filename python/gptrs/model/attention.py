"""Causal self-attention: each position gathers from itself and those before it."""

import torch
from torch import Tensor, nn

from gptrs.model.attend import Mask, attend
from gptrs.model.cache import KVCache
from gptrs.model.config import ModelConfig
from gptrs.model.matmul import Linear
from gptrs.model.rope import rotate, softmax_scale


class Attention(nn.Module):
    """softmax(q·kᵀ·scale)·v in every head (see softmax_scale), with one projection for q, k and v together.

    With fewer kv heads than query heads, query head h reads kv head h // (H / K): multi-head attention has K = H,
    multi-query attention K = 1, grouped-query attention stands between.

    Attributes: qkv: C → (H + 2·K)·D, rows ordered (q | k | v), heads inside each; output: H·D → C.
    Source: arXiv 1706.03762, section 3.2; arXiv 2305.13245; dropout on the weights as GPT-2.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.kv_heads = config.kv_heads
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.scale = softmax_scale(config)
        width = (config.n_heads + 2 * config.kv_heads) * config.head_dim
        self.qkv = Linear(config.dim, width, bias=config.has_bias)
        self.output = Linear(config.dim, config.dim, bias=config.has_bias)

    def forward(
        self, x: Tensor, *, mask: Mask = None, cache: KVCache | None = None, turns: Tensor | None = None
    ) -> Tensor:
        """Returns (B, T, C).

        Args:
            x: (B, T, C).
            mask: True where a query may look, broadcast to (B, H, T, S), or what `sight` gave; None means plain
                causal order, for which the T queries must be all S positions or the last one (see Cache.mask).
            cache: keys and values of earlier positions; those of x are appended.
            turns: rotations of the positions of x, where they are rotary.
        """
        B, T, _ = x.shape
        q, k, v = self._projected(x)  # (B, H, T, D), (B, K, T, D) twice
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        is_causal = mask is None
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, D) each
            if T == 1:
                is_causal = False  # the one query sees every position
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, mask=mask, is_causal=is_causal, dropout=dropout, scale=self.scale)  # (B, H, T, D)
        y: Tensor = self.output(out.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)
        return y

    def weights(self, x: Tensor, *, turns: Tensor | None = None) -> Tensor:
        """What each position takes from itself and those before it, in every head: (B, H, T, T), rows of sum 1.

        To look at: `forward` never holds them. Args: as there.
        """
        return causal_weights(*self.queries_and_keys(x, turns=turns), self.scale)

    def queries_and_keys(self, x: Tensor, *, turns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What scores are products of: (B, H, T, D), (B, K, T, D). Args: as `forward`."""
        q, k, _ = self._projected(x)
        return (q, k) if turns is None else (rotate(q, turns), rotate(k, turns))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D)."""
        B, T, _ = x.shape
        H, K, D = self.n_heads, self.kv_heads, self.head_dim
        if H == K:
            # unbind before the transpose: its backward then writes the gradient of qkv in one contiguous copy
            q, k, v = self.qkv(x).view(B, T, 3, H, D).unbind(2)  # (B, T, H, D) each
        else:
            q, k, v = torch.split(self.qkv(x).view(B, T, H + 2 * K, D), [H, K, K], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def causal_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """softmax(q·kᵀ·scale) over the positions up to each query's own: (B, H, T, D), (B, K, T, D) → (B, H, T, T)."""
    H, T = q.shape[1:3]
    k = k.repeat_interleave(H // k.shape[1], dim=1)  # (B, H, T, D)
    later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.transpose(-2, -1) * scale).masked_fill(later, -torch.inf).softmax(dim=-1)  # (B, H, T, T)
