"""tiktoken's view beside the original: an Encoding made from the same vocabulary."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiktoken

import oracles
from gptrs import Tokenizer
from gptrs.tiktoken_view import TiktokenView

TEXTS = ["", "hello world", "  two  spaces ", "déjà vu 友情 🙂", "x<|endoftext|>y", "1234 don't\n\n\tend"]


@pytest.fixture(scope="module", params=["gpt2_like", "cl100k_like"])
def pair(request: pytest.FixtureRequest) -> tuple[TiktokenView, tiktoken.Encoding]:
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    return tokenizer.as_tiktoken("ours"), oracles.tiktoken_of(tokenizer)


def test_the_tiktoken_view_encodes_as_tiktoken(pair: tuple[TiktokenView, tiktoken.Encoding], stdlib_files: list[Path]):
    ours, theirs = pair
    texts = [*TEXTS, *(path.read_text("utf-8") for path in stdlib_files[:10])]
    for text in texts:
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
        for options in ({"allowed_special": "all"}, {"disallowed_special": ()}, {"allowed_special": {"<|endoftext|>"}}):
            assert ours.encode(text, **options) == theirs.encode(text, **options)
    assert ours.encode_ordinary_batch(texts) == theirs.encode_ordinary_batch(texts)
    assert ours.encode_batch(texts, allowed_special="all") == theirs.encode_batch(texts, allowed_special="all")
    assert ours.encode_batch(texts, disallowed_special=()) == theirs.encode_batch(texts, disallowed_special=())
    array, expected = ours.encode_to_numpy(texts[1]), theirs.encode_to_numpy(texts[1])
    assert array.dtype == expected.dtype and array.tolist() == expected.tolist()
    for view in pair:
        with pytest.raises(ValueError, match="endoftext"):
            view.encode("x<|endoftext|>y")
        with pytest.raises(ValueError, match="endoftext"):
            view.encode_batch(["x<|endoftext|>y"])


def test_the_tiktoken_view_decodes_as_tiktoken(pair: tuple[TiktokenView, tiktoken.Encoding]):
    ours, theirs = pair
    ids = theirs.encode("déjà vu 友情 🙂<|endoftext|>", allowed_special="all")
    for cut in range(len(ids)):
        assert ours.decode(ids[cut:]) == theirs.decode(ids[cut:])
        assert ours.decode_bytes(ids[cut:]) == theirs.decode_bytes(ids[cut:])
        assert ours.decode_tokens_bytes(ids[cut:]) == theirs.decode_tokens_bytes(ids[cut:])
    assert ours.decode_with_offsets(ids) == theirs.decode_with_offsets(ids)
    assert ours.decode_batch([ids, ids[:2]]) == theirs.decode_batch([ids, ids[:2]])
    assert ours.decode_bytes_batch([ids, ids[:2]]) == theirs.decode_bytes_batch([ids, ids[:2]])
    assert ours.decode_batch([ids, ids[1:]], errors="ignore", num_threads=1) == [
        ours.decode(ids, "ignore"), ours.decode(ids[1:], "ignore")
    ]  # fmt: skip
    for view in pair:
        for call in (view.decode, view.decode_bytes, lambda ids: view.decode_batch([ids])):  # noqa: B023
            with pytest.raises(KeyError):
                call([10**6])
        with pytest.raises(KeyError):
            view.decode_single_token_bytes(10**6)
        with pytest.raises(UnicodeDecodeError):
            view.decode([0xE9], errors="strict")


def test_the_tiktoken_view_knows_its_vocabulary_as_tiktoken(pair: tuple[TiktokenView, tiktoken.Encoding]):
    ours, theirs = pair
    for name in ("n_vocab", "max_token_value", "eot_token", "special_tokens_set", "name"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.token_byte_values() == theirs.token_byte_values()
    for i in (0, 97, 500, ours.eot_token):
        assert ours.decode_single_token_bytes(i) == theirs.decode_single_token_bytes(i)
        assert ours.is_special_token(i) == theirs.is_special_token(i)
    for token in (b"a", "a", b"\xff", "<|endoftext|>"):
        assert ours.encode_single_token(token) == theirs.encode_single_token(token)
    for view in pair:
        with pytest.raises(KeyError):
            view.encode_single_token("no such token")


def test_unstable_ids_and_completions_are_those_of_tiktoken(
    pair: tuple[TiktokenView, tiktoken.Encoding], unicode_strings: list[str]
):
    ours, theirs = pair
    draw = random.Random(5)
    parts = [" ", "\n", "\t", "a", "é", "  ", "<|endoftext|>", "<|endof", "x1", "\u3000", "🙂", "'s", "\x1c", "友"]
    texts = ["".join(draw.choices(parts, k=draw.randint(0, 6))) for _ in range(120)] + unicode_strings[:60]
    options: list[dict[str, Any]] = [
        {"allowed_special": "all"},
        {"disallowed_special": ()},
        {"disallowed_special": {"a"}},
    ]
    n_compared = 0
    for text in texts:
        for choice in options:
            try:
                stable, completions = theirs.encode_with_unstable(text, **choice)
            except ValueError:
                with pytest.raises(ValueError, match="the text contains"):
                    ours.encode_with_unstable(text, **choice)
                continue
            assert ours.encode_with_unstable(text, **choice) == (stable, sorted(completions)), (text, choice)
            n_compared += 1
    assert n_compared > 300


def test_names_that_are_no_special_tokens_are_taken_as_by_tiktoken(pair: tuple[TiktokenView, tiktoken.Encoding]):
    for view in pair:
        known, unknown = {"<|endoftext|>"}, {"<|other|>"}
        assert view.encode("a<|other|>", allowed_special=unknown) == view.encode_ordinary("a<|other|>")
        assert view.encode("a<|endoftext|>", allowed_special=known | unknown)[-1] == view.eot_token
        assert view.encode("a<|endoftext|>", disallowed_special=unknown) == view.encode_ordinary("a<|endoftext|>")
        for call in (view.encode, lambda text, **options: view.encode_batch([text], **options)):  # noqa: B023
            with pytest.raises(ValueError, match="other"):
                call("a<|other|>", disallowed_special=unknown)


def test_an_encoding_of_tiktoken_is_made_of_a_view_as_of_another(pair: tuple[TiktokenView, tiktoken.Encoding]):
    made = [
        tiktoken.Encoding(
            "more", pat_str=view._pat_str, mergeable_ranks=view._mergeable_ranks,
            special_tokens={**view._special_tokens, "<|more|>": view.n_vocab},
        ).encode("hello  world<|more|>", allowed_special="all")
        for view in pair
    ]  # fmt: skip
    assert made[0] == made[1] and made[0][-1] == pair[0].n_vocab
    file = json.loads(Tokenizer.train_from_iterator(["ab", "cd"], 258, special_tokens=[]).to_json())
    file["model"]["merges"].reverse()
    other = Tokenizer.from_json(json.dumps(file)).as_tiktoken()
    with pytest.raises(ValueError, match="cannot be written as"):
        other._mergeable_ranks  # noqa: B018


def test_an_encoding_of_tiktoken_becomes_a_tokenizer(
    pair: tuple[TiktokenView, tiktoken.Encoding], unicode_strings: list[str]
):
    _, theirs = pair
    tok = Tokenizer.from_tiktoken(theirs)
    assert tok.pattern in ("gpt2", "cl100k_base") and tok.special_tokens == theirs._special_tokens
    for text in [*TEXTS, *unicode_strings[:1500]]:
        assert tok.encode_ordinary(text) == theirs.encode_ordinary(text)
    broken = tiktoken.Encoding("broken", pat_str=".", mergeable_ranks={b"a": 0, b"b": 1}, special_tokens={})
    with pytest.raises(ValueError, match="broken is not a valid tiktoken file: byte 0x00 is missing"):
        Tokenizer.from_tiktoken(broken)


def test_of_two_names_of_one_id_the_one_that_is_no_reserve_stays(gpt2_like: Tokenizer):
    ranks = oracles.tiktoken_of(gpt2_like)._mergeable_ranks
    special = {"<|endofprompt|>": 3000, "<|reserved_3000|>": 3000, "<|endoftext|>": 2999}
    pattern = gpt2_like.core.regex
    encoding = tiktoken.Encoding("harmony", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    assert Tokenizer.from_tiktoken(encoding).special_tokens == {"<|endoftext|>": 2999, "<|endofprompt|>": 3000}
