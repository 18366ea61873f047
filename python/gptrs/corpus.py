"""Which files a corpus is: paths, globs and folders as the user gives them; and files for what is none."""

import errno
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import glob, has_magic
from os import PathLike, fspath
from pathlib import Path
from typing import Any

AnyPath = str | PathLike[str]

_COMPRESSED = (".gz", ".gzip", ".zst", ".zstd")
_FOUND_IN_FOLDERS = (".txt", ".jsonl", ".ndjson", ".parquet")
_FOUND = "*.txt, *.jsonl, *.ndjson or *.parquet"
_WITH_FIELDS = (".jsonl", ".ndjson", ".parquet")
_STANDARD_INPUT, _DOCUMENTS = _TEMPORARY = (".standard-input-", ".documents-")  # folders of a call; a kill leaves them
_BATCH = 1000  # rows asked of a table at a time
_NAME = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")  # in a template: two braces for one, or the name of a field
_TEMPLATE = re.compile(rf"(?:[^{{}}]|{_NAME.pattern})*")


def kind(path: Path) -> str:
    """The ending of a file's name that says what it holds, in lower case: that of `a.jsonl.gz` is .jsonl."""
    return Path(path.stem if is_compressed(path) else path.name).suffix.lower()


def is_compressed(path: Path) -> bool:
    """Whether the file's name says that it is compressed by gzip or Zstandard."""
    return path.suffix.lower() in _COMPRESSED


def inside(folder: Path) -> list[Path]:
    """The files of text at any depth below a folder, sorted; a Parquet file is never compressed as a whole.

    Run directories below it are left out: what a run writes is no corpus. So are the folders in which a killed process
    left its documents or its standard input.

    Raises:
        FileNotFoundError: A link leads to nothing.
        OSError: A folder cannot be listed.
    """
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not (name.startswith(_TEMPORARY) or _is_run(Path(place, name)))]
        found += [path for path in (Path(place, name) for name in names) if kind(path) in _FOUND_IN_FOLDERS]
    for path in found:
        if not path.exists():  # passed over, its text would be missing without a word
            reason = f"it is a link to {path.readlink()}, which is not there"
            raise FileNotFoundError(f"cannot read {path}: {reason}; hint: restore that, or remove the link")
    return sorted(p for p in found if p.is_file() and (kind(p) != ".parquet" or not is_compressed(p)))


def _refuse(error: OSError) -> None:
    raise error  # os.walk passes over a folder that it cannot list


def _is_run(folder: Path) -> bool:
    """Whether a folder is a training run's: it has the config and the lock that every run has from its start."""
    return (folder / "config.toml").is_file() and (folder / ".lock").is_file()


def expand(paths: AnyPath | Iterable[AnyPath]) -> list[str]:
    """The files and folders that `paths` name: globs become their matches in sorted order (`**` crosses folders).

    One path may stand without a list. An existing file whose name looks like a glob is that file.

    Raises:
        ValueError: No path was given, or an empty one.
        FileNotFoundError: A path does not exist, or a glob matches nothing.
    """
    listed = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not listed:
        raise ValueError("expected at least one file, glob or folder, got none")
    found = []
    for path in (fspath(path) for path in listed):
        if not path:
            raise ValueError("expected a path, got an empty text; hint: for the current folder write .")
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


def inputs(
    paths: AnyPath | Iterable[AnyPath], text_field: str, *, done: str = "encoded", stacklevel: int = 3
) -> list[str]:
    """What `paths` name, as `expand`, for a corpus; warns of files that come more than once, which it then holds so.

    Args:
        paths: As for `expand`.
        text_field: The field that holds the text, as for `check_text_field`.
        done: What becomes of all of it, for the warning.
        stacklevel: Of the warning, as for `warnings.warn`; 3 names the line that called the caller.

    Raises:
        ValueError: As `expand` and `check_text_field`.
        OSError: As `expand`; a folder cannot be listed.
    """
    found = expand(paths)
    check_text_field(found, text_field)
    if len(found) > 1:
        counts = Counter(os.path.abspath(file) for file in _files(found))  # noqa: PTH100 (pathlib keeps ..)
        repeated = [file for file, n in counts.items() if n > 1]
        if repeated:
            which = f"{repeated[0]}, {counts[repeated[0]]} times"
            warnings.warn(
                f"expected each file once, got {len(repeated)} of {len(counts)} more often (the first: {which}), which "
                f"is all {done}; hint: a glob or folder may name again what another names",
                stacklevel=stacklevel,
            )
    return found


def check_text_field(paths: Iterable[str], text_field: str) -> None:
    """Refuses a field of text files alone, where it would say nothing; the default need not fit.

    Raises:
        TypeError: It is no text.
        ValueError: None of the files has fields.
    """
    if not isinstance(text_field, str):
        raise TypeError(f"text_field must be text, got {text_field!r}")
    if text_field == "text" or has_fields(paths):
        return
    expected = f'expected JSON lines or Parquet among the files, which text_field "{text_field}" is of'
    raise ValueError(f"{expected}, got text alone; hint: leave text_field out, a text file is a document as it stands")


def has_fields(paths: Iterable[AnyPath]) -> bool:
    """Whether some of the files are JSON lines or Parquet, of which each document has fields."""
    return any(kind(file) in _WITH_FIELDS for file in _files(paths))


def _files(paths: Iterable[AnyPath]) -> Iterator[Path]:
    for path in map(Path, paths):
        yield from inside(path) if path.is_dir() else (path,)


