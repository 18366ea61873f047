"""The lines of metrics.jsonl for wandb, trackio and MLflow, where the config names them.

    MetricsLog ─▶ Trackers ─ queue ─▶ a thread ─▶ wandb · trackio · mlflow

A tracker is a window and never a part of the training: it is told from a thread of its own, so a server that is slow
holds up nothing, and one that fails is named once and left out from then on. Where a run is filed stands in
trackers.json, so that a resumed run goes on there; what it had told behind its checkpoint, it tells again.

Addresses, accounts and offline modes are the libraries' own: WANDB_MODE=offline, then `wandb sync`; trackio is local
unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set; MLFLOW_TRACKING_URI.
"""

import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from gptrs.files import write_atomic

FILE = "trackers.json"  # {"wandb": id, "trackio": name, "mlflow": id}
PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow-skinny"}
_PATIENCE_S = 30.0  # for the last lines, at the end of a run
_MOST_METRICS = 1000  # of one call to MLflow
_MOST_PARAM = 6000  # characters of one setting there

Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Filing:
    """What a tracker files a run under."""

    project: str
    name: str
    directory: Path  # the run directory
    config: Mapping[str, Any]  # section.key: value
    id: str | None  # where the tracker has the run already; None: a new one


class Tracker(Protocol):
    """One library's run."""

    @property
    def id(self) -> str: ...

    def write(self, step: int, values: Values) -> None: ...

    def close(self, *, is_finished: bool) -> None: ...


class Trackers:
    """All trackers of a run, told from one thread in the order of the lines."""

    def __init__(self, trackers: Mapping[str, Tracker], *, say: Callable[[str], None]) -> None:
        self._trackers = dict(trackers)
        self._say = say
        self._jobs: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="gptrs-trackers", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, values: Values) -> None:
        """Hands a line on; returns at once."""
        named = {f"{kind}/{name}": value for name, value in values.items()}
        self._jobs.put(lambda tracker: tracker.write(step, named))

    def close(self, *, is_finished: bool) -> None:
        """Waits some seconds for the last lines, says when they did not get through."""
        self._jobs.put(lambda tracker: tracker.close(is_finished=is_finished))
        self._jobs.put(None)
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            names = ", ".join(self._trackers)
            self._say(f"warning: {names} did not take the last lines in {_PATIENCE_S:.0f} s; metrics.jsonl has them")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            for name, tracker in list(self._trackers.items()):
                try:
                    job(tracker)
                except Exception as error:  # whatever a library of others raises, the training goes on
                    del self._trackers[name]
                    self._say(f"warning: {name} failed and is left out from here on: {error}; metrics.jsonl has all")


def require(names: tuple[str, ...]) -> None:
    """Raises ModuleNotFoundError for a tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"log.trackers has {name}, which is not installed; hint: pip install {PACKAGES[name]}, "
                "or 'gptrs[track]' for all"
            )


def start(
    names: tuple[str, ...],
    *,
    project: str,
    name: str,
    directory: Path,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> Trackers | None:
    """Opens the named trackers, where the run was filed before or anew; None without names.

    Raises: ValueError when one does not let a new run begin. A resumed run goes on without it, and says so.
    """
    if not names:
        return None
    file = directory / FILE
    ids = _filed(file, say)
    flat = {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}
    opened: dict[str, Tracker] = {}
    for each in names:
        filing = Filing(project=project, name=name, directory=directory, config=flat, id=ids.get(each))
        try:
            opened[each] = _KINDS[each](filing)
        except Exception as error:
            hint = f"hint: unset log.trackers{', or set WANDB_MODE=offline' if each == 'wandb' else ''}"
            if each not in ids:
                raise ValueError(f"{each} does not begin a run: {error}; {hint}") from error
            say(f"warning: {each} does not go on with run {ids[each]} and is left out: {error}")
        else:
            ids[each] = opened[each].id
            write_atomic(file, (json.dumps(ids, indent=1) + "\n").encode())
    return Trackers(opened, say=say)


def _filed(file: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Where a run was filed before, by tracker; a file that is damaged costs no run."""
    if not file.is_file():
        return {}
    try:
        ids = json.loads(file.read_bytes())
        if not (isinstance(ids, dict) and all(isinstance(value, str) for value in ids.values())):
            raise ValueError(f"{ids!r:.60}")
    except ValueError as error:
        say(f"warning: expected the run's id at each tracker in {file}, got {error}; it is filed as a new one")
        return {}
    return ids


class _Wandb:
    def __init__(self, filing: Filing) -> None:
        import wandb

        self.id = filing.id or secrets.token_hex(4)
        self._run = wandb.init(
            project=filing.project,
            name=filing.name,
            id=self.id,
            resume="allow",
            dir=str(filing.directory),
            config=dict(filing.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # its own steps only rise, a resumed run's go back

    def write(self, step: int, values: Values) -> None:
        self._run.log({"step": step, **values})

    def close(self, *, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)


class _Trackio:
    def __init__(self, filing: Filing) -> None:
        import trackio

        self.id = filing.id or f"{filing.name}-{secrets.token_hex(3)}"  # it knows runs by name
        self._run = trackio.init(
            project=filing.project, name=self.id, config=dict(filing.config), resume="allow", embed=False
        )

    def write(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, is_finished: bool) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, filing: Filing) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if filing.id is not None:
            self.id = filing.id
            self._client.update_run(self.id, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(filing.project)
        experiment = known.experiment_id if known else self._client.create_experiment(filing.project)
        self.id = str(self._client.create_run(experiment, run_name=filing.name).info.run_id)
        settings = [Param(key, str(value)[:_MOST_PARAM]) for key, value in filing.config.items()]
        self._client.log_batch(self.id, params=settings)

    def write(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(key, value, now_ms, step) for key, value in values.items()]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self.id, metrics=metrics[first : first + _MOST_METRICS])

    def close(self, *, is_finished: bool) -> None:
        self._client.set_terminated(self.id, status="FINISHED" if is_finished else "KILLED")


_KINDS: dict[str, Callable[[Filing], Tracker]] = {"wandb": _Wandb, "trackio": _Trackio, "mlflow": _Mlflow}
