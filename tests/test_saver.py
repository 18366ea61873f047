"""Saving beside the training: what is written is the state of its step, and nothing goes wrong in silence."""

import dataclasses
import errno
import itertools
import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrs.cli_model import open_model
from gptrs.model import ModelConfig, Transformer
from gptrs.tokenizer import Tokenizer
from gptrs.train import checkpoint, manifest
from gptrs.train.optim import adamw
from gptrs.train.saver import Saver
from gptrs.train.snapshot import Snapshot

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=32, max_seq_len=8, dim=8, n_layers=1, n_heads=2, inter_dim=16)


def make() -> tuple[Transformer, torch.optim.AdamW]:
    """A model with an optimizer that has its state."""
    model = Transformer(CONFIG)
    optimizer = adamw(model, lr=0.0, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


@torch.no_grad()
def set_to(step: int, model: Transformer, optimizer: torch.optim.AdamW) -> None:
    """Gives a run a state that follows from its step."""
    for parameter in model.parameters():
        parameter.fill_(step)
        optimizer.state[parameter]["exp_avg"].fill_(-step)


def check(path: Path) -> int:
    """Loads a checkpoint, compares all of it with what was saved and returns its step."""
    model, optimizer = make()
    step: int = checkpoint.load(path, model, optimizer)["step"]
    for parameter in model.parameters():
        assert (parameter == step).all() and (optimizer.state[parameter]["exp_avg"] == -step).all(), path
    return step


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in directory.iterdir() if path.name.startswith("step-"))


