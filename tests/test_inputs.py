"""What `prepare` takes: Parquet files, documents from Python, and which documents of each become tokens."""

import gzip
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptrs
from conftest import Cli
from gptrs import Dataset, Tokenizer, merge_tasks, prepare, prepare_documents, prepare_task, train_and_prepare, trainer
from gptrs.holdout import files_of

TEXTS = ["One hat.\n", "", "Zwei Hüte 帽子", "One hat.\n", "three " * 3000, "\u2028"]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train_from_iterator(TEXTS * 3, 280)


def texts_of(dataset: Dataset, tok: Tokenizer) -> list[str]:
    """The documents of a dataset, decoded."""
    assert tok.eot_id is not None
    texts, tokens = [], dataset[:].tolist()
    while tokens:
        end = tokens.index(tok.eot_id)
        texts.append(tok.decode_bytes(tokens[:end]).decode())
        tokens = tokens[end + 1 :]
    return texts


def written(folder: Path, texts: list[Any], **options: Any) -> Path:
    path = folder / "a.parquet"
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, **options)
    return path


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_rows_of_parquet_files_are_documents(tok: Tokenizer, tmp_path: Path, codec: str, version: str):
    for i, options in enumerate(
        (
            {},
            {"use_dictionary": False, "row_group_size": 4},
            {"use_dictionary": False, "column_encoding": {"id": "PLAIN", "text": "DELTA_BYTE_ARRAY"}},
            {"use_dictionary": False, "column_encoding": {"id": "PLAIN", "text": "DELTA_LENGTH_BYTE_ARRAY"}},
            {"data_page_size": 10, "write_batch_size": 1, "row_group_size": 3},
        )
    ):
        path = written(tmp_path, TEXTS, compression=codec, data_page_version=version, **options)
        data = prepare(path, tok, tmp_path / str(i), shard_tokens=2000)
        assert texts_of(data, tok) == TEXTS
        assert tok.encode_files(path).ids.tolist() == data[:].tolist()


def test_a_column_may_be_large_required_binary_or_read_from_a_dictionary(tok: Tokenizer, tmp_path: Path):
    required = pa.schema([pa.field("text", pa.string(), nullable=False)])
    for i, table in enumerate(
        (
            pa.table({"text": pa.array(TEXTS, pa.large_string())}),
            pa.table({"text": pa.array([text.encode() for text in TEXTS], pa.binary())}),
            pa.table({"text": pa.array(TEXTS).dictionary_encode()}),
            pa.table({"text": TEXTS}, schema=required),
            pa.table({"text": pa.array(TEXTS, pa.string_view())}),
        )
    ):
        pq.write_table(table, tmp_path / f"{i}.parquet")
        assert texts_of(prepare(tmp_path / f"{i}.parquet", tok, tmp_path / str(i)), tok) == TEXTS


def test_folders_training_and_templates_take_parquet_files(tok: Tokenizer, tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    table = pa.table({"title": ["a", "b"], "text": ["x", "y"], "tags": [["p"], ["q", "r"]]})
    pq.write_table(table, tmp_path / "in" / "deep" / "b.parquet")
    (tmp_path / "in" / "c.jsonl").write_text('{"title": "c", "text": "z"}\n')
    data = prepare(tmp_path / "in", tok, tmp_path / "out", text_field="{title}: {text}")
    assert texts_of(data, tok) == ["c: z", "a: x", "b: y"]
    assert Tokenizer.train(tmp_path / "in", 300, progress=False).vocab_size <= 300
    for field, message in (("url", "found title, text, tags.list.element"), ("tags", 'expected a column "tags"')):
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path / "in" / "deep", tok, tmp_path / "other", text_field=field)


