"""`gptrs doctor`: a line for everything, warnings with their cure, with torch or without, and what fits."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from gptrs import doctor
from gptrs.doctor import Finding
from gptrs.model import PRESETS, count, matmul, memory


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process that compiles."""
    monkeypatch.setattr(doctor, "_start_compiling", lambda: None)
    monkeypatch.setattr(doctor, "_SAMPLE", 1 << 20)


@pytest.mark.usefixtures("quick")
def test_every_part_of_the_machine_has_its_line(tmp_path: Path) -> None:
    import torch

    found = {finding.name: finding for finding in doctor.findings(tmp_path / "runs" / "not" / "there")}
    names = ("CPU", "SIMD", "tiles", "memory", "open files", "free space", "speed", "python")
    for name in (*names, "GPU", "bf16", "distributed"):
        assert name in found or torch.cuda.is_available(), name
    assert found["tiles"].text.startswith("AMX" if matmul._HAS_TILES else "none")
    assert found["torch"].text.startswith(torch.__version__) and found["numpy"].group == "packages"
    assert f"{os.cpu_count()} cores" in found["CPU"].text and str(tmp_path) in found["free space"].text
    assert "gloo" in found["distributed"].text
    assert all((finding.state == "warning") is bool(finding.cure) for finding in found.values())
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_without_torch_it_says_so_and_the_rest_works(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from gptrs import doctor; from pathlib import Path;"
        "doctor._start_compiling = lambda: None;"
        "found = list(doctor.findings(Path('.')));"
        "print([f.text for f in found if f.group == 'torch'], [f.cure for f in found if f.group == 'torch']);"
        "from gptrs.model.config import PRESETS;"
        "print(doctor.fits({'x': (PRESETS['deepseek-tiny'], 64)}, found)[0].dtype)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "does not load" in done.stdout and "pip install 'gptrs[train]'" in done.stdout
    assert done.stdout.splitlines()[-1] == "fp32"


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_is_a_warning_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> tuple[float, float]:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(doctor, "_speeds", refuse)
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (10**9, 10**8))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda kind: (256, 4096))
    monkeypatch.setattr(doctor, "OLDEST_TORCH", (99, 0))
    monkeypatch.setattr(doctor, "FOR_TRAINING", ("torch", "no-such-package"))
    cures = {f.name: f.cure for f in doctor.findings(tmp_path) if f.state == "warning"}
    expected = {
        "speed": "give leave to write there", "memory": "end other processes", "open files": "ulimit -n 65536",
        "torch": "pip install 'torch>=99.0'", "no-such-package": "pip install 'gptrs[train]'",
    }  # fmt: skip
    for name, cure in expected.items():
        assert cures[name].startswith(cure), name
    monkeypatch.setattr(doctor, "_speeds", lambda folder: (1e6, 1e9))
    slow = {f.name: f.cure for f in doctor.findings(tmp_path)}
    assert slow["speed"].startswith("a slow disk makes every checkpoint wait")


@pytest.mark.parametrize(
    ("code", "text", "cure"),
    [
        ("print('compiled')", "works", ""),
        ("raise RuntimeError('no g++')", "fails: RuntimeError: no g++", "a C++ compiler"),
        ("import time; time.sleep(60)", "not done in 9 s", "try again on a quiet machine"),
    ],
)
def test_compiling_works_fails_or_takes_too_long(code: str, text: str, cure: str) -> None:
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = doctor._compiled(process, 30.0 if text != "not done in 9 s" else -1.0)
    assert found.text == text and found.cure.startswith(cure) and process.poll() is not None


@pytest.mark.parametrize(("has_bf16", "wide"), [(True, 1), (False, 2)])
def test_the_largest_micro_batch_is_the_last_that_fits(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, wide: int
) -> None:
    works = [Finding(group="torch", name="compile", text="works")]
    monkeypatch.setattr(doctor, "_room", lambda: (80 * 10**9, True, has_bf16))
    models: dict[str, Any] = {name: (PRESETS[name], 1024) for name in ("gpt2-small", "deepseek-small", "gpt2-xl")}
    for name, fit in zip(models, doctor.fits(models, works), strict=True):
        assert fit.n_params == count.n_params(PRESETS[name]) and fit.is_compiled
        for n, total in ((fit.micro_batch, "activations"), (fit.micro_batch_checkpointed, "activations_checkpointed")):
            sizes = [memory.rank(PRESETS[name], seq_len=1024, micro_batch=rows) for rows in (n, n + 1)]
            taken = [r.weights + r.gradients + r.optimizer + wide * getattr(r, total) for r in sizes]
            assert taken[0] <= 0.9 * 80e9 < taken[1]
    monkeypatch.setattr(doctor, "_room", lambda: (10**9, False, has_bf16))
    (fit,) = doctor.fits({"gpt2-xl": (PRESETS["gpt2-xl"], 1024)}, works)
    assert fit.micro_batch == fit.micro_batch_checkpointed == 0 and not fit.is_compiled


@pytest.mark.long  # starts torch twice
def test_the_command_tells_lines_or_json(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", "--dir", tmp_path, "--model", "gpt2-small", env=dict(os.environ, COLUMNS="40"))
    assert done.returncode == 0, done.stderr
    for text in ("machine", "CPU", "torch", "compile", "gpt2-small", "124,439,808", "warning"):
        assert text in done.stdout, text
    found = json.loads(cli("doctor", "--dir", tmp_path, "--config", "shakespeare_cpu", "--json").stdout)
    assert found["findings"][0]["name"] == "CPU" and {f["state"] for f in found["findings"]} <= {"ok", "warning"}
    (fit,) = found["fits"]
    assert fit["name"] == "shakespeare_cpu" and fit["micro_batch"] > 0


def test_a_wrong_name_is_told_before_anything_is_looked_at(cli: Cli) -> None:
    for words, message in (
        (("--model", "gpt2-smal"), "did you mean 'gpt2-small'"),
        (("--config", "demoo"), "did you mean demo"),
    ):
        done = cli("doctor", *words)
        assert done.returncode == 1 and message in done.stderr and done.stdout == ""
