"""kill -9 at random steps, again and again: the same losses to the bit, and no token twice or never."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  # once, before the forks
import pytest
import torch.utils.tensorboard  # noqa: F401  # likewise

from gptrs.train.config import load
from ranks import environment, fork, free_port
from recorded_run import recorded

TIMEOUT_S = 300
WORDS = "a true friend accepts you as you are and you accept a friend who is true to you "
TINY = (
    *("run.threads=1", "run.dtype=fp32", "tokenizer.vocab_size=280", "model.dim=16", "model.n_layers=1"),
    *("model.n_heads=2", "train.seq_len=16", "train.global_batch=4", "train.micro_batch=1", "train.log_every=1"),
    *("train.eval_every=9", "train.eval_rows=4", "train.checkpoint_every=4", "optim.lr=1e-2"),
    *("schedule.warmup_steps=3", "sample.max_new_tokens=3"),
)
KINDS = {
    "gpt": (),
    "deepseek": (
        *("model.preset=deepseek-tiny", "model.n_layers=2", "model.inter_dim=24", "model.kv_lora_rank=8"),
        *("model.qk_nope_head_dim=6", "model.qk_rope_head_dim=4", "model.v_head_dim=6", "model.moe_inter_dim=12"),
        "train.bias_speed=0.01",
    ),
}


# Settings of a run, where its notes go, on how many ranks, when to kill it (None: never) → whether it ended before.
Runner = Callable[[list[str], Path, int, int | None], bool]


def tiny(folder: Path, name: str, *overrides: str) -> list[str]:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(150)))
    return [*TINY, f"data.text={text}", f"run.dir={folder / name}", *overrides]


def start(work: Callable[[], None], n_processes: int) -> int:
    """Begins the work on so many ranks, as a process group of its own; returns its number."""
    leader = os.fork()
    if leader:
        return leader
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if n_processes == 1:
            work()
            code = 0
        else:
            port = free_port()

            def one(rank: int) -> None:
                os.environ.update(environment(rank, n_processes, port))
                work()

            code = max(map(abs, fork(n_processes, one, TIMEOUT_S)))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def read(file: Path) -> list[list[Any]]:
    """The whole lines of a file that may have been cut in its last."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def forked(settings: list[str], notes: Path, n_ranks: int, step: int | None) -> bool:
    """Runs on forked ranks until an update of `step` or later is noted, and kills all of them then.

    A kill comes a moment after the update, so that it meets the next one, a checkpoint, an evaluation or a sample.
    """
    is_due, end = updates_reach(step, notes), time.monotonic() + TIMEOUT_S
    leader = start(lambda: recorded(load("shakespeare_cpu", settings), notes), n_ranks)
    while time.monotonic() < end:
        done, status = os.waitpid(leader, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        if is_due():
            break
        time.sleep(0.001)
    os.killpg(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    assert time.monotonic() < end, "a rank hangs"
    return False


def by_torchrun(settings: list[str], notes: Path, n_ranks: int, step: int | None) -> bool:
    """The same as a user starts ranks: at every other step the whole tree dies at once, else one rank alone."""
    is_due, end = updates_reach(step, notes), time.monotonic() + TIMEOUT_S
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", f"{n_ranks}"]
    command += ["--master-port", f"{free_port()}", f"{Path(__file__).with_name('recorded_run.py')}", f"{notes}"]
    with subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL) as agent:
        while time.monotonic() < end and not is_due():
            if agent.poll() is not None:
                assert agent.returncode == 0
                return True
            time.sleep(0.001)
        ranks = list(map(int, Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()))
        assert len(ranks) == n_ranks
        for process in (agent.pid, *ranks) if step is None or step % 2 else ranks[-1:]:
            os.kill(process, signal.SIGKILL)
        assert agent.wait(60) != 0, "it learns that a rank is gone"
    assert time.monotonic() < end, "a rank hangs"
    return False


def updates_reach(step: int | None, notes: Path) -> Callable[[], bool]:
    """Returns what tells whether an update of `step` or later was noted since now."""
    before = len(read(notes / "updates.jsonl"))
    return lambda: step is not None and any(n >= step for n, _ in read(notes / "updates.jsonl")[before:])


def losses(folder: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row.get("loss", row.get("val_loss"))) for row in rows]


