"""Whole files or none: atomic writes and digests for everything that Python puts into a run directory."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

WRITE_BYTES = 1 << 24  # of one call: digested and written while they are in the cache


class Written(NamedTuple):
    """What a file held when it was closed."""

    n_bytes: int
    blake2b: str  # BLAKE2b-256 in hexadecimal


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`: after a kill or a full disk there is the old file or the new one, never a part.

    Raises: OSError that names `path`.
    """
    temporary = temporary_of(path)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written, that says nothing new
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_directory(path.parent)


def temporary_of(path: Path) -> Path:
    """The file that `write_atomic` writes first; a kill at that moment leaves it."""
    return path.with_name(f".{path.name}.tmp")


def write_synced(path: Path, data: bytes) -> Written:
    """Writes a file, waits until the disk has it and returns what it holds."""
    return write_parts(path, (memoryview(data),))


def write_parts(path: Path, parts: Iterable[memoryview]) -> Written:
    """Writes a file of several parts of bytes, waits until the disk has it and returns what it holds.

    The digest is taken on the way, from the memory that is written: nothing is read again.
    """
    hasher, n_bytes = hashlib.blake2b(digest_size=32), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            for start in range(0, len(part), WRITE_BYTES):
                chunk = part[start : start + WRITE_BYTES]
                hasher.update(chunk)
                _write_all(handle, chunk)
                n_bytes += len(chunk)
        os.fsync(handle)
    finally:
        os.close(handle)
    return Written(n_bytes, hasher.hexdigest())


def _write_all(handle: int, data: memoryview) -> None:
    """A single call may write less than it was given: just before a disk is full, or when a signal comes."""
    while data:
        data = data[os.write(handle, data) :]


def sync_directory(path: Path) -> None:
    """Waits until the disk has the names in a directory; a rename is durable only after this."""
    sync(path)


def sync(path: Path) -> None:
    """Waits until the disk has what was written into a file, by whomever, or the names in a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """Returns the BLAKE2b-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
