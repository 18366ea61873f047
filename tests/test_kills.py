"""kill -9 at random steps, again and again: the same losses to the bit, and no token twice or never."""

import hashlib
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  # once, before the forks
import pytest
import torch.utils.tensorboard  # noqa: F401  # likewise

from gptrs.train import pretrain
from gptrs.train.config import PretrainConfig, load
from gptrs.train.loop import Update
from gptrs.train.parts import Parts
from ranks import environment, fork, free_port

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


def tiny(folder: Path, name: str, *overrides: str) -> PretrainConfig:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(150)))
    return load("shakespeare_cpu", [*TINY, f"data.text={text}", f"run.dir={folder / name}", *overrides])


def recorded(config: PretrainConfig, folder: Path) -> None:
    """Runs, and notes each microbatch that is trained on and each update, as they come, in files that only grow."""
    log, loss = pretrain.Session._log, Parts.loss

    def note(kind: str, *values: object) -> None:
        with (folder / f"{kind}.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def noted_loss(self: Parts, model: Any, rows: Any, totals: Any) -> Any:
        note("rows", rows.sample, hashlib.sha256(rows.tokens.numpy().tobytes()).hexdigest()[:16])
        return loss(self, model, rows, totals)

    def noted_log(self: Any, update: Update) -> None:
        log(self, update)
        if self.world.is_main:
            note("updates", update.step, self.loader.next_sample)

    pretrain.Session._log, Parts.loss = noted_log, noted_loss  # type: ignore[method-assign]
    pretrain.run(config)


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


def run_until(work: Callable[[], None], n_processes: int, updates: Path, step: int | None) -> bool:
    """Runs until an update of `step` or later is noted and kills all ranks then; returns whether the run ended before.

    A kill comes a moment after the update, so that it meets the next one, a checkpoint, an evaluation or a sample.
    """
    before, end = len(read(updates)), time.monotonic() + TIMEOUT_S
    leader = start(work, n_processes)
    while time.monotonic() < end:
        done, status = os.waitpid(leader, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        if step is not None and any(number >= step for number, _ in read(updates)[before:]):
            break
        time.sleep(0.001)
    os.killpg(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    assert time.monotonic() < end, "a rank hangs"
    return False


def losses(folder: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row.get("loss", row.get("val_loss"))) for row in rows]


def check_kills(folder: Path, kind: str, *, n_kills: int, steps: int, worlds: Sequence[int]) -> None:
    """Compares a run that is killed at random steps, on each of `worlds` ranks in turn, with one that is not."""
    dropout = "model.dropout=0.1" if max(worlds) == 1 else "model.dropout=0"
    overrides = (*KINDS[kind], f"train.steps={steps}", dropout)
    for name in ("straight", "killed"):
        (folder / f"{name} notes").mkdir()
    straight = tiny(folder, "straight", *overrides)
    assert run_until(lambda: recorded(straight, folder / "straight notes"), worlds[0], Path("none"), None)

    config, notes = tiny(folder, "killed", *overrides), folder / "killed notes"
    n_killed = 0
    draw = random.Random(f"{kind} {n_kills} {worlds}")
    targets: list[int | None] = [*sorted(draw.sample(range(1, steps), n_kills)), None]
    for i, step in enumerate(targets):
        world = worlds[i % len(worlds)]
        n_killed += not run_until(lambda: recorded(config, notes), world, notes / "updates.jsonl", step)
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
def test_a_run_on_several_ranks_that_is_killed_at_random_steps(worlds: tuple[int, ...], tmp_path: Path) -> None:
    check_kills(tmp_path, "deepseek", n_kills=10, steps=40, worlds=worlds)
