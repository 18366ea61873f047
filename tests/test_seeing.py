"""What a run tells while it goes: statistics that survive kills, a report of what there is so far, its pictures."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gptrs import chart, stats_report
from gptrs.cli import app
from gptrs.train import metrics, pretrain
from gptrs.train.pretrain import Session
from pages import Page
from test_pretrain import DEEPSEEK, TINY, lines_of, outcome, run_until_killed, straight, text, tiny
from test_training_options import rewind

__all__ = ["straight", "text"]  # fixtures
LOOKS = ("log.stats_every=4", "log.profile=3,4")


def without_stats(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "metrics": [line for line in found["metrics"] if line["kind"] != "stats"]}


def test_a_watched_run_is_the_same_run_after_a_kill_too(text: Path, tmp_path: Path, straight: dict[str, Any]) -> None:
    directory = tmp_path / "run"
    run_until_killed(lambda: pretrain.run(tiny(text, directory, *LOOKS)), directory, n_lines=15)
    pretrain.run(tiny(text, directory, *LOOKS))
    assert without_stats(outcome(directory)) == straight
    looks = [line for line in lines_of(directory) if line["kind"] == "stats"]
    assert [line["step"] for line in looks] == [4, 8, 12, 16, 20]
    pretrain.run(tiny(text, tmp_path / "whole", *LOOKS))
    assert looks == [line for line in lines_of(tmp_path / "whole") if line["kind"] == "stats"]
    assert (tmp_path / "whole" / "profile" / "trace.json.gz").stat().st_size > 1000
    page = Page((directory / "report.html").read_text())
    assert "Inside the model on the way" in page.text and page.open == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_a_run_that_was_begun_without_it_is_traced_too(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain.run(tiny(text, run))
    straight = lines_of(run)
    rewind(run, 15)
    words = ["train", "shakespeare_cpu", *TINY, f"data.text={text}", f"run.dir={run}", "--profile", "17,18"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "traced updates 17 to 18" in done.output and (run / "profile" / "trace.json.gz").stat().st_size > 1000
    assert [line for line in lines_of(run) if line["kind"] != "event"] == straight


def test_a_run_that_goes_on_has_a_report_of_what_there_is(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: dict[int, str] = {}

    def report(self: Session, position: Any) -> None:
        original(self, position)
        pages[position.step] = (self.dir / "report.html").read_text()

    original = Session._report
    monkeypatch.setattr(Session, "_report", report)
    pretrain.run(tiny(text, tmp_path / "run", *DEEPSEEK, "log.stats_every=4"))
    assert list(pages) == [8, 16]
    page = Page(pages[8])
    assert "Not finished: step 8 of 20" in page.text and page.open == []
    for heading in ("So far", "Loss", "Inside the model on the way", "Samples", "Data", "Parameters"):
        assert f"<h2>{heading}</h2>" in pages[8], heading
    for heading in ("One sentence, position by position", "Load of the experts"):
        assert heading not in pages[8] and heading in (tmp_path / "run" / "report.html").read_text()
    assert "Not finished" not in (tmp_path / "run" / "report.html").read_text()


def test_what_may_be_left_out_takes_a_hundredth_of_the_time() -> None:
    pace, calls = metrics.Pace(), []
    for _ in range(3):
        pace.do(lambda: calls.append(time.sleep(0.01)))
    assert len(calls) == 1
    pace.do(lambda: calls.append(None), is_last=True)
    assert len(calls) == 2
    free = metrics.Pace(share=1.0)
    for _ in range(3):
        free.do(lambda: calls.append(time.sleep(0.001)))
    assert len(calls) == 5


def stats_line(step: int, **values: float) -> dict[str, Any]:
    return {"kind": "stats", "step": step, **{name.replace("__", "/"): value for name, value in values.items()}}


def test_a_layers_parts_become_one_number() -> None:
    lines = [stats_line(2, grad_norm__0__attention=3.0, grad_norm__0__norms=4.0, update_ratio__0__norms=0.1)]
    lines.append(stats_line(4, grad_norm__outside__head=1.0, update_ratio__0__norms=0.2))
    assert stats_report._rows(lines, "grad_norm", is_joint=True) == [("layer 0", [5.0, None]), ("outside", [None, 1.0])]
    assert stats_report._rows(lines, "update_ratio", is_joint=False) == [("layer 0", [0.1, 0.2])]
    shown = Page(stats_report.statistics(lines))
    assert "2 looks, from update 2 to 4" in shown.text and "layer 0, update 2: 5" in shown.text
    assert stats_report.statistics([{"kind": "train", "step": 1}]) == ""


def test_many_looks_are_thinned_evenly_and_keep_both_ends() -> None:
    lines = [stats_line(step, act_max__0=step) for step in range(1, 1001)]
    shown = stats_report._spread(lines)
    assert len(shown) == stats_report.MOST_COLUMNS and (shown[0]["step"], shown[-1]["step"]) == (1, 1000)
    gaps = {b["step"] - a["step"] for a, b in itertools.pairwise(shown)}
    assert gaps <= {25, 26}


def test_a_heat_map_is_darkest_at_the_most_on_a_logarithmic_scale() -> None:
    page = Page(chart.heat([("a < b", [1.0, 10.0, 100.0]), ("c", [None, 0.0, 100.0])], columns=[1, 2, 3], x_label="x"))
    shades = [float(str(attributes["fill-opacity"])) for tag, attributes in page.tags if tag == "rect"]
    assert shades == [0.06, 0.53, 1.0, 0.06, 1.0] and page.open == [] and "a < b" in page.text
    Page(chart.heat([("zeros", [0.0, 0.0])], columns=[1, 2], x_label="x"))
