"""The commands of a trained model: generate, attention, import, convert, export."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptrs.cli_data import load_tokenizer

if TYPE_CHECKING:
    from gptrs.generate import Token
    from gptrs.model import Transformer
    from gptrs.tokenizer import Tokenizer

Run = Annotated[str | None, typer.Option(help="A run directory; its newest checkpoint is used.")]
_GGUF_TYPES: dict[str, Literal["F32", "F16", "BF16", "Q8_0"]] = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0",
}  # fmt: skip
Checkpoint = Annotated[str | None, typer.Option(help="One checkpoint in a run directory.")]
Averaged = Annotated[bool, typer.Option("--ema", help="Take the running mean of the weights (train.ema).")]


def require_torch(command: str) -> None:
    """Ends a command that needs PyTorch, or what comes with it, where it is not installed."""
    for name in ("torch", "safetensors", "matplotlib"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"gptrs {command} needs {name}, which is not installed; hint: pip install 'gptrs[train]'"
            )


def generate_command(
    run: Run = None,
    checkpoint: Checkpoint = None,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The text to go on from.", show_default="a new line")
    ] = "\n",
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", "-n", help="Tokens at most.", show_default="200, or what fits", min=1),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; 1 draws as the model says.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many of the likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest that reach this probability.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw from those at least so many times as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, tokens of the prompt and of the new text become less likely.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text to end before; may be given several times.")] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(help="Write tokens as lines of JSON with log-probabilities, and with so many of the likeliest."),
    ] = None,
    drafts: Annotated[
        int, typer.Option(help="Tokens that the model's further-token modules guess before each pass.")
    ] = 0,
    prefill_chunk: Annotated[int | None, typer.Option(help="Positions of the prompt to read at a time.")] = None,
    is_compiled: Annotated[bool, typer.Option("--compile", help="Compile the model's pass over new tokens.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes cuda when there is one.")] = "auto",
    ema: Averaged = False,
) -> None:
    """Write on from a prompt with a trained model, character by character as they come."""
    require_torch("generate")
    from gptrs.generate import stream_tokens

    model, tokenizer = open_model(run, checkpoint, device, is_averaged=ema)
    ids = tokenizer.encode(prompt, allowed_special="all")
    limit = model.config.position_limit
    room = 200 if limit is None else min(200, max(limit - len(ids), 1))
    tokens = stream_tokens(
        model,
        ids,
        max_new_tokens=max_new_tokens or room,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_tokens=() if tokenizer.eot_id is None else (tokenizer.eot_id,),
        stop_strings=stop or (),
        tokenizer=tokenizer,
        logprobs=logprobs,
        seed=seed,
        prefill_chunk=prefill_chunk,
        n_drafts=drafts,
        is_compiled=is_compiled,
    )
    if logprobs is None:
        _write(prompt)
    last = None
    for last in tokens:
        _write(last.text if logprobs is None else _as_line(last, tokenizer))
    if logprobs is None:
        _write("\n")
    if last is not None and drafts:
        share = f" ({last.n_accepted / last.n_drafted:.1%})" if last.n_drafted else ""
        typer.echo(f"drafts: {last.n_accepted} of {last.n_drafted} accepted{share}", err=True)


def _as_line(token: "Token", tokenizer: "Tokenizer") -> str:
    """A token as one line of JSON; "token" is its own text, with � where it holds parts of characters, or null."""

    def text(token_id: int) -> str | None:
        return None if tokenizer.id_to_token(token_id) is None else tokenizer.decode([token_id])

    likeliest = [{"id": i, "token": text(i), "logprob": round(p, 6)} for i, p in token.likeliest]
    line: dict[str, Any] = {"id": token.id, "token": text(token.id), "logprob": round(token.logprob or 0.0, 6)}
    line |= {"likeliest": likeliest} if likeliest else {}
    is_ascii = not sys.stdout.encoding.lower().startswith("utf")  # which JSON has escapes of its own for
    return json.dumps(line, ensure_ascii=is_ascii) + "\n"


def attention_command(
    text: Annotated[str, typer.Argument(help="The text whose tokens look at each other.")],
    run: Run = None,
    checkpoint: Checkpoint = None,
    layer: Annotated[int | None, typer.Option(help="Draw this layer alone, counted from 0.", min=0)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Draw every head, *.png.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes cuda when there is one.")] = "auto",
) -> None:
    """Show where every attention head of a trained model looks in a text: means as a table, weights as a picture."""
    require_torch("attention")
    import torch

    from gptrs import attention_map

    if out is not None and (Path(out).suffix != ".png" or not Path(out).resolve().parent.is_dir()):
        raise ValueError(f"--out must be a .png file in a folder that exists, got {out}")
    model, tokenizer = open_model(run, checkpoint, device)
    if layer is not None and layer >= model.config.n_layers:
        raise ValueError(f"--layer must be below n_layers ({model.config.n_layers}), got {layer}")
    if layer is not None and out is None:
        raise typer.BadParameter("--layer says which layer is drawn and goes with --out FILE.png")
    ids = tokenizer.encode(text, allowed_special="all")
    tokens = torch.tensor([ids], dtype=torch.int64, device=model.embed.token.weight.device)
    weights = attention_map.attention_weights(model, tokens)
    for line in attention_map.lines(attention_map.heads(weights)):
        typer.echo(line)
    if out is not None:
        drawn = weights if layer is None else weights[layer : layer + 1]
        labels = [tokenizer.decode([token_id]) for token_id in ids]
        attention_map.draw(Path(out), [of_layer[0] for of_layer in drawn], labels)
        typer.echo(f"{out}: {len(drawn) * model.config.n_heads} heads over {len(ids)} tokens")


def import_command(
    source: Annotated[
        str, typer.Argument(help="A folder of Hugging Face transformers, a *.gguf, or llama2.c's *.bin.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The run directory to make.")],
    tokenizer: Annotated[str | None, typer.Option(help="Its tokenizer, where SOURCE has none.")] = None,
) -> None:
    """Read a model of another program into a run directory, for generate, export and training on."""
    require_torch("import")
    path, folder = Path(source), Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"expected an empty or new directory, got {out}; hint: remove it, or name another")
    if not path.exists():
        raise FileNotFoundError(f"expected a folder, a *.gguf or a *.bin file, found nothing at {source}")
    import dataclasses

    from gptrs.train import checkpoint as checkpoints

    model, coder = _read_foreign(path, tokenizer)
    if coder is not None and coder.vocab_size > model.config.vocab_size:
        got = f"one of {coder.vocab_size} ids and a model of {model.config.vocab_size}"
        raise ValueError(f"expected the tokenizer of the model, got {got}; hint: --tokenizer FILE")
    state = {"model": dataclasses.asdict(model.config), "imported": path.name}
    checkpoints.save(folder / "checkpoints", step=0, model=model, optimizer=None, state=state, keep=1)
    if coder is not None:
        coder.save(folder / "tokenizer.json")
    n_params = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{out}: {n_params:,} parameters")


def _read_foreign(path: Path, tokenizer: str | None) -> tuple["Transformer", "Tokenizer | None"]:
    """The model of another program's files, and its tokenizer or the named one."""
    from gptrs.exchange.gguf_read import import_gguf, import_gguf_tokenizer, is_gguf_file
    from gptrs.exchange.hf import import_hf
    from gptrs.exchange.llama2c import import_llama2c
    from gptrs.exchange.torch_file import is_torch_file

    if path.is_file() and is_torch_file(path):
        raise ValueError(f"{path} is a pickle of PyTorch, which is not read here; hint: gptrs convert {path} -o FOLDER")
    is_gguf = path.is_file() and is_gguf_file(path)
    own = tokenizer or (str(path) if path.is_dir() and (path / "tokenizer.json").exists() else None)
    coder = None if own is None else load_tokenizer(own, None)
    if coder is None and is_gguf:
        coder = import_gguf_tokenizer(path)
    if coder is None:
        kind = "tokenizer that is read" if is_gguf else "tokenizer.json"
        typer.echo(f"warning: {path} has no {kind}; hint: name its tokenizer with --tokenizer", err=True)
    if is_gguf:
        return import_gguf(path), coder
    return import_hf(path) if path.is_dir() else import_llama2c(path), coder


