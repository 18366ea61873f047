"""Text to token shards in a folder, and the folder read as one long array of ids.

files ──────────────────── prepare ──▶ shards + manifest.json ── Dataset ── export ──▶ token files of other programs
documents ── lines in a file ──┘
token files of other programs ── import_tokens ──▶ indexes + manifest.json beside them ── Dataset
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, get_args

import numpy as np
import numpy.typing as npt

from gptrs import _core
from gptrs.corpus import AnyPath, as_file, expand, inputs
from gptrs.progress import bar

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

Format = Literal["nanogpt", "llmc", "megatron", "datatrove", "olmo"]
ExportFormat = Literal["nanogpt", "llmc", "megatron"]


class DocumentOptions(TypedDict, total=False):
    """Which documents `prepare` finds and writes, and what the manifest calls them."""

    doc_separator: str | None  # what stands between the documents of a .txt file and belongs to none
    min_document_bytes: int | None  # documents of fewer UTF-8 bytes are left out and counted
    max_document_bytes: int | None  # documents of more are, too
    dedup: bool  # leave out a document whose bytes are those of an earlier one, and count it
    errors: Literal["strict", "replace"]  # what is not UTF-8 is refused, or becomes U+FFFD and is counted
    source: str | None  # what the text is called, for a mixture of several
    weight: float | None  # its share in a mixture, in relation to those of the others


def prepare(
    files: AnyPath | Iterable[AnyPath],
    tokenizer: "Tokenizer",
    out: AnyPath,
    *,
    text_field: str = "text",
    shard_tokens: int = 1 << 27,
    append_eot: bool = True,
    loss_fields: Sequence[str] = (),
    threads: int = 0,
    progress: bool = True,
    **options: Unpack[DocumentOptions],
) -> "Dataset":
    """Encodes files into token shards in the folder `out` and returns them as a dataset.

    The bytes written do not depend on `threads`. When the work is cut off, the same call again keeps the finished
    shards and ends in the same bytes. Special-token text in the files is ordinary text; the manifest counts it. A
    finished dataset comes back as it is, unless its files or options differ; `Dataset.verify` reads its shards.

    Args:
        files: Paths, globs and folders (searched for *.txt, *.jsonl or *.ndjson, also with .gz or .zst, and *.parquet).
            A .txt file is one UTF-8 document as it stands, a byte order mark included, or several with `doc_separator`;
            a line of a .jsonl (.ndjson) file is one, and a row of a .parquet file. A file that comes more than once is
            encoded as often, with a warning.
        tokenizer: The tokenizer; its digest goes into every shard.
        out: The folder to write; one that holds another dataset is refused.
        text_field: The field or column that holds the text, or a template of several: "{title}: {text}".
        shard_tokens: Tokens in a shard, the last one excepted.
        append_eot: Write the tokenizer's end-of-text id after each document, if it has one.
        loss_fields: Fields of `text_field` whose tokens alone are to be predicted, for fine-tuning: of
            "{prompt}\n{answer}", ["answer"]. A token is of the field that its last byte is in; the end-of-text id is
            always to be predicted. Batches then have the target -100 for the others. Not for .txt files, nor for
            tokenizers with a normalizer.
        threads: Threads to use; 0 means all cores.
        progress: Show a progress bar when stderr is a terminal.
        options: See `DocumentOptions`. Sizes, `dedup` and `errors="replace"` cost one more pass over the files;
            `dedup` takes some 18 bytes of memory for each document. Given again with another `source` or `weight`,
            the finished dataset gets the new ones.

    Raises:
        ValueError: The corpus is empty, not UTF-8 or not valid JSON, `text_field` is given for .txt files alone, or
            `out` holds another dataset.
        OSError: A file cannot be read or written.
    """
    check_call(tokenizer, out, options, DocumentOptions.__annotations__)
    sizes = {"text_field": text_field, "shard_tokens": shard_tokens, "append_eot": append_eot, "threads": threads}
    given = {**sizes, "loss_fields": loss_fields, **options}
    check_options(given)
    paths = inputs(files, text_field)
    with bar(progress) as report:
        core = _core.prepare(paths, tokenizer.core, fspath(out), given, report)
    return Dataset._of(core)


def import_tokens(
    files: AnyPath | Iterable[AnyPath],
    tokenizer: "Tokenizer",
    *,
    format: Format | None = None,
    dtype: Literal["uint16", "uint32"] | None = None,
    eot_at: Literal["end", "start"] = "end",
    threads: int = 0,
    progress: bool = True,
) -> "Dataset":
    """Makes the folder of token files of other programs a dataset; the files stay as they are and are not copied.

    Beside each file comes an index with checksums and the ends of documents, and manifest.json. The same call again
    finds that the files are still the same, or raises.

    Args:
        files: Files of one folder and one format, globs, or the folder (searched for *.bin, *.ds and *.npy).
        tokenizer: The tokenizer that made the ids; files with ids that it does not have are refused.
        format: Whose format it is: nanogpt, llmc, megatron, datatrove or olmo; None goes by ending and first bytes.
        dtype: The ids' type, where files do not say it.
        eot_at: Whether the end-of-text id ends documents or starts them, where files have no list of documents.
        threads: Threads to use; 0 means all cores.
        progress: Show a progress bar when stderr is a terminal.

    Raises:
        ValueError: A file is not what it should be, or the folder holds another dataset.
        OSError: A file cannot be read or written.
    """
    check_tokenizer(tokenizer)
    require("threads", threads, 0, 1 << 16)
    if eot_at not in ("end", "start"):
        raise ValueError(f'eot_at must be "end" or "start", got {eot_at!r}')
    paths = expand(files)
    with bar(progress) as report:
        core = _core.import_tokens(
            paths,
            tokenizer.core,
            format=format,
            dtype=dtype,
            eot_first=eot_at == "start",
            threads=threads,
            progress=report,
        )
    return Dataset._of(core)


def prepare_documents(
    documents: Iterable[str | Mapping[str, Any]],
    tokenizer: "Tokenizer",
    out: AnyPath,
    *,
    text_field: str = "text",
    shard_tokens: int = 1 << 27,
    append_eot: bool = True,
    loss_fields: Sequence[str] = (),
    threads: int = 0,
    progress: bool = True,
    **options: Unpack[DocumentOptions],
) -> "Dataset":
    """As `prepare`, of documents that Python has: strings, or mappings with the fields of `text_field`.

    A `Dataset` or `IterableDataset` of Hugging Face's datasets is such documents; its other columns are not read. They
    are written as lines to a file in `out` first, which goes at the end: there must be room for the text once more.
    When the work is cut off, the same call again takes all documents again, which must be the same in the same order,
    and keeps the finished shards.

    Raises:
        TypeError: A document is no string, or a field of it is none.
        ValueError: A field is missing, or what `prepare` says; lines are numbered as documents are, from 1.
        OSError: A file cannot be read or written.
    """
    check_call(tokenizer, out, options, DocumentOptions.__annotations__)
    given = {"text_field": text_field, "shard_tokens": shard_tokens, "append_eot": append_eot, "threads": threads}
    check_options({**given, "loss_fields": loss_fields, **options})
    with as_file(documents, text_field, out) as path:
        return prepare(
            path,
            tokenizer,
            out,
            text_field=text_field,
            shard_tokens=shard_tokens,
            append_eot=append_eot,
            loss_fields=loss_fields,
            threads=threads,
            progress=progress,
            **options,
        )


class Dataset:
    """The token shards of a folder as one long array of ids.

    Opening checks the manifest, the length of every shard, and the headers of the first ones; each block of 64 KiB is
    compared with its checksum when it is first read.
    """

    __slots__ = ("core",)

    core: _core.Dataset

    def __init__(self, path: AnyPath) -> None:
        """Opens the folder that `prepare` or `import_tokens` made a dataset.

        Raises:
            ValueError: The manifest or a shard is not valid or was cut short.
            OSError: A file cannot be read.
        """
        if Path(path).is_file():
            hint = "hint: gptrs prepare makes one of text, gptrs data import of token files"
            raise NotADirectoryError(f"expected the folder of a dataset, got the file {fspath(path)}; {hint}")
        self.core = _absolute(_core.Dataset(fspath(path)))

    @classmethod
    def _of(cls, core: _core.Dataset) -> Self:
        dataset = cls.__new__(cls)
        dataset.core = _absolute(core)
        return dataset

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.core.path)

    @property
    def n_tokens(self) -> int:
        """Tokens in all shards, end-of-text ids included."""
        return self.core.n_tokens

    @property
    def n_documents(self) -> int:
        """Documents in all shards."""
        return self.core.n_documents

    @property
    def vocab_size(self) -> int:
        """The vocabulary size of the tokenizer that made the ids: each is smaller."""
        return self.core.vocab_size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The ids' type in the shards: uint16 or uint32."""
        return np.dtype(self.core.dtype)

    @property
    def has_loss_bits(self) -> bool:
        """Whether the shards say of each token if it is to be predicted (`prepare(loss_fields=...)`)."""
        return self.core.has_loss_bits

    @property
    def tokenizer_digest(self) -> str:
        """The digest of the tokenizer that made the ids (`Tokenizer.digest`)."""
        return self.core.tokenizer_digest

    @property
    def fingerprint(self) -> str:
        """64 hex digits over all shards and their order: the identity of the data."""
        return self.core.fingerprint

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json says, by the names of docs/formats.md: the shards with their counts and digests, …"""
        manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_bytes())
        return manifest

    def n_rows(self, seq_len: int) -> int:
        """The rows of `seq_len` + 1 tokens in one epoch of the stream; neighbours share one token."""
        require("seq_len", seq_len, 1, (1 << 31) - 1)
        return self.core.n_rows(seq_len)

    def read(self, start: int, n_tokens: int) -> npt.NDArray[np.uint32]:
        """The `n_tokens` ids from `start` on, across shard borders: (n_tokens,).

        Raises:
            ValueError: They are not all in the dataset, or a shard is damaged there.
        """
        self._check_range(start, n_tokens)
        return self.core.read(start, n_tokens)

    def doc_ids(self, start: int, n_tokens: int) -> npt.NDArray[np.int32]:
        """For each of these tokens the number of its document, counted from 0 over the dataset: (n_tokens,).

        Raises:
            ValueError: They are not all in the dataset, a shard is damaged there, or there are more than 2^31 - 1
                documents.
        """
        if self.n_documents > np.iinfo(np.int32).max:
            raise ValueError(f"document numbers are int32, the dataset has {self.n_documents} documents")
        self._check_range(start, n_tokens)
        return self.core.doc_ids(start, n_tokens).astype(np.int32)

    def loss_bits(self, start: int, n_tokens: int) -> npt.NDArray[np.bool_]:
        """For each of these tokens whether it is to be predicted: (n_tokens,); all are where there are no loss bits.

        Raises:
            ValueError: They are not all in the dataset, or a shard is damaged there.
        """
        self._check_range(start, n_tokens)
        return self.core.loss_bits(start, n_tokens)

    def _check_range(self, start: int, n_tokens: int) -> None:
        if not 0 <= start <= start + n_tokens <= self.n_tokens:
            raise ValueError(f"tokens {start} to {start + n_tokens} are not in the dataset of {self.n_tokens}")

    def verify(self, *, threads: int = 0, progress: bool = True) -> int:
        """Reads every byte, compares all checksums, and returns the bytes of tokens and document ends.

        Raises:
            ValueError: A shard was changed or damaged; the message names it and the block.
        """
        require("threads", threads, 0, 1 << 16)
        with bar(progress) as report:
            return self.core.verify(threads, report)

    def export(
        self,
        out: AnyPath,
        format: ExportFormat,
        *,
        tokens_per_file: int = 100_000_000,
        drop_loss_bits: bool = False,
        progress: bool = True,
    ) -> list[Path]:
        """Writes the tokens into the folder `out` as another program's files, and returns these.

        Args:
            out: The folder; files of the same names are replaced.
            format: nanogpt (tokens.bin), llmc (tokens_000000.bin, ...) or megatron (tokens.bin, tokens.idx).
            tokens_per_file: Most tokens in a file of llmc; the others have one.
            drop_loss_bits: Export a dataset with loss bits without them: the formats have no place for them, so whoever
                trains on the files predicts every token. Unless asked for, such a dataset is refused.
            progress: Show a progress bar when stderr is a terminal.

        Raises:
            ValueError: An id does not fit the format, the dataset has loss bits, or `out` holds files that a reader
                would mistake for these.
            OSError: A file cannot be written.
        """
        require("tokens_per_file", tokens_per_file, 1, (1 << 31) - 1)
        if format not in (known := get_args(ExportFormat)):
            raise ValueError(f"expected one of the formats {', '.join(known)}, got {format!r}")
        with bar(progress) as report:
            paths = self.core.export(
                fspath(out), format, tokens_per_file=tokens_per_file, drop_loss_bits=drop_loss_bits, progress=report
            )
        return [Path(path) for path in paths]

    def __len__(self) -> int:
        return self.n_tokens

    def __getitem__(self, index: slice) -> npt.NDArray[np.uint32]:
        """The ids of a slice with step 1."""
        if not isinstance(index, slice):
            raise TypeError(f"expected a slice of the tokens, got {index!r}; hint: dataset[start:end]")
        start, stop, step = index.indices(self.n_tokens)
        if step != 1:
            raise ValueError(f"expected a slice with step 1, got step {step}; hint: slice the array that comes back")
        return self.read(start, max(stop - start, 0))

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, n_tokens={self.n_tokens}, n_documents={self.n_documents})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Dataset, (str(self.path),)


def _absolute(core: _core.Dataset) -> _core.Dataset:
    """The dataset by its absolute path: shards are opened when they are first read, perhaps from another folder."""
    path = Path(core.path)
    return core if path.is_absolute() else _core.Dataset(str(path.absolute()))


def check_call(tokenizer: object, out: AnyPath, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises TypeError for what is no tokenizer and for an option that is not known, ValueError for no folder."""
    check_tokenizer(tokenizer)
    if not fspath(out):
        raise ValueError("out must be a folder, got an empty text; hint: for the current folder write .")
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise TypeError(f"expected options of {', '.join(known)}, got {unknown[0]!r}")


