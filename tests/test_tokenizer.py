"""The tokenizer from Python: text to ids and back, equal to the textbook, safe in threads and forked children."""

import copy
import doctest
import multiprocessing
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptrs
import gptrs.tokenizer
import oracles
from gptrs import Tokenizer

TEXT = "Hello world, how are you? 12345 日本語 👩🏽‍🚀 don't\r\n\n  stop ſ\u0301"


def test_the_encyclopedia_example_merges_aa_then_ab_then_aaab():
    tok = Tokenizer.train_from_iterator(["aaabdaaabac"], 259, special_tokens=[])
    assert [tok.id_to_token(i) for i in range(256, 259)] == [b"aa", b"ab", b"aaab"]
    assert tok.encode("aaabdaaabac") == [258, 100, 258, 97, 99]
    assert tok.decode([258, 100]) == "aaabd"


def test_friendship_is_two_tokens_of_gpt2(gpt2: Tokenizer):
    assert [gpt2.id_to_token(i) for i in gpt2.encode("friendship")] == [b"friend", b"ship"]
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.eot_id == 50256 and gpt2.vocab_size == 50257 and gpt2.pattern == "gpt2"


def test_the_docstrings_examples_run():
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    results = doctest.testmod(gptrs.tokenizer, optionflags=flags)
    assert results.failed == 0 and results.attempted >= 12


# ── exactness ──


def test_any_text_comes_back(any_tokenizer: Tokenizer):
    assert any_tokenizer.decode(any_tokenizer.encode(TEXT)) == TEXT


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_come_back_and_equal_the_textbook(gpt2_like: Tokenizer, cl100k_like: Tokenizer, data: bytes):
    for tok in (gpt2_like, cl100k_like):
        ids = tok.encode_ordinary(data)
        assert tok.decode_bytes(ids) == data
        assert ids == oracles.encode(tok, data)


def test_real_text_equals_the_textbook(any_tokenizer: Tokenizer, stdlib_files: list[Path]):
    text = stdlib_files[3].read_bytes()[:60_000]
    assert any_tokenizer.encode_ordinary(text) == oracles.encode(any_tokenizer, text)


def test_bytes_that_are_no_utf8_equal_the_textbook(any_tokenizer: Tokenizer, adversarial: dict[str, str | bytes]):
    cases = {name: case for name, case in adversarial.items() if isinstance(case, bytes)}
    assert len(cases) == 9
    for name, case in cases.items():
        ids = any_tokenizer.encode_ordinary(case)
        assert any_tokenizer.decode_bytes(ids) == case, name
        assert ids == oracles.encode(any_tokenizer, case), name


def test_bytes_and_str_give_the_same_ids(any_tokenizer: Tokenizer):
    assert any_tokenizer.encode(TEXT.encode()) == any_tokenizer.encode(TEXT)


def test_surrogates_are_read_as_tiktoken_reads_them(gpt2_like: Tokenizer):
    assert gpt2_like.encode("\ud83d\ude00") == gpt2_like.encode("😀")
    assert gpt2_like.encode("a\ud83db") == gpt2_like.encode("a\ufffdb")
    assert gpt2_like.encode_batch(["a\ud83db"]).to_list() == [gpt2_like.encode("a\ufffdb")]
    assert gpt2_like.encode("a\ud83db") == oracles.tiktoken_of(gpt2_like).encode("a\ud83db")


# ── many texts, counts, offsets ──


def test_a_batch_equals_its_texts_one_by_one(any_tokenizer: Tokenizer, stdlib_files: list[Path]):
    texts = ["", *(path.read_text("utf-8") for path in stdlib_files[:12]), TEXT, ""]
    for threads in (1, 2, 3, 0):
        batch = any_tokenizer.encode_batch(texts, threads=threads)
        assert batch.to_list() == [any_tokenizer.encode_ordinary(text) for text in texts]
    assert [ids.tolist() for ids in batch] == batch.to_list()
    assert len(batch) == len(texts) and batch.offsets.dtype == np.int64


def test_a_batch_is_one_array_and_its_items_are_views(gpt2_like: Tokenizer, gpt2: Tokenizer):
    batch = gpt2_like.encode_batch(["one two", "three"])
    assert batch.ids.dtype == np.uint16 and batch.ids.flags.writeable
    assert np.shares_memory(batch[1], batch.ids) and batch[-1].tolist() == batch[1].tolist()
    with pytest.raises(IndexError):
        batch[2]
    assert gpt2.encode_batch(["one"]).ids.dtype == np.uint16
    assert len(gpt2.encode_batch([])) == 0


