"""Tokenizer files: what we write others read, what others write we read, and the ids are the same."""

import base64
import gzip
import hashlib
import json
import warnings
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import oracles
from conftest import is_assigned
from gptrs import Tokenizer

# Where a peer needs minutes or dies: its piece merging is quadratic or its regex engine gives up on these.
LONG = 20_000


@pytest.fixture(scope="module")
def hugging_face(any_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    any_tokenizer.save(path)
    return tokenizers.Tokenizer.from_file(str(path))


# ── ours, read by Hugging Face and tiktoken ──


def test_hugging_face_gives_the_same_ids_on_the_corpus(any_tokenizer, hugging_face, stdlib_files: list[Path]):
    for path in stdlib_files:
        text = path.read_text("utf-8")
        expected = hugging_face.encode(text, add_special_tokens=False).ids
        assert any_tokenizer.encode(text, allowed_special="all") == expected, path.name
        assert hugging_face.decode(expected, skip_special_tokens=False) == text


def test_hugging_face_gives_the_same_ids_on_random_strings(any_tokenizer, hugging_face, unicode_strings: list[str]):
    expected = [e.ids for e in hugging_face.encode_batch(unicode_strings, add_special_tokens=False)]
    got = any_tokenizer.encode_batch(unicode_strings, allowed_special="all").to_list()
    wrong = [text for text, a, b in zip(unicode_strings, got, expected, strict=True) if a != b and is_assigned(text)]
    assert wrong == []


def test_tiktoken_gives_the_same_ids_on_corpus_and_random_strings(
    any_tokenizer: Tokenizer, stdlib_files: list[Path], unicode_strings: list[str]
):
    if any_tokenizer.pattern not in ("gpt2", "cl100k_base"):
        pytest.skip("tiktoken drops the text between a regex's matches")
    peer = oracles.tiktoken_of(any_tokenizer)
    texts = [*(path.read_text("utf-8") for path in stdlib_files), *filter(is_assigned, unicode_strings)]
    got = any_tokenizer.encode_batch(texts, allowed_special="all").to_list()
    for text, ids in zip(texts, got, strict=True):
        assert ids == peer.encode(text, allowed_special="all"), text[:80]


def test_adversarial_texts_agree_with_the_peers(any_tokenizer, hugging_face, adversarial: dict[str, str | bytes]):
    has_peer = any_tokenizer.pattern in ("gpt2", "cl100k_base")
    peer = oracles.tiktoken_of(any_tokenizer) if has_peer else None
    n_compared = 0
    for name, case in adversarial.items():
        if isinstance(case, bytes) or not is_assigned(case[:5000]):
            continue  # bytes are compared with the textbook in test_tokenizer.py
        ids = any_tokenizer.encode(case, allowed_special="all")
        assert any_tokenizer.decode(ids) == case, name
        short = case[:LONG]
        ids = any_tokenizer.encode(short, allowed_special="all")
        assert ids == hugging_face.encode(short, add_special_tokens=False).ids, name
        if peer is not None:
            assert ids == peer.encode(short, allowed_special="all"), name
        n_compared += 1
    assert n_compared >= 95


# ── theirs, read by us ──


@pytest.mark.parametrize("specials", [[], ["<|endoftext|>", "<|x|>"]])
def test_a_tokenizer_trained_by_hugging_face_gives_the_same_ids(
    specials: list[str], stdlib_files: list[Path], unicode_strings: list[str], tmp_path: Path
):
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train([str(path) for path in stdlib_files], trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert ours.vocab_size == theirs.get_vocab_size() and ours.pattern == "gpt2"
    texts = [*(path.read_text("utf-8") for path in stdlib_files), *filter(is_assigned, unicode_strings)]
    expected = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)]
    assert ours.encode_batch(texts, allowed_special="all").to_list() == expected


def test_a_file_survives_reading_and_writing(any_tokenizer: Tokenizer, tmp_path: Path):
    any_tokenizer.save(tmp_path / "a.json")
    again = Tokenizer.from_file(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert again == any_tokenizer
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".warm")  # words for the cache, beside it
    assert names == ["a.json", "b.json"]


def test_a_folder_with_a_tokenizer_json_is_a_tokenizer(gpt2_like: Tokenizer, tmp_path: Path):
    gpt2_like.save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(tmp_path) == gpt2_like


def test_a_tiktoken_file_needs_a_pattern_and_gives_the_same_ids(gpt2_like: Tokenizer, tmp_path: Path):
    path = tmp_path / "mine.tiktoken"
    ranks = oracles.tiktoken_of(gpt2_like)._mergeable_ranks
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    with pytest.raises(ValueError, match="pattern"):
        Tokenizer.from_file(path)
    ours = Tokenizer.from_file(path, pattern="gpt2")
    text = Path(json.__file__).read_text("utf-8")
    assert ours.encode_ordinary(text) == gpt2_like.encode_ordinary(text)


