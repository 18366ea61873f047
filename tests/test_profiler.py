"""A trace of some updates: exactly those, once, and also of a run that ends before the last of them."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from gptrs.train.profiler import Profiler

torch.set_num_threads(1)


def traced(directory: Path, *updates: int, steps: range) -> tuple[Counter[str], list[str]]:
    """The operations in the trace of a run whose update i multiplies i times, and what it said."""
    said: list[str] = []
    profiler = Profiler(directory, updates=updates, say=said.append)
    a = torch.ones(4, 4)
    for step in steps:
        with profiler.watch(step):
            for _ in range(step):
                torch.mm(a, a)
        profiler.flush()
    profiler.flush(is_end=True)
    file = directory / "profile" / "trace.json.gz"
    if not file.exists():
        return Counter(), said
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "cpu_op"), said


@pytest.mark.parametrize(
    ("first", "last", "steps", "n"),
    [
        (3, 4, range(1, 7), 3 + 4),
        (1, 2, range(1, 4), 1 + 2),
        (3, 9, range(1, 5), 3 + 4),  # the run ends first
        (2, 4, range(4, 6), 4),  # a resumed run begins inside
    ],
)
def test_the_trace_has_the_updates_asked_for(tmp_path: Path, first: int, last: int, steps: range, n: int) -> None:
    operations, said = traced(tmp_path, first, last, steps=steps)
    assert operations["aten::mm"] == n
    assert "aten::mm" in (tmp_path / "profile" / "operations.txt").read_text()
    (line,) = said
    assert f"to {min(last, steps[-1])}: open {tmp_path / 'profile' / 'trace.json.gz'} in https" in line


def test_nothing_is_written_where_nothing_was_traced(tmp_path: Path) -> None:
    assert traced(tmp_path, steps=range(1, 4)) == (Counter(), [])
    assert traced(tmp_path, 9, 9, steps=range(1, 4)) == (Counter(), [])
    assert traced(tmp_path, 9, 9, steps=range(1, 9)) == (Counter(), []), "the warm-up alone"
    assert list(tmp_path.iterdir()) == []
