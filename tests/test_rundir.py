"""The run directory: one run, one process, and nothing of others."""

import dataclasses
import fcntl
import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptrs import config
from gptrs.dataset import prepare
from gptrs.files import temporary_of
from gptrs.tokenizer import Tokenizer
from gptrs.train import rundir


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    steps: int = 3
    words: tuple[str, ...] = ()
    max_minutes: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    train: Section


def make(**values: object) -> Config:
    return Config(train=Section(**values))  # type: ignore[arg-type]


def begin(directory: Path, *, allow: tuple[str, ...] = (), **values: object) -> None:
    with rundir.claim(directory, make(**values), is_fresh=False, allow=allow):
        pass


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_new_run_stores_its_resolved_config(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "first"
    begin(directory)
    assert config.load(Config, directory / "config.toml") == make()
    assert not rundir.is_finished(directory)


def test_a_run_killed_while_its_first_file_was_written_is_no_other_run(tmp_path: Path) -> None:
    temporary_of(tmp_path / "config.toml").write_text("[train]\nste")
    begin(tmp_path)
    assert files(tmp_path) == {".lock", "config.toml"}


def test_the_same_config_goes_on_and_leaves_what_is_there(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}")
    begin(tmp_path)
    assert files(tmp_path) == {"config.toml", "metrics.jsonl", ".lock"}


def test_another_config_is_refused_and_every_difference_named(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a run with train\.steps = 3, this one has 4; hint: --fresh .*run\.dir=…"
    ):
        begin(tmp_path, steps=4)
    with pytest.raises(ValueError, match=r"train\.words = \[\], this one has \['aaa.*…; hint"):
        begin(tmp_path, words=("a" * 1000,))
    message = (
        r"holds a run with train\.steps = 3, this one has 4; train\.words = \[\], this one has \['a'\]; hint: "
        r"--fresh .*, --allow train\.steps --allow train\.words goes on with the new values$"
    )
    with pytest.raises(ValueError, match=message):
        begin(tmp_path, steps=4, words=("a",))


def test_allowed_changes_are_stored_once_the_run_has_gone_on(tmp_path: Path) -> None:
    begin(tmp_path)
    before = (tmp_path / "config.toml").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with train\.words = .*hint"):
        begin(tmp_path, steps=4, words=("a",), allow=("train.steps",))
    with rundir.claim(tmp_path, make(steps=4), is_fresh=False, allow=("train.steps",)):
        assert (tmp_path / "config.toml").read_bytes() == before
        rundir.settle(tmp_path, make(steps=4))
    begin(tmp_path, steps=4)


def test_a_finished_run_goes_on_with_more_steps_alone(tmp_path: Path) -> None:
    begin(tmp_path)
    rundir.finish(tmp_path, {"steps": 3, "is_capped": False, "seconds": 60.0})
    for steps in (3, 2):
        with pytest.raises(ValueError, match=r"a finished run of this config; .*a larger train\.steps with --allow"):
            begin(tmp_path, steps=steps, allow=("train.steps",))
    begin(tmp_path, steps=4, allow=("train.steps",))
    assert rundir.is_finished(tmp_path), "until its state was found to fit"
    rundir.settle(tmp_path, make(steps=4))
    assert not rundir.is_finished(tmp_path)


def test_a_finished_run_without_time_left_says_that_more_steps_are_not_enough(tmp_path: Path) -> None:
    begin(tmp_path, max_minutes=2.0)
    rundir.finish(tmp_path, {"steps": 2, "is_capped": True, "seconds": 120.5})
    says = r"trained for 2\.01 minutes, and train\.max_minutes ends it at 2; hint: .*--allow train\.max_minutes"
    allow = ("train.steps", "train.max_minutes")
    with pytest.raises(ValueError, match=says):
        begin(tmp_path, steps=9, max_minutes=2.0, allow=allow)
    for minutes in (3.0, None):
        begin(tmp_path, steps=9, max_minutes=minutes, allow=allow)
        begin(tmp_path, steps=3, max_minutes=minutes, allow=allow)


@pytest.mark.parametrize("damaged", ["{", "[1]", "{}", "", "\udcff"])
def test_a_damaged_result_is_named(tmp_path: Path, damaged: str) -> None:
    begin(tmp_path)
    (tmp_path / "result.json").write_bytes(damaged.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"^{tmp_path}/result.json: expected .*; hint: remove it, and the command"):
        begin(tmp_path)
    (tmp_path / "result.json").unlink()
    begin(tmp_path)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    hint = r"hint: move the file that stands in its way, or run\.dir=…"
    for place, reason in (("file/run", "Not a directory"), ("file", "File exists")):
        with pytest.raises(OSError, match=f"cannot write to the run directory .*{place}: {reason}; {hint}"):
            begin(tmp_path / place)


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    rundir.finish(tmp_path, {"val_loss": 1.5, "steps": 3})
    assert rundir.is_finished(tmp_path)
    with pytest.raises(ValueError, match="holds a finished run of this config; hint: --fresh"):
        begin(tmp_path)


def test_fresh_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path)
    for name in (*rundir.FILES, *(f"{folder}/part" for folder in rundir.PLACES), "notes.md", "mine/data"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with rundir.claim(tmp_path, make(steps=9), is_fresh=True):
        assert files(tmp_path) == {"config.toml", ".lock", "notes.md", "mine/data"}
    assert config.load(Config, tmp_path / "config.toml") == make(steps=9)


def test_fresh_makes_a_new_directory_too(tmp_path: Path) -> None:
    with rundir.claim(tmp_path / "new", make(), is_fresh=True):
        assert (tmp_path / "new" / "config.toml").exists()


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_directory_with_other_files_is_not_taken(tmp_path: Path, is_fresh: bool) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    message = r"expected a run or an empty directory in .*, got data; hint: run\.dir=…"
    with pytest.raises(ValueError, match=message), rundir.claim(tmp_path, make(), is_fresh=is_fresh):
        pass
    assert (tmp_path / "data" / "thesis.txt").read_text() == "mine"


def test_a_second_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "_PATIENCE_S", 0.05)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"expected to be alone in .*, got another process that trains there"):
            begin(tmp_path)
    begin(tmp_path)


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.2, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        begin(tmp_path)


