"""A tokenizer with the methods of tiktoken's `Encoding`, for code written for it.

    Tokenizer ── as_tiktoken() ──▶ TiktokenView     results as of tiktoken.Encoding

The view holds no vocabulary of its own. Names, arguments and results follow the original; what differs is said where it
differs.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gptrs import _core

_Names = Literal["all"] | Collection[str]


class TiktokenView:
    """The methods of `tiktoken.Encoding`. Batches are encoded on all cores; `num_threads` says on how many instead."""

    __slots__ = ("_core", "_special_tokens", "name")

    def __init__(self, core: "_core.Tokenizer", name: str) -> None:
        self._core = core
        self.name = name
        self._special_tokens = core.special_tokens

    def __repr__(self) -> str:
        return f"<TiktokenView {self.name!r}>"

    def encode(
        self, text: str, *, allowed_special: _Names = frozenset(), disallowed_special: _Names = "all"
    ) -> list[int]:
        """The ids of `text`; special-token text raises `ValueError` unless it is allowed or not disallowed."""
        return self._core.encode(text, allowed_special, disallowed_special)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`, in which special-token text is ordinary text."""
        return self._core.encode_ordinary(text)

    def encode_to_numpy(
        self, text: str, *, allowed_special: _Names = frozenset(), disallowed_special: _Names = "all"
    ) -> npt.NDArray[np.uint32]:
        """The ids of `text` as an array."""
        return np.array(self.encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special), "u4")

    def encode_ordinary_batch(self, text: Sequence[str], *, num_threads: int = 0) -> list[list[int]]:
        """The ordinary ids of many texts."""
        return self.encode_batch(text, num_threads=num_threads, disallowed_special=())

    def encode_batch(
        self,
        text: Sequence[str],
        *,
        num_threads: int = 0,
        allowed_special: _Names = frozenset(),
        disallowed_special: _Names = "all",
    ) -> list[list[int]]:
        """The ids of many texts; as `encode` for each of them."""
        if num_threads < 0:
            raise ValueError(f"num_threads must be 0 (all cores) or more, got {num_threads}")
        ids, offsets = self._core.encode_batch(text, allowed_special, disallowed_special, threads=num_threads)
        flat: list[int] = ids.tolist()
        ends: list[int] = offsets.tolist()
        return [flat[start:end] for start, end in pairwise(ends)]

    def encode_single_token(self, text_or_bytes: str | bytes) -> int:
        """The id of a token, special ones included; `KeyError` when it is none."""
        token = text_or_bytes.encode() if isinstance(text_or_bytes, str) else text_or_bytes
        found = self._core.token_id(token)
        if found is None:
            raise KeyError(token)
        return found

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        """The text of ids."""
        return self.decode_bytes(tokens).decode("utf-8", errors=errors)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of ids; `KeyError` when one is unknown."""
        try:
            return self._core.decode_bytes(tokens)
        except ValueError as error:
            raise KeyError(str(error)) from error

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one id; `KeyError` when it is unknown."""
        found = self._core.token_bytes(token)
        if found is None:
            raise KeyError(token)
        return found

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each id."""
        return [self.decode_single_token_bytes(token) for token in tokens]

    def decode_with_offsets(self, tokens: Sequence[int]) -> tuple[str, list[int]]:
        """The text of ids, and for each the index of the first character that has a byte of it."""
        parts = self.decode_tokens_bytes(tokens)
        offsets, n_chars = [], 0
        for part in parts:
            offsets.append(max(0, n_chars - (0x80 <= part[0] < 0xC0)))
            n_chars += sum(not 0x80 <= byte < 0xC0 for byte in part)
        return b"".join(parts).decode("utf-8", errors="strict"), offsets

    def decode_batch(
        self, batch: Sequence[Sequence[int]], *, errors: str = "replace", num_threads: int = 0
    ) -> list[str]:
        """The texts of many lists of ids."""
        return [self.decode(tokens, errors) for tokens in batch]

    def decode_bytes_batch(self, batch: Sequence[Sequence[int]], *, num_threads: int = 0) -> list[bytes]:
        """The bytes of many lists of ids."""
        return [self.decode_bytes(tokens) for tokens in batch]

    def token_byte_values(self) -> list[bytes]:
        """Every ordinary token, sorted."""
        special = set(self._special_tokens.values())
        ids = (i for i in range(self.n_vocab) if i not in special)
        return sorted(token for i in ids if (token := self._core.token_bytes(i)) is not None)

    @property
    def eot_token(self) -> int:
        """The id of "<|endoftext|>"; `KeyError` without one."""
        return self._special_tokens["<|endoftext|>"]

    @property
    def special_tokens_set(self) -> set[str]:
        """The texts of the special tokens."""
        return set(self._special_tokens)

    def is_special_token(self, token: int) -> bool:
        """Whether an id is a special token's."""
        return token in self._special_tokens.values()

    @property
    def max_token_value(self) -> int:
        """The largest id."""
        return self._core.vocab_size - 1

    @property
    def n_vocab(self) -> int:
        """The largest id + 1."""
        return self._core.vocab_size