def test_what_is_wrong_in_a_parquet_file_is_said(tok: Tokenizer, tmp_path: Path):
    for texts, message in (
        (["a", None], r"a\.parquet is not a valid Parquet file: row 1: expected a string .* got null"),
        ([b"a", b"b", b"caf\xe9"], r"row 2: expected UTF-8, got an invalid byte at byte 3"),
        ([1, 2], 'expected strings in column "text", got INT64'),
        ([["a"], ["b"]], r'expected a column "text", found id, text.list.element; hint: nested columns are not read'),
        ([{"text": "a"}], r'expected a column "text", found id, text.text; hint: nested columns are not read'),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(written(tmp_path, texts), tok, tmp_path / "out")
    path = written(tmp_path, TEXTS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.parquet is not a valid Parquet file"):
        prepare(path, tok, tmp_path / "out")
    path.rename(tmp_path / "a.parquet.gz")
    with pytest.raises(ValueError, match="expected text, JSON lines or Parquet"):
        prepare(tmp_path / "a.parquet.gz", tok, tmp_path / "out")


_PREPARE = """
import sys
from pathlib import Path
import gptrs
tok = gptrs.Tokenizer.train_from_iterator(["abab"], 258)
try:
    gptrs.prepare(sys.argv[1], tok, sys.argv[1] + ".out", progress=False, threads=2)
except ValueError as error:
    print(error)
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak) >> 10)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("codec", ["gzip", "zstd", "brotli", "snappy", "lz4"])
def test_a_page_that_is_far_larger_inside_is_refused_before_it_fills_the_memory(tmp_path: Path, codec: str):
    path = written(tmp_path, ["\0" * 280_000_000], compression=codec, use_dictionary=False, write_statistics=False)
    done = subprocess.run([sys.executable, "-c", _PREPARE, path], capture_output=True, text=True, check=True)
    error, rss_mib = done.stdout.splitlines()
    assert "expected pages of at most 268435456 bytes, got a larger one; hint" in error
    assert int(rss_mib) < 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize(("kind", "mib"), [("jsonl", 300), pytest.param("txt", 1200, marks=pytest.mark.long)])
def test_a_file_that_is_far_larger_inside_is_refused_in_little_memory(tmp_path: Path, kind: str, mib: int, codec: str):
    path = tmp_path / f"a.{kind}.{'gz' if codec == 'gzip' else 'zst'}"
    with pa.CompressedOutputStream(str(path), codec) as file:
        for _ in range(mib):
            file.write(bytes(1 << 20))
    done = subprocess.run([sys.executable, "-c", _PREPARE, path], capture_output=True, text=True, check=True)
    error, rss_mib = done.stdout.splitlines()
    assert path.name in error
    assert int(rss_mib) < 1024


def test_a_separator_cuts_text_files_alone(tok: Tokenizer, tmp_path: Path, cli: Cli):
    (tmp_path / "a.txt").write_text("one\n\n\ntwo\n\n\n\n\n\nthree\n\n\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "four\n\n\nfive"}))
    files = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    data = prepare(files, tok, tmp_path / "out", doc_separator="\n\n\n")
    assert texts_of(data, tok) == ["one", "two", "three", "four\n\n\nfive"]
    assert data.manifest["doc_separator"] == "\n\n\n"
    tok.save(tmp_path / "t.json")
    done = cli("prepare", *files, "-t", tmp_path / "t.json", "-o", tmp_path / "again", "--doc-separator", r"\n\n\n")
    assert done.returncode == 0, done.stderr
    assert Dataset(tmp_path / "again").fingerprint == data.fingerprint
    for bad in (r"\x", r"\d+", "\\"):
        done = cli("prepare", *files, "-t", tmp_path / "t.json", "-o", tmp_path / "bad", "--doc-separator", bad)
        assert done.returncode == 1 and "--doc-separator has an escape" in done.stderr
    assert not (tmp_path / "bad").exists()


def test_documents_are_left_out_by_their_bytes_and_counted(tok: Tokenizer, tmp_path: Path, cli: Cli):
    path = written(tmp_path, [*TEXTS, "äöü", "short"])
    data = prepare(path, tok, tmp_path / "out", min_document_bytes=6, max_document_bytes=1000, dedup=True)
    assert texts_of(data, tok) == ["One hat.\n", "Zwei Hüte 帽子", "äöü"]
    assert data.manifest["left_out"] == {"short": 3, "long": 1, "duplicate": 1}
    tok.save(tmp_path / "t.json")
    options = ["--min-document-bytes", 6, "--max-document-bytes", 1000, "--dedup", "--source", "web", "--weight", 0.5]
    done = cli("prepare", path, "-t", tmp_path / "t.json", "-o", tmp_path / "again", *options)
    assert done.returncode == 0, done.stderr
    again = Dataset(tmp_path / "again")
    assert again.fingerprint == data.fingerprint
    counts = "3 short, 1 long, 1 duplicate documents"
    assert done.stdout.splitlines()[1:] == [f"left out: {counts}"]
    assert f"left out    {counts}\n" in cli("data", "inspect", tmp_path / "again").stdout
    assert (again.manifest["source"], again.manifest["weight"]) == ("web", 0.5)
    assert "source" not in data.manifest
    options = {"min_document_bytes": 6, "max_document_bytes": 1000, "dedup": True}
    _, trained = gptrs.train_and_prepare(path, 300, tmp_path / "trained", documents=options, progress=False)
    assert trained.n_documents == 3
    with pytest.raises(ValueError, match="weight must be a number above 0"):
        prepare(path, tok, tmp_path / "out", weight=0.0)


@settings(deadline=None)  # the first example pays for what is imported
@given(text=st.lists(st.sampled_from([b"a", b"\xc3\xa9", b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0", b"\x80"])))
def test_what_is_not_utf8_is_replaced_as_python_does(
    tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory, text: list[bytes]
):
    folder = tmp_path_factory.mktemp("replace")
    bad = b"x" + b"".join(text)
    (folder / "a.txt").write_bytes(bad)
    (folder / "b.txt.gz").write_bytes(gzip.compress(bad))
    (folder / "c.jsonl").write_bytes(b'{"text": "' + bad + b'"}\n')
    pq.write_table(pa.table({"text": pa.array([bad], pa.binary())}), folder / "d.parquet")
    data = prepare(folder, tok, folder / "out", errors="replace", threads=1)
    expected = bad.decode(errors="replace")
    assert texts_of(data, tok) == [expected] * 4
    assert data.manifest.get("replaced", 0) == 4 * expected.count("\ufffd")
    if expected != bad.decode(errors="ignore"):
        with pytest.raises(ValueError, match=r"a\.txt is not UTF-8: invalid byte at offset"):
            prepare(folder, tok, folder / "strict", threads=1)


def test_what_was_replaced_is_counted_where_it_is_seen(tok: Tokenizer, tmp_path: Path, cli: Cli):
    (tmp_path / "a.txt").write_bytes(b"one \xff two \xff\xfe three")
    tok.save(tmp_path / "t.json")
    command = ("prepare", tmp_path / "a.txt", "-t", tmp_path / "t.json", "-o", tmp_path / "out")
    done = cli(*command)
    assert done.returncode == 1 and "or prepare it with --errors replace" in done.stderr
    done = cli(*command, "--errors", "replace")
    assert done.stdout.splitlines()[1:] == ["replaced: 3 sequences that were not UTF-8, by U+FFFD"]
    shown = cli("data", "inspect", tmp_path / "out", "--json").stdout
    assert (json.loads(shown)["replaced"], json.loads(shown)["left out"]) == (3, {})


def test_documents_may_come_from_python(tok: Tokenizer, tmp_path: Path):
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    expected = prepare(tmp_path / "documents.jsonl", tok, tmp_path / "files")
    rows = [{"text": text, "n": len(text)} for text in TEXTS]
    for i, documents in enumerate((TEXTS, iter(TEXTS), rows, (row for row in rows))):
        data = prepare_documents(documents, tok, tmp_path / str(i))
        assert data.fingerprint == expected.fingerprint
        assert data.manifest["inputs"][0]["name"] == "documents.jsonl"
        assert [path.name for path in data.path.iterdir() if path.is_dir()] == []
        # The same again is the same dataset; other documents are refused.
        assert prepare_documents(TEXTS, tok, tmp_path / str(i)).fingerprint == data.fingerprint
        with pytest.raises(ValueError, match="other input files"):
            prepare_documents(TEXTS[1:], tok, tmp_path / str(i))
    data = prepare_documents(
        [{"a": "x", "b": "y"}, {"a": "x", "b": "y"}], tok, tmp_path / "t", text_field="{a}{{{b}", dedup=True
    )
    assert texts_of(data, tok) == ["x{y"]
    # What is in braces is a name as it stands, as it is for files.
    data = prepare_documents([{"a:b": "x", "c!r": "y"}], tok, tmp_path / "n", text_field="{a:b}}}{c!r}")
    assert texts_of(data, tok) == ["x}y"]
    for template in ("{", "}", "{}", "{text", "{text}}", "{te{xt}"):
        with pytest.raises(ValueError, match="expected field names in braces"):
            prepare_documents(["a"], tok, tmp_path / "bad", text_field=template)


def test_documents_that_are_none_are_refused_by_number(tok: Tokenizer, tmp_path: Path):
    for documents, error, message in (
        ("a.txt", TypeError, "expected documents, got str; hint: gptrs.prepare reads files"),
        ({"train": ["a"]}, TypeError, "got dict; hint: give one split"),
        (["a", 5], TypeError, "expected a mapping with text as document 2, got int"),
        ([{"text": "a"}, {"text": None}], TypeError, "expected a string as 'text' of document 2, got NoneType"),
        ([{"body": "a"}], ValueError, "expected a field 'text' in document 1, found body"),
        (["\ud800"], ValueError, "document 1, got a lone surrogate"),
        ([], ValueError, "the corpus is empty"),
    ):
        with pytest.raises(error, match=message):
            prepare_documents(documents, tok, tmp_path / "out")


def test_a_call_that_does_not_fit_is_refused_before_a_document_is_read(tok: Tokenizer, tmp_path: Path):
    def documents() -> Iterator[str]:
        pytest.fail("a document was read")
        yield ""

    text = tmp_path / "a.txt"
    text.write_text("a")
    for work in (
        partial(prepare_documents, documents()),
        partial(prepare, text),
        partial(prepare_task, text, task=0, of=1),
        partial(merge_tasks, text, of=1),
    ):
        for wrong in ("tokenizer.json", None):
            hint = r"hint: gptrs\.Tokenizer\.from_file\(path\)"
            with pytest.raises(TypeError, match=f"expected a Tokenizer, got {wrong!r}; {hint}"):
                work(tokenizer=wrong, out=tmp_path / "out")
        with pytest.raises(ValueError, match=r"out must be a folder, got an empty text; hint: for the current"):
            work(tokenizer=tok, out="")
        with pytest.raises(TypeError, match=r"expected options of .*dedup, errors.*, got 'dedupe'"):
            work(tokenizer=tok, out=tmp_path / "out", dedupe=True)
    with pytest.raises(TypeError, match=r"expected a Tokenizer, got 'tokenizer\.json'"):
        gptrs.import_tokens(text, "tokenizer.json")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


class Table:
    """What the tables of the package datasets can do."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns, self.column_names = columns, list(columns)

    def select_columns(self, names: list[str]) -> "Table":
        return Table({name: self.columns[name] for name in names})

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        n = len(next(iter(self.columns.values())))
        for start in range(0, n, batch_size):
            yield {name: values[start : start + batch_size] for name, values in self.columns.items()}


def test_a_table_gives_the_columns_that_are_needed(tok: Tokenizer, tmp_path: Path):
    texts = [f"text {i}" for i in range(2500)]
    table = Table({"text": texts, "image": [object()] * 2500})
    assert texts_of(prepare_documents(table, tok, tmp_path / "out"), tok) == texts
    with pytest.raises(ValueError, match="expected a column 'body', found text, image"):
        prepare_documents(table, tok, tmp_path / "other", text_field="body")


def test_a_dataset_of_hugging_face_is_documents(tok: Tokenizer, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))})
    for i, documents in enumerate((table, table.to_iterable_dataset())):
        assert texts_of(prepare_documents(documents, tok, tmp_path / str(i)), tok) == TEXTS
    with pytest.raises(TypeError, match="hint: give one split"):
        prepare_documents(datasets.DatasetDict(train=table), tok, tmp_path / "other")


