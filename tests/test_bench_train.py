"""The training benchmark's own code, with tiny shapes on the CPU: what runs unseen on a GPU must have run before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "benches" / "bench_train.py"
TINY = {"preset": "gpt2-small", "vocab_size": 301, "max_seq_len": 16, "dim": 32, "n_layers": 2, "n_heads": 2,
        "inter_dim": 64}  # fmt: skip


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("given", [{"dtype": "fp32", "vocab_multiple": 1}, {"dtype": "bf16", "checkpoint_blocks": 2}])
def test_steps_are_those_of_a_model_that_learns(monkeypatch: pytest.MonkeyPatch, given: dict[str, object]) -> None:
    monkeypatch.syspath_prepend(BENCH.parent)
    import train_steps

    plan = {"shape": TINY, "given": given, "rows": 2, "n_steps": 3, "n_repeats": 2, "device": "cpu"}
    found = train_steps.steps_child(json.dumps(plan))
    assert found["last_loss"] < found["first_loss"] == pytest.approx(5.7, abs=0.2)
    assert len(found["steps_per_s"]) == 2 and found["n_tokens"] == 32 and found["mfu_of"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_tasks_of_a_gpu_say_in_one_line_that_there_is_none() -> None:
    done = bench("--only", "gpt2", "ladder")
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout == "gpt2, ladder: needs a CUDA device, torch finds none; hint: --tiny runs the code on the CPU\n"


@pytest.mark.long
@pytest.mark.parametrize("task", ["loss", "gpt2", "moe", "ladder"])
def test_every_task_runs_with_tiny_shapes(task: str) -> None:
    pytest.importorskip("transformers")
    before = (BENCH.parent / "results" / "train.jsonl").read_bytes()
    done = bench("--only", task, "--tiny")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert any(row["engine"].startswith("gptrs") for row in rows)
    assert (BENCH.parent / "results" / "train.jsonl").read_bytes() == before  # no row is kept
