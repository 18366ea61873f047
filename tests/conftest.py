"""What several test files share: real text, small tokenizers, the larger test data where it is at hand."""

import base64
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gptrs
from random_strings import random_strings
from warm_cli import WarmCli

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's own threads would fight with the tests' processes
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch looks at it once, at the first product on CUDA
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job's children would ignore Ctrl-C as well
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with larger test data; tests that need it skip without it."""
    folder = os.environ.get("GPTRS_TEST_DATA")
    if not folder:
        pytest.skip("needs GPTRS_TEST_DATA")
    return Path(folder)


@pytest.fixture(scope="session")
def stdlib_files() -> list[Path]:
    """Some 2 MB of real text that every machine has: the Python standard library's own source."""
    files, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        files.append(path)
        size += path.stat().st_size
        if size > 2_000_000:
            break
    return files


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, stdlib_files: list[Path]) -> Path:
    """A folder with .txt files (one document each) and one .jsonl (a document a line)."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in stdlib_files[:20]:
        (folder / f"{path.stem}.txt").write_bytes(path.read_bytes())
    lines = [json.dumps({"text": path.read_text("utf-8"), "name": path.name}) for path in stdlib_files[20:40]]
    (folder / "more.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def gpt2_like(stdlib_files: list[Path]) -> gptrs.Tokenizer:
    """A 2,000-token vocabulary over the gpt2 pattern."""
    return gptrs.Tokenizer.train_from_iterator((path.read_bytes() for path in stdlib_files), 2000)


@pytest.fixture(scope="session")
def cl100k_like(stdlib_files: list[Path]) -> gptrs.Tokenizer:
    """A 2,000-token vocabulary over the cl100k_base pattern."""
    texts = (path.read_bytes() for path in stdlib_files)
    return gptrs.Tokenizer.train_from_iterator(texts, 2000, pattern="cl100k_base")


@pytest.fixture(scope="session")
def regex_like(stdlib_files: list[Path]) -> gptrs.Tokenizer:
    """A 2,000-token vocabulary over a user's regular expression, which leaves gaps: spaces match nothing."""
    texts = (path.read_bytes() for path in stdlib_files)
    return gptrs.Tokenizer.train_from_iterator(texts, 2000, pattern=r"[A-Za-z_]+|\d|[^\sA-Za-z_\d]+")


@pytest.fixture(scope="session")
def wide() -> gptrs.Tokenizer:
    """A vocabulary of 66,000: ids that need 32 bits."""
    draw = random.Random(1)
    text = " ".join("".join(draw.choices("abcdefgh", k=9)) for _ in range(60_000))
    return gptrs.Tokenizer.train_from_iterator([text], 66_000)


@pytest.fixture(scope="session", params=["gpt2_like", "cl100k_like", "regex_like"])
def any_tokenizer(request: pytest.FixtureRequest) -> gptrs.Tokenizer:
    """Each of the three in turn."""
    tokenizer: gptrs.Tokenizer = request.getfixturevalue(request.param)
    return tokenizer


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Path:
    """GPT-2's vocab.json and merges.txt as OpenAI published them."""
    folder = tmp_path_factory.mktemp("gpt2")
    for packed, name in (("gpt2_encoder.json.gz", "vocab.json"), ("gpt2_vocab.bpe.gz", "merges.txt")):
        (folder / name).write_bytes(gzip.decompress((test_data / packed).read_bytes()))
    return folder


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> gptrs.Tokenizer:
    """GPT-2's own tokenizer."""
    return gptrs.Tokenizer.from_file(gpt2_folder)


@pytest.fixture(scope="session")
def unicode_strings() -> list[str]:
    """10,000 seeded random strings out of everything that pre-tokenizers treat differently."""
    return random_strings(7, 10_000)


def is_assigned(text: str) -> bool:
    """True when this Python's Unicode knows every character: peers of another version class the others differently."""
    return all(unicodedata.category(c) != "Cn" for c in text)


@pytest.fixture(scope="session")
def adversarial(test_data: Path) -> dict[str, str | bytes]:
    """The cases of adversarial.jsonl by name: str, or bytes where they are no UTF-8."""
    return dict(map(_case, (test_data / "adversarial.jsonl").read_text("utf-8").splitlines()))


def _case(line: str) -> tuple[str, str | bytes]:
    case: dict[str, Any] = json.loads(line)
    if "bytes_b64" in case:
        return case["name"], base64.b64decode(case["bytes_b64"]) * case["repeat"]
    return case["name"], case.get("prefix", "") + case["text"] * case["repeat"] + case.get("suffix", "")


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs `gptrs ARGUMENTS…` in a process of its own."""

    def run(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "gptrs", *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 120, **options}
        return subprocess.run(command, check=False, **options)

    return run


@pytest.fixture(scope="session")
def warm_cli() -> Iterator[Cli]:
    """The same, forked from a process that has imported torch. Options: `input`, `cwd`, `env`."""
    run = WarmCli()
    yield run
    run.close()


def dataset_bytes(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
