"""Hugging Face's view beside the original: tokenizers' own objects made from the same vocabulary."""

import asyncio
import copy
import json
import pickle
import random
import threading
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from tokenizers import AddedToken, processors

from conftest import is_assigned
from gptrs import Tokenizer
from gptrs.hugging_face_encoding import Encoding
from gptrs.hugging_face_view import HuggingFaceView

TEXTS = ["", "hello world", "  two  spaces ", "déjà vu 友情 🙂", "x<|endoftext|>y", "1234 don't\n\n\tend"]


def _template(special: dict[str, int]) -> processors.PostProcessor:
    begin, end = ("<|begin|>", special["<|begin|>"]), ("<|endoftext|>", special["<|endoftext|>"])
    return processors.TemplateProcessing(
        single="<|begin|> $A <|endoftext|>", pair="<|begin|> $A <|endoftext|> $B:1 <|endoftext|>:1",
        special_tokens=[begin, end],
    )  # fmt: skip


@pytest.fixture(scope="module")
def texts(stdlib_files: list[Path], unicode_strings: list[str]) -> list[str]:
    files = [path.read_text("utf-8")[:3000] for path in stdlib_files[:5]]
    return [*TEXTS, *files, *filter(is_assigned, unicode_strings[:1500])]


@pytest.fixture(scope="module", params=["plain", "template", "byte level", "roberta", "bert", "sequence"])
def views(request: pytest.FixtureRequest, stdlib_files: list[Path]) -> tuple[HuggingFaceView, tokenizers.Tokenizer]:
    """Ours and theirs of the same file, with one of the post-processors."""
    tok = Tokenizer.train_from_iterator(
        (path.read_bytes() for path in stdlib_files[:20]), 900, pattern="llama3",
        special_tokens=["<|endoftext|>", "<|begin|>", "<think>"],
    )  # fmt: skip
    file: dict[str, Any] = json.loads(tok.to_json())
    file["added_tokens"][2]["special"] = False
    peer = tokenizers.Tokenizer.from_str(json.dumps(file))
    special = tok.special_tokens
    sep, cls = (("<|endoftext|>", special["<|endoftext|>"]), ("<|begin|>", special["<|begin|>"]))
    post = {
        "plain": None,
        "template": _template(special),
        "byte level": processors.ByteLevel(trim_offsets=True),
        "roberta": processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False),
        "bert": processors.BertProcessing(sep, cls),
        "sequence": processors.Sequence([processors.ByteLevel(trim_offsets=False), _template(special)]),
    }[request.param]
    if post is not None:
        peer.post_processor = post
    return Tokenizer.from_json(peer.to_str()).as_hf(), peer


PARTS = (
    "ids", "type_ids", "tokens", "offsets", "attention_mask", "special_tokens_mask", "word_ids"
)  # fmt: skip


def assert_equal(ours: Any, theirs: tokenizers.Encoding, where: object = "") -> None:
    assert_same_lists(ours, theirs, where)
    # Padding is of no text; theirs counts it to the first one where no post-processor has marked the texts.
    for own, other, is_text in zip(ours.sequence_ids, theirs.sequence_ids, ours.attention_mask, strict=True):
        assert own == (other if is_text else None), where
    assert len(ours) == len(theirs)
    for part, expected in zip(ours.overflowing, theirs.overflowing, strict=True):
        assert_same_lists(part, expected, where)
        assert part.overflowing == []  # theirs lists some of a pair's parts once more in others


def assert_same_lists(ours: Any, theirs: tokenizers.Encoding, where: object = "") -> None:
    for name in PARTS:
        assert getattr(ours, name) == getattr(theirs, name), (name, where)


def test_the_hugging_face_view_encodes_as_tokenizers(
    views: tuple[HuggingFaceView, tokenizers.Tokenizer], texts: list[str]
):
    ours, theirs = views
    for add in (True, False):
        expected = theirs.encode_batch(texts, add_special_tokens=add)
        for one, other, text in zip(ours.encode_batch(texts, add_special_tokens=add), expected, texts, strict=True):
            assert_equal(one, other, text)
        pairs = list(pairwise(texts[:300]))
        for one, other in zip(ours.encode_batch(pairs, add_special_tokens=add),
                              theirs.encode_batch(pairs, add_special_tokens=add), strict=True):  # fmt: skip
            assert_equal(one, other)
        words = [text.split() for text in texts[6:11]]
        for one, other in zip(ours.encode_batch(words, True, add), theirs.encode_batch(words, True, add), strict=True):
            assert_equal(one, other)
    assert_equal(ours.encode("a b", "c"), theirs.encode("a b", "c"))
    for view in views:
        view.encode_special_tokens = True
    text = "a<|begin|>b<think>c"
    assert_equal(ours.encode(text), theirs.encode(text))
    for view in views:
        view.encode_special_tokens = False


