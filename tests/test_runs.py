"""`gptrs runs`: runs beside each other, whatever state their directories are in."""

import fcntl
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from gptrs import config as configs
from gptrs.train import runs, runs_view
from gptrs.train.config import load
from pages import Page


def make(folder: Path, name: str, *overrides: str, losses: tuple[float, ...] = (3.0, 2.0), ends: bool = True) -> Path:
    """A run directory as a run leaves it: four updates a look, of 4 × 16 tokens each."""
    path = folder / name
    path.mkdir(parents=True)
    sizes = ("train.global_batch=4", "train.seq_len=16", "model.dim=16", "model.n_layers=1", "model.n_heads=2")
    steps = 4 * len(losses)
    config = load("shakespeare_cpu", [*sizes, f"run.name={name}", f"train.steps={steps}", *overrides])
    (path / "config.toml").write_text(configs.dumps(config))
    lines: list[dict[str, Any]] = []
    for look, loss in enumerate(losses):
        for step in range(4 * look + 1, 4 * look + 5):
            figures = {"loss": loss + 0.1, "tokens_per_s": 100.0 * step, "mfu": 0.01 * step, "memory_bytes": 10**9}
            lines.append({"kind": "train", "step": step, **figures, "time_s": 0.5 * step})
        at = {"step": 4 * look + 4, "time_s": 2.0 * look + 2}
        lines.append({"kind": "eval", **at, "val_loss": loss, "bits_per_byte": loss / 2})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / ".lock").touch()
    if ends:
        (path / "result.json").write_text(json.dumps({"val_loss": losses[-1], "seconds": 9.0, "n_params": 4321}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path, "a", "optim.lr=0.01")
    make(tmp_path, "b", "optim.lr=0.003", losses=(3.5, 1.5, 1.75))
    make(tmp_path / "deeper", "c", "run.dtype=bf16", losses=(2.5,), ends=False)
    return tmp_path


def test_a_finished_run_says_what_it_came_to(folder: Path) -> None:
    run = runs.read(folder / "b")
    assert (run.name, run.state, run.step, run.steps) == ("b", "finished", 12, 12)
    assert (run.val_loss, run.best_val_loss, run.bits_per_byte) == (1.75, 1.5, 0.875)
    assert (run.tokens_per_s, run.mfu, run.seconds) == (650.0, pytest.approx(0.065), 9.0)
    assert (run.n_params, run.memory_bytes, run.problems) == (4321, 10**9, ())


def test_states_are_told_apart_without_taking_a_lock(folder: Path) -> None:
    found = {run.name: run.state for run in runs.find(folder)}
    assert found == {"a": "finished", "b": "finished", "c": "stopped"}
    path = folder / "deeper" / "c"
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        expected = "running" if Path("/proc/locks").exists() else "stopped"
        assert runs.read(path).state == expected
    assert runs.read(path).state == "stopped"


def test_the_parameters_of_an_unfinished_run_are_its_checkpoints(folder: Path) -> None:
    from gptrs.model import ModelConfig, count

    path = folder / "deeper" / "c"
    assert runs.read(path).n_params is None
    sizes = {"vocab_size": 280, "max_seq_len": 16, "dim": 16, "n_layers": 1, "n_heads": 2, "inter_dim": 64}
    for step, content in ((4, json.dumps({"model": sizes})), (8, "{")):
        state = path / "checkpoints" / f"step-{step:08}" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text(content)
    assert runs.read(path).n_params == count.n_params(ModelConfig(**sizes))


def test_settings_that_differ_are_named_and_names_are_not(folder: Path) -> None:
    found = runs.differing(runs.find(folder))
    assert found == {
        "run.dtype": ["auto", "auto", "bf16"],
        "optim.lr": [0.01, 0.003, load("shakespeare_cpu").optim.lr],
        "train.steps": [8, 12, 4],
    }


def test_runs_are_sorted_and_chosen_by_columns_and_settings(folder: Path) -> None:
    found = runs.find(folder)

    def names(some: list[runs.Run]) -> str:
        return "".join(run.name for run in some)

    assert names(runs.by(found, "val_loss")) == "bac"
    assert names(runs.by(found, "n_params", is_reversed=True)) == "abc", "equal ones as they were, unknown ones last"
    assert names(runs.by(found, "optim.lr")) == "cba", "0.001 of the config itself, 0.003, 0.01"
    assert names(runs.by(found, "run.dtype")) == "abc"
    assert names(runs.where(found, ["state=finished", "optim.lr=0.00*"])) == "b"
    assert names(runs.where(found, ["name=[ac]"])) == "ac"
    for condition, message in (("lr", "expected KEY=PATTERN, got 'lr'"), ("lr=1", "no run has 'lr'; hint: a column")):
        with pytest.raises(ValueError, match=message):
            runs.where(found, [condition])
    with pytest.raises(ValueError, match="no run has 'loss' to sort by; hint: name, state"):
        runs.by(found, "loss")


def test_curves_run_over_steps_tokens_or_time(folder: Path) -> None:
    run = runs.read(folder / "a")
    assert runs.curve(run, "step", "eval") == [(4, 3.0), (8, 2.0)]
    assert runs.curve(run, "tokens", "eval") == [(256, 3.0), (512, 2.0)]
    assert runs.curve(run, "time", "train")[:2] == [(0.5, 3.1), (1.0, 3.1)]


def test_tokens_of_a_batch_that_grows_are_those_that_were_read(tmp_path: Path) -> None:
    growth = ("train.micro_batch=1", "train.batch_start=1", "train.batch_warmup_steps=6")
    run = runs.read(make(tmp_path, "a", *growth))
    rows = (1, 1, 2, 2, 3, 3, 4, 4)
    assert [at for at, _ in runs.curve(run, "tokens", "train")] == [16 * sum(rows[:n]) for n in range(1, 9)]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / "config.toml").write_text("[run"), "expected TOML"),
        (lambda path: (path / "config.toml").write_bytes(b"\xff"), "expected TOML"),
        (lambda path: (path / "config.toml").write_text("[run]\nname = 3\n"), "config.toml: "),
        (lambda path: (path / "config.toml").write_text("[later]\nkey = 1\n"), "unknown section later"),
        (lambda path: (path / "metrics.jsonl").write_bytes(b"\xff{\n[1]\n{}\n" * 3), "9 of 9 lines cannot be read"),
        (lambda path: (path / "result.json").write_text("{"), "result.json: "),
        (lambda path: (path / "result.json").write_text("[]"), None),
        (lambda path: (path / "result.json").write_text('{"seconds": Infinity, "n_params": 1e999}'), None),
        (lambda path: (path / "result.json").write_text("[" * 3000), "result.json: "),
        (lambda path: (path / "config.toml").write_text("a = " + "[" * 3000), "expected TOML"),
        (lambda path: (path / "metrics.jsonl").write_text("[" * 3000 + "\n{}\n"), "2 of 2 lines cannot be read"),
        (lambda path: (path / "metrics.jsonl").unlink(), None),
        (lambda path: (path / "metrics.jsonl").open("ab").write(b'{"kind": "tra'), None),
        (lambda path: os.truncate(path / "metrics.jsonl", 0), None),
        (lambda path: [(path / "metrics.jsonl").unlink(), (path / "metrics.jsonl").mkdir()], "Is a directory"),
        (lambda path: (path / "metrics.jsonl").write_text('{"kind": "eval", "step": 1, "val_loss": "x"}\n'), None),
        (lambda path: (path / "metrics.jsonl").write_text('{"kind": "eval", "step": 1, "val_loss": NaN}\n'), None),
    ],
)
def test_a_damaged_directory_is_told_and_ends_nothing(folder: Path, damage: Any, problem: str | None) -> None:
    damage(folder / "a")
    found = runs.find(folder)
    assert [Path(run.path).name for run in found] == ["a", "b", "c"]
    assert len(found[0].problems) == (problem is not None)
    if problem is not None:
        assert problem in found[0].problems[0]
    Page(runs_view.html(found, "time"))
    json.loads(runs_view.as_json(found))
    assert [len(runs_view.cells(run)) for run in found] == [11] * 3


