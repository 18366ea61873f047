"""A tokenizer with the methods of Hugging Face's `Tokenizer`, for code written for it.

    Tokenizer ── as_hf() ──▶ HuggingFaceView ── encode ──▶ Encoding     results as of tokenizers.Tokenizer

The view holds no vocabulary of its own. Names, arguments and results follow the original; what differs is said where it
differs.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gptrs.files import write_atomic
from gptrs.hugging_face_encoding import Direction, Encoding, check_counts, check_one_of

if TYPE_CHECKING:
    from gptrs import _core

_T = TypeVar("_T")
_Strategy = Literal["longest_first", "only_first", "only_second"]
_STRATEGIES: dict[str, _Strategy] = {
    "LongestFirst": "longest_first",
    "OnlyFirst": "only_first",
    "OnlySecond": "only_second",
}
_DIRECTIONS: dict[str, Direction] = {"Left": "left", "Right": "right"}
# What the original has and the view has not.
_ALTERED = ("add_special_tokens", "add_tokens", "train", "train_from_iterator")
_PARTS = ("decoder", "model", "normalizer", "post_processor", "pre_tokenizer")
_READ = ("from_buffer", "from_file", "from_pretrained", "from_str")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An added token and how it is found, with the fields of `tokenizers.AddedToken`."""

    content: str
    single_word: bool = False  # not inside a word
    lstrip: bool = False  # white space on its left belongs to it
    rstrip: bool = False  # white space on its right belongs to it
    normalized: bool = True  # looked for in the normalized text
    special: bool = False  # left out by skip_special_tokens

    def __str__(self) -> str:
        return self.content