def convert_command(
    source: Annotated[str, typer.Argument(help="nanoGPT's ckpt.pt, or pytorch_model.bin beside its config.json.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to make, for gptrs import and transformers.")],
) -> None:
    """Make a folder of safetensors of a PyTorch file, a pickle; tensors and plain values are read, nothing runs."""
    require_torch("convert")
    if not Path(source).is_file():
        raise FileNotFoundError(f"expected a file of PyTorch, found none at {source}")
    from gptrs.exchange.torch_file import convert

    folder = convert(Path(source), Path(out))
    typer.echo(f"{out}: {sum(path.stat().st_size for path in folder.iterdir()):,} bytes")


def export_command(
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to make, or the file, when it ends in .gguf.")],
    run: Run = None,
    checkpoint: Checkpoint = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "q8_0"],
        typer.Option(help="The type of the weights; q8_0, 8 bits, in GGUF files alone."),
    ] = "float32",
    ema: Averaged = False,
) -> None:
    """Write a trained model and its tokenizer, if it has one, for Hugging Face transformers or llama.cpp."""
    require_torch("export")
    is_gguf = Path(out).suffix == ".gguf"
    if dtype == "q8_0" and not is_gguf:
        raise ValueError(f"expected --out FILE.gguf with --dtype q8_0, got {out}")
    if (run is None) == (checkpoint is None):
        raise typer.BadParameter("expected --run DIR or --checkpoint DIR")
    import torch

    from gptrs.exchange import gguf, hf

    if is_gguf:
        gguf.package()
        gguf.check_place(out)
    model, tokenizer, folder = _newest(run, checkpoint, "cpu", is_averaged=ema)
    if tokenizer is None:
        typer.echo(f"warning: {folder} has no tokenizer.json, so {out} has no tokenizer", err=True)
    if is_gguf:
        gguf.export_gguf(model, out, tokenizer=tokenizer, dtype=_GGUF_TYPES[dtype])
        n_bytes = Path(out).stat().st_size
    else:
        hf.export_hf(model.to(getattr(torch, dtype)), out, tokenizer=tokenizer)
        n_bytes = sum(path.stat().st_size for path in Path(out).iterdir())
    typer.echo(f"{out}: {n_bytes:,} bytes")