def test_a_run_of_an_older_config_says_what_is_unknown(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "config.toml").write_text("[train]\nstep = 3\n")
    with pytest.raises(
        ValueError, match=r"unknown key train\.step \(in .*config\.toml\); hint: did you mean train\.steps"
    ):
        begin(tmp_path)


def test_another_run_s_outcome_is_compared_on_the_same_tokens_alone(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "to be or not to be"}\n' * 40)
    tokenizer = Tokenizer.train([tmp_path / "text.jsonl"], 262, progress=False)
    directory = tmp_path / "run"
    for name in ("train", "val"):
        prepare([tmp_path / "text.jsonl"], tokenizer, directory / "data" / name, progress=False)
    (directory / "config.toml").write_text('[run]\nname = "mine"\n')
    line = {"kind": "eval", "step": 3, "time_s": 4.0, "val_loss": 2.5}
    (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert rundir.outcome(directory) is None
    result = {"val_loss": 2.5, "bits_per_byte": 1.0, "n_params": 7, "steps": 3, "seconds": 4.0}
    rundir.finish(directory, result)
    own = rundir.outcome(directory)
    assert own is not None and own.name == "mine" and own.result == result
    assert own.lines == [line] and own.tokenizer == tokenizer.digest
    assert isinstance(rundir.beside(own, directory), rundir.Outcome)
    changes = (({"tokenizer": "x"}, "another tokenizer"), ({"data": (own.data[0], "x")}, "other text"))
    for change, reason in changes:
        assert reason in str(rundir.beside(dataclasses.replace(own, **change), directory))  # type: ignore[arg-type]
    assert "No finished run in" in str(rundir.beside(own, tmp_path / "none"))
    damages = ("[]", "5", "{}", '{"kind": "train", "step": 1}', '{"kind": "eval", "time_s": 1, "val_loss": NaN}',
               "[" * 3000, '{"kind": "train", "time_s": 1, "loss": 1e999}')  # fmt: skip
    for damaged in damages:  # which the report of a run that has come to its end would fail on
        (directory / "metrics.jsonl").write_text(f"{json.dumps(line)}\n{damaged}\n")
        assert "metrics.jsonl: expected a line of a run's numbers, got line 2: " in str(rundir.beside(own, directory))
    (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    rundir.finish(directory, result | {"n_params": None})
    assert "result.json: expected n_params among its keys, as numbers, got {" in str(rundir.beside(own, directory))
    (directory / "result.json").write_text("{}")
    assert f"cannot be read: {directory / 'result.json'}: expected val_loss, bits_per_byte, " in str(
        rundir.beside(own, directory)
    )
    (directory / "config.toml").write_text("[run]\n")
    assert "cannot be read" in str(rundir.beside(own, directory))
