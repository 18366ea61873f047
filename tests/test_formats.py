"""Files in the styles of published models, trained and saved by Hugging Face's tokenizers: the same ids from both."""

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from conftest import is_assigned
from gptrs import Tokenizer

# As the models' own files spell them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
# What normal forms change: composed and decomposed letters, marks out of order, Hangul, singletons, new characters.
DENORMAL = (
    "e\u0301 a\u0323\u0307 a\u0307\u0323 \u1112\u1161\u11ab \u212b\u2126\u037e \u0958 \ufb01 ² \u09c7\u09be = \u0338"
)


def split(regex: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(regex), behavior, invert)


def spelled() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def sequence(*steps: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*steps, spelled()])


def gpt2_step() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# Style → pre-tokenizer, normalizer, and the pattern that we find in it (None: a chain of steps).
STYLES: dict[
    str, tuple[Callable[[], pre_tokenizers.PreTokenizer], Callable[[], normalizers.Normalizer] | None, str | None]
]
STYLES = {
    "gpt2": (gpt2_step, None, "gpt2"),
    "llama3": (lambda: sequence(split(LLAMA3)), None, "llama3"),
    "qwen2": (lambda: sequence(split(QWEN2)), normalizers.NFC, "qwen2"),
    "qwen3.5": (lambda: sequence(split(QWEN35)), normalizers.NFC, QWEN35),
    "deepseek": (lambda: sequence(*map(split, DEEPSEEK)), lambda: normalizers.Sequence([]), "deepseek-v3"),
    "starcoder": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), gpt2_step()]), None, None),
    "digit runs": (lambda: sequence(pre_tokenizers.Digits(False), split(r"\s+", "merged_with_next")), None, None),
    "kept": (lambda: sequence(split(r"\S+", "contiguous", True), split(r"\d", "merged_with_previous")), None, None),
    "text": (lambda: sequence(pre_tokenizers.Split(".", "isolated"), split(QWEN2)), normalizers.NFKC, None),
    "removed": (lambda: sequence(split(LLAMA3, "removed", True)), None, "llama3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(stdlib_files: list[Path], unicode_strings: list[str]) -> list[str]:
    """Source text, random strings, and text that is not normal."""
    draw = random.Random(3)
    marks = [c for c in map(chr, range(0x300, 0x370)) if unicodedata.combining(c)]
    denormal = ["".join(draw.choices([*DENORMAL, *marks, *"aeiou "], k=12)) for _ in range(1000)]
    decomposed = [unicodedata.normalize("NFD", text) for text in unicode_strings[:2000]]
    files = [path.read_text("utf-8") for path in stdlib_files[:30]]
    return [*files, DENORMAL, *filter(is_assigned, [*unicode_strings[::2], *denormal, *decomposed])]


def trained(style: str, files: list[Path], size: int = 1200) -> tokenizers.Tokenizer:
    """A vocabulary of that style, trained by Hugging Face."""
    pre_tokenizer, normalizer, _ = STYLES[style]
    peer = tokenizers.Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    peer.pre_tokenizer = pre_tokenizer()
    peer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        peer.normalizer = normalizer()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    peer.train_from_iterator([*(path.read_text("utf-8") for path in files[:20]), DENORMAL * 20], trainer)
    return peer


def ours(peer: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    peer.save(str(folder / "theirs.json"))
    return Tokenizer.from_file(folder / "theirs.json")


def assert_same(peer: tokenizers.Tokenizer, tok: Tokenizer, texts: list[str]) -> None:
    expected = [encoding.ids for encoding in peer.encode_batch(texts, add_special_tokens=False)]
    got = tok.encode_batch(texts, allowed_special="all").to_list()
    wrong = [(text, a, b) for text, a, b in zip(texts, got, expected, strict=True) if a != b]
    assert wrong == []


@pytest.mark.parametrize("style", STYLES)
def test_a_file_in_a_models_style_gives_the_same_ids_and_survives_our_writing(
    style: str, stdlib_files: list[Path], texts: list[str], tmp_path: Path
):
    peer = trained(style, stdlib_files)
    peer.add_special_tokens(["<|begin|>", "<|end|>"])
    peer.add_tokens(["<think>", AddedToken("tool", single_word=True)])
    tok = ours(peer, tmp_path)
    pattern = STYLES[style][2]
    assert tok.pattern == pattern or (pattern is None and tok.pattern.startswith("{"))
    special = ["<|begin|>a <think>b</think> tool tools (tool)<|end|>", "tool", "x<think>"]
    assert_same(peer, tok, [*texts, *special])
    tok.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert again == tok
    assert_same(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), again, [*texts[25:2000], *special])


@pytest.mark.parametrize("regex", [r"\w+|[^\w\s]+|\s+", r"\W+|\w+", r"\b[\w.]+\b|\B."])
def test_words_are_those_of_the_engine_that_a_pattern_is_for(regex: str, tmp_path: Path):
    draw = random.Random(2)
    words = ["".join(draw.choices("ab9_²³¹¼½¾\u200c\u200dمی-. ", k=12)) for _ in range(3000)]
    for step in (split(regex), split(regex, "merged_with_next")):  # the second as a chain
        peer = tokenizers.Tokenizer(models.BPE())
        peer.pre_tokenizer, peer.decoder = sequence(step), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        peer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
        theirs = ours(peer, tmp_path)
        assert_same(peer, theirs, words)
        theirs.save(tmp_path / "again.json")
        assert (
            json.loads((tmp_path / "again.json").read_text())["pre_tokenizer"]
            == json.loads(peer.to_str())["pre_tokenizer"]
        )

    own = Tokenizer.train_from_iterator(words, 600, pattern=regex)
    own.save(tmp_path / "own.json")
    assert_same(tokenizers.Tokenizer.from_file(str(tmp_path / "own.json")), own, words)
    again = Tokenizer.from_file(tmp_path / "own.json")
    assert again == own and again.pattern == regex
    assert r"\\x{200C}" in (tmp_path / "own.json").read_text(), "spelled out for the other engine"


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_a_normal_form_is_that_of_hugging_face_for_every_character(form: str, gpt2_like: Tokenizer):
    file = json.loads(gpt2_like.to_json())
    file["normalizer"] = {"type": form}
    tok = Tokenizer.from_json(json.dumps(file))
    peer = getattr(normalizers, form)()
    scalars = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    draw = random.Random(5)
    known = [c for c in scalars if unicodedata.normalize(form, c) != c or unicodedata.combining(c)]
    pairs = ["".join(draw.choices([*known, *"aeio\u1100\u1161"], k=4)) for _ in range(50_000)]
    new = [
        "\U000105d2\u0307",
        "\U00016d67\U00016d67",
        "\U00011382\U000113c9",
        "a\u1acf\u0323",
        "\u32ff",
        "e\u1ac1\u0301",
    ]
    for text in ["x".join(scalars), *pairs, *new]:
        assert tok.normalize(text).decode() == peer.normalize_str(text), text[:20].encode("unicode_escape")
    assert tok.normalizer == form and tok != gpt2_like


def test_old_and_new_merges_give_the_same_tokenizer(stdlib_files: list[Path], tmp_path: Path):
    tok = ours(trained("gpt2", stdlib_files), tmp_path)
    file = json.loads(tok.to_json())
    file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
    assert Tokenizer.from_json(json.dumps(file)) == tok


FLAGS = [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"lstrip": True, "rstrip": True}]


