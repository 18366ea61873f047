"""The ids of every named pattern are those of tiktoken and of Hugging Face tokenizers.

Their side is set up from the patterns as their owners publish them, never from ours. With GPTRS_TEST_DATA the four
vocabularies that it has are the published ones; the others, and all of them without it, are trained here.
"""

import base64
import gzip
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers

from conftest import is_assigned
from gptrs import Tokenizer
from random_strings import random_strings

sys.path.append(str(Path(__file__).parent.parent / "benches"))
from corpora import CONTRACTION, SPECIALS, SPLITS, TAIL, TIKTOKEN_PATTERNS, published, tokenizer_json

RUSTBPE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
QWEN2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
LLAMA3 = SPLITS["cl100k_base"][
    0
]  # what Hugging Face's files have for both; tiktoken's cl100k_base ends texts otherwise
TIKTOKEN = {**TIKTOKEN_PATTERNS, "llama3": LLAMA3, "qwen2": QWEN2, "nanochat": RUSTBPE}
HUGGING_FACE = {**SPLITS, "llama3": [LLAMA3], "qwen2": [QWEN2], "nanochat": [RUSTBPE]}
PATTERNS = ("gpt2", "cl100k_base", "o200k_base", "llama3", "qwen2", "deepseek-v3", "nanochat")


@dataclass(frozen=True)
class Engines:
    """One vocabulary in three engines; tiktoken has no way to say deepseek-v3's three patterns."""

    ours: Tokenizer
    tiktoken: tiktoken.Encoding | None
    hugging_face: tokenizers.Tokenizer

    def check(self, texts: list[str]) -> None:
        got = self.ours.encode_batch(texts).to_list()
        peers = {"tokenizers": [e.ids for e in self.hugging_face.encode_batch_fast(texts, add_special_tokens=False)]}
        if self.tiktoken is not None:
            peers["tiktoken"] = self.tiktoken.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)
        for peer, expected in peers.items():
            wrong = [text for text, a, b in zip(texts, got, expected, strict=True) if a != b]
            assert wrong == [], f"{len(wrong)} texts differ from {peer}: {wrong[:3]!r}"


@pytest.fixture(scope="module", params=PATTERNS)
def engines(
    request: pytest.FixtureRequest, stdlib_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Engines:
    name, data = request.param, os.environ.get("GPTRS_TEST_DATA")
    specials: tuple[str, ...] = ()
    if data and name in SPLITS:
        ranks, specials = published(Path(data), name), SPECIALS.get(name, ())
        path = tmp_path_factory.mktemp("ranks") / f"{name}.bytes.tiktoken"
        ascending = sorted(ranks.items(), key=lambda item: item[1])
        path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ascending))
        ours = Tokenizer.from_file(path, pattern=name)
    else:
        texts = (path.read_bytes() for path in stdlib_files)
        ours = Tokenizer.train_from_iterator(texts, 2000, pattern=name, special_tokens=[])
        ranks = {token: i for i in range(2000) if (token := ours.id_to_token(i))}
    peer = None
    if name in TIKTOKEN:
        peer = tiktoken.Encoding(name, pat_str=TIKTOKEN[name], mergeable_ranks=ranks, special_tokens={})
    # At the end of a text Hugging Face's spelling of cl100k_base differs from tiktoken's; ours says what tiktoken says.
    spelt = ours.to_json() if name == "cl100k_base" else json.dumps(tokenizer_json(ranks, HUGGING_FACE[name], specials))
    return Engines(ours, peer, tokenizers.Tokenizer.from_str(spelt))


def batches(n: int, size: int = 20_000) -> Iterator[list[str]]:
    """At least `n` strings whose characters every engine's Unicode has."""
    done, seed = 0, 100
    while done < n:
        texts = [text for text in random_strings(seed, size) if is_assigned(text)]
        yield texts
        done, seed = done + len(texts), seed + 1


def test_20000_random_strings(engines: Engines):
    for texts in batches(20_000):
        engines.check(texts)


@pytest.mark.long
def test_1000000_random_strings(engines: Engines):
    for texts in batches(1_000_000):
        engines.check(texts)


def test_any_bytes_come_back(engines: Engines):
    draw = random.Random(5)
    texts = [draw.randbytes(draw.randint(0, 60)) for _ in range(5_000)]
    texts += [text.encode()[draw.randint(0, 3) : -1] for text in random_strings(6, 5_000)]
    batch = engines.ours.encode_batch(texts)
    for text, ids in zip(texts, batch, strict=True):
        assert engines.ours.decode_bytes(ids) == text
    assert [engines.ours.encode_ordinary(text) for text in texts] == batch.to_list()


@pytest.mark.long
@pytest.mark.parametrize("corpus", ["bench_en", "bench_multi"])
def test_whole_corpora_have_the_ids_of_a_peer(engines: Engines, test_data: Path, corpus: str):
    import zstandard

    packed = (test_data / f"{corpus}.txt.zst").read_bytes()
    text = zstandard.ZstdDecompressor().stream_reader(packed).read().decode()
    lines = text.splitlines(keepends=True)
    documents = ["".join(lines[start : start + 200]) for start in range(0, len(lines), 200)]
    got, expected = hashlib.sha256(), hashlib.sha256()
    n_ids = 0
    for start in range(0, len(documents), 256):
        block = documents[start : start + 256]
        ours = engines.ours.encode_batch(block).ids.astype("<u4")
        n_ids += len(ours)
        got.update(ours.tobytes())
        if engines.tiktoken is not None:
            rows = engines.tiktoken.encode_ordinary_batch(block, num_threads=os.cpu_count() or 1)
        else:
            rows = [e.ids for e in engines.hugging_face.encode_batch_fast(block, add_special_tokens=False)]
        for row in rows:
            expected.update(np.array(row, dtype="<u4").tobytes())
    assert n_ids > len(documents) and got.hexdigest() == expected.hexdigest()


def test_golden_lines_have_their_ids(engines: Engines, test_data: Path):
    name = engines.ours.pattern.replace("-", "_")
    packed = test_data / f"golden_ids_{name}.txt.gz"
    if not packed.exists():
        pytest.skip(f"no golden ids for {name}")
    lines = (test_data / "golden_input.txt").read_text("utf-8").removesuffix("\n").split("\n")
    golden = gzip.decompress(packed.read_bytes()).decode().splitlines()
    assert len(lines) == len(golden) == 120
    for line, ids in zip(lines, golden, strict=True):
        assert engines.ours.encode_ordinary(line) == [int(i) for i in ids.split(", ")], line
