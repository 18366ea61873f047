"""Count files from the command line and Python: parts of a corpus give the tokenizer of the whole, byte for byte."""

import json
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Cli
from gptrs import Tokenizer, _core, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, stdlib_files: list[Path]) -> Path:
    """Texts as parts: two folders of .txt, one .jsonl."""
    folder = tmp_path_factory.mktemp("parts")
    for name, files in (("a", stdlib_files[:8]), ("b", stdlib_files[8:15])):
        (folder / name).mkdir()
        for path in files:
            (folder / name / f"{path.stem}.txt").write_bytes(path.read_bytes())
    lines = (json.dumps({"text": path.read_text("utf-8")}) for path in stdlib_files[15:20])
    (folder / "c.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path, cli: Cli) -> list[Path]:
    """The count files of the parts."""
    parts = []
    for name, source in (("a", "a"), ("b", "b"), ("c", "c.jsonl")):
        end = cli("tokenizer", "count", folder / source, "-o", folder / f"{name}.gtc")
        assert end.returncode == 0, end.stderr
        assert end.stdout.startswith(f"{folder}/{name}.gtc: ") and "pattern gpt2" in end.stdout
        parts.append(folder / f"{name}.gtc")
    return parts


def test_parts_counted_apart_give_the_tokenizer_of_one_run(folder: Path, parts: list[Path], cli: Cli):
    whole = folder / "whole.json"
    sources = (folder / "a", folder / "b", folder / "c.jsonl")
    assert cli("tokenizer", "train", *sources, "-n", 1200, "-o", whole).returncode == 0
    assert cli("tokenizer", "merge-counts", *parts[1:], "-o", folder / "bc.gtc").returncode == 0
    merged = cli("tokenizer", "merge-counts", folder / "bc.gtc", parts[0], "-o", folder / "all.gtc")
    assert merged.returncode == 0 and " in 20 documents, pattern gpt2" in merged.stdout, merged.stderr
    ways = [("--from-counts", folder / "all.gtc"), ("--from-counts", *parts), ("--from-counts", parts[2], *parts[:2])]
    ways += [("--from-counts", folder / "bc.gtc", "--from-counts", parts[0], "--threads", 1)]
    for way in ways:
        end = cli("tokenizer", "train", *way, "-n", 1200, "-o", folder / "parts.json")
        assert end.returncode == 0, end.stderr
        assert (folder / "parts.json").read_bytes() == whole.read_bytes()
    assert Tokenizer.train_from_counts(parts, 1200) == Tokenizer.from_file(whole)
    assert Tokenizer.train_from_counts(folder / "all.gtc", 1200, tie="hf") == Tokenizer.train(
        sources, 1200, tie="hf", progress=False
    )


def test_the_file_of_any_order_is_the_same(folder: Path, parts: list[Path]):
    trainer.merge_counts(parts, folder / "x.gtc")
    trainer.merge_counts(parts[::-1], folder / "y.gtc")
    sources = [folder / "a", folder / "b", folder / "c.jsonl"]
    facts = trainer.count(sources, folder / "z.gtc", threads=2)
    x, y, z = ((folder / f"{name}.gtc").read_bytes() for name in "xyz")
    assert x == y == z
    assert facts["n_bytes"] == sum(path.stat().st_size for name in "ab" for path in (folder / name).iterdir()) + sum(
        len(json.loads(line)["text"].encode()) for line in (folder / "c.jsonl").read_text().splitlines()
    )


def test_the_words_can_be_read_as_the_documentation_says(folder: Path, parts: list[Path]):
    data = parts[0].read_bytes()
    n_words, n_pieces, n_bytes, _, length = struct.unpack_from("<5Q", data, 16)
    at, words = 4096, []
    while at < 4096 + length:
        n, size = struct.unpack_from("<QI", data, at)
        words.append((data[at + 12 : at + 12 + size], n))
        at += 12 + size
    assert words == sorted(words) and len(words) == n_words and sum(n for _, n in words) == n_pieces
    assert sum(len(word) * n for word, n in words) == n_bytes
    text = "".join(path.read_text("utf-8") for path in sorted((folder / "a").iterdir()))
    assert dict(words)[b" import"] == text.count(" import") - text.count(" import_") - sum(
        text.count(f" import{c}") for c in "abcdefghijklmnopqrstuvwxyz"
    )


def test_runs_of_words_train_merges_across_spaces(folder: Path, cli: Cli):
    for name in "ab":
        end = cli("tokenizer", "count", folder / name, "--superwords", "-o", folder / f"{name}-runs.gtc")
        assert end.returncode == 0, end.stderr
    runs = [folder / "a-runs.gtc", folder / "b-runs.gtc"]
    whole = Tokenizer.train([folder / "a", folder / "b"], 900, superbpe_from=700)
    assert Tokenizer.train_from_counts(runs, 900, superbpe_from=700) == whole
    with pytest.raises(ValueError, match=r"words cut by .*expected 'gpt2'|words cut by .*expected \"gpt2\""):
        Tokenizer.train_from_counts(runs, 900, pattern="gpt2")


# ── what is refused ──


def test_mistakes_are_one_line_that_names_the_file(folder: Path, parts: list[Path], cli: Cli, tmp_path: Path):
    other = tmp_path / "other.gtc"
    assert cli("tokenizer", "count", folder / "a", "--pattern", "cl100k_base", "-o", other).returncode == 0
    damaged = tmp_path / "damaged.gtc"
    data = bytearray(parts[0].read_bytes())
    data[5000] ^= 1
    damaged.write_bytes(data)
    cut = tmp_path / "cut.gtc"
    cut.write_bytes(parts[0].read_bytes()[:-100])
    out = tmp_path / "out.gtc"
    cases = (
        (("merge-counts", parts[0], other, "-o", out), ("gpt2", "cl100k_base", str(other), str(parts[0]))),
        (("merge-counts", damaged, "-o", out), (str(damaged), "block 0 (byte 4096)", "hint:")),
        (("merge-counts", cut, "-o", out), (str(cut), "bytes", "hint:")),
        (("merge-counts", parts[0], parts[0], "-o", out), (str(parts[0]), "twice")),
        (("merge-counts", parts[0], "-o", tmp_path / "out.txt"), (".gtc",)),
        (("train", "--from-counts", damaged, "-n", 500, "-o", tmp_path / "t.json"), (str(damaged), "block 0")),
        (("train", "--from-counts", folder / "c.jsonl", "-n", 500, "-o", tmp_path / "t.json"), ("GPTRSCNT",)),
        (
            ("train", "--from-counts", parts[0], "--pattern", "cl100k_base", "-n", 500, "-o", tmp_path / "t.json"),
            ("gpt2", "cl100k_base", "hint:"),
        ),
        (("count", folder / "missing", "-o", out), ("missing",)),
    )
    for arguments, says in cases:
        end = cli("tokenizer", *arguments)
        assert end.returncode == 1 and end.stderr.startswith("error: ") and end.stderr.count("\n") == 1, end.stderr
        for part in says:
            assert part in end.stderr, end.stderr
    assert cli("tokenizer", "train", "-n", 500).returncode == 2
    assert not out.exists() and not (tmp_path / "t.json").exists()


def test_random_damage_never_gets_through(parts: list[Path], tmp_path: Path):
    draw = random.Random(9)
    data, path = parts[1].read_bytes(), tmp_path / "damaged.gtc"
    for _ in range(200):
        damaged = bytearray(data)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(data)) :]
        else:
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.gtc is not a valid count file: .*hint:"):
            Tokenizer.train_from_counts(path, 300)