def test_a_large_vocabulary_gives_uint32(wide: Tokenizer):
    batch = wide.encode_batch(["abcdefgh", "hgfedcba" * 9])
    assert batch.ids.dtype == np.uint32 and batch.to_list() == [wide.encode("abcdefgh"), wide.encode("hgfedcba" * 9)]


def test_count_and_offsets_agree_with_encode(any_tokenizer: Tokenizer):
    ids, spans = any_tokenizer.encode_with_offsets(TEXT)
    assert ids == any_tokenizer.encode_ordinary(TEXT)
    assert any_tokenizer.count(TEXT) == len(ids)
    data = TEXT.encode()
    assert b"".join(data[a:b] for a, b in spans) == data
    assert [data[a:b] for a, b in spans] == [any_tokenizer.id_to_token(i) for i in ids]


def test_one_text_is_no_batch(gpt2_like: Tokenizer):
    with pytest.raises(TypeError, match="wrap it in a list"):
        gpt2_like.encode_batch("one text")
    with pytest.raises(TypeError, match="wrap it in a list"):
        Tokenizer.train_from_iterator("one text", 300)


@pytest.mark.parametrize("value", [None, 5, ["a"], bytearray(b"a")])
def test_what_is_no_text_is_refused(gpt2_like: Tokenizer, value: object):
    with pytest.raises(TypeError, match="expected str or bytes, got"):
        gpt2_like.encode(value)


# ── ids to text ──


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda x: np.array(x, np.uint16), lambda x: np.array(x, "i4")])
def test_ids_may_be_lists_or_arrays(gpt2_like: Tokenizer, kind):
    ids = gpt2_like.encode(TEXT)
    assert gpt2_like.decode(kind(ids)) == TEXT
    assert gpt2_like.decode(kind(ids)[::2]) == gpt2_like.decode(ids[::2])  # a strided view too


@pytest.mark.parametrize("bad", [-1, 2000, 1 << 31, 1 << 40, 1 << 70])
def test_an_unknown_id_is_named_with_its_position(gpt2_like: Tokenizer, bad: int):
    with pytest.raises(ValueError, match=f"id {bad}.* position 1|id {bad} is out of range at position 1"):
        gpt2_like.decode([65, bad])
    if bad < 1 << 62:
        with pytest.raises(ValueError, match=f"id {bad}"):
            gpt2_like.decode(np.array([65, bad]))


def test_ids_of_another_type_are_refused(gpt2_like: Tokenizer):
    for bad in (["a"], [1.5], [None], 5):
        with pytest.raises(TypeError):
            gpt2_like.decode(bad)


def test_half_a_character_is_replaced_or_raises_as_asked(gpt2_like: Tokenizer):
    ids = list("é".encode())
    assert gpt2_like.decode(ids[:1]) == "\ufffd"
    assert gpt2_like.decode_bytes(ids[:1]) == b"\xc3"
    with pytest.raises(UnicodeDecodeError):
        gpt2_like.decode(ids[:1], errors="strict")


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=30).map(str.encode)))
def test_streaming_equals_decoding_at_once(gpt2_like: Tokenizer, data: bytes):
    ids = gpt2_like.encode_ordinary(data)
    decoder = gpt2_like.decoder()
    parts = [decoder.push(i) for i in ids]
    assert "".join(parts) + decoder.finish() == gpt2_like.decode(ids)


def test_streaming_never_shows_half_a_character():
    tok = Tokenizer.train_from_iterator(["x"], 257)
    decoder = tok.decoder()
    assert [decoder.push(byte) for byte in "日a".encode()] == ["", "", "日", "a"]
    assert decoder.push(0xE6) == "" and decoder.finish() == "\ufffd"
    with pytest.raises(ValueError, match="id 9999"):
        decoder.push(9999)


# ── training ──


def test_training_does_not_depend_on_threads_or_on_the_order_of_texts(stdlib_files: list[Path], tmp_path: Path):
    texts = [path.read_text("utf-8") for path in stdlib_files[:15]]
    first = Tokenizer.train_from_iterator(texts, 1000, threads=1)
    for threads in (2, 3):
        random.Random(threads).shuffle(texts)
        assert Tokenizer.train_from_iterator(texts, 1000, threads=threads) == first
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text, "utf-8", newline="")
    assert Tokenizer.train(tmp_path, 1000) == first
    assert Tokenizer.train([tmp_path / "?.txt", str(tmp_path / "1?.txt")], 1000) == first


