"""`prepare` shared by machines: equal tasks that need nothing of each other, and one step that joins them.

files ── task 0 ──▶ OUT/tasks/task-00000-of-00003 ─┐
      ── task 1 ──▶ OUT/tasks/task-00001-of-00003 ─┼─ merge_tasks ──▶ OUT: the bytes of `prepare`
      ── task 2 ──▶ OUT/tasks/task-00002-of-00003 ─┘
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gptrs import _core
from gptrs.corpus import AnyPath, inputs
from gptrs.dataset import Dataset, DocumentOptions, check_call, check_options, require
from gptrs.progress import bar

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

Files = AnyPath | Iterable[AnyPath]


class Options(DocumentOptions, total=False):
    """The options of `prepare`; all tasks of a dataset and its merge take the same."""

    text_field: str
    shard_tokens: int
    append_eot: bool
    loss_fields: Sequence[str]
    threads: int
    progress: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEnd:
    """What a finished task wrote; once all are merged, what the dataset holds."""

    n_tokens: int
    n_documents: int  # that end in the task's range
    path: Path
    is_merged: bool


def prepare_task(
    files: Files, tokenizer: "Tokenizer", out: AnyPath, task: int, of: int, **options: Unpack[Options]
) -> TaskEnd:
    """Encodes the part of the files that task `task` of `of` has, into a folder of its own in `out`.

    Tasks run in any order, at the same time or not, on any machines that share the files and the folder. A task that
    was cut off goes on when it is called again, and one that is done returns at once.

    Args:
        files: Paths, globs and folders, as for `prepare`; the same for all tasks.
        tokenizer: The tokenizer.
        out: The folder of the dataset.
        task: The task's number, from 0.
        of: The number of tasks.
        options: Those of `prepare`.

    Raises:
        ValueError: There is no such task, or its folder holds something else.
        BlockingIOError: Another process is at this task.
        OSError: A file cannot be read or written.
    """
    given = _core_options(tokenizer, out, options)
    paths = inputs(files, given["text_field"])
    with bar(options.get("progress", True)) as report:
        end = _core.prepare_task(paths, tokenizer.core, fspath(out), _task(task, of), given, report)
    n_tokens, n_documents, path, is_merged = end
    return TaskEnd(n_tokens=n_tokens, n_documents=n_documents, path=Path(path), is_merged=is_merged)


def merge_tasks(
    files: Files,
    tokenizer: "Tokenizer",
    out: AnyPath,
    of: int,
    *,
    keep_tasks: bool = False,
    **options: Unpack[Options],
) -> Dataset:
    """Joins finished tasks into the dataset that `prepare` writes, byte for byte, and removes their folders.

    When it is cut off, the same call again goes on.

    Args:
        files: Those of the tasks, whose names and lengths are compared; they are not read.
        tokenizer: That of the tasks.
        out: The folder of the dataset.
        of: The number of tasks.
        keep_tasks: Leave the tasks' folders, which are as large as the dataset.
        options: Those of the tasks.

    Raises:
        ValueError: Tasks are missing, which the message names, were done with other arguments, or are damaged.
        BlockingIOError: Another process merges.
        OSError: A file cannot be read or written.
    """
    given = _core_options(tokenizer, out, options)
    paths = inputs(files, given["text_field"])
    _task(0, of)
    with bar(options.get("progress", True)) as report:
        core = _core.merge_tasks(paths, tokenizer.core, fspath(out), of, keep_tasks, given, report)
    return Dataset._of(core)


def _task(task: int, of: int) -> tuple[int, int]:
    require("of", of, 1, 100_000)
    require("task", task, 0, of - 1)
    return task, of


def _core_options(tokenizer: "Tokenizer", out: AnyPath, options: Options) -> dict[str, Any]:
    check_call(tokenizer, out, options, DocumentOptions.__annotations__ | Options.__annotations__)
    given: dict[str, Any] = {"text_field": "text", "shard_tokens": 1 << 27, "append_eot": True, "threads": 0, **options}
    check_options(given)
    return given
