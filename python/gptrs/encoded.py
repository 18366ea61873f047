"""The ids of many texts in one array, and the same as a rectangle for a model.

Encoded: ids 5 7 9 | 4 | 8 8        pad() ──▶ Padded: ids   5 7 9   mask 1 1 1
         offsets 0 3 4 6                                    4 0 0        1 0 0
                                                            8 8 0        1 1 0
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """The ids of B texts as rows of the same length T."""

    ids: npt.NDArray[Any]  # (B, T)
    mask: npt.NDArray[np.bool_]  # (B, T), True where an id is of the text, False where it is padding

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The ids of each text, without padding: (B,)."""
        lengths: npt.NDArray[np.int64] = self.mask.sum(axis=1, dtype=np.int64)
        return lengths


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The ids of many texts in one array; text `i` is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]  # uint16 when the vocabulary fits
    offsets: npt.NDArray[np.int64]  # one more than texts

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: SupportsIndex) -> npt.NDArray[np.uint16] | npt.NDArray[np.uint32]:
        """The ids of one text, as a view."""
        i = range(len(self))[index]  # negative indices and IndexError as for a list
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.uint16] | npt.NDArray[np.uint32]]:
        return map(self.__getitem__, range(len(self)))

    def to_list(self) -> list[list[int]]:
        """The ids as lists of Python ints."""
        return [ids.tolist() for ids in self]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of ids of each text."""
        return np.diff(self.offsets)

    def truncate(self, max_length: int, *, side: Side = "right") -> "Encoded":
        """The same texts with at most `max_length` ids each; `side` says which end is cut off.

        Raises:
            TypeError: `max_length` is no whole number.
            ValueError: `max_length` is below 0, or `side` is neither "left" nor "right".

        Example:
            >>> import numpy as np
            >>> batch = Encoded(np.array([5, 7, 9, 4], np.uint16), np.array([0, 3, 4]))
            >>> batch.truncate(2).to_list(), batch.truncate(2, side="left").to_list()
            ([[5, 7], [4]], [[7, 9], [4]])
        """
        _check_side("side", side)
        _check_whole("max_length", max_length, 0)
        lengths = self.lengths
        kept = np.minimum(lengths, max_length)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(kept, out=offsets[1:])
        if offsets[-1] == len(self.ids):
            return self
        starts = self.offsets[:-1] if side == "right" else self.offsets[1:] - kept
        # Where each kept id stands: its place in the new array, moved by what was cut off before it.
        return Encoded(self.ids[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], kept)], offsets)

    def pad(
        self,
        length: int | None = None,
        *,
        pad_id: int = 0,
        side: Side = "right",
        truncate: Side = "right",
        multiple_of: int = 1,
        dtype: npt.DTypeLike | None = None,
    ) -> Padded:
        """The texts as rows of one length, shorter ones filled up with `pad_id`, longer ones cut.

        Args:
            length: The ids of a row; None takes the longest text's.
            pad_id: What stands where a text has no id; the mask tells it from the text's own.
            side: Where the padding goes. "left" is what generation wants: every text ends in the last column.
            truncate: Which end of a text with more than `length` ids is cut off.
            multiple_of: Rounds the length up to a multiple of this.
            dtype: The rows' type; None keeps uint16 or uint32. Embeddings of torch take int64.

        Raises:
            TypeError: A number is no whole one.
            ValueError: An argument is out of range, or `pad_id` or an id does not fit `dtype`.

        Example:
            >>> import numpy as np
            >>> batch = Encoded(np.array([5, 7, 9, 4], np.uint16), np.array([0, 3, 4]))
            >>> batch.pad().ids.tolist(), batch.pad(2, pad_id=1, side="left").ids.tolist()
            ([[5, 7, 9], [4, 0, 0]], [[5, 7], [1, 4]])
            >>> batch.pad().mask.tolist()
            [[True, True, True], [True, False, False]]
        """
        _check_side("side", side)
        _check_side("truncate", truncate)
        _check_whole("multiple_of", multiple_of, 1)
        _check_whole("pad_id", pad_id)
        if length is not None:
            _check_whole("length", length, 0)
        longest = int(self.lengths.max(initial=0)) if length is None else length
        n_columns = -(-longest // multiple_of) * multiple_of
        kept = self.truncate(n_columns, side=truncate)
        rows = np.full((len(self), n_columns), pad_id, _dtype_for(self.ids, pad_id, dtype))  # (B, T)
        columns = np.arange(n_columns)
        lengths = kept.lengths[:, None]  # (B, 1)
        mask = columns < lengths if side == "right" else columns >= n_columns - lengths  # (B, T)
        rows[mask] = kept.ids
        return Padded(rows, mask)


def _check_side(name: str, value: str) -> None:
    if value not in ("left", "right"):
        raise ValueError(f'{name} must be "left" or "right", got {value!r}')


def _check_whole(name: str, value: int, least: int | None = None) -> None:
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")


def _dtype_for(ids: npt.NDArray[Any], pad_id: int, dtype: npt.DTypeLike | None) -> np.dtype[Any]:
    """The type of the rows, which holds the padding and every id."""
    chosen = ids.dtype if dtype is None else np.dtype(dtype)
    if chosen.kind not in "iu":
        raise ValueError(f"dtype must be a type of integers, got {chosen}; hint: use np.int64")
    bounds = np.iinfo(chosen)
    if not bounds.min <= pad_id <= bounds.max:
        raise ValueError(f"pad_id {pad_id} does not fit {chosen}; hint: use dtype=np.int64")
    if len(ids) and int(ids.max()) > bounds.max:
        raise ValueError(f"the ids go up to {ids.max()}, which does not fit {chosen}; hint: use dtype=np.int64")
    return chosen
