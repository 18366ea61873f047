"""The command line as a user types it: results on stdout, messages on stderr, exit codes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import gptrs
from conftest import Cli
from gptrs import Dataset, Loader, Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path, cli: Cli) -> Path:
    """A folder in which the first two commands of the road have run."""
    folder = tmp_path_factory.mktemp("cli")
    train = cli("tokenizer", "train", corpus, "--vocab-size", 1000, "--out", folder / "tokenizer.json")
    assert train.returncode == 0, train.stderr
    assert train.stdout.startswith(f"{folder}/tokenizer.json: 1000 ids, pattern gpt2, digest ") and train.stderr == ""
    prepare = cli("prepare", corpus, "--tokenizer", folder / "tokenizer.json", "--out", folder / "data")
    assert prepare.returncode == 0, prepare.stderr
    assert prepare.stdout.startswith(f"{folder}/data: ") and prepare.stderr == ""
    return folder


def test_commands_do_what_the_functions_do(folder: Path, corpus: Path):
    tok = Tokenizer.from_file(folder / "tokenizer.json")
    assert tok == Tokenizer.train(corpus, 1000)
    assert Dataset(folder / "data").tokenizer_digest == tok.digest


def test_encode_and_decode_are_inverse(folder: Path, cli: Cli):
    file = folder / "tokenizer.json"
    text = "def f(x):\n    return 'é日'  "
    ids = cli("tokenizer", "encode", file, text)
    assert [int(i) for i in ids.stdout.split()] == Tokenizer.from_file(file).encode(text)
    assert cli("tokenizer", "encode", file, input=text).stdout == ids.stdout
    assert cli("tokenizer", "decode", file, *ids.stdout.split()).stdout == text
    assert cli("tokenizer", "decode", file, input=ids.stdout).stdout == text


def test_bytes_that_are_no_text_pass_through_the_pipes(folder: Path):
    data = bytes(range(256)) * 3
    encode = [sys.executable, "-m", "gptrs", "tokenizer", "encode", str(folder / "tokenizer.json")]
    ids = subprocess.run(encode, input=data, capture_output=True, check=True).stdout
    back = subprocess.run([*encode[:4], "decode", encode[5]], input=ids, capture_output=True, check=True).stdout
    assert back == data


def test_tokens_are_shown_one_a_line(folder: Path, cli: Cli):
    lines = cli("tokenizer", "encode", folder / "tokenizer.json", "self\n", "--tokens").stdout.splitlines()
    tok = Tokenizer.from_file(folder / "tokenizer.json")
    assert [int(line.split("\t")[0]) for line in lines] == tok.encode("self\n")
    assert lines[-1] == '10\t"\\n"'


def test_special_text_is_text_unless_asked(folder: Path, cli: Cli):
    arguments = ("tokenizer", "encode", folder / "tokenizer.json", "<|endoftext|>")
    assert len(cli(*arguments).stdout.split()) > 1
    assert cli(*arguments, "--special").stdout == "999\n"


def test_inspect_verify_and_show(folder: Path, cli: Cli):
    dataset = Dataset(folder / "data")
    inspect = cli("data", "inspect", folder / "data").stdout
    for fact in (dataset.n_tokens, dataset.n_documents, dataset.fingerprint, dataset.tokenizer_digest, "uint16"):
        assert str(fact) in inspect
    assert dataset.fingerprint in cli("data", "verify", folder / "data").stdout
    options = ("--seq-len", 8, "--global-batch", 3, "--seed", 5)
    shown = cli("data", "show", folder / "data", 7, *options).stdout.splitlines()
    with Loader(dataset, seq_len=8, global_batch=3, seed=5, device="numpy") as loader:
        batch = loader.batch_at(7)
    assert [line.split(": ")[1] for line in shown] == [" ".join(map(str, row)) for row in batch.tokens.tolist()]
    text = cli("data", "show", folder / "data", 0, "--no-shuffle", "-t", folder / "tokenizer.json").stdout
    assert text.startswith('token 0: "')


def test_a_corpus_too_small_warns_in_one_line(tmp_path: Path, cli: Cli):
    (tmp_path / "a.txt").write_text("abab")
    end = cli("tokenizer", "train", tmp_path / "a.txt", "-n", 300, "-o", tmp_path / "t.json")
    assert end.returncode == 0 and end.stderr.startswith("warning: the corpus (4 bytes") and end.stderr.count("\n") == 1


def test_the_version_is_the_packages(cli: Cli):
    assert cli("--version").stdout == f"gptrs {gptrs.__version__}\n"


def verbs() -> list[tuple[str, ...]]:
    import typer.main

    from gptrs.cli import app

    def walk(command, path: tuple[str, ...]):
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))

    return list(walk(typer.main.get_command(app), ()))


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_explains_itself_and_each_option(verb: tuple[str, ...]):
    import typer.main

    from gptrs.cli import app

    command = typer.main.get_command(app)
    for name in verb:
        command = command.commands[name]
    assert command.help
    undescribed = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert undescribed in ([], ["help"])


def test_help_is_quick_and_plain(cli: Cli):
    start = time.perf_counter()
    end = cli("prepare", "--help", env={"PATH": "", "COLUMNS": "120", "PYTHONPATH": ":".join(sys.path)})
    assert time.perf_counter() - start < 2
    assert end.returncode == 0 and "--shard-tokens" in end.stdout and "torch" not in end.stderr
