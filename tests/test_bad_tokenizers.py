"""Tokenizer files that lie: a typed error that names the file and the cause, from Python and the command line.

pyo3's PanicException is a BaseException: it would pass `except Exception`, and its words are looked for here.
"""

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from conftest import Cli
from gptrs import Tokenizer

File = dict[str, Any]


@pytest.fixture(scope="module")
def valid() -> File:
    tok = Tokenizer.train_from_iterator(
        ["the cat that sat on the hat "] * 3, 262, pattern="gpt2", special_tokens=["<|a|>"]
    )
    file: File = json.loads(tok.to_json())
    return file


def vocab(file: File) -> dict[str, int]:
    entries: dict[str, int] = file["model"]["vocab"]
    return entries


def without_a_byte(file: File) -> None:
    del vocab(file)["q"]


def two_tokens_of_one_id(file: File) -> None:
    vocab(file)["zz"] = vocab(file)["a"]


def an_id_of_four_billion(file: File) -> None:
    vocab(file)["zz"] = 4_294_967_295


def an_id_beyond_32_bits(file: File) -> None:
    vocab(file)["zz"] = 2**60


def a_negative_id(file: File) -> None:
    vocab(file)["zz"] = -1


def a_fraction_as_id(file: File) -> None:
    vocab(file)["zz"] = 1.5


def a_merge_of_unknown_tokens(file: File) -> None:
    file["model"]["merges"].append(["zzz", "yyy"])


def a_merge_into_no_token(file: File) -> None:
    file["model"]["merges"].append(["q", "q"])


def merges_in_a_circle(file: File) -> None:
    at = len(vocab(file))
    vocab(file).update({"qx": at, "xq": at + 1, "qxq": at + 2})
    file["model"]["merges"] += [["qx", "q"], ["q", "xq"], ["q", "x"], ["x", "q"]]


def a_merge_twice(file: File) -> None:
    file["model"]["merges"].append(file["model"]["merges"][0])


def a_merge_of_three(file: File) -> None:
    file["model"]["merges"].append(["a", "b", "c"])


def merges_that_are_numbers(file: File) -> None:
    file["model"]["merges"] = [1, 2, 3]


def a_vocabulary_that_is_a_list(file: File) -> None:
    file["model"]["vocab"] = ["a", "b"]


def a_special_id_that_is_a_token(file: File) -> None:
    file["added_tokens"][0]["id"] = 5


def a_special_id_of_four_billion(file: File) -> None:
    file["added_tokens"][0]["id"] = 4_294_967_295


def an_empty_special_token(file: File) -> None:
    file["added_tokens"][0]["content"] = ""


def a_special_token_twice(file: File) -> None:
    file["added_tokens"].append({**file["added_tokens"][0], "id": 500})


def a_model_of_another_kind(file: File) -> None:
    file["model"]["type"] = "WordPiece"


def a_model_without_a_vocabulary(file: File) -> None:
    del file["model"]["vocab"]


def an_unknown_normalizer(file: File) -> None:
    file["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


def a_regex_that_does_not_compile(file: File) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}


CHANGES: list[Callable[[File], None]] = [
    without_a_byte, two_tokens_of_one_id, an_id_of_four_billion, an_id_beyond_32_bits, a_negative_id, a_fraction_as_id,
    a_merge_of_unknown_tokens, a_merge_into_no_token, a_merge_twice, a_merge_of_three,
    merges_that_are_numbers, a_vocabulary_that_is_a_list, a_special_id_that_is_a_token, a_special_id_of_four_billion,
    an_empty_special_token, a_special_token_twice, a_model_of_another_kind, a_model_without_a_vocabulary,
    an_unknown_normalizer, a_regex_that_does_not_compile,
]  # fmt: skip


def refused(path: Path, **options: Any) -> str:
    """The message of the error that reading `path` ends in: a ValueError that names the file."""
    with pytest.raises(ValueError) as error:
        Tokenizer.from_file(path, **options)
    message = str(error.value)
    assert type(error.value).__name__ != "PanicException" and "panicked" not in message
    assert path.name in message and len(message) < 1_000, message
    return message


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_tokenizer_json_with(valid: File, tmp_path: Path, change: Callable[[File], None]):
    file = json.loads(json.dumps(valid))
    change(file)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    refused(path)


