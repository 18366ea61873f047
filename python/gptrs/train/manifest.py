"""Which checkpoints a directory holds, and whether one is whole: manifest, marker, what is kept.

    checkpoints/step-00000500/   files, manifest.json with their digests, COMMITTED with its digest
    checkpoints/best.json        which ones have the least validation loss, and its own digest
    checkpoints/.step-….tmp      under way; removed by the next save

Files are written into the hidden directory and synced, then the manifest, then the marker; then it gets its name. A
directory without the marker was cut short and is passed over; a marked one that does not match was damaged later.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptrs.files import Written, digest, sync, sync_directory, write_atomic, write_synced

VERSION = 1
ROOM_BYTES = 1 << 26  # left free beside a checkpoint: logs must find room while it is written
_NAME = re.compile(r"step-\d{8,}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_BEST = "best.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a directory of checkpoints holds."""

    newest: Path | None  # the newest committed one
    uncommitted: tuple[Path, ...]  # newer ones that were never finished
    best: Path | None = None  # the one of the least validation loss, among those that are kept for it


def find(directory: Path) -> Found:
    """Returns the newest committed checkpoint, the best one, and the unfinished ones that are newer."""
    committed = _committed(directory)
    newest = committed[-1] if committed else None
    others = [path for path in _steps(directory) if path not in committed]
    best = next((path for name in read_best(directory) if (path := directory / name) in committed), None)
    newer = tuple(p for p in others if newest is None or p.name > newest.name)
    return Found(newest=newest, uncommitted=newer, best=best)


def path_of(directory: Path, step: int) -> Path:
    """Returns where the checkpoint of a step stands."""
    return directory / f"step-{step:08d}"


def temporary_of(directory: Path, step: int) -> Path:
    """Returns where the checkpoint of a step is written."""
    return directory / f".{path_of(directory, step).name}.tmp"


def begin(directory: Path, step: int, n_bytes: int) -> Path:
    """Returns the empty hidden directory that a checkpoint is written into, and removes those of earlier saves.

    Raises: OSError when there is no room for `n_bytes`: better now than when logs find the disk full as well.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in (*directory.glob(".step-*"), *directory.glob(f".{_BEST}*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    free = shutil.disk_usage(directory).free
    if n_bytes + ROOM_BYTES > free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: expected {n_bytes:,} bytes and some, got {free:,}")
    temporary = temporary_of(directory, step)
    temporary.mkdir()
    return temporary


def commit(temporary: Path, path: Path, files: Mapping[str, Written], logs: Sequence[Path] = ()) -> None:
    """Makes a directory of synced files the checkpoint `path`, once the disk has the logs whose lengths it knows."""
    for log in logs:
        sync(log)
    entries = {name: {"bytes": file.n_bytes, "blake2b": file.blake2b} for name, file in sorted(files.items())}
    written = write_synced(temporary / "manifest.json", as_json({"version": VERSION, "files": entries}))
    sync_directory(temporary)
    write_synced(temporary / "COMMITTED", f"{written.blake2b}\n".encode())
    sync_directory(temporary)
    if path.exists():  # the same step again, after a resume from before it
        _discard(path)
    temporary.rename(path)
    sync_directory(path.parent)


def prune(directory: Path, keep: int) -> None:
    """Removes all committed checkpoints but the `keep` newest and the best."""
    best = read_best(directory)
    for old in _committed(directory)[:-keep]:
        if old.name not in best:
            _discard(old)


def mark_best(directory: Path, step: int, loss: float, keep: int) -> None:
    """Notes the validation loss of a committed checkpoint, if it is among the `keep` least; none other is noted."""
    path, committed = path_of(directory, step), {path.name for path in _committed(directory)}
    known = {name: of_it for name, of_it in read_best(directory).items() if name in committed}
    if path.name not in committed or keep < 1:
        return
    best = sorted({**known, path.name: loss}.items(), key=lambda item: item[1])[:keep]
    if dict(best) != known:
        content = [{"checkpoint": name, "val_loss": of_it} for name, of_it in best]
        write_atomic(directory / _BEST, as_json({"version": VERSION, "best": content, "blake2b": _digest_of(content)}))


def read_best(directory: Path) -> dict[str, float]:
    """Returns the validation losses of the best checkpoints by name, least first.

    Raises: ValueError when best.json was damaged.
    """
    file = directory / _BEST
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
        is_whole = content["version"] == VERSION and content["blake2b"] == _digest_of(content["best"])
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"damaged {file}: expected what its digest says; hint: remove it, best checkpoints go unknown")
    return {entry["checkpoint"]: entry["val_loss"] for entry in content["best"]}


def read_state(path: Path) -> dict[str, Any]:
    """Returns the state.json of a checkpoint."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION} in {path / 'state.json'}, got {state.get('version')!r}")
    return state


