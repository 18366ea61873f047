"""The search for a learning rate: what losses say, when it ends, and what it leaves behind."""

import json
import math
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptrs.cli import app
from gptrs.train import find_lr, metrics, pretrain, runs
from gptrs.train.find_lr import LARGE, Search, smooth, suggest
from test_pretrain import TINY, text, tiny

__all__ = ["text"]  # the fixture


def curve(rate: float, *, fast: float = 1e-3, turn: float = 1.0) -> float:
    """A loss that falls by 4 around `fast` and rises behind `turn`."""
    return 6 - 4 / (1 + fast / rate) + 4 * max(0.0, math.log10(rate / turn))


def test_the_worked_example_of_smoothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_lr, "_REACH", 1)
    assert smooth([0, 0, 4, 0, 0]) == [0, 1, 2, 1, 0]


def test_smoothing_moves_no_line() -> None:
    line = [3.0 - 0.1 * i for i in range(20)]
    assert smooth(line) == pytest.approx(line)


def test_rates_rise_by_equal_factors() -> None:
    search = Search()
    search.losses = [1.0] * search.n_updates
    factors = [b / a for a, b in pairwise(search.rates)]
    assert search.rates[0] == pytest.approx(1e-5) and search.rates[-1] == pytest.approx(1.0)
    assert factors == pytest.approx([factors[0]] * len(factors))


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    search = Search()
    search.losses = [curve(search.rate(i)) for i in range(100)]
    found = search.suggestion()
    assert found.lr == pytest.approx(1e-3, rel=0.15) and found.diverging is None
    assert len(str(found.lr).replace("0", "").replace(".", "")) <= 2


def test_or_a_tenth_of_where_it_diverges() -> None:
    search = Search()
    search.losses = [curve(search.rate(i), turn=3e-3) for i in range(100)]
    found = search.suggestion()
    assert found.diverging is not None and 3e-3 < found.diverging < 1e-2
    assert found.lr == pytest.approx(found.diverging / 10, rel=0.06) and found.lowest < found.diverging


def test_noise_of_single_batches_moves_it_little() -> None:
    search = Search()
    search.losses = [curve(search.rate(i)) + 0.1 * math.sin(37.0 * i * i) for i in range(100)]
    assert 4e-4 < search.suggestion().lr < 2.5e-3


def test_a_loss_that_never_falls_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected the loss to fall at some rate up to .*; hint: larger batches"):
        suggest([1e-5, 1e-4, 1e-3], [2.0, 2.0, 3.0])


def test_it_ends_when_the_loss_rises_above_its_beginning_or_is_no_number() -> None:
    search = Search()
    search.losses = [5.0, 4.5, 4.0, 4.2, 4.9]
    assert not search.is_over
    search.losses += [7.0, 9.0]
    assert search.is_over
    search.losses = [5.0, LARGE]
    assert search.is_over


def test_a_search_leaves_its_files_beside_the_run_which_is_not_in_its_way(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["train", "shakespeare_cpu", "--find-lr", *_overrides(text, run)])
    assert done.exit_code == 0, done.output
    assert not run.exists()
    side = tmp_path / "run-find-lr"
    found = json.loads((side / "find-lr.json").read_text())
    assert done.output.strip().splitlines()[-1] == f"suggestion optim.lr={found['lr']:g}"
    assert len(found["rates"]) == len(found["losses"]) <= 100 and 1e-5 <= found["lr"] <= 1
    assert (side / "find-lr.png").read_bytes().startswith(b"\x89PNG")
    pretrain.run(tiny(text, run, f"optim.lr={found['lr']}", "schedule.min_lr=0", "train.steps=1"))
    first = metrics.read(run / "metrics.jsonl")[0]
    assert found["losses"][0] == first["loss"], "the run begins as the search began"
    assert [found.name for found in runs.find(tmp_path)] == [runs.read(run).name], "a search is no run"
    assert runs.read(side).name == f"{runs.read(run).name}-find-lr"
    again = find_lr.find_rate(tiny(text, run))  # not refused, and the same
    assert again.lr == found["lr"]


def test_ctrl_c_ends_it_and_leaves_no_result(text: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gptrs",
        "train",
        "shakespeare_cpu",
        "--find-lr",
        *_overrides(text, tmp_path / "run"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("step 10/"):
                child.send_signal(signal.SIGINT)
                break
        rest = child.communicate(timeout=60)[0]
    assert child.returncode not in (0, None), rest
    assert not (tmp_path / "run-find-lr" / "find-lr.json").exists()


def _overrides(text: Path, run: Path) -> list[str]:
    return [*TINY, f"data.text={text}", f"run.dir={run}"]


@pytest.mark.parametrize("more", [["--fresh"], ["--allow", "optim.lr"], ["--profile", "1,2"]])
def test_it_takes_no_options_of_the_run(text: Path, tmp_path: Path, more: list[str]) -> None:
    arguments = ["train", "shakespeare_cpu", f"data.text={text}", f"run.dir={tmp_path / 'run'}", "--find-lr", *more]
    end = CliRunner().invoke(app, arguments)
    assert end.exit_code == 2 and "leaves the run alone" in end.output
    assert not (tmp_path / "run").exists()