def _tiktoken_file(test_data: Path, name: str, folder: Path) -> Path:
    path = folder / f"{name}.tiktoken"
    path.write_bytes(gzip.decompress((test_data / f"{name}.tiktoken.gz").read_bytes()))
    return path


def test_published_vocabularies_give_the_golden_ids(test_data: Path, gpt2: Tokenizer, tmp_path: Path):
    cl100k = Tokenizer.from_file(_tiktoken_file(test_data, "cl100k_base", tmp_path))
    assert cl100k.vocab_size == 100_277 and cl100k.eot_id == 100_257 and cl100k.pattern == "cl100k_base"
    lines = (test_data / "golden_input.txt").read_text("utf-8").split("\n")
    for tok, name in ((gpt2, "gpt2"), (cl100k, "cl100k_base")):
        golden = gzip.decompress((test_data / f"golden_ids_{name}.txt.gz").read_bytes()).decode().split("\n")
        for line, ids in zip(lines, golden, strict=False):
            assert tok.encode_ordinary(line) == [int(i) for i in ids.replace(",", " ").split()], line[:60]


def test_published_vocabularies_give_tiktokens_digests(
    test_data: Path, gpt2: Tokenizer, adversarial: dict[str, str | bytes], tmp_path: Path
):
    golden = json.loads((test_data / "golden_tiktoken.json").read_text("utf-8"))
    cl100k = Tokenizer.from_file(_tiktoken_file(test_data, "cl100k_base", tmp_path))
    texts = {name: case for name, case in adversarial.items() if isinstance(case, str)}
    for name in ("tinyshakespeare.txt", "multi_sample.txt", "golden_input.txt"):
        texts[name] = (test_data / name).read_bytes().decode()
    n_compared = 0
    for name, text in texts.items():
        expected = golden["files"].get(name) or golden["adversarial"].get(name, {})
        for tok, peer in ((gpt2, "gpt2"), (cl100k, "cl100k_base")):
            if "sha256" not in expected.get(peer, {}):
                continue  # tiktoken itself gave up on this one
            ids = tok.encode_batch([text]).ids.astype("<u4")
            got = {"tokens": len(ids), "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}
            assert got == expected[peer], (name, peer)
            n_compared += 1
    assert n_compared >= 200


LENGTHS = {
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    },
}  # fmt: skip


@pytest.mark.parametrize("names", [["truncation"], ["padding"], ["truncation", "padding"]])
def test_lengths_in_a_tokenizer_json_are_kept_and_encode_leaves_them_to_the_caller(
    gpt2_like: Tokenizer, tmp_path: Path, names: list[str]
):
    file = json.loads(gpt2_like.to_json()) | {name: LENGTHS[name] for name in names}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(file))
    assert (theirs.truncation is not None) == ("truncation" in names)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.warns(
        UserWarning, match=f"asks for {' and '.join(names)}, which as_hf\\(\\) applies.*hint: "
    ) as warned:
        read = Tokenizer.from_file(tmp_path)
    assert len(warned) == 1 and warned[0].filename == __file__
    with pytest.warns(UserWarning, match=names[0]):
        assert Tokenizer.from_json(json.dumps(file)) == read == gpt2_like
    texts = ["neither cut nor filled", "a", "cut to a few ids and filled up to as many as the longest"]
    batches = [view.encode_batch(texts) for view in (read.as_hf(), theirs)]
    assert [one.ids for one in batches[0]] == [one.ids for one in batches[1]]
    theirs.no_truncation()
    theirs.no_padding()
    text = "neither cut nor filled, whatever the file says"
    assert read.encode(text) == theirs.encode(text).ids
    assert {name: json.loads(read.to_json())[name] for name in LENGTHS} == {name: file[name] for name in LENGTHS}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_that_hugging_face_refuses_are_refused(gpt2_like: Tokenizer, name: str):
    for field in set(LENGTHS[name]) - {"pad_to_multiple_of"} - ({"direction"} if name == "truncation" else set()):
        file = json.loads(gpt2_like.to_json()) | {name: {k: v for k, v in LENGTHS[name].items() if k != field}}
        with pytest.raises(Exception, match="missing field"):
            tokenizers.Tokenizer.from_str(json.dumps(file))
        with pytest.raises(ValueError, match=f"as {name}"):
            Tokenizer.from_json(json.dumps(file))
    for value in ({**LENGTHS["padding"], "pad_to_multiple_of": "8"}, {**LENGTHS["padding"], "pad_id": -1}):
        with pytest.raises(ValueError, match="as padding"):
            Tokenizer.from_json(json.dumps(json.loads(gpt2_like.to_json()) | {"padding": value}))


