"""The main job: its text, its config, and a short run of it through the command line."""

import json
import os
import signal
import sysconfig
from pathlib import Path

import pytest
import torch

from gptrs import demo
from gptrs.train import metrics
from pages import Page

SHORT = (
    *("train.steps=4", "train.eval_every=2", "train.eval_rows=2", "train.checkpoint_every=2", "train.seq_len=16"),
    *("model.dim=16", "model.n_layers=1", "model.n_heads=2", "tokenizer.vocab_size=300", "sample.max_new_tokens=4"),
    *("run.threads=1", "run.device=cpu", "train.global_batch=4"),
)


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    files = []
    for i in range(12):
        file = tmp_path / f"module{i}.py"
        file.write_text(f"def f{i}(x):\n    return x + {i}  # a true friend accepts you\n\n\n" * 12)
        files.append(str(file))
    return files


def test_the_text_is_the_standard_library_without_tests() -> None:
    files = demo.standard_library()
    root = Path(sysconfig.get_path("stdlib"))
    assert root / "argparse.py" in files and root / "json" / "decoder.py" in files
    assert files == sorted(files) == demo.standard_library()
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    for file in files:
        assert file.suffix == ".py" and left_out.isdisjoint(file.relative_to(root).parts[:-1])
        file.read_bytes().decode()
    assert 8e6 < sum(file.stat().st_size for file in files) < 30e6


def test_the_config_follows_the_device_and_the_user() -> None:
    config = demo.configured(None, [])
    assert config.data.text == tuple(map(str, demo.standard_library()))
    assert config.tokenizer.vocab_size == 4096 and config.train.max_minutes == 3.0
    assert (config.model.dim or 0) > 256 if torch.cuda.is_available() else config.model.dim == 128
    assert demo.configured(["mine.txt"], ["train.steps=7"]).data.text == ("mine.txt",)
    assert demo.configured(["mine.txt"], ["train.steps=7"]).train.steps == 7
    assert demo.configured(None, ["data.text=other.txt"]).data.text == ("other.txt",)


def test_the_demo_runs_on_the_user_s_files_and_again(
    text: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*SHORT, f"run.dir={tmp_path / 'run'}"]
    first = demo.run(text, overrides=overrides)
    out = capsys.readouterr().out
    assert "── sample, prompt 'def'" in out and out.splitlines()[-1] == f"val loss {first.val_loss:.4f}"
    assert (tmp_path / "run" / "report.html").exists()
    again = demo.run(text, overrides=overrides)
    assert "holds a finished demo; starting it anew" in capsys.readouterr().out
    assert again.val_loss == first.val_loss


def test_an_unfinished_demo_goes_on(text: list[str], tmp_path: Path) -> None:
    overrides = [*SHORT, f"run.dir={tmp_path / 'run'}"]
    demo.run(text, overrides=overrides)
    (tmp_path / "run" / "result.json").unlink()
    before = metrics.read(tmp_path / "run" / "metrics.jsonl")
    demo.run(text, overrides=overrides)
    after = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert [line for line in after if line["kind"] == "train"] == [line for line in before if line["kind"] == "train"]


DEEPSEEK = (
    *(word for word in SHORT if not word.startswith("model.")),
    *("model.dim=16", "model.n_layers=2", "model.n_heads=2", "model.inter_dim=24", "model.kv_lora_rank=8"),
    *("model.qk_nope_head_dim=6", "model.qk_rope_head_dim=4", "model.v_head_dim=6", "model.moe_inter_dim=12"),
)


def test_another_model_is_a_preset_with_a_directory_of_its_own() -> None:
    config = demo.configured(["mine.txt"], [], "deepseek_tiny")
    assert config.model.preset == "deepseek-tiny" and config.run.name == "demo-deepseek-tiny"
    assert config.run.beside == "runs/demo" and config.train.max_minutes == 3.0
    plain, wide = demo.configured(["mine.txt"], []), demo.configured(["mine.txt"], ["train.steps=7"], "llama-small")
    assert plain.run.beside is None and wide.run.name == "demo-llama-small" and wide.train.steps == 7
    assert wide.optim.lr < plain.optim.lr and wide.tokenizer == plain.tokenizer == config.tokenizer
    assert config.data.val_fraction == plain.data.val_fraction
    assert config.model.resolve(vocab_size=4096, seq_len=128).n_mtp_layers == 1


