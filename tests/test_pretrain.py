"""A whole run: from text to a model, and again after any kill, with the same bytes."""

import errno
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrs import config as configs
from gptrs.dataset import Dataset
from gptrs.model import Transformer
from gptrs.tokenizer import Tokenizer
from gptrs.train import corpus, metrics, pretrain, rundir
from gptrs.train.config import PretrainConfig, load
from gptrs.train.schedule import learning_rate, stand

TINY = (
    *("run.threads=1", "tokenizer.vocab_size=280", "tokenizer.special_tokens=<|endoftext|>"),
    *("model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.dropout=0.1", "train.seq_len=16"),
    *("train.steps=20", "train.global_batch=4", "train.micro_batch=2", "train.log_every=1", "train.eval_every=8"),
    *(
        "train.checkpoint_every=5",
        "optim.lr=1e-2",
        "train.eval_rows=8",
        "schedule.warmup_steps=5",
        "sample.max_new_tokens=5",
    ),
)
WORDS = "a true friend accepts you as you are and you accept a friend who is true to you "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(120)))
    return file


def tiny(text: Path, directory: Path, *overrides: str) -> PretrainConfig:
    return load("shakespeare_cpu", [*TINY, f"data.text={text}", f"run.dir={directory}", *overrides])


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock or the process."""
    timed = ("time_s", "tokens_per_s", "mfu", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in timed} for line in metrics.read(directory / "metrics.jsonl")]


def outcome(directory: Path) -> dict[str, object]:
    """Everything of a run that must not depend on kills."""
    last = sorted((directory / "checkpoints").glob("step-*"))[-1]
    return {
        "metrics": lines_of(directory),
        "weights": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "samples": (directory / "samples.txt").read_bytes(),
        "tokenizer": (directory / "tokenizer.json").read_bytes(),
        "shards": [path.read_bytes() for path in sorted((directory / "data").rglob("*.gts"))],
        "checkpoints": [path.name for path in sorted((directory / "checkpoints").glob("step-*"))],
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The outcome of the tiny run without any kill."""
    folder = tmp_path_factory.mktemp("straight")
    file = folder / "text.txt"
    file.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(120)))
    pretrain.run(tiny(file, folder / "run"))
    return outcome(folder / "run")


