"""The tokenizer's part of the tables, and `--goals`: what was to be reached against what was measured.

One line holds a task on several texts, in the order of CORPORA; a dash stands where there is no row.
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "tokenizer.jsonl"
CORPORA = ("bench_en", "code", "bench_multi")
TRAINED = ("bench_en", "bench_multi", "mixed")
VOCABULARIES = ("gpt2", "cl100k_base", "o200k_base", "deepseek-v3")
PEERS = ("gigatoken", "fastokens", "tokie", "rustbpe", "tiktoken", "tokenizers")
TRAIN = "train 50257"
Key = tuple[str, str, str, str, int]
Row = dict[str, Any]
Rows = dict[Key, Row]


class Line(NamedTuple):
    """A line of a table."""

    task: str
    ours: str
    peers: str = "–"  # all of them
    best: str = "–"  # for each text the fastest peer with our result


def newest(path: Path = RESULTS) -> Rows:
    """The last row of every (task, engine, corpus, vocabulary, size of a worst case)."""
    rows: Rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        corpus = row.get("corpus", "").removesuffix(".txt")
        size = row["n_bytes"] if row["task"] == "worst case" else 0
        key = (row["task"], row["engine"], corpus, row.get("vocabulary", ""), size)
        rows.pop(key, None)
        rows[key] = row
    return {key: row for key, row in rows.items() if "failed" not in row}


def find(rows: Rows, task: str, engine: str, corpus: str = "", vocabulary: str = "") -> Row | None:
    return rows.get((task, engine, corpus, vocabulary, 0))


def best(rows: Rows, task: str, corpus: str = "", vocabulary: str = "") -> Row | None:
    """The fastest peer with our result; where a training's order of merges may differ, any peer."""
    found = [row for peer in PEERS if (row := find(rows, task, peer, corpus, vocabulary))]
    exact = [row for row in found if row["same_result"] or task.startswith("train")]
    return min(exact, key=lambda row: float(row["time_over_ours"]), default=None)


def lines(rows: Rows) -> list[Line]:
    return [line for part in (_training, _encoding, _rest) for line in part(rows)]


def _training(rows: Rows) -> Iterable[Line]:
    if not find(rows, "train", "gptrs", "bench_en", TRAIN):
        return
    what = "63 MB of prose · 56 MB in many scripts · 510 MB of prose and code"
    yield _line(rows, "train", f"train a 50,257-token BPE, all cores: {what}", TRAINED, TRAIN, _seconds, "s")
    if any("over_text_mb" in row for row in rows.values()):
        yield _line(rows, "train", "memory over the text meanwhile", TRAINED, TRAIN, _over_text, "MB", is_ratio=False)
    large = [find(rows, "train", "gptrs", f"repeated_{n}", TRAIN) for n in (200, 2000)]
    if all(large):
        small, big = (1e9 * row["seconds"]["median"] / row["n_bytes"] for row in large if row)
        yield Line("train, time for each GB of text: 200 MB · 2,000 MB", f"**{small:.1f} · {big:.1f} s**")
    if find(rows, "train and encode", "gptrs", "bench_en", TRAIN):
        title = "text to shards of a vocabulary trained on it, all cores: prose · code · many scripts"
        yield _line(rows, "train and encode", title, CORPORA, TRAIN, _seconds, "s")


def _encoding(rows: Rows) -> Iterable[Line]:
    for name in VOCABULARIES:
        if not find(rows, "encode", "gptrs", "bench_en", name):
            continue
        title = f"encode, {name}, one thread, cold: prose · code · many scripts"
        line = _line(rows, "encode", title, CORPORA, name, _speed, "MB/s")
        for level in ("avx2", "scalar"):
            if find(rows, "encode", f"gptrs {level}", "bench_en", name):
                speeds = " · ".join(_cells(rows, "encode", f"gptrs {level}", CORPORA, name, _speed))
                line = line._replace(ours=f"{line.ours}; {level} only {speeds}")
        yield line