def open_model(
    run: str | None, checkpoint: str | None, device: str, *, is_averaged: bool = False
) -> tuple["Transformer", "Tokenizer"]:
    """The model of a checkpoint, by default the newest of a run, or its weights' mean, and the run's tokenizer."""
    model, tokenizer, _ = _newest(run, checkpoint, device, is_averaged=is_averaged, needs_tokenizer=True)
    assert tokenizer is not None
    return model, tokenizer


def _newest(
    run: str | None, checkpoint: str | None, device: str, *, is_averaged: bool, needs_tokenizer: bool = False
) -> tuple["Transformer", "Tokenizer | None", Path]:
    """As `open_model`, and the run's folder; a model that was imported may have no tokenizer."""
    from gptrs.train import checkpoint as checkpoints

    if (run is None) == (checkpoint is None):
        raise typer.BadParameter("expected --run DIR or --checkpoint DIR")
    path = Path(checkpoint) if checkpoint is not None else checkpoints.find(Path(str(run)) / "checkpoints").newest
    folder = Path(run) if run is not None else Path(str(checkpoint)).resolve().parent.parent
    if path is None:
        raise FileNotFoundError(
            f"expected a finished checkpoint in {folder / 'checkpoints'}, found none; hint: gptrs train"
        )
    file = folder / "tokenizer.json"
    if needs_tokenizer and not file.exists():
        hint = "hint: gptrs import takes one with --tokenizer FILE"
        raise FileNotFoundError(f"expected tokenizer.json in {folder}, found none; {hint}")
    tokenizer = load_tokenizer(str(file), None) if file.exists() else None
    try:
        return _model_of(path, device, is_averaged=is_averaged).eval(), tokenizer, folder
    except (OSError, ValueError):
        if checkpoint is not None or path.exists():
            raise
    # A run that trains removed it meanwhile: it has a newer one.
    return _newest(run, checkpoint, device, is_averaged=is_averaged, needs_tokenizer=needs_tokenizer)


def _model_of(path: Path, device: str, *, is_averaged: bool) -> "Transformer":
    """The model of a checkpoint; what belongs to the optimizer is not read."""
    import torch

    from gptrs.model import ModelConfig, Transformer
    from gptrs.train import checkpoint as checkpoints

    checkpoints.verify(path, lambda number, name: name == "state.json")
    config = ModelConfig(**checkpoints.read_state(path)["model"])
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f"device must be auto, cpu or a CUDA device that is there, got {device!r}")
    model = Transformer(config).to(name)
    checkpoints.load_model(path, model, is_averaged=is_averaged)
    return model


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
