"""The run directory: whose it is, whether to go on there, and what an earlier run left in it.

config.toml  tokenizer.json  tokenizer.warm  data/  checkpoints/  metrics.jsonl  tensorboard/  samples.txt  loss.png
report.html  trackers.json, wandb/ and profile/ (where the config asks)  result.json (written last: the run is finished)
"""

import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gptrs import config as configs
from gptrs.dataset import Dataset
from gptrs.files import temporary_of, write_atomic
from gptrs.mixture import Mixture
from gptrs.train import resume

CONFIG = "config.toml"
RESULT = "result.json"
SEARCH = "find-lr.json"  # in the directory of a search for the learning rate
PLACES = ("data", "checkpoints", "tensorboard", "profile", "wandb")
FILES = (
    RESULT, "tokenizer.json", "tokenizer.warm", "metrics.jsonl", "samples.txt", "loss.png", "report.html",
    "trackers.json",
)  # fmt: skip

_SHOWN = ("val_loss", "bits_per_byte", "n_params", "steps", "seconds")  # of another run's result
_PATIENCE_S = 5.0  # a process that was killed a moment ago still holds its lock until all of its memory is freed


@contextmanager
def claim(directory: Path, config: Any, *, is_fresh: bool, allow: Iterable[str] = ()) -> Iterator[None]:
    """Holds the directory for one process, with the resolved config in it: a new run's, or the same one's to go on.

    Args: allow: settings (section.key) that may differ from the run's; `settle` then stores them.
    Raises: ValueError when it holds a finished run, another run or other files; OSError when a process works there or
        nothing can be written.
    """
    _make(directory)
    with (directory / ".lock").open("w") as lock:
        if not _is_free(lock):
            raise OSError(f"expected to be alone in {directory}, got another process that trains there")
        temporary_of(directory / CONFIG).unlink(missing_ok=True)  # of a run that was killed before it was one
        is_run = (directory / CONFIG).is_file()
        if not (is_run and is_fresh):
            _check(directory, config, tuple(allow))
        else:
            clear(directory)
        if is_fresh or not is_run:
            write_atomic(directory / CONFIG, configs.dumps(config).encode())
        yield


def _is_free(lock: IO[str]) -> bool:
    """Takes the lock if it can be had soon."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        else:
            return True


def settle(directory: Path, config: Any) -> None:
    """Stores the config that a run goes on with, once its state was found to fit; a finished run is open again."""
    (directory / RESULT).unlink(missing_ok=True)
    text = configs.dumps(config).encode()
    if (directory / CONFIG).read_bytes() != text:
        write_atomic(directory / CONFIG, text)


def is_finished(directory: Path) -> bool:
    """Returns whether the directory holds a run that came to its end."""
    return (directory / RESULT).is_file()


def finish(directory: Path, result: Mapping[str, Any]) -> None:
    """Writes result.json: from now on the run is finished."""
    write_atomic(directory / RESULT, (json.dumps(result, indent=1) + "\n").encode())


def _result(directory: Path, *needed: str) -> dict[str, Any]:
    """What result.json holds, with what is needed of it.

    Raises: ValueError, naming the file, when it is damaged.
    """
    path = directory / RESULT
    hint = "hint: remove it, and the command that made the run ends it again from its newest checkpoint"
    try:
        result = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}; {hint}") from error
    missing = [name for name in needed if not (isinstance(result, dict) and is_number(result.get(name)))]
    if missing:
        expected = f"{', '.join(missing)} among its keys, as numbers"
        raise ValueError(f"{path}: expected {expected}, got {result!r:.60}; {hint}")
    assert isinstance(result, dict), "something was needed"
    return result


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that can be drawn.

    Raises: ValueError, naming file and line, when it is damaged.
    """
    found: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(text)
            needed = {"train": ("time_s", "loss"), "eval": ("time_s", "val_loss")}.get(line["kind"], ())
            is_whole = all(is_number(line.get(name)) for name in needed)
        except (ValueError, RecursionError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"{path}: expected a line of a run's numbers, got line {number}: {text!r:.60}")
        found.append(line)
    return found


