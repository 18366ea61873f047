"""What lies in a folder of runs, finished or not, whole or not: plain values to compare. No torch here.

    runs/*/config.toml, metrics.jsonl, result.json ─▶ one record a run ─ where, sort ─▶ table · JSON · page · picture

A directory is only read: nothing is locked, mended or thrown out. What cannot be read is told in its record.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any, Literal

from gptrs import config as configs
from gptrs.model import count
from gptrs.model.config import ModelConfig
from gptrs.train import rundir
from gptrs.train.config import PretrainConfig
from gptrs.train.schedule import rows_before

State = Literal["running", "finished", "stopped", "unreadable"]
SORTS = ("name", "state", "step", "val_loss", "bits_per_byte", "tokens_per_s", "mfu", "seconds", "n_params")
_DEPTH = 3  # folders below the one that is asked for
_RECENT = 50  # logged updates whose median is the pace
_NAMES = ("run.name", "run.dir", "run.beside")  # always differ, and say nothing
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run directory. What is not known yet, or not readable, is None."""

    path: str
    name: str
    state: State
    step: int | None  # of the last line
    steps: int | None  # that the config asks for
    val_loss: float | None  # of the last evaluation
    best_val_loss: float | None
    bits_per_byte: float | None
    tokens_per_s: float | None  # median of the last logged updates
    mfu: float | None  # likewise
    seconds: float | None  # of training
    n_params: int | None
    memory_bytes: int | None  # the most that a line says
    problems: tuple[str, ...]  # what could not be read
    config: dict[str, Any]  # section.key: value
    lines: tuple[dict[str, Any], ...]  # of metrics.jsonl


def find(*folders: Path) -> list[Run]:
    """Returns the runs in folders and some levels below, by folder and path, each once.

    Raises: ValueError when there is none in one of them.
    """
    paths: dict[Path, Path] = {}  # by where it truly is
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder of runs, found none at {folder}")
        found = sorted(_directories(folder, _DEPTH))
        if not found:
            raise ValueError(f"expected run directories in {folder}, found none; hint: they have a {rundir.CONFIG}")
        for path in found:
            paths.setdefault(path.resolve(), path)
    return [read(path) for path in paths.values()]


