"""Causal attention of float32 on CPUs with tile units, and its gradients (`rust/gptrs-core/src/attention`).

    q (B, H, T, D), k (B, K, T, D1), v (B, K, T, V), key (B, 1, T, D - D1) ─▶ out (B, T, H, V), lse (B, H, T)

A key that all heads share, the rotary one of latent attention, is never joined to those of the heads, and values may
be narrower than keys: what is kept for the backward pass is q, k, v and key as they are, out as the next product reads
it, and the log-sum-exp of scores. Products are those of `matmul`, with what is said there of infinite numbers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from gptrs import _core
from gptrs.model.matmul import _region, has_tiles

_LEAST_POSITIONS = 64  # below, torch's kernel is as fast


def goes_by_tiles(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None) -> bool:
    """Whether causal attention of these is faster by tiles."""
    given = [q, k, v] if key is None else [q, k, v, key]
    if not (q.shape[2] == k.shape[2] >= _LEAST_POSITIONS and all(map(has_tiles, given))):
        return False
    if not torch.compiler.is_compiling() and any(type(one) not in (Tensor, nn.Parameter) for one in given):
        return False
    return not torch.is_autocast_enabled("cpu")


def attend_by_tiles(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None, scale: float) -> Tensor:
    """softmax(q·(k | key)ᵀ·scale)·v in causal order, (B, H, T, V), solid as (B, T, H, V). Args: as above."""
    out: Tensor = _Attention.apply(q, k, v, key, scale)
    return out.transpose(1, 2)  # (B, H, T, V)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, key: Tensor | None, scale: float) -> Tensor:
        out: Tensor
        out, lse = torch.ops.gptrs.attention(q, k, v, key, scale)
        ctx.save_for_backward(q, k, v, key, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, key, out, lse = ctx.saved_tensors
        d_q, d_k, d_v, d_key = torch.ops.gptrs.attention_backward(d_out, q, k, v, key, out, lse, ctx.scale)
        shared = None if key is None else d_key.sum(dim=2).unsqueeze(1)  # (B, 1, T, D - D1)
        return d_q.transpose(1, 2), d_k.transpose(1, 2), d_v.transpose(1, 2), shared, None


_library = torch.library.Library("gptrs", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor? key"
_library.define(f"attention({_ARGUMENTS}, float scale) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"attention_backward(Tensor d_out, {_ARGUMENTS}, Tensor out, Tensor lse, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("gptrs::attention", lib=_library)  # type: ignore[untyped-decorator]
def _results(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Memory for out and lse."""
    B, H, T, _ = q.shape
    return q.new_empty(B, T, H, v.shape[-1]), q.new_empty(B, H, T)


@torch.library.register_fake("gptrs::attention_backward", lib=_library)  # type: ignore[untyped-decorator]
def _gradients(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, key: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the gradients of q, k, v and key, by position and head; that of key for each kv head."""
    (B, H, T, D), (_, K, _, D1) = q.shape, k.shape
    d_q, d_k, d_v = q.new_empty(B, T, H, D), q.new_empty(B, T, K, D1), q.new_empty(B, T, K, v.shape[-1])
    return d_q, d_k, d_v, q.new_empty(B, T, K, 0 if key is None else key.shape[-1])


@torch.library.impl(_library, "attention", "CPU")
def _attention(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    out: Tensor
    out, lse = _results(q, k, v, key, scale)
    threads = torch.get_num_threads()
    _core.attend(_given(q, k, v, key), scale, _flat(out), _flat(lse), threads, _region())
    return out, lse


@torch.library.impl(_library, "attention_backward", "CPU")
def _attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, key: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made: tuple[Tensor, Tensor, Tensor, Tensor] = _gradients(d_out, q, k, v, key, out, lse, scale)
    _core.attend_backward(
        _given(q, k, v, key),
        scale,
        _array(out.transpose(1, 2)),
        _flat(lse.contiguous()),
        _array(d_out.transpose(1, 2)),
        (_flat(made[0]), _flat(made[1]), _flat(made[2]), _flat(made[3])),
        torch.get_num_threads(),
        _region(),
    )
    return made


def _given(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None) -> tuple[Any, Any, Any, Any]:
    return _array(q), _array(k), _array(v), None if key is None else _array(key)


def _array(x: Tensor) -> Any:
    """As numpy's array, columns side by side."""
    return (x if x.stride(-1) == 1 else x.contiguous()).detach().numpy()


def _flat(x: Tensor) -> Any:
    return x.detach().view(-1).numpy()


@register_flop_formula(torch.ops.gptrs.attention)
def _(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """As torch counts: two products of all queries with all keys."""
    B, H, T, D = map(int, q)
    return 2 * B * H * T * T * (D + int(v[-1]))


@register_flop_formula(torch.ops.gptrs.attention_backward)
def _(d_out: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """As torch counts: scores once more, and two products for the gradient of each of the two above."""
    B, H, T, D = map(int, q)
    return 2 * B * H * T * T * (3 * D + 2 * int(v[-1]))
