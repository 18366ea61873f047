"""Which text is held out: the end of a single file, or whole files of several, chosen by their names.

The choice depends on the names and sizes of the files alone, never on their order, the machine or chance.
"""

import codecs
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from gptrs.corpus import expand, inside, is_compressed, kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file of a corpus and what it serves."""

    path: str
    n_bytes: int
    part: Literal["train", "val", "both"]  # both: a single file is cut


JSON_LINES = (".jsonl", ".ndjson")
_CHUNK = 1 << 20


def files_of(text: tuple[str, ...]) -> list[Path]:
    """Returns the files that paths, globs and folders name, each once; of a folder those of text at any depth."""
    files: list[Path] = []
    for path in map(Path, expand(text)):
        if path.is_dir():
            found = inside(path)
            if not found:
                raise ValueError(
                    f"expected *.txt, *.jsonl, *.ndjson or *.parquet files in {path}, found none; hint: name the files"
                )
            files += found
        else:
            files.append(path)
    once: dict[str, Path] = {}
    for file in files:
        once.setdefault(os.path.abspath(file), file)  # noqa: PTH100 (pathlib keeps ..)
    return list(once.values())


def split(files: list[Path], fraction: float, out: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files to train on and those held out; `out` gets the two parts of a single file.

    Raises: ValueError when a part would be empty, or when a single file is not UTF-8 (with the offset).
    """
    return split_file(files[0], fraction, out) if len(files) == 1 else choose(files, fraction)


def choose(files: list[Path], fraction: float) -> tuple[list[Path], list[Path]]:
    """Returns (train, val), both in the order given: files join val by the hash of their names until it has `fraction`
    of the bytes. Names are taken from the common folder on, so that a moved corpus is split alike.

    A file is passed over that would bring val above twice the fraction. Where that leaves val below half of it, the
    smallest such file joins if its share is then nearer, as a ratio: two files of one size are one each.
    """
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    names = {file: file.absolute().relative_to(root).as_posix() for file in files}
    sizes = {file: file.stat().st_size for file in files}
    wanted = fraction * sum(sizes.values())
    held_out: set[Path] = set()
    large: list[Path] = []
    n_bytes = 0
    for file in sorted(files, key=lambda file: hashlib.blake2b(names[file].encode()).digest()):
        if n_bytes >= wanted:
            break
        if n_bytes + sizes[file] > 2 * wanted:
            large.append(file)
            continue
        held_out.add(file)
        n_bytes += sizes[file]
    smallest = min(large, key=lambda file: sizes[file], default=None)
    if smallest is not None and (n_bytes + sizes[smallest]) * n_bytes < wanted**2 and n_bytes < wanted / 2:
        held_out.add(smallest)
    train, val = ([f for f in files if (f in held_out) == is_val] for is_val in (False, True))
    for name, part in (("train on", train), ("hold out", val)):
        if not sum(sizes[file] for file in part):
            raise ValueError(f"expected text to {name} in {len(files)} files, got none; hint: add text or files")
    return train, val


def split_file(file: Path, fraction: float, out: Path) -> tuple[list[Path], list[Path]]:
    """Writes the beginning of a file to out/train and its last `fraction` to out/val; returns their paths.

    The cut moves forward to the next character, of JSON lines to the next line.
    """
    size = file.stat().st_size
    if is_compressed(file) or kind(file) == ".parquet":
        raise ValueError(f"expected a file that can be cut, got {file}; hint: decompress it, or give several files")
    if size == 0:
        raise ValueError(f"expected text in {file}, got an empty file")
    suffix = kind(file) if kind(file) in JSON_LINES else ".txt"
    train, val = out / f"train{suffix}", out / f"val{suffix}"
    with file.open("rb") as source:
        source.seek(int(size * (1 - fraction)))
        cut = _next_line(source) if suffix in JSON_LINES else _next_character(source)
        if not 0 < cut < size:
            part = "train on" if cut == 0 else "hold out"
            raise ValueError(f"expected text to {part} in {file} ({size} bytes), got none; hint: set data.val_fraction")
        source.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        for path, n_bytes in ((train, cut), (val, size - cut)):
            with path.open("wb") as target:
                _copy(source, target, n_bytes, decoder, file)
    return [train], [val]


def _next_character(source: IO[bytes]) -> int:
    """Returns the offset of the first byte, from here on, that begins a UTF-8 character."""
    at = source.tell()
    following = source.read(4)
    return at + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))


def _next_line(source: IO[bytes]) -> int:
    """Returns the offset of the first line that begins here or later."""
    if source.tell():
        source.seek(-1, os.SEEK_CUR)
        source.readline()
    return source.tell()


def _copy(source: IO[bytes], target: IO[bytes], n_bytes: int, decoder: codecs.IncrementalDecoder, file: Path) -> None:
    while n_bytes:
        at, pending = source.tell(), len(decoder.getstate()[0])
        chunk = source.read(min(n_bytes, _CHUNK))
        if not chunk:
            raise ValueError(f"expected {n_bytes} more bytes in {file}, got its end: it changed while it was read")
        n_bytes -= len(chunk)
        try:
            decoder.decode(chunk, final=n_bytes == 0)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"expected UTF-8 in {file}, got another byte at offset {at - pending + error.start}"
            ) from None
        target.write(chunk)