@contextmanager
def standard_input(paths: Sequence[str], kind: str, folder: AnyPath) -> Iterator[list[str]]:
    """Gives `paths` with a file in place of "-" that holds what standard input gave, as `standard-input.KIND`.

    The work reads its inputs twice, and names them in what it writes; so they must be files. This one is in `folder`
    and goes at the end. One of `paths` that holds `folder` becomes its files before it is there: it is read once.

    Raises:
        ValueError: There is more than one "-", or a folder without files.
        OSError: There is no room for it, or a path does not exist.
    """
    if "-" not in paths:
        yield list(paths)
        return
    if paths.count("-") > 1:
        raise ValueError('expected standard input once, got "-" more than once')
    known = [found for path in paths for found in (["-"] if path == "-" else _around(path, Path(folder)))]
    with _temporary(folder, _STANDARD_INPUT) as temporary:
        file = temporary / f"standard-input.{kind}"
        _write(file, iter(lambda: sys.stdin.buffer.read(1 << 20), b""))
        yield [str(file) if path == "-" else path for path in known]


def _around(path: str, folder: Path) -> Iterator[str]:
    """What `path` names; in place of a folder that holds `folder`, its files."""
    for found in expand(path):
        if not (Path(found).is_dir() and folder.resolve().is_relative_to(Path(found).resolve())):
            yield found
            continue
        files = inside(Path(found))
        if not files:
            raise ValueError(f"expected {_FOUND} files in {found}, found none; hint: name the files themselves")
        yield from map(str, files)


def _write(file: Path, parts: Iterable[bytes]) -> None:
    """Writes a file; errors of `parts` pass as they are.

    Raises: OSError that names `file`.
    """
    target = file.open("wb", 1 << 20)
    try:
        for part in parts:
            try:
                target.write(part)
            except OSError as error:
                raise _unwritten(file, error) from None
        try:
            target.close()
        except OSError as error:
            raise _unwritten(file, error) from None
    except BaseException:
        with suppress(OSError):  # it says again what was said
            target.close()
        raise


def _unwritten(file: Path, error: OSError) -> OSError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "; hint: free some space, then run the same command again" if is_full else ""
    return OSError(error.errno, f"cannot write {file}: {error.strerror}{hint}")


@contextmanager
def as_file(documents: Iterable[str | Mapping[str, Any]], text_field: str, folder: AnyPath) -> Iterator[str]:
    """Gives the path of documents.jsonl in `folder`, a line with the fields of `text_field` for each document.

    Raises:
        TypeError: A document is no string, or a field of it is none.
        ValueError: A field is missing, or a string cannot be written as UTF-8.
        OSError: There is no room for it.
    """
    if isinstance(documents, str | bytes | PathLike | Mapping):
        hint = "give one split of several" if isinstance(documents, Mapping) else "gptrs.prepare reads files"
        raise TypeError(f"expected documents, got {type(documents).__name__}; hint: {hint}")
    fields = _fields(text_field)
    with _temporary(folder, _DOCUMENTS) as temporary:
        file = temporary / "documents.jsonl"
        _write(file, (_line(document, fields, number) for number, document in enumerate(_rows(documents, fields), 1)))
        yield str(file)


@contextmanager
def _temporary(folder: AnyPath, prefix: str) -> Iterator[Path]:
    """A folder inside `folder` that goes at the end; those that killed processes left there go now."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for left in Path(folder).glob(f"{prefix}*"):
        with suppress(OSError), _locked(left):  # another process has the lock of its own
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as temporary, ExitStack() as stack:
        with suppress(OSError):  # a file system may have no locks: nothing is removed there
            stack.enter_context(_locked(Path(temporary)))
        yield Path(temporary)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _fields(text_field: str) -> list[str]:
    """The fields that a template names, each once, or the field itself; what is in braces is a name as it stands."""
    if "{" not in text_field and "}" not in text_field:
        return [text_field]
    if not _TEMPLATE.fullmatch(text_field):
        raise ValueError(f"expected field names in braces, and two braces for one, in the template {text_field!r}")
    return list(dict.fromkeys(name for name in _NAME.findall(text_field) if name))


def _rows(documents: Iterable[Any], fields: list[str]) -> Iterator[Any]:
    """The documents; of a table of the package datasets only the columns that are needed, many rows at a time."""
    if not (hasattr(documents, "select_columns") and hasattr(documents, "iter")):
        yield from documents
        return
    names = getattr(documents, "column_names", None) or fields  # a stream may not know them
    missing = [field for field in fields if field not in names]
    if missing:
        raise ValueError(f"expected a column {missing[0]!r}, found {', '.join(names)}; hint: set text_field")
    for batch in documents.select_columns(fields).iter(batch_size=_BATCH):
        for values in zip(*(batch[field] for field in fields), strict=True):
            yield dict(zip(fields, values, strict=True))


def _line(document: Any, fields: list[str], number: int) -> bytes:
    if isinstance(document, str) and len(fields) == 1:
        document = {fields[0]: document}
    if not isinstance(document, Mapping):
        raise TypeError(
            f"expected a mapping with {', '.join(fields)} as document {number}, got {type(document).__name__}"
        )
    missing = [field for field in fields if field not in document]
    if missing:
        known = ", ".join(map(str, document))
        raise ValueError(f"expected a field {missing[0]!r} in document {number}, found {known}; hint: set text_field")
    line = {field: document[field] for field in fields}
    for field, value in line.items():
        if not isinstance(value, str):
            raise TypeError(f"expected a string as {field!r} of document {number}, got {type(value).__name__}")
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise ValueError(f"expected Unicode text in document {number}, got a lone surrogate ({error.reason})") from None
