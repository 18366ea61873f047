"""The command line: parse, call, print.

Results go to stdout, progress and messages to stderr. A mistake of the user is one line and exit code 1, a wrong
command line 2, Ctrl-C 130; a run that SIGTERM or SIGUSR1 stopped ends with 75: the same command goes on.
"""

import codecs
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from gptrs import cli_data, cli_doctor, cli_model, cli_plan, cli_runs, cli_training
from gptrs.cli_data import Pattern, load_tokenizer
from gptrs.cli_model import require_torch

_SETTINGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Raw text to a trained language model: tokenizer, token shards, training, generation.",
    context_settings=_SETTINGS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Train a tokenizer and use it.", no_args_is_help=True, context_settings=_SETTINGS)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(cli_data.app, name="data")
app.command("prepare")(cli_data.prepare)
app.command("plan")(cli_plan.plan)
app.command("runs")(cli_runs.runs_command)
app.command("doctor")(cli_doctor.doctor_command)

TokenizerFile = Annotated[str, typer.Argument(help="tokenizer.json, *.tiktoken, or a folder.", metavar="TOKENIZER")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that differ.", metavar="[SECTION.KEY=VALUE…]")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what an earlier run left in the run directory.")]

Allow = Annotated[
    list[str] | None,
    typer.Option(help="A setting that may differ from the unfinished run's; may be repeated.", metavar="SECTION.KEY"),
]


_LESS_MEMORY = (
    "hint: a smaller train.micro_batch or train.seq_len, speed.checkpoint_blocks=1, fewer new tokens or a smaller "
    "model takes less; gptrs plan says how much"
)


def main() -> None:
    """Runs the command line and exits."""
    _open_streams()
    # torch's OpenMP threads spin at every barrier by default; beside another busy process a step then takes 3 to 13
    # times as long as when they sleep (docs/log.md). Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler calls a machine without GPU an error
    _print_everything(sys.stdout)
    warnings.showwarning = lambda message, *_args, **_options: typer.echo(f"warning: {message}", err=True)
    try:
        app(prog_name="gptrs")
    except OSError as error:
        text = str(error) if error.filename else error.strerror or str(error)
        fail(text, on_each_rank=getattr(error, "on_each_rank", False))
    except (ValueError, ModuleNotFoundError) as error:
        fail(str(error), on_each_rank=getattr(error, "on_each_rank", False))
    except MemoryError as error:
        found = str(error) or "the system has no more memory"
        fail(found if "hint: " in found else f"{found}; hint: a smaller input or fewer threads take less")
    except RuntimeError as error:
        if not _is_torch_out_of_memory(error):
            raise
        fail(f"{str(error).split(chr(10))[0]}; {_LESS_MEMORY}", on_each_rank=True)


def _print_everything(stream: TextIO | None) -> None:
    """Writes what a terminal's encoding has not, or no encoding has, as \\x and \\u instead of ending the command.

    A choice of the user (PYTHONIOENCODING=ascii:replace) stays, and in UTF-8 the bytes of file names do.
    """
    if not isinstance(stream, io.TextIOWrapper):  # closed, or caught by a test
        return
    is_utf = codecs.lookup(stream.encoding).name.startswith("utf")
    if stream.errors == "strict" or (stream.errors == "surrogateescape" and not is_utf):
        stream.reconfigure(errors="backslashreplace")


