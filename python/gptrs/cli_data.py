"""The commands that write token shards and look into them: prepare, data inspect, verify, show."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gptrs.cli_training import Files, Progress, TextField, Threads

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

app = typer.Typer(
    help="Look into token shards and check them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TokenizerOption = Annotated[str, typer.Option("--tokenizer", "-t", help="tokenizer.json, *.tiktoken, or a folder.")]
Pattern = Annotated[str | None, typer.Option(help="Splitting pattern of a .tiktoken file: a name or a regex.")]
Folder = Annotated[str, typer.Argument(help="The folder that `gptrs prepare` wrote.", metavar="DIR")]


def prepare(
    files: Files,
    tokenizer: TokenizerOption,
    out: Annotated[str, typer.Option("--out", "-o", help="The folder for the shards and manifest.json.")],
    train_tokenizer: Annotated[
        int | None,
        typer.Option(help="Train TOKENIZER on these files first, with this many ids.", metavar="VOCAB_SIZE"),
    ] = None,
    pattern: Pattern = None,
    text_field: TextField = "text",
    stdin: Annotated[
        Literal["txt", "jsonl"], typer.Option(help="What standard input holds, the file named -.")
    ] = "txt",
    shard_tokens: Annotated[int, typer.Option(help="Tokens in a shard.", min=1)] = 1 << 27,
    eot: Annotated[bool, typer.Option("--eot/--no-eot", help="Write the end-of-text id after each document.")] = True,
    doc_separator: Annotated[
        str | None,
        typer.Option(help=r"What stands between the documents of a .txt file, with escapes: '\n\n\n'.", metavar="TEXT"),
    ] = None,
    min_document_bytes: Annotated[int | None, typer.Option(help="Leave out shorter documents.", min=1)] = None,
    max_document_bytes: Annotated[int | None, typer.Option(help="Leave out longer documents.", min=1)] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out documents equal to an earlier one.")] = False,
    errors: Annotated[
        Literal["strict", "replace"], typer.Option(help="Refuse what is not UTF-8, or write U+FFFD for it.")
    ] = "strict",
    source: Annotated[str | None, typer.Option(help="What the manifest calls the text.", metavar="NAME")] = None,
    weight: Annotated[float | None, typer.Option(help="Its weight in a mixture of several.")] = None,
    threads: Threads = 0,
    progress: Progress = True,
) -> None:
    """Encode text files into token shards; the same command again finishes what was cut off."""
    from gptrs import dataset as datasets
    from gptrs import train_and_prepare
    from gptrs.corpus import standard_input

    documents: datasets.DocumentOptions = {
        "doc_separator": None if doc_separator is None else unescaped(doc_separator),
        "min_document_bytes": min_document_bytes,
        "max_document_bytes": max_document_bytes,
        "dedup": dedup,
        "errors": errors,
        "source": source,
        "weight": weight,
    }
    coder = None
    if train_tokenizer is None:
        coder = load_tokenizer(tokenizer, pattern)
    else:
        check_out(tokenizer, "--tokenizer")
    with standard_input(files, stdin, out) as paths:
        if coder is not None:
            dataset = datasets.prepare(
                paths,
                coder,
                out,
                text_field=text_field,
                shard_tokens=shard_tokens,
                append_eot=eot,
                threads=threads,
                progress=progress,
                **documents,
            )
        elif train_tokenizer is not None:
            coder, dataset = train_and_prepare(
                paths,
                train_tokenizer,
                out,
                pattern=pattern or "gpt2",
                save=tokenizer,
                text_field=text_field,
                shard_tokens=shard_tokens,
                append_eot=eot,
                documents=documents,
                threads=threads,
                progress=progress,
            )
            typer.echo(f"{tokenizer}: {coder.vocab_size} ids, pattern {coder.pattern}, digest {coder.digest[:16]}")
    typer.echo(f"{out}: {dataset.n_tokens} tokens, {dataset.n_documents} documents, fingerprint {dataset.fingerprint}")


@app.command("inspect")
def data_inspect(path: Folder) -> None:
    """Print what a dataset holds."""
    from gptrs.dataset import Dataset

    dataset = Dataset(path)
    facts = {
        "tokens": dataset.n_tokens,
        "documents": dataset.n_documents,
        "ids": f"{dataset.dtype.name}, below {dataset.vocab_size}",
        "shards": len(dataset.manifest["shards"]),
        "tokenizer": dataset.tokenizer_digest,
        "fingerprint": dataset.fingerprint,
    }
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")
    for shard in dataset.manifest["shards"]:
        typer.echo(f"  {shard['name']}  {shard['n_tokens']} tokens  {shard['n_documents']} documents")


@app.command("verify")
def data_verify(path: Folder, threads: Threads = 0, progress: Progress = True) -> None:
    """Read every byte of a dataset and compare all checksums."""
    from gptrs.dataset import Dataset

    dataset = Dataset(path)
    dataset.verify(threads=threads, progress=progress)
    typer.echo(f"{path}: {dataset.n_tokens} tokens are whole, fingerprint {dataset.fingerprint}")


@app.command("show")
def data_show(
    path: Folder,
    batch: Annotated[int, typer.Argument(help="Which batch, counted from 0.", min=0)] = 0,
    seq_len: Annotated[int, typer.Option(help="Tokens in a row.", min=1)] = 64,
    global_batch: Annotated[int, typer.Option(help="Rows in a batch.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="The loader's seed.", min=0)] = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="The loader's order or the dataset's.")
    ] = True,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Show text instead of ids.")] = None,
    pattern: Pattern = None,
) -> None:
    """Print the rows of batch BATCH exactly as training sees them."""
    from gptrs.dataset import Dataset
    from gptrs.inspect import quoted
    from gptrs.loader import Loader

    dataset = Dataset(path)
    coder = None if tokenizer is None else load_tokenizer(tokenizer, pattern)
    if coder is not None and coder.digest != dataset.tokenizer_digest:
        raise ValueError(
            f"{path} was made by the tokenizer with digest {dataset.tokenizer_digest}, {tokenizer} has {coder.digest}"
        )
    with Loader(
        dataset, seq_len=seq_len, global_batch=global_batch, seed=seed, shuffle=shuffle, device="numpy"
    ) as loader:
        shown = loader.batch_at(batch)
    for start, row in zip(shown.starts, shown.tokens, strict=True):
        content = " ".join(map(str, row.tolist())) if coder is None else quoted(coder.decode_bytes(row))
        typer.echo(f"token {start}: {content}")


def unescaped(text: str) -> str:
    """`text` with the escapes of a Python string read: \\n, \\t, \\x1e, \\u2028, and two backslashes for one."""
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise ValueError(f"--doc-separator has an escape that Python strings have not: {error.reason}") from None


def check_out(path: str, option: str) -> None:
    """Before the work: what is trained can be saved."""
    if Path(path).suffix not in (".json", ".tiktoken") or not Path(path).resolve().parent.is_dir():
        raise ValueError(f"{option} must be a .json or .tiktoken file in a folder that exists, got {path}")


def load_tokenizer(path: str, pattern: str | None) -> "Tokenizer":
    """The tokenizer that a command names."""
    from gptrs.tokenizer import Tokenizer

    return Tokenizer.from_file(path, pattern=pattern)
