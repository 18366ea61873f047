"""A GGUF file, opened so that nothing in it has to be believed.

The `gguf` package's reader maps the file and follows its counts as far as they lead; here every read stays inside the
file, counts have a bound, and each tensor's data stands where the sizes of those before it say. A lie is a ValueError
that names the tensor or the key, before memory is taken for what it claims.
"""

import math
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.gguf_reader import ReaderField

_MOST = 1 << 16  # keys, or tensors; deepseek-v3 has 1,086
_MOST_TEXTS = 1 << 20  # in all lists; 262,144 tokens have 777,000 with their merges
_MOST_AXES = 4
_VERSIONS = (2, 3)


class GGUFFile:
    """The keys and tensors of a file.

    Raises: ValueError when it is none, of another version or byte order, damaged, or lies about its sizes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_beginning(path)
        try:
            # copy-on-write, so that torch takes the arrays without a copy
            reader = _Reader(path, "c")
        except OSError:
            raise
        except Exception as error:  # of any kind: damaged sizes fail wherever they lead
            raise ValueError(f"{path}: expected a whole GGUF file: {error}") from error
        self._fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def names(self, prefix: str) -> list[str]:
        """The keys that begin so."""
        return [name for name in self._fields if name.startswith(prefix)]

    def value(self, key: str) -> Any:
        """What a key has, or None; a float32 as its shortest spelling, as it was before it was stored."""
        field = self._fields.get(key)
        if field is None:
            return None
        try:
            value = field.contents()
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError(f"{self.path}: {key} cannot be read: {error}") from error
        return float(str(np.float32(value))) if field.types == [GGUFValueType.FLOAT32] else value

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A key's value of the given kind; without a default it must be there."""
        value = self.value(key)
        if value is None:
            if default is None:
                raise ValueError(f"{self.path}: expected the key {key}, found none")
            return default
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{self.path}: expected {key} of the kind {kind.__name__}, got {value!r:.60}")
        return value

    def check_tensors(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Raises: ValueError when a tensor is missing, left over, of another shape, or of a type that is not read."""
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            raise ValueError(f"{self.path}: expected {len(expected)} tensors, missing {_some(missing)}")
        if extra := sorted(self.tensors.keys() - expected.keys()):
            raise ValueError(f"{self.path}: expected {len(expected)} tensors, {_some(extra)} left over")
        for name, shape in expected.items():
            tensor = self.tensors[name]
            if (got := tuple(int(n) for n in reversed(tensor.shape))) != shape:
                raise ValueError(f"{self.path}: expected {name} of shape {list(shape)}, got {list(got)}")
        readable = {kind: _is_readable(kind) for kind in {tensor.tensor_type for tensor in self.tensors.values()}}
        for name, tensor in self.tensors.items():
            if not readable[tensor.tensor_type]:
                raise ValueError(f"{self.path}: expected {name} of a floating type, got {tensor.tensor_type.name}")

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor in float32, all of it finite."""
        tensor = self.tensors[name]
        with np.errstate(all="ignore"):  # scales that are no numbers are told below
            array: npt.NDArray[np.float32] = quants.dequantize(tensor.data, tensor.tensor_type)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.path}: expected finite numbers in {name}, got nan or infinity")
        return array


def _check_beginning(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(8)
    if begin[:4] != b"GGUF":
        raise ValueError(f"{path}: expected a GGUF file, got one that begins with {begin[:4]!r}")
    version = int.from_bytes(begin[4:], "little")
    if version not in _VERSIONS:
        hint = "; hint: its bytes are in big-endian order" if version and version % (1 << 16) == 0 else ""
        raise ValueError(f"{path}: expected version 2 or 3 of GGUF, got {version}{hint}")


def _is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether numbers of a type become float32; tried on one block."""
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class _Reader(GGUFReader):
    """The package's reader, which asks here before it follows a size; the names overridden are those of 0.19."""

    _n_texts = 0

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self._plain):
            last = next(reversed(getattr(self, "fields", None) or {"": None}), "")
            where = f" behind {last}" if last else ""
            raise ValueError(f"{end:,} bytes{where}, got {len(self._plain):,}; it was cut, or a length lies")
        array = self._plain[int(offset) : end].view(dtype)
        return array.view(array.dtype.newbyteorder("<")) if sys.byteorder == "big" else array

    @cached_property
    def _plain(self) -> npt.NDArray[np.uint8]:
        """The mapped bytes; a slice of the package's memmap costs five times as much."""
        return self.data.view(np.ndarray)

    def _build_fields(self, offs: int, count: int) -> int:
        return super()._build_fields(offs, _bounded("keys", count, _MOST))

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[ReaderField]]:
        return super()._build_tensor_info(offs, _bounded("tensors", count, _MOST))

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        # lists as a whole: element by element, as the package has them, 128,256 tokens and merges take 8 s instead of 1
        element, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        kind, n, at = GGUFValueType(int(element[0])), int(length[0]), orig_offs + 12
        if (dtype := self.gguf_scalar_to_np.get(kind)) is not None:
            parts = [self._get(at, dtype, n)]
            at += int(parts[0].nbytes)
        elif kind == GGUFValueType.STRING:
            self._n_texts = _bounded(f"texts behind {next(reversed(self.fields))}", self._n_texts + n, _MOST_TEXTS)
            parts, at = self._texts(at, n)
        else:
            raise ValueError(f"lists of numbers or texts behind {next(reversed(self.fields))}, got one of lists")
        types, where = [GGUFValueType.ARRAY, kind], list(range(2, 2 + len(parts)))
        return at - orig_offs, [element, length, *parts], where, types

    def _texts(self, at: int, n: int) -> tuple[list[npt.NDArray[Any]], int]:
        """The bytes of `n` texts from `at` on, and where they end."""
        parts: list[npt.NDArray[Any]] = []
        for _ in range(n):
            n_bytes = int(self._get(at, np.uint64)[0])
            parts.append(self._get(at + 8, np.uint8, n_bytes))
            at += 8 + n_bytes
        return parts, at

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        alignment, at = int(self.alignment), int(start_offs)
        if alignment % 8:
            raise ValueError(f"general.alignment of a multiple of 8, got {alignment}")
        for field in fields:
            _, _, n_axes, axes, raw_type, offset = field.parts
            sizes = [int(n) for n in axes[: _bounded(f"axes of {field.name}", n_axes[0], _MOST_AXES)]]
            kind = int(raw_type[0])
            if kind not in GGMLQuantizationType.__members__.values():
                raise ValueError(f"a known type of {field.name}, got {kind}")
            block, n_block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if not sizes or sizes[0] % block:
                raise ValueError(f"{field.name} with rows of whole blocks of {block}, got the sizes {sizes}")
            if (got := int(start_offs) + int(offset[0])) != at:
                raise ValueError(f"the data of {field.name} at byte {at:,}, behind that before it, got {got:,}")
            end = at + math.prod(sizes) // block * n_block_bytes
            if end > len(self.data):
                raise ValueError(f"data of {field.name} up to byte {end:,}, got {len(self.data):,} bytes in all")
            at = -(-end // alignment) * alignment
        super()._build_tensors(start_offs, fields)


def _bounded(what: str, count: Any, most: int) -> int:
    if int(count) > most:
        raise ValueError(f"at most {most:,} {what}, got {int(count):,}")
    return int(count)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