RAW = {
    "not_utf8": b'{"model": {"type": "BPE", "vocab": {"\xff": 0}}}',
    "utf16": '{"model": {}}'.encode("utf-16"),
    "cut": b'{"model": {"type": "BPE", "vocab": {"a": 0,',
    "deep": b"[" * 100_000,
    "empty": b"",
    "number": b"7",
    "lone_surrogate": b'{"model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}}',
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("name", RAW)
def test_a_file_that_is_no_tokenizer_json(tmp_path: Path, cli: Cli, name: str):
    path = tmp_path / f"{name}.json"
    path.write_bytes(RAW[name])
    refused(path)
    end = cli("tokenizer", "encode", path, "text")
    assert end.returncode == 1 and end.stderr.startswith("error: ") and end.stderr.count("\n") == 1, end.stderr
    assert "panic" not in end.stderr.lower() and "Traceback" not in end.stderr


def ranks(*changes: tuple[bytes, object]) -> bytes:
    tokens: list[tuple[bytes, object]] = [(bytes([byte]), byte) for byte in range(256)]
    return b"".join(b"%s %s\n" % (base64.b64encode(t), str(rank).encode()) for t, rank in [*tokens, *changes])


RANKS = {
    "duplicate_rank": ranks((b"ab", 97)),
    "duplicate_token": ranks((b"ab", 256), (b"ab", 257)),
    "huge_rank": ranks((b"ab", 2**32)),
    "far_rank": ranks((b"ab", 4_000_000_000)),
    "negative_rank": ranks((b"ab", -1)),
    "empty_token": ranks((b"", 256)),
    "missing_bytes": b"YWI= 0\n",
    "no_rank": b"YQ==\n",
    "no_base64": b"!!!! 0\n",
    "binary": bytes(range(256)) * 4,
    "empty": b"",
}


@pytest.mark.parametrize("name", RANKS)
def test_a_file_of_ranks_with(tmp_path: Path, name: str):
    path = tmp_path / f"{name}.bytes.tiktoken"
    path.write_bytes(RANKS[name])
    refused(path, pattern="gpt2")


@pytest.mark.parametrize("merges", ["zz yy\n", "a b c\n", "a\n", "ab a\na b\n", "q q\n"])
def test_merges_txt_with_merges_of_no_tokens(valid: File, tmp_path: Path, merges: str):
    (tmp_path / "vocab.json").write_text(json.dumps(vocab(valid)))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    with pytest.raises(ValueError, match=r"merges\.txt|vocab\.json"):
        Tokenizer.from_file(tmp_path)


def test_merges_that_use_what_a_later_merge_makes_give_the_ids_of_hugging_face(valid: File):
    """Such a list is no training's, and no list can be a circle: a merge makes something longer than its parts."""
    file = json.loads(json.dumps(valid))
    merges_in_a_circle(file)
    ours, peer = Tokenizer.from_json(json.dumps(file)), tokenizers.Tokenizer.from_str(json.dumps(file))
    for length in range(1, 9):
        for letters in itertools.product("qx", repeat=length):
            text = "".join(letters)
            assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("ids", [[2**32], [-1], [10**9], [262], [0, 1, 2**64], ["a"], [1.5], [None]])
def test_ids_that_decode_to_nothing(valid: File, ids: list[Any]):
    tok = Tokenizer.from_json(json.dumps(valid))
    for decode in (tok.decode, tok.decode_bytes):
        with pytest.raises((ValueError, TypeError, OverflowError)) as error:
            decode([65, *ids])
        assert type(error.value).__name__ != "PanicException"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.complex64, "U1"])
def test_arrays_that_hold_no_ids(valid: File, dtype: Any):
    tok = Tokenizer.from_json(json.dumps(valid))
    with pytest.raises((TypeError, ValueError)):
        tok.decode(np.zeros(3, dtype=dtype))
    with pytest.raises((TypeError, ValueError)):
        tok.decode(np.array([1, -1], dtype=np.int64))


def test_of_special_tokens_with_a_common_beginning_the_longest_is_found(valid: File):
    file = json.loads(json.dumps(valid))
    first = file["added_tokens"][0]
    file["added_tokens"] += [
        {**first, "id": first["id"] + i, "content": text} for i, text in enumerate(["<|a", "<|a|>|b|>", "<|"], 1)
    ]
    tok = Tokenizer.from_json(json.dumps(file))
    ids = tok.special_tokens
    text = "x<|a|>y<|a<|a|>|b|><|z"
    names = ["<|a|>", "<|a", "<|a|>|b|>", "<|"]
    found = [i for i in tok.encode(text, allowed_special="all") if i in ids.values()]
    assert found == [ids[name] for name in names]
    assert tok.decode(tok.encode(text, allowed_special="all")) == text
    assert tok.decode(tok.encode_ordinary(text)) == text
    with pytest.raises(ValueError, match="special token"):
        tok.encode(text)
