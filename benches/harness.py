"""What every benchmark needs: the machine in words, children measured alone, and rows that can be compared later.

A row without machine, commit and versions is not a number, so `record` adds them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """CPU model, cores, memory in GiB, system and Python."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = os.cpu_count()
    return {"cpu": model, "cores": cores, "memory_gib": round(memory_gib), "system": platform.platform(),
            "python": platform.python_version()}  # fmt: skip


def commit() -> str:
    """The commit measured, with "+" when the tree has uncommitted changes."""
    if shutil.which("git") is None:
        return "unknown"
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    dirty = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "--", "rust", "python"],
                           cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


def versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def record(bench: str, row: dict[str, Any], packages: Iterable[str] = ()) -> None:
    """Appends one row to results/BENCH.jsonl and prints it."""
    full = {
        "bench": bench,
        **row,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions("gptrs", *packages),
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{bench}.jsonl").open("a") as out:
        out.write(json.dumps(full, ensure_ascii=False) + "\n")
    print(json.dumps(row, ensure_ascii=False), flush=True)


def summary(values: list[float], digits: int = 4) -> dict[str, float]:
    """Median, smallest and largest of the repeats."""
    return {"median": round(statistics.median(values), digits), "min": round(min(values), digits),
            "max": round(max(values), digits), "repeats": len(values)}  # fmt: skip


def child(
    script: str | Path, *arguments: str, threads: int | None = None, timeout_s: float | None = None
) -> dict[str, Any]:
    """Runs `script arguments…` as a fresh process and returns the JSON object on its last line."""
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="true" if threads is None or threads > 1 else "false")
    if threads is not None:
        environment |= {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return float("nan")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what the benchmarks share: where the data is and how often to repeat."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GPTRS_TEST_DATA", "data")),
                        help="folder of bench_en.txt.zst and the vocabularies (default: $GPTRS_TEST_DATA)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats of every engine (default: 5)")
    return parser
