"""BPE training and encoding against gigatoken, rustbpe, tiktoken and Hugging Face tokenizers.

Every engine runs in a process of its own, in turn (A B C, A B C, …), on the same bytes; results are compared first.
Training uses all cores, encoding one thread, cold: a new tokenizer, one pass, construction not timed.

    python benches/bench_tokenizer.py --data DIR              # all rows
    python benches/bench_tokenizer.py --only encode --rounds 3
"""

import gzip
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, child, peak_rss_mb, record, summary

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
VOCAB_SIZE = 50_257
TRAINERS = ["gptrs", "gigatoken", "rustbpe", "tokenizers"]
ENCODERS = ["gptrs", "tiktoken", "gigatoken"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=["train", "encode"], help="one half of the rows")
    parser.add_argument("--child", nargs=3, metavar=("TASK", "ENGINE", "WORK"), help="measure one engine (internal)")
    options = parser.parse_args()
    if options.child:
        task, engine, work = options.child
        result = {"train": run_train, "encode": run_encode}[task](engine, Path(work))
        print(json.dumps({**result, "peak_rss_mb": round(peak_rss_mb(), 1)}))
        return
    with tempfile.TemporaryDirectory() as work:
        unpack(options.data, Path(work))
        if options.only != "encode":
            compare("train", TRAINERS, Path(work), options.rounds, threads=None)
        if options.only != "train":
            compare("encode", ENCODERS, Path(work), options.rounds, threads=1)


def compare(task: str, engines: list[str], work: Path, rounds: int, threads: int | None) -> None:
    """Runs the engines in turn and records their medians and the ratio to ours."""
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            runs[engine].append(child(__file__, "--child", task, engine, str(work), threads=threads))
    n_bytes = (work / "bench_en.txt").stat().st_size
    ours = summary([run["seconds"] for run in runs["gptrs"]])["median"]
    digests = {engine: {run["digest"] for run in of} for engine, of in runs.items()}
    assert all(len(of) == 1 for of in digests.values()), f"an engine is not deterministic: {digests}"
    if task == "train":  # the same tie rule: the merges must be the same; Hugging Face's and gigatoken's order differ
        assert digests["gptrs"] == digests["rustbpe"], "our merges differ from rustbpe's"
    for engine, of in runs.items():
        seconds = summary([run["seconds"] for run in of])
        record("tokenizer", {
            "task": task, "engine": engine, "corpus": "bench_en.txt", "n_bytes": n_bytes,
            "threads": threads or "all", "vocabulary": f"train {VOCAB_SIZE}" if task == "train" else "gpt2",
            "seconds": seconds, "mb_per_s": round(n_bytes / 1e6 / seconds["median"], 2),
            "time_over_ours": round(seconds["median"] / ours, 2), "same_result": digests[engine] == digests["gptrs"],
            "peak_rss_mb": max(run["peak_rss_mb"] for run in of),
        }, packages=[engine])  # fmt: skip


def run_train(engine: str, work: Path) -> dict[str, Any]:
    """Trains on the file (or its text, where the engine takes no file) and digests the tokens in id order."""
    path = work / "bench_en.txt"
    start = time.perf_counter()
    if engine == "gptrs":
        import gptrs

        tok = gptrs.Tokenizer.train([path], vocab_size=VOCAB_SIZE, pattern="gpt2", special_tokens=[], progress=False)
        seconds = time.perf_counter() - start
        tokens = [tok.id_to_token(i) for i in range(256, VOCAB_SIZE)]
    elif engine == "rustbpe":
        import rustbpe

        tok = rustbpe.Tokenizer()
        tok.train_from_iterator(iter([path.read_bytes().decode()]), VOCAB_SIZE, pattern=GPT2_PATTERN)
        seconds = time.perf_counter() - start
        tokens = [bytes(t) for t, _ in sorted(tok.get_mergeable_ranks(), key=lambda item: item[1])][256:]
    elif engine == "gigatoken":
        import gigatoken

        vocab, merges = gigatoken.train_bpe(str(path), VOCAB_SIZE, [], tie_breaking="raw_token_ids")
        seconds = time.perf_counter() - start
        assert len(vocab) == VOCAB_SIZE
        tokens = [left + right for left, right in merges]
    else:
        import tokenizers

        tok = tokenizers.ByteLevelBPETokenizer()
        tok.train([str(path)], vocab_size=VOCAB_SIZE, min_frequency=0, show_progress=False)
        seconds = time.perf_counter() - start
        assert tok.get_vocab_size() == VOCAB_SIZE
        tokens = [tok.id_to_token(i).encode() for i in range(256, VOCAB_SIZE)]
    digest = hashlib.sha256(b"".join(len(t).to_bytes(4, "little") + t for t in tokens)).hexdigest()
    return {"seconds": seconds, "digest": digest}


def run_encode(engine: str, work: Path) -> dict[str, Any]:
    """Encodes the corpus as documents of about 8 kB with GPT-2's vocabulary and digests the flat uint32 ids."""
    documents = cut((work / "bench_en.txt").read_bytes().decode())
    if engine == "gptrs":
        import gptrs

        tok = gptrs.Tokenizer.from_file(work / "tokenizer.json")
        raw = [d.encode() for d in documents]
        start = time.perf_counter()
        ids = tok.encode_batch(raw, threads=1).ids
        seconds = time.perf_counter() - start
    elif engine == "tiktoken":
        import tiktoken
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        ranks = data_gym_to_mergeable_bpe_ranks(str(work / "vocab.bpe"), str(work / "encoder.json"))
        encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
        start = time.perf_counter()
        lists = [encoding.encode_ordinary(d) for d in documents]
        seconds = time.perf_counter() - start
        ids = np.concatenate([np.array(ids, dtype=np.uint32) for ids in lists])
    else:
        import gigatoken

        tok = gigatoken.Tokenizer(str(work / "tokenizer.json"))
        raw = [d.encode() for d in documents]
        start = time.perf_counter()
        rows = tok.encode_batch(raw, parallel=False)
        seconds = time.perf_counter() - start
        import awkward

        ids = awkward.to_numpy(awkward.flatten(rows))
    return {"seconds": seconds, "digest": hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest()}


def cut(text: str, n_chars: int = 8_000) -> list[str]:
    """`text` as documents of about `n_chars`, cut behind a line end."""
    documents, start = [], 0
    while start < len(text):
        end = text.find("\n", start + n_chars)
        end = len(text) if end < 0 else end + 1
        documents.append(text[start:end])
        start = end
    return documents


def unpack(data: Path, work: Path) -> None:
    """Lays the corpus and GPT-2's vocabulary, also as a tokenizer.json written by Hugging Face, into `work`."""
    import tokenizers
    import zstandard

    packed = data / "bench_en.txt.zst"
    if not packed.exists():
        raise SystemExit(f"expected the corpus at {packed}; hint: pass --data DIR or set GPTRS_TEST_DATA")
    with packed.open("rb") as source, (work / "bench_en.txt").open("wb") as out:
        zstandard.ZstdDecompressor().copy_stream(source, out)
    for name, target in {"gpt2_vocab.bpe.gz": "vocab.bpe", "gpt2_encoder.json.gz": "encoder.json"}.items():
        (work / target).write_bytes(gzip.decompress((data / name).read_bytes()))
    (work / "merges.txt").write_bytes((work / "vocab.bpe").read_bytes())
    gpt2 = tokenizers.ByteLevelBPETokenizer(str(work / "encoder.json"), str(work / "merges.txt"))
    gpt2.save(str(work / "tokenizer.json"))


if __name__ == "__main__":
    main()