@pytest.mark.parametrize("style", ["gpt2", "qwen2"])
@pytest.mark.parametrize("normalized", [False, True])
def test_added_tokens_are_found_as_hugging_face_finds_them(
    style: str, normalized: bool, stdlib_files: list[Path], tmp_path: Path
):
    peer = trained(style, stdlib_files)
    names = ["<a>", "<b>", "éa", "word", "<<a>"]
    for i, (name, flags) in enumerate(zip(names, FLAGS, strict=True)):
        peer.add_tokens([AddedToken(name, normalized=normalized and i % 2 == 0, special=i % 2 == 1, **flags)])
    peer.add_special_tokens([AddedToken("a><", normalized=False)])
    tok = ours(peer, tmp_path)
    draw = random.Random(9)
    parts = [
        *names,
        "a><",
        "<",
        ">",
        " ",
        "  ",
        "\u3000",
        "\n",
        "_",
        "e\u0301a",
        "e",
        "\u0301",
        "x",
        "9",
        "wordy",
        "本",
    ]
    texts = ["".join(draw.choices(parts, k=draw.randint(1, 9))) for _ in range(20_000)]
    assert_same(peer, tok, texts)


def test_pieces_that_are_tokens_skip_the_merges_where_the_file_says_so(stdlib_files: list[Path], tmp_path: Path):
    """As in Llama 3's file, where several hundred tokens cannot be reached by merges."""
    peer = trained("llama3", stdlib_files)
    file = json.loads(peer.to_str())
    assert file["model"]["ignore_merges"] is True
    n_removed = 0
    for i in range(len(file["model"]["merges"]) - 1, 0, -7):
        pair = file["model"]["merges"][i]
        if not any("".join(pair) in other for other in file["model"]["merges"]):
            del file["model"]["merges"][i]
            n_removed += 1
    assert n_removed > 20
    texts = [path.read_text("utf-8") for path in stdlib_files[:20]]
    counts = []
    for ignore in (True, False):
        file["model"]["ignore_merges"] = ignore
        peer, tok = tokenizers.Tokenizer.from_str(json.dumps(file)), Tokenizer.from_json(json.dumps(file))
        assert_same(peer, tok, texts)
        counts.append(len(tok.encode_batch(texts).ids))
    assert counts[0] < counts[1]