def test_a_txt_file_and_a_jsonl_line_are_documents_alike(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "abab"}\n{"text": "cdcd"}\n')
    (tmp_path / "b.jsonl").write_text('{"body": "abab"}\n{"body": "cdcd"}\n')
    expected = Tokenizer.train_from_iterator(["abab", "cdcd"], 258)
    assert Tokenizer.train(tmp_path / "a.jsonl", 258) == expected
    assert Tokenizer.train(tmp_path / "b.jsonl", 258, text_field="body") == expected


def test_ids_are_bytes_then_merges_then_specials():
    tok = Tokenizer.train_from_iterator(["abab"], 260, special_tokens=["<|b|>", "<|a|>", "<|endoftext|>"])
    assert [tok.id_to_token(i) for i in (0, 97, 255)] == [b"\x00", b"a", b"\xff"]
    assert tok.special_tokens == {"<|b|>": 257, "<|a|>": 258, "<|endoftext|>": 259}
    assert tok.eot_id == 259 and tok.vocab_size == 260


def test_a_corpus_too_small_for_the_vocabulary_warns():
    with pytest.warns(UserWarning, match=r"vocabulary of 257, not 300; hint: use more text"):
        tok = Tokenizer.train_from_iterator(["ab"], 300, special_tokens=[])
    assert tok.vocab_size == 257


def test_rare_pairs_are_left_alone_when_asked():
    with pytest.warns(UserWarning, match="vocabulary of 257"):
        tok = Tokenizer.train_from_iterator(["ab ab ab", "cd"], 300, special_tokens=[], min_count=3)
    assert tok.id_to_token(256) == b"ab"


# ── what it is ──


def test_a_tokenizer_is_a_value(any_tokenizer: Tokenizer):
    for twin in (pickle.loads(pickle.dumps(any_tokenizer)), copy.deepcopy(any_tokenizer), copy.copy(any_tokenizer)):  # noqa: S301
        assert twin == any_tokenizer and hash(twin) == hash(any_tokenizer)
        assert twin.encode(TEXT) == any_tokenizer.encode(TEXT)
        assert (twin.pattern, twin.digest) == (any_tokenizer.pattern, any_tokenizer.digest)
    assert any_tokenizer != Tokenizer.train_from_iterator(["ab"], 257)
    assert any_tokenizer != "tokenizer"
    assert "vocab_size=2000" in repr(any_tokenizer)


def test_tokens_and_ids_map_both_ways(gpt2_like: Tokenizer):
    for i in range(gpt2_like.vocab_size):
        token = gpt2_like.id_to_token(i)
        assert token is not None and gpt2_like.token_to_id(token) == i
    assert gpt2_like.id_to_token(2000) is None
    assert gpt2_like.token_to_id(b"no such token at all") is None
    assert gpt2_like.token_to_id("<|endoftext|>") == gpt2_like.eot_id


def test_threads_share_a_tokenizer(gpt2_like: Tokenizer, stdlib_files: list[Path]):
    texts = [path.read_text("utf-8") for path in stdlib_files[:24]]
    expected = [gpt2_like.encode(text, disallowed_special=()) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(gpt2_like.encode_ordinary, texts * 3)) == expected * 3


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer.encode_batch(texts).to_list()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_encode(gpt2_like: Tokenizer, stdlib_files: list[Path], method: str):
    texts = [path.read_text("utf-8") for path in stdlib_files[:8]]  # enough for threads
    expected = _encode(gpt2_like, texts)
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = [pool.apply_async(_encode, (gpt2_like, texts)) for _ in range(4)]
        assert [result.get(timeout=60) for result in results] == [expected] * 4


def test_a_forked_child_trains_and_encodes_while_the_parent_does(gpt2_like: Tokenizer, stdlib_files: list[Path]):
    texts = [path.read_text("utf-8") for path in stdlib_files[:8]]
    expected = gpt2_like.encode_batch(texts).to_list()
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(lambda: [gpt2_like.encode_batch(texts) for _ in range(20)]) for _ in range(2)]
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                same = gpt2_like.encode_batch(texts).to_list() == expected
                trained = Tokenizer.train_from_iterator(texts, 400).vocab_size == 400
                os._exit(0 if same and trained else 1)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
        for future in busy:
            future.result()