def forked(work: Callable[[], object]) -> int:
    """Starts a process that does the work and exits with 0; returns its id."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            work()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def test_a_run_fills_its_directory_and_prints_its_result_last(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    config = tiny(text, directory)
    result = pretrain.run(config)
    names = {path.name for path in directory.iterdir()}
    assert names == {
        *(
            "config.toml",
            "tokenizer.json",
            "tokenizer.warm",
            "data",
            "checkpoints",
            "metrics.jsonl",
            "tensorboard",
            "loss.png",
        ),
        *("samples.txt", "report.html", "result.json", ".lock"),
    }
    assert load(directory / "config.toml") == config
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"val loss {result.val_loss:.4f}"
    assert f"unigram entropy {result.unigram_entropy:.4f}" in printed
    assert f"bits per byte {result.bits_per_byte:.4f}" in printed
    assert json.loads((directory / "result.json").read_text())["val_loss"] == result.val_loss
    lines = lines_of(directory)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 21))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [8, 16, 20]
    assert lines[-1]["val_loss"] == result.val_loss < lines[0]["loss"] - 0.5
    samples = (directory / "samples.txt").read_text()
    assert [line for line in samples.splitlines() if line.startswith("── step")] == [
        f"── step {n}" for n in (8, 16, 20)
    ]


def test_the_last_evaluation_reads_every_held_out_token_once(text: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    result = pretrain.run(tiny(text, directory, "train.steps=2"))
    val = Dataset(directory / "data" / "val")
    ids = val.read(0, val.n_tokens).tolist()
    targets: list[int] = []
    for rows in corpus.rows(val, seq_len=16, batch=3, device=torch.device("cpu")):
        assert rows.tokens.shape == rows.targets.shape and rows.tokens.dtype == torch.int64
        targets += rows.targets.flatten().tolist()
    assert targets == ids[1:]
    some = list(corpus.rows(val, seq_len=16, batch=3, device=torch.device("cpu"), n_rows=4))
    assert [len(rows.tokens) for rows in some] == [3, 1]
    n_full = (len(ids) - 1) // 16
    starts = [i * n_full // 4 * 16 for i in range(4)]
    assert torch.cat([rows.tokens for rows in some]).tolist() == [ids[start : start + 16] for start in starts]
    assert lines_of(directory)[-1]["n_targets"] == len(ids) - 1

    counts = Counter(ids)
    entropy = -sum(n / len(ids) * math.log(n / len(ids)) for n in counts.values())
    assert result.unigram_entropy == pytest.approx(entropy, rel=1e-12)
    held_out = (directory / "data" / "val.txt").read_bytes()
    first = Tokenizer.from_file(directory / "tokenizer.json").id_to_token(ids[0]) or b""
    bits = result.val_loss * (len(ids) - 1) / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / (len(held_out) - len(first)), rel=1e-12)


def test_the_tokenizer_never_sees_the_held_out_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcabcabc " * 200 + "xyzxyzxyz " * 22)
    pretrain.run(tiny(file, tmp_path / "run", "train.steps=1", "tokenizer.vocab_size=260"))
    tokenizer = Tokenizer.from_file(tmp_path / "run" / "tokenizer.json")
    assert tokenizer.token_to_id("abc") is not None and tokenizer.token_to_id("xy") is None


def run_until_killed(work: Callable[[], object], directory: Path, n_lines: int) -> None:
    """kill -9 in the middle of a run, once so many metrics lines are there."""
    child, log = forked(work), directory / "metrics.jsonl"
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if log.exists() and log.read_bytes().count(b"\n") >= n_lines:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
    assert not (directory / "result.json").exists()


@pytest.mark.parametrize("n_lines", [0, 1, 7, 12, 18, 22])
def test_a_killed_run_goes_on_to_the_same_bytes(
    text: Path, tmp_path: Path, straight: dict[str, object], n_lines: int
) -> None:
    directory = tmp_path / "run"
    run_until_killed(lambda: pretrain.run(tiny(text, directory)), directory, n_lines)
    pretrain.run(tiny(text, directory))
    assert outcome(directory) == straight


def test_kills_at_any_time_end_in_the_same_bytes(text: Path, tmp_path: Path, straight: dict[str, object]) -> None:
    """The same command again and again, each killed a little later than the one before, until one comes through."""
    directory = tmp_path / "run"
    seconds = 0.02
    while True:
        child = forked(lambda: pretrain.run(tiny(text, directory)))
        end = time.monotonic() + seconds
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.005)
        if done != (0, 0):
            assert os.waitstatus_to_exitcode(done[1]) == 0
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (directory / "result.json").exists():  # killed between its last file and its end: the run is finished
            break
        seconds *= 1.6
    assert outcome(directory) == straight


def test_ctrl_c_saves_says_how_to_go_on_and_goes_on_exactly(
    text: Path, tmp_path: Path, straight: dict[str, object]
) -> None:
    directory = tmp_path / "run"
    child = forked(lambda: pretrain.run(tiny(text, directory)))
    log = directory / "metrics.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    (saved,) = (directory / "checkpoints").glob("step-*")
    assert 3 <= int(saved.name[5:]) < 20 and not (directory / "result.json").exists()
    pretrain.run(tiny(text, directory))
    assert outcome(directory) == straight


def test_the_message_of_an_interrupted_run(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = metrics.MetricsLog.write

    def write(self: metrics.MetricsLog, kind: str, step: int, **values: float | None) -> None:
        original(self, kind, step, **values)
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(metrics.MetricsLog, "write", write)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(tiny(text, tmp_path / "run"))
    expected = "stopped after step 7 of 20, which is saved; hint: the same command goes on from the newest checkpoint"
    assert expected in capsys.readouterr().out


def test_a_finished_or_different_run_is_refused_and_fresh_begins_anew(text: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    first = pretrain.run(tiny(text, directory, "train.steps=3"))
    before = outcome(directory)
    hint = r"hint: --fresh starts it anew, run\.dir=… takes another directory"
    with pytest.raises(ValueError, match=rf"holds a finished run of this config; {hint}"):
        pretrain.run(tiny(text, directory, "train.steps=3"))
    with pytest.raises(ValueError, match=rf"holds a run with train\.steps = 3, this one has 4; {hint}"):
        pretrain.run(tiny(text, directory, "train.steps=4"))
    assert outcome(directory) == before
    (directory / "notes.md").write_text("mine")
    again = pretrain.run(tiny(text, directory, "train.steps=3"), is_fresh=True)
    assert again.val_loss == first.val_loss and outcome(directory) == before
    assert (directory / "notes.md").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong",
    [
        ("data.text=typo.txt",),
        ("tokenizer.path=typo.json",),
        ("data.text=", "data.train=typo", "data.val=typo", "tokenizer.path=typo.json"),
    ],
)
def test_a_name_that_is_wrong_makes_and_clears_no_directory(text: Path, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    directory = tmp_path / "run"
    with pytest.raises((OSError, ValueError), match="typo"):
        pretrain.run(tiny(text, directory, *wrong))
    assert not directory.exists()
    pretrain.run(tiny(text, directory, "train.steps=1"))
    with pytest.raises((OSError, ValueError), match="typo"):
        pretrain.run(tiny(text, directory, *wrong), is_fresh=True)
    assert rundir.is_finished(directory)


def test_the_command_line_interrupts_goes_on_and_refuses(
    text: Path, tmp_path: Path, straight: dict[str, object]
) -> None:
    directory = tmp_path / "run"
    words = ["train", "shakespeare_cpu", *TINY, f"data.text={text}", f"run.dir={directory}"]
    command = [sys.executable, "-m", "gptrs", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = directory / "metrics.jsonl"
    while not (log.exists() and log.read_bytes()):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130 and "hint: the same command goes on" in out

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"val loss \d+\.\d{4}", done.stdout.splitlines()[-1])
    assert outcome(directory) == straight

    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "holds a finished run of this config; hint: --fresh" in refused.stderr


@pytest.fixture
def unfinished(text: Path, tmp_path: Path) -> Path:
    """A run with checkpoints at steps 15 and 20 that lacks its end."""
    directory = tmp_path / "run"
    pretrain.run(tiny(text, directory))
    (directory / "result.json").unlink()
    return directory


def test_a_run_that_was_moved_goes_on(
    text: Path, tmp_path: Path, unfinished: Path, straight: dict[str, object]
) -> None:
    shutil.rmtree(unfinished / "checkpoints" / "step-00000020")
    shutil.move(unfinished, tmp_path / "moved")
    pretrain.run(tiny(text, tmp_path / "moved"), allow=["run.dir"])
    lines = [line for line in lines_of(tmp_path / "moved") if line.get("event") != "config changed"]
    assert lines == straight["metrics"] and not unfinished.exists()


def test_an_unfinished_checkpoint_is_passed_over_with_a_warning(
    text: Path, unfinished: Path, straight: dict[str, object]
) -> None:
    (unfinished / "checkpoints" / "step-00000020" / "COMMITTED").unlink()
    with pytest.warns(UserWarning, match=r"step-00000020 was never finished; going on from .*step-00000015"):
        pretrain.run(tiny(text, unfinished))
    assert outcome(unfinished) == straight


def test_a_damaged_checkpoint_is_an_error_and_the_hint_helps(
    text: Path, unfinished: Path, straight: dict[str, object]
) -> None:
    file = unfinished / "checkpoints" / "step-00000020" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"damaged checkpoint: .*model\.safetensors, got .*; hint: remove (\S+) to resume"
    ):
        pretrain.run(tiny(text, unfinished))
    shutil.rmtree(file.parent)
    pretrain.run(tiny(text, unfinished))
    assert outcome(unfinished) == straight


def fill_disk_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Lets no file of a step's checkpoint be made."""
    original = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if f".step-{step:08d}.tmp" in os.fsdecode(path) and os.fsdecode(path).endswith("optimizer.safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("is_async", ["true", "false"])
def test_a_disk_that_is_full_for_a_while_is_told_and_changes_nothing_else(
    text: Path, tmp_path: Path, straight: dict[str, object], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], is_async: str,
) -> None:  # fmt: skip
    directory = tmp_path / "run"
    fill_disk_at(monkeypatch, 10)
    pretrain.run(tiny(text, directory, f"train.checkpoint_async={is_async}"))
    found = outcome(directory)
    told = [line for line in found["metrics"] if line["kind"] == "event"]  # type: ignore[attr-defined]
    assert [(line["step"], line["event"], line["errno"]) for line in told] == [(10, "not saved", errno.ENOSPC)]
    assert {**found, "metrics": [line for line in found["metrics"] if line not in told]} == straight  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "step 10 is not saved, training goes on: cannot save checkpoint" in printed and "No space left" in printed


