"""PyTorch's own files, which are pickles, made into a directory of safetensors; the one place that reads them.

    ckpt.pt of nanoGPT        {"model": tensors, "model_args": sizes, …}      config.json is made from the sizes
    pytorch_model.bin, *.pt   tensors by name, of transformers                config.json stands beside the file

Only tensors and plain values are unpickled (`weights_only`): a file that asks for anything else is refused, and nothing
in it runs. What comes out is read by `hf.import_hf`, once before it gets its name.
"""

import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gptrs.exchange import hf_config
from gptrs.exchange.hf import import_hf
from gptrs.files import sync_directory, write_synced
from gptrs.model.config import ModelConfig

_COMPILED = "_orig_mod."  # torch.compile puts it before each name
_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # nanoGPT's, stored as (out, in); Conv1D there
_KINDS = (Tensor, nn.Parameter)  # other subclasses have numbers that are not their memory's
_ARGUMENTS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_OTHERS = ("bias", "dropout")  # arguments that need not be there


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as `torch.save` writes: an archive, or a bare pickle."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))


def convert(source: Path, directory: Path) -> Path:
    """Writes a PyTorch file as a directory of Hugging Face transformers; returns the directory.

    A nanoGPT model without biases gets biases of 0: the same function, and what the class has. Its GELU is the exact
    one, GPT-2's the tanh form, which differs by less than 5e-4: a warning says so.
    Raises: ValueError for a file that holds other things than tensors, or tensors that do not fit its sizes;
        FileExistsError for a directory that is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"expected an empty or new directory, got {directory}; hint: remove it, or name another")
    given = _load(source)
    is_nanogpt = isinstance(given.get("model"), dict) and isinstance(given.get("model_args"), dict)
    if is_nanogpt:
        config, tensors = _nanogpt(source, given["model"], given["model_args"])
    else:
        config, tensors = _beside(source), _tensors(source, given)
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_synced(temporary / "config.json", json.dumps(config, indent=2).encode())
        safetensors.torch.save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        import_hf(temporary, device="cpu")
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, ValueError):
            raise ValueError(str(error).replace(str(temporary), str(source))) from error
        raise
    sync_directory(directory.parent)
    if is_nanogpt:
        forms = "nanoGPT computes GELU exactly, GPT-2 by its tanh form"
        warnings.warn(f"{source}: {forms}, so logits differ in the third or fourth digit", stacklevel=2)
    return directory


def _load(source: Path) -> dict[str, Any]:
    try:
        given = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except OSError:
        raise
    except Exception as error:  # of any kind: a damaged pickle fails wherever its bytes lead
        # torch's own first line advises to load such a file all the same.
        refused = re.search(
            r"(?m)(?:WeightsUnpickler error: *|^)(.*unsupported GLOBAL.+?|Unsupported .+?)(?:\. |\.?$)", str(error)
        )
        first = refused[1] if refused else (str(error).strip() or type(error).__name__).splitlines()[0]
        if object_ := re.fullmatch(r"Unsupported global: GLOBAL (\S+) was not an allowed global by default", first):
            kind = "a whole module" if object_[1].startswith("torch.nn.modules.") else "an object"
            first = f"it holds {kind} of the class {object_[1]}, and reading that runs code"
        hint = "hint: save tensors and plain values alone, as torch.save(model.state_dict(), …)"
        raise ValueError(f"{source}: expected a file of tensors by PyTorch: {first:.200}; {hint}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{source}: expected tensors by name, got a {type(given).__name__}")
    return given


def _tensors(source: Path, given: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by name, each in memory of its own."""
    odd = next((name for name, value in given.items() if not (isinstance(name, str) and type(value) in _KINDS)), None)
    if odd is not None:
        keys = ", ".join(str(name) for name in list(given)[:5])
        hint = "hint: a nanoGPT checkpoint has model and model_args"
        inner = next((name for name, value in given.items() if isinstance(value, dict) and _has_tensors(value)), None)
        if inner is not None:
            hint = f"hint: the tensors are under {inner!r}; save those alone"
        raise ValueError(f"{source}: expected tensors by name, got {odd!r} among {keys}; {hint}")
    tensors, seen = {}, set[int]()
    for full_name, value in given.items():
        name, tensor = full_name.removeprefix(_COMPILED), value.detach()
        if name in tensors:
            raise ValueError(f"{source}: expected {name} once, got it with the prefix {_COMPILED} too")
        if (oddity := _oddity(tensor)) is not None:
            hint = "hint: save dense tensors that have their numbers, as model.cpu() has"
            raise ValueError(f"{source}: expected plain numbers in {name}, got a tensor that is {oddity}; {hint}")
        memory = tensor.untyped_storage().data_ptr()
        is_shared = memory in seen  # a tied head, or stretches of one table; safetensors stores no memory twice
        seen.add(memory)
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if is_shared else tensor.contiguous()
    return tensors


def _has_tensors(table: Mapping[Any, Any]) -> bool:
    return any(type(value) in _KINDS for value in table.values())


def _oddity(tensor: Tensor) -> str | None:
    """What keeps a tensor from being written as it is."""
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"on {tensor.device.type}"
    return "quantized" if tensor.is_quantized else None


def _beside(source: Path) -> dict[str, Any]:
    path = source.with_name("config.json")
    if not path.is_file():
        raise FileNotFoundError(f"expected config.json of transformers beside {source}, whose tensors have no sizes")
    try:
        config: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected keys and values, got {config!r:.60}")
    return config


def _nanogpt(
    source: Path, model: Mapping[Any, Any], arguments: Mapping[Any, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the tensors of transformers' GPT-2.

    Source: nanoGPT, model.py: Linear layers store (out, in), the head is tied, biases may be absent.
    """
    missing = [name for name in _ARGUMENTS if type(arguments.get(name)) is not int]
    if missing:
        raise ValueError(f"{source}: expected integers in model_args, missing {', '.join(missing)}")
    known = (*_ARGUMENTS, *_OTHERS)
    if unknown := ", ".join(str(name) for name in arguments if name not in known):
        hint = "hint: a model with parts of its own computes something else"
        raise ValueError(f"{source}: expected model_args of nanoGPT ({', '.join(known)}), got {unknown} too; {hint}")
    try:
        config = ModelConfig(
            vocab_size=arguments["vocab_size"],
            max_seq_len=arguments["block_size"],
            dim=arguments["n_embd"],
            n_layers=arguments["n_layer"],
            n_heads=arguments["n_head"],
            inter_dim=4 * arguments["n_embd"],
        )
    except ValueError as error:
        raise ValueError(f"{source}: the sizes in model_args do not fit: {error}") from error
    out: dict[str, Tensor] = {}
    tensors = _tensors(source, model)
    embedding = tensors.get("transformer.wte.weight")
    for name, tensor in tensors.items():
        if name == "lm_head.weight":  # tied; a head of its own would be lost
            if embedding is None or not torch.equal(tensor, embedding):
                raise ValueError(f"{source}: expected lm_head.weight to be tied to transformer.wte.weight")
            continue
        stem, _, kind = name.rpartition(".")
        is_linear = stem.endswith(_LINEAR)
        out[name] = tensor.T.contiguous() if is_linear and kind == "weight" and tensor.ndim == 2 else tensor
        if kind == "weight" and (is_linear or ".ln_" in name) and tensor.ndim and not arguments.get("bias", True):
            out[f"{stem}.bias"] = torch.zeros(tensor.shape[0], dtype=tensor.dtype)
    return hf_config.write(config), out
