"""Whole files or none: atomic writes and digests for everything that Python puts into a run directory."""

import hashlib
import os
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`: after a kill or a full disk there is the old file or the new one, never a part."""
    temporary = temporary_of(path)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def temporary_of(path: Path) -> Path:
    """The file that `write_atomic` writes first; a kill at that moment leaves it."""
    return path.with_name(f".{path.name}.tmp")


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Waits until the disk has the names in a directory; a rename is durable only after this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """Returns the BLAKE2b-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
