"""The texts and vocabularies of the tokenizer's benchmarks, laid into a folder once and found there again.

    bench_en, bench_multi        from the test data
    code                         Python source of the installed packages and the standard library, by sorted path
    mixed, repeated              prose, sources and many scripts, written again and again until they are long enough

A repetition is no plain copy: every 64th line begins with its number, so that words keep coming that were not there.
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

# Between documents where an engine reads files: no text contains it (checked), no vocabulary has it as a token.
SEPARATOR = b"\x1e\x1ddocument\x1d\x1e"
CODE_BYTES = 110_000_000
MIXED_BYTES = 510_000_000
SOURCE_SUFFIXES = (".py", ".pyi", ".h", ".hpp", ".cuh", ".c", ".cpp")
CHUNK = 1 << 24


class Corpora:
    """The texts in `work`, made from the test data in `data` when they are asked for."""

    def __init__(self, data: Path, work: Path) -> None:
        self.data, self.work = data, work

    def text(self, name: str) -> Path:
        """The file of a text by its name."""
        path = self.work / f"{name}.txt"
        if not path.exists():
            beside = path.with_suffix(".part")
            with beside.open("wb") as out:
                for chunk in self._chunks(name):
                    out.write(chunk)
            beside.rename(path)
        return path

    def documents(self, name: str) -> Path:
        """The same text cut into documents, with `SEPARATOR` between them."""
        path = self.work / f"{name}.documents"
        if not path.exists():
            text = self.text(name).read_bytes()
            if SEPARATOR in text:
                raise SystemExit(f"expected {name} without the separator {SEPARATOR!r}")
            path.write_bytes(SEPARATOR.join(cut(text)))
        return path

    def _chunks(self, name: str) -> Iterator[bytes]:
        if name in ("bench_en", "bench_multi"):
            return self._unpacked(name)
        if name == "code":
            return _until(CODE_BYTES, sources((".py",)))
        if name == "mixed":
            parts = [[self.text("bench_en").read_bytes()], sources(SOURCE_SUFFIXES)]
            return _repeated(MIXED_BYTES, parts)
        if name.startswith("repeated_"):  # repeated_2000: so many million bytes of all three texts
            parts = [[self.text(part).read_bytes()] for part in ("bench_en", "bench_multi", "code")]
            return _repeated(int(name.removeprefix("repeated_")) * 1_000_000, parts)
        raise ValueError(f"expected the name of a text, got {name!r}")

    def _unpacked(self, name: str) -> Iterator[bytes]:
        import zstandard

        packed = self.data / f"{name}.txt.zst"
        if not packed.exists():
            raise SystemExit(f"expected the corpus at {packed}; hint: pass --data DIR or set GPTRS_TEST_DATA")
        with packed.open("rb") as source:
            yield from zstandard.ZstdDecompressor().read_to_iter(source)


def sources(suffixes: tuple[str, ...]) -> Iterator[bytes]:
    """Source files that are UTF-8: the standard library's, then the installed packages', each sorted by path."""
    folders = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in suffixes):
            inside = path.relative_to(folder).parts
            if "gptrs" in inside or (folder == folders[0] and "site-packages" in inside) or not path.is_file():
                continue
            content = path.read_bytes()
            try:
                content.decode()
            except UnicodeDecodeError:
                continue
            yield content


def cut(text: bytes, n_bytes: int = 8_000) -> list[bytes]:
    """`text` as documents of about `n_bytes`, cut behind a line end."""
    documents, start = [], 0
    while start < len(text):
        end = text.find(b"\n", start + n_bytes)
        end = len(text) if end < 0 else end + 1
        documents.append(text[start:end])
        start = end
    return documents


def first(documents: list[bytes], n_bytes: int) -> list[bytes]:
    """The first documents, at least `n_bytes` together when there are so many."""
    total = 0
    for n, document in enumerate(documents, 1):
        total += len(document)
        if total >= n_bytes:
            return documents[:n]
    return documents


def digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _until(n_bytes: int, parts: Iterator[bytes]) -> Iterator[bytes]:
    """Whole parts until there are `n_bytes`."""
    total = 0
    for part in parts:
        if total >= n_bytes:
            return
        total += len(part)
        yield part


def _repeated(n_bytes: int, parts: list[list[bytes] | Iterator[bytes]]) -> Iterator[bytes]:
    """All parts over and over, `n_bytes` in all; every 64th line begins with its number."""
    blocks = [block for part in parts for text in part for block in _blocks(text)]
    total = 0
    for n in count():
        block = blocks[n % len(blocks)]
        chunk = b"%d %s" % (64 * n, block)
        total += len(chunk)
        if total >= n_bytes:
            return
        yield chunk


def _blocks(text: bytes) -> Iterator[bytes]:
    """`text` in blocks of 64 lines."""
    lines = text.splitlines(keepends=True)
    for start in range(0, len(lines), 64):
        yield b"".join(lines[start : start + 64])


# ── vocabularies ──

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
# The patterns as Hugging Face's files of these vocabularies have them, one Split each; gpt2's is ByteLevel's own.
SPLITS: dict[str, list[str]] = {
    "gpt2": [],
    "cl100k_base": [
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL,
    ],
    "o200k_base": [
        "|".join(
            [
                rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{CONTRACTION}?",
                rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{CONTRACTION}?",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                TAIL,
            ]
        )
    ],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        (  # this file has the characters CR and LF where others have escapes
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
            r" ?[\p{P}\p{S}]+[\r\n]*|" + TAIL
        ).replace(r"\r\n", "\r\n"),
    ],
}
# tiktoken's own patterns; it has none for deepseek-v3, whose three Splits are no single expression.
TIKTOKEN_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": SPLITS["o200k_base"][0],
}
PACKED = {
    "gpt2": "gpt2_encoder.json.gz",
    "cl100k_base": "cl100k_base.tiktoken.gz",
    "o200k_base": "o200k_base.tiktoken.gz",
    "deepseek-v3": "deepseek_v3.bytes.tiktoken.gz",
}
VOCABULARIES = tuple(PACKED)
# The first ids of deepseek-v3 are special; without them some readers refuse the file for its holes.
SPECIALS = {"deepseek-v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")}


def vocabulary(data: Path, work: Path, name: str) -> Path:
    """A folder with `name`.tiktoken and tokenizer.json, both made here from the published ranks."""
    folder = work / name
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(exist_ok=True)
        ranks = published(data, name)
        lines = (f"{base64_of(token)} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
        (folder / f"{name}.tiktoken").write_text("".join(lines))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(name, ranks), ensure_ascii=False))
    return folder


def published(data: Path, name: str) -> dict[bytes, int]:
    """The ranks of a published vocabulary, special tokens left out."""
    import base64
    import gzip

    packed = data / PACKED[name]
    if not packed.exists():
        raise SystemExit(f"expected the vocabulary at {packed}; hint: pass --data DIR or set GPTRS_TEST_DATA")
    content = gzip.decompress(packed.read_bytes())
    if name != "gpt2":
        pairs = (line.split() for line in content.splitlines() if line)
        return {base64.b64decode(token): int(rank) for token, rank in pairs}
    byte = {char: value for value, char in enumerate(alphabet())}
    entries = json.loads(content).items()
    return {bytes(byte[c] for c in text): rank for text, rank in entries if text != "<|endoftext|>"}


def tokenizer_json(name: str, ranks: dict[bytes, int]) -> dict[str, object]:
    """tokenizer.json of a byte-level BPE in Hugging Face's form."""
    chars, splits, specials = alphabet(), SPLITS[name], SPECIALS.get(name, ())

    def spell(token: bytes) -> str:
        return "".join(chars[b] for b in token)

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not splits}
    steps: list[dict[str, object]] = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False} for split in splits
    ]
    merges = [[spell(left), spell(right)] for left, right in merges_of(ranks)]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {text: i for i, text in enumerate(specials)} | {spell(t): rank for t, rank in ranks.items()},
             "merges": merges}  # fmt: skip
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in enumerate(specials)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, level]} if splits else level,
        "post_processor": None, "decoder": {**level, "use_regex": True}, "model": model,
    }  # fmt: skip


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each token, in the order of ranks: what is left of it when only lower ranks may merge."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            lowest = min(joined)
            if lowest >= rank:
                break
            at = joined.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def alphabet() -> list[str]:
    """The character that stands for each byte in GPT-2's files."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    chars = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [chars[byte] for byte in range(256)]


def base64_of(token: bytes) -> str:
    import base64

    return base64.b64encode(token).decode()