@dataclass(frozen=True, slots=True, kw_only=True)
class _Padding:
    direction: Direction = "right"
    pad_id: int = 0
    pad_type_id: int = 0
    pad_token: str = "[PAD]"  # noqa: S105 (a token of text)
    length: int | None = None
    pad_to_multiple_of: int | None = None

    @classmethod
    def read(cls, file: dict[str, Any]) -> "_Padding":
        """What a tokenizer.json says."""
        strategy = file["strategy"]
        given = {name: file[name] for name in ("pad_id", "pad_type_id", "pad_token")}
        return cls(
            direction=_DIRECTIONS[file["direction"]],
            length=strategy["Fixed"] if isinstance(strategy, dict) else None,
            pad_to_multiple_of=file.get("pad_to_multiple_of"),
            **given,
        )

    def written(self) -> dict[str, Any]:
        """What a tokenizer.json says of it."""
        return {
            "strategy": "BatchLongest" if self.length is None else {"Fixed": self.length},
            "direction": self.direction.title(),
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "pad_id": self.pad_id,
            "pad_type_id": self.pad_type_id,
            "pad_token": self.pad_token,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Truncation:
    max_length: int
    stride: int = 0
    strategy: _Strategy = "longest_first"
    direction: Direction = "right"

    @classmethod
    def read(cls, file: dict[str, Any]) -> "_Truncation":
        """What a tokenizer.json says."""
        return cls(
            max_length=file["max_length"],
            stride=file["stride"],
            strategy=_STRATEGIES[file["strategy"]],
            direction=_DIRECTIONS[file.get("direction", "Right")],
        )

    def written(self) -> dict[str, Any]:
        """What a tokenizer.json says of it."""
        strategy = next(name for name, strategy in _STRATEGIES.items() if strategy == self.strategy)
        lengths = {"max_length": self.max_length, "stride": self.stride}
        return {"direction": self.direction.title(), "strategy": strategy, **lengths}


class HuggingFaceView:
    """The methods of `tokenizers.Tokenizer` for encoding, decoding and asking; it cannot be changed but for its padding
    and truncation, which begin as the file says.
    """

    __slots__ = (
        "_added",
        "_alphabet",
        "_core",
        "_padding",
        "_read_as",
        "_shown",
        "_skipped",
        "_truncation",
        "encode_special_tokens",
    )

    def __init__(self, core: "_core.Tokenizer") -> None:
        self._core = core
        self._added = {added[0]: added for added in core.added_tokens}
        self._alphabet = _byte_alphabet()
        # A token that is looked for in normalized text is called by its normal form there.
        self._shown = {i: core.normalize(a[1]).decode() if a[5] else a[1] for i, a in self._added.items()}
        special = {added[1] for added in core.added_tokens if added[6]}
        self._skipped = {i for i, token in self._shown.items() if token in special}
        # The decoder takes a token whose characters all stand for bytes for these bytes, an added one too.
        bytes_of = {i: self._bytes_of(token) or token.encode() for i, token in self._shown.items()}
        self._read_as = {i: own for i, own in bytes_of.items() if own != self._added[i][1].encode()}
        truncation, padding = core.lengths
        self._padding = None if padding is None else _Padding.read(json.loads(padding))
        self._truncation = None if truncation is None else _Truncation.read(json.loads(truncation))
        self.encode_special_tokens = False

    def __getattr__(self, name: str) -> Any:
        """Says of what the original has and this view has not how to get it."""
        reason = f"{type(self).__name__} has no attribute {name!r}"
        if name in _ALTERED:
            reason += ": it cannot be changed; hint: change tokenizers.Tokenizer.from_str(view.to_str()), and read its "
            reason += "to_str() with gptrs.Tokenizer.from_json, or train with gptrs.Tokenizer.train"
        elif name in _PARTS:
            reason += f"; hint: tokenizers.Tokenizer.from_str(view.to_str()).{name}"
        elif name in _READ:
            reason += "; hint: gptrs.Tokenizer reads files, and its as_hf() gives the view"
        raise AttributeError(reason, name=name, obj=self)

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

    def post_process(
        self, encoding: Encoding, pair: Encoding | None = None, add_special_tokens: bool = True
    ) -> Encoding:
        """What `encode` makes of the tokens of a text or a pair: cut, with what stands around it, and filled."""
        both = (encoding,) if pair is None else (encoding, pair)
        texts = [replace(one, overflowing=[replace(part) for part in one.overflowing]) for one in both]
        for index, text in enumerate(texts):
            for one in (text, *text.overflowing):
                one.set_sequence_id(index)
        whole = self._finished(texts, add_special_tokens)
        if self._padding is not None:
            self._pad([whole], self._padding)
        return whole

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
        return self._finished([self._text(one, i, is_pretokenized) for i, one in enumerate(both)], is_wrapped)

    def _finished(self, texts: list[Encoding], is_wrapped: bool) -> Encoding:
        """The texts cut, with what stands around them."""
        if self._truncation is not None:
            n_added = self.num_special_tokens_to_add(len(texts) == 2) if is_wrapped else 0
            texts = _truncate(texts, self._truncation, n_added)
        return self._wrap(texts, is_wrapped)

    async def async_encode(
        self,
        sequence: str | Sequence[str],
        pair: str | Sequence[str] | None = None,
        is_pretokenized: bool = False,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """As `encode`, for code that awaits it, on another thread."""
        return await _on_a_thread(self.encode, sequence, pair, is_pretokenized, add_special_tokens)

    async def async_encode_batch(
        self, input: Iterable[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> list[Encoding]:
        """As `encode_batch`, for code that awaits it, on another thread."""
        return await _on_a_thread(self.encode_batch, input, is_pretokenized, add_special_tokens)

    async_encode_batch_fast = async_encode_batch

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
            new_ids, new_offsets, pieces, written = self._core.encode_with_places(word, allowed)
            new_tokens = [self.id_to_token(i) or "" for i in new_ids]
            for at, token in written:
                new_tokens[at] = token
            ids += new_ids
            tokens += new_tokens
            offsets += new_offsets
            word_ids += [i] * len(new_ids) if is_pretokenized else pieces
        n = len(ids)
        return Encoding(ids, [index] * n, tokens, offsets, [1] * n, [0] * n, word_ids, [index] * n)

    def _wrap(self, texts: list[Encoding], is_wrapped: bool) -> Encoding:
        """Joins the texts with what the template puts around them."""
        if self._core.template is None:
            return Encoding.merge(texts, growing_offsets=False)
        single, pair, trims, part_type_id = self._core.template
        slots = single if len(texts) == 1 else pair
        for keeps_first in trims:
            texts = [_trimmed(text, keeps_first=keeps_first) for text in texts]
        if part_type_id is not None and is_wrapped:
            for part in (part for text in texts for part in text.overflowing):
                part.type_ids = [part_type_id] * len(part)
        parts = []
        for is_second, ids, tokens, type_id in slots:
            if is_second is not None:
                text = texts[is_second]
                parts.append(replace(text, type_ids=[type_id] * len(text)))
            elif is_wrapped:
                n = len(ids)
                none: list[int | None] = [None] * n
                parts.append(Encoding(ids, [type_id] * n, tokens, [(0, 0)] * n, [1] * n, [1] * n, none, none))
        return Encoding.merge(parts, growing_offsets=False)

    # ── ids to text ──

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; unknown ids are left out, special tokens too unless `skip_special_tokens` is false."""
        skipped = self._skipped if skip_special_tokens else set()
        known = [i for i in ids if i not in skipped and self._core.token_bytes(i) is not None]
        if self._read_as.keys().isdisjoint(known):
            return self._core.decode_bytes(known).decode("utf-8", errors="replace")
        parts = (self._read_as.get(i) or self._core.token_bytes(i) or b"" for i in known)
        return b"".join(parts).decode("utf-8", errors="replace")

    async def async_decode_batch(
        self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        """As `decode_batch`, for code that awaits it, on another thread."""
        return await _on_a_thread(self.decode_batch, sequences, skip_special_tokens)

    def decode_batch(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The texts of many lists of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    # ── vocabulary ──

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the files spell it: bytes in GPT-2's alphabet, special tokens as they are."""
        for added in self._added.values():
            if added[1] == token:
                return added[0]
        spelled = self._bytes_of(token)
        found = None if spelled is None else self._core.token_id(spelled)
        return None if found in self._added else found

    def _bytes_of(self, token: str) -> bytes | None:
        """The bytes that a token's characters stand for; None when some stand for none."""
        try:
            return bytes(self._alphabet.index(char) for char in token)
        except ValueError:
            return None

    def id_to_token(self, id: int) -> str | None:
        """The spelling of an id."""
        if id in self._shown:
            return self._shown[id]
        token = self._core.token_bytes(id)
        return None if token is None else "".join(self._alphabet[byte] for byte in token)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Every token's spelling and id; without the added ones where asked, but for those that merges make too.

        Those that a file lists in its model's vocabulary all the same, as GPT-2's does, are added ones here.
        """
        ids = (i for i in range(self._core.vocab_size) if with_added_tokens or self._core.is_ordinary(i))
        tokens = ((self._added[i][1] if i in self._added else self.id_to_token(i), i) for i in ids)
        return {token: i for token, i in tokens if token is not None}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """How many tokens there are."""
        return len(self.get_vocab(with_added_tokens))

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by their ids."""
        return {i: AddedToken(*added[1:]) for i, added in self._added.items()}

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """How many tokens the post-processor puts around a text or a pair."""
        template = self._core.template
        if template is None:
            return 0
        return sum(len(ids) for _, ids, _, _ in (template[1] if is_pair else template[0]))

    # ── padding and truncation ──

    def enable_padding(
        self,
        direction: Direction = "right",
        pad_id: int = 0,
        pad_type_id: int = 0,
        pad_token: str = "[PAD]",  # noqa: S107 (a token of text)
        length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        """Fills encodings up to `length`, or to the longest of their batch."""
        check_one_of("direction", direction, ("left", "right"))
        check_counts(pad_id=pad_id, pad_type_id=pad_type_id, length=length, pad_to_multiple_of=pad_to_multiple_of)
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
        strategy: _Strategy = "longest_first",
        direction: Direction = "right",
    ) -> None:
        """Cuts encodings to `max_length` tokens, those that the post-processor adds included."""
        check_one_of("direction", direction, ("left", "right"))
        check_one_of("strategy", strategy, ("longest_first", "only_first", "only_second"))
        check_counts(max_length=max_length, stride=stride)
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
        """The text of tokenizer.json, with padding and truncation as they are set; `pretty` indents it."""
        lengths = (None if one is None else json.dumps(one.written()) for one in (self._truncation, self._padding))
        text = self._core.to_json_with(*lengths)
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2) if pretty else text

    def save(self, path: str, pretty: bool = True) -> None:
        """Writes `to_str(pretty)`; an earlier file stays whole until the new one is complete."""
        write_atomic(Path(path), self.to_str(pretty).encode())


async def _on_a_thread(work: Callable[..., _T], *arguments: Any) -> _T:
    import asyncio

    return await asyncio.to_thread(work, *arguments)


def _is_pair(one: Any, is_pretokenized: bool) -> bool:
    """Whether an item of a batch is two texts; a list of words is one."""
    return isinstance(one, tuple | list) and not (is_pretokenized and all(isinstance(word, str) for word in one))


def _pair_of(one: Sequence[Any]) -> Sequence[Any]:
    if len(one) != 2:
        raise ValueError(f"expected a text or a pair of texts, got {len(one)} of them: {one!r:.80}")
    return one


def _truncate(texts: list[Encoding], to: _Truncation, n_added: int) -> list[Encoding]:
    """The texts cut so that they have `to.max_length` tokens with those that are added."""
    room = to.max_length - n_added
    if room < 0:
        raise ValueError(f"max_length ({to.max_length}) is less than the {n_added} tokens that are added")
    excess = sum(map(len, texts)) - room
    if excess <= 0:
        return texts
    if room == 0:
        return [text.truncated(0, to.stride, to.direction) for text in texts]
    if to.strategy == "longest_first":
        lengths = [room] if len(texts) == 1 else _shares(len(texts[0]), len(texts[1]), room)
    else:
        which = int(to.strategy == "only_second")
        if which >= len(texts) or len(texts[which]) <= excess:
            raise ValueError(f"cannot cut {excess} tokens from the text that strategy {to.strategy!r} says")
        lengths = [len(text) - excess * (i == which) for i, text in enumerate(texts)]
    return [text.truncated(n, to.stride, to.direction) for text, n in zip(texts, lengths, strict=True)]


def _shares(first: int, second: int, room: int) -> list[int]:
    """How many tokens each of two texts keeps: the longer one gives first."""
    short = min(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return [long, short] if first > second else [short, long]


def _trimmed(text: Encoding, *, keeps_first: bool) -> Encoding:
    """The text whose offsets leave out the white space at the tokens' ends, as Hugging Face's ByteLevel post-processor
    counts it.
    """
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
    parts = [_trimmed(part, keeps_first=keeps_first) for part in text.overflowing]
    return replace(text, offsets=offsets, overflowing=parts)


def _byte_alphabet() -> list[str]:
    """GPT-2's character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x144))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
