"""From text to shards in one call, warm words beside the tokenizer, and memory that does not follow the files."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Cli, dataset_bytes
from gptrs import Tokenizer, prepare, train_and_prepare


def test_training_and_encoding_in_one_call_gives_the_same_bytes(corpus: Path, tmp_path: Path):
    for threads in (1, 3):
        out = tmp_path / f"fused-{threads}"
        tok, dataset = train_and_prepare(
            corpus, 1000, out, shard_tokens=100_000, save=tmp_path / "tokenizer.json", threads=threads
        )
        apart = Tokenizer.from_json(Tokenizer.train(corpus, 1000).to_json())  # without warm words
        assert tok == apart == Tokenizer.from_file(tmp_path / "tokenizer.json")
        prepare(corpus, apart, tmp_path / f"apart-{threads}", shard_tokens=100_000, threads=1)
        assert dataset_bytes(out) == dataset_bytes(tmp_path / f"apart-{threads}")
        assert dataset.tokenizer_digest == tok.digest
        again = train_and_prepare(corpus, 1000, out, shard_tokens=100_000)[1]
        assert again.fingerprint == dataset.fingerprint


def test_the_command_line_trains_and_prepares(corpus: Path, tmp_path: Path, cli: Cli):
    out, file = tmp_path / "data", tmp_path / "tok.json"
    end = cli(
        "prepare", corpus, "--train-tokenizer", 700, "--tokenizer", file, "--out", out, "--pattern", "cl100k_base"
    )
    assert end.returncode == 0, end.stderr
    assert end.stdout.startswith(f"{file}: 700 ids, pattern cl100k_base, digest ") and f"\n{out}: " in end.stdout
    tok = Tokenizer.from_file(file)
    assert tok == Tokenizer.train(corpus, 700, pattern="cl100k_base")
    prepare(corpus, tok, tmp_path / "apart")
    assert dataset_bytes(out) == dataset_bytes(tmp_path / "apart")
    end = cli("prepare", corpus, "--train-tokenizer", 700, "--tokenizer", "folder", "--out", out)
    assert end.returncode == 1 and "--tokenizer must be a .json or .tiktoken file" in end.stderr


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, stdlib_files: list[Path]) -> Path:
    """9 MB: enough for the warm words to be used."""
    path = tmp_path_factory.mktemp("large") / "large.txt"
    text = b"".join(path.read_bytes() for path in stdlib_files)
    path.write_bytes(text * (9_000_000 // len(text) + 1))
    return path


def test_a_pattern_that_no_file_can_hold_is_refused_before_the_work(tmp_path: Path, cli: Cli):
    """The files do not even exist: nothing was read before the refusal."""
    files, pattern = tmp_path / "none.txt", r"^\w+|\s+|."
    wanted = r"cannot be written as tokenizer.json: ^ is the start of every line in Oniguruma; hint: use \A"
    end = cli("tokenizer", "train", files, "-n", 300, "--pattern", pattern, "-o", tmp_path / "a.json")
    assert end.returncode == 1 and end.stderr.rstrip().endswith(wanted) and end.stderr.count("\n") == 1
    (tmp_path / "a.txt").write_text("one two")
    report = tmp_path / "r.json"
    with pytest.raises(ValueError, match=r"cannot be written as tokenizer\.json"):
        train_and_prepare(
            tmp_path / "a.txt", 300, tmp_path / "out", save=tmp_path / "a.json", pattern=pattern, report=report
        )
    assert not report.exists() and not (tmp_path / "out").exists()


def test_warm_words_never_change_an_id(large: Path, tmp_path: Path):
    file, words = tmp_path / "tokenizer.json", tmp_path / "tokenizer.warm"
    tok = Tokenizer.train(large, 2000)
    tok.save(file)
    assert words.stat().st_size > 10_000
    expected = Tokenizer.from_json(tok.to_json()).encode_files(large)
    whole = words.read_bytes()
    Tokenizer.train(large, 900).save(tmp_path / "other.json")
    of_another = (tmp_path / "other.warm").read_bytes()
    for content in (whole, of_another, whole[:-1], whole[:5000] + b"x" + whole[5001:], b"", None):
        if content is None:
            words.unlink()
        else:
            words.write_bytes(content)
        for threads in (1, 2):
            got = Tokenizer.from_file(file).encode_files(large, threads=threads)
            assert (got.ids == expected.ids).all() and (got.offsets == expected.offsets).all()
    assert (tok.encode_files(large).ids == expected.ids).all()


PEAK = """
import resource, sys
import gptrs
tok = gptrs.Tokenizer.from_file(sys.argv[1])
tok.encode("one text, so that the tokenizer is warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tok.encode_files(sys.argv[2], sys.argv[3], threads=2, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k_base"])
def test_memory_of_files_to_shards_does_not_follow_the_files(large: Path, tmp_path: Path, pattern: str):
    tok = tmp_path / "tokenizer.json"
    Tokenizer.train(large, 2000, pattern=pattern).save(tok)
    peaks = []
    for times in (4, 16):
        path = tmp_path / f"{times}.txt"
        with path.open("wb") as file:
            for _ in range(times):
                file.write(large.read_bytes())
        command = [sys.executable, "-c", PEAK, str(tok), str(path), str(tmp_path / f"out-{times}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
        path.unlink()
    assert max(peaks) < 200, f"{peaks} MB for 36 and 144 MB of text"
    assert peaks[1] - peaks[0] < 40, f"{peaks} MB for 36 and 144 MB of text"
