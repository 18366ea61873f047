"""A model as a directory that Hugging Face transformers reads, and back.

    config.json                          hf_config: sizes and settings
    model.safetensors, or several with   hf_tensors: names, rows, order; experts one by one, as released files have them
      model.safetensors.index.json
    tokenizer.json, …                    beside, when one is given

A directory appears whole or not at all. On reading, every tensor is looked for before the first is copied: one that is
missing, left over, of another shape or not finite is an error with its name. Weights in 8-bit floats with a scale for
each block of 128 × 128, as DeepSeek-V3 is released, are multiplied out.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gptrs.exchange import hf_config, hf_tensors
from gptrs.files import sync_directory, write_synced
from gptrs.model.transformer import Transformer

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"
_ONE = "model.safetensors"
_SCALE = "_scale_inv"  # ends the name of the scales of an 8-bit weight
_BLOCK = 128  # rows and columns of a weight that share a scale
_COMPUTED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # buffers of old files, nothing to read


def export_hf(
    model: Transformer,
    directory: str | os.PathLike[str],
    *,
    tokenizer: "Tokenizer | None" = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes a model as transformers has it, and the tokenizer beside it; returns the directory.

    Raises: ValueError for a model that transformers does not have, FileExistsError for a directory that is not empty.
    """
    config = hf_config.write(model.config) | {"torch_dtype": str(model.embed.token.weight.dtype).removeprefix("torch.")}
    path = Path(directory)
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"expected an empty or new directory, got {path}; hint: remove it, or name another")
    if tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        got = f"{tokenizer.vocab_size} ids and a model of {model.config.vocab_size}"
        raise ValueError(f"expected the tokenizer of the model, got one of {got}")
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_tensors(model, temporary, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
            if tokenizer.eot_id is not None:
                config |= {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id}
        write_synced(temporary / "config.json", json.dumps(config, indent=2).encode())
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)
    return path


