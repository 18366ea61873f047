"""Activations that a backward pass has freed, given back to the system.

On the CPU they stay in malloc's heap, of no use to the gradients that come meanwhile: those are large and mapped.
"""

import ctypes

import torch
from torch import Tensor

_LEAST_BYTES = 4 << 20  # of a block's input; where less comes free, walking the heap and new pages cost more than it
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other systems do without


def shrinks_behind(x: Tensor) -> None:
    """Has the heap shrink once backward has left what reads `x`, the output of a block, and is about to enter the
    block: where `x` is on the CPU, large and takes a gradient."""
    if torch.compiler.is_compiling() or _trim is None:
        return
    if x.requires_grad and x.device.type == "cpu" and x.nbytes >= _LEAST_BYTES:
        x.register_hook(_shrink)  # type: ignore[no-untyped-call]


def _shrink(_: Tensor) -> None:
    assert _trim is not None
    _trim(0)  # without the GIL