def test_an_encoding_answers_where_its_tokens_are(views: tuple[HuggingFaceView, tokenizers.Tokenizer]):
    ours, theirs = views
    one, other = ours.encode("don't stop", "友情 now"), theirs.encode("don't stop", "友情 now")
    assert one.n_sequences == other.n_sequences == 2
    for i in range(len(one)):
        assert one.token_to_chars(i) == other.token_to_chars(i)
        assert one.token_to_sequence(i) == other.token_to_sequence(i)
        assert one.token_to_word(i) == other.token_to_word(i)
    for sequence in (0, 1):
        for at in range(12):
            assert one.char_to_token(at, sequence) == other.char_to_token(at, sequence), (at, sequence)


def test_the_hugging_face_view_decodes_as_tokenizers(views: tuple[HuggingFaceView, tokenizers.Tokenizer]):
    ours, theirs = views
    ids = theirs.encode("<|begin|>déjà <think>友情🙂<|endoftext|>", add_special_tokens=False).ids
    for cut in range(len(ids)):
        for skip in (True, False):
            assert ours.decode(ids[cut:], skip) == theirs.decode(ids[cut:], skip)
    assert ours.decode([*ids, 10**6]) == theirs.decode([*ids, 10**6])
    assert ours.decode_batch([ids, ids[2:]]) == theirs.decode_batch([ids, ids[2:]])


def test_the_hugging_face_view_knows_its_vocabulary_as_tokenizers(
    views: tuple[HuggingFaceView, tokenizers.Tokenizer],
):
    ours, theirs = views
    assert ours.get_vocab() == theirs.get_vocab() and ours.get_vocab_size() == theirs.get_vocab_size()
    for i in (0, 32, 300, 899, 900, 10**6):
        assert ours.id_to_token(i) == theirs.id_to_token(i)
    for token in ("a", "Ġ", "Ġthe", " the", "<think>", "<|begin|>", "none such", "友"):
        assert ours.token_to_id(token) == theirs.token_to_id(token), token
    for is_pair in (True, False):
        assert ours.num_special_tokens_to_add(is_pair) == theirs.num_special_tokens_to_add(is_pair)
    assert json.loads(ours.to_str())["model"]["merges"] == json.loads(theirs.to_str())["model"]["merges"]


PADDINGS = [
    {},
    {"direction": "left", "pad_id": 7, "pad_token": "<|endoftext|>", "pad_type_id": 1},
    {"length": 20},
    {"pad_to_multiple_of": 8},
    {"length": 5, "pad_to_multiple_of": 4},
]
TRUNCATIONS = [
    {"max_length": 9},
    {"max_length": 4, "strategy": "only_first"},
    {"max_length": 12, "stride": 3},
    {"max_length": 9, "direction": "left", "stride": 1},
    {"max_length": 40, "strategy": "only_first"},
    {"max_length": 12, "strategy": "only_second"},
    {"max_length": 30, "strategy": "only_second", "direction": "left"},
]


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_is_that_of_tokenizers(views: tuple[HuggingFaceView, tokenizers.Tokenizer], padding: dict[str, Any]):
    ours, theirs = views
    for view in views:
        view.enable_padding(**padding)
    for batch in (TEXTS, [("a b c", "d"), ("e", "f g h i j")]):
        for one, other in zip(ours.encode_batch(batch), theirs.encode_batch(batch), strict=True):
            assert_equal(one, other)
    assert_equal(ours.encode("alone"), theirs.encode("alone"))
    assert {name: theirs.padding[name] for name in ours.padding} == ours.padding
    for view in views:
        view.no_padding()
        assert view.padding is None


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_truncation_is_that_of_tokenizers(
    views: tuple[HuggingFaceView, tokenizers.Tokenizer], truncation: dict[str, Any]
):
    ours, theirs = views
    draw = random.Random(2)
    texts = [" ".join(draw.choices(["one", "twoo", "33", "友情"], k=draw.randint(0, 30))) for _ in range(60)]
    for view in views:
        view.enable_truncation(**truncation)
        view.enable_padding(length=16)
    n_compared = 0
    for long, other in pairwise(texts):
        for text, both in ((long, None), (long[:8], other[:30])):  # theirs takes long over a pair's many parts
            try:
                expected = theirs.encode(text, both)
            except Exception:  # a Rust error of theirs: the text cannot give so many
                with pytest.raises(ValueError, match="cannot cut"):
                    ours.encode(text, both)
                continue
            one = ours.encode(text, both)
            assert_equal(one, expected)
            n_compared += 1
    assert n_compared >= 20
    assert {name: theirs.truncation[name] for name in ours.truncation} == ours.truncation
    for view in views:
        view.no_truncation()
        view.no_padding()
        assert view.truncation is None


