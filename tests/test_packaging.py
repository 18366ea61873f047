"""The wheel alone is enough: no Rust, no torch, only the dependencies that pyproject.toml declares."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def declared_closure(name: str) -> set[str]:
    """Names of the installed distributions that `name` requires without extras, itself left out."""
    found: set[str] = set()
    queue = [name]
    while queue:
        for requirement in importlib.metadata.requires(queue.pop()) or []:
            spec, _, marker = requirement.partition(";")
            dependency = re.split(r"[^A-Za-z0-9._-]", spec.strip())[0]
            if "extra" in marker or dependency in found:
                continue
            try:
                importlib.metadata.distribution(dependency)
            except importlib.metadata.PackageNotFoundError:
                continue  # a marker for another platform or Python
            found.add(dependency)
            queue.append(dependency)
    return found


def link_distributions(names: set[str], site_packages: Path) -> None:
    """Links the files of installed distributions into another site-packages folder, so that no network is needed."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        tops = {Path(str(file)).parts[0] for file in distribution.files or [] if ".." not in str(file)}
        for top in tops - {"__pycache__"}:
            target = site_packages / top
            if not target.exists():
                target.symlink_to(distribution.locate_file(top))


@pytest.fixture(scope="module")
def maturin() -> str:
    found = shutil.which("maturin", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "maturin is not installed; hint: make test installs it"
    return found


@pytest.fixture(scope="module")
def wheel(maturin: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([maturin, "build", "--release", "--quiet", "--out", str(out)], cwd=ROOT, check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(maturin: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist, packed by the code that `make build` runs; nothing is compiled."""
    out = tmp_path_factory.mktemp("sdist")
    subprocess.run([maturin, "sdist", "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    (packed,) = out.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(out, filter="data")
    return out / packed.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def empty_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh venv that holds the wheel and what it requires."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site_packages,) = home.glob("lib/python*/site-packages")
    link_distributions(declared_closure("gptrs"), site_packages)
    return python


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(python.parent), "HOME": str(cwd), "TERM": "dumb", "COLUMNS": "100"}  # no cargo, no rustc
    return subprocess.run([str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_wheel_is_abi3_and_holds_configs_types_and_stubs(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "gptrs/py.typed",
        "gptrs/_core.pyi",
        "gptrs/configs/demo.toml",
        "gptrs/configs/shakespeare_cpu.toml",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "rust/", "benches/"))]


def test_sdist_holds_every_source_and_nothing_that_was_made(sdist: Path) -> None:
    names = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert {"Cargo.lock", "Cargo.toml", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= names
    assert {"python/gptrs/py.typed", "python/gptrs/_core.pyi", "python/gptrs/configs/demo.toml"} <= names
    sources = [*(ROOT / "python").rglob("*.py"), *ROOT.glob("rust/*/src/**/*.rs")]
    assert len(sources) > 50
    assert [path for path in sources if str(path.relative_to(ROOT)) not in names] == []
    assert {f"rust/{crate}/Cargo.toml" for crate in ("gptrs-core", "gptrs-py")} <= names
    assert "rust/gptrs-core/build.rs" in names
    made = ("target/", ".venv/", "dist/", "benches/", "runs/")
    suffixes = (".so", ".pyc", ".whl", ".jsonl")
    assert [name for name in names if name.startswith(made) or name.endswith(suffixes)] == []


def test_sdist_is_a_workspace_that_cargo_accepts_as_locked(sdist: Path) -> None:
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--offline", "--manifest-path"]
    done = subprocess.run([*command, str(sdist / "rust/gptrs-py/Cargo.toml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    members = {package["name"] for package in json.loads(done.stdout)["packages"] if package["source"] is None}
    assert members == {"gptrs-core", "gptrs-py"}


def test_wheel_trains_and_encodes_in_an_empty_venv(empty_python: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("a true friend accepts you, a friendly friendship " * 200)
    code = """
import sys, gptrs
tok = gptrs.Tokenizer.train(["corpus.txt"], vocab_size=300, special_tokens=["<|endoftext|>"])
ids = tok.encode("a friendly friend")
assert tok.decode(ids) == "a friendly friend" and len(ids) < 10, ids
tok.save("tokenizer.json")
assert gptrs.Tokenizer.from_file("tokenizer.json").encode("a friendly friend") == ids
dataset = gptrs.prepare(["corpus.txt"], tok, "data")
assert dataset.n_tokens > 100
try:
    import torch
except ImportError:
    print("no torch, as meant")
"""
    done = run(empty_python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no torch, as meant" in done.stdout


def test_wheel_command_line_helps_and_names_the_missing_extra(empty_python: Path, tmp_path: Path) -> None:
    done = run(empty_python, "-m", "gptrs", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tokenizer" in done.stdout
    assert "prepare" in done.stdout
    done = run(empty_python, "-m", "gptrs", "train", "shakespeare_cpu", cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'gptrs[train]'" in done.stderr
    assert "Traceback" not in done.stderr