def _open_streams() -> None:
    """Gives a program that was started without standard input, output or errors the null device in their place.

    Else Python has none of them, and the next file that is opened gets their number and what is written there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # by number: a new one is the lowest free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _is_torch_out_of_memory(error: RuntimeError) -> bool:
    """Whether that is torch's error of a GPU without memory, or of its allocator on the CPU. Imports no torch."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def fail(message: str, *, on_each_rank: bool = False) -> None:
    """Prints one line on stderr and exits with code 1; of the ranks of torchrun rank 0 prints it, or each does."""
    if on_each_rank or os.environ.get("RANK", "0") == "0":
        typer.echo(f"error: {message}", err=True)
    sys.exit(1)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from gptrs import __version__

        typer.echo(f"gptrs {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


tokenizer_app.command("train")(cli_training.train)
tokenizer_app.command("count")(cli_training.count)
tokenizer_app.command("merge-counts")(cli_training.merge_counts)


@tokenizer_app.command("encode")
def tokenizer_encode(
    tokenizer: TokenizerFile,
    text: Annotated[str | None, typer.Argument(help="The text; standard input without it.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="One line a token: its id and its text.")] = False,
    special: Annotated[bool, typer.Option("--special", help="Special-token text becomes its one id.")] = False,
    pattern: Pattern = None,
) -> None:
    """Print the ids of a text; special-token text is ordinary text unless --special is given."""
    from gptrs.inspect import quoted

    coder = load_tokenizer(tokenizer, pattern)
    source = sys.stdin.buffer.read() if text is None else text
    ids = coder.encode(source, allowed_special="all" if special else (), disallowed_special=())
    if not tokens:
        typer.echo(" ".join(map(str, ids)))
        return
    for token_id in ids:
        piece = coder.id_to_token(token_id)
        assert piece is not None, token_id
        typer.echo(f"{token_id}\t{quoted(piece)}")


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    tokenizer: TokenizerFile,
    text: Annotated[str | None, typer.Argument(help="The text; standard input without it.")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page with the merges as a drawing to this file.")] = None,
    special: Annotated[bool, typer.Option("--special", help="Special-token text becomes its one id.")] = False,
    pattern: Pattern = None,
) -> None:
    """Show how a text becomes ids: its pieces, and in each the merges in the order they happen."""
    from gptrs import inspect
    from gptrs.files import write_atomic

    coder = load_tokenizer(tokenizer, pattern)
    source = sys.stdin.buffer.read() if text is None else text
    pieces = inspect.trace(coder, source, allowed_special="all" if special else ())
    if html is None:
        typer.echo("\n".join(inspect.lines(coder, pieces)))
        return
    write_atomic(Path(html), inspect.page(coder, pieces).encode())
    typer.echo(f"{html}: {inspect.summary(coder, pieces)}")


@tokenizer_app.command("decode")
def tokenizer_decode(
    tokenizer: TokenizerFile,
    ids: Annotated[list[int] | None, typer.Argument(help="The ids; standard input without them.", min=0)] = None,
    pattern: Pattern = None,
) -> None:
    """Write the bytes of ids to standard output, exactly."""
    coder = load_tokenizer(tokenizer, pattern)
    if not ids:
        words = sys.stdin.read().split()
        bad = next((word for word in words if not word.isdecimal()), None)
        if bad is not None:
            raise ValueError(f"expected ids separated by spaces on standard input, got {bad!r}")
        ids = [int(word) for word in words]
    sys.stdout.buffer.write(coder.decode_bytes(ids))
    sys.stdout.buffer.flush()


@app.command("train")
def train_command(
    config: Annotated[
        str, typer.Argument(help="A config by name (demo, shakespeare_cpu, …) or path.", metavar="CONFIG")
    ],
    overrides: Overrides = None,
    fresh: Fresh = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Train nothing: search a learning rate in about 100 updates.")
    ] = False,
    allow: Allow = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Trace updates: log.profile, which an unfinished run takes too.", metavar="FIRST,LAST"),
    ] = None,
) -> None:
    """Train a model as a config says; the same command on an unfinished run goes on where it stood."""
    require_torch("train")
    from gptrs.train import config as train_config
    from gptrs.train import pretrain

    if find_lr and (fresh or allow or profile is not None):
        raise typer.BadParameter("--find-lr leaves the run alone and takes no --fresh, --allow or --profile")
    given, allowed = list(overrides or ()), list(allow or ())
    if profile is not None:
        given.append(f"log.profile={profile}")
        allowed.append("log.profile")
    with _stop_codes():
        if find_lr:
            from gptrs.train.find_lr import find_rate

            find_rate(train_config.load(config, given))
        else:
            pretrain.run(train_config.load(config, given), is_fresh=fresh, allow=allowed)


@contextmanager
def _stop_codes() -> Iterator[None]:
    """Ends with the exit code of the signal that a run was stopped by."""
    from gptrs.train.signals import Stopped

    try:
        yield
    except Stopped as stopped:
        raise typer.Exit(stopped.exit_code) from None


@app.command("demo")
def demo_command(
    text: Annotated[list[str] | None, typer.Option(help="Your text instead: files, globs or folders.")] = None,
    rest: Annotated[
        list[str] | None,
        typer.Argument(help="More files for --text; settings.", metavar="[FILES…] [SECTION.KEY=VALUE…]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A preset in the place of the small GPT: deepseek-tiny, …; its report shows both."),
    ] = None,
    fresh: Fresh = False,
    allow: Allow = None,
) -> None:
    """Take the source of Python's standard library all the way to a trained model, in some five minutes."""
    require_torch("demo")
    from gptrs import demo

    overrides = [word for word in rest or () if "=" in word]
    files = [word for word in rest or () if "=" not in word]
    if files and not text:
        raise typer.BadParameter(f"expected section.key=value, got {files[0]!r}; hint: gptrs demo --text {files[0]}")
    with _stop_codes():
        demo.run([*text, *files] if text else None, model=model, overrides=overrides, is_fresh=fresh, allow=allow or ())


app.command("generate")(cli_model.generate_command)
app.command("attention")(cli_model.attention_command)
app.command("import")(cli_model.import_command)
app.command("convert")(cli_model.convert_command)
app.command("export")(cli_model.export_command)
