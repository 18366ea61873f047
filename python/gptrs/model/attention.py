"""Causal self-attention: each position gathers from itself and those before it."""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gptrs.model.cache import KVCache
from gptrs.model.config import ModelConfig


class Attention(nn.Module):
    """Multi-head attention, softmax(q·kᵀ / √D)·v in every head, with one projection for q, k and v together.

    Attributes: qkv: C → 3·C, rows ordered (q | k | v), heads inside each; output: C → C.
    Source: arXiv 1706.03762, section 3.2; dropout on the weights as GPT-2.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.output = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Returns (B, T, C).

        Args:
            x: (B, T, C).
            mask: True where a query may look, broadcast to (B, H, T, S); None means plain causal order, for which
                the T queries must be all S positions or the last one (see KVCache.mask).
            cache: keys and values of earlier positions; those of x are appended.
        """
        B, T, C = x.shape
        # unbind before the transpose: its backward then writes the gradient of qkv in one contiguous copy
        q, k, v = self.qkv(x).view(B, T, 3, self.n_heads, self.head_dim).unbind(2)  # (B, T, H, D) each
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D) each
        is_causal = mask is None
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D) each
            if T == 1:
                is_causal = False  # the one query sees every position
        dropout = self.dropout if self.training else 0.0
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        y: Tensor = self.output(out.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        return y
