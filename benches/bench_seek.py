"""Time and memory from nothing to a batch anywhere in a trillion tokens.

The dataset is sparse: a shard of zeros under many names (rust/gptrs-core/tests/fixtures/sparse.rs), so that every size
fits everywhere; digests are compared as always. Each round is a fresh process: opening the dataset, then loader, state
and first batch, then batches far apart. Seconds are those of the process, its interpreter's start excepted.

    python benches/bench_seek.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import ROOT, arguments, child, record, summary

B, T = 32, 1024
SHAPES = ((15, 2**36), (7_451, 2**27))  # shards, tokens of each: a trillion


def main() -> None:
    options = arguments(__doc__).parse_args()
    for n_shards, shard_tokens in SHAPES:
        with tempfile.TemporaryDirectory() as work:
            command = ["cargo", "run", "--quiet", "-p", "gptrs-core", "--example", "sparse_dataset", "--"]
            subprocess.run([*command, work, str(n_shards), str(shard_tokens)], cwd=ROOT, check=True)
            rounds = [child(__file__, "measure", work) for _ in range(options.rounds)]
        task = f"a batch anywhere in a trillion tokens, {n_shards:,} shards"
        row: dict[str, Any] = {"task": task, "engine": "gptrs", "B": B, "T": T}
        row |= {"shards": n_shards, "tokens": n_shards * shard_tokens}
        for name in rounds[0]:
            row[name] = summary([each[name] for each in rounds], 2)
        record("seek", row)


def measure(folder: str) -> dict[str, float]:
    """Milliseconds and megabytes of each step in this process."""
    import gptrs

    with gptrs.Loader(tiny(), seq_len=8, global_batch=1, device="numpy") as warm:
        next(warm)  # imports and threads are not what is measured
    memory, anonymous = resident_mb("VmRSS"), resident_mb("RssAnon")
    figures: dict[str, float] = {}
    start = time.perf_counter()
    dataset = gptrs.Dataset(folder)
    figures["open_ms"] = 1e3 * (time.perf_counter() - start)
    start = time.perf_counter()
    loader = gptrs.Loader(dataset, seq_len=T, global_batch=B, seed=1, device="numpy")
    state = loader.state_dict() | {"next_sample": B * 1_000_003}
    loader.load_state_dict(state)
    batch = next(loader)
    figures["state_to_first_batch_ms"] = 1e3 * (time.perf_counter() - start)
    assert batch.tokens.shape == (B, T) and not batch.tokens.any()
    time.sleep(0.2)  # the thread fills the whole ring
    figures["memory_growth_mb"] = resident_mb("VmRSS") - memory
    start = time.perf_counter()
    for k in range(100):
        shown = loader.batch_at(k * 9_999_991)
        assert not shown.targets.any()
    figures["batch_at_ms"] = 1e3 * (time.perf_counter() - start) / 100
    # Pages of mapped shards belong to the page cache, which takes them back when it wants.
    figures["anonymous_growth_mb"] = resident_mb("RssAnon") - anonymous
    loader.close()
    return figures


def tiny() -> Any:
    """A dataset of a few tokens."""
    import gptrs

    work = Path(tempfile.mkdtemp())
    (work / "a.txt").write_text("some words " * 20)
    tok = gptrs.Tokenizer.train_from_iterator(["a"], vocab_size=256, special_tokens=[], progress=False)
    return gptrs.prepare(work / "a.txt", tok, work / "data", progress=False)


def resident_mb(kind: str) -> float:
    """Memory of this process now, in MB: all of it, or what no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(kind))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