def import_hf(
    directory: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Transformer:
    """The model of a directory, in the given type or that of the file's token embedding.

    Raises: ValueError when the files do not fit together or describe what we do not have, OSError when they cannot be
        read.
    """
    path = Path(directory)
    given = json.loads((path / "config.json").read_text("utf-8"))
    config = hf_config.read(given)
    architecture = hf_config.architecture_of(config)
    table = list(hf_tensors.entries(config, architecture, is_interleaved=hf_config.is_interleaved(given)))
    with torch.device("meta"):
        model = Transformer(config)
    with _Files(path) as files:
        files.check(table, hf_tensors.copies(config), dict(model.named_parameters()))
        embedding = table[0].pieces[0].name
        model = model.to_empty(device=device or "cpu").to(dtype or files.dtype(embedding))
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for entry in table:
                whole = parameters[entry.ours]
                target = whole if entry.expert is None else whole[entry.expert]
                rows = [hf_tensors.from_theirs(piece, files.read(piece.name)) for piece in entry.pieces]
                for piece, tensor in zip(torch.split(target, [p.n_rows for p in entry.pieces]), rows, strict=True):
                    piece.copy_(tensor)
    return model


class _Files:
    """The safetensors files of a directory, open, and where each tensor lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if (path / _INDEX).exists():
            where: Mapping[str, str] = json.loads((path / _INDEX).read_text("utf-8"))["weight_map"]
            names = sorted(set(where.values()))
        elif (path / _ONE).exists():
            names = [_ONE]
        else:
            hint = "hint: *.bin files are pickles; save the model with safe_serialization=True"
            raise FileNotFoundError(f"expected {_ONE} or {_INDEX} in {path}, found neither; {hint}")
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"expected names of files beside {_INDEX}, got {name!r}")
        self._stack = ExitStack()
        self._open: dict[str, Any] = {name: self._stack.enter_context(_opened(path / name)) for name in names}
        self._where = {key: name for name, file in self._open.items() for key in file.keys()}  # noqa: SIM118

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def check(self, table: list[hf_tensors.Entry], copies: Mapping[str, str], parameters: Mapping[str, Tensor]) -> None:
        """Raises: ValueError when a tensor is missing, left over or of another shape."""
        needed = {piece.name for entry in table for piece in entry.pieces}
        missing = sorted(needed - self._where.keys())
        if missing:
            raise ValueError(f"{self.path}: expected {len(needed)} tensors, missing {_some(missing)}")
        scales = {name + _SCALE for name in needed}
        extra = [name for name in self._where.keys() - needed - scales - copies.keys() if not name.endswith(_COMPUTED)]
        if tied := [name for name in extra if name == "lm_head.weight"]:
            extra.remove(tied[0])  # some files store a tied head again
        if extra:
            raise ValueError(f"{self.path}: expected {len(needed)} tensors, {_some(sorted(extra))} left over")
        for entry in table:
            width = parameters[entry.ours].shape[2 if entry.expert is not None else 1 :]
            for piece in entry.pieces:
                expected = [piece.n_rows, *width]
                expected = expected[::-1] if piece.is_transposed else expected
                if (got := self._slice(piece.name).get_shape()) != expected:
                    raise ValueError(f"{self.path}: expected {piece.name} of shape {expected}, got {got}")

    def dtype(self, name: str) -> torch.dtype:
        return self._tensor(name)[:1].dtype

    def read(self, name: str) -> Tensor:
        """A tensor in the file's type, or multiplied out in float32; all of it finite."""
        tensor = self._tensor(name)
        if tensor.element_size() == 1:
            if name + _SCALE not in self._where:
                raise ValueError(f"{self.path}: expected scales {name + _SCALE} of an 8-bit weight, found none")
            tensor = multiplied_out(tensor, self._tensor(name + _SCALE))
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{self.path}: expected finite numbers in {name}, got nan or infinity")
        return tensor

    def _slice(self, name: str) -> Any:
        return self._open[self._where[name]].get_slice(name)

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._open[self._where[name]].get_tensor(name)
        return tensor


def _opened(path: Path) -> Any:
    opened: Any = safetensors.safe_open
    return opened(path, framework="pt")


def multiplied_out(weight: Tensor, scales: Tensor) -> Tensor:
    """An 8-bit weight times the scale of each 128 × 128 block: (n, m), (⌈n/128⌉, ⌈m/128⌉) → float32 (n, m).

    Source: arXiv 2412.19437, section 3.3.2; the released files' `weight_scale_inv` multiplies.
    """
    n, m = weight.shape
    expected = (-(-n // _BLOCK), -(-m // _BLOCK))
    if tuple(scales.shape) != expected:
        raise ValueError(f"expected scales of shape {expected} for a weight of {(n, m)}, got {tuple(scales.shape)}")
    spread = scales.float().repeat_interleave(_BLOCK, 0)[:n].repeat_interleave(_BLOCK, 1)[:, :m]  # (n, m)
    return weight.float() * spread


def _write_tensors(model: Transformer, directory: Path, max_shard_bytes: int) -> None:
    """Writes files of at most `max_shard_bytes`, or of one larger tensor, and their index when there are several."""
    shards: list[dict[str, Tensor]] = [{}]
    n_bytes = 0
    for name, tensor in _named_tensors(model):
        if shards[-1] and n_bytes + tensor.nbytes > max_shard_bytes:
            shards.append({})
            n_bytes = 0
        shards[-1][name] = tensor
        n_bytes += tensor.nbytes
    where: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        file = _ONE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # cloned: safetensors refuses tensors that share memory, as the parts of a stacked one do
        safetensors.torch.save_file(
            {name: tensor.clone() for name, tensor in shard.items()}, directory / file, metadata={"format": "pt"}
        )
        where |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_synced(directory / _INDEX, json.dumps(index, indent=2).encode())


def _named_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    config, parameters = model.config, dict(model.named_parameters())
    architecture = hf_config.architecture_of(config)
    is_interleaved = architecture != "LlamaForCausalLM"
    for entry in hf_tensors.entries(config, architecture, is_interleaved=is_interleaved):
        yield from hf_tensors.to_theirs(entry, parameters[entry.ours].detach())
    for name, ours in hf_tensors.copies(config).items():
        yield name, parameters[ours].detach()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
