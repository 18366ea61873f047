"""Causal attention of float32 on CPUs with tile units, and its gradients (`rust/gptrs-core/src/attention`).

    q (B, H, T, D), k (B, K, T, D1), v (B, K, T, V), key (B, 1, T, D - D1) ─▶ out (B, T, H, V), lse (B, H, T)

A key that all heads share, the rotary one of latent attention, is never joined to those of the heads, and values may
be narrower than keys: what is kept for the backward pass is q, k, v and key as they are, out as the next product reads
it, and the log-sum-exp of scores. Where keys and values come of a latent, (B, T, R), that is kept in their place, an
eighth as large, and they are made again. Products are those of `matmul`, with what is said there of infinite numbers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gptrs import _core
from gptrs.model.matmul import has_tiles, is_plain, mm, region

_LEAST_POSITIONS = 64  # below, torch's kernel is as fast


def goes_by_tiles(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None) -> bool:
    """Whether causal attention of these, or of what is made of them, is faster by tiles."""
    given = [q, k, v] if key is None else [q, k, v, key]
    is_long = q.shape[2] == k.shape[2] >= _LEAST_POSITIONS
    return is_long and all(map(has_tiles, given)) and is_plain(*given)


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


def attend_latents_by_tiles(q: Tensor, latent: Tensor, key: Tensor, up: Tensor, scale: float) -> Tensor:
    """The same of (keys | values) = up·latent, the keys without the shared one: solid (B, T, H, V) as (B, H, T, V).

    Args: q: (B, H, T, D1 + D2); latent: (B, T, R); key: (B, 1, T, D2); up: (H·(D1 + V), R), head by head.
    """
    out: Tensor = _LatentAttention.apply(q, latent, key, up, scale)
    return out.transpose(1, 2)  # (B, H, T, V)


class _LatentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, latent: Tensor, key: Tensor, up: Tensor, scale: float) -> Tensor:
        out: Tensor
        out, lse = torch.ops.gptrs.latent_attention(q, latent, key, up, scale)
        ctx.save_for_backward(q, latent, key, up, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        needs_up = ctx.needs_input_grad[3]
        gradients = torch.ops.gptrs.latent_attention_backward(d_out, *ctx.saved_tensors, ctx.scale, needs_up)
        d_q, d_latent, d_key, d_up = gradients
        d_key = d_key.sum(dim=2).unsqueeze(1)  # (B, 1, T, D2)
        return d_q.transpose(1, 2), d_latent, d_key, d_up if needs_up else None, None


_library = torch.library.Library("gptrs", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor? key"
_library.define(f"attention({_ARGUMENTS}, float scale) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"attention_backward(Tensor d_out, {_ARGUMENTS}, Tensor out, Tensor lse, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_LATENTS = "Tensor q, Tensor latent, Tensor key, Tensor up"
_library.define(f"latent_attention({_LATENTS}, float scale) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"latent_attention_backward(Tensor d_out, {_LATENTS}, Tensor out, Tensor lse, float scale, bool needs_up)"
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
    _core.attend(_given(q, k, v, key), scale, _flat(out), _flat(lse), threads, region())
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
        region(),
    )
    return made


@torch.library.impl(_library, "latent_attention", "CPU")
def _latent_attention(q: Tensor, latent: Tensor, key: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _attention(q, *_keys_and_values(q, latent, key, up), key, scale)


@torch.library.impl(_library, "latent_attention_backward", "CPU")
def _latent_attention_backward(
    d_out: Tensor,
    q: Tensor,
    latent: Tensor,
    key: Tensor,
    up: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    needs_up: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k, v = _keys_and_values(q, latent, key, up)
    d_q, d_k, d_v, d_key = _attention_backward(d_out, q, k, v, key, out, lse, scale)
    made = torch.cat((d_k, d_v), dim=-1).flatten(2).flatten(0, 1)  # (B·T, H·(D1 + V))
    d_up = mm(made.T, latent.flatten(0, 1)) if needs_up else up.new_empty(0)
    return d_q, mm(made, up).view(latent.shape), d_key, d_up


def _keys_and_values(q: Tensor, latent: Tensor, key: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, T, D1), (B, H, T, V)."""
    (B, H, T, _), own = q.shape, q.shape[-1] - key.shape[-1]
    made = mm(latent.flatten(0, 1), up.T).view(B, T, H, -1).transpose(1, 2)  # (B, H, T, D1 + V)
    return made[..., :own], made[..., own:]


@torch.library.register_fake("gptrs::latent_attention", lib=_library)  # type: ignore[untyped-decorator]
def _(q: Tensor, latent: Tensor, key: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, up.shape[0] // H - D + key.shape[-1]), q.new_empty(B, H, T)


@torch.library.register_fake("gptrs::latent_attention_backward", lib=_library)  # type: ignore[untyped-decorator]
def _(
    d_out: Tensor,
    q: Tensor,
    latent: Tensor,
    key: Tensor,
    up: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    needs_up: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, H, T, D = q.shape
    d_key = q.new_empty(B, T, H, key.shape[-1])
    return q.new_empty(B, T, H, D), q.new_empty(latent.shape), d_key, up.new_empty(up.shape if needs_up else (0,))


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


@register_flop_formula(torch.ops.gptrs.latent_attention)
def _(q: Any, latent: Any, key: Any, up: Any, *_: Any, **__: Any) -> int:
    """As torch counts them: the attention, and the product that keys and values come from."""
    B, H, T, D = map(int, q)
    value = int(up[0]) // H - D + int(key[-1])
    return 2 * B * T * int(up[0]) * int(up[1]) + 2 * B * H * T * T * (D + value)


@register_flop_formula(torch.ops.gptrs.latent_attention_backward)
def _(
    d_out: Any, q: Any, latent: Any, key: Any, up: Any, out: Any, lse: Any, scale: float, needs_up: bool,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Likewise, without the product that is made again."""
    B, H, T, D = map(int, q)
    value = int(up[0]) // H - D + int(key[-1])
    return 2 * B * T * int(up[0]) * int(up[1]) * (1 + needs_up) + 2 * B * H * T * T * (3 * D + 2 * value)