class Gate:
    """Holds back writing until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        write = checkpoint.write

        def held(*args: Any, **kwargs: Any) -> Path:
            assert self.opened.wait(20)
            return write(*args, **kwargs)

        monkeypatch.setattr(checkpoint, "write", held)


def test_training_goes_on_while_a_thread_writes_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, run = Gate(monkeypatch), make()
    saver = Saver(tmp_path, keep=2)
    set_to(1, *run)
    saver.save(step=1, model=run[0], optimizer=run[1], state={"note": 5})
    set_to(2, *run)  # the loop has gone on
    assert steps(tmp_path) == []
    gate.opened.set()
    saver.finish()
    assert check(tmp_path / "step-00000001") == 1 and checkpoint.read_state(tmp_path / "step-00000001")["note"] == 5


def test_a_save_waits_for_the_one_before_and_uses_its_memory_again(tmp_path: Path) -> None:
    run, saver = make(), Saver(tmp_path, keep=9)
    for step in range(1, 6):
        set_to(step, *run)
        saver.save(step=step, model=run[0], optimizer=run[1], state={})
    saver.finish()
    assert [check(path) for path in sorted(tmp_path.iterdir())] == [1, 2, 3, 4, 5]

    snapshot, tensors = Snapshot(), {"model": {"a": torch.ones(3), "b": torch.tensor(2.0)}}
    first = snapshot.take(tensors)["model"]
    tensors["model"]["a"].fill_(4)
    assert first["a"].tolist() == [1, 1, 1] and first["b"].shape == ()
    again = snapshot.take(tensors)["model"]
    assert again["a"] is first["a"] and first["a"].tolist() == [4, 4, 4]
    assert snapshot.take({"model": {"a": torch.zeros(2)}})["model"]["a"].tolist() == [0, 0]


@pytest.mark.parametrize("is_async", [False, True])
def test_both_ways_give_the_same_bytes(tmp_path: Path, is_async: bool) -> None:
    torch.manual_seed(1)
    model, optimizer = make()
    saver = Saver(tmp_path / "a", keep=1, is_async=is_async)
    saver.save(step=3, model=model, optimizer=optimizer, state={"x": 1})
    saver.finish()
    path = checkpoint.save(tmp_path / "b", step=3, model=model, optimizer=optimizer, state={"x": 1}, keep=1)
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "a" / path.name / file.name).read_bytes(), file.name


def test_more_tensors_are_saved_by_kind_and_filled_again(tmp_path: Path) -> None:
    model, optimizer = make()
    mean = {name: parameter.detach() / 2 for name, parameter in model.named_parameters()}
    saver = Saver(tmp_path, keep=1)
    saver.save(step=1, model=model, optimizer=optimizer, state={}, others={"mean": mean})
    saver.finish()
    found = {name: torch.zeros_like(tensor) for name, tensor in mean.items()}
    checkpoint.load(tmp_path / "step-00000001", *make(), others={"mean": found})
    assert all(torch.equal(found[name], mean[name]) for name in mean)
    with pytest.raises(
        ValueError, match=r"expected the tensors of this model in .*other\.safetensors, got \['other:a'\] miss"
    ):
        checkpoint.load(tmp_path / "step-00000001", *make(), others={"other": {"a": torch.zeros(1)}})


class Fault:
    """Makes the n-th of the system calls that write fail as on a full disk; a write that fails first writes a half."""

    NAMES = ("open", "write", "fsync", "mkdir", "rename", "replace")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.fired = 0, False
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))

    def arm(self, n: int) -> None:
        self.left, self.fired = n, False

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            was_fired, self.fired = self.fired, self.fired or self.left == 0
            if self.left == 0 and name == "write":
                return call(args[0], args[1][: len(args[1]) // 2])
            if self.left == 0 or (was_fired and name == "write"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return failing


@pytest.mark.parametrize("is_async", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_full_disk_at_any_call_is_told_and_the_next_save_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    told: list[tuple[int, str]] = []
    saver = Saver(tmp_path, keep=1, is_async=is_async, on_failure=lambda step, error: told.append((step, str(error))))
    run, fault, newest = make(), Fault(monkeypatch), 1
    for step in itertools.count(1):
        set_to(step, *run)
        fault.arm(step - 1)  # 0: none
        saver.save(step=step, model=run[0], optimizer=run[1], state={})
        saver.wait()
        is_fired = fault.fired
        fault.arm(0)
        found = checkpoint.find(tmp_path)
        assert found.newest is not None and found.uncommitted == ()
        before, newest = newest, check(found.newest)
        assert newest in (before, step), "the new one where a sync failed after it had its name"
        if step > 1 and not is_fired:
            break
    saver.finish()
    assert [at for at, _ in told] == list(range(2, step)) and step > 25
    assert all("earlier checkpoints are intact; hint: make room" in message for _, message in told)
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:08d}"], "what failed saves left is gone"


def test_the_last_save_must_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, saver, fault = make(), Saver(tmp_path, keep=1), Fault(monkeypatch)
    fault.arm(9)
    saver.save(step=1, model=run[0], optimizer=run[1], state={})
    with pytest.raises(OSError, match=r"cannot save checkpoint .*step-00000001: No space left .*; hint: make room"):
        saver.finish()
    saver.finish()  # told once
    fault.arm(9)
    saver.save(step=1, model=run[0], optimizer=run[1], state={})
    saver.wait()
    fault.arm(0)
    with pytest.raises(OSError, match="No space left"):  # nobody else is told of it
        saver.save(step=2, model=run[0], optimizer=run[1], state={})


def test_no_room_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else logs would find the disk full as well, and end the run."""
    run, saver = make(), Saver(tmp_path, keep=1)
    monkeypatch.setattr(manifest, "ROOM_BYTES", 1 << 60)
    saver.save(step=1, model=run[0], optimizer=run[1], state={})
    with pytest.raises(OSError, match=r"No space left on device: expected [\d,]+ bytes and some, got [\d,]+; earlier"):
        saver.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_none_of_the_disk_ends_the_run_at_the_next_stop(tmp_path: Path) -> None:
    run, saver = make(), Saver(tmp_path, keep=1)
    saver.save(step=1, model=run[0], optimizer=run[1], state={"no JSON": object()})
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.save(step=2, model=run[0], optimizer=run[1], state={})


def test_a_place_that_cannot_be_written_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write checkpoints into .*file: .*; hint: run\.dir="):
        Saver(tmp_path / "file", keep=1)
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid() != 0:
        with pytest.raises(OSError, match=r"cannot write checkpoints into .*closed: Permission denied"):
            Saver(tmp_path / "closed", keep=1)


def test_the_best_stay_beside_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, saver = make(), Saver(tmp_path, keep=1, keep_best=2)
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 6.0, 6: 7.0}
    for step, loss in losses.items():
        set_to(step, *run)
        saver.save(step=step, model=run[0], optimizer=run[1], state={})
        saver.mark(step, loss)  # mostly while it is written
    saver.finish()
    assert steps(tmp_path) == [2, 4, 6]
    found = checkpoint.find(tmp_path)
    assert found.newest == tmp_path / "step-00000006" and found.best == tmp_path / "step-00000002"
    assert manifest.read_best(tmp_path) == {"step-00000002": 3.0, "step-00000004": 3.5}
    saver.mark(99, 0.0)  # was never saved
    saver.mark(6, math.nan)
    assert checkpoint.find(tmp_path) == found
    saver.mark(6, 1.0)  # another look at it
    assert checkpoint.find(tmp_path).best == tmp_path / "step-00000006"
    assert manifest.read_best(tmp_path) == {"step-00000006": 1.0, "step-00000002": 3.0}


