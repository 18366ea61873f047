"""Signals in every phase of a run: it leaves with its code, and the same command ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptrs.train import checkpoint, corpus, looks, metrics, pretrain
from gptrs.train.config import PretrainConfig, load
from gptrs.train.parts import Parts
from gptrs.train.reports import Reports
from gptrs.train.saver import Saver
from gptrs.train.signals import Stopped, leaving_at_once, stop_requests

WORDS = "a true friend accepts you as you are and you accept a friend who is true to you "
TINY = (
    *("run.threads=1", "tokenizer.vocab_size=280", "model.dim=16", "model.n_layers=1", "model.n_heads=2"),
    *("model.dropout=0.1", "train.seq_len=16", "train.steps=10", "train.global_batch=4", "train.micro_batch=2"),
    *("train.log_every=1", "train.eval_every=4", "train.eval_rows=4", "train.checkpoint_every=3", "optim.lr=1e-2"),
    *("schedule.warmup_steps=2", "sample.max_new_tokens=3"),
)


def tiny(folder: Path, *overrides: str) -> PretrainConfig:
    text = folder / "text.txt"
    text.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(80)))
    return load("shakespeare_cpu", [*TINY, f"data.text={text}", f"run.dir={folder / 'run'}", *overrides])


def outcome(folder: Path) -> dict[str, object]:
    timed = ("time_s", "tokens_per_s", "mfu", "memory_bytes")
    last = sorted((folder / "run" / "checkpoints").iterdir())[-1]
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return {
        "metrics": [{key: value for key, value in row.items() if key not in timed} for row in rows],
        "weights": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "samples": (folder / "run" / "samples.txt").read_bytes(),
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("straight")
    pretrain.run(tiny(folder))
    return outcome(folder)


def nth(work: Callable[..., Any], n: int, then: Callable[[], object]) -> Callable[..., Any]:
    """The function, whose n-th call does something else first."""
    calls = iter(range(n))

    def call(*args: object, **options: object) -> Any:
        if next(calls, -1) == n - 1:
            then()
        return work(*args, **options)

    return call


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("phase", "place", "name", "n", "saved"),
    [
        ("encode", corpus, "prepare", 2, None),
        ("train", Parts, "loss", 9, 5),  # the second microbatch of update 5 is call 10
        ("save", Saver, "save", 2, 6),
        ("log", metrics.MetricsLog, "write", 2, 2),
        ("evaluate", looks, "mean_loss", 1, 4),  # of a step without a checkpoint
        ("sample", looks, "generate", 2, 8),
        ("last sample", looks, "generate", 3, 10),
        ("report", Reports, "finish", 1, 10),
    ],
)
def test_sigterm_in_every_phase(
    phase: str,
    place: object,
    name: str,
    n: int,
    saved: int | None,
    tmp_path: Path,
    straight: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as context:
        context.setattr(place, name, nth(getattr(place, name), n, terminate))
        with pytest.raises(Stopped) as stopped:
            pretrain.run(tiny(tmp_path))
    assert stopped.value.exit_code == 75 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    newest = checkpoint.find(tmp_path / "run" / "checkpoints").newest
    assert (newest and int(newest.name[5:])) == saved
    assert not (tmp_path / "run" / "result.json").exists()
    pretrain.run(tiny(tmp_path))
    assert outcome(tmp_path) == straight


@pytest.mark.parametrize(("name", "event"), [("mean_loss", "evaluation failed"), ("generate", "sampling failed")])
def test_a_look_that_fails_is_told_and_ends_no_training(
    name: str, event: str, tmp_path: Path, straight: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as context:
        context.setattr(looks, name, nth(getattr(looks, name), 1, fail))
        pretrain.run(tiny(tmp_path))
    found = outcome(tmp_path)
    assert found["weights"] == straight["weights"]
    events = [line for line in found["metrics"] if line["kind"] == "event"]  # type: ignore[attr-defined]
    assert [(line["step"], line["event"]) for line in events] == [(4, event)]
    assert "failed: RuntimeError: out of memory; training goes on" in events[0]["text"]


def test_the_last_evaluation_must_come_and_can_be_had_again(
    tmp_path: Path, straight: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as context:
        context.setattr(looks, "mean_loss", nth(looks.mean_loss, 3, fail))
        with pytest.raises(RuntimeError, match="out of memory"):
            pretrain.run(tiny(tmp_path))
    pretrain.run(tiny(tmp_path))
    assert outcome(tmp_path) == straight


def test_ctrl_c_in_an_evaluation_is_no_failed_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "mean_loss", nth(looks.mean_loss, 1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(Stopped, match="stopped after step 4 of 10, which is saved") as stopped:
        pretrain.run(tiny(tmp_path))
    assert stopped.value.exit_code == 130


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGUSR1, 75),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_the_command_leaves_with_its_code(number: signal.Signals, code: int, tmp_path: Path) -> None:
    tiny(tmp_path)  # writes the text
    words = [*TINY, "train.steps=100000", f"data.text={tmp_path / 'text.txt'}", f"run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "gptrs", "train", "shakespeare_cpu", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 100
    while not (log.exists() and log.read_bytes()) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (out, err)
    assert "which is saved; hint: the same command goes on from the newest checkpoint" in out and err == ""


# ── the requests themselves ──


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_request_that_was_noted_is_obeyed_where_nothing_can_be_lost() -> None:
    with stop_requests() as requests:
        terminate()
        assert requests.number == signal.SIGTERM
        with pytest.raises(Stopped), requests.at_once():
            raise AssertionError("the request was noted before")


def test_inside_at_once_the_first_signal_ends_the_work() -> None:
    with pytest.raises(Stopped) as stopped, leaving_at_once():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
    assert stopped.value.number == signal.SIGUSR1


def test_a_signal_inside_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Finalized:
        def __del__(self) -> None:
            terminate()
            time.sleep(0)

    hook = sys.unraisablehook
    seen: list[str] = []
    with pytest.raises(Stopped) as stopped, leaving_at_once():
        Finalized()
        seen.append("the finalizer's was dropped")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.01)
        seen.append("lost")
    assert stopped.value.exit_code == 75 and seen == ["the finalizer's was dropped"]
    assert sys.unraisablehook is hook and capsys.readouterr().err == ""


def test_a_thread_leaves_signals_as_they_are() -> None:
    seen: list[object] = []

    def work() -> None:
        with stop_requests() as requests:
            seen.append((requests.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, signal.SIG_DFL)]
