"""Text to ids and back: byte-level BPE, trained here or read from the files of others.

Ids are exact: for the same vocabulary they equal those of tiktoken and of Hugging Face tokenizers. Every byte is a
token, so any text, and any bytes at all, can be encoded and come back unchanged.

    files, texts ── train ──▶ Tokenizer ── encode ──▶ ids ── decode ──▶ text
                    tokenizer.json ◀──▶ (Hugging Face's own format)
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import fspath
from typing import Any, Literal, SupportsIndex, Unpack

import numpy as np
import numpy.typing as npt

from gptrs import _core, trainer
from gptrs._core import StreamDecoder
from gptrs.corpus import AnyPath

Text = str | bytes
Ids = Sequence[int] | npt.NDArray[Any]
SpecialNames = Literal["all"] | Collection[str]


class Tokenizer:
    """A trained byte-level BPE vocabulary with its splitting pattern and special tokens; immutable.

    It may be shared by threads, pickled, and used after `fork`. Two tokenizers are equal when they give the same ids
    by the same vocabulary, whatever file they came from.

    Texts are `str` or `bytes`. In a `str`, a surrogate pair counts as its character and a lone surrogate as U+FFFD (as
    tiktoken does it); bytes that are not UTF-8 are encoded as they are.

    Example:
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"], vocab_size=260, pattern="gpt2")
        >>> tok.encode("slow"), tok.decode(tok.encode("slow"))
        ([115, 257], 'slow')
    """

    __slots__ = ("core",)

    core: _core.Tokenizer  # the Rust object; the other modules of this package hand it on

    def __init__(self, core: _core.Tokenizer) -> None:
        """Wraps the Rust object; users call `train`, `train_from_iterator` or `from_file`."""
        self.core = core

    # ── making one ──

    @classmethod
    def train(
        cls, files: AnyPath | Iterable[AnyPath], vocab_size: int, **options: Unpack[trainer.Options]
    ) -> "Tokenizer":
        """A tokenizer trained on files; the result does not depend on `threads` or on the order of the files.

        Args:
            files: Paths, globs and folders (searched for *.txt and *.jsonl). A .txt file is one UTF-8 document, a
                line of a .jsonl file is one.
            vocab_size: Ids in all: 256 bytes, then merges, then special tokens. Warns when the corpus has too few
                different pairs to fill it.
            pattern: How text is split into pieces before merging: "gpt2" (the default), "cl100k_base" or a regular
                expression.
            special_tokens: Texts with an id of their own, ("<|endoftext|>",) by default. They are ordinary text in the
                corpus, and no merge spells one. One may begin another: the longest that stands in a text wins.
            min_count: A pair must occur at least this often to be merged; 1 by default.
            max_token_bytes: A pair whose product is longer is not merged; None for no limit. Hugging Face's trainer
                merges what is shorter than its `max_token_length`, so that is one more.
            tie: Which of several pairs with the same count merges first. "id" takes the smallest left id, then the
                smallest right id. "hf" does so over Hugging Face's ids, special tokens first, then the bytes in the
                order of the byte-level alphabet: merges and ids are those of its BpeTrainer over that alphabet.
            base: A tokenizer to go on from: its merges are applied to the text first and come first in the result, its
                ids stay, new merges and then new special tokens follow. Brings its pattern unless one is given.
            superbpe_from: Once the vocabulary has this many ids, merges may cross single spaces between words
                (SuperBPE). The tokenizer then splits text into runs of words, and its `pattern` says so.
            report: A .html or .json file for a report: bytes per token, longest tokens, time by stage and more.
            held_out: Files for the report to encode, which training does not see; or a fraction of `files`, the end of
                a single file or some of several, that is then not trained on.
            text_field: The field of a .jsonl line that holds the text.
            threads: Threads to use; 0 means all cores.
            progress: Show a progress bar when stderr is a terminal.

        Raises:
            ValueError: An argument is out of range, or the corpus is empty or not UTF-8.
            OSError: A file cannot be read.
        """
        return cls(trainer.from_files(files, vocab_size, options))

    @classmethod
    def train_from_iterator(
        cls, texts: Iterable[Text], vocab_size: int, **options: Unpack[trainer.Options]
    ) -> "Tokenizer":
        """A tokenizer trained on an iterable of texts, each a document of its own; options as for `train`.

        Texts are taken in blocks of some 32 MB, so the iterable may be longer than memory.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["aaabdaaabac"], 259, special_tokens=[])
            >>> [tok.id_to_token(i) for i in range(256, 259)]
            [b'aa', b'ab', b'aaab']
        """
        return cls(trainer.from_iterator(texts, vocab_size, options))

    @classmethod
    def train_from_counts(
        cls, files: AnyPath | Iterable[AnyPath], vocab_size: int, **options: Unpack[trainer.Options]
    ) -> "Tokenizer":
        """The tokenizer that `train` makes of the texts behind count files (`gptrs tokenizer count`), byte for byte.

        The pattern is that of the files; options as for `train`.

        Raises:
            ValueError: The files have different patterns, or one is damaged; the message names it.
        """
        return cls(trainer.from_counts(files, vocab_size, options))

    @classmethod
    def from_file(cls, path: AnyPath, *, pattern: str | None = None) -> "Tokenizer":
        """The tokenizer of a file: tokenizer.json, *.tiktoken, vocab.json beside merges.txt, or a folder with one.

        Args:
            path: The file or folder.
            pattern: The splitting pattern where the file holds none (.tiktoken): a name or a regular expression.

        Raises:
            ValueError: The file is not valid, or uses a feature that would change ids and is not supported.
            OSError: The file cannot be read.
        """
        return cls(_core.Tokenizer.read(fspath(path), pattern))

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer of the text of a tokenizer.json."""
        return cls(_core.Tokenizer.from_json(text))

    def to_json(self) -> str:
        """The text of tokenizer.json, which Hugging Face tokenizers reads as it is."""
        return self.core.to_json()

    def save(self, path: AnyPath) -> None:
        """Writes tokenizer.json; an earlier file stays whole until the new one is complete."""
        self.core.write(fspath(path))

    # ── text to ids ──

    def encode(
        self, text: Text, *, allowed_special: SpecialNames = (), disallowed_special: SpecialNames = "all"
    ) -> list[int]:
        """The ids of `text`; special-token text raises unless the caller says what it means, as in tiktoken.

        Args:
            text: The text.
            allowed_special: Special tokens that become their one id: "all" or a set of their texts.
            disallowed_special: Those that raise when found and not allowed: "all" or a set; `()` raises for none and
                encodes what is not allowed as ordinary text.

        Raises:
            ValueError: The text contains a special token that is disallowed.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["abab"], 258)
            >>> tok.encode("ab<|endoftext|>", allowed_special="all")
            [256, 257]
            >>> tok.encode("<|endoftext|>")
            Traceback (most recent call last):
            ...
            ValueError: the text contains the special token "<|endoftext|>" at byte 0; hint: pass ...
        """
        return self.core.encode(text, allowed_special, disallowed_special)

    def encode_ordinary(self, text: Text) -> list[int]:
        """The ids of `text`, in which special-token text is ordinary text: never a special id."""
        return self.core.encode_ordinary(text)

    def encode_batch(self, texts: Iterable[Text], *, allowed_special: SpecialNames = (), threads: int = 0) -> "Encoded":
        """The ids of many texts in one array, encoded in parallel; special-token text is ordinary unless allowed.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["abab"], 258)
            >>> batch = tok.encode_batch(["abb", "", "a"])
            >>> len(batch), batch.ids.dtype, batch[0].tolist(), batch.to_list()
            (3, dtype('uint16'), [256, 98], [[256, 98], [], [97]])
        """
        if threads < 0:
            raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
        return Encoded(*self.core.encode_batch(texts, allowed_special, threads))

    def encode_with_offsets(self, text: Text) -> tuple[list[int], list[tuple[int, int]]]:
        """The ordinary ids of `text` and for each the (start, end) of its bytes in the UTF-8 of `text`.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["abab"], 258)
            >>> tok.encode_with_offsets("abb")
            ([256, 98], [(0, 2), (2, 3)])
        """
        return self.core.encode_with_offsets(text)

    def count(self, text: Text) -> int:
        """The number of ordinary ids of `text`."""
        return self.core.count(text)

    # ── ids to text ──

    def decode(self, ids: Ids, *, errors: str = "replace") -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, or what `errors` says (see `bytes.decode`).

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return self.core.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes of `ids`; special ids give their text. Exact for any ids: `decode` may have to replace some."""
        return self.core.decode_bytes(ids)

    def decoder(self) -> StreamDecoder:
        """A decoder for ids that arrive one at a time: `push(id)` gives whole characters only, `finish()` the rest.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["ab"], 257)
            >>> decoder = tok.decoder()
            >>> [decoder.push(byte) for byte in "aé".encode()], decoder.finish()
            (['a', '', 'é'], '')
        """
        return self.core.decoder()

    # ── what it is ──

    @property
    def vocab_size(self) -> int:
        """The largest id + 1; what a model's embedding needs."""
        return self.core.vocab_size

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens' texts and ids."""
        return self.core.special_tokens

    @property
    def eot_id(self) -> int | None:
        """The id that ends a document ("<|endoftext|>" or what others call it), None without one."""
        return self.core.eot_id

    @property
    def pattern(self) -> str:
        """The splitting pattern: its name ("gpt2", "cl100k_base") or the regular expression."""
        return self.core.pattern

    @property
    def digest(self) -> str:
        """64 hex digits over pattern, tokens, merges and special tokens: the same for every spelling of the file."""
        return self.core.digest

    def id_to_token(self, token_id: int) -> bytes | None:
        """The bytes of a token, for a special token its text; None for an id without one."""
        return self.core.token_bytes(token_id)

    def token_to_id(self, token: Text) -> int | None:
        """The id of a token given as bytes or text; None when it is no token."""
        return self.core.token_id(token)

    def __repr__(self) -> str:
        special = ", ".join(self.special_tokens)
        return f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r}, special_tokens=[{special}])"

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Tokenizer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Tokenizer.from_json, (self.to_json(),)


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
