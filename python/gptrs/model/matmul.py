"""Matrix products of float32 on CPUs with tile units (Intel AMX), by three bfloat16 for each number.

Tiles multiply bfloat16 alone, but sixteen times as many as vectors multiply float32. The core splits each number into
three of them, whose sum it is, and adds the six largest of their nine products, in float32: as exact as torch's
products, and faster where they are large (`rust/gptrs-core/src/gemm`). All else, other types, other devices, small
products and processors without tiles, is left to torch.

Unlike torch's products, a row with an infinite number has sums that are nan, and numbers below 1.2e-38 count as zero.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from gptrs import _core

_LEAST_SIDE, _LEAST_PRODUCTS = 128, 1 << 24  # of rows and columns, and m·n·k: below, splitting costs more than it saves
_HAS_TILES = _core.can_multiply()
_is_on = True


def use_tiles(is_on: bool) -> bool:
    """Whether products of float32 on the CPU go by tiles where the processor has them; returns what was so before."""
    global _is_on
    before, _is_on = _is_on, is_on
    return before


def has_tiles(x: Tensor) -> bool:
    """Whether large products of x go by tiles."""
    return _HAS_TILES and _is_on and x.dtype == torch.float32 and x.device.type == "cpu"


class Linear(nn.Linear):
    """nn.Linear whose products go by tiles where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias: (…, C), (O, C), (O,) → (…, O)."""
    if not _goes_by_tiles(x.numel() // max(x.shape[-1], 1), weight.shape[0], x.shape[-1], x, weight):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return y.view(*x.shape[:-1], -1)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a · b without a gradient: (m, k), (k, n) → (m, n)."""
    if not _goes_by_tiles(a.shape[0], b.shape[1], a.shape[1], a, b):
        return a @ b
    y: Tensor = torch.ops.gptrs.mm(a, b)
    return y


def mm_into(out: Tensor, a: Tensor, b: Tensor, *, adds: bool = False) -> Tensor:
    """Puts or adds a · b to `out` without a gradient: (m, n), (m, k), (k, n). Returns `out`."""
    if _goes_by_tiles(a.shape[0], b.shape[1], a.shape[1], a, b):
        torch.ops.gptrs.mm_into(out, a, b, adds)
    elif adds:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return mm(x, weight.T)
        return mm_into(bias.expand(len(x), -1).clone(memory_format=torch.contiguous_format), x, weight.T, adds=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        product = linear if torch.is_grad_enabled() else _transposed  # with create_graph, gradients have gradients
        dx = product(dy, weight.T) if needs_x else None
        dw = product(dy.T, x.T) if needs_weight else None
        return dx, dw, dy.sum(dim=0) if needs_bias else None


def _transposed(a: Tensor, b: Tensor) -> Tensor:
    return mm(a, b.T)


def _goes_by_tiles(m: int, n: int, k: int, *factors: Tensor) -> bool:
    is_large = min(m, n) >= _LEAST_SIDE and m * n * k >= _LEAST_PRODUCTS
    return is_large and all(map(has_tiles, factors)) and is_plain(*factors)


def is_plain(*given: Tensor) -> bool:
    """Whether an operator of the core may take these as they are: no subclass, and no autocast."""
    if not torch.compiler.is_compiling() and any(type(each) not in (Tensor, nn.Parameter) for each in given):
        return False
    return not torch.is_autocast_enabled("cpu")


@functools.cache
def region() -> int:
    """The address of GOMP_parallel in the OpenMP library that torch has loaded, or 0.

    Its threads spin for milliseconds behind each of torch's operations; others would share their cores with them.
    """
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            library = ctypes.CDLL(str(path), mode=ctypes.DEFAULT_MODE | os.RTLD_NOLOAD)  # loaded already, or nothing
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0


def _multiply(out: Tensor, a: Tensor, b: Tensor, adds: bool) -> None:
    if out.stride(1) != 1 and out.stride(0) != 1:
        solid = out.contiguous()
        _multiply(solid, a, b, adds)
        out.copy_(solid)
        return
    left, right, to = _in_lines(a).detach().numpy(), _in_lines(b).detach().numpy(), out.detach().numpy()
    if out.stride(1) != 1:  # (a · b)ᵀ = bᵀ · aᵀ
        left, right, to = right.T, left.T, to.T
    _core.multiply(left, right, to, adds, torch.get_num_threads(), region())


def _in_lines(x: Tensor) -> Tensor:
    return x if 1 in x.stride() and min(x.stride()) > 0 else x.contiguous()


_library = torch.library.Library("gptrs", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("mm(Tensor a, Tensor b) -> Tensor")  # type: ignore[no-untyped-call]
_library.define("mm_into(Tensor(c!) out, Tensor a, Tensor b, bool adds) -> ()")  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "mm", "CPU")
def _mm(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[1])
    _multiply(out, a, b, False)
    return out


@torch.library.impl(_library, "mm_into", "CPU")
def _mm_into(out: Tensor, a: Tensor, b: Tensor, adds: bool) -> None:
    _multiply(out, a, b, adds)


@torch.library.register_fake("gptrs::mm", lib=_library)  # type: ignore[untyped-decorator]
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@torch.library.register_fake("gptrs::mm_into", lib=_library)  # type: ignore[untyped-decorator]
def _(out: Tensor, a: Tensor, b: Tensor, adds: bool) -> None:
    return None


@register_flop_formula(torch.ops.gptrs.mm)
def _(a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * int(a[0]) * int(a[1]) * int(b[1])


@register_flop_formula(torch.ops.gptrs.mm_into)
def _(out: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * int(a[0]) * int(a[1]) * int(b[1])
