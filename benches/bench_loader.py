"""Batches per second against nanoGPT's way and torch's DataLoader, and the time a consumer waits.

All read random rows of one token file in the page cache, on one core, and deliver contiguous int64 tokens and targets,
B = 32, T = 1,024. Ours includes its prefetch thread on that same core.

    python benches/bench_loader.py
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from harness import arguments, record, summary

import gptrs

B, T = 32, 1024
N_TOKENS = 128 * 2**20
N_BATCHES = 400
Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        dataset, tokens = random_dataset(Path(work))
        check(dataset, tokens)
        sources: dict[str, Callable[[], Iterator[Batch]]] = {
            "gptrs": lambda: ours(dataset),
            "np.memmap (nanoGPT's way)": lambda: memmap_batches(tokens),
            "torch DataLoader": lambda: data_loader(tokens),
        }
        all_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(all_cores)})
        rates: dict[str, list[float]] = {name: [] for name in sources}
        for _ in range(options.rounds):
            for name, make in sources.items():
                rates[name].append(tokens_per_s(make()))
        for name, values in rates.items():
            record("loader", {"task": "delivered int64 tokens and targets", "engine": name, "B": B, "T": T, "cores": 1,
                              "m_tokens_per_s": summary([v / 1e6 for v in values], 2)}, packages=["torch"])  # fmt: skip
        os.sched_setaffinity(0, all_cores)
        shares = [blocked_share(dataset, 5e6) for _ in range(options.rounds)]
        record("loader", {"task": "time blocked in next() at a consumer of 5 M tokens/s", "engine": "gptrs", "B": B,
                          "T": T, "percent": summary([100 * s for s in shares])}, packages=["torch"])  # fmt: skip


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
