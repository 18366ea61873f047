"""Shards from Python: what prepare writes, what Dataset reads, and that the bytes depend on the text alone."""

import doctest
import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import gptrs
import gptrs.loader
from conftest import dataset_bytes
from gptrs import Dataset, Loader, Tokenizer, prepare


@pytest.fixture(scope="module")
def dataset(corpus: Path, gpt2_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The corpus in several small shards."""
    return prepare(corpus, gpt2_like, tmp_path_factory.mktemp("data") / "tokens", shard_tokens=100_000)


def documents(corpus: Path) -> list[str]:
    """The corpus' documents in the order of its files' names."""
    texts = []
    for path in sorted(corpus.iterdir()):
        if path.suffix == ".txt":
            texts.append(path.read_bytes().decode())
        else:
            texts += [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
    return texts


def test_a_small_dataset_by_hand(tmp_path: Path):
    tok = Tokenizer.train_from_iterator(["abab"], 258)
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\n{"text": "b<|endoftext|>"}\n')
    (tmp_path / "b.txt").write_text("aab")
    data = prepare([tmp_path / "a.jsonl", tmp_path / "b.txt"], tok, tmp_path / "out")
    end = tok.eot_id
    assert data.read(0, len(data)).tolist() == [256, end, 98, *b"<|endoftext|>", end, 97, 256, end]
    assert data.doc_ids(0, 4).tolist() == [0, 0, 1, 1] and data.n_documents == 3
    assert tok.decode(data[2:-3]) == "b<|endoftext|><|endoftext|>"
    assert data.tokenizer_digest == tok.digest and data.vocab_size == 258 and data.dtype == np.uint16


def test_compressed_files_are_read_everywhere(corpus: Path, gpt2_like: Tokenizer, dataset: Dataset, tmp_path: Path):
    import zstandard

    for i, path in enumerate(sorted(corpus.iterdir())):
        packed = gzip.compress(path.read_bytes()) if i % 2 else zstandard.compress(path.read_bytes())
        (tmp_path / f"{path.name}.{'gz' if i % 2 else 'zst'}").write_bytes(packed)
    packed_dataset = prepare(tmp_path, gpt2_like, tmp_path / "out", shard_tokens=100_000)
    assert packed_dataset.fingerprint == dataset.fingerprint
    assert gpt2_like.encode_files(tmp_path).ids.tolist() == gpt2_like.encode_files(corpus).ids.tolist()
    options = {"vocab_size": 400, "progress": False}
    assert Tokenizer.train(tmp_path, **options) == Tokenizer.train(corpus, **options)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"some text")[:-3])
    with pytest.raises(ValueError, match=r"cut\.txt\.gz is not a valid gzip file: it ends too early"):
        gpt2_like.encode_files(tmp_path / "cut.txt.gz")
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(b"some text") + b"more")
    with pytest.raises(ValueError, match="it ends too early, or other bytes follow its end; hint: "):
        gpt2_like.encode_files(tmp_path / "more.txt.gz")


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_byte_order_mark_is_text_in_a_text_file_and_none_before_json(
    gpt2_like: Tokenizer, tmp_path: Path, packed: str
):
    zstandard = pytest.importorskip("zstandard")
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    for name, line in (("a.txt", "{}"), ("b.jsonl", '{{"text": "{}"}}'), ("c.ndjson", '{{"text": "{}"}}')):
        (tmp_path / f"{name}{packed}").write_bytes(pack(f"\ufeff{line.format('to be')}".encode()))
    for options in ({}, {"dedup": True}, {"errors": "replace"}, {"doc_separator": "#"}):
        data = prepare(tmp_path, gpt2_like, tmp_path / "out" / str(options), append_eot=False, **options)
        texts = ["\ufeffto be", "to be", "to be"][: 2 if "dedup" in options else 3]
        assert gpt2_like.decode(data[:]) == "".join(texts) and data.n_documents == len(texts)


def test_a_template_joins_the_fields_of_a_line(gpt2_like: Tokenizer, tmp_path: Path):
    lines = [{"title": "On hats", "stars": 3, "text": "Wear one.\n"}, {"text": "", "title": "None {}"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = prepare(tmp_path / "a.jsonl", gpt2_like, tmp_path / "out", text_field="{{{title}}}: {text}")
    end = "<|endoftext|>"
    assert gpt2_like.decode(data[:]) == "{On hats}: Wear one.\n" + end + "{None {}}: " + end
    assert data.manifest["text_field"] == "{{{title}}}: {text}"
    for field, message in (("{title", "got { at byte 0"), ("{title}{stars}", "expected a string"), ("{url}", '"url"')):
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path / "a.jsonl", gpt2_like, tmp_path / "other", text_field=field)


def test_the_docstrings_examples_run():
    results = doctest.testmod(gptrs.loader, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0 and results.attempted >= 6


def test_the_shards_hold_the_documents_in_order(dataset: Dataset, corpus: Path, gpt2_like: Tokenizer):
    expected = []
    for text in documents(corpus):
        expected += [*gpt2_like.encode_ordinary(text), gpt2_like.eot_id]
    assert len(dataset.manifest["shards"]) > 2
    assert dataset[:].tolist() == expected
    assert dataset.n_documents == len(documents(corpus))
    lengths = np.bincount(dataset.doc_ids(0, len(dataset)))
    assert lengths.tolist() == [gpt2_like.count(text) + 1 for text in documents(corpus)]


def test_a_shard_is_one_line_of_numpy(dataset: Dataset):
    parts = []
    for shard in dataset.manifest["shards"]:
        path = dataset.path / shard["name"]
        parts.append(np.memmap(path, "<u2", "r", offset=4096, shape=shard["n_tokens"]))
    assert np.array_equal(np.concatenate(parts), dataset[:])


def test_reading_crosses_shards_and_stops_at_the_end(dataset: Dataset):
    everything = dataset[:]
    border = dataset.manifest["shards"][0]["n_tokens"]
    assert dataset.read(border - 3, 6).tolist() == everything[border - 3 : border + 3].tolist()
    assert dataset.read(len(dataset), 0).tolist() == []
    assert dataset[-4:].tolist() == everything[-4:].tolist() and dataset[5:2].tolist() == []
    for start, n in ((len(dataset) - 2, 3), (len(dataset) + 1, 0), (2**63, 2**63), (-1, 1), (5, -1)):
        for read in (dataset.read, dataset.doc_ids):
            with pytest.raises(ValueError, match="are not in the dataset of"):
                read(start, n)
    with pytest.raises(ValueError, match="step 1"):
        dataset[::2]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_bytes_do_not_depend_on_the_threads(
    dataset: Dataset, corpus: Path, gpt2_like: Tokenizer, tmp_path: Path, threads: int
):
    again = prepare(corpus, gpt2_like, tmp_path / "tokens", shard_tokens=100_000, threads=threads)
    assert dataset_bytes(again.path) == dataset_bytes(dataset.path)


def test_one_large_file_is_cut_for_the_threads_without_a_trace(
    cl100k_like: Tokenizer, gpt2_like: Tokenizer, stdlib_files: list[Path], tmp_path: Path
):
    text = "".join(path.read_bytes().decode() for path in stdlib_files) * 4 + "x" * 3_000_000 + " 日本語" * 100_000
    (tmp_path / "large.txt").write_bytes(text.encode())
    for tok, name in ((gpt2_like, "a"), (cl100k_like, "b")):
        data = prepare(tmp_path / "large.txt", tok, tmp_path / name, threads=3)
        assert np.array_equal(data[:-1], tok.encode_batch([text]).ids)


def test_the_same_call_again_returns_the_same_dataset(
    dataset: Dataset, corpus: Path, gpt2_like: Tokenizer, tmp_path: Path
):
    first = prepare(corpus, gpt2_like, tmp_path / "tokens")
    stamps = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    second = prepare(corpus, gpt2_like, tmp_path / "tokens")
    assert second.fingerprint == first.fingerprint != dataset.fingerprint
    assert {path: path.stat().st_mtime_ns for path in second.path.iterdir()} == stamps


def test_without_eot_documents_stand_end_to_end(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\n{"text": "ab"}\n')
    for tok, options in (
        (Tokenizer.train_from_iterator(["abab"], 258), {"append_eot": False}),
        (Tokenizer.train_from_iterator(["abab"], 257, special_tokens=[]), {}),
    ):
        out = tmp_path / str(len(options))
        assert prepare(tmp_path / "a.jsonl", tok, out, **options)[:].tolist() == [256, 256]


def test_special_text_in_the_corpus_is_counted(tmp_path: Path):
    tok = Tokenizer.train_from_iterator(["abab"], 258)
    (tmp_path / "a.txt").write_text("ab<|endoftext|>ab<|endoftext|>")
    data = prepare(tmp_path / "a.txt", tok, tmp_path / "out")
    assert data[:].tolist().count(tok.eot_id) == 1
    assert '"<|endoftext|>"' in (data.path / "manifest.json").read_text()
    assert 2 in _numbers(data.manifest)


def _numbers(value: object) -> list[int]:
    if isinstance(value, dict | list):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in _numbers(item)]
    return [value] if isinstance(value, int) else []


def test_a_large_vocabulary_is_written_as_uint32(wide: Tokenizer, tmp_path: Path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 1000)
    data = prepare(tmp_path / "a.txt", wide, tmp_path / "out")
    assert data[:].tolist() == [*wide.encode("abcdefgh" * 1000), 65_999] and data.dtype == np.uint32
    with Loader(data, seq_len=8, global_batch=2, device="numpy", shuffle=False) as loader:
        assert next(loader).targets.ravel().tolist() == data[1:17].tolist()


def test_a_dataset_is_verified_and_pickled_by_its_path(dataset: Dataset):
    dataset.verify()
    dataset.verify(threads=1, progress=False)
    twin = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert twin.fingerprint == dataset.fingerprint and len(twin) == len(dataset)
    assert Dataset(str(dataset.path)).fingerprint == dataset.fingerprint
    assert f"n_tokens={len(dataset)}" in repr(dataset)


def test_rows_are_counted_with_their_shared_token(dataset: Dataset):
    assert dataset.n_rows(16) == (len(dataset) - 1) // 16
    with pytest.raises(ValueError, match=r"seq_len must be 1 to .*, got 0"):
        dataset.n_rows(0)


def test_progress_is_reported_by_stage(corpus: Path, gpt2_like: Tokenizer, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    options = {"text_field": "text", "shard_tokens": 10_000, "append_eot": True, "threads": 1}
    gptrs._core.prepare([str(corpus)], gpt2_like.core, str(tmp_path / "out"), options, lambda *args: seen.append(args))
    assert all(isinstance(stage, str) and done >= 0 and total >= 0 for stage, done, total in seen)


def test_a_dataset_of_a_relative_path_stays_where_it_was_opened(
    gpt2_like: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("hello, wörld " * 50)
    made = prepare("a.txt", gpt2_like, "tokens", shard_tokens=20, progress=False)
    opened = Dataset("tokens")
    with pytest.raises(FileNotFoundError, match=r"cannot open other/manifest\.json"):
        Dataset("other")
    with pytest.raises(NotADirectoryError, match=r"expected the folder of a dataset, got the file a\.txt; hint: "):
        Dataset("a.txt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = Dataset(tmp_path / "tokens")
    for dataset in (made, opened, pickle.loads(pickle.dumps(opened))):  # noqa: S301 (our own bytes)
        assert dataset.manifest == expected.manifest and dataset.path == tmp_path / "tokens"
        assert dataset[:].tolist() == expected[:].tolist() and dataset.verify(progress=False)
