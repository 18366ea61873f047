"""The same bits from the same command: what torch is told for it, on CUDA too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # read when a process first multiplies on CUDA
_WORKSPACE = ":4096:8"  # 8 buffers of 4 MiB, one of the two settings with which cuBLAS sums in one order


@contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Inside, torch takes the algorithm of an operation that always sums in one order, and refuses one that has none.

    On the CPU all of ours do anyway. Memory is not filled before it is written, which torch does by default with this
    switch: it costs a pass over every new tensor, and shows only what reads memory that nobody wrote.
    Raises: RuntimeError from an operation that has no such algorithm, naming it.
    """
    if not is_wanted:
        yield
        return
    before = os.environ.get(_CUBLAS)
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property, of which its types say nothing
    was_filling, was_searching = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    os.environ.setdefault(_CUBLAS, _WORKSPACE)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)
        memory.fill_uninitialized_memory = was_filling
        torch.backends.cudnn.benchmark = was_searching
        if before is None:
            del os.environ[_CUBLAS]