def verify(path: Path, is_wanted: Callable[[int, str], bool] = lambda number, name: True) -> None:
    """Checks the files of a committed checkpoint against the digests taken when it was written.

    Args:
        is_wanted: by the number and the name of a file, whether its content is checked here.
    Raises: ValueError naming the first file that is missing, cut short or changed, or that does not belong to it.
    """
    entries = _entries(path)
    for file in path.glob("*.safetensors"):
        if file.name not in entries:
            raise ValueError(damaged(file, "no such file in the manifest", "one"))
    for number, (name, entry) in enumerate(entries.items()):
        file = path / name
        if not file.is_file():
            raise ValueError(damaged(file, f"{entry['bytes']} bytes", "no file"))
        if (size := file.stat().st_size) != entry["bytes"]:
            raise ValueError(damaged(file, f"{entry['bytes']} bytes", f"{size}"))
        if is_wanted(number, name) and (got := digest(file)) != entry["blake2b"]:
            raise ValueError(damaged(file, f"blake2b {entry['blake2b'][:16]}…", f"{got[:16]}…"))


def tensor_files(path: Path, kind: str) -> list[Path]:
    """Returns the files of a checkpoint that hold a kind of tensors: KIND.safetensors or its pieces."""
    return [path / name for name in _entries(path) if name.endswith(".safetensors") and kind_of(name) == kind]


def rng_name(rank: int, world_size: int) -> str:
    """Returns the file of a process's random states, where several wrote a checkpoint."""
    return f"rng-{rank + 1:05d}-of-{world_size:05d}.json"


def kind_of(name: str) -> str:
    """Returns what a file of tensors holds: model for model.safetensors and model-00001-of-00004.safetensors."""
    return name.partition(".")[0].partition("-")[0]


def remove(temporary: Path) -> None:
    """Removes what a failed save has written; what cannot be removed now is by the next one."""
    shutil.rmtree(temporary, ignore_errors=True)


def not_saved(path: Path, error: OSError) -> OSError:
    """The error of a save that failed."""
    hint = "hint: make room or give leave there, then run the same command"
    text = f"cannot save checkpoint {path}: {error.strerror or error}; earlier checkpoints are intact; {hint}"
    return OSError(error.errno, text)


def damaged(file: Path, expected: str, got: str) -> str:
    """The message about a file that is not as it was written."""
    hint = f"hint: remove {file.parent} to resume from the checkpoint before it"
    return f"damaged checkpoint: expected {expected} for {file}, got {got}; {hint}"


def as_json(value: object) -> bytes:
    """Returns the bytes of a small file."""
    return (json.dumps(value, indent=1) + "\n").encode()


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Returns size and digest by file, once the manifest is known to be whole."""
    manifest = path / "manifest.json"
    for name in ("COMMITTED", "manifest.json"):
        if not (path / name).is_file():
            raise ValueError(damaged(path / name, "a file", "none"))
    if (path / "COMMITTED").read_bytes() != f"{digest(manifest)}\n".encode():
        raise ValueError(damaged(manifest, "the digest in COMMITTED", "another one"))
    entries: dict[str, dict[str, Any]] = json.loads(manifest.read_bytes())["files"]
    for name in entries:
        if not _FILE.fullmatch(name):
            raise ValueError(damaged(manifest, "names of files", f"{name!r}"))
    return entries


def _digest_of(content: object) -> str:
    return hashlib.blake2b(as_json(content), digest_size=32).hexdigest()


def _steps(directory: Path) -> list[Path]:
    """Returns the checkpoint directories, finished or not, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def _committed(directory: Path) -> list[Path]:
    return [path for path in _steps(directory) if (path / "COMMITTED").is_file()]


def _discard(path: Path) -> None:
    """Removes a checkpoint so that a kill halfway leaves no part under its name."""
    hidden = path.with_name(f".{path.name}.old")
    path.rename(hidden)
    shutil.rmtree(hidden)
