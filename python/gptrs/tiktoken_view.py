"""A tokenizer with the methods of tiktoken's `Encoding`, for code written for it.

    Tokenizer ── as_tiktoken() ──▶ TiktokenView     results as of tiktoken.Encoding

The view holds no vocabulary of its own. Names, arguments and results follow the original; what differs is said where it
differs.
"""

from base64 import b64decode
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gptrs import _core

_Names = Literal["all"] | Collection[str]


class TiktokenView:
    """The methods of `tiktoken.Encoding`. Batches are encoded and decoded on all cores; `num_threads` says on how many
    instead.
    """

    __slots__ = ("_core", "_sorted", "_special_tokens", "name")

    def __init__(self, core: "_core.Tokenizer", name: str) -> None:
        self._core = core
        self.name = name
        self._special_tokens = core.special_tokens
        self._sorted: list[bytes] | None = None

    def __repr__(self) -> str:
        return f"<TiktokenView {self.name!r}>"

    def encode(
        self, text: str, *, allowed_special: _Names = frozenset(), disallowed_special: _Names = "all"
    ) -> list[int]:
        """The ids of `text`; special-token text raises `ValueError` unless it is allowed or not disallowed.

        An allowed text that is no special token is passed over; a disallowed one raises as the others.
        """
        allowed, disallowed = self._choices((text,), allowed_special, disallowed_special)
        return self._core.encode(text, allowed, disallowed)

    def encode_with_unstable(
        self, text: str, *, allowed_special: _Names = frozenset(), disallowed_special: _Names = "all"
    ) -> tuple[list[int], list[list[int]]]:
        """The ids of `text` that stay when it goes on, and what may follow them until all of `text` is spelt.

        The first ids spell a start of `text`. Each of the completions, which are sorted, begins with the rest of it and
        may go beyond. Special-token text as in `encode`.
        """
        allowed, disallowed = self._choices((text,), allowed_special, disallowed_special)
        ids = self._core.encode(text, allowed, disallowed)
        n_open = self._n_unstable(ids, text, allowed)
        stable, unstable = ids[: len(ids) - n_open], self._core.decode_bytes(ids[len(ids) - n_open :])
        if not unstable:
            return stable, []
        found: set[tuple[int, ...]] = {(self.encode_single_token(token),) for token in self._starting_with(unstable)}
        found |= {self._through(ids, len(unstable)) for ids in self._spelled(unstable)}
        last = len(unstable) - 1
        while last and 0x80 <= unstable[last] < 0xC0:
            last -= 1
        end = unstable[last:].decode("utf-8", "replace")
        if last and end.isspace() and not "\x1c" <= end <= "\x1f":  # these four are no white space of Unicode
            # A blank before what follows may be cut off from the blanks before it.
            found.add((*self._core.encode_piece(unstable[:last]), *self._core.encode_piece(unstable[last:])))
        return stable, sorted(map(list, found))

    def _choices(self, texts: Sequence[str], allowed: _Names, disallowed: _Names) -> tuple[_Names, _Names]:
        """What is allowed and disallowed among the special tokens; fails on another text that is disallowed."""
        names = self._special_tokens.keys()
        if allowed != "all" and not isinstance(allowed, str):
            allowed = [name for name in allowed if name in names]
        if disallowed != "all" and not isinstance(disallowed, str):
            disallowed = list(disallowed)
            for name in (name for name in disallowed if name not in names):
                if any(name in text for text in texts):
                    raise ValueError(
                        f"the text contains {name!r}, which disallowed_special names; hint: leave it out there"
                    )
            disallowed = [name for name in disallowed if name in names]
        return allowed, disallowed

    def _n_unstable(self, ids: list[int], text: str, allowed: _Names) -> int:
        """How many of the last ids may change when the text goes on: the last piece's, and those of blanks before."""
        names = list(self._special_tokens) if allowed == "all" else list(allowed)
        pieces = self._core.encode_with_places(text, names)[2]
        if not ids or self.is_special_token(ids[-1]):
            return 0
        n = next(n for n in range(1, len(ids) + 1) if n == len(ids) or pieces[-n - 1] != pieces[-1])

        def is_blank(i: int) -> bool:
            return not self.is_special_token(i) and not self.decode_single_token_bytes(i).strip(b" \n\t")

        while is_blank(ids[-n]) and n < len(ids) and is_blank(ids[-n - 1]):
            n += 1
        return n

    def _spelled(self, unstable: bytes) -> Iterator[list[int]]:
        """The ids of `unstable` with the rest of each token that begins inside it and goes on to its end or beyond."""
        whole: list[str] = []
        for start in range(1, len(unstable)):
            for token in self._starting_with(unstable[start:]):
                longer = unstable[:start] + token
                try:
                    whole.append(longer.decode())
                except UnicodeDecodeError:
                    yield self._core.encode_piece(longer)
        yield from self.encode_ordinary_batch(whole)

    def _through(self, ids: list[int], n_bytes: int) -> tuple[int, ...]:
        """The first of `ids`, up to the one that reaches the `n_bytes`-th byte."""
        n = 0
        while n_bytes > 0:
            n_bytes -= len(self.decode_single_token_bytes(ids[n]))
            n += 1
        return tuple(ids[:n])

    def _starting_with(self, start: bytes) -> Iterator[bytes]:
        """The ordinary tokens that begin with `start`."""
        if self._sorted is None:
            self._sorted = self.token_byte_values()
        for at in range(bisect_left(self._sorted, start), len(self._sorted)):
            if not self._sorted[at].startswith(start):
                return
            yield self._sorted[at]

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
        _check_threads(num_threads)
        allowed, disallowed = self._choices(text, allowed_special, disallowed_special)
        ids, offsets = self._core.encode_batch(text, allowed, disallowed, threads=num_threads)
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
        texts = self.decode_bytes_batch(batch, num_threads=num_threads)
        return [text.decode("utf-8", errors=errors) for text in texts]

    def decode_bytes_batch(self, batch: Sequence[Sequence[int]], *, num_threads: int = 0) -> list[bytes]:
        """The bytes of many lists of ids; `KeyError` when one is unknown."""
        _check_threads(num_threads)
        try:
            return self._core.decode_batch(batch, num_threads)
        except ValueError as error:
            raise KeyError(str(error)) from error

    def token_byte_values(self) -> list[bytes]:
        """Every ordinary token, sorted."""
        special = set(self._special_tokens.values())
        ids = (i for i in range(self.n_vocab) if i not in special)
        return sorted(token for i in ids if (token := self._core.token_bytes(i)) is not None)

    @property
    def _pat_str(self) -> str:
        """The regular expression; with the next, what `tiktoken.Encoding` is made of again."""
        return self._core.regex

    @property
    def _mergeable_ranks(self) -> dict[bytes, int]:
        """Every ordinary token and its id; `ValueError` where ids are no ranks."""
        lines = (line.split() for line in self._core.to_tiktoken().splitlines())
        return {b64decode(token): int(rank) for token, rank in lines}

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


def _check_threads(n: int) -> None:
    if n < 0:
        raise ValueError(f"num_threads must be 0 (all cores) or more, got {n}")