def test_a_model_is_opened_though_the_run_removes_its_checkpoint_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saver = make(), Saver(tmp_path / "checkpoints", keep=2)
    for step in (1, 2):
        set_to(step, *run)
        saver.save(step=step, model=run[0], optimizer=run[1], state={"model": dataclasses.asdict(CONFIG)})
    saver.finish()
    Tokenizer.train_from_iterator(["a b c"], 257, progress=False).save(tmp_path / "tokenizer.json")
    load_model, newest = checkpoint.load_model, tmp_path / "checkpoints" / "step-00000002"

    def removed(path: Path, model: Transformer, **options: bool) -> dict[str, Any]:
        if path == newest:
            shutil.rmtree(path)
        return load_model(path, model, **options)

    monkeypatch.setattr(checkpoint, "load_model", removed)
    model, _ = open_model(str(tmp_path), None, "cpu")
    assert all((parameter == 1).all() for parameter in model.parameters())
    with pytest.raises(ValueError, match="damaged checkpoint"):
        open_model(None, str(newest), "cpu")


def test_a_changed_mark_of_the_best_is_found(tmp_path: Path) -> None:
    run, saver = make(), Saver(tmp_path, keep=1, keep_best=1)
    saver.save(step=1, model=run[0], optimizer=run[1], state={})
    saver.mark(1, 2.5)
    saver.finish()
    file = tmp_path / "best.json"
    whole = file.read_bytes()
    for at in range(len(whole)):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            file.write_bytes(data)
            try:
                assert manifest.read_best(tmp_path) == {"step-00000001": 2.5}, "white space"
            except ValueError as error:
                assert "damaged" in str(error) and "hint: remove it" in str(error)
    file.unlink()
    assert checkpoint.find(tmp_path).best is None


def test_data_is_on_the_disk_before_the_marker_and_the_marker_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        handle = real_open(path, flags, *args, **kwargs)
        names[handle] = Path(os.fsdecode(path)).name
        if flags & os.O_CREAT:
            events.append(("create", names[handle]))
        return handle

    def synced(handle: int) -> None:
        events.append(("sync", names[handle]))
        real_fsync(handle)

    def renamed(source: Any, target: Any) -> None:
        events.append(("rename", Path(target).name))
        real_rename(source, target)

    saver, run = Saver(tmp_path / "checkpoints", keep=1), make()
    for name, call in (("open", opened), ("fsync", synced), ("rename", renamed)):
        monkeypatch.setattr(os, name, call)
    (tmp_path / "metrics.jsonl").write_text("{}")
    saver.save(step=1, model=run[0], optimizer=run[1], state={}, logs=[tmp_path / "metrics.jsonl"])
    saver.finish()
    marker = events.index(("create", "COMMITTED"))
    files = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    for name in files:
        assert events.index(("create", name)) < events.index(("sync", name)) < marker, name
    assert events.index(("sync", "metrics.jsonl")) < marker, "a checkpoint knows its length"
    folder = ("sync", ".step-00000001.tmp")
    assert max(events.index(("create", name)) for name in files) < events.index(folder) < marker
    named = events.index(("rename", "step-00000001"))
    assert marker < events.index(("sync", "COMMITTED")) < events.index(folder, marker) < named
    assert named < events.index(("sync", "checkpoints"), named)


def kill_at_random(directory: Path, n_kills: int, seed: int) -> None:
    """Kills a process that saves one step after another, again and again, and looks at what is there."""
    draw, last = random.Random(seed), 0
    for _ in range(n_kills):
        child = os.fork()
        if child == 0:
            run, saver = make(), Saver(directory, keep=2)
            for step in itertools.count(last + 1):
                set_to(step, *run)
                saver.save(step=step, model=run[0], optimizer=run[1], state={})
        time.sleep(draw.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = checkpoint.find(directory)
        assert found.uncommitted == ()
        if found.newest is not None:
            step = check(found.newest)
            assert step >= last, "what was there is not lost"
            last = step
    assert last > 0


def test_a_kill_at_a_random_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 20, seed=5)


@pytest.mark.long
def test_many_kills_at_random_moments_leave_whole_checkpoints(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 600, seed=6)
