"""Batches per second against nanoGPT's way, torch's DataLoader, grain and litdata, and the time a consumer waits.

All read random rows of the same tokens in the page cache, on one core, and deliver contiguous int64 tokens and targets,
B = 32, T = 1,024. Ours includes its prefetch thread on that same core. What a gather of rows takes against a memcpy of
the same bytes is measured by the core's own benchmark, which this one runs (cargo bench -p gptrs-core --bench loader).

    python benches/bench_loader.py
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import litdata
import numpy as np
import torch
from harness import ROOT, arguments, record, summary

import gptrs

B, T = 32, 1024
N_TOKENS = 128 * 2**20
N_BATCHES = 400
Batch = tuple[torch.Tensor, torch.Tensor]


PACKAGES = ["torch", "grain", "litdata"]


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        dataset, tokens = random_dataset(Path(work))
        check(dataset, tokens)
        chunks = litdata_chunks(Path(work), tokens)
        sources: dict[str, Callable[[], Iterator[Batch]]] = {
            "gptrs": lambda: ours(dataset),
            "np.memmap (nanoGPT's way)": lambda: memmap_batches(tokens),
            "torch DataLoader": lambda: data_loader(tokens),
            "torch DataLoader, whole batches": lambda: batched_data_loader(tokens),
            "grain": lambda: grain_batches(tokens),
            "litdata TokensLoader": lambda: litdata_batches(chunks),
        }
        known = {row.tobytes() for row in np.asarray(memmap(tokens))[: N_TOKENS // T * T].reshape(-1, T)}
        for name, make in sources.items():
            check_batches(name, make(), known if "nanoGPT" not in name and "litdata" not in name else None)
        all_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(all_cores)})
        rates: dict[str, list[float]] = {name: [] for name in [*sources, "gptrs, uint16 rows"]}
        for _ in range(options.rounds):
            for name, make in sources.items():
                rates[name].append(tokens_per_s(make()))
            rates["gptrs, uint16 rows"].append(uint16_tokens_per_s(dataset))
        for name, values in rates.items():
            what = "uint16 rows" if "uint16" in name else "int64 tokens and targets"
            row = {
                "task": f"delivered {what}",
                "engine": name.removesuffix(", uint16 rows"),
                "B": B,
                "T": T,
                "cores": 1,
            }
            record("loader", {**row, "m_tokens_per_s": summary([v / 1e6 for v in values], 2)}, PACKAGES)
        os.sched_setaffinity(0, all_cores)
        shares = [blocked_share(dataset, 5e6) for _ in range(options.rounds)]
        record("loader", {"task": "time blocked in next() at a consumer of 5 M tokens/s", "engine": "gptrs", "B": B,
                          "T": T, "percent": summary([100 * s for s in shares])}, PACKAGES)  # fmt: skip
        for device, what in (("cpu", "tensors"), ("numpy", "arrays")):
            task = f"next() of {what}, 10,000 calls 1 ms apart"
            record("loader", {"task": task, "engine": "gptrs", "B": B, "T": T, "device": device,
                              "us": latency_us(dataset, device)}, PACKAGES)  # fmt: skip
    for row in core_rows("loader"):
        name, rate = row["bench"], {"median": row["million_per_s"], "min": row["low"], "max": row["high"]}
        engine = {"gather": "gptrs", "memcpy": "memcpy"}.get(name.split()[0], "gptrs core")
        if engine != "gptrs core":
            name = f"random rows of {name.split()[-1]} uint16, gathered from the page cache, one core"
        record("loader", {"task": name, "engine": engine, "m_tokens_per_s": rate})


def core_rows(bench: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows of one of the core's own benchmarks."""
    command = ["cargo", "bench", "--quiet", "-p", "gptrs-core", "--bench", bench, "--", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def random_dataset(work: Path) -> tuple[gptrs.Dataset, Path]:
    """A dataset of random letters and spaces, one id each, and the path of the shard that holds them at byte 4096."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", dtype=np.uint8)
    (work / "random.txt").write_bytes(letters[rng.integers(0, 32, N_TOKENS)].tobytes())
    tok = gptrs.Tokenizer.train_from_iterator(["a"], vocab_size=256, special_tokens=[], progress=False)
    dataset = gptrs.prepare([work / "random.txt"], tok, work / "data", progress=False)
    (shard,) = (work / "data").glob("*.gts")
    return dataset, shard


def memmap(shard: Path) -> np.ndarray:
    return np.memmap(shard, "<u2", "r", offset=4096, shape=(N_TOKENS,))


def check(dataset: gptrs.Dataset, shard: Path) -> None:
    """Every delivered row stands in the file, targets are one further, and one epoch visits every row once."""
    rows = np.asarray(memmap(shard)[: dataset.n_rows(T) * T]).reshape(-1, T)
    known = {row.tobytes() for row in rows}
    assert len(known) == len(rows)
    seen = set()
    loader = gptrs.Loader(dataset, seq_len=T, global_batch=B, seed=1, device="numpy")
    for _, batch in zip(range(dataset.n_rows(T) // B), loader, strict=False):
        assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
        seen.update(row.astype("<u2").tobytes() for row in batch.tokens)
    assert seen <= known, "a delivered row is not in the file"
    assert len(seen) == dataset.n_rows(T) // B * B, "a row came twice"


def check_batches(name: str, batches: Iterator[Batch], known: set[bytes] | None) -> None:
    """Targets are the tokens behind, and where rows begin at multiples of T each is in the file and comes once."""
    seen = set()
    for _, (tokens, targets) in zip(range(50), batches, strict=False):
        assert tokens.shape == targets.shape == (B, T), name
        assert torch.equal(tokens[:, 1:], targets[:, :-1]), name
        seen.update(row.astype("<u2").tobytes() for row in tokens.numpy())
    assert len(seen) == 50 * B, f"{name}: a row came twice"
    assert known is None or seen <= known, f"{name}: a delivered row is not in the file"


def ours(dataset: gptrs.Dataset) -> Iterator[Batch]:
    with gptrs.Loader(dataset, seq_len=T, global_batch=B, seed=int(time.time()), device="cpu") as loader:
        for batch in loader:
            yield batch.tokens, batch.targets


def memmap_batches(shard: Path) -> Iterator[Batch]:
    """Random windows of a memory map, opened for every batch as nanoGPT documents against its memory growth."""
    while True:
        data = memmap(shard)
        starts = torch.randint(N_TOKENS - T - 1, (B,)).tolist()
        tokens = torch.stack([torch.from_numpy(data[s : s + T].astype(np.int64)) for s in starts])
        targets = torch.stack([torch.from_numpy(data[s + 1 : s + T + 1].astype(np.int64)) for s in starts])
        yield tokens, targets


class Windows(torch.utils.data.Dataset[Batch]):
    """Rows of a memory map as a map-style dataset."""

    def __init__(self, shard: Path) -> None:
        self.data = memmap(shard)

    def __len__(self) -> int:
        return (N_TOKENS - 1) // T

    def __getitem__(self, row: int) -> Batch:
        window = torch.from_numpy(self.data[row * T : row * T + T + 1].astype(np.int64))
        return window[:-1], window[1:]


def data_loader(shard: Path) -> Iterator[Batch]:
    while True:
        yield from torch.utils.data.DataLoader(Windows(shard), batch_size=B, shuffle=True, num_workers=0)


class WholeBatches(Windows):
    """The same rows, many at a time: a sampler of batches makes torch ask for a whole one."""

    def __getitem__(self, rows: list[int]) -> Batch:  # type: ignore[override]
        at = np.asarray(rows)[:, None] * T + np.arange(T + 1)
        windows = torch.from_numpy(self.data[at].astype(np.int64))  # (B, T+1)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def batched_data_loader(shard: Path) -> Iterator[Batch]:
    dataset = WholeBatches(shard)
    while True:
        sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(dataset), B, drop_last=True)
        yield from torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=0)


class Rows:
    """Rows of a memory map as grain's random access source."""

    def __init__(self, shard: Path) -> None:
        self.data = memmap(shard)

    def __len__(self) -> int:
        return (N_TOKENS - 1) // T

    def __getitem__(self, row: int) -> np.ndarray:
        return self.data[row * T : row * T + T + 1]


def grain_batches(shard: Path) -> Iterator[Batch]:
    """Stacked as stored, then widened once a batch; no threads, as all have one core."""
    rows = grain.MapDataset.source(Rows(shard)).seed(int(time.time()) % 2**31).shuffle().repeat()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    for batch in rows.to_iter_dataset(options).batch(B, drop_remainder=True):
        wide = torch.from_numpy(batch.astype(np.int64))  # (B, T+1)
        yield wide[:, :-1].contiguous(), wide[:, 1:].contiguous()


def litdata_chunks(work: Path, shard: Path) -> Path:
    """The same tokens in litdata's chunks, blocks of T + 1 as its documentation cuts them."""
    folder = work / "litdata"
    cache = litdata.streaming.cache.Cache(
        str(folder), chunk_bytes=1 << 26, item_loader=litdata.streaming.item_loader.TokensLoader()
    )
    data, step = np.asarray(memmap(shard)), (T + 1) * 1024
    for i, start in enumerate(range(0, N_TOKENS - step, step)):
        cache[i] = data[start : start + step]
    cache.done()
    cache.merge()
    return folder


def litdata_batches(folder: Path) -> Iterator[Batch]:
    loader = litdata.streaming.item_loader.TokensLoader(block_size=T + 1)
    seed = int(time.time()) % 2**31
    rows = litdata.StreamingDataset(str(folder), item_loader=loader, shuffle=True, drop_last=True, seed=seed)
    while True:
        for batch in litdata.StreamingDataLoader(rows, batch_size=B, num_workers=0, drop_last=True):
            wide = batch.to(torch.int64)  # (B, T+1)
            yield wide[:, :-1].contiguous(), wide[:, 1:].contiguous()


def uint16_tokens_per_s(dataset: gptrs.Dataset) -> float:
    """Rows as they are stored, through the same thread: what crosses the bus to a GPU."""
    with gptrs.Loader(dataset, seq_len=T, global_batch=B, seed=int(time.time()), device="numpy") as loader:
        ring, arrays = loader.core.ring(0), [np.empty((B, T + 1), np.uint16) for _ in range(8)]
        for array in arrays:
            ring.submit(array)
        start = time.perf_counter()
        for i in range(N_BATCHES):
            ring.next()
            ring.submit(arrays[i % 8])
        return N_BATCHES * B * T / (time.perf_counter() - start)


def latency_us(dataset: gptrs.Dataset, device: str) -> dict[str, float]:
    """Quantiles of the time in next() when a consumer computes for 1 ms between calls."""
    times = np.empty(10_000)
    with gptrs.Loader(dataset, seq_len=T, global_batch=B, seed=3, device=device) as loader:
        for i in range(-20, len(times)):
            until = time.perf_counter() + 1e-3
            while time.perf_counter() < until:
                pass
            before = time.perf_counter()
            next(loader)
            times[i] = time.perf_counter() - before  # the first 20 are overwritten
    names = {"median": 50, "p99": 99, "p99.9": 99.9}
    return {name: round(float(np.percentile(times, q)) * 1e6, 1) for name, q in names.items()}


def tokens_per_s(batches: Iterator[Batch]) -> float:
    """Delivered tokens a second over N_BATCHES after 20 for warming up; reads one value of each batch."""
    for _ in range(20):
        next(batches)
    start = time.perf_counter()
    total = 0
    for _ in range(N_BATCHES):
        tokens, targets = next(batches)
        assert tokens.dtype == torch.int64
        assert tokens.is_contiguous()
        assert targets.is_contiguous()
        total += tokens.numel()
    return total / (time.perf_counter() - start)


def blocked_share(dataset: gptrs.Dataset, rate: float) -> float:
    """Share of the loop's time spent inside next() when the consumer computes for B·T / rate seconds a batch."""
    step_s = B * T / rate
    blocked = 0.0
    with gptrs.Loader(dataset, seq_len=T, global_batch=B, seed=3, device="cpu") as loader:
        batches = iter(loader)
        next(batches)
        start = time.perf_counter()
        for _ in range(300):
            until = time.perf_counter() + step_s
            while time.perf_counter() < until:
                pass
            before = time.perf_counter()
            next(batches)
            blocked += time.perf_counter() - before
        return blocked / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