def test_a_model_that_is_none_or_does_not_fit_is_refused_with_a_cure() -> None:
    with pytest.raises(ValueError, match=r"expected a preset \(gpt2-small, .*got 'deepseek-tny'; hint: did you me"):
        demo.configured(["mine.txt"], [], "deepseek-tny")
    needs = r"fit half of the \d+ GB here, got deepseek-v3, which needs 1\d,\d{3} GB; hint: --model deepseek-tiny"
    with pytest.raises(ValueError, match=needs):
        demo.configured(["mine.txt"], [], "deepseek-v3")


def test_the_deepseek_demo_stands_beside_the_gpt_s(
    text: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"run.dir={tmp_path / 'ds'}", f"run.beside={tmp_path / 'gpt'}"]
    demo.run(text, model="deepseek-tiny", overrides=[*DEEPSEEK, *places])
    assert "No finished run in" in capsys.readouterr().out
    page = Page((tmp_path / "ds" / "report.html").read_text(encoding="utf-8"))
    assert f"No finished run in {tmp_path / 'gpt'} to compare with; `gptrs demo` makes" in page.text

    gpt = demo.run(text, overrides=[*SHORT, f"run.dir={tmp_path / 'gpt'}"])
    own = Page((tmp_path / "gpt" / "report.html").read_text(encoding="utf-8"))
    for words in ("MaxVio", "Further tokens", "in this model's cache", "Beside another run"):
        assert words not in own.text
    capsys.readouterr()
    result = demo.run(text, model="deepseek-tiny", overrides=[*DEEPSEEK, *places])
    out = capsys.readouterr().out
    assert f"beside it, run demo: val loss {gpt.val_loss:.4f}" in out
    assert out.splitlines()[-1] == f"val loss {result.val_loss:.4f}"
    page = Page((tmp_path / "ds" / "report.html").read_text(encoding="utf-8"))
    difference = abs(result.val_loss - gpt.val_loss)
    expected = (
        f"{difference:.4f} nats",
        *(f"{run.val_loss:.4f}" for run in (result, gpt)),
        *(f"{run.n_params:,}" for run in (result, gpt)),
        *("48 bytes", "8 + 4", "2·(10 + 6)", "12.5% each", "expert 7", "layer 1", "further token 1"),
    )
    for words in expected:
        assert words in page.text, words
    other = demo.run(text[1:], model="deepseek-tiny", overrides=[*DEEPSEEK, *places])
    assert other.steps == 4 and "has another tokenizer" in capsys.readouterr().out


def test_an_interrupted_deepseek_demo_goes_on_to_the_same_end(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(directory: Path) -> list[dict[str, object]]:
        found = metrics.read(directory / "metrics.jsonl")
        return [
            {k: v for k, v in line.items() if k not in ("time_s", "tokens_per_s", "mfu", "memory_bytes")}
            for line in found
        ]

    settings = [*DEEPSEEK, "train.log_every=1", "run.beside=none"]
    whole = demo.run(text, model="deepseek-tiny", overrides=[*settings, f"run.dir={tmp_path / 'whole'}"])
    assert lines(tmp_path / "whole")[0].keys() >= {"next_loss", "further_loss", "balance_loss", "max_violation"}
    original = metrics.MetricsLog.write

    def write(self: metrics.MetricsLog, kind: str, step: int, **values: float | None) -> None:
        original(self, kind, step, **values)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    overrides = [*settings, f"run.dir={tmp_path / 'again'}"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics.MetricsLog, "write", write)
        demo.run(text, model="deepseek-tiny", overrides=overrides)
    assert not (tmp_path / "again" / "result.json").exists()
    again = demo.run(text, model="deepseek-tiny", overrides=overrides)
    assert again.val_loss == whole.val_loss and lines(tmp_path / "again") == lines(tmp_path / "whole")
    assert json.loads((tmp_path / "again" / "result.json").read_text())["n_params"] == whole.n_params
