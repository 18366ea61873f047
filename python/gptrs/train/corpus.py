"""What a run trains on: its text split, encoded and counted. Every step leaves whole files and takes what is there.

data.text ─hold out─▶ data/split.json ─▶ tokenizer.json ─▶ data/train, data/val (token shards)
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptrs import holdout
from gptrs.corpus import has_fields
from gptrs.dataset import Dataset, prepare
from gptrs.files import digest, write_atomic
from gptrs.holdout import Source
from gptrs.mixture import Mixture
from gptrs.model.loss import IGNORED
from gptrs.tokenizer import Tokenizer

_BLOCK = 1 << 22  # tokens counted at a time


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Corpus:
    """Tokenizer, training part and held-out part."""

    tokenizer: Tokenizer
    train: Dataset | Mixture
    val: Dataset
    sources: tuple[Source, ...]  # empty for prepared datasets
    counts: npt.NDArray[np.int64]  # (V,) how often each id occurs in val; where it has loss bits, is to be predicted

    @property
    def unigram_entropy(self) -> float:
        """Nats: the loss on val of a model that knows how often each token comes there, and nothing else."""
        return entropy(self.counts)

    def bits_per_byte(self, loss: float) -> float:
        """Returns a loss in nats for a token of val as bits for a byte of its text, without the first token; where val
        has loss bits, of the text that is to be predicted."""
        first_id = int(self.val.read(0, 1)[0])
        first = self.tokenizer.id_to_token(first_id) or b""
        if not self.val.has_loss_bits:
            return loss * (self.val.n_tokens - 1) / (n_text_bytes(self.val) - len(first)) / math.log(2)
        counts = self.counts.copy()
        counts[first_id] -= int(self.val.loss_bits(0, 1)[0])
        special = set(self.tokenizer.special_tokens.values())
        ids = [int(i) for i in np.flatnonzero(counts) if i not in special]
        n_bytes = sum(len(self.tokenizer.id_to_token(i) or b"") * int(counts[i]) for i in ids)
        return loss * int(counts.sum()) / n_bytes / math.log(2) if n_bytes else math.nan

    def frequent_words(self, n: int) -> list[int]:
        """Returns the ids of the `n` most frequent tokens of val, those that are whole words first."""
        ids = [int(i) for i in np.argsort(-self.counts, kind="stable") if self.counts[i]]

        def rank(token_id: int) -> int:
            word = (self.tokenizer.id_to_token(token_id) or b"").strip()
            return 0 if word.isalpha() and len(word) > 2 else 1 if word.isalpha() else 2

        return sorted(ids, key=rank)[:n]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a dataset in its order."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64


def from_text(
    text: tuple[str, ...],
    directory: Path,
    *,
    val_fraction: float,
    text_field: str,
    tokenizer_path: str | None,
    vocab_size: int,
    pattern: str,
    special_tokens: tuple[str, ...],
    threads: int,
) -> Corpus:
    """Returns the corpus of raw text, split, encoded and stored in a run directory; what is there already is taken.

    The tokenizer is trained on the training part alone.
    Raises: ValueError when a file has changed since the run began.
    """
    sources, train, val = _split(text, val_fraction, directory / "data")
    fields = [text_field if has_fields(part) else "text" for part in (train, val)]  # one part may be text alone
    path = directory / "tokenizer.json"
    if path.is_file():
        tokenizer = Tokenizer.from_file(path)
    else:
        if tokenizer_path:
            tokenizer = Tokenizer.from_file(tokenizer_path)
        else:
            tokenizer = Tokenizer.train(
                train,
                vocab_size,
                pattern=pattern,
                special_tokens=special_tokens,
                text_field=fields[0],
                threads=threads,
            )
        tokenizer.save(path)
    encoded = [
        prepare(files, tokenizer, directory / "data" / name, text_field=field, threads=threads)
        for name, files, field in zip(("train", "val"), (train, val), fields, strict=True)
    ]
    return _corpus(tokenizer, encoded[0], encoded[1], sources)


def from_datasets(train: Dataset | Mixture, val: str, tokenizer_path: str, directory: Path) -> Corpus:
    """Returns the corpus of prepared datasets and the tokenizer that made them.

    Raises: ValueError when another tokenizer made one of them.
    """
    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.save(directory / "tokenizer.json")
    held_out = Dataset(val)
    for dataset in (*_datasets(train), held_out):
        if dataset.tokenizer_digest != tokenizer.digest:
            expected = f"the tokenizer with digest {dataset.tokenizer_digest[:16]}… that made {dataset.path}"
            raise ValueError(
                f"expected {expected}, got {tokenizer.digest[:16]}… in {tokenizer_path}; hint: tokenizer.path=…"
            )
    return _corpus(tokenizer, train, held_out, ())


def made(directory: Path, train: Dataset | Mixture | None, val: str | None) -> Corpus:
    """Returns the corpus that another process of the run has made in its directory, without its sources.

    Args: train, val: prepared datasets, if the run was given some.
    """
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    data = directory / "data"
    return _corpus(tokenizer, train or Dataset(data / "train"), Dataset(val or data / "val"), ())


def rows(
    dataset: Dataset,
    *,
    seq_len: int,
    batch: int,
    device: torch.device,
    n_rows: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Rows]:
    """Yields every row of the dataset in order, so that each token but the first is a target once; or `n_rows` of them,
    evenly spread. Where loss bits say that a token is not to be predicted, the target is -100.

    What remains after the full rows comes as one shorter row. Of several ranks each takes every world_size-th batch;
    those that would have one less than others read their first again, with no target that counts.
    """
    n_full = (dataset.n_tokens - 1) // seq_len
    n_taken = n_full if n_rows is None else min(n_rows, n_full)
    starts = [i * n_full // n_taken * seq_len for i in range(n_taken)]
    pieces = [[(start, seq_len) for start in starts[first : first + batch]] for first in range(0, n_taken, batch)]
    rest = dataset.n_tokens - 1 - n_full * seq_len
    if rest and (n_rows is None or n_rows > n_full):
        pieces.append([(n_full * seq_len, rest)])
    for step in range(0, len(pieces), world_size):
        is_there = step + rank < len(pieces)
        piece = pieces[step + rank] if is_there else pieces[0]
        found = _rows(dataset, piece, device)
        yield found if is_there else Rows(found.tokens, torch.full_like(found.targets, IGNORED))


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Returns the entropy in nats of a distribution given by counts.

    Example: two equally frequent tokens have ln 2 = 0.693.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def n_text_bytes(data: Dataset | Mixture) -> int:
    """Returns the bytes of the text that datasets were made of."""
    return sum(int(shard["n_bytes"]) for dataset in _datasets(data) for shard in dataset.manifest["shards"])


def _datasets(data: Dataset | Mixture) -> tuple[Dataset, ...]:
    return (data,) if isinstance(data, Dataset) else tuple(data.sources.values())


def _corpus(tokenizer: Tokenizer, train: Dataset | Mixture, val: Dataset, sources: tuple[Source, ...]) -> Corpus:
    if val.n_tokens < 2:
        raise ValueError(f"expected two tokens or more to evaluate on in {val.path}, got {val.n_tokens}")
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for start in range(0, val.n_tokens, _BLOCK):
        n = min(_BLOCK, val.n_tokens - start)
        ids = val.read(start, n)
        counts += np.bincount(ids[val.loss_bits(start, n)] if val.has_loss_bits else ids, minlength=len(counts))
    if val.has_loss_bits and counts.sum() == val.loss_bits(0, 1)[0]:
        raise ValueError(f"expected tokens to be predicted in {val.path}, got loss bits of none but the first")
    return Corpus(tokenizer=tokenizer, train=train, val=val, sources=sources, counts=counts)


def _split(text: tuple[str, ...], fraction: float, out: Path) -> tuple[tuple[Source, ...], list[Path], list[Path]]:
    """Returns the sources and the files of both parts, from split.json or by making it."""
    out.mkdir(exist_ok=True)
    files = holdout.files_of(text)
    given = [{"path": str(file), "bytes": file.stat().st_size, "blake2b": digest(file)} for file in files]
    path = out / "split.json"
    if path.is_file():
        split = _read_split(path)
        if (changed := _first_difference(split["files"], given)) is not None:
            raise ValueError(
                f"expected the text that the run began with, got another {changed}; hint: --fresh starts anew"
            )
    else:
        parts = holdout.split(files, fraction, out)
        split = {"files": given, "train": [str(p) for p in parts[0]], "val": [str(p) for p in parts[1]]}
        write_atomic(path, (json.dumps(split, indent=1) + "\n").encode())
    is_cut = len(files) == 1
    if is_cut:  # the parts lie in the run directory, which may have been moved since
        split |= {part: [str(out / Path(p).name) for p in split[part]] for part in ("train", "val")}
    held_out = set(split["val"])
    sources = tuple(
        Source(
            path=f["path"], n_bytes=f["bytes"], part="both" if is_cut else "val" if f["path"] in held_out else "train"
        )
        for f in split["files"]
    )
    return sources, [Path(p) for p in split["train"]], [Path(p) for p in split["val"]]


def _read_split(path: Path) -> dict[str, Any]:
    try:
        split: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}; hint: --fresh starts anew") from error
    if not isinstance(split, dict) or not {"files", "train", "val"} <= split.keys():
        raise ValueError(f"{path}: expected files, train and val, got {split!r:.60}; hint: --fresh starts anew")
    return split


def _first_difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str | None:
    for old, new in zip(before, now, strict=False):
        if old != new:
            return str(new["path"])
    return None if len(before) == len(now) else f"number of files ({len(now)} instead of {len(before)})"


def _rows(dataset: Dataset, piece: list[tuple[int, int]], device: torch.device) -> Rows:
    ids = np.stack([dataset.read(start, length + 1) for start, length in piece]).astype(np.int64)  # (B, T + 1)
    targets = ids[:, 1:].copy()
    if dataset.has_loss_bits:
        bits = np.stack([dataset.loss_bits(start + 1, length) for start, length in piece])  # (B, T)
        targets[~bits] = IGNORED
    return Rows(torch.from_numpy(ids[:, :-1]).to(device), torch.from_numpy(targets).to(device))