def test_what_is_no_text_is_refused(gpt2_like: Tokenizer):
    view = gpt2_like.as_hf()
    with pytest.raises(TypeError, match="expected a text, got \\['a', 'b'\\]"):
        view.encode(["a", "b"])
    with pytest.raises(TypeError, match="expected a list of words"):
        view.encode("a b", is_pretokenized=True)
    assert view.encode_batch([[], ["a"]], is_pretokenized=True)[0].ids == []
    for bad in (None, [None]):
        with pytest.raises(TypeError, match="expected a text, got None"):
            view.encode(bad) if bad is None else view.encode_batch(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a list of texts, got one text"):
        view.encode_batch("a b")
    with pytest.raises(ValueError, match="expected a text or a pair of texts, got 3 of them"):
        view.encode_batch([("a", "b", "c")])


def test_settings_that_mean_nothing_are_refused_where_they_are_made(gpt2_like: Tokenizer):
    view = gpt2_like.as_hf()
    with pytest.raises(ValueError, match="expected one of left, right as direction, got 'up'"):
        view.enable_padding(direction="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length must be 0 or more, got -1"):
        view.enable_padding(length=-1)
    with pytest.raises(ValueError, match="expected one of left, right as direction, got 'up'"):
        view.enable_truncation(4, direction="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected one of longest_first, .* as strategy, got 'longest'"):
        view.enable_truncation(4, strategy="longest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length must be 0 or more, got -1"):
        view.enable_truncation(-1)
    assert view.padding is None and view.truncation is None
    for call, batch in ((gpt2_like.as_tiktoken().encode_batch, ["a"]), (gpt2_like.as_tiktoken().decode_batch, [[97]])):
        with pytest.raises(ValueError, match=r"num_threads must be 0 \(all cores\) or more, got -1"):
            call(batch, num_threads=-1)  # type: ignore[operator]


def test_views_are_pickled_and_copied_as_the_originals_are(gpt2_like: Tokenizer, tmp_path: Path):
    view = gpt2_like.as_hf()
    view.enable_padding(length=5)
    view.encode_special_tokens = True
    for again in (pickle.loads(pickle.dumps(view)), copy.deepcopy(view)):  # noqa: S301
        assert again.encode("a<|endoftext|>").ids == view.encode("a<|endoftext|>").ids
        assert again.padding == view.padding and again.get_vocab() == view.get_vocab()
    other_view = gpt2_like.as_tiktoken("x")
    for other in (pickle.loads(pickle.dumps(other_view)), copy.deepcopy(other_view)):  # noqa: S301
        assert other.name == "x" and other.encode("hello") == gpt2_like.encode("hello")
    view.save(str(tmp_path / "a.json"), pretty=True)
    assert (tmp_path / "a.json").read_text("utf-8") == view.to_str(pretty=True) != view.to_str()
    with pytest.warns(UserWarning, match="asks for padding"):
        assert Tokenizer.from_file(tmp_path / "a.json") == gpt2_like


@pytest.mark.parametrize("trims", [True, False])
def test_an_added_token_shows_the_white_space_that_it_takes(trims: bool, gpt2_like: Tokenizer):
    peer = tokenizers.Tokenizer.from_str(gpt2_like.to_json())
    peer.add_tokens([AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("<r>", rstrip=True)])
    peer.post_processor = processors.ByteLevel(trim_offsets=trims)
    view = Tokenizer.from_json(peer.to_str()).as_hf()
    for text in ("a  <mask> b", "<mask>\n<r> \n\tc", "é <r>  <mask><r>", "x\u3000\u2003<mask>", "\u00a0<mask>"):
        assert_equal(view.encode(text), peer.encode(text), text)


def test_what_is_set_stands_in_the_file_and_is_set_again(gpt2_like: Tokenizer):
    peer = tokenizers.Tokenizer.from_str(gpt2_like.to_json())
    draw = random.Random(4)
    for padding, truncation in zip([*PADDINGS, None], [None, *TRUNCATIONS[3:], None], strict=True):
        ours, theirs = gpt2_like.as_hf(), tokenizers.Tokenizer.from_str(peer.to_str())
        for view in (ours, theirs):
            if padding is not None:
                view.enable_padding(**padding)
            if truncation is not None:
                view.enable_truncation(**truncation)
        for pretty in (True, False):
            own, other = (json.loads(view.to_str(pretty)) for view in (ours, theirs))
            assert [own[name] for name in ("padding", "truncation")] == [other["padding"], other["truncation"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = Tokenizer.from_json(theirs.to_str())
        for again in (read, Tokenizer.from_json(read.to_json()), pickle.loads(pickle.dumps(read))):  # noqa: S301
            view = again.as_hf()
            assert (view.padding, view.truncation) == (ours.padding, ours.truncation)
        text = " ".join(draw.choices(["one", "twoo", "33"], k=12))
        assert_equal(read.as_hf().encode("a", text), theirs.encode("a", text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(read))  # noqa: S301 (the warning was given when the file was read)


@pytest.mark.parametrize("growing", [True, False])
def test_encodings_are_merged_and_marked_as_by_tokenizers(
    views: tuple[HuggingFaceView, tokenizers.Tokenizer], growing: bool
):
    both = []
    for view, kind in zip(views, (Encoding, tokenizers.Encoding), strict=True):
        parts = [view.encode(text) for text in ("don't stop", "", "友情 now", "a b c d e f")]
        for part in parts[2:]:
            part.truncate(4, 1)
        parts[3].set_sequence_id(1)
        merged = [kind.merge(parts[:n], growing) for n in range(5)]
        assert [len(part) for part in parts] == [len(view.encode("don't stop")), len(view.encode("")), 4, 4]
        both.append([*merged, parts[3]])
    for one, other in zip(*both, strict=True):
        assert_same_lists(one, other)
        for part, expected in zip(one.overflowing, other.overflowing, strict=True):
            assert_same_lists(part, expected)
    # Theirs keeps what it was marked as before, and then tells one or the other.
    assert both[0][-1].sequence_ids == [1] * 4 and both[0][-1].token_to_sequence(0) == 1


def test_what_encode_does_after_tokens_is_done_for_encodings_too(
    views: tuple[HuggingFaceView, tokenizers.Tokenizer],
):
    texts = ["don't stop", "友情 now and then", "a b c d e f"]
    raw = [[view.encode(text, add_special_tokens=False) for text in texts] for view in views]
    for truncation in (None, {"max_length": 9, "stride": 1}):
        for view in views:
            if truncation is not None:
                view.enable_truncation(**truncation)
                view.enable_padding(length=12)
        for add in (True, False):
            for i, j in ((0, None), (2, None), (0, 1), (1, 0), (2, 1)):
                one, other = (
                    view.post_process(own[i], None if j is None else own[j], add)
                    for view, own in zip(views, raw, strict=True)
                )
                assert_same_lists(one, other, (add, i, j))
                for part, expected in zip(one.overflowing, other.overflowing, strict=True):
                    assert_same_lists(part, expected, (add, i, j))
    for view in views:
        view.no_truncation()
        view.no_padding()
    assert raw[0][2].overflowing == [] and raw[0][2].sequence_ids == [0] * len(raw[0][2])


def test_added_tokens_of_the_byte_alphabet_are_read_as_bytes_as_by_tokenizers():
    base = Tokenizer.train_from_iterator(["abab"], 258)
    contents = ["<|\u00e9|>", "e\u0301", "\ufb01", "\u0120x", "\u53cb", "\ufb01\u00e9", "\u010a\u0120", "<b>"]
    for form in (None, "NFC", "NFD", "NFKC"):
        for flags in ({"normalized": True, "special": True}, {"normalized": True}, {"special": True}):
            file = json.loads(base.to_json()) | {"normalizer": form and {"type": form}}
            n = len(file["model"]["vocab"])
            file["added_tokens"] += [
                {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
                | {"id": n + i, "content": content}
                | flags
                for i, content in enumerate(contents)
            ]
            ours = Tokenizer.from_json(json.dumps(file)).as_hf()
            theirs = tokenizers.Tokenizer.from_str(json.dumps(file))
            assert ours.get_vocab() == theirs.get_vocab()
            added = {i: str(token) for i, token in theirs.get_added_tokens_decoder().items()}
            assert {i: str(token) for i, token in ours.get_added_tokens_decoder().items()} == added
            for i in added:
                assert ours.id_to_token(i) == theirs.id_to_token(i)
                for skip in (True, False):
                    for ids in ([i], [97, i, 98], [*added, 195]):
                        assert ours.decode(ids, skip) == theirs.decode(ids, skip), (ids, form, flags)
            for content in contents:
                one, other = (view.encode(f"a {content}") for view in (ours, theirs))
                assert (one.ids, one.tokens) == (other.ids, other.tokens)
                assert ours.token_to_id(content) == theirs.token_to_id(content)


def test_a_view_says_how_to_get_what_it_has_not(gpt2_like: Tokenizer):
    view = gpt2_like.as_hf()
    for name in dir(tokenizers.Tokenizer):
        if not name.startswith("_") and not hasattr(view, name):
            with pytest.raises(AttributeError, match=rf"no attribute '{name}'.*hint: "):
                getattr(view, name)
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        view.nothing  # noqa: B018
    for peer, own in ((tiktoken.Encoding, gpt2_like.as_tiktoken()), (tokenizers.Encoding, view.encode("a"))):
        assert [name for name in dir(peer) if not name.startswith("_") and not hasattr(own, name)] == []
    text = "a b<|endoftext|>"
    assert asyncio.run(view.async_encode(text)).ids == view.encode(text).ids
    threads = []
    asyncio.run(view.async_encode_batch(threads.append(threading.get_ident()) or one for one in [text]))
    assert threads != [threading.get_ident()], "the loop goes on meanwhile"
    assert [one.ids for one in asyncio.run(view.async_encode_batch([text]))] == [view.encode(text).ids]
    assert asyncio.run(view.async_decode_batch([[97], [98]])) == ["a", "b"]


def test_places_of_pieces_are_those_of_tokenizers(views: tuple[HuggingFaceView, tokenizers.Tokenizer]):
    for texts in ((TEXTS[3],), (TEXTS[1], TEXTS[5])):
        ours, theirs = (view.encode(*texts) for view in views)
        for sequence in range(len(texts)):
            for i in range(len(ours) + 2):
                for name in ("word_to_tokens", "word_to_chars", "char_to_word", "char_to_token"):
                    assert getattr(ours, name)(i, sequence) == getattr(theirs, name)(i, sequence), (name, i, sequence)


@pytest.mark.parametrize("direction", ["left", "right"])
def test_one_encoding_is_cut_and_filled_as_by_tokenizers(
    views: tuple[HuggingFaceView, tokenizers.Tokenizer], direction: Any
):
    for length, stride in ((0, 0), (3, 0), (4, 2), (1000, 0)):
        ours, theirs = (view.encode(TEXTS[5]) for view in views)
        for one in (ours, theirs):
            one.truncate(length, stride, direction)
            one.pad(12, direction=direction, pad_id=5, pad_type_id=1, pad_token="!")  # noqa: S106
        for mine, other in zip((ours, *ours.overflowing), (theirs, *theirs.overflowing), strict=True):
            for name in ("ids", "type_ids", "tokens", "offsets", "attention_mask", "special_tokens_mask", "word_ids"):
                assert getattr(mine, name) == getattr(other, name), (name, length)
    with pytest.raises(ValueError, match="direction"):
        ours.pad(3, direction="up")  # type: ignore[arg-type]


def test_an_added_token_that_is_an_ordinary_one_too_stays_in_the_vocabulary_without_added_ones():
    file = json.loads(Tokenizer.train_from_iterator(["abab"], 257, special_tokens=[]).to_json())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    file["added_tokens"] = [{"id": 256, "content": "ab", **flags}, {"id": 257, "content": "<x>", **flags}]
    ours, theirs = Tokenizer.from_json(json.dumps(file)).as_hf(), tokenizers.Tokenizer.from_str(json.dumps(file))
    for with_added in (True, False):
        assert ours.get_vocab(with_added) == theirs.get_vocab(with_added)
        assert ours.get_vocab_size(with_added) == theirs.get_vocab_size(with_added)
