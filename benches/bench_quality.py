"""What the shipped configs reach: validation loss and time of the commands as a user types them.

python benches/bench_quality.py --data DIR            # DIR holds tinyshakespeare.txt
python benches/bench_quality.py --only demo
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments, record


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=["demo", "shakespeare_cpu"], help="one of the runs")
    options = parser.parse_args()
    runs = {
        "demo": (["demo"], "validation loss of `gptrs demo`, nats a token"),
        "shakespeare_cpu": (
            ["train", "shakespeare_cpu", f"data.text={options.data / 'tinyshakespeare.txt'}"],
            "validation loss of shakespeare_cpu on the whole held-out tenth, nats a byte",
        ),
    }
    for name, (command, task) in runs.items():
        if options.only in (None, name):
            result, seconds = run(command)
            entropy = round(result["unigram_entropy"], 4)
            record("quality", {
                "task": task, "engine": "gptrs", "val_loss": round(result["val_loss"], 4), "unigram_entropy": entropy,
                "steps": result["steps"], "is_capped": result["is_capped"], "seconds": round(seconds, 1),
            }, packages=["torch"])  # fmt: skip


def run(command: list[str]) -> tuple[dict[str, Any], float]:
    """Runs a command in a fresh run directory; returns its result.json and its wall time in seconds."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"
        start = time.perf_counter()
        arguments = [sys.executable, "-m", "gptrs", *command, f"run.dir={folder}"]
        done = subprocess.run(arguments, capture_output=True, text=True, env=dict(os.environ))
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        last = done.stdout.strip().splitlines()[-1]
        assert last == f"val loss {result['val_loss']:.4f}", last
        return result, seconds


if __name__ == "__main__":
    main()
