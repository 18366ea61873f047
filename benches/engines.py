"""Every engine in the mode that its documentation shows for much text: how to load it, encode with it, train with it.

An encoder is three functions: `load` makes a tokenizer (not timed with encoding), `form` brings documents into the form
the engine takes (never timed), `encode` is timed, `ids` flattens what it gave (not timed).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpora import SEPARATOR, TIKTOKEN_PATTERNS

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Engines below some 20 MB/s get the first documents only: their speed does not change with the length.
SLOW_BYTES = 3_000_000


@dataclass(frozen=True)
class Encoder:
    """One engine; `package` is the distribution whose version a row names."""

    package: str
    load: Callable[[Path, str], Any]  # folder of a vocabulary and its name
    form: Callable[[list[bytes], Path], Any]  # documents, and the file that holds them all with separators
    encode: Callable[[Any, Any, int], Any]  # tokenizer, formed documents, threads
    ids: Callable[[Any], Any]
    mode: str
    is_slow: bool = False
    vocabularies: tuple[str, ...] | None = None  # None: all of them


def _as_text(documents: list[bytes], _: Path) -> list[str]:
    return [document.decode() for document in documents]


def _gptrs(simd: str | None = None) -> Encoder:
    def load(folder: Path, name: str) -> Any:
        import gptrs

        tok = gptrs.Tokenizer.from_file(folder / f"{name}.tiktoken", pattern=name)
        return tok if simd is None else gptrs.Tokenizer(tok.core.with_simd(simd))

    def encode(tok: Any, documents: list[bytes], threads: int) -> Any:
        return tok.encode_batch(documents, threads=threads)

    return Encoder("gptrs", load, lambda documents, _: documents, encode, lambda batch: batch.ids,
                   "encode_batch of bytes" + (f", dispatch forced to {simd}" if simd else ""))  # fmt: skip


def _gigatoken() -> Encoder:
    def load(folder: Path, _: str) -> Any:
        import gigatoken

        return gigatoken.Tokenizer(str(folder / "tokenizer.json"))

    def form(_: list[bytes], path: Path) -> Any:
        import gigatoken

        return gigatoken.TextFileSource([str(path)], separator=SEPARATOR)

    def encode(tok: Any, source: Any, threads: int) -> Any:
        return tok.encode_files(source, parallel=threads != 1)

    def ids(rows: Any) -> Any:
        import awkward

        return awkward.to_numpy(awkward.flatten(rows))

    return Encoder("gigatoken", load, form, encode, ids, "encode_files of a TextFileSource with separator")


def _fastokens() -> Encoder:
    def load(folder: Path, _: str) -> Any:
        import fastokens

        return fastokens.Tokenizer.from_file(str(folder / "tokenizer.json"))

    return Encoder("fastokens", load, _as_text, lambda tok, texts, _: tok.encode_batch_flat(texts),
                   lambda pair: np.frombuffer(pair[0], np.uint32), "encode_batch_flat of str")  # fmt: skip


def _tokie() -> Encoder:
    def load(folder: Path, _: str) -> Any:
        import tokie

        return tokie.Tokenizer.from_json(str(folder / "tokenizer.json"))

    return Encoder("tokie", load, lambda _, path: path, lambda tok, path, _: tok.encode_files([str(path)], SEPARATOR),
                   lambda pair: pair[0], "encode_files with separator")  # fmt: skip


def _tiktoken() -> Encoder:
    def load(folder: Path, name: str) -> Any:
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        ranks = load_tiktoken_bpe(str(folder / f"{name}.tiktoken"))
        pattern = TIKTOKEN_PATTERNS[name]
        return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(encoding: Any, texts: list[str], threads: int) -> Any:
        if threads == 1:
            return [encoding.encode_ordinary(text) for text in texts]
        return encoding.encode_ordinary_batch(texts, num_threads=threads)

    return Encoder("tiktoken", load, _as_text, encode, _joined, "encode_ordinary of str", is_slow=True,
                   vocabularies=tuple(TIKTOKEN_PATTERNS))  # fmt: skip


def _tokenizers() -> Encoder:
    def load(folder: Path, _: str) -> Any:
        import tokenizers

        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(tok: Any, texts: list[str], _: int) -> Any:
        return tok.encode_batch_fast(texts, add_special_tokens=False)

    return Encoder("tokenizers", load, _as_text, encode, lambda rows: _joined([row.ids for row in rows]),
                   "encode_batch_fast of str", is_slow=True)  # fmt: skip


def _joined(rows: list[list[int]]) -> Any:
    return np.concatenate([np.array(row, dtype=np.uint32) for row in rows])


ENCODERS = {
    "gptrs": _gptrs(),
    "gigatoken": _gigatoken(),
    "fastokens": _fastokens(),
    "tokie": _tokie(),
    "tiktoken": _tiktoken(),
    "tokenizers": _tokenizers(),
    "gptrs avx2": _gptrs("avx2"),
    "gptrs scalar": _gptrs("scalar"),
}


# ── training ──


@dataclass(frozen=True)
class Trained:
    """What a trainer gave: its tokens from id 256 on, in order, and the object to go on with."""

    tokens: Callable[[], list[bytes]]
    tokenizer: Any


def train_gptrs(path: Path, vocab_size: int) -> Trained:
    import gptrs

    tok = gptrs.Tokenizer.train([path], vocab_size=vocab_size, pattern="gpt2", special_tokens=[], progress=False)
    return Trained(lambda: [tok.id_to_token(i) or b"" for i in range(256, vocab_size)], tok)


def train_rustbpe(path: Path, vocab_size: int) -> Trained:
    import rustbpe

    tok = rustbpe.Tokenizer()
    tok.train_from_iterator(iter([path.read_bytes().decode()]), vocab_size, pattern=GPT2_PATTERN)

    def tokens() -> list[bytes]:
        ranks = sorted(tok.get_mergeable_ranks(), key=lambda item: item[1])
        return [bytes(token) for token, _ in ranks][256:]

    return Trained(tokens, tok)


def train_gigatoken(path: Path, vocab_size: int) -> Trained:
    import gigatoken

    vocab, merges = gigatoken.train_bpe(str(path), vocab_size, [], tie_breaking="raw_token_ids")
    assert len(vocab) == vocab_size
    return Trained(lambda: [left + right for left, right in merges], vocab)


def train_tokenizers(path: Path, vocab_size: int) -> Trained:
    import tokenizers

    tok = tokenizers.ByteLevelBPETokenizer()
    tok.train([str(path)], vocab_size=vocab_size, min_frequency=0, show_progress=False)
    assert tok.get_vocab_size() == vocab_size
    return Trained(lambda: [tok.id_to_token(i).encode() for i in range(256, vocab_size)], tok)


TRAINERS: dict[str, Callable[[Path, int], Trained]] = {
    "gptrs": train_gptrs,
    "gigatoken": train_gigatoken,
    "rustbpe": train_rustbpe,
    "tokenizers": train_tokenizers,
}
