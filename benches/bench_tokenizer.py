"""BPE training and encoding against gigatoken, fastokens, tokie, tiktoken, Hugging Face tokenizers and rustbpe.

Every engine runs in processes of its own, in turn (A B C, A B C, …), on the same bytes; results are compared first, and
an engine whose ids differ is shown as such. An engine that needs more than 15 s for a run is measured once.

    python benches/bench_tokenizer.py --data DIR                      # every row, some 20 minutes on 2 cores
    python benches/bench_tokenizer.py --only encode --vocabularies gpt2 --corpora bench_en --rounds 5
    python benches/bench_tokenizer.py --only worst --long             # worst cases up to 64 MB
    python benches/tokenizer_chart.py                                 # the picture of the newest rows
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from corpora import VOCABULARIES, Corpora, digest, vocabulary
from engines import ENCODERS, TRAINERS
from harness import arguments, child, record, summary

TASKS = Path(__file__).parent / "tokenizer_tasks.py"
VOCAB_SIZE = 50_257
SLOW_S = 15.0
CORPORA = ("bench_en", "code", "bench_multi")
PATTERNS = {"gpt2": "gpt2", "cl100k_base": "cl100k_base", "o200k_base": "o200k_base", "deepseek-v3": "deepseek-v3",
            "llama3": "cl100k_base", "qwen2": "cl100k_base", "nanochat": "cl100k_base"}  # fmt: skip
PEERS = ("gptrs", "gigatoken", "fastokens", "tokie", "tiktoken", "tokenizers")
Runs = dict[str, list[dict[str, Any]]]


class Bench:
    """The options of this run and the folder with what was laid out for it."""

    def __init__(self, options: Namespace, work: Path) -> None:
        self.options, self.work, self.corpora = options, work, Corpora(options.data, work)

    def vocabulary(self, name: str) -> str:
        return str(vocabulary(self.options.data, self.work, name))

    def interleaved(self, engines: Iterable[str], task: str, threads: int | None = None, **options: Any) -> Runs:
        """Runs the engines in turn; one that fails is left out of the following rounds, a slow one as well."""
        runs: Runs = {engine: [] for engine in engines}
        for n in range(self.options.rounds):
            for engine, of in runs.items():
                if n == 0 or (of and of[-1]["seconds"] < SLOW_S):
                    of.extend(self.once(engine, task, threads=threads, **options))
        return runs

    def once(self, engine: str, task: str, threads: int | None = None, **options: Any) -> list[dict[str, Any]]:
        """One run as a list of one; an engine that fails (not ours) says so and gives none."""
        given = json.dumps({"engine": engine, "threads": threads, **options})
        try:
            return [child(TASKS, task, given, threads=threads, timeout_s=600)]
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            if engine == "gptrs":
                raise
            reason = str(error).strip().splitlines()[-1][:300]
            record("tokenizer", {"task": task, "engine": engine, "failed": reason, **named(options)}, [engine])
            return []

    def out(self) -> str:
        """A new empty folder inside the work folder."""
        return tempfile.mkdtemp(dir=self.work)


def named(options: dict[str, Any]) -> dict[str, Any]:
    """The options that name files, as the names that rows have."""
    found = {}
    for key, name in (("text", "corpus"), ("documents", "corpus"), ("vocabulary", "vocabulary")):
        if key in options:
            found[name] = Path(options[key]).stem
    return found


def rows(task: str, runs: Runs, fields: dict[str, Any], same: Callable[[dict[str, Any]], bool] | None = None) -> None:
    """Records one row for each engine, with the ratio of its time for each byte to ours."""
    done = {engine: of for engine, of in runs.items() if of}
    per_byte = {
        engine: statistics.median(r["seconds"] / r.get("n_bytes", 1) for r in of) for engine, of in done.items()
    }
    for engine, of in done.items():
        assert len({r.get("digest") for r in of}) == 1, f"{engine} is not deterministic: {of}"
        row = {"task": task, "engine": engine, **fields, "seconds": summary([r["seconds"] for r in of], digits=9)}
        if "n_bytes" in of[0]:
            row |= {"n_bytes": of[0]["n_bytes"], "mb_per_s": round(1e-6 / per_byte[engine], 2)}
        for key in ("over_text_mb", "over_tokenizer_mb", "anonymous_mb", "peak_rss_mb"):
            if key in of[0]:
                row[key] = round(max(r[key] for r in of), 1)
        row["time_over_ours"] = round(per_byte[engine] / per_byte["gptrs"], 3)
        row["same_result"] = same is None or same(of[0])
        record("tokenizer", row, [ENCODERS[engine].package if engine in ENCODERS else engine])


def train(bench: Bench) -> None:
    """Training on files: prose, many scripts, 500 MB; ours alone at 200 and 2,000 MB."""
    fields = {"vocabulary": f"train {VOCAB_SIZE}", "threads": "all"}
    for name in bench.options.texts:
        alone = name.startswith("repeated")
        path = bench.corpora.text(name)
        runs = bench.interleaved(["gptrs"] if alone else TRAINERS, "train", text=str(path), vocab_size=VOCAB_SIZE)
        ours = runs["gptrs"][0]["digest"]
        if runs.get("rustbpe"):  # the same tie rule: the merges must be the same; the others' order differs
            assert ours == runs["rustbpe"][0]["digest"], "our merges differ from rustbpe's"
        whole = {"corpus": name, "corpus_sha256": digest(path), **fields}
        rows("train", runs, whole, lambda run, ours=ours: run["digest"] == ours)


def encode(bench: Bench) -> None:
    """Encoding with one thread, cold: every vocabulary on every corpus, ours also with its dispatch forced down."""
    for name in bench.options.vocabularies:
        for corpus in bench.options.corpora:
            path, folder = bench.corpora.documents(corpus), bench.vocabulary(name)
            can = [e for e in ENCODERS if ENCODERS[e].vocabularies is None or name in (ENCODERS[e].vocabularies or ())]
            runs = bench.interleaved(can, "encode", threads=1, vocabulary=folder, documents=str(path))
            fields = {"corpus": corpus, "vocabulary": name, "threads": 1, "corpus_sha256": digest(path)}
            rows("encode", runs, fields, same_ids(runs["gptrs"][0]))


def same_ids(ours: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether an engine gave our ids: all of them, or of the first documents when it was given no more."""
    return lambda run: run["digest"] == (ours["digest"] if run["n_bytes"] == ours["n_bytes"] else ours["head"])


