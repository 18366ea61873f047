"""The tokens of a text as `tokenizers.Encoding` has them: what a `HuggingFaceView` gives.

Names, arguments and results follow the original; what differs is said where it differs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Direction = Literal["left", "right"]


@dataclass(slots=True)
class Encoding:
    """The tokens of a text, as in `tokenizers.Encoding`; all lists have one entry for each token.

    `sequence_ids` are those of the texts, also where a `Sequence` of post-processors makes the original count on.
    Offsets are in characters of the text, and of its normal form where the tokenizer has a normalizer that changes it.
    The parts in `overflowing` have no such parts of their own.
    """

    ids: list[int]
    type_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    word_ids: list[int | None]
    sequence_ids: list[int | None]
    overflowing: list["Encoding"] = field(default_factory=list)

    @staticmethod
    def merge(encodings: Iterable["Encoding"], growing_offsets: bool = True) -> "Encoding":
        """All tokens of `encodings` as those of one; each overflowing part stands with all there is beside it.

        Args:
            encodings: What follows each other; they stay as they are.
            growing_offsets: Count each one's offsets on from the end of those before.
        """
        merged = Encoding([], [], [], [], [], [], [], [])
        for encoding in encodings:
            others = [encoding, *encoding.overflowing]
            parts = [part._joined(other, growing_offsets) for part in merged.overflowing for other in others]
            parts += [merged._joined(other, growing_offsets) for other in others[1:]]
            merged = merged._joined(encoding, growing_offsets)
            merged.overflowing = parts
        return merged

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Encoding(num_tokens={len(self)}, attributes=[ids, type_ids, tokens, offsets, attention_mask, ...])"

    @property
    def words(self) -> list[int | None]:
        """The older name of `word_ids`."""
        return self.word_ids

    @property
    def n_sequences(self) -> int:
        """How many texts were encoded together."""
        return len({i for i in self.sequence_ids if i is not None}) or 1

    def set_sequence_id(self, sequence_id: int) -> None:
        """Makes all tokens those of one text."""
        self.sequence_ids = [sequence_id] * len(self)

    def token_to_chars(self, token_index: int) -> tuple[int, tuple[int, int]] | tuple[int, int] | None:
        """The offsets of a token; None for one that is in no text."""
        is_in_text = 0 <= token_index < len(self) and self.sequence_ids[token_index] is not None
        return self.offsets[token_index] if is_in_text else None

    def token_to_sequence(self, token_index: int) -> int | None:
        """Which text a token is of."""
        return self.sequence_ids[token_index] if 0 <= token_index < len(self) else None

    def token_to_word(self, token_index: int) -> int | None:
        """Which piece of its text a token is of."""
        return self.word_ids[token_index] if 0 <= token_index < len(self) else None

    def word_to_tokens(self, word_index: int, sequence_index: int = 0) -> tuple[int, int] | None:
        """The first token of a piece of a text and the one after its last."""
        words = zip(self.word_ids, self.sequence_ids, strict=True)
        found = [i for i, place in enumerate(words) if place == (word_index, sequence_index)]
        return (found[0], found[-1] + 1) if found else None

    def word_to_chars(self, word_index: int, sequence_index: int = 0) -> tuple[int, int] | None:
        """Where a piece of a text begins and ends."""
        tokens = self.word_to_tokens(word_index, sequence_index)
        return None if tokens is None else (self.offsets[tokens[0]][0], self.offsets[tokens[1] - 1][1])

    def char_to_word(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """The piece of a text that has the character at `char_pos`."""
        token = self.char_to_token(char_pos, sequence_index)
        return None if token is None else self.word_ids[token]

    def char_to_token(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """The first token of a text that has the character at `char_pos`."""
        places = zip(self.offsets, self.sequence_ids, strict=True)
        for i, ((start, end), sequence) in enumerate(places):
            if sequence == sequence_index and start <= char_pos < end:
                return i
        return None

    def pad(
        self,
        length: int,
        *,
        direction: Direction = "right",
        pad_id: int = 0,
        pad_type_id: int = 0,
        pad_token: str = "[PAD]",  # noqa: S107 (a token of text)
    ) -> None:
        """Fills this encoding and its overflowing parts up to `length` tokens."""
        check_one_of("direction", direction, ("left", "right"))
        for part in self.overflowing:
            part.pad(length, direction=direction, pad_id=pad_id, pad_type_id=pad_type_id, pad_token=pad_token)
        fillers: tuple[Any, ...] = (pad_id, pad_type_id, pad_token, (0, 0), 0, 1, None, None)
        n = max(length - len(self), 0)
        for name, filler in zip(_LISTS, fillers, strict=True):
            own = getattr(self, name)
            setattr(self, name, own + [filler] * n if direction == "right" else [filler] * n + own)

    def truncate(self, max_length: int, stride: int = 0, direction: Direction = "right") -> None:
        """Cuts this encoding to `max_length` tokens; the rest becomes its overflowing parts."""
        check_one_of("direction", direction, ("left", "right"))
        check_counts(max_length=max_length, stride=stride)
        if max_length < len(self):
            cut = replace(self, overflowing=[]).truncated(max_length, stride, direction)
            for name in (*_LISTS, "overflowing"):
                setattr(self, name, getattr(cut, name))

    def truncated(self, length: int, stride: int, direction: Direction) -> "Encoding":
        """The first (or last) `length` tokens; what is cut off follows in parts that overlap by `stride`."""
        n = len(self)
        if length >= n:
            return self
        if length == 0:
            return replace(self._slice(0, 0), overflowing=[self])
        if stride >= length:
            raise ValueError(f"stride ({stride}) must be less than the room for the text ({length})")
        step = length - stride
        if direction == "right":
            parts = [(start, min(start + length, n)) for start in range(0, n, step)]
            last = next(i for i, (_, end) in enumerate(parts) if end == n)
        else:
            parts = [(max(end - length, 0), end) for end in range(n, 0, -step)]
            last = next(i for i, (start, _) in enumerate(parts) if start == 0)
        first, *rest = (self._slice(*part) for part in parts[: last + 1])
        return replace(first, overflowing=rest)

    def _slice(self, start: int, end: int) -> "Encoding":
        return Encoding(*(getattr(self, name)[start:end] for name in _LISTS))

    def _joined(self, other: "Encoding", growing_offsets: bool) -> "Encoding":
        """The tokens of both, without overflowing parts."""
        joined = Encoding(*(getattr(self, name) + getattr(other, name) for name in _LISTS))
        if growing_offsets and self.offsets:
            by = self.offsets[-1][1]
            joined.offsets[len(self) :] = [(start + by, end + by) for start, end in other.offsets]
        # A text has one place: of two that are called alike the original keeps the last.
        taken = set(other.sequence_ids)
        joined.sequence_ids[: len(self)] = [None if i in taken else i for i in self.sequence_ids]
        return joined


_LISTS = (
    "ids", "type_ids", "tokens", "offsets", "attention_mask", "special_tokens_mask", "word_ids", "sequence_ids"
)  # fmt: skip


def check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Fails on a word that is none of the known ones."""
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)} as {name}, got {value!r}")


def check_counts(**values: int | None) -> None:
    """Fails on a number below 0."""
    for name, value in values.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
