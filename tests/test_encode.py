"""Every way to encode gives the plain ids: long texts, files, spans, offsets, dropout, rows of one length."""

import doctest
import json
import random
from pathlib import Path

import numpy as np
import pytest

import gptrs.encoded
import oracles
from conftest import dataset_bytes
from gptrs import Dataset, Encoded, Tokenizer, prepare

EOT = "<|endoftext|>"


@pytest.fixture(scope="module")
def long_text(stdlib_files: list[Path]) -> str:
    """2 MB of real text with characters of every length: enough to be cut and shared by threads."""
    draw = random.Random(5)
    parts = [path.read_text("utf-8") for path in stdlib_files]
    return "".join(part + draw.choice(["é", "日本語。", "👩🏽‍🚀 ", "\n\n"]) for part in parts)


# ── long texts ──


def test_one_long_text_gives_the_ids_of_the_textbook_on_any_number_of_threads(gpt2_like: Tokenizer, long_text: str):
    ids = gpt2_like.encode_ordinary(long_text)  # all cores
    for threads in (1, 2, 5):
        assert gpt2_like.encode_batch([long_text], threads=threads).to_list() == [ids]
    assert gpt2_like.count(long_text) == len(ids)
    assert gpt2_like.count_batch([long_text, "", "one"], threads=3).tolist() == [len(ids), 0, gpt2_like.count("one")]
    peer = oracles.tiktoken_of(gpt2_like)
    assert ids == peer.encode_ordinary(long_text)


def test_a_long_text_with_special_tokens_equals_tiktoken(gpt2_like: Tokenizer, long_text: str):
    cut = len(long_text) // 3
    text = long_text[:cut] + EOT + long_text[cut:] + EOT
    ids = gpt2_like.encode(text, allowed_special="all")
    assert ids == oracles.tiktoken_of(gpt2_like).encode(text, allowed_special="all")
    assert ids.count(gpt2_like.eot_id) == 2
    with pytest.raises(ValueError, match=r"special token .* at byte \d+; hint"):
        gpt2_like.encode(text)
    with pytest.raises(ValueError, match="special token"):
        gpt2_like.encode_batch(["one", text], disallowed_special="all")


# ── files ──


def test_files_give_the_ids_of_their_documents(gpt2_like: Tokenizer, corpus: Path):
    texts = [path.read_text("utf-8") for path in sorted(corpus.glob("*.txt"))]
    texts += [json.loads(line)["text"] for line in (corpus / "more.jsonl").read_text("utf-8").splitlines()]
    names = [*sorted(corpus.glob("*.txt")), corpus / "more.jsonl"]
    expected = [gpt2_like.encode_ordinary(text) for text in texts]
    for threads in (1, 3):
        files = gpt2_like.encode_files(names, append_eot=False, threads=threads)
        assert isinstance(files, Encoded) and files.to_list() == expected
    with_ends = gpt2_like.encode_files(names)
    assert with_ends.to_list() == [[*ids, gpt2_like.eot_id] for ids in expected]


def test_files_become_the_shards_of_prepare(gpt2_like: Tokenizer, corpus: Path, tmp_path: Path):
    dataset = gpt2_like.encode_files(corpus, tmp_path / "a")
    assert isinstance(dataset, Dataset)
    prepare(corpus, gpt2_like, tmp_path / "b")
    assert dataset_bytes(tmp_path / "a") == dataset_bytes(tmp_path / "b")
    assert dataset.read(0, dataset.n_tokens).tolist() == gpt2_like.encode_files(corpus).ids.tolist()


def test_one_large_file_is_cut_where_no_id_changes(gpt2_like: Tokenizer, long_text: str, tmp_path: Path):
    path = tmp_path / "long.txt"
    path.write_text(long_text * 2, "utf-8", newline="")
    got = gpt2_like.encode_files(path, append_eot=False, threads=3)
    assert got.ids.tolist() == gpt2_like.encode_ordinary(long_text * 2) and len(got) == 1


def test_one_large_file_under_a_pattern_of_the_user_keeps_its_ids(long_text: str, tmp_path: Path):
    tok = Tokenizer.train_from_iterator([long_text[:50_000]], 500, pattern=r"\w+(?=\s)|\s+|.")
    path = tmp_path / "long.txt"
    path.write_text(long_text * 3, "utf-8", newline="")  # more than four segments that cannot be cut
    expected = tok.encode_batch([long_text * 3], threads=1).ids
    for threads in (1, 3):
        assert (tok.encode_files(path, append_eot=False, threads=threads).ids == expected).all()
        assert (tok.encode_batch([long_text * 3], threads=threads).ids == expected).all()


