"""Which files a corpus is: paths, globs and folders as the user gives them."""

from collections.abc import Iterable
from glob import glob, has_magic
from os import PathLike, fspath
from pathlib import Path

AnyPath = str | PathLike[str]


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