def test_a_whole_piece_that_an_added_token_is_spelled_like_is_refused():
    file = json.loads(Tokenizer.train_from_iterator(["abab"], 257, special_tokens=[]).to_json())
    file["model"] |= {"ignore_merges": True, "vocab": file["model"]["vocab"] | {"zq": 257}}  # which no merges make
    n = len(file["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file["added_tokens"].append({"id": n, "content": "\u010a\u0120", **flags})
    outside = Tokenizer.from_json(json.dumps(file))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(file))
    assert n not in theirs.encode("\n ").ids and outside.encode("\n ") == theirs.encode("\n ").ids
    with pytest.raises(ValueError, match="would be read as an ordinary token as well"):
        outside.to_json()  # which writes special tokens into the model's vocabulary
    file["model"]["vocab"]["\u010a\u0120"] = n
    assert tokenizers.Tokenizer.from_str(json.dumps(file)).encode("\n ").ids == [n]
    with pytest.raises(ValueError, match=f"has id {n}, which is the ordinary token"):
        Tokenizer.from_json(json.dumps(file))


def test_a_whole_piece_inside_a_word_has_the_id_of_its_added_token_as_in_hugging_face():
    file = json.loads(Tokenizer.train_from_iterator(["abab"], 257, special_tokens=[]).to_json())
    file["model"] |= {"ignore_merges": True, "vocab": file["model"]["vocab"] | {"zq": 257}}  # which no merges make
    n = len(file["model"]["vocab"])
    flags = {"single_word": True, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file["added_tokens"] = [{"id": n, "content": "xy", **flags}]
    with pytest.raises(ValueError, match="would be read as an ordinary token as well"):
        Tokenizer.from_json(json.dumps(file)).to_json()
    file["model"]["vocab"]["xy"] = n
    ours, theirs = Tokenizer.from_json(json.dumps(file)), tokenizers.Tokenizer.from_str(json.dumps(file))
    for text in ("xy", "1xy", "_xy xy", "xyz"):  # digits and letters are pieces of their own
        assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids
    assert n in theirs.encode("1xy").ids and Tokenizer.from_json(ours.to_json()) == ours


def test_a_file_that_does_not_hold_all_of_a_tokenizer_says_so(gpt2_like: Tokenizer, tmp_path: Path):
    end = gpt2_like.special_tokens["<|endoftext|>"]
    with pytest.warns(UserWarning, match=rf"special tokens .\"<.endoftext.>\": {end}.*hint: save tokenizer.json"):
        gpt2_like.save(tmp_path / "mine.tiktoken")
    assert Tokenizer.from_file(tmp_path / "mine.tiktoken", pattern="gpt2").special_tokens == {}
    form = json.loads(gpt2_like.to_json()) | {"normalizer": {"type": "NFC"}}
    composed = Tokenizer.from_json(json.dumps(form))
    with pytest.warns(UserWarning, match="and the normalizer NFC"):
        composed.save(tmp_path / "mine.tiktoken")
    with pytest.warns(UserWarning, match="does not hold the normalizer NFC"):
        composed.save(tmp_path / "merges.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composed.save(tmp_path / "tokenizer.json")
        gpt2_like.save(tmp_path / "merges.txt")
        Tokenizer.train_from_iterator(["abab"], 257, special_tokens=[]).save(tmp_path / "plain.tiktoken")
    assert Tokenizer.from_file(tmp_path / "merges.txt").special_tokens == gpt2_like.special_tokens


def test_an_added_token_has_the_number_that_hugging_face_gives_it_or_is_refused(gpt2_like: Tokenizer):
    file = json.loads(gpt2_like.to_json())
    n = len(file["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for ids in ([n, n + 1], [n + 1, n], [n, n + 2], [n + 3]):
        own = {f"<{i}>": number for i, number in enumerate(ids)}
        new = [{"id": number, "content": text, **flags} for text, number in own.items()]
        text = json.dumps(file | {"added_tokens": file["added_tokens"] + new})
        theirs = tokenizers.Tokenizer.from_str(text)
        if all(theirs.token_to_id(name) == number for name, number in own.items()):
            assert Tokenizer.from_json(text).special_tokens.items() >= own.items()
        else:
            with pytest.raises(ValueError, match=r"has id \d+, but Hugging Face makes it \d+.*hint: "):
                Tokenizer.from_json(text)


def test_a_class_of_ascii_that_is_one_of_unicode_for_hugging_face_is_refused(gpt2_like: Tokenizer):
    file = json.loads(gpt2_like.to_json())
    for regex in ("[[:punct:]]", "[^[:alpha:]]+"):
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        steps = [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
        file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        with pytest.raises(ValueError, match=r"\[:name:\] has ASCII alone here"):
            Tokenizer.from_json(json.dumps(file))