def test_limits_that_leave_nothing_say_how_many_each_left_out(tok: Tokenizer, tmp_path: Path):
    texts = ["one", "a long one here", "one", ""]
    for options, counts in (
        (
            {"min_document_bytes": 4, "max_document_bytes": 5},
            "min_document_bytes=4 left out 3, max_document_bytes=5 left out 1",
        ),
        ({"min_document_bytes": 100, "dedup": True}, "min_document_bytes=100 left out 4"),
    ):
        with pytest.raises(ValueError, match=f"^no text is left: of 4 documents {counts}; hint: "):
            prepare_documents(texts, tok, tmp_path / "out", **options)
        file = tmp_path / "a.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for task in range(2):
            gptrs.prepare_task(file, tok, tmp_path / "tasks", task, 2, **options)
        with pytest.raises(ValueError, match=f"^no text is left: of 4 documents {counts}; hint: "):
            gptrs.merge_tasks(file, tok, tmp_path / "tasks", 2, **options)
        shutil.rmtree(tmp_path / "tasks")


def test_a_link_to_nothing_in_a_folder_is_refused_by_name(tok: Tokenizer, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("some text")
    (tmp_path / "data/b.txt").symlink_to(tmp_path / "gone.txt")
    for read in (
        lambda: prepare(tmp_path / "data", tok, tmp_path / "out"),
        lambda: tok.encode_files(tmp_path / "data"),
        lambda: Tokenizer.train(tmp_path / "data", 260),
        lambda: files_of((str(tmp_path / "data"),)),
    ):
        with pytest.raises(FileNotFoundError, match=r"b.txt: it is a link to .*gone.txt, which is not there; hint: "):
            read()
    (tmp_path / "gone.txt").write_text("there again")
    assert prepare(tmp_path / "data", tok, tmp_path / "out").n_documents == 2


def test_an_empty_path_is_no_folder(tok: Tokenizer, tmp_path: Path, cli: Cli):
    (tmp_path / "a.txt").write_text("text")
    for work in (
        lambda: prepare(["", tmp_path / "a.txt"], tok, tmp_path / "out"),
        lambda: files_of((str(tmp_path / "a.txt"), "")),
    ):
        with pytest.raises(ValueError, match=r"expected a path, got an empty text; hint: "):
            work()
    done = cli("train", "demo", f"data.text={tmp_path / 'a.txt'},", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 1 and "expected a path, got an empty text" in done.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


def test_a_file_that_comes_twice_is_told_by_name(tok: Tokenizer, tmp_path: Path, cli: Cli):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.jsonl", "deep/c.txt"):
        (tmp_path / "in" / name).write_text(json.dumps({"text": name}) + "\n")
    folder, deep = tmp_path / "in", tmp_path / "in" / "deep" / "c.txt"
    for i, (files, n_files, name) in enumerate(
        (
            ([deep, deep], 1, "deep/c.txt"),
            ([deep, folder / "deep" / ".." / "deep" / "c.txt"], 1, "deep/c.txt"),
            ([folder / "*.txt", folder / "a*"], 1, "a.txt"),
            ([folder, folder / "*.jsonl"], 3, "b.jsonl"),
            ([deep, folder], 3, "deep/c.txt"),
            ([folder, folder / "deep"], 3, "deep/c.txt"),
        )
    ):
        message = (
            rf"expected each file once, got 1 of {n_files} more often \(the first: {folder / name}, 2 times\).*hint: "
        )
        with pytest.warns(UserWarning, match=message):
            assert prepare(files, tok, tmp_path / str(i)).n_documents == n_files + 1
        with pytest.warns(UserWarning, match=message):
            prepare_task(files, tok, tmp_path / "shared" / str(i), 0, 2)
        for work in (
            lambda: Tokenizer.train(files, 256, special_tokens=[]),  # noqa: B023 (called here)
            lambda: trainer.count(files, tmp_path / "words.gtc"),  # noqa: B023
            lambda: tok.encode_files(files),  # noqa: B023
        ):
            with pytest.warns(UserWarning, match=message) as warned:
                work()
            assert [one.filename for one in warned] == [__file__]
    with pytest.warns(UserWarning, match=rf"got 3 of 3 more often \(the first: {folder / 'a.txt'}, 2 times\)"):
        prepare([folder, folder], tok, tmp_path / "all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare([folder / "*.txt", folder / "deep", folder / "b.jsonl"], tok, tmp_path / "once")
    Tokenizer.train_from_iterator(["a"], 257).save(tmp_path / "t.json")
    done = cli("prepare", folder, deep, "-t", tmp_path / "t.json", "-o", tmp_path / "said")
    assert done.returncode == 0 and "warning: expected each file once, got 1 of 3 more often" in done.stderr


def test_a_text_field_is_text(tok: Tokenizer, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    for text_field in (5, True, None, b"text"):
        for work in (
            lambda f=text_field: prepare(tmp_path / "a.jsonl", tok, tmp_path / "out", text_field=f),
            lambda f=text_field: Tokenizer.train(tmp_path / "a.jsonl", 257, text_field=f),
            lambda f=text_field: tok.encode_files(tmp_path / "a.jsonl", text_field=f),
            lambda f=text_field: trainer.count(tmp_path / "a.jsonl", tmp_path / "c.gtc", text_field=f),
        ):
            with pytest.raises(TypeError, match=f"text_field must be text, got {text_field!r}"):
                work()


def test_a_text_field_of_text_files_alone_is_refused(tok: Tokenizer, tmp_path: Path, cli: Cli):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    message = r'expected JSON lines or Parquet among the files, which text_field "body" is of, got text alone; hint: '
    for files in (tmp_path / "in" / "a.txt", tmp_path / "in", [tmp_path / "in" / "*.txt"]):
        for work in (
            lambda files=files: prepare(files, tok, tmp_path / "out", text_field="body"),
            lambda files=files: prepare_task(files, tok, tmp_path / "out", 0, 2, text_field="body"),
            lambda files=files: train_and_prepare(files, 257, tmp_path / "out", text_field="body"),
            lambda files=files: Tokenizer.train(files, 257, text_field="body"),
            lambda files=files: tok.encode_files(files, text_field="body"),
            lambda files=files: trainer.count(files, tmp_path / "c.gtc", text_field="body"),
        ):
            with pytest.raises(ValueError, match=message):
                work()
    assert not (tmp_path / "out").exists() and not (tmp_path / "c.gtc").exists()
    done = cli("train", "demo", f"data.text={tmp_path / 'in'}", "data.text_field=body", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 1 and 'which text_field "body" is of' in done.stderr and not (tmp_path / "run").exists()
    with gzip.open(tmp_path / "in" / "b.ndjson.gz", "wt") as file:
        file.write('{"body": "line"}')
    assert sorted(texts_of(prepare(tmp_path / "in", tok, tmp_path / "out", text_field="body"), tok)) == ["line", "text"]
