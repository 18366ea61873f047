"""A tokenizer with the methods of Hugging Face's `Tokenizer`, for code written for it.

    Tokenizer ── as_hf() ──▶ HuggingFaceView ── encode ──▶ Encoding     results as of tokenizers.Tokenizer

The view holds no vocabulary of its own. Names, arguments and results follow the original; what differs is said where it
differs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gptrs import _core

_Direction = Literal["left", "right"]


@dataclass(slots=True)
class Encoding:
    """The tokens of a text, as in `tokenizers.Encoding`; all lists have one entry for each token.

    `sequence_ids` are those of the texts, also where a `Sequence` of post-processors makes the original count on.
    Offsets are in characters of the text, and of its normal form where the tokenizer has a normalizer that changes it.
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
        direction: _Direction = "right",
        pad_id: int = 0,
        pad_type_id: int = 0,
        pad_token: str = "[PAD]",  # noqa: S107 (a token of text)
    ) -> None:
        """Fills this encoding and its overflowing parts up to `length` tokens."""
        _check_one_of("direction", direction, ("left", "right"))
        for part in self.overflowing:
            part.pad(length, direction=direction, pad_id=pad_id, pad_type_id=pad_type_id, pad_token=pad_token)
        fillers: tuple[Any, ...] = (pad_id, pad_type_id, pad_token, (0, 0), 0, 1, None, None)
        n = max(length - len(self), 0)
        for name, filler in zip(_LISTS, fillers, strict=True):
            own = getattr(self, name)
            setattr(self, name, own + [filler] * n if direction == "right" else [filler] * n + own)

    def truncate(self, max_length: int, stride: int = 0, direction: _Direction = "right") -> None:
        """Cuts this encoding to `max_length` tokens; the rest becomes its overflowing parts."""
        _check_one_of("direction", direction, ("left", "right"))
        _check_counts(max_length=max_length, stride=stride)
        if max_length < len(self):
            cut = replace(self, overflowing=[])._truncated(max_length, stride, direction)
            for name in (*_LISTS, "overflowing"):
                setattr(self, name, getattr(cut, name))

    def _slice(self, start: int, end: int) -> "Encoding":
        return Encoding(*(getattr(self, name)[start:end] for name in _LISTS))

    def _truncated(self, length: int, stride: int, direction: _Direction) -> "Encoding":
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