def read(path: Path) -> Run:
    """Returns what a run directory says; never fails for what is in it."""
    problems: list[str] = []
    config = _config(path, problems)
    lines = _lines(path, problems)
    result = _json(path / rundir.RESULT, problems)
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    losses = [loss for line in evals if (loss := _number(line.get("val_loss"))) is not None]
    last = _last(lines, "time_s")
    return Run(
        path=str(path),
        name=str(config.get("run.name", path.name)),
        state="unreadable" if not config else _state(path, result),
        step=lines[-1]["step"] if lines else None,
        steps=_whole(config.get("train.steps")),
        val_loss=losses[-1] if losses else None,
        best_val_loss=min(losses, default=None),
        bits_per_byte=_last(evals, "bits_per_byte"),
        tokens_per_s=_pace(train, "tokens_per_s"),
        mfu=_pace(train, "mfu"),
        seconds=_number(result.get("seconds")) or last,
        n_params=_whole(result.get("n_params")) or _n_params(path),
        memory_bytes=max((n for line in train if (n := _whole(line.get("memory_bytes")))), default=None),
        problems=tuple(problems),
        config=config,
        lines=tuple(lines),
    )


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings in which runs differ, names and places aside, with each run's value; None: not there."""
    readable = [run.config for run in runs]
    keys = dict.fromkeys(key for config in readable for key in config if key not in _NAMES)
    values = {key: [config.get(key) for config in readable] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def where(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """Returns the runs for which every KEY=PATTERN holds: KEY a column or section.key, PATTERN as file names have.

    Raises: ValueError for a condition of another form or a key that no run has.
    """
    kept = list(runs)
    for text in conditions:
        key, equals, pattern = text.partition("=")
        if not equals or not key:
            raise ValueError(f"expected KEY=PATTERN, got {text!r}; hint: state=finished or optim.lr=0.001")
        if not any(key in run.config or key in SORTS for run in runs):
            raise ValueError(f"no run has {key!r}; hint: a column ({', '.join(SORTS)}) or a setting as optim.lr")
        kept = [run for run in kept if fnmatchcase(_text(value(run, key)), pattern)]
    return kept


def by(runs: Sequence[Run], key: str, *, is_reversed: bool = False) -> list[Run]:
    """Returns the runs in the order of a column or setting; those without a value last."""
    if not any(key in run.config or key in SORTS for run in runs):
        raise ValueError(f"no run has {key!r} to sort by; hint: {', '.join(SORTS)} or a setting as optim.lr")
    known = [run for run in runs if value(run, key) is not None]
    is_number = all(isinstance(value(run, key), int | float) for run in known)
    known.sort(key=lambda run: value(run, key) if is_number else _text(value(run, key)), reverse=is_reversed)
    return [*known, *(run for run in runs if value(run, key) is None)]


def value(run: Run, key: str) -> Any:
    """Returns a column or a setting of a run, None where it has none."""
    return getattr(run, key) if key in SORTS else run.config.get(key)


def curve(run: Run, x: Literal["step", "tokens", "time"], kind: Literal["train", "eval"]) -> list[tuple[float, float]]:
    """Returns the losses of the next token over updates, tokens or seconds."""
    points = []
    for line in run.lines:
        loss = _number(line.get("val_loss") if kind == "eval" else line.get("next_loss", line.get("loss")))
        at = line.get("time_s") if x == "time" else line["step"] if x == "step" else _tokens_before(run, line["step"])
        if line["kind"] == kind and loss is not None and (place := _number(at)) is not None:
            points.append((place, loss))
    return points


def _tokens_before(run: Run, step: int) -> int:
    """The tokens of so many updates of one rank's microbatches; of several a growing batch takes wider steps."""
    names = ("seq_len", "global_batch", "batch_start", "batch_warmup_steps", "micro_batch")
    length, full, start, warmup, micro = (_whole(run.config.get(f"train.{name}")) or 0 for name in names)
    if not start > 0 < warmup:
        return step * full * length
    return length * rows_before(step, start=start, full=full, warmup_steps=warmup, unit=max(micro, 1))


def _directories(folder: Path, depth: int) -> Iterator[Path]:
    """Run directories in a folder; there are none inside of one. A learning rate's search is no run."""
    if (folder / rundir.CONFIG).is_file():
        if not (folder / rundir.SEARCH).is_file():
            yield folder
        return
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # somebody else's, whose runs are not for us
        return
    for path in below if depth else ():
        yield from _directories(path, depth - 1)


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        plain = configs.read(path / rundir.CONFIG)
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return {}
    try:
        plain = configs.to_dict(configs.build(PretrainConfig, plain))  # with what it leaves to the defaults
    except (ValueError, TypeError) as error:  # of another version: its own keys are still worth a look
        problems.append(f"{rundir.CONFIG}: {error}")
    tables = {section: table for section, table in plain.items() if isinstance(table, dict)}
    return {f"{section}.{key}": entry for section, table in tables.items() for key, entry in table.items()}


def _lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole; the last one may be under way."""
    try:
        rows = (path / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(str(error))
        return []
    found = []
    n_bad = 0
    for i, row in enumerate(rows):
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            n_bad += i < len(rows) - 1
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("kind"), str):
            found.append(line)
        else:
            n_bad += 1
    if n_bad:
        problems.append(f"metrics.jsonl: {n_bad} of {len(rows)} lines cannot be read")
    return found


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        problems.append(f"{path.name}: {error}")
        return {}
    return found if isinstance(found, dict) else {}


def _state(path: Path, result: dict[str, Any]) -> State:
    if result:
        return "finished"
    return "running" if _is_locked(path / ".lock") else "stopped"


def _is_locked(lock: Path) -> bool:
    """Whether a process of this machine holds the lock, as Linux tells: to take it would disturb one that starts."""
    try:
        status, held = lock.stat(), _LOCKS.read_text(encoding="ascii")
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(place in line.split() and " FLOCK " in line for line in held.splitlines())


def _n_params(path: Path) -> int | None:
    """The model's parameters, as the newest checkpoint has its sizes."""
    for state in sorted((path / "checkpoints").glob("step-*/state.json"), reverse=True):
        try:
            return count.n_params(ModelConfig(**json.loads(state.read_bytes())["model"]))
        except (OSError, ValueError, KeyError, TypeError):  # that of the checkpoint before does as well
            continue
    return None


def _pace(train: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [n for line in train[-_RECENT:] if (n := _number(line.get(name))) is not None]
    return median(values) if values else None


def _last(lines: Sequence[dict[str, Any]], name: str) -> float | None:
    return next((n for line in reversed(lines) if (n := _number(line.get(name))) is not None), None)


def _number(found: object) -> float | None:
    return found if isinstance(found, int | float) and rundir.is_number(found) else None


def _whole(found: object) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _text(found: object) -> str:
    if isinstance(found, bool):
        return str(found).lower()
    return ",".join(map(str, found)) if isinstance(found, list | tuple) else "none" if found is None else str(found)
