"""Trackers: the real libraries without a network, the same run after a resume, and failures that end no training."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gptrs.train import trackers

CONFIG = {"run": {"name": "n"}, "train": {"steps": 5}}


def start(names: tuple[str, ...], directory: Path, said: list[str] | None = None) -> trackers.Trackers:
    found = trackers.start(
        names, project="p", name="n", directory=directory, config=CONFIG, say=[].append if said is None else said.append
    )
    assert found is not None
    return found


class Recorder:
    """A tracker that remembers, and fails or waits where it is told to."""

    id = "7"

    def __init__(self, filing: trackers.Filing) -> None:
        self.filing = filing
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed: list[bool] = []
        self.fails_at = -1
        self.gate: threading.Event | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.gate is not None:
            self.gate.wait(10)
        if step == self.fails_at:
            raise ConnectionError("no route")
        self.lines.append((step, dict(values)))

    def close(self, *, is_finished: bool) -> None:
        self.closed.append(is_finished)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorder]]:
    """The recorders that stand in for wandb and trackio, in the order they were opened."""
    found: list[Recorder] = []

    def make(filing: trackers.Filing) -> Recorder:
        found.append(Recorder(filing))
        return found[-1]

    monkeypatch.setattr(trackers, "_KINDS", {"wandb": make, "trackio": make})
    yield found


def test_lines_arrive_in_order_under_their_kinds(tmp_path: Path, made: list[Recorder]) -> None:
    run = start(("wandb",), tmp_path)
    run.write("train", 1, {"loss": 2.0})
    run.write("eval", 1, {"val_loss": 1.5})
    run.close(is_finished=True)
    assert made[0].lines == [(1, {"train/loss": 2.0}), (1, {"eval/val_loss": 1.5})] and made[0].closed == [True]
    assert made[0].filing.config == {"run.name": "n", "train.steps": 5} and made[0].filing.id is None


def test_a_resumed_run_is_filed_where_it_was(tmp_path: Path, made: list[Recorder]) -> None:
    start(("wandb", "trackio"), tmp_path).close(is_finished=False)
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "7", "trackio": "7"}
    start(("wandb", "trackio"), tmp_path).close(is_finished=True)
    assert [recorder.filing.id for recorder in made] == [None, None, "7", "7"]


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[1]", b'{"wandb": 3}', b'{"wandb"'])
def test_a_damaged_file_of_ids_costs_no_run(tmp_path: Path, made: list[Recorder], damage: bytes) -> None:
    (tmp_path / "trackers.json").write_bytes(damage)
    said: list[str] = []
    start(("wandb",), tmp_path, said).close(is_finished=True)
    assert made[0].filing.id is None and "trackers.json" in said[0] and "filed as a new one" in said[0]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "7"}


def test_one_that_fails_is_told_once_and_left_out_and_the_others_go_on(tmp_path: Path, made: list[Recorder]) -> None:
    said: list[str] = []
    run = start(("wandb", "trackio"), tmp_path, said)
    made[0].fails_at = 2
    for step in range(1, 5):
        run.write("train", step, {"loss": 1.0})
    run.close(is_finished=True)
    assert said == ["warning: wandb failed and is left out from here on: no route; metrics.jsonl has all"]
    assert [step for step, _ in made[0].lines] == [1] and made[0].closed == []
    assert [step for step, _ in made[1].lines] == [1, 2, 3, 4] and made[1].closed == [True]


def test_a_slow_one_holds_nothing_up(tmp_path: Path, made: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_PATIENCE_S", 0.05)
    said: list[str] = []
    run = start(("wandb",), tmp_path, said)
    made[0].gate = threading.Event()
    begin = time.perf_counter()
    for step in range(1000):
        run.write("train", step, {"loss": 1.0})
    run.close(is_finished=True)
    assert time.perf_counter() - begin < 1
    assert said == ["warning: wandb did not take the last lines in 0 s; metrics.jsonl has them"]
    made[0].gate.set()


def test_a_new_run_is_refused_where_it_cannot_be_filed_and_a_resumed_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(filing: trackers.Filing) -> Recorder:
        raise PermissionError("not logged in")

    monkeypatch.setattr(trackers, "_KINDS", {"wandb": fail})
    with pytest.raises(ValueError, match=r"wandb does not begin a run: not logged in; hint: unset log\.trackers"):
        start(("wandb",), tmp_path)
    (tmp_path / "trackers.json").write_text('{"wandb": "7"}')
    said: list[str] = []
    start(("wandb",), tmp_path, said).close(is_finished=True)
    assert said == ["warning: wandb does not go on with run 7 and is left out: not logged in"]


def test_without_trackers_nothing_starts(tmp_path: Path) -> None:
    assert trackers.start((), project="p", name="n", directory=tmp_path, config=CONFIG, say=print) is None
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_missing_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    message = r"log\.trackers has mlflow, which is not installed; hint: pip install mlflow-skinny, or 'gptrs\[track\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        trackers.require(("mlflow",))
    trackers.require(())


# A process of its own: these libraries keep threads, services and settings of the environment. Steps 1 to 3, then from
# a checkpoint at 2 on to the end.
CODE = """
import sys
from pathlib import Path
from gptrs.train import trackers
for steps, is_finished in ((range(1, 4), False), (range(3, 6), True)):
    run = trackers.start((sys.argv[1],), project="p", name="n", directory=Path("."), say=print,
                         config={"run": {"name": "n"}, "train": {"steps": 5, "betas": [0.9, 0.95]}})
    for step in steps:
        run.write("train", step, {"loss": 10.5 - step, "grad_norm/further 0/router biases": 0.5})
    run.close(is_finished=is_finished)
"""


def run_twice(name: str, directory: Path, **environment: str) -> None:
    """A run that is resumed, offline."""
    pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, "-c", CODE, name],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout, done.stdout


@pytest.mark.long  # its import alone takes seconds
def test_mlflow_has_the_run_once_with_all_its_steps(tmp_path: Path) -> None:
    uri = (tmp_path / "store").as_uri()
    run_twice("mlflow", tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_ALLOW_FILE_STORE="true")
    run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    (folder,) = (path for path in (tmp_path / "store").glob("*/*") if path.name == run_id)
    lines = (folder / "metrics" / "train" / "loss").read_text().splitlines()
    assert [(float(line.split()[1]), int(line.split()[2])) for line in lines] == [
        (10.5 - step, step) for step in (1, 2, 3, 3, 4, 5)
    ]
    assert (folder / "params" / "train.steps").read_text() == "5"
    assert (folder / "metrics" / "train" / "grad_norm" / "further 0" / "router biases").is_file()
    assert "status: 3" in (folder / "meta.yaml").read_text(), "finished"


def test_trackio_has_the_run_once_with_all_its_steps(tmp_path: Path) -> None:
    run_twice("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    name = json.loads((tmp_path / "trackers.json").read_text())["trackio"]
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as store:
        rows = store.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {row[0] for row in rows} == {name}
    steps = [(step, json.loads(values)["train/loss"]) for _, step, values in rows]
    assert steps == [(step, 10.5 - step) for step in (1, 2, 3, 3, 4, 5)]


@pytest.mark.long
def test_wandb_offline_keeps_both_parts_under_one_id(tmp_path: Path) -> None:
    folders = {name: str(tmp_path / "own") for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")}
    run_twice("wandb", tmp_path, WANDB_MODE="offline", **folders)
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    for file, last in zip(files, (3, 5), strict=True):
        data = file.read_bytes()
        assert b"train/loss" in data and f"{10.5 - last}".encode() in data