def _rest(rows: Rows) -> Iterable[Line]:
    if row := find(rows, "two threads", "gptrs", "bench_en", "gpt2"):
        gains, others = f"{row['gain']:.2f}× one thread's speed", f"{row['gain_of_processes']:.2f}×"
        yield Line("two threads, encode, gpt2, prose", f"**{gains}**", f"two independent processes {others}")
    if find(rows, "small call", "gptrs", "", "gpt2"):
        title = 'encode("Hello world, how are you?")'
        yield _line(rows, "small call", title, ("",), "gpt2", lambda row: f"{1e6 * _median(row):.2f}", "µs")
    for name in ("gpt2", "o200k_base"):
        if find(rows, "decode", "gptrs", "bench_en", name):
            yield _line(rows, "decode", f"decode, {name}, 12 MB of prose", ("bench_en",), name, _speed, "MB/s")
    for name in ("gpt2", "o200k_base"):
        if find(rows, "load", "gptrs", "", name):
            title = f"load {name}, every token checked"
            yield _line(rows, "load", title, ("",), name, lambda row: f"{1e3 * _median(row):.0f}", "ms")
    if worst := worst_cases(rows):
        slowest = max(worst, key=_median)
        what = "slowest of 7 patterns × 10 texts that are one piece of 1 MB"
        yield Line(what, f"**{1e3 * _median(slowest):.0f} ms** ({slowest['slowest']}, {slowest['vocabulary']})")
    if row := find(rows, "encode files to shards", "gptrs", "repeated_1000", "gpt2"):
        yield Line("memory over the tokenizer, 1,000 MB of files to shards", f"**{row['over_tokenizer_mb']:.0f} MB**")


def worst_cases(rows: Rows, n_bytes: int = 1_000_000) -> list[Row]:
    return [row for key, row in rows.items() if key[0] == "worst case" and key[4] == n_bytes]


def _line(
    rows: Rows,
    task: str,
    title: str,
    corpora: Iterable[str],
    vocabulary: str,
    show: Any,
    unit: str,
    is_ratio: bool = True,
) -> Line:
    corpora = list(corpora)
    peers = []
    for peer in PEERS:
        cells = _cells(rows, task, peer, corpora, vocabulary, show, is_ratio=is_ratio)
        if any(cell != "–" for cell in cells):
            peers.append(f"{peer} {' · '.join(cells)}")
    ours = " · ".join(_cells(rows, task, "gptrs", corpora, vocabulary, show))
    return Line(title, f"**{ours} {unit}**", "; ".join(peers) or "–", _best(rows, task, corpora, vocabulary, show))


def _best(rows: Rows, task: str, corpora: list[str], vocabulary: str, show: Any) -> str:
    """One cell for each text, named once where one peer is the fastest everywhere."""
    found = [best(rows, task, corpus, vocabulary) for corpus in corpora]
    cells = [f"{show(row)} ({row['time_over_ours']:.1f}×)" if row else "–" for row in found]
    engines = [row["engine"] if row else "" for row in found]
    if len(set(engines)) == 1:
        return f"{engines[0]} {' · '.join(cells)}".strip()
    return " · ".join(f"{engine} {cell}".strip() for engine, cell in zip(engines, cells, strict=True))


def _cells(
    rows: Rows, task: str, engine: str, corpora: Iterable[str], vocabulary: str, show: Any, is_ratio: bool = False
) -> list[str]:
    cells = []
    for corpus in corpora:
        row = find(rows, task, engine, corpus, vocabulary)
        if row is None:
            cells.append("–")
            continue
        notes = [f"{row['time_over_ours']:.1f}×"] if is_ratio else []
        if not row["same_result"] and not task.startswith("train"):
            notes.append("other ids")
        cells.append(show(row) + (f" ({', '.join(notes)})" if notes else ""))
    return cells


def _median(row: Row) -> float:
    return float(row["seconds"]["median"])


def _seconds(row: Row) -> str:
    return f"{_median(row):.2f}"


def _speed(row: Row) -> str:
    return f"{row['mb_per_s']:.0f}" if row["mb_per_s"] >= 10 else f"{row['mb_per_s']:.1f}"


def _over_text(row: Row) -> str:
    return f"{row['over_text_mb']:.0f}" if "over_text_mb" in row else "–"