def is_number(found: object) -> bool:
    """Whether a value of a file is a number that can be shown; JSON of Python also has nan and the infinities."""
    return isinstance(found, int | float) and not isinstance(found, bool) and abs(found) <= sys.float_info.max


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What a run came to, and on what."""

    name: str
    result: Mapping[str, Any]  # as result.json
    lines: Sequence[dict[str, Any]]  # of metrics.jsonl
    tokenizer: str  # digest
    data: tuple[str, str]  # fingerprints of the training and the held-out part


def outcome(directory: Path) -> Outcome | None:
    """Returns what the finished run in a directory came to, None when there is none."""
    if not is_finished(directory):
        return None
    config = configs.read(directory / CONFIG)
    data = config.get("data", {})
    val = Dataset(data.get("val") or directory / "data" / "val")
    sources = {path: Dataset(path) for path in data.get("mixture", ())}
    train = Mixture(sources) if sources else Dataset(data.get("train") or directory / "data" / "train")
    return Outcome(
        name=config["run"]["name"],
        result=_result(directory, *_SHOWN),
        lines=_lines(directory / "metrics.jsonl"),
        tokenizer=val.tokenizer_digest,
        data=(train.fingerprint, val.fingerprint),
    )


def beside(own: Outcome, directory: Path) -> Outcome | str:
    """Returns the outcome of another run on the same tokens, or the sentence that says why there is none."""
    try:
        other = outcome(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:  # somebody else's directory must not end this run
        return f"The run in {directory} cannot be read: {error}."
    if other is None:
        return f"No finished run in {directory} to compare with; `gptrs demo` makes that of runs/demo, then run again."
    if other.tokenizer != own.tokenizer:
        return f"The run in {directory} has another tokenizer: a loss for a token of one is none for the other's."
    if other.data != own.data:
        return f"The run in {directory} was trained or evaluated on other text: its loss says nothing about this one's."
    return other


def clear(directory: Path) -> None:
    """Removes what a run writes and nothing else; config.toml stays, it marks the directory as a run's."""
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    for name in PLACES:
        if (directory / name).exists():
            shutil.rmtree(directory / name)


def _make(directory: Path) -> None:
    """Makes the directory, and sees that a file can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".lock").open("a").close()
    except OSError as error:
        is_file = isinstance(error, NotADirectoryError | FileExistsError)
        cure = "move the file that stands in its way" if is_file else "give leave there"
        hint = f"hint: {cure}, or run.dir=… takes another directory"
        text = f"cannot write to the run directory {directory}: {error.strerror or error}; {hint}"
        raise OSError(error.errno, text) from error


def _check(directory: Path, config: Any, allow: tuple[str, ...]) -> None:
    hint = "hint: --fresh starts it anew, run.dir=… takes another directory"
    if not (directory / CONFIG).is_file():
        others = sorted(path.name for path in directory.iterdir() if path.name != ".lock")
        if others:
            raise ValueError(f"expected a run or an empty directory in {directory}, got {others[0]}; hint: run.dir=…")
        return
    found = resume.changes(configs.load(type(config), directory / CONFIG), config)
    resume.check(found, allow, schema=type(config), where=str(directory), hint=hint)
    if not is_finished(directory):
        return
    minutes = config.train.max_minutes
    result = _result(directory, "steps", *(() if minutes is None else ("seconds",)))
    if not _is_longer(found, result):
        longer = "a larger train.steps with --allow train.steps trains on"
        raise ValueError(f"{directory} holds a finished run of this config; {hint}, {longer}")
    if minutes is not None and 60 * minutes <= result["seconds"]:  # it would end again at once
        raise ValueError(
            f"{directory} holds a finished run that trained for {result['seconds'] / 60:.3g} minutes, and "
            f"train.max_minutes ends it at {minutes:g}; hint: a larger train.max_minutes, or none, with "
            "--allow train.max_minutes trains on"
        )


def _is_longer(found: Sequence[resume.Change], result: Mapping[str, Any]) -> bool:
    """Whether changes give a finished run more to do: more steps, or more time where time ended it."""
    for change in found:
        if change.key == "train.steps" and change.new > result["steps"]:
            return True
        if change.key == "train.max_minutes" and result.get("is_capped"):
            return change.new is None or 60 * float(change.new) > result["seconds"]
    return False
