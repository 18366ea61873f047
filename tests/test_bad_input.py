"""Wrong input: one clear error that says what, where and how to cure it; exit code 1; earlier files stay whole."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Cli, dataset_bytes
from gptrs import Dataset, Loader, Tokenizer, prepare, prepare_documents, prepare_task, train_and_prepare
from gptrs.holdout import files_of


@pytest.fixture
def tok() -> Tokenizer:
    return Tokenizer.train_from_iterator(["the quick brown fox"], 260)


@pytest.fixture
def dataset(tmp_path: Path, corpus: Path, gpt2_like: Tokenizer) -> Dataset:
    return prepare(corpus, gpt2_like, tmp_path / "tokens", shard_tokens=200_000)


def fails(cli: Cli, *arguments: object, says: tuple[str, ...], code: int = 1) -> None:
    """The command ends with `code` and one line on stderr that holds each of `says`."""
    end = cli(*arguments)
    assert end.returncode == code, (end.stdout, end.stderr)
    assert end.stdout == "" and end.stderr.startswith("error: ") and end.stderr.count("\n") == 1, end.stderr
    for text in says:
        assert text in end.stderr, end.stderr


# ── the corpus ──


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "blank.jsonl", "empty_texts.jsonl"])
def test_an_empty_corpus(tok: Tokenizer, tmp_path: Path, cli: Cli, name: str):
    contents = {"blank.jsonl": "\n\n", "empty_texts.jsonl": '{"text": ""}\n'}
    (tmp_path / name).write_text(contents.get(name, ""))
    for work in (
        lambda: Tokenizer.train(tmp_path / name, 300),
        lambda: prepare(tmp_path / name, tok, tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"corpus is empty.*hint: "):
            work()
    with pytest.raises(ValueError, match="corpus is empty"):
        Tokenizer.train_from_iterator([], 300)
    fails(cli, "tokenizer", "train", tmp_path / name, "-n", 300, "-o", tmp_path / "t.json", says=("empty", "hint: "))
    assert not (tmp_path / "t.json").exists()


def test_a_file_that_is_not_utf8(tok: Tokenizer, tmp_path: Path, cli: Cli):
    (tmp_path / "latin1.txt").write_bytes(b"good text, then caf\xe9 in Latin-1")
    (tmp_path / "lines.jsonl").write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
    for name, offset in (("latin1.txt", 19), ("lines.jsonl", 30)):
        path = tmp_path / name
        message = f"{name} is not UTF-8: invalid byte at offset {offset}; hint: "
        with pytest.raises(ValueError, match=message):
            Tokenizer.train(path, 300)
        with pytest.raises(ValueError, match=message):
            prepare(path, tok, tmp_path / "out")
        fails(
            cli, "tokenizer", "train", path, "-n", 300, "-o", tmp_path / "t.json", says=(str(path), "UTF-8", "hint: ")
        )
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"', "line 2"),
        ('{"body": "a"}', "text"),
        ('{"text": 5}', "line 2"),
        ("[1, 2]", "line 2"),
        ('{"text": "\\ud800"}', "line 2"),
    ],
)
def test_a_jsonl_line_that_holds_no_text(tok: Tokenizer, tmp_path: Path, line: str, says: str):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + '\n{"text": "good"}\n')
    for work in (lambda p: Tokenizer.train(p, 300), lambda p: prepare(p, tok, tmp_path / "out")):
        with pytest.raises(ValueError, match=f"a.jsonl.*{says}"):
            work(tmp_path / "a.jsonl")


def test_a_missing_file_fails_before_the_work_starts(tok: Tokenizer, tmp_path: Path, cli: Cli):
    (tmp_path / "good.txt").write_text("good")
    missing = tmp_path / "missing.txt"
    for work in (
        lambda: Tokenizer.train([tmp_path / "good.txt", missing], 300),
        lambda: prepare([tmp_path / "good.txt", missing], tok, tmp_path / "out"),
        lambda: Tokenizer.from_file(tmp_path / "missing.txt.json"),
        lambda: Tokenizer.train(tmp_path / "*.text", 300),
        lambda: Dataset(missing),
    ):
        with pytest.raises(FileNotFoundError, match=r"(missing\.txt|\*\.text).*hint: "):
            work()
    assert not (tmp_path / "out").exists()
    fails(cli, "prepare", missing, "-t", missing, "-o", tmp_path / "out", says=("missing.txt", "hint: "))
    fails(cli, "tokenizer", "encode", tmp_path / "no.json", "text", says=("no.json", "hint: "))
    fails(cli, "data", "inspect", missing, says=("missing.txt", "hint: "))
    with pytest.raises(ValueError, match="expected at least one file"):
        Tokenizer.train([], 300)


def test_a_folder_that_cannot_be_read(tok: Tokenizer, tmp_path: Path, cli: Cli):
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    folder.chmod(0)
    try:
        if os.access(folder, os.R_OK):  # root reads everything: put a file where a folder must be
            folder.chmod(0o755)
            with pytest.raises(NotADirectoryError, match=r"a\.txt"):
                prepare(folder / "a.txt", tok, folder / "a.txt" / "out")
            fails(cli, "data", "inspect", folder / "a.txt" / "out", says=("a.txt",))
        else:
            with pytest.raises(PermissionError, match="hint: check the permissions"):
                Tokenizer.train(folder, 300)
            with pytest.raises(PermissionError, match="closed"):
                files_of((str(tmp_path),))
            fails(cli, "tokenizer", "train", folder, "-n", 300, says=(str(folder), "hint: "))
    finally:
        folder.chmod(0o755)


def test_a_file_where_a_folder_is_meant(tok: Tokenizer, tmp_path: Path, cli: Cli):
    tok.save(tmp_path / "t.json")
    (tmp_path / "a.txt").write_text("text")
    for out, error in ((tmp_path / "a.txt", FileExistsError), (tmp_path / "a.txt" / "out", NotADirectoryError)):
        with pytest.raises(error, match=r"a\.txt.*hint: a file is where a folder is meant"):
            prepare(tmp_path / "a.txt", tok, out)
        fails(cli, "prepare", tmp_path / "a.txt", "-t", tmp_path / "t.json", "-o", out, says=("a.txt", "hint: "))
    assert (tmp_path / "a.txt").read_text() == "text"


def test_the_systems_reason_ends_an_error(tok: Tokenizer, tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(OSError, match=r"cannot create .*/x+: File name too long$") as raised:
        prepare(tmp_path / "a.txt", tok, tmp_path / ("x" * 300))
    assert raised.value.errno == errno.ENAMETOOLONG


def test_text_that_is_given_as_a_tokenizer(tmp_path: Path, cli: Cli):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.txt would be merges by its name, but .*vocab\.json is not there; hint: "):
        Tokenizer.from_file(tmp_path / "a.txt")
    fails(cli, "tokenizer", "encode", tmp_path / "a.txt", "text", says=("a.txt", "hint: "))


def test_a_folder_without_text(tmp_path: Path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"expected \*\.txt, \*\.jsonl, \*\.ndjson or \*\.parquet files in .*hint: "):
        Tokenizer.train(tmp_path, 300)


# ── the vocabulary ──


@pytest.mark.parametrize("vocab_size", [0, 100, 255, 256])
def test_a_vocabulary_smaller_than_the_bytes(tmp_path: Path, cli: Cli, vocab_size: int):
    with pytest.raises(
        ValueError, match=rf"vocab_size must be at least 257 .*got {vocab_size}; hint: use vocab_size=257"
    ):
        Tokenizer.train(tmp_path / "never looked at", vocab_size)
    (tmp_path / "a.txt").write_text("text")
    arguments = ("tokenizer", "train", tmp_path / "a.txt", "-n", vocab_size, "-o", tmp_path / "t.json")
    fails(cli, *arguments, says=("vocab_size must be at least 257", f"got {vocab_size}", "hint: "))
    assert Tokenizer.train_from_iterator(["ab"], 256, special_tokens=[]).vocab_size == 256


def test_duplicate_and_empty_special_tokens(tmp_path: Path, cli: Cli):
    with pytest.raises(ValueError, match=r"special token .*<\|a\|>"):
        Tokenizer.train(tmp_path / "never looked at", 300, special_tokens=["<|a|>", "<|b|>", "<|a|>"])
    with pytest.raises(ValueError, match="empty"):
        Tokenizer.train_from_iterator(["ab"], 300, special_tokens=[""])
    (tmp_path / "a.txt").write_text("text")
    arguments = ("tokenizer", "train", tmp_path / "a.txt", "-n", 300, "--special", "<|a|>", "--special", "<|a|>")
    fails(cli, *arguments, says=("<|a|>",))


@pytest.mark.parametrize("pattern", ["(", "[a-", "a{2000000000}", r"\p{Nope}", r"(a)\2"])
def test_a_pattern_that_does_not_compile(pattern: str):
    with pytest.raises(ValueError, match="pattern"):
        Tokenizer.train_from_iterator(["ab"], 300, pattern=pattern)


def test_a_pattern_that_gives_up_on_a_text():
    tok = Tokenizer.train_from_iterator(["ab"], 257, special_tokens=[], pattern=r"(x+)\1+(x+)\2+y")
    with pytest.raises(ValueError, match=r"pattern .*backtracking"):
        tok.encode("x" * 200)
    assert tok.decode(tok.encode("xxy ab")) == "xxy ab"


@pytest.mark.parametrize("name", ["vocab_size", "threads", "min_count"])
@pytest.mark.parametrize("value", [-1, 1 << 70])
def test_counts_out_of_range(name: str, value: int):
    arguments = {"vocab_size": 257, "special_tokens": [], name: value}
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        Tokenizer.train_from_iterator(["ab"], **arguments)


def test_special_tokens_given_as_one_string():
    with pytest.raises(ValueError, match=r"expected a list of special tokens, got '<\|a\|>'; hint: \['<\|a\|>'\]"):
        Tokenizer.train_from_iterator(["ab"], 300, special_tokens="<|a|>")


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=4),
    st.integers(-(2**31), 2**70), st.just("all"), st.just("\ud800"), st.just(np.zeros((2, 2))),
    st.just(np.arange(3) - 1),
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_argument_makes_rust_panic(gpt2_like: Tokenizer, dataset_core: object, data: st.DataObject):
    """Whatever the arguments, the result or an exception that `except Exception` expects: never a PanicException."""
    objects = [gpt2_like.core, gpt2_like.core.decoder(), dataset_core]
    target = data.draw(st.sampled_from(objects))
    names = [name for name in dir(target) if not name.startswith("_") and callable(getattr(target, name))]
    method = getattr(target, data.draw(st.sampled_from([name for name in names if name != "write"])))
    arguments = data.draw(st.lists(ANYTHING, max_size=3))
    with contextlib.suppress(TypeError, ValueError, OverflowError, LookupError, OSError, BufferError):
        method(*arguments)


@pytest.fixture(scope="module")
def dataset_core(tmp_path_factory: pytest.TempPathFactory, gpt2_like: Tokenizer) -> object:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.txt").write_text("some text " * 50)
    return prepare(folder / "a.txt", gpt2_like, folder / "tokens").core


# ── tokenizer files ──


def _tokenizer_json(tok: Tokenizer, change: Callable[[dict], object]) -> str:
    file = json.loads(tok.to_json())
    change(file)
    return json.dumps(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f["model"].update(type="Unigram"), "Unigram"),
        (lambda f: f.update(normalizer={"type": "Lowercase"}), "normalizer"),
        (lambda f: f.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (lambda f: f["model"]["merges"].append(["zz", "z"]), "merge"),
        (lambda f: f["model"]["vocab"].pop("a"), ""),
        (lambda f: f["model"]["vocab"].update(b=0), ""),
        (lambda f: f["model"]["vocab"].update(new=10**6), ""),
        (lambda f: f["model"].update(dropout=0.1), "dropout"),
        (lambda f: f["added_tokens"].append(dict(f["added_tokens"][0])), ""),
        (lambda f: f.pop("model"), "model"),
    ],
)
def test_a_tokenizer_json_that_would_give_other_ids(tok: Tokenizer, tmp_path: Path, change, says: str):
    path = tmp_path / "tokenizer.json"
    path.write_text(_tokenizer_json(tok, change))
    with pytest.raises(ValueError, match=rf"(?i)tokenizer\.json.*{says}"):
        Tokenizer.from_file(path)


def test_a_tokenizer_json_cut_short_anywhere(tok: Tokenizer, tmp_path: Path):
    text = tok.to_json()
    path = tmp_path / "tokenizer.json"
    for n in range(0, len(text) - 1, len(text) // 40):
        path.write_text(text[:n])
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            Tokenizer.from_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("line", [b"!!! 0", b"YQ==", b"YQ== x", b"YQ== 0\nYg== 0", b"YQ== 4294967296", b"YQ== 0"])
def test_a_tiktoken_file_that_is_none(tmp_path: Path, line: bytes):
    path = tmp_path / "bad.tiktoken"
    path.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"bad\.tiktoken|vocabulary"):
        Tokenizer.from_file(path, pattern="gpt2")


# ── shards ──


def test_a_shard_cut_short_anywhere(dataset: Dataset, cli: Cli):
    path = dataset.path / dataset.manifest["shards"][0]["name"]
    whole = path.read_bytes()
    for n in (0, 7, 100, 4095, 4096, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=path.name):
            Dataset(dataset.path)
    fails(cli, "data", "verify", dataset.path, says=(path.name,))
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=path.name):
        Dataset(dataset.path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        Dataset(dataset.path)
    path.write_bytes(whole)
    Dataset(dataset.path).verify()


def test_one_flipped_bit_anywhere_is_found(dataset: Dataset, cli: Cli):
    path = dataset.path / dataset.manifest["shards"][1]["name"]
    whole = path.read_bytes()
    step = len(whole) // 50
    for at in [*range(0, 100, 7), *range(100, len(whole), step), len(whole) - 9, len(whole) // 2]:
        broken = bytearray(whole)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=path.name):
            Dataset(dataset.path).verify()
    fails(cli, "data", "verify", dataset.path, says=(path.name, "digest", "hint: "))


def test_a_damaged_block_shows_at_next_and_the_loader_stays_usable(dataset: Dataset):
    path = dataset.path / dataset.manifest["shards"][0]["name"]
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[4096 + 1000] ^= 4
    path.write_bytes(broken)
    with Loader(Dataset(dataset.path), seq_len=64, global_batch=4, shuffle=False, device="numpy") as loader:
        for _ in range(2):
            with pytest.raises(ValueError, match=f"{path.name} is damaged: block 0"):
                for _ in loader:
                    pass
    path.write_bytes(whole)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b.gts", "..", "", "a\x00b", "x" * 300])
def test_a_manifest_that_names_a_path(dataset: Dataset, name: str, cli: Cli):
    path = dataset.path / "manifest.json"
    whole = path.read_bytes()
    old = dataset.manifest["shards"][0]["name"]
    path.write_bytes(whole.replace(json.dumps(old).encode(), json.dumps(name).encode()))
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Dataset(dataset.path)
    fails(cli, "data", "inspect", dataset.path, says=("manifest.json",))


def test_a_manifest_changed_by_one_byte(dataset: Dataset):
    path = dataset.path / "manifest.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), max(len(whole) // 60, 1)):
        broken = bytearray(whole)
        broken[at] ^= 1
        path.write_bytes(broken)
        with pytest.raises((ValueError, FileNotFoundError)):
            Dataset(dataset.path)
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Dataset(dataset.path)


def test_shards_of_another_dataset(dataset: Dataset, corpus: Path, gpt2_like: Tokenizer, tmp_path: Path):
    other = prepare(sorted(corpus.glob("*.txt"))[:3], gpt2_like, tmp_path / "other")
    name = dataset.manifest["shards"][0]["name"]
    shutil.copy(other.path / other.manifest["shards"][0]["name"], dataset.path / name)
    with pytest.raises(ValueError, match=name):
        Dataset(dataset.path)


def test_a_folder_that_holds_something_else_is_left_alone(
    dataset: Dataset, tok: Tokenizer, corpus: Path, tmp_path: Path, cli: Cli
):
    before = dataset_bytes(dataset.path)
    file = sorted(corpus.glob("*.txt"))[0]
    for files, tokenizer, options in ((file, tok, {}), (corpus, tok, {}), (corpus, tok, {"append_eot": False})):
        with pytest.raises(ValueError, match=r"tokens.*hint: "):
            prepare(files, tokenizer, dataset.path, **options)
    tok.save(tmp_path / "t.json")
    arguments = ("prepare", file, "-t", tmp_path / "t.json", "-o", dataset.path)
    fails(cli, *arguments, says=(str(dataset.path), "hint: "))
    assert dataset_bytes(dataset.path) == before


def test_a_tokenizer_that_is_not_the_datasets(dataset: Dataset, tok: Tokenizer, tmp_path: Path, cli: Cli):
    tok.save(tmp_path / "t.json")
    fails(cli, "data", "show", dataset.path, "-t", tmp_path / "t.json", says=("digest", tok.digest))


def test_training_on_datasets_of_another_tokenizer(dataset: Dataset, tok: Tokenizer, tmp_path: Path):
    pytest.importorskip("torch")
    from gptrs.train.corpus import from_datasets

    tok.save(tmp_path / "t.json")
    with pytest.raises(
        ValueError, match=rf"{dataset.tokenizer_digest[:16]}.*{tok.digest[:16]}.*t\.json; hint: "
    ) as end:
        from_datasets(dataset, str(dataset.path), str(tmp_path / "t.json"), tmp_path)
    assert str(dataset.path) in str(end.value)


def test_a_shard_may_be_a_link_and_a_pipe_is_not_waited_for(dataset: Dataset, tmp_path: Path, cli: Cli):
    path = dataset.path / dataset.manifest["shards"][0]["name"]
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    Dataset(dataset.path).verify()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"regular file, got .*{path.name}; hint: "):
        Dataset(dataset.path)
    fails(cli, "data", "verify", dataset.path, says=(path.name, "hint: "))


def test_a_second_writer_of_a_folder_is_refused_at_once(
    dataset: Dataset, corpus: Path, gpt2_like: Tokenizer, tmp_path: Path, cli: Cli
):
    gpt2_like.save(tmp_path / "t.json")
    with (dataset.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"being written by another process; hint: ") as end:
            prepare(corpus, gpt2_like, dataset.path, shard_tokens=200_000)
        assert str(dataset.path) in str(end.value)
        arguments = ("prepare", corpus, "-t", tmp_path / "t.json", "-o", dataset.path)
        fails(cli, *arguments, says=(str(dataset.path), "another process", "hint: "))
    prepare(corpus, gpt2_like, dataset.path, shard_tokens=200_000)


# ── the command line ──


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"loss_fields": "answer"},
            TypeError,
            r"loss_fields must be a list of names, got 'answer'; hint: \['answer'\]",
        ),
        ({"loss_fields": [5]}, TypeError, "loss_fields must be text, got 5"),
        ({"loss_fields": None}, TypeError, "loss_fields must be a list of names, got None; hint: leave it out"),
        ({"text_field": None}, TypeError, "text_field must be text, got None"),
        ({"text_field": "\udcff"}, ValueError, "text_field must be Unicode text, got '.udcff'"),
        ({"source": "\ud800"}, ValueError, "source must be Unicode text"),
        ({"doc_separator": b"\n"}, TypeError, "doc_separator must be text, got b"),
        ({"shard_tokens": 1.5}, TypeError, "shard_tokens must be a whole number, got 1.5"),
        ({"shard_tokens": True}, TypeError, "shard_tokens must be a whole number, got True"),
        ({"threads": None}, TypeError, "threads must be a whole number, got None"),
        ({"dedup": "no"}, TypeError, "dedup must be True or False, got 'no'"),
        ({"min_document_bytes": 0}, ValueError, "min_document_bytes must be 1 to 9223372036854775807, got 0"),
        ({"max_document_bytes": -1}, ValueError, "max_document_bytes must be 1 to 9223372036854775807, got -1"),
        ({"weight": "3"}, TypeError, "weight must be a number, got '3'"),
    ],
)
def test_an_option_of_prepare_that_does_not_fit_is_named(
    tok: Tokenizer, tmp_path: Path, options: dict, error: type[Exception], message: str
):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    for work in (
        lambda: prepare(tmp_path / "a.jsonl", tok, tmp_path / "out", **options),
        lambda: prepare_documents(["good"], tok, tmp_path / "out", **options),
        lambda: prepare_task(tmp_path / "a.jsonl", tok, tmp_path / "out", 0, 1, **options),
    ):
        with pytest.raises(error, match=message):
            work()
    assert not (tmp_path / "out").exists()


def test_an_option_that_does_not_fit_is_named_before_a_tokenizer_is_trained(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    save = tmp_path / "t.json"
    for options in ({"shard_tokens": 0}, {"loss_fields": "text"}, {"documents": {"min_document_bytes": 0}}):
        with pytest.raises((ValueError, TypeError), match=" must be "):
            train_and_prepare(tmp_path / "a.jsonl", 260, tmp_path / "out", save=save, **options)
    assert not save.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--text-field", "--source", "--doc-separator", "--loss-field"])
def test_an_option_that_is_not_utf8(tok: Tokenizer, tmp_path: Path, cli: Cli, option: str):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    tok.save(tmp_path / "t.json")
    arguments = ("prepare", tmp_path / "a.jsonl", "-t", tmp_path / "t.json", "-o", tmp_path / "out")
    name = {"--loss-field": "loss_fields"}.get(option, option[2:].replace("-", "_"))
    fails(cli, *arguments, option, "\udcff", says=(name, "must be Unicode text"))
    if option == "--doc-separator":
        fails(cli, *arguments, option, r"\ud800", says=(name, "must be Unicode text"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("tokenizer", "train"),
        ("tokenizer", "train", "a.txt"),
        ("tokenizer", "train", "a.txt", "-n", "many"),
        ("prepare", "a.txt"),
        ("data", "show", "x", "--seq-len", "0"),
        ("tokenizer", "encode", "a", "b", "--no-such-option"),
    ],
)
def test_a_wrong_command_line_ends_with_2(cli: Cli, arguments: tuple[str, ...]):
    end = cli(*arguments)
    assert end.returncode == 2 and "Traceback" not in end.stderr and end.stderr


def test_ids_that_are_none(tok: Tokenizer, tmp_path: Path, cli: Cli):
    tok.save(tmp_path / "t.json")
    fails(cli, "tokenizer", "decode", tmp_path / "t.json", 99999, says=("id 99999", "position 0"))
    end = cli("tokenizer", "decode", tmp_path / "t.json", input="65 sixty")
    assert (
        end.returncode == 1 and end.stderr == "error: expected ids separated by spaces on standard input, got 'sixty'\n"
    )
