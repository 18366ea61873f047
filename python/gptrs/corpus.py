"""Which files a corpus is: paths, globs and folders as the user gives them."""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from os import PathLike, fspath
from pathlib import Path

AnyPath = str | PathLike[str]

_COMPRESSED = (".gz", ".gzip", ".zst", ".zstd")
_FOUND_IN_FOLDERS = (".txt", ".jsonl")


def kind(path: Path) -> str:
    """The ending of a file's name that says what it holds, in lower case: that of `a.jsonl.gz` is .jsonl."""
    return Path(path.stem if is_compressed(path) else path.name).suffix.lower()


def is_compressed(path: Path) -> bool:
    """Whether the file's name says that it is compressed by gzip or Zstandard."""
    return path.suffix.lower() in _COMPRESSED


def inside(folder: Path) -> list[Path]:
    """The files of text at any depth below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if kind(path) in _FOUND_IN_FOLDERS and path.is_file())


def expand(paths: AnyPath | Iterable[AnyPath]) -> list[str]:
    """The files and folders that `paths` name: globs become their matches in sorted order (`**` crosses folders).

    One path may stand without a list. An existing file whose name looks like a glob is that file.

    Raises:
        ValueError: No path was given.
        FileNotFoundError: A path does not exist, or a glob matches nothing.
    """
    listed = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not listed:
        raise ValueError("expected at least one file, glob or folder, got none")
    found = []
    for path in (fspath(path) for path in listed):
        if Path(path).exists():
            found.append(path)
        elif has_magic(path):
            matches = sorted(glob(path, recursive=True))  # noqa: PTH207 (pathlib refuses absolute patterns)
            if not matches:
                raise FileNotFoundError(f"no file matches {path!r}; hint: check the path")
            found += matches
        else:
            raise FileNotFoundError(f"cannot read {path}: no such file or folder; hint: check the path")
    return found


@contextmanager
def standard_input(paths: Sequence[str], kind: str, folder: AnyPath) -> Iterator[list[str]]:
    """Gives `paths` with a file in place of "-" that holds what standard input gave, as `standard-input.KIND`.

    The work reads its inputs twice, and names them in what it writes; so they must be files. This one is in `folder`
    and goes at the end.

    Raises:
        ValueError: There is more than one "-".
        OSError: There is no room for it.
    """
    if "-" not in paths:
        yield list(paths)
        return
    if paths.count("-") > 1:
        raise ValueError('expected standard input once, got "-" more than once')
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".standard-input-", dir=folder) as temporary:
        file = Path(temporary) / f"standard-input.{kind}"
        with file.open("wb") as target:
            shutil.copyfileobj(sys.stdin.buffer, target, 1 << 20)
        yield [str(file) if path == "-" else path for path in paths]
