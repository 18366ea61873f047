"""softmax(q·kᵀ·scale)·v by SDPA, flex_attention or tiles, and what each query may see inside its document.

    doc_ids (B, T) ─sight─▶ booleans (B, 1, T, T)  SDPA: the reference, on every device
                     └────▶ BlockMask              flex_attention on CUDA: tiles between two documents are not computed

The mask is made once a forward pass, every layer gets the same one, and its kind says which of the two computes.
Plain causal order of float32 on a CPU with tile units has a kernel of its own (`attend_by_tiles`).
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gptrs.model.attend_by_tiles import attend_by_tiles, goes_by_tiles
from gptrs.model.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

DocumentAttention = Literal["auto", "sdpa", "flex"]
Mask: TypeAlias = "Tensor | BlockMask | None"  # None: plain causal order, or no order where one query sees all

_LEAST_WIDTH = 16  # of a tile in Triton's product
# Wider heads may need more shared memory than a GPU has: three stages of 64 keys and values beside 64 queries.
_LARGEST_WIDTH = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 64}


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key: Tensor | None = None,
    mask: Mask,
    is_causal: bool,
    dropout: float,
    scale: float,
) -> Tensor:
    """Returns (B, H, T, width of v). Query head h reads kv head h // (H / K).

    Args:
        q, k, v: (B, H, T, D), (B, K, S, D1), (B, K, S, any width).
        key: (B, 1, S, D - D1), what all heads' keys end with; without it D1 = D.
        mask: booleans that broadcast to (B, H, T, S), what `sight` gave, or None.
        is_causal: plain causal order, without a mask.
    """
    if mask is None and is_causal and dropout == 0.0 and goes_by_tiles(q, k, v, key):
        return attend_by_tiles(q, k, v, key, scale)
    width = v.shape[-1]
    if key is not None:
        k = torch.cat((k, key.expand(-1, k.shape[1], -1, -1)), dim=-1)  # (B, K, S, D)
        if q.device.type == "cpu" and width < q.shape[-1]:
            v = F.pad(v, (0, q.shape[-1] - width))  # (B, K, S, D): one width for the CPU's fused kernel
    out = _attend(q, k, v, mask=mask, is_causal=is_causal, dropout=dropout, scale=scale)  # (B, H, T, width or D)
    return out[..., :width]


def _attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, is_causal: bool, dropout: float, scale: float) -> Tensor:
    is_shared = k.shape[1] < q.shape[1]
    if mask is None or isinstance(mask, Tensor):
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scale, enable_gqa=is_shared
        )
    from torch.nn.attention.flex_attention import flex_attention

    assert not is_causal and dropout == 0.0, "sight makes no BlockMask for these"
    out: Tensor = _fused(flex_attention, q)(q, k, v, block_mask=mask, scale=scale, enable_gqa=is_shared)
    return out


def sight(doc_ids: Tensor, x: Tensor, config: ModelConfig, *, by: DocumentAttention, is_training: bool) -> Mask:
    """What queries may see: themselves and the positions before them in their document.

    Args:
        doc_ids: (B, T), equal in one document.
        x, by, is_training: as in `chosen`.
    """
    is_flex = chosen(x, config, by=by, is_training=is_training) == "flex"
    return _blocks(doc_ids) if is_flex else inside_documents(doc_ids)


def chosen(x: Tensor, config: ModelConfig, *, by: DocumentAttention, is_training: bool) -> Literal["flex", "sdpa"]:
    """What computes attention inside documents.

    Args:
        x: of the device and the type that attention computes in.
        by: "flex" and "sdpa" say it; "auto" is flex on CUDA, where it can, and SDPA elsewhere.
    Raises: ValueError when `by` is "flex" and it cannot.
    """
    if by not in get_args(DocumentAttention):
        raise ValueError(f"expected document attention by {', '.join(get_args(DocumentAttention))}, got {by!r}")
    obstacle = _obstacle(x, config, is_training)
    if by == "flex" and obstacle:
        raise ValueError(f"flex_attention has no {obstacle}; hint: use 'sdpa', or 'auto' to choose what is possible")
    is_fit = x.is_cuda and obstacle is None and max(config.head_dim, config.value_dim) <= _LARGEST_WIDTH[x.dtype]
    return "flex" if by == "flex" or (by == "auto" and is_fit) else "sdpa"


def inside_documents(doc_ids: Tensor) -> Tensor:
    """Where a query may look when it sees its own document alone: (B, T) → booleans (B, 1, T, T)."""
    T = doc_ids.shape[1]
    is_same = doc_ids.unsqueeze(-1) == doc_ids.unsqueeze(-2)  # (B, T, T)
    return (is_same & torch.ones(T, T, dtype=torch.bool, device=doc_ids.device).tril()).unsqueeze(1)


def _blocks(doc_ids: Tensor) -> "BlockMask":
    """The same, as the tiles that flex_attention computes; compiled, no (B, T, T) is ever there."""
    from torch.nn.attention.flex_attention import create_block_mask

    def is_seen(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (doc_ids[b, query] == doc_ids[b, key]) & (query >= key)

    B, T = doc_ids.shape
    made: BlockMask = _fused(create_block_mask, doc_ids)(is_seen, B, None, T, T, device=doc_ids.device)
    return made


def _obstacle(x: Tensor, config: ModelConfig, is_training: bool) -> str | None:
    """What flex_attention cannot do of this, or None."""
    if is_training and config.dropout > 0.0:
        return f"dropout on the attention weights, got dropout={config.dropout}"
    if x.is_cuda and x.dtype not in _LARGEST_WIDTH:
        return f"{x.dtype} on CUDA"
    if x.is_cuda and (width := min(config.head_dim, config.value_dim)) < _LEAST_WIDTH:
        return f"heads narrower than {_LEAST_WIDTH} on CUDA, got {width}"
    return None


def _fused(function: Callable[..., Any], x: Tensor) -> Callable[..., Any]:
    """The function as one kernel on CUDA; a compilation that is under way takes it in as it is."""
    return _compiled(function) if x.is_cuda and not torch.compiler.is_compiling() else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True)
    return compiled
