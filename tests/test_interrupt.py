"""Ctrl-C, kill -9 and a full disk: nothing half-written is ever visible, and the same command again finishes."""

import contextlib
import errno
import os
import pty
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Cli, dataset_bytes
from gptrs import Dataset, Tokenizer, prepare_documents

GPTRS = [sys.executable, "-m", "gptrs"]


@pytest.fixture(scope="module")
def slow_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MB of random words: hardly any occurs twice, so that counting, merging and encoding take seconds."""
    draw = random.Random(1)
    words = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(1_000_000))
    text = " ".join(words)
    path = tmp_path_factory.mktemp("slow") / "words.txt"
    path.write_text("\n".join((text, text[::-1], text[1::-1] + text[5:] + "\n")))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, gpt2_like: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("tok") / "tokenizer.json"
    gpt2_like.save(path)
    return path


def start_until_it_shows_progress(*arguments: object) -> subprocess.Popen[bytes]:
    """Runs the command on a terminal and returns once its progress bar moves."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*GPTRS, *map(str, arguments)], stderr=theirs, stdout=subprocess.PIPE, stdin=theirs)
    os.close(theirs)
    shown = b""
    end = time.monotonic() + 30
    while b" of " not in shown and time.monotonic() < end and process.poll() is None:
        if select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 4096)
    assert b" of " in shown, shown
    process.terminal = ours  # type: ignore[attr-defined]  # stays open: a closed terminal would be another signal
    return process


def interrupt(process: subprocess.Popen[bytes]) -> float:
    """Sends Ctrl-C and returns the seconds until the process ended with 130 and without a result."""
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    terminal: int = process.terminal  # type: ignore[attr-defined]
    while process.poll() is None and time.monotonic() - start < 20:
        if select.select([terminal], [], [], 0.01)[0]:
            with contextlib.suppress(OSError):  # the other end is gone
                os.read(terminal, 4096)
    os.close(terminal)
    assert process.returncode == 130 and process.stdout is not None and process.stdout.read() == b""
    process.stdout.close()
    return time.monotonic() - start


def test_ctrl_c_ends_training_and_leaves_the_earlier_file(slow_text: Path, tmp_path: Path, cli: Cli):
    out = tmp_path / "tokenizer.json"
    out.write_text("earlier")
    command = ("tokenizer", "train", slow_text, "--vocab-size", 60_000, "--out", out, "--threads", 1)
    for pause in (0.0, 0.3, 1.0):
        process = start_until_it_shows_progress(*command)
        time.sleep(pause)
        assert interrupt(process) < 3
        assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"] and out.read_text() == "earlier"
    end = cli("tokenizer", "train", slow_text, "--vocab-size", 300, "--out", out)
    assert end.returncode == 0, end.stderr
    assert Tokenizer.from_file(out).vocab_size == 300


