"""The commands that write token shards and look into them: prepare, data import, export, inspect, verify, show."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptrs import cli_tasks
from gptrs.cli_training import Files, Progress, TextField, Threads, unescaped

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

app = typer.Typer(
    help="Look into token shards, check them, and take or write token files of other programs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TokenizerOption = Annotated[str, typer.Option("--tokenizer", "-t", help="tokenizer.json, *.tiktoken, or a folder.")]
Pattern = Annotated[str | None, typer.Option(help="Splitting pattern of a .tiktoken file: a name or a regex.")]
Folder = Annotated[
    str, typer.Argument(help="A dataset: what `gptrs prepare` wrote or `data import` read.", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
    loss_field: Annotated[
        list[str] | None,
        typer.Option(help="Predict the tokens of this field alone, for fine-tuning; may come again.", metavar="FIELD"),
    ] = None,
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
    task: cli_tasks.Task = None,
    of: cli_tasks.Of = None,
    merge: cli_tasks.Merge = False,
    keep_tasks: cli_tasks.KeepTasks = False,
    ray: cli_tasks.Ray = None,
    threads: Threads = 0,
    progress: Progress = True,
) -> None:
    """Encode text files into token shards; the same command again finishes what was cut off.

    Machines that share a folder share the work: run it with --task I --of N for every I from 0 to N - 1, in any order,
    then once with --of N --merge. On Slurm, --task $SLURM_ARRAY_TASK_ID; on a Ray cluster, --ray ADDRESS does it all.
    """
    if stdin != "txt" and "-" not in files:
        raise typer.BadParameter(f"--stdin {stdin} says what standard input holds, but no file is named -")
    if keep_tasks and not (merge or ray):
        raise typer.BadParameter("--keep-tasks goes with --merge or --ray ADDRESS")
    from gptrs import dataset as datasets
    from gptrs import train_and_prepare
    from gptrs.corpus import standard_input

    documents: datasets.DocumentOptions = {
        "doc_separator": None if doc_separator is None else unescaped(doc_separator, "--doc-separator"),
        "min_document_bytes": min_document_bytes,
        "max_document_bytes": max_document_bytes,
        "dedup": dedup,
        "errors": errors,
        "source": source,
        "weight": weight,
    }
    if cli_tasks.is_asked(task, of, merge, ray):
        if train_tokenizer is not None:
            raise typer.BadParameter("tasks share one tokenizer; hint: train it first, with gptrs tokenizer train")
        cli_tasks.prepare(
            files,
            tokenizer,
            pattern,
            out,
            task=task,
            of=of,
            keep_tasks=keep_tasks,
            ray=ray,
            text_field=text_field,
            shard_tokens=shard_tokens,
            append_eot=eot,
            loss_fields=loss_field or (),
            threads=threads,
            progress=progress,
            **documents,
        )
        return
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
                loss_fields=loss_field or (),
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
                loss_fields=loss_field or (),
                documents=documents,
                threads=threads,
                progress=progress,
            )
            typer.echo(f"{tokenizer}: {coder.vocab_size} ids, pattern {coder.pattern}, digest {coder.digest[:16]}")
    cli_tasks.report(out, dataset)


@app.command("import")
def data_import(
    files: Annotated[
        list[str], typer.Argument(help="Token files of one folder, globs, or the folder.", metavar="FILES...")
    ],
    tokenizer: TokenizerOption,
    pattern: Pattern = None,
    format: Annotated[
        Literal["nanogpt", "llmc", "megatron", "datatrove", "olmo"] | None,
        typer.Option(help="Whose format it is; otherwise the file's ending and first bytes say it."),
    ] = None,
    dtype: Annotated[
        Literal["uint16", "uint32"] | None, typer.Option(help="The ids' type, if files do not say it.")
    ] = None,
    eot_at: Annotated[
        Literal["end", "start"],
        typer.Option(help="Where documents have the end-of-text id, if files do not list them."),
    ] = "end",
    threads: Threads = 0,
    progress: Progress = True,
) -> None:
    """Make the folder of token files of nanoGPT, llm.c, Megatron-LM, datatrove or OLMo a dataset; nothing is copied."""
    from gptrs.dataset import import_tokens

    coder = load_tokenizer(tokenizer, pattern)
    dataset = import_tokens(files, coder, format=format, dtype=dtype, eot_at=eot_at, threads=threads, progress=progress)
    counts = f"{dataset.n_tokens} tokens, {dataset.n_documents} documents"
    typer.echo(f"{dataset.path}: {counts}, fingerprint {dataset.fingerprint}")


@app.command("export")
def data_export(
    path: Folder,
    out: Annotated[str, typer.Argument(help="The folder for the files.", metavar="OUT")],
    format: Annotated[Literal["nanogpt", "llmc", "megatron"], typer.Option(help="Whose format.")],
    tokens_per_file: Annotated[
        int | None, typer.Option(help="Most tokens in a file of llmc.", show_default="100000000", min=1)
    ] = None,
    drop_loss_bits: Annotated[
        bool, typer.Option("--drop-loss-bits", help="Leave loss bits behind: readers predict every token.")
    ] = False,
    progress: Progress = True,
) -> None:
    """Write a dataset as token files of nanoGPT, llm.c or Megatron-LM."""
    if tokens_per_file is not None and format != "llmc":
        raise typer.BadParameter(f"--tokens-per-file goes with --format llmc, files of {format} are not divided")
    from gptrs.dataset import Dataset

    dataset = Dataset(path)
    sizes = {} if tokens_per_file is None else {"tokens_per_file": tokens_per_file}
    files = dataset.export(out, format, drop_loss_bits=drop_loss_bits, progress=progress, **sizes)
    if dataset.has_loss_bits:
        typer.echo("loss bits stayed behind: readers of these files predict every token", err=True)
    for file in files:
        typer.echo(f"{file}: {file.stat().st_size} bytes")


@app.command("inspect")
def data_inspect(path: Folder, as_json: Json = False) -> None:
    """Print what a dataset holds."""
    from gptrs.dataset import Dataset

    dataset = Dataset(path)
    manifest = dataset.manifest
    facts: dict[str, Any] = {
        "tokens": dataset.n_tokens,
        "documents": dataset.n_documents,
        "text": f"{manifest['n_bytes']} bytes",
        "ids": f"{dataset.dtype.name}, below {dataset.vocab_size}",
        **cli_tasks.corrections(manifest),
        "shards": len(manifest["shards"]),
        "tokenizer": dataset.tokenizer_digest,
        "fingerprint": dataset.fingerprint,
    }
    if as_json:
        counts = {"left out": manifest.get("left_out", {}), "replaced": manifest.get("replaced", 0)}
        typer.echo(json.dumps({**facts, **counts, "text": manifest["n_bytes"], "shards": manifest["shards"]}))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")
    for shard in manifest["shards"]:
        typer.echo(f"  {shard['name']}  {shard['n_tokens']:,} tokens  {shard['n_documents']:,} documents")


@app.command("verify")
def data_verify(path: Folder, threads: Threads = 0, progress: Progress = True) -> None:
    """Read every byte of a dataset and compare all checksums."""
    from gptrs.dataset import Dataset

    dataset, start = Dataset(path), time.perf_counter()
    n_bytes = dataset.verify(threads=threads, progress=progress)
    seconds, n_shards = time.perf_counter() - start, len(dataset.manifest["shards"])
    typer.echo(f"{path}: {dataset.n_tokens:,} tokens are whole, fingerprint {dataset.fingerprint}")
    rate = n_bytes / 1e6 / max(seconds, 1e-9)
    typer.echo(f"{n_shards:,} shard{'s' * (n_shards != 1)}, {n_bytes:,} bytes in {seconds:.2f} s, {rate:.0f} MB/s")


@app.command("show")
def data_show(
    path: Folder,
    batch: Annotated[int | None, typer.Argument(help="Which batch, counted from 0.", min=0)] = None,
    batch_option: Annotated[int | None, typer.Option("--batch", help="The same.", min=0)] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens in a row.", min=1)] = 64,
    global_batch: Annotated[int, typer.Option(help="Rows in a batch.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="The loader's seed.", min=0)] = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="The loader's order or the dataset's.")
    ] = True,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Show text instead of ids.")] = None,
    pattern: Pattern = None,
    as_json: Json = False,
) -> None:
    """Print the rows of batch BATCH exactly as training sees them."""
    if pattern is not None and tokenizer is None:
        raise typer.BadParameter("--pattern goes with --tokenizer FILE.tiktoken")
    from gptrs.dataset import Dataset
    from gptrs.inspect import quoted
    from gptrs.loader import Loader

    if batch is not None and batch_option is not None:
        raise ValueError(f"expected one batch, got {batch} and --batch {batch_option}")
    index = next((k for k in (batch, batch_option) if k is not None), 0)
    dataset = Dataset(path)
    coder = None if tokenizer is None else load_tokenizer(tokenizer, pattern)
    if coder is not None and coder.digest != dataset.tokenizer_digest:
        raise ValueError(
            f"{path} was made by the tokenizer with digest {dataset.tokenizer_digest}, {tokenizer} has {coder.digest}"
        )
    with Loader(
        dataset, seq_len=seq_len, global_batch=global_batch, seed=seed, shuffle=shuffle, device="numpy"
    ) as loader:
        shown = loader.batch_at(index)
    rows = list(zip(map(int, shown.starts), shown.tokens.tolist(), strict=True))
    if as_json:
        batch_of: dict[str, Any] = {
            "fingerprint": dataset.fingerprint,
            "batch": index,
            "seed": seed,
            "shuffle": shuffle,
        }
        texts = [{} if coder is None else {"text": coder.decode(row)} for _, row in rows]
        batch_of["rows"] = [
            {"start": start, "ids": row, **text} for (start, row), text in zip(rows, texts, strict=True)
        ]
        typer.echo(json.dumps(batch_of))
        return
    for start, row in rows:
        content = " ".join(map(str, row)) if coder is None else quoted(coder.decode_bytes(row))
        typer.echo(f"token {start}: {content}")


def check_out(path: str, option: str) -> None:
    """Before the work: what is trained can be saved."""
    if Path(path).suffix not in (".json", ".tiktoken") or not Path(path).resolve().parent.is_dir():
        raise ValueError(f"{option} must be a .json or .tiktoken file in a folder that exists, got {path}")


def load_tokenizer(path: str, pattern: str | None) -> "Tokenizer":
    """The tokenizer that a command names."""
    from gptrs.tokenizer import Tokenizer

    return Tokenizer.from_file(path, pattern=pattern)
