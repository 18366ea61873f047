"""Text to shards from files of each kind against encoding the same documents from memory.

Every round encodes the documents with `encode_batch`, then prepares a dataset of each kind of file, on two threads; the
share is that of the round's own encoding. Files are in the page cache, shards are written and synced. The ids in the
shards are those of `encode_batch`. Two corpora: 63 MB of prose, and 230 MB of prose, many scripts and source code. Both
sides of a share know the same of the text:

    own      a vocabulary trained on this very text; one tokenizer, which has seen all of it: encoding costs least
    gpt2     GPT-2's vocabulary; each call has a tokenizer of its own, just loaded: as a first call on new text

    python benches/bench_prepare.py
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from corpora import Corpora, cut, vocabulary
from harness import arguments, record, summary

import gptrs

THREADS = 2
VOCAB_SIZE = 50_257
CORPORA = {"prose": "bench_en", "prose, many scripts and code": "repeated_230"}
Make = Callable[[], gptrs.Tokenizer]


def main() -> None:
    options = arguments(__doc__).parse_args()
    for corpus, name in CORPORA.items():
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            text = Corpora(options.data, work).text(name)
            file = vocabulary(options.data, work, "gpt2") / "tokenizer.json"
            compare(corpus, text, file, options.rounds)


def compare(corpus: str, text: Path, gpt2: Path, n_rounds: int) -> None:
    work, documents = text.parent, [document.decode() for document in cut(text.read_bytes())]
    kinds = write(work, text, documents)
    trained = gptrs.Tokenizer.train([text], VOCAB_SIZE, progress=False)
    makes: dict[str, Make] = {"own": lambda: trained, "gpt2": lambda: gptrs.Tokenizer.from_file(gpt2)}
    for name, make in makes.items():
        rates = measure(make, documents, kinds, n_rounds, work / "out")
        for kind in kinds:
            fields = row(name, make().vocab_size, kind, rates)
            what = {"corpus": corpus, "mb": round(text.stat().st_size / 1e6, 1)}
            record("prepare", {**fields, **what}, packages=["pyarrow", "zstandard"])


def measure(
    make: Make, documents: list[str], kinds: dict[str, Path], n_rounds: int, out: Path
) -> dict[str, list[float]]:
    """MB/s of text in every round: of `encode_batch` under the name "encode", and of each kind."""
    n_mb = len("".join(documents).encode()) / 1e6
    tok = make()
    expected = [with_ends(encode(tok, texts)[1], tok) for texts in (documents, ["".join(documents)])]
    rates: dict[str, list[float]] = {kind: [] for kind in ("encode", *kinds)}
    for _ in range(n_rounds):
        rates["encode"].append(n_mb / encode(make(), documents)[0])
        for kind, path in kinds.items():
            seconds, tokens = prepare(make(), path, out)
            rates[kind].append(n_mb / seconds)
            assert np.array_equal(tokens, expected[kind == "txt"]), f"{kind}: the shards hold other ids"
    return rates


def row(name: str, vocab_size: int, kind: str, rates: dict[str, list[float]]) -> dict[str, object]:
    shares = [100 * rate / base for rate, base in zip(rates[kind], rates["encode"], strict=True)]
    return {"task": "files to shards", "engine": "gptrs", "input": kind, "vocabulary": name, "vocab_size": vocab_size,
            "threads": THREADS, "mb_per_s": summary(rates[kind], 1), "encode_mb_per_s": summary(rates["encode"], 1),
            "percent_of_encode": summary(shares, 1)}  # fmt: skip


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
    """The ids of all documents, each with the end-of-text id behind it, if there is one."""
    if tok.eot_id is None:
        return encoded.ids.astype(np.uint32)
    return np.insert(encoded.ids.astype(np.uint32), encoded.offsets[1:], tok.eot_id)


if __name__ == "__main__":
    main()