def test_a_run_whose_last_checkpoint_finds_no_room_ends_in_an_error_and_goes_on_from_the_one_before(
    text: Path, tmp_path: Path, straight: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    with monkeypatch.context() as full:
        fill_disk_at(full, 20)
        with pytest.raises(OSError, match=r"cannot save checkpoint .*step-00000020: No space left .*; hint: make room"):
            pretrain.run(tiny(text, directory))
    assert not (directory / "result.json").exists()
    pretrain.run(tiny(text, directory))
    assert outcome(directory) == straight


def test_a_run_that_cannot_save_ends_before_it_trains(text: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    pretrain.run(tiny(text, directory, "train.steps=1"))
    (directory / "result.json").unlink()
    shutil.rmtree(directory / "checkpoints")
    (directory / "checkpoints").touch()
    with pytest.raises(OSError, match=r"cannot write checkpoints into .*checkpoints: .*; hint: run\.dir="):
        pretrain.run(tiny(text, directory, "train.steps=1"))
    assert len(lines_of(directory)) == 2, "as before"


def test_changed_text_is_noticed(text: Path, unfinished: Path) -> None:
    text.write_text(text.read_text()[::-1])
    with pytest.raises(
        ValueError, match=r"expected the text that the run began with, got another .*text\.txt; hint: --fresh"
    ):
        pretrain.run(tiny(text, unfinished))


def test_a_peak_that_the_run_itself_exceeds_is_measured_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_cpu_peak", lambda dtype, n_threads: 1.0)
    for again, least, most in ((2.0, 1e-6, 1.0), (1e18, 0.0, 1e-6)):  # at the least, the run itself is known
        peaks = iter([again])
        monkeypatch.setattr(metrics, "measured_peak", lambda dtype, peaks=peaks: next(peaks, 1.0))
        directory = tmp_path / f"{again:g}"
        pretrain.run(tiny(text, directory, "train.steps=3"))
        used = [line["mfu"] for line in metrics.read(directory / "metrics.jsonl") if line["kind"] == "train"]
        assert len(used) == 3 and all(least < share <= most for share in used)


def test_a_run_that_ends_inside_its_warm_up_says_at_what_rate(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.run(tiny(text, tmp_path / "run", "train.steps=4", "schedule.warmup_steps=9", "optim.lr=0.01"))
    said = "ends inside the warm-up of 9 steps, at a learning rate of 0.004, not 0.01; hint: schedule.warmup_steps"
    assert said in capsys.readouterr().out
    pretrain.run(tiny(text, tmp_path / "whole", "train.steps=4", "schedule.warmup_steps=3"))
    assert "warm-up" not in capsys.readouterr().out


@pytest.mark.parametrize("damaged", ["{", "[1]", "{}"])
def test_a_damaged_split_is_named(text: Path, tmp_path: Path, damaged: str) -> None:
    pretrain.run(tiny(text, tmp_path / "run", "train.steps=1"))
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "data" / "split.json").write_text(damaged)
    with pytest.raises(ValueError, match=r"split\.json: expected .*; hint: --fresh"):
        pretrain.run(tiny(text, tmp_path / "run", "train.steps=1"))


def test_the_time_cap_ends_a_run_well(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = pretrain.run(tiny(text, tmp_path / "run", "train.steps=1000000", "train.max_minutes=0.005"))
    assert result.is_capped and 0 < result.steps < 1_000_000 and (tmp_path / "run" / "result.json").exists()
    said = f"ended by train.max_minutes after {result.steps} of 1000000 steps; hint: a larger one with --allow"
    assert said in capsys.readouterr().out
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    for before, line in itertools.pairwise(lines):  # the clock brings the rate down
        first, last = (
            stand(before["step"], steps=10**6, elapsed_s=before["time_s"] + rounded, max_seconds=0.3)
            for rounded in (-6e-4, 6e-4)  # the last digit of the time, which at a tenth of it decides about the warm-up
        )
        low, high, top = (
            learning_rate(at, peak=1e-2, min_lr=1e-4, warmup_steps=5, steps=10**6)
            for at in (first, last, min(max(first, 5), last))
        )
        assert min(low, high) - 1e-6 <= line["lr"] <= top + 1e-6


def test_several_files_and_prepared_datasets_give_the_same_training(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"{i}: " + WORDS * (5 + i % 4))
    first = tmp_path / "first"
    result = pretrain.run(tiny(folder, first, "train.steps=5"))
    split = json.loads((first / "data" / "split.json").read_text())
    assert split["val"] and len(split["train"]) + len(split["val"]) == 12
    overrides = [
        *("data.text=", f"data.train={first / 'data' / 'train'}", f"data.val={first / 'data' / 'val'}"),
        *(f"tokenizer.path={first / 'tokenizer.json'}", "train.steps=5"),
    ]
    again = pretrain.run(tiny(folder, tmp_path / "second", *overrides))
    assert again.val_loss == result.val_loss and lines_of(tmp_path / "second") == lines_of(first)

    other = tmp_path / "other.json"
    Tokenizer.train_from_iterator([WORDS], 265, progress=False).save(other)
    with pytest.raises(
        ValueError, match=r"expected the tokenizer with digest .*…, got .*; hint|expected the tokenizer with"
    ):
        pretrain.run(tiny(folder, tmp_path / "third", *overrides, f"tokenizer.path={other}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.text="], "data.text is required, got nothing; hint: data.text=FILE"),
        (["run.device=cuda"], "run.device is cuda, but torch finds no CUDA device"),
        (
            ["sample.max_new_tokens=16"],
            r"expected sample.prompts and new tokens to fit the 16 learned positions, got \d+ and 16",
        ),
        (
            ["model.max_seq_len=8"],
            r"train.seq_len must fit the 8 learned positions, got 16 .*; hint: model.max_seq_len=16",
        ),
        (
            ["model.preset=deepseek-tiny", "train.seq_len=1"],
            r"train.seq_len must exceed the 1 further tokens predicted, got 1 .*; hint: train.seq_len=2",
        ),
        (["model.n_heads=3"], r"\[model\] n_heads \(3\) must divide dim \(16\)"),
        (["train.seq_len=100000", "model.position=sinusoidal"], "100000|100001"),
    ],
)
def test_bad_settings_end_in_one_clear_error(text: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    if "run.device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    with pytest.raises(ValueError, match=message):
        pretrain.run(tiny(text, tmp_path / "run", *overrides))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"text\.txt"),
        (b"", ValueError, r"expected text in .*text\.txt, got an empty file"),
        (b"good " * 50 + b"\xff", ValueError, r"expected UTF-8 in .*text\.txt, got another byte at offset 250"),
    ],
)
def test_bad_text_ends_in_one_clear_error(
    text: Path, tmp_path: Path, content: bytes | None, error: type[Exception], message: str
) -> None:
    if content is None:
        text.unlink()
    else:
        text.write_bytes(content)
    with pytest.raises(error, match=message):
        pretrain.run(tiny(text, tmp_path / "run"))


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    yield