_LISTS = (
    "ids", "type_ids", "tokens", "offsets", "attention_mask", "special_tokens_mask", "word_ids", "sequence_ids"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Padding:
    direction: _Direction = "right"
    pad_id: int = 0
    pad_type_id: int = 0
    pad_token: str = "[PAD]"  # noqa: S105 (a token of text)
    length: int | None = None
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Truncation:
    max_length: int
    stride: int = 0
    strategy: Literal["longest_first", "only_first", "only_second"] = "longest_first"
    direction: _Direction = "right"


class HuggingFaceView:
    """The methods of `tokenizers.Tokenizer` for encoding, decoding and asking; it cannot be changed but for its padding
    and truncation. A pair's tokens beyond `max_length` are dropped, not kept as `overflowing`.
    """

    __slots__ = (
        "_added",
        "_alphabet",
        "_core",
        "_padding",
        "_skipped",
        "_strips",
        "_truncation",
        "encode_special_tokens",
    )

    def __init__(self, core: "_core.Tokenizer") -> None:
        self._core = core
        self._added = {added[0]: added for added in core.added_tokens}
        self._skipped = {added[0] for added in core.added_tokens if added[6]}
        self._strips = {added[0] for added in core.added_tokens if added[3] or added[4]}
        self._alphabet = _byte_alphabet()
        self._padding: _Padding | None = None
        self._truncation: _Truncation | None = None
        self.encode_special_tokens = False

    def __repr__(self) -> str:
        return f"HuggingFaceView(vocab_size={self.get_vocab_size()})"

    # ── text to ids ──

    def encode(
        self,
        sequence: str | Sequence[str],
        pair: str | Sequence[str] | None = None,
        is_pretokenized: bool = False,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """The tokens of a text or a pair of texts, with what the post-processor puts around it."""
        encoding = self._encode(sequence, pair, is_pretokenized, add_special_tokens)
        if self._padding is not None:
            self._pad([encoding], self._padding)
        return encoding

    def encode_batch(
        self, input: Iterable[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> list[Encoding]:
        """The tokens of many texts, or of many (text, text) pairs."""
        if isinstance(input, str):
            raise TypeError("expected a list of texts, got one text; hint: wrap it in a list")
        encodings = []
        for index, one in enumerate(input):
            try:
                first, second = _pair_of(one) if _is_pair(one, is_pretokenized) else (one, None)
                encodings.append(self._encode(first, second, is_pretokenized, add_special_tokens))
            except (TypeError, ValueError) as error:
                raise type(error)(f"text {index}: {error}") from None
        if self._padding is not None:
            self._pad(encodings, self._padding)
        return encodings

    encode_batch_fast = encode_batch

    def _encode(
        self, sequence: str | Sequence[str], pair: str | Sequence[str] | None, is_pretokenized: bool, is_wrapped: bool
    ) -> Encoding:
        both = (sequence,) if pair is None else (sequence, pair)
        texts = [self._text(one, i, is_pretokenized) for i, one in enumerate(both)]
        if self._truncation is not None:
            n_added = self.num_special_tokens_to_add(pair is not None) if is_wrapped else 0
            texts = _truncate(texts, self._truncation, n_added)
        whole = self._wrap(texts, is_wrapped)
        if len(texts) == 1:
            whole.overflowing = [self._wrap([part], is_wrapped) for part in texts[0].overflowing]
        return whole

    def _text(self, sequence: str | Sequence[str], index: int, is_pretokenized: bool) -> Encoding:
        """The tokens of one text without anything around it."""
        if isinstance(sequence, str) == is_pretokenized or not isinstance(sequence, str | Iterable):
            wanted = "a list of words" if is_pretokenized else "a text"
            raise TypeError(f"expected {wanted}, got {sequence!r:.80}; hint: see is_pretokenized")
        allowed = [a[1] for a in self._added.values() if not (self.encode_special_tokens and a[6])]
        words = [sequence] if isinstance(sequence, str) else sequence
        ids: list[int] = []
        tokens: list[str] = []
        offsets: list[tuple[int, int]] = []
        word_ids: list[int | None] = []
        for i, word in enumerate(words):
            new_ids, new_offsets, pieces = self._core.encode_with_places(word, allowed)
            ids += new_ids
            tokens += self._spelled(word, new_ids, new_offsets)
            offsets += new_offsets
            word_ids += [i] * len(new_ids) if is_pretokenized else pieces
        n = len(ids)
        return Encoding(ids, [index] * n, tokens, offsets, [1] * n, [0] * n, word_ids, [index] * n)

    def _spelled(self, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> list[str]:
        """The spelling of each token; an added one that takes white space from its sides has that in it."""
        tokens = [self.id_to_token(i) or "" for i in ids]
        if not self._strips.isdisjoint(ids) and self._core.normalize(text) == text.encode():
            for at, (i, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
                if i in self._strips:
                    tokens[at] = text[start:end]
        return tokens

    def _wrap(self, texts: list[Encoding], is_wrapped: bool) -> Encoding:
        """Joins the texts with what the template puts around them."""
        template = self._core.template
        plain: list[tuple[bool | None, list[int], int]] = [(bool(i), [], i) for i in range(len(texts))]
        single, pair, trims = (plain, plain, None) if template is None else template
        slots = single if len(texts) == 1 else pair
        parts = []
        for is_second, ids, type_id in slots:
            if is_second is not None:
                text = texts[is_second]
                offsets = text.offsets if trims is None else _trimmed(text, keeps_first=trims)
                parts.append(replace(text, type_ids=[type_id] * len(text), offsets=offsets))
            elif is_wrapped:
                n = len(ids)
                tokens = [self.id_to_token(i) or "" for i in ids]
                none: list[int | None] = [None] * n
                parts.append(Encoding(ids, [type_id] * n, tokens, [(0, 0)] * n, [1] * n, [1] * n, none, none))
        return Encoding(*(list(chain.from_iterable(getattr(part, name) for part in parts)) for name in _LISTS))

    # ── ids to text ──

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; unknown ids are left out, special tokens too unless `skip_special_tokens` is false."""
        skipped = self._skipped if skip_special_tokens else set()
        known = [i for i in ids if i not in skipped and self._core.token_bytes(i) is not None]
        return self._core.decode_bytes(known).decode("utf-8", errors="replace")

    def decode_batch(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The texts of many lists of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    # ── vocabulary ──

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the files spell it: bytes in GPT-2's alphabet, special tokens as they are."""
        for added in self._added.values():
            if added[1] == token:
                return added[0]
        codes = {char: byte for byte, char in enumerate(self._alphabet)}
        spelled = [codes.get(char) for char in token]
        found = None if None in spelled else self._core.token_id(bytes(b for b in spelled if b is not None))
        return None if found in self._added else found

    def id_to_token(self, id: int) -> str | None:
        """The spelling of an id."""
        if id in self._added:
            return self._added[id][1]
        token = self._core.token_bytes(id)
        return None if token is None else "".join(self._alphabet[byte] for byte in token)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Every token's spelling and id; without the added ones where asked, but for those that merges make too.

        Those that a file lists in its model's vocabulary all the same, as GPT-2's does, are added ones here.
        """
        ids = (i for i in range(self._core.vocab_size) if with_added_tokens or self._core.is_ordinary(i))
        return {token: i for i in ids if (token := self.id_to_token(i)) is not None}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """How many tokens there are."""
        return len(self.get_vocab(with_added_tokens))

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """How many tokens the post-processor puts around a text or a pair."""
        template = self._core.template
        if template is None:
            return 0
        return sum(len(ids) for _, ids, _ in (template[1] if is_pair else template[0]))

    # ── padding and truncation ──

    def enable_padding(
        self,
        direction: _Direction = "right",
        pad_id: int = 0,
        pad_type_id: int = 0,
        pad_token: str = "[PAD]",  # noqa: S107 (a token of text)
        length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        """Fills encodings up to `length`, or to the longest of their batch."""
        _check_one_of("direction", direction, ("left", "right"))
        _check_counts(pad_id=pad_id, pad_type_id=pad_type_id, length=length, pad_to_multiple_of=pad_to_multiple_of)
        self._padding = _Padding(
            direction=direction,
            pad_id=pad_id,
            pad_type_id=pad_type_id,
            pad_token=pad_token,
            length=length,
            pad_to_multiple_of=pad_to_multiple_of,
        )

    def no_padding(self) -> None:
        """Ends padding."""
        self._padding = None

    @property
    def padding(self) -> dict[str, Any] | None:
        """The arguments of `enable_padding`."""
        return None if self._padding is None else {name: getattr(self._padding, name) for name in _Padding.__slots__}

    def enable_truncation(
        self,
        max_length: int,
        stride: int = 0,
        strategy: Literal["longest_first", "only_first", "only_second"] = "longest_first",
        direction: _Direction = "right",
    ) -> None:
        """Cuts encodings to `max_length` tokens, those that the post-processor adds included."""
        _check_one_of("direction", direction, ("left", "right"))
        _check_one_of("strategy", strategy, ("longest_first", "only_first", "only_second"))
        _check_counts(max_length=max_length, stride=stride)
        if stride and max_length - self.num_special_tokens_to_add(is_pair=False) <= stride:
            raise ValueError(f"stride ({stride}) must be less than max_length ({max_length}) without added tokens")
        self._truncation = _Truncation(max_length=max_length, stride=stride, strategy=strategy, direction=direction)

    def no_truncation(self) -> None:
        """Ends truncation."""
        self._truncation = None

    @property
    def truncation(self) -> dict[str, Any] | None:
        """The arguments of `enable_truncation`."""
        if self._truncation is None:
            return None
        return {name: getattr(self._truncation, name) for name in _Truncation.__slots__}

    def _pad(self, encodings: list[Encoding], padding: _Padding) -> None:
        length = max(map(len, encodings), default=0) if padding.length is None else padding.length
        if padding.pad_to_multiple_of:
            length = -(-length // padding.pad_to_multiple_of) * padding.pad_to_multiple_of
        for one in encodings:
            one.pad(
                length,
                direction=padding.direction,
                pad_id=padding.pad_id,
                pad_type_id=padding.pad_type_id,
                pad_token=padding.pad_token,
            )

    # ── files ──

    def to_str(self, pretty: bool = False) -> str:
        """The text of tokenizer.json, on one line whatever `pretty` says."""
        return self._core.to_json()

    def save(self, path: str, pretty: bool = True) -> None:
        """Writes tokenizer.json, on one line whatever `pretty` says."""
        self._core.write(path)


def _is_pair(one: Any, is_pretokenized: bool) -> bool:
    """Whether an item of a batch is two texts; a list of words is one."""
    return isinstance(one, tuple | list) and not (is_pretokenized and all(isinstance(word, str) for word in one))


def _pair_of(one: Sequence[Any]) -> Sequence[Any]:
    if len(one) != 2:
        raise ValueError(f"expected a text or a pair of texts, got {len(one)} of them: {one!r:.80}")
    return one


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)} as {name}, got {value!r}")


def _check_counts(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")


def _truncate(texts: list[Encoding], to: _Truncation, n_added: int) -> list[Encoding]:
    """The texts cut so that they have `to.max_length` tokens with those that are added."""
    room = to.max_length - n_added
    if room < 0:
        raise ValueError(f"max_length ({to.max_length}) is less than the {n_added} tokens that are added")
    excess = sum(map(len, texts)) - room
    if excess <= 0:
        return texts
    if to.strategy == "longest_first":
        lengths = [room] if len(texts) == 1 else _shares(len(texts[0]), len(texts[1]), room)
    else:
        which = int(to.strategy == "only_second")
        if which >= len(texts) or len(texts[which]) <= excess:
            raise ValueError(f"cannot cut {excess} tokens from the text that strategy {to.strategy!r} says")
        lengths = [len(text) - excess * (i == which) for i, text in enumerate(texts)]
    return [text._truncated(n, to.stride, to.direction) for text, n in zip(texts, lengths, strict=True)]


def _shares(first: int, second: int, room: int) -> list[int]:
    """How many tokens each of two texts keeps: the longer one gives first."""
    short = min(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return [long, short] if first > second else [short, long]


def _trimmed(text: Encoding, *, keeps_first: bool) -> list[tuple[int, int]]:
    """Offsets without the white space at the tokens' ends, as Hugging Face's ByteLevel post-processor counts it."""
    spaces = "\u0120 \t\n\r\x0b\x0c\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
        map(chr, range(0x2000, 0x200B))
    )
    offsets = []
    for i, (token, (start, end)) in enumerate(zip(text.tokens, text.offsets, strict=True)):
        n_left = len(token) - len(token.lstrip(spaces))
        n_right = len(token) - len(token.rstrip(spaces))
        if keeps_first and n_left == 1 and (i == 0 or start == 0):
            n_left = 0
        first = min(start + n_left, end)
        offsets.append((first, max(end - n_right, first) if end >= n_right else end))
    return offsets


def _byte_alphabet() -> list[str]:
    """GPT-2's character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x144))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
