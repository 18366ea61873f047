"""Text to ids and back: byte-level BPE, trained here or read from the files of others.

Ids are exact: for the same vocabulary they equal those of tiktoken and of Hugging Face tokenizers. Every byte is a
token, so any text, and any bytes at all, can be encoded and come back unchanged.

    files, texts ── train ──▶ Tokenizer ── encode ──▶ ids ── decode ──▶ text
                    tokenizer.json ◀──▶ (Hugging Face's own format)
"""

import warnings
from collections.abc import Collection, Iterable, Sequence
from os import fspath
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import numpy.typing as npt

from gptrs import _core, pretrained, trainer
from gptrs._core import StreamDecoder
from gptrs.corpus import AnyPath, inputs
from gptrs.dataset import Dataset, prepare
from gptrs.encoded import Encoded
from gptrs.hugging_face_view import HuggingFaceView
from gptrs.progress import bar
from gptrs.tiktoken_view import TiktokenView

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
            files: Paths, globs and folders (searched for *.txt, *.jsonl or *.ndjson, also with .gz or .zst, and
                *.parquet). A .txt file is one UTF-8 document, a line of a .jsonl (.ndjson) file is one, and a row of a
                .parquet file.
            vocab_size: Ids in all: 256 bytes, then merges, then special tokens. Warns when the corpus has too few
                different pairs to fill it.
            pattern: How text is split into pieces before merging: "gpt2" (the default), "cl100k_base", "o200k_base",
                "llama3", "qwen2", "deepseek-v3", "nanochat" or a regular expression.
            special_tokens: Texts with an id of their own, ("<|endoftext|>",) by default. They are ordinary text in the
                corpus, and no merge spells one. One may begin another: the longest that stands in a text wins.
            min_count: A pair must occur at least this often to be merged; 1 by default.
            max_token_bytes: A pair whose product is longer is not merged; None for no limit. Hugging Face's trainer
                merges what is shorter than its `max_token_length`, so that is one more, and two bytes always.
            tie: Which of several pairs with the same count merges first. "id" takes the smallest left id, then the
                smallest right id. "hf" does so over Hugging Face's ids, special tokens first, then the bytes in the
                order of the byte-level alphabet: merges and ids are those of its BpeTrainer over that alphabet, but
                for merges that spell a special token, which it makes.
            base: A tokenizer to go on from: its merges are applied to the text first and come first in the result, its
                ids stay, new merges and then new special tokens follow. Brings its normalizer, the flags of its special
                tokens, its template, and its pattern unless one is given.
            superbpe_from: Once the vocabulary has this many ids, merges may cross single spaces between words
                (SuperBPE). The tokenizer then splits text into runs of words, and its `pattern` says so.
            report: A .html or .json file for a report: bytes per token, longest tokens, time by stage and more.
            held_out: Files for the report to encode, which training does not see; or a fraction of `files`, the end of
                a single file or some of several, that is then not trained on.
            text_field: The field of a .jsonl line that holds the text, or a template of several: "{title}: {text}".
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

        `truncation` and `padding` of a tokenizer.json are kept for `as_hf` and for files, with a warning: `encode` cuts
        and fills nothing.

        Raises:
            ValueError: The file is not valid, or uses a feature that would change ids and is not supported.
            OSError: The file cannot be read.
        """
        return cls(_all_of(_core.Tokenizer.read(fspath(path), pattern), fspath(path)))

    @classmethod
    def from_pretrained(cls, name: AnyPath, *, pattern: str | None = None, **options: Any) -> "Tokenizer":
        """The tokenizer of a folder, or of a repository on the Hugging Face hub, which huggingface_hub fetches.

        Args:
            name: A path that exists, else a repository as `owner/name`.
            pattern: As for `from_file`.
            options: Arguments of `huggingface_hub.hf_hub_download`: revision, token, cache_dir, local_files_only, …

        Raises:
            ImportError: The name has to be looked up and huggingface_hub is not installed.
            OSError: The hub cannot be reached and the local cache has no such tokenizer.
            ValueError: It is no tokenizer that can be read; what is not supported is named.
        """
        path = fspath(name)
        return cls.from_file(path if Path(path).exists() else pretrained.download(path, **options), pattern=pattern)

    @classmethod
    def from_tiktoken(cls, encoding: Any) -> "Tokenizer":
        """The tokenizer of a `tiktoken.Encoding`, or of the name of an encoding or model that tiktoken knows.

        Raises:
            ImportError: A name has to be looked up and tiktoken is not installed.
            OSError: tiktoken cannot download the vocabulary.
            ValueError: tiktoken does not know the name, or the vocabulary lacks a byte.
        """
        encoding = pretrained.encoding_of(encoding) if isinstance(encoding, str) else encoding
        return cls(_core.Tokenizer.from_ranks(*pretrained.ranks_of(encoding)))

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer of the text of a tokenizer.json.

        Raises:
            ValueError: As `from_file`.
        """
        return cls(_all_of(_core.Tokenizer.from_json(text), "tokenizer.json"))

    def to_json(self) -> str:
        """The text of tokenizer.json, which Hugging Face tokenizers reads as it is."""
        return self.core.to_json()

    def save(self, path: AnyPath) -> None:
        """Writes tokenizer.json, or by the name ranks (*.tiktoken) or merges.txt with vocab.json beside it.

        An earlier file stays whole until the new one is complete. Ranks hold no special tokens, and neither they nor
        merges.txt a normalizer: what a tokenizer has of these is left out with a warning.

        Raises:
            ValueError: The name is of no known format, or of one that cannot hold this tokenizer.
            OSError: The file cannot be written.
        """
        if missing := self.core.write(fspath(path)):
            warnings.warn(
                f"{fspath(path)} does not hold the {' and the '.join(missing)}; hint: save tokenizer.json, which holds "
                "all, or read ranks with tiktoken.Encoding(..., special_tokens={...}) and Tokenizer.from_tiktoken",
                stacklevel=2,
            )

    def save_pretrained(
        self,
        folder: AnyPath,
        *,
        chat_template: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        model_max_length: int | None = None,
    ) -> None:
        """Writes a folder that transformers loads: `AutoTokenizer.from_pretrained(folder)`.

        Args:
            folder: Made when it is not there.
            chat_template: A Jinja template for `apply_chat_template`.
            bos_token: The special token that begins a text; by default what a template of the file puts there.
            eos_token: The one that ends it; by default that of `eot_id`.
            pad_token: The one that fills; by default there is none.
            model_max_length: The longest input in ids, for transformers' warnings.

        Raises:
            ValueError: A named token is no special token of this tokenizer, or tokenizer.json cannot hold it.
            OSError: A file cannot be written.
        """
        pretrained.save(
            self.core,
            folder,
            chat_template=chat_template,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            model_max_length=model_max_length,
        )

    # ── for code written for others ──

    def as_tiktoken(self, name: str = "gptrs") -> TiktokenView:
        """This tokenizer with the methods of `tiktoken.Encoding`."""
        return TiktokenView(self.core, name)

    def as_hf(self) -> HuggingFaceView:
        """This tokenizer with the methods of `tokenizers.Tokenizer`: special-token text becomes its id there."""
        return HuggingFaceView(self.core)

    # ── text to ids ──

    def encode(
        self,
        text: Text,
        *,
        allowed_special: SpecialNames = (),
        disallowed_special: SpecialNames = "all",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """The ids of `text`; special-token text raises unless the caller says what it means, as in tiktoken.

        Args:
            text: The text. All cores encode a long one.
            allowed_special: Special tokens that become their one id, the longest one where several begin: "all" or a
                set of their texts.
            disallowed_special: Those that raise when found and not allowed: "all" or a set; `()` raises for none and
                encodes what is not allowed as ordinary text.
            dropout: Skips each merge with this probability, so that a model sees a word in several spellings
                (BPE-dropout, arXiv 1910.13267): 0 changes nothing, 1 leaves bytes.
            seed: Decides which merges are skipped, together with the place in the text; the same seed, the same ids.

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
        if dropout:
            return self.core.encode_dropout(text, allowed_special, disallowed_special, dropout, seed)
        return self.core.encode(text, allowed_special, disallowed_special)

    def encode_ordinary(self, text: Text) -> list[int]:
        """The ids of `text`, in which special-token text is ordinary text: never a special id."""
        return self.core.encode_ordinary(text)

    def encode_spans(self, spans: Iterable[tuple[Text, bool]], *, allowed_special: SpecialNames = "all") -> list[int]:
        """The ids of `(text, is_trusted)` spans: special tokens are recognised in trusted ones alone.

        Each span is a text of its own: no token, ordinary or special, crosses a border between spans. The ids are
        those of `encode` and `encode_ordinary` of the spans one by one, so text of users cannot make a special id,
        whatever stands before or behind it.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["abab"], 258)
            >>> tok.encode_spans([("<|endoftext|>", True), ("<|endof", True), ("text|>", False)])[:2]
            [257, 60]
        """
        return self.core.encode_spans(spans, allowed_special)

    def encode_batch(
        self,
        texts: Iterable[Text],
        *,
        allowed_special: SpecialNames = (),
        disallowed_special: SpecialNames = (),
        max_length: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        threads: int = 0,
    ) -> Encoded:
        """The ids of many texts in one array, encoded in parallel; special-token text is ordinary unless allowed.

        Args:
            texts: The texts; a long one is shared by all threads.
            allowed_special, disallowed_special, dropout: As for `encode`.
            max_length: Ids of a text at most; its end is cut off. `Encoded.pad` makes rows of one length.
            seed: As for `encode`; equal texts of a batch are spelt differently.
            threads: Threads to use; 0 means all cores. The ids do not depend on it.

        Raises:
            ValueError: A text contains a special token that is disallowed, or a number is out of range.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["abab"], 258)
            >>> batch = tok.encode_batch(["abb", "", "a"])
            >>> len(batch), batch.ids.dtype, batch[0].tolist(), batch.to_list()
            (3, dtype('uint16'), [256, 98], [[256, 98], [], [97]])
            >>> batch.pad(pad_id=257).ids.tolist()
            [[256, 98], [257, 257], [97, 257]]
        """
        _check_threads(threads)
        arrays = self.core.encode_batch(texts, allowed_special, disallowed_special, dropout, seed, threads)
        return Encoded(*arrays) if max_length is None else Encoded(*arrays).truncate(max_length)

    @overload
    def encode_files(
        self, files: AnyPath | Iterable[AnyPath], out: None = None, *, text_field: str = "text",
        append_eot: bool = True, threads: int = 0, progress: bool = True,
    ) -> Encoded: ...  # fmt: skip

    @overload
    def encode_files(
        self, files: AnyPath | Iterable[AnyPath], out: AnyPath, *, text_field: str = "text",
        append_eot: bool = True, threads: int = 0, progress: bool = True,
    ) -> Dataset: ...  # fmt: skip

    def encode_files(
        self,
        files: AnyPath | Iterable[AnyPath],
        out: AnyPath | None = None,
        *,
        text_field: str = "text",
        append_eot: bool = True,
        threads: int = 0,
        progress: bool = True,
    ) -> Encoded | Dataset:
        """The ids of every document of files: in one array, or with `out` in token shards, as `gptrs.prepare` does.

        Files are mapped and cut where cutting changes no id, so all threads work on one large file. With `out`, memory
        stays bounded whatever the files' size.

        Args:
            files: Paths, globs and folders (searched for *.txt, *.jsonl or *.ndjson, also with .gz or .zst, and
                *.parquet). A .txt file is one UTF-8 document, a line of a .jsonl (.ndjson) file is one, and a row of a
                .parquet file.
            out: The folder for the shards; None returns the ids.
            text_field: The field or column that holds the text, or a template of several: "{title}: {text}".
            append_eot: End each document with the tokenizer's end-of-text id, if it has one.
            threads: Threads to use; 0 means all cores. The ids do not depend on it.
            progress: Show a progress bar when stderr is a terminal.

        Raises:
            ValueError, OSError: As `gptrs.prepare`.
        """
        _check_threads(threads)
        if out is not None:
            return prepare(
                files, self, out, text_field=text_field, append_eot=append_eot, threads=threads, progress=progress
            )
        paths = inputs(files, text_field)
        with bar(progress) as report:
            return Encoded(*self.core.encode_files(paths, text_field, append_eot, threads, report))

    def encode_with_offsets(
        self, text: Text, *, unit: Literal["bytes", "chars"] = "bytes"
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ordinary ids of `text` and for each the (start, end) of what it spells.

        Args:
            text: The text.
            unit: "bytes" counts in the UTF-8 of the text, without gaps. "chars" counts its characters: a token that
                begins or ends inside a character has the place of the characters that it touches, as in Hugging Face.
                Of `bytes` that are not UTF-8, each sequence that decodes to one U+FFFD is a character.

        Where the tokenizer has a normalizer, these are places in `normalize(text)`.

        Example:
            >>> tok = Tokenizer.train_from_iterator(["abab"], 258)
            >>> tok.encode_with_offsets("abé")
            ([256, 195, 169], [(0, 2), (2, 3), (3, 4)])
            >>> tok.encode_with_offsets("abé", unit="chars")[1]
            [(0, 2), (2, 3), (2, 3)]
        """
        return self.core.encode_with_offsets(text, unit)

    def encode_batch_with_offsets(
        self, texts: Iterable[Text], *, unit: Literal["bytes", "chars"] = "bytes", threads: int = 0
    ) -> tuple[Encoded, npt.NDArray[np.int64]]:
        """The ordinary ids of many texts, and an array (N, 2) with the start and end of each id in its text."""
        _check_threads(threads)
        arrays, spans = self.core.encode_batch_with_offsets(texts, unit, threads)
        return Encoded(*arrays), spans

    def count(self, text: Text) -> int:
        """The number of ordinary ids of `text`, which are not stored."""
        return self.core.count(text)

    def count_batch(self, texts: Iterable[Text], *, threads: int = 0) -> npt.NDArray[np.int64]:
        """The number of ordinary ids of each of many texts."""
        _check_threads(threads)
        return self.core.count_batch(texts, threads)

    # ── ids to text ──

    def decode(self, ids: Ids, *, errors: str = "replace") -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, or what `errors` says (see `bytes.decode`).

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return self.core.decode(ids, errors)

    def decode_batch(self, batch: Iterable[Ids], *, errors: str = "replace") -> list[str]:
        """The texts of many sequences of ids (lists, arrays, an `Encoded`), decoded in parallel; as `decode`."""
        return [text.decode("utf-8", errors) for text in self.core.decode_batch(batch)]

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes of `ids`, exactly, where `decode` may have to replace some; special ids give their text.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
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
        """The splitting pattern: its name ("gpt2", "llama3", …), its regular expression, or the JSON of its steps."""
        return self.core.pattern

    @property
    def digest(self) -> str:
        """64 hex digits over all that decides ids: normalizer, pattern, tokens, merges, special tokens."""
        return self.core.digest

    @property
    def normalizer(self) -> str | None:
        """The normal form that text is brought into before it is split: "NFC", "NFD", "NFKC", "NFKD" or None."""
        return self.core.normalizer

    def normalize(self, text: Text) -> bytes:
        """The UTF-8 of `text` in the tokenizer's normal form, which is what its ids spell."""
        return self.core.normalize(text)

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

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[_core.Tokenizer]]:
        return Tokenizer, (self.core,)


def _all_of(core: _core.Tokenizer, name: str) -> _core.Tokenizer:
    """The tokenizer of a file; warns of what the file asks for and nothing here does."""
    names = [name for name, value in zip(("truncation", "padding"), core.lengths, strict=True) if value is not None]
    if names:
        warnings.warn(
            f"{name} asks for {' and '.join(names)}, which as_hf() applies and nothing else; hint: "
            "encode_batch(max_length=...) and Encoded.pad(...)",
            stacklevel=3,
        )
    return core


def _check_threads(threads: int) -> None:
    if threads < 0:
        raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