@pytest.mark.usefixtures("no_pickle")
def test_training_saving_and_resuming_use_no_pickle(text: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    pretrain.run(tiny(text, directory, "train.steps=3"))
    (directory / "result.json").unlink()
    pretrain.run(tiny(text, directory, "train.steps=3"))


def test_a_checkpoint_says_where_it_comes_from(unfinished: Path) -> None:
    state = json.loads((unfinished / "checkpoints" / "step-00000020" / "state.json").read_text())
    assert configs.build(PretrainConfig, state["config"]) == load(unfinished / "config.toml")
    assert state["environment"]["torch"] == torch.__version__
    assert state["model"]["dim"] == 16 and state["loader"]["next_sample"] == 80


def test_a_run_that_goes_on_draws_no_weights(text: Path, unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(model: Transformer, *_: Any, **__: Any) -> None:
        if not model.embed.token.weight.is_meta:
            raise AssertionError("its weights are in the checkpoint")

    monkeypatch.setattr(Transformer, "init_weights", draw)
    result = pretrain.run(tiny(text, unfinished))
    assert result.steps == 20
    with pytest.raises(AssertionError, match="its weights are in the checkpoint"):
        pretrain.run(tiny(text, unfinished), is_fresh=True)


def test_no_warnings_in_a_plain_run(text: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrain.run(tiny(text, tmp_path / "run", "train.steps=2"))


DEEPSEEK = (
    *("model.preset=deepseek-tiny", "model.dim=16", "model.n_layers=2", "model.n_heads=2", "model.inter_dim=24"),
    *("model.kv_lora_rank=8", "model.qk_nope_head_dim=6", "model.qk_rope_head_dim=4", "model.v_head_dim=6"),
    *("model.moe_inter_dim=12", "train.bias_speed=0.01"),
)


def test_a_model_with_experts_trains_balances_and_goes_on_to_the_same_bytes(text: Path, tmp_path: Path) -> None:
    pretrain.run(tiny(text, tmp_path / "straight", *DEEPSEEK))
    straight = outcome(tmp_path / "straight")
    losses = [line for line in lines_of(tmp_path / "straight") if "loss" in line]
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.3
    assert all(0 <= line["max_violation"] < 8 for line in losses)
    for line in losses:  # two microbatches each
        expected = line["next_loss"] + 0.3 * line["further_loss"] + 1e-4 * line["balance_loss"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert 2 * 0.9 < line["balance_loss"] < 2 * 8, "near 1 for each of two layers that have experts"

    directory = tmp_path / "again"
    run_until_killed(lambda: pretrain.run(tiny(text, directory, *DEEPSEEK)), directory, n_lines=9)
    pretrain.run(tiny(text, directory, *DEEPSEEK))
    assert outcome(directory) == straight

    import safetensors.torch

    last = sorted((tmp_path / "straight" / "checkpoints").glob("step-*"))[-1]
    tensors = safetensors.torch.load_file(last / "model.safetensors")
    for name in ("layers.1.ffn.router.bias", "further.0.block.ffn.router.bias"):
        steps = tensors[name] / 0.01
        assert steps.any() and torch.allclose(steps, steps.round(), atol=1e-3), "20 updates of ± 0.01 each"


def test_the_validation_loss_is_of_the_next_token_alone(text: Path, tmp_path: Path) -> None:
    """So that it compares with models that have neither further tokens nor experts."""
    heavy = (
        *DEEPSEEK,
        "train.mtp_weight=100",
        "train.balance_weight=100",
        "train.steps=1",
        "optim.lr=1e-9",
        "schedule.min_lr=0",
    )
    result = pretrain.run(tiny(text, tmp_path / "run", *heavy))
    assert result.val_loss == pytest.approx(math.log(280), abs=0.2)
    assert lines_of(tmp_path / "run")[0]["loss"] > 100 * math.log(280)


def test_attention_inside_documents_is_a_setting_and_needs_their_ends(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(WORDS[: 5 + i % 30])
    inside = tiny(folder, tmp_path / "inside", "train.steps=3", "train.attention=documents", "model.dropout=0")
    result = pretrain.run(inside)
    other = pretrain.run(tiny(folder, tmp_path / "stream", "train.steps=3", "model.dropout=0"))
    assert result.val_loss != other.val_loss
    with pytest.raises(ValueError, match=r"needs a token that ends documents, the tokenizer has none; hint: tr"):
        pretrain.run(tiny(folder, tmp_path / "none", "train.attention=documents", "tokenizer.special_tokens="))