def test_published_vocabularies_of_other_families_give_their_golden_ids(test_data: Path, tmp_path: Path):
    import gzip

    lines = (test_data / "golden_input.txt").read_text("utf-8").split("\n")
    files = {"o200k_base": "o200k_base", "deepseek_v3": "deepseek_v3.bytes"}
    for name, file in files.items():
        path = tmp_path / f"{name}.tiktoken"
        path.write_bytes(gzip.decompress((test_data / f"{file}.tiktoken.gz").read_bytes()))
        tok = Tokenizer.from_file(path)
        assert tok.pattern == {"o200k_base": "o200k_base", "deepseek_v3": "deepseek-v3"}[name]
        golden = gzip.decompress((test_data / f"golden_ids_{name}.txt.gz").read_bytes()).decode().split("\n")
        for line, ids in zip(lines, golden, strict=False):
            assert tok.encode_ordinary(line) == [int(i) for i in ids.replace(",", " ").split()], line[:60]
        tok.save(tmp_path / "again.json")
        assert Tokenizer.from_file(tmp_path / "again.json") == tok
    harmony = tmp_path / "o200k_harmony.tiktoken"
    harmony.write_bytes((tmp_path / "o200k_base.tiktoken").read_bytes())
    tok = Tokenizer.from_file(harmony)
    assert tok.vocab_size == 201_088 and len(tok.special_tokens) == 1090
    assert tok.encode("<|start|>user<|message|>", allowed_special="all")[::2] == [200_006, 200_008]


def test_a_template_is_written_as_it_was_read(stdlib_files: list[Path], tmp_path: Path):
    peer = trained("llama3", stdlib_files)
    peer.add_special_tokens(["<|begin_of_text|>"])
    begin = ("<|begin_of_text|>", peer.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(f"{begin[0]} $A", f"{begin[0]} $A {begin[0]} $B:1", [begin])
    peer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tok = ours(peer, tmp_path)
    again = tokenizers.Tokenizer.from_str(tok.to_json())
    assert again.encode("one", "two").ids == peer.encode("one", "two").ids
    assert tok.encode("one") == peer.encode("one").ids[1:], "nothing that is not in the text"
