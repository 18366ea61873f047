"""Wrong input to `gptrs train`: one clear line that says what was expected, what was got and what helps; code 1."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptrs import cli
from gptrs.train.determinism import deterministic

WORDS = "a true friend accepts you as you are and you accept a friend who is true to you "
TINY = (
    *("run.threads=1", "tokenizer.vocab_size=280", "model.dim=16", "model.n_layers=1", "model.n_heads=2"),
    *("train.seq_len=16", "train.steps=2", "train.global_batch=4", "train.log_every=1", "optim.lr=1e-2"),
    *("schedule.warmup_steps=1", "sample.max_new_tokens=3", "train.eval_rows=4"),
)
Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs `gptrs train` in this process; returns its exit code and what it wrote to stderr."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(80)))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() puts its own there

    def run(*words: str) -> tuple[int, str]:
        given = ["train", "shakespeare_cpu", *TINY, f"data.text={text}", f"run.dir={tmp_path / 'run'}", *words]
        monkeypatch.setattr(sys, "argv", ["gptrs", *given])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    return run


def fails(train: Train, *words: str, says: tuple[str, ...]) -> None:
    code, err = train(*words)
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1, err
    for text in (*says, "hint: "):
        assert text in err, err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train.micro_batch=3",), ("train.micro_batch must divide train.global_batch (4), got 3",)),
        (("train.global_batch=1000",), ("expected at least the 1,000 rows of a step (train.global_batch)", "got ")),
        (("train.seq_len=9000", "model.position=rope"), ("9000",)),
        (("model.init_std=1e30",), ("expected a finite loss and gradient at the first step", "got loss ")),
        (("run.dir=/dev/null/run",), ("cannot write to the run directory /dev/null/run", "Not a directory")),
        (
            ("model.dim=262144",),
            ("expected a model that fits in the ", "got 824,", " parameters, whose weights", "gptrs plan"),
        ),
        (("guard.spike_window=1",), ("guard.spike_window must be at least 2, got 1",)),
    ],
)
def test_a_mistake_is_one_line(train: Train, tmp_path: Path, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    if words[0].startswith("guard."):  # says all there is to say
        code, err = train(*words)
        assert code == 1 and err.count("\n") == 1 and says[0] in err
    else:
        fails(train, *words, says=says)
    assert not list(tmp_path.glob("run/checkpoints/step-*")), "nothing was trained"


def test_a_config_that_changed_under_a_run_is_named(train: Train, tmp_path: Path) -> None:
    assert train()[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    flags = "--allow optim.lr --allow train.eval_every goes on with the new values"
    changes = ("optim.lr = 0.01, this one has 0.02", "train.eval_every = ", "this one has 7", flags)
    fails(train, "optim.lr=2e-2", "train.eval_every=7", says=changes)
    fails(train, "model.dim=32", says=("model.dim cannot change: its weights are of that model",))
    fails(train, "model.dim=32", "--allow", "model.dim", says=("model.dim cannot change while a run is under way",))
    code, err = train("optim.lr=2e-2", "train.eval_every=7", "--allow", "optim.lr", "--allow", "train.eval_every")
    assert code == 0, err


def test_memory_that_torch_does_not_get_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: torch.empty(2**60, dtype=torch.uint8))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 1 and err.count("\n") == 1
    assert f"{2**60}" in err and "hint: a smaller train.micro_batch" in err


def test_another_error_of_torch_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: torch.ones(2) @ torch.ones(3))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(RuntimeError, match="size"):
        cli.main()


def test_the_switch_for_the_same_bits_is_put_back() -> None:
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (before or ":4096:8")
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == before
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_takes_the_switch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        original(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert train("run.deterministic=true")[0] == 0
    assert seen == [True, True]
