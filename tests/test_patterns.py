"""The named patterns cut text as their authors' engines do: tiktoken's regex crate and Hugging Face's Oniguruma."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, pre_tokenizers

import oracles
from conftest import is_assigned
from gptrs import Tokenizer
from gptrs.inspect import trace

NAMES = ("gpt2", "cl100k_base", "o200k_base", "llama3", "qwen2", "deepseek-v3", "nanochat")

# As the model's own tokenizer.json has them.
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, stdlib_files: list[Path]) -> Tokenizer:
    """A small vocabulary over each pattern in turn."""
    texts = (path.read_bytes() for path in stdlib_files[:10])
    return Tokenizer.train_from_iterator(texts, 600, pattern=request.param)


@pytest.fixture(scope="module")
def texts(stdlib_files: list[Path], unicode_strings: list[str]) -> list[str]:
    marks = [
        "a\n  ",
        "a \r\n\r\n b",
        "'\u017fx I'LL",
        "HTTPServer's//\n/x",
        "東京・アa  1",
        "\0\0a",
        "e\u0301'S",
        "が\u3099ー12345",
    ]
    return [*marks, *filter(is_assigned, unicode_strings), *(path.read_text("utf-8") for path in stdlib_files[:3])]


def pieces(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> Iterator[bytes]:
    for _, (start, end) in pre_tokenizer.pre_tokenize_str(text):
        yield text[start:end].encode()


def test_hugging_face_cuts_as_we_do(tokenizer: Tokenizer, texts: list[str]):
    peer = tokenizers.Tokenizer.from_str(tokenizer.to_json()).pre_tokenizer
    for text in texts:
        assert [piece.data for piece in trace(tokenizer, text)] == list(pieces(peer, text)), text[:80]


def test_hugging_face_and_tiktoken_give_the_same_ids(tokenizer: Tokenizer, texts: list[str]):
    tiktoken = oracles.tiktoken_of(tokenizer)
    hugging_face = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    got = tokenizer.encode_batch(texts, allowed_special="all").to_list()
    assert got == [e.ids for e in hugging_face.encode_batch(texts, add_special_tokens=False)]
    assert got == tiktoken.encode_batch(texts, num_threads=1, allowed_special="all")


def test_deepseeks_three_cuts_are_the_one_scanner(stdlib_files: list[Path], texts: list[str]):
    tokenizer = Tokenizer.train_from_iterator([stdlib_files[0].read_bytes()], 300, pattern="deepseek-v3")
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in DEEPSEEK]
    peer = pre_tokenizers.Sequence(splits)
    for text in texts:
        assert [piece.data for piece in trace(tokenizer, text)] == list(pieces(peer, text)), text[:80]


def test_a_name_survives_the_file(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert again == tokenizer and again.pattern == tokenizer.pattern and again.pattern in NAMES
