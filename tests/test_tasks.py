"""Work shared by tasks, as users and Slurm start it: whatever runs where and how often, the bytes of one run."""

import gzip
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli, dataset_bytes
from gptrs import Dataset, Tokenizer, merge_tasks, prepare, prepare_task, trainer

OPTIONS: dict[str, Any] = {"shard_tokens": 50_000, "progress": False}


@pytest.fixture(scope="module")
def whole(corpus: Path, gpt2_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What one run writes."""
    return prepare(corpus, gpt2_like, tmp_path_factory.mktemp("whole") / "out", **OPTIONS)


@pytest.fixture(scope="module")
def tokenizer_file(gpt2_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    gpt2_like.save(path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in dataset_bytes(folder).items() if not name.endswith(".lock")}


def test_three_tasks_by_hand(tmp_path: Path):
    tok = Tokenizer.train_from_iterator(["abab"], 258)
    (tmp_path / "a.txt").write_text("ab ab ab ab ab")
    (tmp_path / "b.jsonl").write_text('{"text": "ab"}\n{"text": "b"}\n')
    paths, out = [tmp_path / "a.txt", tmp_path / "b.jsonl"], tmp_path / "out"
    ends = [prepare_task(paths, tok, out, task, 3, progress=False) for task in (2, 0, 1)]
    # 41 bytes: the borders 13 and 27 move on to the end of the text, and to the second line.
    assert [(end.n_tokens, end.n_documents) for end in ends] == [(2, 1), (10, 1), (2, 1)]
    assert ends[0].path == out / "tasks" / "task-00002-of-00003"
    data = merge_tasks(paths, tok, out, 3, progress=False)
    assert tok.decode(data[:]) == "ab ab ab ab ab<|endoftext|>ab<|endoftext|>b<|endoftext|>" and data.n_documents == 3
    assert prepare_task(paths, tok, out, 0, 3, progress=False).is_merged


@pytest.mark.parametrize("of", [1, 3, 8])
def test_tasks_merge_to_the_bytes_of_one_run(
    corpus: Path, gpt2_like: Tokenizer, whole: Dataset, of: int, tmp_path: Path
):
    for task in reversed(range(of)):
        prepare_task(corpus, gpt2_like, tmp_path, task, of, **OPTIONS)
    kept = merge_tasks(corpus, gpt2_like, tmp_path, of, keep_tasks=True, **OPTIONS)
    assert kept.fingerprint == whole.fingerprint and (tmp_path / "tasks").is_dir()
    merge_tasks(corpus, gpt2_like, tmp_path, of, **OPTIONS)
    assert files(tmp_path) == files(whole.path)


def test_the_xargs_line_of_the_documentation(corpus: Path, tokenizer_file: Path, whole: Dataset, tmp_path: Path):
    gptrs = f"{shlex.quote(sys.executable)} -m gptrs"
    prepare = f"{gptrs} prepare {corpus} -t {tokenizer_file} -o {tmp_path} --shard-tokens 50000"
    line = f"seq 0 4 | xargs -P 2 -I{{}} {prepare} --task {{}} --of 5 && {prepare} --of 5 --merge"
    for _ in range(2):  # the second time there is nothing to do
        end = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
        assert end.returncode == 0, end.stderr
        assert end.stdout.endswith(f"fingerprint {whole.fingerprint}\n") and end.stderr == ""
    assert "all tasks are merged" in end.stdout and files(tmp_path) == files(whole.path)


def test_a_killed_task_goes_on_and_the_bytes_are_those_of_one_run(
    corpus: Path, gpt2_like: Tokenizer, tokenizer_file: Path, tmp_path: Path
):
    big = [corpus] * 6
    arguments = [*map(str, big), "-t", str(tokenizer_file), "-o", str(tmp_path / "out"), "--shard-tokens", "20000"]
    command = [sys.executable, "-m", "gptrs", "prepare", *arguments, "--task", "1", "--of", "2"]
    folder = tmp_path / "out" / "tasks" / "task-00001-of-00002"
    for n_shards in (1, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (folder / f"shard-{n_shards:05}.gts").exists():
            pass
        process.kill()
        process.wait()
    options: dict[str, Any] = {"shard_tokens": 20_000, "progress": False}
    for task in (0, 1):
        prepare_task(big, gpt2_like, tmp_path / "out", task, 2, **options)
    merge_tasks(big, gpt2_like, tmp_path / "out", 2, **options)
    prepare(big, gpt2_like, tmp_path / "whole", **options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_errors_say_what_is_missing_or_does_not_fit(corpus: Path, tokenizer_file: Path, cli: Cli, tmp_path: Path):
    def run(*arguments: object) -> str:
        end = cli("prepare", corpus, "-t", tokenizer_file, "-o", tmp_path, *arguments)
        assert end.returncode in (1, 2) and "Traceback" not in end.stderr
        return " ".join(end.stderr.replace("│", " ").split())

    assert cli("prepare", corpus, "-t", tokenizer_file, "-o", tmp_path, "--task", 1, "--of", 4).returncode == 0
    message = run("--merge", "--of", 4)
    assert "expected 4 finished tasks" in message and "missing 3: 0, 2, 3; hint: run them, with --task 0" in message
    assert "task must be 0 to 3, got 4" in run("--task", 4, "--of", 4)
    assert "--task needs --of N" in run("--task", 1)
    assert "--of needs --task I" in run("--of", 4)
    assert "got --task and --merge" in run("--task", 1, "--of", 4, "--merge")
    assert "tasks share one tokenizer" in run("--task", 1, "--of", 4, "--train-tokenizer", 300)
    assert "standard input cannot be shared" in run("-", "--task", 1, "--of", 4)
    assert "made with other append_eot" in run("--task", 1, "--of", 4, "--no-eot")
    with pytest.raises(TypeError, match="got 'shards'"):
        prepare_task(corpus, Tokenizer.from_file(tokenizer_file), tmp_path, 0, 2, shards=3)  # type: ignore[call-arg]


def test_a_merge_names_the_tasks_that_it_leaves(corpus: Path, tokenizer_file: Path, cli: Cli, tmp_path: Path):
    for arguments in (("--task", 1, "--of", 3), ("--task", 0, "--of", 1), ("--merge", "--of", 1)):
        end = cli("prepare", corpus, "-t", tokenizer_file, "-o", tmp_path, *arguments)
        assert end.returncode == 0, end.stderr
    assert f"{tmp_path / 'tasks'} holds tasks of another --of: task-00001-of-00003; hint: remove it" in end.stdout
    assert [folder.name for folder in (tmp_path / "tasks").iterdir()] == ["task-00001-of-00003"]


def test_a_task_has_one_process(corpus: Path, gpt2_like: Tokenizer, tmp_path: Path):
    import fcntl

    folder = tmp_path / "tasks" / "task-00000-of-00002"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="is being written by another process"):
            prepare_task(corpus, gpt2_like, tmp_path, 0, 2, **OPTIONS)
    prepare_task(corpus, gpt2_like, tmp_path, 0, 2, **OPTIONS)


@pytest.fixture(scope="module")
def mixed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The corpus with an empty file, and a part of it compressed."""
    folder = tmp_path_factory.mktemp("mixed")
    for i, path in enumerate(sorted(corpus.iterdir())):
        if i % 5 == 3:
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        else:
            os.link(path, folder / path.name)
    (folder / "a.txt").write_text("")
    (folder / "z.jsonl").write_text("\n \n" + json.dumps({"text": "caf\u00e9 " * 300}) + "\n\n")
    yield folder


@pytest.mark.parametrize("options", [{}, {"superwords": True}, {"pattern": r"\w+|\W"}], ids=str)
def test_counts_of_tasks_add_up_to_the_file_of_one_count(mixed: Path, options: dict[str, Any], tmp_path: Path):
    facts = trainer.count(mixed, tmp_path / "whole.gtc", **options)
    for of in (1, 2, 7, 100):
        for task in range(of):
            out = trainer.task_file(tmp_path / "words.gtc", task, of)
            trainer.count(mixed, out, task=(task, of), threads=task % 3, **options)
        merged = trainer.merge_counts(tmp_path / f"words.task-*-of-{of:05}.gtc", tmp_path / "merged.gtc")
        assert merged == facts
        assert (tmp_path / "merged.gtc").read_bytes() == (tmp_path / "whole.gtc").read_bytes(), f"{of} tasks"


def test_count_files_of_tasks_must_all_be_there(corpus: Path, cli: Cli, tmp_path: Path):
    for task in (0, 2):
        end = cli("tokenizer", "count", corpus, "-o", tmp_path / "w.gtc", "--task", task, "--of", 4)
        assert end.returncode == 0 and f"w.task-0000{task}-of-00004.gtc: " in end.stdout
    parts = sorted(tmp_path.glob("w.task-*.gtc"))
    for command in (("merge-counts", *parts, "-o", tmp_path / "w.gtc"), ("train", "--from-counts", *parts, "-n", 300)):
        end = cli("tokenizer", *command)
        assert end.returncode == 1 and "missing 2: 1, 3; hint: count them, with --task 1 --of 4" in end.stderr
    assert not (tmp_path / "w.gtc").exists()
    assert cli("tokenizer", "merge-counts", "--partial", *parts, "-o", tmp_path / "half.gtc").returncode == 0
    for task in (1, 3):
        trainer.count(corpus, trainer.task_file(tmp_path / "w.gtc", task, 4), task=(task, 4))
    rest = [trainer.task_file(tmp_path / "w.gtc", task, 4) for task in (1, 3)]
    trainer.merge_counts([tmp_path / "half.gtc", *rest], tmp_path / "w.gtc", partial=True)
    trainer.count(corpus, tmp_path / "whole.gtc")
    assert (tmp_path / "w.gtc").read_bytes() == (tmp_path / "whole.gtc").read_bytes()
    end = cli("tokenizer", "count", corpus, "-o", tmp_path / "w.gtc", "--task", 4, "--of", 4)
    assert end.returncode == 1 and "expected a task from 0 to 3 of 4, got task 4" in end.stderr