# ── goals ──


def goals(rows: Rows) -> Iterable[tuple[str, float, float, bool]]:
    """(what, must, measured, whether more is better); what has no row yet is left out."""
    yield from _training_goals(rows)
    yield from _encoding_goals(rows)
    if row := find(rows, "two threads", "gptrs", "bench_en", "gpt2"):
        yield "two threads, share of the gain of two processes", 0.9, row["share"], True
    for task, corpus, must in (("small call", "", 2.0), ("decode", "bench_en", 2.0)):
        if peer := find(rows, task, "tiktoken", corpus, "gpt2"):
            yield f"{task}, tiktoken's time over ours", must, peer["time_over_ours"], True
    for name, must in (("gpt2", 40.0), ("o200k_base", 150.0)):
        if row := find(rows, "load", "gptrs", "", name):
            yield f"load {name}, ms", must, 1e3 * _median(row), False
    if worst := worst_cases(rows):
        yield "worst case of 1 MB, ms", 50.0, 1e3 * max(map(_median, worst)), False
        every = [row for key, row in rows.items() if key[0] == "worst case"]
        yield "worst case, t(2n)/t(n)", 2.3, max(row["doubling"] for row in every), False
    if row := find(rows, "encode files to shards", "gptrs", "repeated_1000", "gpt2"):
        yield "1,000 MB of files to shards, MB over the tokenizer", 300.0, row["over_tokenizer_mb"], False


def _training_goals(rows: Rows) -> Iterable[tuple[str, float, float, bool]]:
    for corpus, must in (("bench_en", 15.0), ("bench_multi", 12.0), ("mixed", 5.0)):
        if peer := best(rows, "train", corpus, TRAIN):
            yield f"train {corpus}, × the best peer ({peer['engine']})", must, peer["time_over_ours"], True
    ours = find(rows, "train", "gptrs", "bench_en", TRAIN)
    if ours and "over_text_mb" in ours:
        yield "train bench_en, MB over the text", 100.0, ours["over_text_mb"], False
    ours, peer = find(rows, "train", "gptrs", "bench_multi", TRAIN), best(rows, "train", "bench_multi", TRAIN)
    if ours and peer and "over_text_mb" in ours:
        share = ours["over_text_mb"] / peer["over_text_mb"]
        yield f"train bench_multi, share of {peer['engine']}'s memory over the text", 0.25, share, False
    large = [find(rows, "train", "gptrs", f"repeated_{n}", TRAIN) for n in (200, 2000)]
    if all(large):
        small, big = (_median(row) / row["n_bytes"] for row in large if row)
        yield "train 2,000 MB, time per byte over that of 200 MB", 1.3, big / small, False
    for corpus in CORPORA:
        if peer := best(rows, "train and encode", corpus, TRAIN):
            yield f"train and encode {corpus}, × the best peer ({peer['engine']})", 8.0, peer["time_over_ours"], True


def _encoding_goals(rows: Rows) -> Iterable[tuple[str, float, float, bool]]:
    for name in VOCABULARIES:
        for corpus, gpt2, others in zip(CORPORA, (1.4, 1.3, 4.0), (1.2, 1.2, 2.0), strict=True):
            peer = best(rows, "encode", corpus, name)
            if peer is None:
                continue
            must = gpt2 if name == "gpt2" else others
            what = f"encode {name} {corpus}, × the best peer ({peer['engine']})"
            yield what, must, peer["time_over_ours"], True
            for level, below in (("avx2", 1.1), ("scalar", 0.8)):
                if forced := find(rows, "encode", f"gptrs {level}", corpus, name):
                    yield f"  the same, {level}", below, peer["time_over_ours"] / forced["time_over_ours"], True


def main() -> int:
    missed = 0
    for what, must, got, is_more in goals(newest()):
        is_reached = not math.isnan(got) and (got >= must if is_more else got <= must)
        missed += not is_reached
        sign = "≥" if is_more else "≤"
        print(f"{'reached' if is_reached else 'MISSED ':8s} {what:62s} {sign} {must:<6g} got {got:.2f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