def test_the_command_prints_a_table_and_writes_page_picture_and_json(cli: Cli, folder: Path) -> None:
    words = ("--sort", "val_loss", "--html", folder / "runs.html", "--png", folder / "runs.png", "--x", "tokens")
    done = cli("runs", folder, *words, env=dict(os.environ, COLUMNS="200"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "b", "a", "c"]
    for text in ("finished", "12/12", "1.7500", "1.5000", "0.875", "650", "6.5%", "0:00:09", "4,321", "1.0 GB"):
        assert text in lines[1], text
    assert "optim.lr=0.003" in lines[1] and "stopped" in lines[3]
    page = Page((folder / "runs.html").read_text())
    assert page.open == [] and "Settings that differ" in page.text and "optim.lr" in page.text
    assert sum(tag == "polyline" for tag, _ in page.tags) == 6
    assert (folder / "runs.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(cli("runs", folder, "--json", "--where", "state=finished").stdout)
    assert [run["name"] for run in found["runs"]] == ["a", "b"] and found["differing"]["optim.lr"] == [0.01, 0.003]
    assert "lines" not in found["runs"][0]


def test_every_run_is_in_the_legends_whatever_its_name_and_before_it_is_evaluated(tmp_path: Path) -> None:
    for name in ("a$b_{$", "_c", "d"):
        make(tmp_path, name)
    lines = [line for line in (tmp_path / "d" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    (tmp_path / "d" / "metrics.jsonl").write_text("\n".join(lines))
    found = runs.find(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs_view.draw(tmp_path / "runs.png", found, "step")
    drawn = runs_view.html(found, "step").partition("<svg")[2].partition("</svg>")[0]
    assert [drawn.count(f">{name}</text>") for name in ("a$b_{$", "_c", "d")] == [1, 1, 1]


def test_runs_are_named_one_by_one_and_each_is_there_once(cli: Cli, folder: Path) -> None:
    chosen = [Path(run.path) for run in runs.find(folder) if run.name != "a"]
    for words, names in ((chosen, ["b", "c"]), ((chosen[0], folder, folder / ".." / folder.name), ["a", "b", "c"])):
        assert [run["name"] for run in json.loads(cli("runs", *words, "--json").stdout)["runs"]] == names
    done = cli("runs", *chosen, "none")
    assert done.returncode == 1 and "found none at none" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "expected a folder of runs, found none at nowhere"),
        ((".",), "expected run directories in ., found none; hint: they have a config.toml"),
        ((".", "--html", "runs.txt"), "--html must be a .html file in a folder that exists, got runs.txt"),
        ((".", "--png", "no/runs.png"), "--png must be a .png file in a folder that exists, got no/runs.png"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = cli("runs", *words, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_filter_that_leaves_none_says_so(cli: Cli, folder: Path) -> None:
    done = cli("runs", folder, "--where", "name=z*")
    assert done.returncode == 1 and "has name=z*; hint: gptrs runs" in done.stderr