@pytest.mark.parametrize("at", [0, 100, 1_500_000])
def test_a_file_that_is_not_utf8_is_refused_with_the_place(gpt2_like: Tokenizer, tmp_path: Path, at: int):
    data = bytearray(b"one two three\n" * 150_000)
    data[at] = 0xFF
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.txt is not UTF-8: invalid byte at offset {at};"):
        gpt2_like.encode_files(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        gpt2_like.encode_files(tmp_path / "absent.txt")


# ── offsets ──


def test_offsets_in_characters_equal_hugging_face(gpt2_like: Tokenizer, tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    gpt2_like.save(tmp_path / "tokenizer.json")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["a日本語b", "👩🏽‍🚀 naïve café\u0301", "", "one  two\n\n é", "ſ" * 5]
    for text in texts:
        theirs = peer.encode(text, add_special_tokens=False)
        ids, spans = gpt2_like.encode_with_offsets(text, unit="chars")
        assert (ids, spans) == (theirs.ids, theirs.offsets), text
    encoded, spans = gpt2_like.encode_batch_with_offsets(texts, unit="chars", threads=2)
    expected = [gpt2_like.encode_with_offsets(text, unit="chars") for text in texts]
    assert encoded.to_list() == [ids for ids, _ in expected]
    assert list(map(tuple, spans.tolist())) == [span for _, of_text in expected for span in of_text]
    assert spans.dtype == np.int64 and spans.shape == (len(encoded.ids), 2)


def test_offsets_of_a_long_text_join_to_it(gpt2_like: Tokenizer, long_text: str):
    ids, spans = gpt2_like.encode_with_offsets(long_text)
    data = long_text.encode()
    assert ids == gpt2_like.encode_ordinary(long_text)
    assert b"".join(data[a:b] for a, b in spans) == data
    with pytest.raises(ValueError, match='unit must be "bytes" or "chars", got "words"'):
        gpt2_like.encode_with_offsets("a", unit="words")


# ── dropout ──


def test_dropout_spells_text_anew_and_keeps_it(gpt2_like: Tokenizer):
    text = "the quick brown fox " * 50 + EOT
    plain = gpt2_like.encode_ordinary(text)
    some = [gpt2_like.encode(text, disallowed_special=(), dropout=0.2, seed=seed) for seed in range(4)]
    assert len({tuple(ids) for ids in some}) == 4 and plain not in some
    assert all(gpt2_like.decode(ids) == text for ids in some)
    assert some[2] == gpt2_like.encode(text, disallowed_special=(), dropout=0.2, seed=2)
    assert gpt2_like.encode(text, disallowed_special=(), dropout=1.0) == list(text.encode())
    assert gpt2_like.encode(text, disallowed_special=(), dropout=0.0, seed=9) == plain
    assert gpt2_like.encode(text, allowed_special="all", dropout=0.5)[-1] == gpt2_like.eot_id
    assert gpt2_like.encode_ordinary(text) == plain


def test_dropout_of_a_batch_does_not_depend_on_threads(gpt2_like: Tokenizer, long_text: str):
    texts = [long_text, long_text, "one"]
    batches = [gpt2_like.encode_batch(texts, dropout=0.1, seed=3, threads=threads) for threads in (1, 3)]
    assert (batches[0].ids == batches[1].ids).all() and (batches[0].offsets == batches[1].offsets).all()
    assert batches[0][0].tolist() != batches[0][1].tolist()
    assert batches[0][0].tolist() == gpt2_like.encode_batch([long_text], dropout=0.1, seed=3)[0].tolist()


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_dropout_is_a_probability(gpt2_like: Tokenizer, bad: float):
    with pytest.raises(ValueError, match="dropout must be a probability from 0 to 1, got"):
        gpt2_like.encode("a", dropout=bad)
    with pytest.raises(ValueError, match="dropout must be a probability"):
        gpt2_like.encode_batch(["a"], dropout=bad)


# ── spans ──


def test_special_tokens_are_recognised_in_trusted_spans_alone(gpt2_like: Tokenizer):
    tok, end = gpt2_like, gpt2_like.eot_id
    assert tok.encode_spans([(EOT, True), (EOT, False), (EOT, True)]) == [end, *tok.encode_ordinary(EOT), end]
    assert tok.encode_spans([("<|endof", True), ("text|>", True)]).count(end) == 0
    assert tok.encode_spans([(EOT, True)], allowed_special=()) == tok.encode_ordinary(EOT)
    assert tok.encode_spans([]) == []


def test_no_text_of_a_user_makes_a_special_id(gpt2_like: Tokenizer):
    draw = random.Random(11)
    parts = [EOT, "<|", "endoftext", "|>", "<|endof", "text|>", "hello", " "]
    for _ in range(2000):
        spans = [("".join(draw.choices(parts, k=3)), draw.random() < 0.5) for _ in range(draw.randint(1, 5))]
        ids = gpt2_like.encode_spans(spans)
        trusted = sum(text.count(EOT) for text, is_trusted in spans if is_trusted)
        assert ids.count(gpt2_like.eot_id) == trusted, spans
        assert gpt2_like.decode(ids) == "".join(text for text, _ in spans)


@pytest.mark.parametrize("bad", ["text", [("a", "yes")], ["ab"], [("a",)]])
def test_what_is_no_span_is_refused(gpt2_like: Tokenizer, bad: object):
    with pytest.raises((TypeError, ValueError)):
        gpt2_like.encode_spans(bad)


# ── rows of one length ──


def test_the_examples_of_the_module_run():
    assert doctest.testmod(gptrs.encoded) == (0, 7)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncate", ["left", "right"])
def test_rows_equal_those_made_one_by_one(gpt2_like: Tokenizer, side: str, truncate: str):
    draw = random.Random(2)
    for _ in range(50):
        batch = gpt2_like.encode_batch(["ab" * draw.randint(0, 9) for _ in range(draw.randint(0, 6))])
        length = draw.choice([None, 0, 1, 3, 8])
        padded = batch.pad(length, pad_id=7, side=side, truncate=truncate, dtype=np.int64)
        n_columns = max(map(len, batch), default=0) if length is None else length
        rows, masks = [], []
        for text in batch.to_list():
            kept = text[:n_columns] if truncate == "right" else text[max(len(text) - n_columns, 0) :]
            fill = [7] * (n_columns - len(kept))
            rows.append(fill + kept if side == "left" else kept + fill)
            mask = [True] * len(kept)
            masks.append([False] * len(fill) + mask if side == "left" else mask + [False] * len(fill))
        assert padded.ids.tolist() == rows and padded.mask.tolist() == masks
        assert padded.ids.shape == padded.mask.shape == (len(batch), n_columns) and padded.ids.dtype == np.int64
        assert padded.lengths.tolist() == [sum(mask) for mask in masks]


def test_rows_keep_uint16_and_may_be_a_multiple(gpt2_like: Tokenizer):
    batch = gpt2_like.encode_batch(["one two three", "one"])
    assert batch.pad().ids.dtype == np.uint16
    assert batch.pad(multiple_of=8).ids.shape[1] % 8 == 0
    assert batch.pad(5, multiple_of=4).ids.shape == (2, 8)
    assert gpt2_like.encode_batch(["one two three four"], max_length=2).to_list() == [
        gpt2_like.encode("one two three four")[:2]
    ]


def test_bad_arguments_of_padding_are_named(gpt2_like: Tokenizer):
    batch = gpt2_like.encode_batch(["one two"])
    for arguments, message in [
        ({"side": "up"}, 'side must be "left" or "right"'),
        ({"truncate": "up"}, 'truncate must be "left" or "right"'),
        ({"length": -1}, "length must be 0 or more"),
        ({"multiple_of": 0}, "multiple_of must be 1 or more"),
        ({"pad_id": -1}, "pad_id -1 does not fit uint16; hint"),
        ({"pad_id": 1 << 16}, "pad_id 65536 does not fit uint16"),
        ({"dtype": np.float32}, "dtype must be a type of integers"),
        ({"dtype": np.int8}, "does not fit int8"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch.pad(**arguments)
    for name, value in (("length", 2.5), ("pad_id", 1.5), ("multiple_of", "8")):
        with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value!r}"):
            batch.pad(**{name: value})
    with pytest.raises(TypeError, match=r"max_length must be a whole number, got 1\.5"):
        batch.truncate(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length must be 0 or more, got -1"):
        gpt2_like.encode_batch(["a"], max_length=-1)


# ── ids to text ──


def test_a_batch_of_ids_decodes_as_one_by_one(gpt2_like: Tokenizer, stdlib_files: list[Path]):
    texts = [path.read_text("utf-8") for path in stdlib_files] + ["", "日本"]
    batch = gpt2_like.encode_batch(texts)
    assert gpt2_like.decode_batch(batch) == texts
    assert gpt2_like.decode_batch(batch.to_list()) == texts
    assert gpt2_like.decode_batch([]) == []
    with pytest.raises(ValueError, match="id 5000"):
        gpt2_like.decode_batch([[65], [5000]])


def test_an_error_in_a_batch_says_in_which_text(gpt2_like: Tokenizer):
    for call in (gpt2_like.encode_batch, gpt2_like.count_batch, gpt2_like.encode_batch_with_offsets):
        with pytest.raises(TypeError, match=r"^text 2: expected str or bytes, got int$"):
            call(["a", b"b", 3])  # type: ignore[list-item]
    with pytest.raises(
        ValueError, match=r'^text 1: the text contains the special token "<.endoftext.>" at byte 1; hint'
    ):
        gpt2_like.encode_batch(["a", "b<|endoftext|>"], disallowed_special="all")
    for n in (0, 100_000):
        with pytest.raises(ValueError, match=f"^the text contains the special token .* at byte {n}; hint"):
            gpt2_like.encode("b" * n + "<|endoftext|>")
    with pytest.raises(TypeError, match=r"^text 1: expected a text, got 3; hint"):
        gpt2_like.as_hf().encode_batch(["a", 3])