def check_tokenizer(tokenizer: object) -> None:
    """Raises TypeError for what is no tokenizer, such as the path of its file."""
    if not isinstance(getattr(tokenizer, "core", None), _core.Tokenizer):
        hint = "hint: gptrs.Tokenizer.from_file(path) opens one"
        raise TypeError(f"expected a Tokenizer, got {tokenizer!r:.80}; {hint}")


def check_options(given: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError for an option of `prepare` that is not of its type or range, by its name."""
    loss_fields = given.get("loss_fields", ())
    if isinstance(loss_fields, str):
        raise TypeError(f"loss_fields must be a list of names, got {loss_fields!r}; hint: [{loss_fields!r}]")
    if not isinstance(loss_fields, Iterable):
        raise TypeError(f"loss_fields must be a list of names, got {loss_fields!r}; hint: leave it out for none")
    texts = [("text_field", given["text_field"]), *(("loss_fields", field) for field in loss_fields)]
    texts += [(name, text) for name in ("doc_separator", "errors", "source") if (text := given.get(name)) is not None]
    for name, text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be text, got {text!r}")
        if not _is_unicode(text):
            raise ValueError(f"{name} must be Unicode text, got {text!r} with a lone surrogate or an undecodable byte")
    for name in ("append_eot", "dedup"):
        if not isinstance(is_asked := given.get(name, False), bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {is_asked!r}")
    for name, least, most in (("shard_tokens", 1, 1 << 40), ("threads", 0, 1 << 16)):
        require(name, given[name], least, most)
    for name in ("min_document_bytes", "max_document_bytes"):
        if (n_bytes := given.get(name)) is not None:
            require(name, n_bytes, 1, (1 << 63) - 1)
    if not hasattr(weight := given.get("weight") or 0.0, "__float__"):
        raise TypeError(f"weight must be a number, got {weight!r}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require(name: str, value: int, least: int, most: int) -> None:
    """Raises TypeError unless `value` is a whole number, ValueError unless `least` <= `value` <= `most`."""
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least} to {most}, got {value}")
