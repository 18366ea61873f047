"""Text to shards from files of each kind against encoding the same documents from memory.

Every round encodes the documents with `encode_batch`, then prepares a dataset of each kind of file, on two threads; the
share is that of the round's own encoding. Files are in the page cache, shards are written and synced. The ids in the
shards are those of `encode_batch`.

    python benches/bench_prepare.py
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from corpora import Corpora, cut
from harness import arguments, record, summary

import gptrs

THREADS = 2
VOCAB_SIZE = 50_257


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = Corpora(options.data, work).text("bench_en")
        tok = gptrs.Tokenizer.train([text], VOCAB_SIZE, progress=False)
        documents = [document.decode() for document in cut(text.read_bytes())]
        kinds = write(work, text, documents)
        expected = [with_ends(encode(tok, texts)[1], tok) for texts in (documents, ["".join(documents)])]
        n_mb = text.stat().st_size / 1e6
        rates: dict[str, list[float]] = {kind: [] for kind in ("encode", *kinds)}
        for _ in range(options.rounds):
            seconds, _ = encode(tok, documents)
            rates["encode"].append(n_mb / seconds)
            for kind, path in kinds.items():
                seconds, tokens = prepare(tok, path, work / "out")
                rates[kind].append(n_mb / seconds)
                assert np.array_equal(tokens, expected[kind == "txt"]), f"{kind}: the shards hold other ids"
        for kind, values in rates.items():
            shares = [100 * value / base for value, base in zip(values, rates["encode"], strict=True)]
            row = {"task": "text to shards", "input": kind, "threads": THREADS, "vocab_size": VOCAB_SIZE,
                   "mb": round(n_mb, 1), "mb_per_s": summary(values, 1),
                   "percent_of_encode": summary(shares, 1)}  # fmt: skip
            record("prepare", row, packages=["pyarrow", "zstandard"])


def write(work: Path, text: Path, documents: list[str]) -> dict[str, Path]:
    """The same text as one .txt file, as lines, as compressed lines and as rows."""
    lines = "".join(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents).encode()
    paths = {kind: work / f"documents.{kind}" for kind in ("jsonl", "jsonl.zst", "parquet")}
    paths["jsonl"].write_bytes(lines)
    paths["jsonl.zst"].write_bytes(zstandard.compress(lines, 3))
    pq.write_table(pa.table({"text": documents}), paths["parquet"], compression="zstd", row_group_size=1000)
    return {"txt": text, **paths}


def encode(tok: gptrs.Tokenizer, documents: list[str]) -> tuple[float, gptrs.Encoded]:
    start = time.perf_counter()
    encoded = tok.encode_batch(documents, threads=THREADS)
    return time.perf_counter() - start, encoded


def prepare(tok: gptrs.Tokenizer, path: Path, out: Path) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    dataset = gptrs.prepare(path, tok, out, threads=THREADS, progress=False)
    seconds = time.perf_counter() - start
    tokens = dataset[:]
    shutil.rmtree(out)
    return seconds, tokens


def with_ends(encoded: gptrs.Encoded, tok: gptrs.Tokenizer) -> np.ndarray:
    """The ids of all documents, each with the end-of-text id behind it."""
    return np.insert(encoded.ids.astype(np.uint32), encoded.offsets[1:], tok.eot_id)


if __name__ == "__main__":
    main()