def test_ctrl_c_ends_prepare_and_the_same_command_finishes(slow_text: Path, tokenizer: Path, tmp_path: Path, cli: Cli):
    options = ("--tokenizer", tokenizer, "--shard-tokens", 1_000_000)
    whole = cli("prepare", slow_text, "--out", tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    command = ("prepare", slow_text, "--out", tmp_path / "out", *options)
    for pause in (0.0, 0.2):
        assert interrupt(_paused(start_until_it_shows_progress(*command, "--threads", 1), pause)) < 3
        assert not (tmp_path / "out" / "manifest.json").exists()
        with pytest.raises((OSError, ValueError)):
            Dataset(tmp_path / "out")
    end = cli(*command)
    assert end.returncode == 0, end.stderr
    assert dataset_bytes(tmp_path / "out") == dataset_bytes(tmp_path / "whole")


def _paused(process: subprocess.Popen[bytes], seconds: float) -> subprocess.Popen[bytes]:
    time.sleep(seconds)
    return process


def test_python_code_gets_a_keyboard_interrupt_and_goes_on(slow_text: Path, tmp_path: Path):
    code = f"""
import os, signal, sys, threading, time
import gptrs
threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    gptrs.Tokenizer.train({str(slow_text)!r}, 60_000, threads=1)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - start < 5)
print(gptrs.Tokenizer.train_from_iterator(["abab"], 257, special_tokens=[]).encode("ab"))
tok = gptrs.Tokenizer.train_from_iterator(["ab"], 257, special_tokens=[])
text = open({str(slow_text)!r}).read() * 8
for encode in (tok.encode, tok.count, lambda text: tok.encode_batch([text])):
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        encode(text)
    except KeyboardInterrupt:
        print("interrupted")
class Stop(Exception): pass
def stop(*_): raise Stop
trainer = gptrs._core.Trainer("gpt2", 60_000, [], 1)
try:
    trainer.add_files([{str(slow_text)!r}], "text", 1, stop)
except Stop:
    print("stopped by the callback", trainer.n_words)
"""
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert end.stdout == "interrupted True\n[256]\n" + "interrupted\n" * 3 + "stopped by the callback 0\n", end.stderr


def test_other_threads_run_during_long_calls(slow_text: Path):
    code = f"""
import threading, time
import gptrs
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
text = open({str(slow_text)!r}).read()
tok = gptrs.Tokenizer.train_from_iterator([text], 2000, threads=1, progress=False)
for work in (lambda: tok.encode_ordinary(text), lambda: tok.encode_batch([text], threads=1), lambda: tok.count(text)):
    before, start = ticks, time.monotonic()
    ids = work()
    assert ticks - before > 0.2 * (time.monotonic() - start) / 0.01, (ticks - before, time.monotonic() - start)
before, start = ticks, time.monotonic()
tok.decode_bytes(tok.encode_batch([text]).ids)
assert ticks - before > 0.2 * (time.monotonic() - start) / 0.01
print("ran")
"""
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert end.stdout == "ran\n", end.stderr


def test_kill_9_at_any_time_and_the_same_command_gives_the_same_bytes(
    slow_text: Path, tokenizer: Path, tmp_path: Path, cli: Cli
):
    draw = random.Random(5)
    options = ("--tokenizer", tokenizer, "--shard-tokens", 200_000, "--no-progress")
    text = tmp_path / "text.txt"
    text.write_bytes(slow_text.read_bytes()[:8_000_000])
    start = time.monotonic()
    assert cli("prepare", text, "--out", tmp_path / "whole", *options, "--threads", 1).returncode == 0
    seconds = time.monotonic() - start
    expected = dataset_bytes(tmp_path / "whole")
    n_kills = attempt = 0
    while n_kills < 10:
        attempt += 1
        assert attempt < 60
        out = tmp_path / f"out{attempt}"
        for _ in range(3):
            threads = draw.choice((1, 2))
            command = [*GPTRS, "prepare", text, "--out", out, *options, "--threads", str(threads)]
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(draw.uniform(0.3, 1.0) * seconds)
            process.kill()
            n_kills += process.wait() == -signal.SIGKILL
        end = cli("prepare", text, "--out", out, *options)
        assert end.returncode == 0, end.stderr
        assert dataset_bytes(out) == expected


# ── full disk ──


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_clear_error_and_earlier_files_stay(
    small_disk: Path, slow_text: Path, tokenizer: Path, corpus: Path, cli: Cli
):
    (small_disk / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    small = cli("prepare", sorted(corpus.glob("*.txt"))[0], "--tokenizer", tokenizer, "--out", small_disk / "small")
    assert small.returncode == 0, small.stderr
    before = dataset_bytes(small_disk)
    end = cli("prepare", slow_text, "--tokenizer", tokenizer, "--out", small_disk / "large")
    assert end.returncode == 1
    assert "No space left on device" in end.stderr and "hint: free some space" in end.stderr
    assert str(small_disk / "large") in end.stderr and "Traceback" not in end.stderr
    assert not (small_disk / "large" / "manifest.json").exists()
    assert {name: data for name, data in dataset_bytes(small_disk).items() if not name.startswith("large")} == before
    filler = small_disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            os.write(file.fileno(), bytes(1 << 16))
    end = cli("tokenizer", "train", corpus, "--vocab-size", 2000, "--out", small_disk / "tokenizer.json")
    assert end.returncode == 1 and "hint: free some space" in end.stderr
    assert (small_disk / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


def test_a_disk_that_is_full_before_the_first_token_is_named(small_disk: Path, tokenizer: Path, cli: Cli):
    """What comes by a pipe or from Python is written first, as text."""
    out = small_disk / "out"
    end = cli("prepare", "-", "--tokenizer", tokenizer, "--out", out, input="word " * 300_000)
    assert end.returncode == 1 and end.stderr.startswith(f"error: cannot write {out}/.standard-input-")
    assert "txt: No space left on device; hint: free some space" in end.stderr and end.stderr.count("\n") == 1
    with pytest.raises(OSError, match=r"cannot write .*/documents\.jsonl: No space left on device; hint: free") as full:
        prepare_documents(["word " * 1000] * 300, Tokenizer.from_file(tokenizer), out)
    assert full.value.errno == errno.ENOSPC and list(out.iterdir()) == []

    def documents() -> Iterator[str]:
        yield "word"
        raise FileNotFoundError(errno.ENOENT, "theirs")

    with pytest.raises(FileNotFoundError, match="theirs"):
        prepare_documents(documents(), Tokenizer.from_file(tokenizer), out)


def test_a_file_size_limit_is_one_clear_error(slow_text: Path, tokenizer: Path, tmp_path: Path, cli: Cli):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    out = tmp_path / "out"
    command = ("prepare", slow_text, "--tokenizer", tokenizer, "--out", out)
    end = cli(*command, preexec_fn=limit)
    assert end.returncode == 1 and "File too large" in end.stderr and str(out) in end.stderr
    assert "Traceback" not in end.stderr and not (out / "manifest.json").exists()
    end = cli(*command)
    assert end.returncode == 0, end.stderr
    Dataset(out).verify()