def shards(bench: Bench) -> None:
    """Raw text to the ids of a vocabulary trained on it: shards for ours, one array on disk for the peers."""
    for corpus in bench.options.corpora:
        text, documents = bench.corpora.text(corpus), bench.corpora.documents(corpus)
        out = bench.out()
        runs: Runs = {engine: [] for engine in TRAINERS}
        for n in range(bench.options.rounds):
            for engine, of in runs.items():
                if n == 0 or (of and of[-1]["seconds"] < SLOW_S):
                    folder = tempfile.mkdtemp(dir=out)
                    paths = {"text": str(text), "documents": str(documents), "out": folder}
                    of += bench.once(engine, "shards", vocab_size=VOCAB_SIZE, **paths)
                    shutil.rmtree(folder)
        fields = {"corpus": corpus, "vocabulary": f"train {VOCAB_SIZE}", "threads": "all"}
        rows("train and encode", runs, fields)


def scale(bench: Bench) -> None:
    """Two threads against one, beside what two independent processes of one thread gain in the same rounds."""
    folder, path = bench.vocabulary("gpt2"), str(bench.corpora.documents("bench_en"))
    times: dict[str, list[float]] = {"one": [], "two": [], "processes": []}
    options = {"vocabulary": folder, "documents": path, "passes": 4}
    for _ in range(max(bench.options.rounds, 3)):
        for kind, threads in (("one", 1), ("two", 2)):
            given = json.dumps({**options, "threads": threads})
            times[kind].append(child(TASKS, "scale", given, threads=threads)["seconds"])
        times["processes"].append(together({**options, "threads": 1}))
    one, two, processes = (statistics.median(times[kind]) for kind in ("one", "two", "processes"))
    record("tokenizer", {
        "task": "two threads", "engine": "gptrs", "corpus": "bench_en", "vocabulary": "gpt2",
        "seconds": {kind: summary(of) for kind, of in times.items()}, "gain": round(one / two, 3),
        "gain_of_processes": round(2 * one / processes, 3), "share": round(one / two / (2 * one / processes), 3),
    })  # fmt: skip


def together(options: dict[str, Any]) -> float:
    """The mean time of two processes that do the same work at the same time, each on a core of its own."""
    start_at = time.time() + 10
    environment = dict(os.environ, RAYON_NUM_THREADS="1")
    running = []
    for core in (0, 1):
        given = json.dumps({**options, "start_at": start_at, "core": core})
        command = [sys.executable, str(TASKS), "scale", given]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outs = [process.communicate(timeout=600)[0] for process in running]
    return statistics.mean(json.loads(out.splitlines()[-1])["seconds"] for out in outs)