def test_a_trainer_that_failed_says_so(parts: list[Path]):
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    text = " ".join(map(str, range(3_000_000)))
    for superbpe_from in (None, 260):
        core = _core.Trainer("gpt2", 300, [], 1, superbpe_from=superbpe_from)
        core.add_texts(["before"])
        with pytest.raises(StopError):
            core.add_texts([text], 1, stop)
        assert core.n_words == core.n_bytes == 0
        with pytest.raises(ValueError, match="an earlier call failed"):
            core.finish()


# ── Ctrl-C ──


def test_ctrl_c_ends_counting_and_joining_without_a_file(tmp_path: Path):
    draw = random.Random(1)
    big = tmp_path / "big.txt"
    words = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(1_500_000))
    big.write_text(" ".join(words))
    trainer.count(big, tmp_path / "a.gtc", progress=False)
    (tmp_path / "b.gtc").write_bytes((tmp_path / "a.gtc").read_bytes())
    commands = (
        ("count", big, "-o", tmp_path / "out.gtc"),
        ("merge-counts", tmp_path / "a.gtc", tmp_path / "b.gtc", "-o", tmp_path / "out.gtc"),
        ("train", "--from-counts", tmp_path / "a.gtc", "-n", 60_000, "-o", tmp_path / "out.json"),
        ("train", big, "--superbpe-from", 300, "-n", 60_000, "-o", tmp_path / "out.json"),
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    for command in commands:
        # The child sends itself Ctrl-C once its work has begun.
        code = (
            "import os, signal, sys, threading\nfrom gptrs import _core, trainer\nfrom gptrs.cli import main\n"
            "threading.Timer(0.15, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
            f"sys.argv = {['gptrs', 'tokenizer', *map(str, command)]!r}\nmain()"
        )
        start = time.monotonic()
        end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert end.returncode in (130, -signal.SIGINT), (command[0], end.returncode, end.stderr)
        assert time.monotonic() - start < 20
        assert sorted(path.name for path in tmp_path.iterdir()) == before, command
