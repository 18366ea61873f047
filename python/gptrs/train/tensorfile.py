"""safetensors files written straight from the memory of their tensors, one of which may be a piece of a larger one.

    u64 length of the header │ header: JSON, padded with spaces to 8 bytes │ the tensors' bytes, one after the other

The library reads them. It is not used for writing: it tells no digest, which is taken here from the memory that is
written, and its older versions make bytes of all tensors at once. Pieces are marked as torch.distributed.checkpoint
marks them.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from gptrs.files import Written, write_parts

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
TYPES = {name: dtype for dtype, name in NAMES.items()}
SHARDING = "DCP_SHARDING_INFO"  # torch.distributed.checkpoint's key for where pieces begin


class Place(NamedTuple):
    """Where a piece lies in its tensor."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]  # of the whole tensor


class Piece(NamedTuple):
    """One tensor of a file as its header has it."""

    offsets: tuple[int, ...]  # zeros for a whole tensor
    shape: tuple[int, ...]
    dtype: torch.dtype


def write(path: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Place] | None = None) -> Written:
    """Writes a safetensors file, waits until the disk has it and returns its size and digest.

    Args:
        tensors: on any device; at most one of them is copied at a time, where it is not contiguous or not on the CPU.
        places: of pieces; None: each tensor is whole.
    Raises: OSError; ValueError for a type that the format has no name for.
    """
    assert sys.byteorder == "little", "the format's byte order"
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # so that all of them are aligned
    header = _header({name: tensors[name] for name in names}, places)
    return write_parts(path, _parts(header, (tensors[name] for name in names)))


def pieces(path: Path) -> dict[str, Piece]:
    """Returns the tensors of a file, from its header alone."""
    found = {}
    with safe_open(path, "pt") as file:
        info = json.loads((file.metadata() or {}).get(SHARDING, "{}"))
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_slice(name)
            shape = tuple(tensor.get_shape())
            offsets = info[name]["saved_offsets"] if name in info else (0,) * len(shape)
            found[name] = Piece(tuple(offsets), shape, TYPES[tensor.get_dtype()])
    return found


def n_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Returns the bytes that tensors take in a file, without its header."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())


def _header(tensors: Mapping[str, Tensor], places: Mapping[str, Place] | None) -> bytes:
    entries: dict[str, object] = {}
    if places is not None:
        info = {name: {"saved_offsets": list(places[name].offsets)} for name in tensors}
        entries["__metadata__"] = {SHARDING: json.dumps(info), "format": "pt"}
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ValueError(f"expected a type that safetensors has for {name}, got {tensor.dtype}")
        end = start + tensor.numel() * tensor.itemsize
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (8 * math.ceil(len(text) / 8) - len(text))
    return len(text).to_bytes(8, "little") + text


def _parts(header: bytes, tensors: Iterator[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors:
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            yield flat.numpy().data