def small(bench: Bench) -> None:
    """`encode` of a short text."""
    runs = bench.interleaved(PEERS, "small", threads=1, vocabulary=bench.vocabulary("gpt2"), calls=10_000)
    ours = runs["gptrs"][0]["digest"]
    rows("small call", runs, {"vocabulary": "gpt2", "threads": 1}, lambda run: run["digest"] == ours)


def decode(bench: Bench) -> None:
    """Ids of 12 MB of text back to its bytes."""
    for name in ("gpt2", "o200k_base"):
        options = {"vocabulary": bench.vocabulary(name), "documents": str(bench.corpora.documents("bench_en"))}
        runs = bench.interleaved(("gptrs", "gigatoken", "tiktoken", "tokenizers"), "decode", threads=1, **options)
        rows("decode", runs, {"corpus": "bench_en", "vocabulary": name, "threads": 1}, lambda run: run["is_text"])


def load(bench: Bench) -> None:
    """From a file in the page cache to a usable tokenizer, ours with its check of every token."""
    for name in ("gpt2", "o200k_base"):
        runs = bench.interleaved(PEERS, "load", threads=None, vocabulary=bench.vocabulary(name))
        ours = runs["gptrs"][0]["digest"]
        rows("load", runs, {"vocabulary": name}, lambda run, ours=ours: run["digest"] == ours)


def worst(bench: Bench) -> None:
    """Texts that are one piece: 1 and 2 MB; with --long also 4 and 8, 16 and 32, 32 and 64."""
    sizes = [n * 1_000_000 for n in ((1, 4, 16, 32) if bench.options.long else (1,))]
    for pattern, name in PATTERNS.items():
        for n_bytes in sizes if name in bench.options.vocabularies else []:
            given = {"vocabulary": bench.vocabulary(name), "pattern": pattern, "n_bytes": n_bytes}
            cases = child(TASKS, "worst", json.dumps(given), threads=1)["cases"]
            slowest = max(cases, key=lambda case: cases[case]["seconds"])
            record("tokenizer", {
                "task": "worst case", "engine": "gptrs", "vocabulary": pattern, "n_bytes": n_bytes, "threads": 1,
                "slowest": slowest, "seconds": {"median": round(cases[slowest]["seconds"], 4)},
                "doubling": round(max(doubling(case) for case in cases.values()), 2),
                "cases": {case: [round(t["seconds"], 4), round(t["twice"], 4)] for case, t in cases.items()},
            })  # fmt: skip


def doubling(case: dict[str, float]) -> float:
    """How many times longer a text of twice the length takes; below 2 ms the clock and the caches decide, not we."""
    return case["twice"] / case["seconds"] if case["twice"] > 0.002 else 0.0


def memory(bench: Bench) -> None:
    """1,000 MB of files to shards."""
    path = bench.corpora.text("repeated_1000")
    out = bench.out()
    options = {"vocabulary": bench.vocabulary("gpt2"), "text": str(path), "out": out}
    runs = {"gptrs": bench.once("gptrs", "memory", **options)}
    rows("encode files to shards", runs, {"corpus": path.stem, "vocabulary": "gpt2", "threads": "all"})
    shutil.rmtree(out)


PARTS: dict[str, Callable[[Bench], None]] = {
    "train": train, "encode": encode, "shards": shards, "scale": scale, "small": small,
    "decode": decode, "load": load, "worst": worst, "memory": memory,
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    texts = ["bench_en", "bench_multi", "mixed", "repeated_200", "repeated_2000"]
    parser.set_defaults(rounds=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts (default: all)")
    parser.add_argument("--vocabularies", choices=VOCABULARIES, nargs="+", default=list(VOCABULARIES))
    parser.add_argument("--corpora", choices=CORPORA, nargs="+", default=list(CORPORA), help="texts to encode")
    parser.add_argument("--texts", nargs="+", default=texts, help=f"texts to train on (default: {' '.join(texts)})")
    parser.add_argument("--work", type=Path, help="keep the texts in this folder (default: a temporary one, 4 GB)")
    parser.add_argument("--long", action="store_true", help="worst cases up to 64 MB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for part in options.only:
            started = time.time()
            PARTS[part](Bench(options, work))
            print(f"{part}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
