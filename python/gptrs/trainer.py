"""Training of tokenizers: files, texts or counts in, the Rust object out, and a report when one is asked for.

files, texts ── count ──▶ words ──▶ merges          one machine: Tokenizer.train, train_from_iterator
files ── count ──▶ part.gtc ── merge_counts, train_from_counts ──▶ the same tokenizer, byte for byte
"""

import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from gptrs import _core, holdout, tokenizer_report
from gptrs.corpus import AnyPath, check_text_field, expand, inputs
from gptrs.progress import Report, bar

if TYPE_CHECKING:
    from gptrs.tokenizer import Text, Tokenizer

Paths = AnyPath | Iterable[AnyPath]

# Texts of an iterator are counted in blocks: large enough to keep the threads busy, small enough to hold in memory.
_BLOCK_BYTES = 1 << 25
_BLOCK_TEXTS = 1 << 16
# What `task_file` names: start, task, number of tasks.
_TASK_FILE = re.compile(r"(.*)\.task-(\d{5,6})-of-(\d{5,6})\.gtc", re.DOTALL)
_DEFAULTS: dict[str, Any] = {"special_tokens": ("<|endoftext|>",), "min_count": 1}


class Options(TypedDict, total=False):
    """What every way of training takes; `Tokenizer.train` says what each option means."""

    pattern: str | None
    special_tokens: Sequence[str]
    min_count: int
    max_token_bytes: int | None
    tie: Literal["id", "hf"]
    base: "Tokenizer | None"
    superbpe_from: int | None
    report: AnyPath | None
    held_out: Paths | float | None
    text_field: str
    threads: int
    progress: bool


def from_files(files: Paths, vocab_size: int, options: Options) -> _core.Tokenizer:
    """Trains on files; see `Tokenizer.train`."""
    training = _Training(vocab_size, options)
    with ExitStack() as stack:
        if isinstance(training.held_out, float):
            paths = training.hold_out(files, training.held_out, stack)
        else:
            paths = inputs(files, training.text_field, done="trained on", stacklevel=4)
            training.refuse_seen(paths)
        report = stack.enter_context(bar(training.is_shown))
        training.trainer.add_files(paths, training.text_field, training.threads, report)
        return training.finish(report)


def from_iterator(texts: "Iterable[Text]", vocab_size: int, options: Options) -> _core.Tokenizer:
    """Trains on texts; see `Tokenizer.train_from_iterator`."""
    training = _Training(vocab_size, options)
    if isinstance(texts, str | bytes):
        raise TypeError("expected an iterable of texts, got one text; hint: wrap it in a list")
    training.refuse_fraction("an iterator")
    with bar(training.is_shown) as report:
        for block in _blocks(iter(texts)):
            training.trainer.add_texts(block, training.threads, report)
        return training.finish(report)


def from_counts(files: Paths, vocab_size: int, options: Options) -> _core.Tokenizer:
    """Trains on count files; see `Tokenizer.train_from_counts`."""
    paths = expand(files)
    _refuse_missing(paths)
    base = options.get("base")
    if options.get("pattern") is None and options.get("superbpe_from") is None and base is None:
        options = {**options, "pattern": _core.count_pattern(paths)}
    training = _Training(vocab_size, options)
    training.refuse_fraction("count files")
    with bar(training.is_shown) as report:
        training.trainer.add_counts(paths, training.threads, report)
        return training.finish(report)


def check_saves(path: AnyPath, pattern: str | None) -> None:
    """Fails, before any work, when a tokenizer of this pattern cannot be written to `path`.

    tokenizer.json holds no expression that Hugging Face's engine reads otherwise than ours; ranks hold none at all.
    """
    if pattern is not None and Path(path).suffix == ".json":
        from_iterator(["a"], 256, {"pattern": pattern, "special_tokens": (), "progress": False}).to_json()


