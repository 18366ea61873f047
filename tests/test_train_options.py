"""Options of training: Hugging Face's merges and ids, limits, a base to go on from, merges across spaces."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HuggingFace

import oracles
from gptrs import Tokenizer, trainer

SPECIAL = ["<|endoftext|>", "<pad>"]
SCRIPTS = (
    "Größe naïve 日本語のテキスト、한국어 文字。 Ελληνικά русский текст עברית हिन्दी 👩🏽‍🚀 ½ ٣ don't I'LL\r\n\n  x\t"
)


def few_letters(n: int) -> str:
    """Text over few letters: equal counts and runs everywhere."""
    draw = random.Random(n)
    return "".join(draw.choices("aab é~\n日", k=n))


@pytest.fixture(scope="module")
def corpora(stdlib_files: list[Path]) -> dict[str, list[str]]:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 9))) for _ in range(300)]
    return {
        "code": [path.read_text("utf-8") for path in stdlib_files[:10]],
        "scripts": [SCRIPTS * 3, SCRIPTS[::-1], SCRIPTS[5:60]],
        "ties": [few_letters(n) for n in (1, 40, 300, 2000)],
        "words": [" ".join(draw.choices(words, k=5000))],
    }


def hugging_face(texts: list[str], vocab_size: int, regex: str | None = None, **options: int) -> HuggingFace:
    tokenizer = HuggingFace(models.BPE())
    if regex is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(regex), "isolated")
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, **options
    )
    tokenizer.train_from_iterator(texts, learner)
    return tokenizer


def assert_same_model(ours: Tokenizer, theirs: HuggingFace) -> None:
    a, b = json.loads(ours.to_json())["model"], json.loads(theirs.to_str())["model"]
    assert a["merges"] == b["merges"]
    assert a["vocab"] == b["vocab"]


# ── tie="hf" ──


@pytest.mark.filterwarnings("ignore:the corpus")
@pytest.mark.parametrize("name", ["code", "scripts", "ties", "words"])
@pytest.mark.parametrize("min_count", [0, 2])
def test_merges_and_ids_are_those_of_hugging_face(corpora: dict[str, list[str]], name: str, min_count: int):
    texts = corpora[name]
    for vocab_size in (258, 300, 1500):
        theirs = hugging_face(texts, vocab_size, min_frequency=min_count)
        ours = Tokenizer.train_from_iterator(
            texts, vocab_size, tie="hf", min_count=min_count, special_tokens=SPECIAL, threads=2
        )
        assert_same_model(ours, theirs)
        assert ours.special_tokens == {"<|endoftext|>": 0, "<pad>": 1}
    for text in texts:
        assert ours.encode_ordinary(text) == theirs.encode(text).ids


@pytest.mark.filterwarnings("ignore:the corpus")
@pytest.mark.parametrize("name", ["code", "scripts", "ties"])
@pytest.mark.parametrize("longest", [2, 3, 4, 7, 15])
def test_the_length_limit_is_hugging_faces_one_less(corpora: dict[str, list[str]], name: str, longest: int):
    theirs = hugging_face(corpora[name], 900, max_token_length=longest + 1, min_frequency=0)
    options = {"tie": "hf", "special_tokens": SPECIAL, "max_token_bytes": longest}
    ours = Tokenizer.train_from_iterator(corpora[name], 900, **options)
    assert_same_model(ours, theirs)
    tokens = [ours.id_to_token(i) for i in range(2, ours.vocab_size)]
    assert max(len(token) for token in tokens if token is not None) == longest


def test_another_pattern_ties_alike(corpora: dict[str, list[str]], cl100k_like: Tokenizer):
    regex = json.loads(cl100k_like.to_json())["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    theirs = hugging_face(corpora["code"], 1000, regex, min_frequency=0)
    ours = Tokenizer.train_from_iterator(corpora["code"], 1000, pattern="cl100k_base", tie="hf", special_tokens=SPECIAL)
    assert_same_model(ours, theirs)


def test_the_two_ties_differ_where_counts_are_equal():
    ours, theirs = (
        Tokenizer.train_from_iterator([" a", "ab"], 258, tie=tie, special_tokens=[]) for tie in ("id", "hf")
    )
    assert [ours.id_to_token(i) for i in (256, 257)] == [b" a", b"ab"]
    assert [theirs.id_to_token(i) for i in (256, 257)] == [b"ab", b" a"]
    assert [theirs.id_to_token(i) for i in (0, 1, 255)] == [b"!", b'"', b"\xad"]


# ── going on ──


def test_going_on_from_a_tokenizer_keeps_its_ids(corpora: dict[str, list[str]], tmp_path: Path):
    base = Tokenizer.train_from_iterator(corpora["code"], 600)
    more = Tokenizer.train_from_iterator(
        corpora["scripts"], 700, base=base, special_tokens=["<|endoftext|>", "<|user|>"]
    )
    assert [more.id_to_token(i) for i in range(600)] == [base.id_to_token(i) for i in range(600)]
    assert more.special_tokens == {"<|endoftext|>": 599, "<|user|>": 699} and more.pattern == base.pattern
    model, old = (json.loads(tokenizer.to_json())["model"]["merges"] for tokenizer in (more, base))
    assert model[: len(old)] == old and len(model) == len(old) + 99
    for text in (*corpora["scripts"], corpora["code"][0][:3000]):
        assert more.encode_ordinary(text) == oracles.encode(more, text.encode())
        assert more.encode_ordinary(text) == HuggingFace.from_str(more.to_json()).encode(text).ids
    more.save(tmp_path / "tokenizer.json")
    again = Tokenizer.train_from_iterator(
        corpora["scripts"], 710, base=Tokenizer.from_file(tmp_path / "tokenizer.json")
    )
    assert again.id_to_token(699) == b"<|user|>"


def test_going_on_with_the_same_text_is_training_at_once(corpora: dict[str, list[str]]):
    texts = corpora["code"]
    base = Tokenizer.train_from_iterator(texts, 700, special_tokens=[])
    assert Tokenizer.train_from_iterator(texts, 1100, base=base, special_tokens=[]) == Tokenizer.train_from_iterator(
        texts, 1100, special_tokens=[]
    )


def test_a_base_brings_its_normalizer(corpora: dict[str, list[str]], tmp_path: Path):
    file = json.loads(Tokenizer.train_from_iterator(corpora["code"], 400, special_tokens=[]).to_json())
    base = Tokenizer.from_json(json.dumps({**file, "normalizer": {"type": "NFC"}}))
    text = "cafe\u0301 " * 50
    more = Tokenizer.train_from_iterator([text], 405, base=base, special_tokens=[])
    composed = Tokenizer.train_from_iterator([text.replace("e\u0301", "\u00e9")], 405, base=base, special_tokens=[])
    assert more == composed and more.encode(text) == HuggingFace.from_str(more.to_json()).encode(text).ids
    assert any("\u00e9".encode() in (more.id_to_token(i) or b"") for i in range(400, 405))
    for pattern in ("r50k", "llama3"):  # another name of the base's pattern, and another pattern
        other = Tokenizer.train_from_iterator([text], 405, base=base, special_tokens=[], pattern=pattern)
        assert other.normalizer == "NFC"
        assert other.encode(text) == HuggingFace.from_str(other.to_json()).encode(text).ids
    (tmp_path / "a.txt").write_text(text)
    trainer.count(tmp_path / "a.txt", tmp_path / "a.gtc")
    with pytest.raises(ValueError, match=r"the form NFC first; hint: train on the files"):
        Tokenizer.train_from_counts(tmp_path / "a.gtc", 405, base=base)


def test_a_base_brings_how_its_special_tokens_are_found_and_its_template(corpora: dict[str, list[str]]):
    tok = Tokenizer.train_from_iterator(corpora["code"], 400, special_tokens=["<s>"])
    peer = HuggingFace.from_str(tok.to_json())
    peer.add_tokens([AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("tool", single_word=True)])
    peer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 399)]
    )
    base = Tokenizer.from_json(peer.to_str())
    more = Tokenizer.train_from_iterator(corpora["code"], 450, base=base, special_tokens=["<new>"])
    again = HuggingFace.from_str(more.to_json())
    text = "a  <mask> tools tool<new>"
    assert more.encode(text, allowed_special="all") == again.encode(text, add_special_tokens=False).ids
    assert more.encode("a  <mask>", allowed_special="all") == [97, 400]
    assert again.encode("a").ids == [399, 97] and again.decode([400, 401, 399]) == peer.decode([400, 401, 399])
    old, new = (json.loads(tokenizer.to_json())["added_tokens"] for tokenizer in (base, more))
    assert new[:-1] == old and new[-1]["content"] == "<new>"


# ── merges across spaces ──


def test_merges_may_cross_spaces_after_the_transition(tmp_path: Path):
    text = "by the way, it's at the end of the day.\nBy the way it is at the end of the line!\n" * 40
    whole = Tokenizer.train_from_iterator([text], 290, superbpe_from=275, special_tokens=[])
    first = Tokenizer.train_from_iterator([text], 275, special_tokens=[])
    assert [whole.id_to_token(i) for i in range(275)] == [first.id_to_token(i) for i in range(275)]
    tokens = [whole.id_to_token(i) for i in range(275, 290)]
    assert any(token.strip().count(b" ") >= 2 for token in tokens if token)
    assert all(b" " not in token[1:].strip(b" ") for i in range(275) if (token := first.id_to_token(i)))
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert Tokenizer.train(path, 290, superbpe_from=275, special_tokens=[], threads=2) == whole
    assert len(whole.encode(text)) < len(first.encode(text))
    for case in (text, SCRIPTS, "it's'll  the way by the"):
        assert whole.decode(whole.encode(case)) == case
        assert whole.encode(case) == oracles.encode(whole, case.encode())
        assert whole.encode(case) == HuggingFace.from_str(whole.to_json()).encode(case).ids


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k_base", "llama3", "qwen2", "nanochat"])
def test_runs_of_any_text_equal_the_textbook(corpora: dict[str, list[str]], pattern: str):
    whole = Tokenizer.train_from_iterator(corpora["code"], 900, superbpe_from=600, pattern=pattern)
    assert Tokenizer.from_json(whole.to_json()) == whole
    for text in (corpora["code"][1][:5000], *corpora["scripts"], few_letters(500)):
        assert whole.encode_ordinary(text) == oracles.encode(whole, text.encode())


# ── special tokens and bad input ──


def test_a_special_token_may_begin_another_and_the_longest_wins():
    tok = Tokenizer.train_from_iterator(["ab"], 259, special_tokens=["<|a", "<|a|>"])
    assert tok.encode("<|a|><|a|", allowed_special="all") == [258, 257, ord("|")]


def test_no_merge_spells_a_special_token():
    for options in ({}, {"tie": "hf"}, {"superbpe_from": 260}):
        with pytest.warns(UserWarning, match="pairs for a vocabulary"):
            tok = Tokenizer.train_from_iterator(["user user users"], 300, special_tokens=["user"], **options)
        special = tok.special_tokens["user"]
        assert special not in tok.encode_ordinary("user users")
        assert tok.encode("user", allowed_special="all") == [special]


BASE = Tokenizer.train_from_iterator(["abab"], 258)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocab_size": 256}, r"at least 257 \(256 bytes and 1 special tokens\), got 256; hint: use vocab_size=257"),
        ({"vocab_size": -1}, "vocab_size must be 0 to"),
        ({"vocab_size": 1 << 40}, "vocab_size must be 0 to"),
        ({"special_tokens": ["<a>", "<a>"]}, '"<a>" has ids'),
        ({"special_tokens": ["a"]}, '"a" .*also the ordinary token 97'),
        ({"special_tokens": [""]}, "is empty"),
        ({"special_tokens": "<a>"}, "expected a list of special tokens"),
        ({"max_token_bytes": 1}, "max_token_bytes must be at least 2, got 1"),
        ({"max_token_bytes": -2}, "max_token_bytes must be 0 to"),
        ({"tie": "rank"}, 'tie must be "id" or "hf", got "rank"'),
        ({"base": BASE, "tie": "hf"}, "decide ties"),
        ({"base": BASE, "vocab_size": 257}, "at least 258 .258 ids of the base and 0 special tokens., got 257"),
        ({"base": BASE, "superbpe_from": 260}, "superbpe_from does not go with a base"),
        ({"superbpe_from": 256}, "superbpe_from must be 257"),
        ({"superbpe_from": 301}, "to vocab_size=300, got 301"),
        ({"superbpe_from": 280, "tie": "hf"}, 'goes with tie="id" only'),
        ({"superbpe_from": 280, "pattern": r"\w+"}, r"words are runs of letters, got .*hint: use"),
        ({"min_count": -1}, "min_count must be"),
        ({"held_out": 0.1}, "expected report=FILE beside it"),
        ({"report": "missing/report.html"}, "folder that exists"),
        ({"report": "report.pdf"}, r"\.html or \.json"),
        ({"report": "report.html", "held_out": 0.1}, "held_out must be files for an iterator"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(options: dict[str, object], says: str):
    def texts():
        raise AssertionError("no text is read")
        yield ""

    options = {"vocab_size": 300, **options}
    with pytest.raises(ValueError, match=says):
        Tokenizer.train_from_iterator(texts(), **options)


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match=r"expected options of training .*got 'vocabulary'"):
        Tokenizer.train_from_iterator(["a"], 300, vocabulary=3)


def test_a_name_that_is_no_patterns_name_is_no_expression(tmp_path: Path):
    """As one it would cut that word alone out of the text, and merges would cross everything else."""
    wanted = r'expected a pattern\'s name \(gpt2, .*\) or a regular expression, got "gpt-2"; hint: \(\?:gpt-2\)'
    (tmp_path / "a.txt").write_text("one gpt-2 two " * 9)
    with pytest.raises(ValueError, match=wanted):
        Tokenizer.train_from_iterator(["one two"], 300, pattern="gpt-2")
    with pytest.raises(ValueError, match=wanted):
        trainer.count(tmp_path / "a.txt", tmp_path / "a.gtc", pattern="gpt-2")
    tok = Tokenizer.train(tmp_path / "a.txt", 260, pattern="(?:gpt-2)", special_tokens=[])
    tok.save(tmp_path / "a.tiktoken")
    with pytest.raises(ValueError, match=wanted):
        Tokenizer.from_file(tmp_path / "a.tiktoken", pattern="gpt-2")
    # What a file says stays what it says.
    file = tok.to_json().replace("(?:gpt-2)", "gpt-2")
    assert Tokenizer.from_json(file).pattern == "gpt-2"


def test_arguments_of_another_kind_are_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one two")
    with pytest.raises(TypeError, match=r"expected a Tokenizer as base, got 'a.json'; hint: .*from_file"):
        Tokenizer.train_from_iterator(["one"], 300, base="a.json")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"held_out must be files or a fraction between 0 and 1, got 1"):
        Tokenizer.train(tmp_path / "a.txt", 300, held_out=1, report=tmp_path / "r.json")
    with pytest.raises(ValueError, match=r"threads must be 0 \(all cores\) or more, got -1"):
        trainer.count(tmp_path / "a.txt", tmp_path / "a.gtc", threads=-1)
