"""The main job: its text, its config, and a short run of it through the command line."""

import sysconfig
from pathlib import Path

import pytest
import torch

from gptrs import demo
from gptrs.train import metrics

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
