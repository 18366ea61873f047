"""The commands that make a tokenizer: train, count, merge-counts."""

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_FILES_HELP = "Text files, globs or folders (*.txt, *.jsonl or *.ndjson, also with .gz or .zst, *.parquet)."
Files = Annotated[list[str], typer.Argument(help=_FILES_HELP, metavar="FILES…")]


def unescaped(text: str, option: str) -> str:
    """`text` with the escapes of a Python string read: \\n, \\t, \\x1e, \\u2028, and two backslashes for one.

    Raises: ValueError naming the option when an escape is none of Python's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # of \d, which would stand for itself
            return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except (UnicodeDecodeError, DeprecationWarning) as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"{option} has an escape that Python strings have not: {reason}") from None


def _text_field(value: str) -> str:
    """A shell leaves the two characters of \\n in a template as they are; the name of a field has no escapes."""
    return unescaped(value, "--text-field") if "{" in value else value


TextField = Annotated[
    str,
    typer.Option(
        callback=_text_field,
        help=r'The field or column that holds the text, or a template, with escapes: "{title}\n{text}".',
    ),
]
Threads = Annotated[int, typer.Option(help="Threads; 0 means all cores.", min=0)]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="A progress bar on a terminal.")]
_CountFiles = Annotated[list[str], typer.Argument(help="Count files or globs (*.gtc).", metavar="FILES…")]
_Out = Annotated[str, typer.Option("--out", "-o", help="The count file to write (*.gtc).")]
_PATTERN = "How text is split: gpt2, cl100k_base, o200k_base, llama3, qwen2, deepseek-v3, nanochat or a regex."


def train(
    files: Annotated[list[str] | None, typer.Argument(help=_FILES_HELP, metavar="[FILES…]")] = None,
    *,
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-n", help="Ids: 256 bytes, merges, special tokens.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write.")] = "tokenizer.json",
    from_counts: Annotated[
        list[str] | None, typer.Option(help="A count file to train on; may be repeated, and FILES are more of them.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help=_PATTERN, show_default="gpt2, or that of --base or the count files")
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option(help="A special token; may be repeated.", show_default="<|endoftext|>")
    ] = None,
    min_count: Annotated[int, typer.Option(help="A pair must occur this often to be merged.", min=1)] = 1,
    max_token_bytes: Annotated[int | None, typer.Option(help="The longest token that a merge makes.", min=2)] = None,
    tie: Annotated[
        Literal["id", "hf"], typer.Option(help="Order of ids and equal counts: ours or Hugging Face's.")
    ] = "id",
    base: Annotated[str | None, typer.Option(help="A tokenizer to go on from; its ids stay.")] = None,
    superbpe_from: Annotated[
        int | None, typer.Option(help="From this vocabulary size on merges may cross single spaces.")
    ] = None,
    report: Annotated[str | None, typer.Option(help="A report to write, *.html or *.json.")] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Files that the report encodes, or a fraction of FILES to hold out; may be repeated."),
    ] = None,
    text_field: TextField = "text",
    threads: Threads = 0,
    progress: Progress = True,
) -> None:
    """Train a byte-level BPE tokenizer on text files or count files and write tokenizer.json."""
    from gptrs import trainer
    from gptrs.tokenizer import Tokenizer

    if Path(out).suffix not in (".json", ".tiktoken") or not Path(out).resolve().parent.is_dir():
        raise ValueError(f"--out must be a .json or .tiktoken file in a folder that exists, got {out}")
    if not files and not from_counts:
        raise typer.BadParameter("expected FILES… or --from-counts FILE")
    trainer.check_saves(out, pattern)
    make = Tokenizer.train_from_counts if from_counts else Tokenizer.train
    tokenizer = make(
        [*(from_counts or ()), *(files or ())],
        vocab_size,
        pattern=pattern,
        special_tokens=["<|endoftext|>"] if special is None else special,
        min_count=min_count,
        max_token_bytes=max_token_bytes,
        tie=tie,
        base=None if base is None else Tokenizer.from_file(base),
        superbpe_from=superbpe_from,
        report=report,
        held_out=_held_out(held_out),
        text_field=text_field,
        threads=threads,
        progress=progress,
    )
    tokenizer.save(out)
    typer.echo(f"{out}: {tokenizer.vocab_size} ids, pattern {tokenizer.pattern}, digest {tokenizer.digest[:16]}")


def _held_out(values: list[str] | None) -> list[str] | float | None:
    """Files, or the fraction that a single number means; a file of that name goes first."""
    if not values:
        return None
    if len(values) == 1 and not Path(values[0]).exists():
        try:
            return float(values[0])
        except ValueError:
            pass  # not a number: the name of a file that is missing, which is told later
    return values


def count(
    files: Files,
    out: _Out,
    pattern: Annotated[str, typer.Option(help=_PATTERN)] = "gpt2",
    superwords: Annotated[
        bool, typer.Option("--superwords", help="Count runs of words, for train --superbpe-from.")
    ] = False,
    text_field: TextField = "text",
    task: Annotated[
        int | None, typer.Option(help="Count this part of the files alone, from 0, into OUT.task-I-of-N.gtc.", min=0)
    ] = None,
    of: Annotated[int | None, typer.Option(help="The number of tasks that share the files.", min=1)] = None,
    threads: Threads = 0,
    progress: Progress = True,
) -> None:
    """Count the words of text files into a count file, so that machines can count apart and train together."""
    from gptrs import trainer

    _check_out(out)
    if (task is None) != (of is None):
        raise typer.BadParameter("expected --task I and --of N together")
    if task is not None and of is not None:
        out = str(trainer.task_file(out, task, of))
    facts = trainer.count(
        files,
        out,
        pattern=pattern,
        superwords=superwords,
        task=None if task is None or of is None else (task, of),
        text_field=text_field,
        threads=threads,
        progress=progress,
    )
    _say(out, facts)


def merge_counts(
    files: _CountFiles,
    out: _Out,
    partial: Annotated[bool, typer.Option("--partial", help="Some of the files of tasks may be missing.")] = False,
    progress: Progress = True,
) -> None:
    """Add count files up into one, in little memory however many and large; those of tasks must all be there."""
    from gptrs import trainer

    _check_out(out)
    _say(out, trainer.merge_counts(files, out, partial=partial, progress=progress))


def _check_out(out: str) -> None:
    if Path(out).suffix != ".gtc" or not Path(out).resolve().parent.is_dir():
        raise ValueError(f"--out must be a .gtc file in a folder that exists, got {out}")


def _say(out: str, facts: dict[str, Any]) -> None:
    sums = f"{facts['n_words']} words of {facts['n_bytes']} bytes in {facts['n_documents']} documents"
    typer.echo(f"{out}: {sums}, pattern {facts['pattern']}")