def check_kills(
    folder: Path, kind: str, *, n_kills: int, steps: int, worlds: Sequence[int], run: Runner = forked
) -> None:
    """Compares a run that is killed at random steps, on each of `worlds` ranks in turn, with one that is not."""
    dropout = "model.dropout=0.1" if max(worlds) == 1 else "model.dropout=0"
    overrides = (*KINDS[kind], f"train.steps={steps}", dropout)
    for name in ("straight", "killed"):
        (folder / f"{name} notes").mkdir()
    assert forked(tiny(folder, "straight", *overrides), folder / "straight notes", worlds[0], None)

    settings, notes = tiny(folder, "killed", *overrides), folder / "killed notes"
    draw = random.Random(f"{kind} {n_kills} {worlds}")
    targets: list[int | None] = [*sorted(draw.sample(range(1, steps), n_kills)), None]
    n_killed = sum(not run(settings, notes, worlds[i % len(worlds)], step) for i, step in enumerate(targets))
    assert n_killed == n_kills, "a run ended before its kill"

    found, expected = losses(folder / "killed"), losses(folder / "straight")
    if len(set(worlds)) == 1:
        assert found == expected
    else:
        assert [line[:2] for line in found] == [line[:2] for line in expected]
        assert [line[2] for line in found] == pytest.approx([line[2] for line in expected], abs=1e-5)
    check_tokens(folder, steps)


def check_tokens(folder: Path, steps: int) -> None:
    """Every update read the samples that are its own, whenever and by whomever it was made."""
    straight, killed = (
        (dict(read(folder / f"{name} notes" / "rows.jsonl")), read(folder / f"{name} notes" / "updates.jsonl"))
        for name in ("straight", "killed")
    )
    assert sorted(straight[0]) == list(range(4 * steps)), "microbatches of a row each"
    assert killed[0] == straight[0], "the same rows under the same numbers, and all of them"
    assert straight[1] == [[step, 4 * step] for step in range(1, steps + 1)]
    assert all(next_sample == 4 * step for step, next_sample in killed[1])
    assert sorted({step for step, _ in killed[1]}) == list(range(1, steps + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_at_random_steps(kind: str, tmp_path: Path) -> None:
    check_kills(tmp_path, kind, n_kills=3, steps=16, worlds=(1,))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_at_100_random_steps(kind: str, tmp_path: Path) -> None:
    check_kills(tmp_path, kind, n_kills=100, steps=250, worlds=(1,))


@pytest.mark.long
@pytest.mark.parametrize("worlds", [(2,), (4,), (1, 2, 4)])
def test_a_run_on_several_ranks_that_is_killed_at_100_random_steps(worlds: tuple[int, ...], tmp_path: Path) -> None:
    check_kills(tmp_path, "deepseek", n_kills=100, steps=250, worlds=worlds)


def by_torchrun_to_a_kill(settings: list[str], notes: Path, n_ranks: int, step: int | None) -> bool:
    return (forked if step is None else by_torchrun)(settings, notes, n_ranks, step)


@pytest.mark.parametrize(
    ("n_kills", "steps", "worlds", "run"),
    [
        (1, 8, (2,), by_torchrun_to_a_kill),  # forks spare a start
        pytest.param(12, 60, (2,), by_torchrun, marks=pytest.mark.long),
        pytest.param(12, 60, (2, 4, 1), by_torchrun, marks=pytest.mark.long),
    ],
)
def test_ranks_of_torchrun_that_are_killed_at_random_steps(
    n_kills: int, steps: int, worlds: tuple[int, ...], run: Runner, tmp_path: Path
) -> None:
    check_kills(tmp_path, "deepseek", n_kills=n_kills, steps=steps, worlds=worlds, run=run)