def count(
    files: Paths,
    out: AnyPath,
    *,
    pattern: str = "gpt2",
    superwords: bool = False,
    task: tuple[int, int] | None = None,
    text_field: str = "text",
    threads: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Counts the words of files into a count file (*.gtc) and returns what it holds, as docs/formats.md names it.

    Args:
        files: Paths, globs and folders, as for `Tokenizer.train`.
        out: The file to write; an earlier one stays whole until the new one is complete.
        pattern: How text is split, as for `Tokenizer.train`.
        superwords: Count runs of words, for training with `superbpe_from`.
        task: (I, N) counts the part of the files that task I of N has, as in `prepare_task`. The files of all tasks,
            named by `task_file`, add up to that of one call.
        text_field: The field of a .jsonl line that holds the text, or a template of several: "{title}: {text}".
        threads: Threads to use; 0 means all cores.
        progress: Show a progress bar when stderr is a terminal.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
    paths = inputs(files, text_field, done="counted")
    options: dict[str, Any] = {"pattern": pattern, "text_field": text_field, "superwords": superwords, "task": task}
    with bar(progress) as report:
        return _core.count(paths, fspath(out), **options, threads=threads, progress=report)


def merge_counts(files: Paths, out: AnyPath, *, partial: bool = False, progress: bool = True) -> dict[str, Any]:
    """Adds count files up into one, in memory that depends neither on their number nor on their size.

    Args:
        files: Count files and globs. Of those that `task_file` names, all N must be there.
        out: The file to write.
        partial: Some of them may be missing.
        progress: Show a progress bar when stderr is a terminal.

    Raises:
        ValueError: Patterns differ, a file is given twice, is damaged, a task's is missing, or a sum leaves 64 bits.
    """
    paths = expand(files)
    if not partial:
        _refuse_missing(paths)
    with bar(progress) as report:
        return _core.merge_counts(paths, fspath(out), report)


def task_file(out: AnyPath, task: int, of: int) -> Path:
    """The count file of a task: words.gtc of task 3 of 16 is words.task-00003-of-00016.gtc."""
    path = Path(out)
    if not 0 <= task < of:
        raise ValueError(f"expected a task from 0 to {of - 1} of {of}, got task {task}")
    return path.with_name(f"{path.stem}.task-{task:05}-of-{of:05}{path.suffix}")


def _refuse_missing(paths: list[str]) -> None:
    """Fails unless the files of tasks among `paths` are all there: their names say how many there are."""
    found: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        match = _TASK_FILE.fullmatch(path)
        if match:
            found.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (start, of), tasks in found.items():
        missing = [str(task) for task in range(of) if task not in tasks]
        if missing:
            shown = ", ".join(missing[:20]) + (", …" if len(missing) > 20 else "")
            raise ValueError(
                f"expected the count files of {of} tasks, {start}.task-*-of-{of:05}.gtc, "
                f"missing {len(missing)}: {shown}; hint: count them, with --task {missing[0]} --of {of}, "
                "or merge with --partial"
            )


class _Training:
    """One run of training; every argument is checked here, before the work starts."""

    def __init__(self, vocab_size: int, options: Options) -> None:
        unknown = sorted(options.keys() - Options.__annotations__.keys())
        if unknown:
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"expected options of training ({known}), got {unknown[0]!r}")
        self.options: dict[str, Any] = {**_DEFAULTS, **options}
        self.vocab_size = vocab_size
        self.threads = options.get("threads", 0)
        self.is_shown = options.get("progress", True)
        self.text_field = options.get("text_field", "text")
        held_out = options.get("held_out")
        self.held_out = float(held_out) if isinstance(held_out, int) else held_out
        self.held_out_files: list[str] = []
        self.report = _report_path(options.get("report"), self.held_out)
        if self.held_out is not None and not isinstance(self.held_out, float):
            self.held_out_files = expand(self.held_out)
        self.trainer = self._trainer()

    def _trainer(self) -> _core.Trainer:
        limits = {name: self.options.get(name) for name in ("max_token_bytes", "superbpe_from")}
        checked = {"vocab_size": self.vocab_size, "min_count": self.options["min_count"], "threads": self.threads}
        for name, value in {**checked, **limits}.items():
            if value is not None and not 0 <= value < 1 << 32:
                raise ValueError(f"{name} must be 0 to 2**32 - 1, got {value}")
        special = self.options["special_tokens"]
        if isinstance(special, str):
            raise ValueError(f"expected a list of special tokens, got {special!r}; hint: [{special!r}]")
        base = self.options.get("base")
        if isinstance(base, str | Path):
            raise TypeError(f"expected a Tokenizer as base, got {base!r}; hint: Tokenizer.from_file({str(base)!r})")
        return _core.Trainer(
            self.options.get("pattern") or (base.pattern if base else "gpt2"),
            self.vocab_size,
            list(special),
            self.options["min_count"],
            tie=self.options.get("tie", "id"),
            base=base.core if base else None,
            **limits,
        )

    def refuse_fraction(self, source: str) -> None:
        """A part can be held out of files only."""
        if isinstance(self.held_out, float):
            raise ValueError(f"held_out must be files for {source}, got {self.held_out}; hint: held_out=['val.txt']")

    def refuse_seen(self, paths: list[str]) -> None:
        """Files that are held out are not among those trained on: their numbers in the report would say nothing."""
        if self.held_out_files:
            trained, held_out = (holdout.files_of(tuple(files)) for files in (paths, self.held_out_files))
            seen = {file.resolve() for file in trained}.intersection(file.resolve() for file in held_out)
            if seen:
                raise ValueError(
                    f"held_out must be files that are not trained on, got {min(seen)} in both; hint: leave it out of "
                    "one, or hold out a fraction, held_out=0.1"
                )

    def hold_out(self, files: Paths, fraction: float, stack: ExitStack) -> list[str]:
        """The files to train on: all, each once, but for the part that is held out."""
        paths = expand(files)
        check_text_field(paths, self.text_field)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gptrs-")))
        train, held_out = holdout.split(holdout.files_of(tuple(paths)), fraction, folder)
        self.held_out_files = [str(path) for path in held_out]
        return [str(path) for path in train]

    def finish(self, report: Report | None) -> _core.Tokenizer:
        """Learns the merges; writes the report."""
        tokenizer = self.trainer.finish(self.threads, report)
        if tokenizer.vocab_size < self.vocab_size:
            warnings.warn(
                f"the corpus ({self.trainer.n_bytes} bytes, {self.trainer.n_words} different pieces) has pairs for a "
                f"vocabulary of {tokenizer.vocab_size}, not {self.vocab_size}; hint: use more text or a smaller "
                "vocab_size",
                stacklevel=4,
            )
        if self.report is not None:
            tokenizer_report.write(self.report, self._facts(tokenizer, report))
        return tokenizer

    def _facts(self, tokenizer: _core.Tokenizer, report: Report | None) -> tokenizer_report.Facts:
        usage = self.trainer.usage(tokenizer, self.threads, report)
        held_out = None
        if self.held_out_files:
            held_out = _core.measure(tokenizer, self.held_out_files, self.text_field, self.threads, report)
        shown = ("min_count", "max_token_bytes", "tie", "superbpe_from")
        options = {name: self.options[name] for name in shown if self.options.get(name) is not None}
        if self.options.get("base") is not None:
            options["base"] = self.options["base"].digest
        if self.held_out is not None:
            is_fraction = isinstance(self.held_out, float)
            options["held_out"] = self.held_out if is_fraction else ", ".join(self.held_out_files)
        return tokenizer_report.Facts(
            tokenizer=tokenizer,
            options=options,
            n_bytes=self.trainer.n_bytes,
            n_words=self.trainer.n_words,
            n_documents=self.trainer.n_documents,
            seconds=self.trainer.seconds,
            usage=usage,
            held_out=held_out,
        )


def _report_path(path: AnyPath | None, held_out: Any) -> Path | None:
    """The report's file, refused before the work starts where it could not be written afterwards."""
    if path is None:
        if held_out is not None:
            raise ValueError("held_out is measured for the report, expected report=FILE beside it")
        return None
    path = Path(path)
    if path.suffix not in (".html", ".json") or not path.absolute().parent.is_dir():
        raise ValueError(f"the report must be a .html or .json file in a folder that exists, got {path}")
    if isinstance(held_out, float) and not 0 < held_out < 1:
        raise ValueError(f"held_out must be files or a fraction between 0 and 1, got {held_out}")
    return path


def _blocks(texts: "Iterator[Text]") -> "Iterator[list[Text]]":
    """`texts` in lists of bounded size."""
    block: list[Text] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK_BYTES or len(block) >= _BLOCK_TEXTS:
            yield block
            block, size = [], 0
    if block:
        yield block
