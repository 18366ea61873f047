"""Settings that change while a run is under way: which may, which cannot, and what is told of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptrs.train import pretrain, resume
from gptrs.train.config import PretrainConfig, load
from gptrs.train.resume import Change

WORDS = "a true friend accepts you as you are and you accept a friend who is true to you "
TINY = (
    *("run.threads=1", "tokenizer.vocab_size=280", "model.dim=16", "model.n_layers=1", "model.n_heads=2"),
    *("model.dropout=0.1", "train.seq_len=16", "train.global_batch=4", "train.log_every=1", "train.eval_every=5"),
    *("train.eval_rows=4", "train.checkpoint_every=2", "optim.lr=1e-2", "schedule.warmup_steps=2"),
    *("sample.max_new_tokens=3", "train.steps=6"),
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(80)))
    return file


def tiny(text: Path, *overrides: str) -> PretrainConfig:
    return load("shakespeare_cpu", [*TINY, f"data.text={text}", f"run.dir={text.parent / 'run'}", *overrides])


def lines(text: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (text.parent / "run" / "metrics.jsonl").read_text().splitlines()]


def check(*found: tuple[str, object, object], allow: tuple[str, ...] = ()) -> None:
    changes = [Change(key=key, old=old, new=new) for key, old, new in found]
    resume.check(changes, allow, schema=PretrainConfig, where="runs/a", hint="hint: --fresh")


def test_every_setting_is_fixed_harmless_or_neither_and_every_pattern_means_one() -> None:
    keys = [Change(key=key, old=1, new=2) for key in resume.keys(PretrainConfig)]
    fixed = {change.key for change in keys if change.fixed}
    harmless = {change.key for change in keys if change.is_harmless}
    assert {"data.text", "tokenizer.path", "model.dim", "run.seed", "train.seq_len"} <= fixed
    assert {"train.log_every", "sample.prompts", "run.device", "train.keep_checkpoints", "guard.spike"} <= harmless
    assert {"train.keep_best", "train.checkpoint_async"} <= harmless, "the bits are the same"
    others = {change.key for change in keys} - fixed - harmless
    assert {"optim.lr", "train.steps", "train.max_minutes", "train.global_batch", "model.dropout"} <= others
    assert not fixed & harmless


def test_all_changes_are_named_and_the_flags_that_let_them_through() -> None:
    with pytest.raises(ValueError) as error:
        check(("train.log_every", 10, 5), ("optim.lr", 0.1, 0.2), ("sample.top_k", 200, None), allow=("sample.top_k",))
    assert str(error.value) == (
        "runs/a holds a run with train.log_every = 10, this one has 5; optim.lr = 0.1, this one has 0.2; "
        "hint: --fresh, --allow train.log_every --allow optim.lr goes on with the new values"
    )
    check(("train.log_every", 10, 5), allow=("train.log_every", "optim.lr"))


def test_what_the_state_does_not_fit_cannot_be_allowed() -> None:
    with pytest.raises(ValueError, match=r"model.dim = 1, .* has 2; model.dim cannot change: its weights"):
        check(("train.log_every", 10, 5), ("model.dim", 1, 2))
    with pytest.raises(ValueError, match=r"run\.seed cannot change while a run is under way: it decides the order"):
        check(("run.seed", 1, 2), allow=("run.seed",))


def test_allowing_what_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"--allow train\.step names no setting; hint: --allow train\.steps"):
        check(allow=("train.step",))


def test_a_run_goes_on_with_another_setting_and_says_so(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.run(tiny(text))
    (text.parent / "run" / "result.json").unlink()
    changed = tiny(text, "train.eval_every=3", "train.steps=8", "optim.lr=2e-2")
    with pytest.raises(ValueError, match=r"--allow optim\.lr --allow train\.steps --allow train\.eval_every goes on"):
        pretrain.run(changed)
    pretrain.run(changed, allow=("train.eval_every", "train.steps", "optim.lr"))
    assert load(text.parent / "run" / "config.toml") == changed
    (event,) = [line for line in lines(text) if line["kind"] == "event"]
    expected = "goes on with optim.lr = 0.02 (was 0.01), train.steps = 8 (was 6), train.eval_every = 3 (was 5)"
    assert event["text"].startswith(f"{expected}: from here on no single config") and event["text"] in (
        capsys.readouterr().out
    )
    assert event["step"] == 6 and event["changes"]["train.eval_every"] == [5, 3]
    assert [line["step"] for line in lines(text) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_finished_run_is_trained_on(text: Path) -> None:
    first = pretrain.run(tiny(text))
    second = pretrain.run(tiny(text, "train.steps=9"), allow=("train.steps",))
    assert (first.steps, second.steps) == (6, 9) and second.val_loss != first.val_loss
    assert json.loads((text.parent / "run" / "result.json").read_text())["steps"] == 9
    assert [line["step"] for line in lines(text) if line["kind"] == "train"] == list(range(1, 10))
    with pytest.raises(ValueError, match="holds a finished run of this config"):
        pretrain.run(tiny(text, "train.steps=9"), allow=("train.steps",))


def test_a_state_that_does_not_fit_leaves_the_config_as_it_was(text: Path) -> None:
    pretrain.run(tiny(text))
    (text.parent / "run" / "result.json").unlink()
    before = (text.parent / "run" / "config.toml").read_bytes()
    with pytest.raises(ValueError, match=r"next_sample must be a multiple of global_batch \(5\), got 24"):
        pretrain.run(tiny(text, "train.global_batch=5"), allow=("train.global_batch",))
    assert (text.parent / "run" / "config.toml").read_bytes() == before
