"""A model as a directory that Hugging Face transformers reads, and back.

    config.json                          hf_config: sizes and settings
    model.safetensors, or several with   hf_tensors: names, rows, order; experts one by one, as released files have them
      model.safetensors.index.json
    tokenizer.json, …                    beside, when one is given

A directory appears whole or not at all. On reading, every tensor is looked for before memory is taken for the first:
one that is missing, left over, of another shape or type, or not finite is an error with its name, and so is a copy of
a shared one that differs. Weights in 8-bit floats with a scale for each block of 128 × 128, as DeepSeek-V3 is
released, are multiplied out. Tensors go from the mapped file into their place one by one, so the model is in memory
once.
"""

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gptrs.exchange import hf_config, hf_tensors
from gptrs.files import sync_directory, write_synced
from gptrs.model.config import ModelConfig
from gptrs.model.transformer import Transformer

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"
_ONE = "model.safetensors"
_SCALE = "_scale_inv"  # ends the name of the scales of an 8-bit weight
_BLOCK = hf_config.FP8_BLOCK
_EIGHT_BITS = "F8_E4M3"
_TYPES = ("F64", "F32", "F16", "BF16", _EIGHT_BITS)  # of tensors that are read
_COMPUTED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # buffers of old files, nothing to read


def export_hf(
    model: Transformer,
    directory: str | os.PathLike[str],
    *,
    tokenizer: "Tokenizer | None" = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes a model as transformers has it, and the tokenizer beside it; returns the directory.

    Raises: ValueError for a model that transformers does not have, a tokenizer of more ids than the model has, or
        weights that are not finite, FileExistsError for a directory that is not empty.
    """
    config = hf_config.write(model.config) | {"torch_dtype": str(model.embed.token.weight.dtype).removeprefix("torch.")}
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"expected an empty or new directory, got {path}; hint: remove it, or name another")
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
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
    """The model of a directory, in the given type or that of the file's token embedding; routers in float32 or wider.

    Raises: ValueError when the files do not fit together or describe what we do not have, OSError when they cannot be
        read.
    """
    path = Path(directory)
    given = _json(path / "config.json")
    config = hf_config.read(given)
    architecture = hf_config.architecture_of(config)
    with _Files(path) as files:
        embedding = "transformer.wte.weight" if architecture == "GPT2LMHeadModel" else "model.embed_tokens.weight"
        files.restore_prefix(embedding)
        config = files.without_missing_modules(config)
        entries = hf_tensors.entries(config, architecture, is_interleaved=hf_config.is_interleaved(given))
        table = list(islice(entries, len(files) + 1))  # one entry too many shows that some are missing
        copies = hf_tensors.copies(config, is_tied_head_stored=True)
        files.check_names(table, copies)
        with torch.device("meta"):
            model = Transformer(config)
        files.check_shapes(table, dict(model.named_parameters()))
        model = model.to(dtype or files.dtype(embedding)).to_empty(device=device or "cpu")
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for entry in table:
                whole = parameters[entry.ours]
                target = whole if entry.expert is None else whole[entry.expert]
                rows = [hf_tensors.from_theirs(piece, files.read(piece.name)) for piece in entry.pieces]
                places = torch.split(target, [p.n_rows for p in entry.pieces])
                for piece, place, tensor in zip(entry.pieces, places, rows, strict=True):
                    place.copy_(tensor)
                    check_held(path, piece.name, tensor, place)
            for name, ours in copies.items():
                files.check_copy(name, parameters[ours], ours)
    return model


class _Files:
    """The safetensors files of a directory, open, and where each tensor lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if (path / _INDEX).exists():
            index = _json(path / _INDEX).get("weight_map")
            if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
                raise ValueError(f"{path / _INDEX}: expected a weight_map of tensors to file names, got {index!r:.60}")
            names = sorted(set(index.values()))
        elif (path / _ONE).exists():
            index, names = {}, [_ONE]
        else:
            hint = "hint: *.bin files are pickles; save the model with safe_serialization=True"
            raise FileNotFoundError(f"expected {_ONE} or {_INDEX} in {path}, found neither; {hint}")
        for name in names:
            if Path(name).name != name or name == "..":
                raise ValueError(f"expected names of files beside {_INDEX}, got {name!r}")
        self._stack = ExitStack()
        self._open: dict[str, Any] = {name: self._stack.enter_context(_opened(path / name)) for name in names}
        self._where: dict[str, tuple[str, str]] = {}  # by the name that the class gives it: file, and name there
        for name, file in self._open.items():
            for key in file.keys():  # noqa: SIM118
                if key in self._where:
                    raise ValueError(f"{path}: expected {key} once, found it in {self._where[key][0]} and {name}")
                self._where[key] = name, key
        for key, name in index.items():
            if key not in self._where or self._where[key][0] != name:
                raise ValueError(f"{path / _INDEX}: expected {key} in {name}, found it elsewhere or nowhere")

    def __len__(self) -> int:
        return len(self._where)

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def restore_prefix(self, embedding: str) -> None:
        """Gives tensors of files without the class's prefix their full names, as OpenAI's GPT-2 has them."""
        prefix = embedding.split(".")[0] + "."
        if embedding not in self._where and embedding.removeprefix(prefix) in self._where:
            self._where = {
                key if key.startswith("lm_head.") else prefix + key: place for key, place in self._where.items()
            }

    def check_names(self, table: list[hf_tensors.Entry], copies: Mapping[str, str]) -> None:
        """Raises: ValueError when a tensor is missing or left over."""
        needed = {piece.name for entry in table for piece in entry.pieces}
        missing = sorted(needed - self._where.keys())
        if missing:
            raise ValueError(f"{self.path}: expected {len(needed)} tensors, missing {_some(missing)}")
        scales = {name + _SCALE for name in needed if self._type(name) == _EIGHT_BITS}
        extra = [name for name in self._where.keys() - needed - scales - copies.keys() if not name.endswith(_COMPUTED)]
        if extra:
            raise ValueError(f"{self.path}: expected {len(needed)} tensors, {_some(sorted(extra))} left over")

    def without_missing_modules(self, config: ModelConfig) -> ModelConfig:
        """The config without further-token modules that no tensor is of: transformers keeps their number and drops
        them."""
        names = hf_tensors.module_prefixes(config)
        if not names or any(name.startswith(names) for name in self._where):
            return config
        text = f"{self.path}: its config has {len(names)} further-token modules and its files none; read without them"
        warnings.warn(text, stacklevel=3)
        return dataclasses.replace(config, n_mtp_layers=0)

    def check_copy(self, name: str, original: Tensor, ours: str) -> None:
        """Raises: ValueError when a tensor that may stand in the files again is another one there."""
        if name in self._where and not torch.equal(self.read(name).to(original), original):
            raise ValueError(
                f"{self.path}: expected {name} to be a copy of {ours}, which the model shares, got another"
            )

    def check_shapes(self, table: list[hf_tensors.Entry], parameters: Mapping[str, Tensor]) -> None:
        """Raises: ValueError when a tensor, or the scales of one, are of another shape or type."""
        for entry in table:
            width = parameters[entry.ours].shape[2 if entry.expert is not None else 1 :]
            for piece in entry.pieces:
                expected = [piece.n_rows, *width]
                expected = expected[::-1] if piece.is_transposed else expected
                if (got := self._slice(piece.name).get_shape()) != expected:
                    raise ValueError(f"{self.path}: expected {piece.name} of shape {expected}, got {got}")
                self._check_type(piece.name)

    def _check_type(self, name: str) -> None:
        if (got := self._type(name)) not in _TYPES:
            raise ValueError(f"{self.path}: expected {name} of a type of {', '.join(_TYPES)}, got {got}")
        if got != _EIGHT_BITS:
            return
        scales = name + _SCALE
        if scales not in self._where:
            raise ValueError(f"{self.path}: expected scales {scales} of an 8-bit weight, found none")
        blocks = [-(-n // _BLOCK) for n in self._slice(name).get_shape()]
        shape = self._slice(scales).get_shape()
        if len(blocks) != 2 or shape != blocks or self._type(scales) not in _TYPES[:-1]:
            raise ValueError(f"{self.path}: expected {scales} of a matrix, {blocks}, got {self._type(scales)} {shape}")

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor when it has been read."""
        return torch.float32 if self._type(name) == _EIGHT_BITS else self._slice(name)[:1].dtype

    def read(self, name: str) -> Tensor:
        """A tensor in the file's type, or multiplied out in float32; all of it finite."""
        tensor = self._tensor(name)
        if self._type(name) == _EIGHT_BITS:
            tensor = multiplied_out(tensor, self._tensor(name + _SCALE))
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{self.path}: expected finite numbers in {name}, got nan or infinity")
        return tensor

    def _slice(self, name: str) -> Any:
        file, key = self._where[name]
        return self._open[file].get_slice(key)

    def _type(self, name: str) -> str:
        return str(self._slice(name).get_dtype())

    def _tensor(self, name: str) -> Tensor:
        file, key = self._where[name]
        tensor: Tensor = self._open[file].get_tensor(key)
        return tensor


def check_held(path: Path, name: str, tensor: Tensor, place: Tensor) -> None:
    """Raises: ValueError when a finite tensor's numbers are too large for the type of the place they were put in."""
    if tensor.dtype != place.dtype and not bool(place.isfinite().all()):
        kind, hint = str(place.dtype).removeprefix("torch."), "hint: read it with dtype=torch.float32"
        raise ValueError(
            f"{path}: expected numbers in {name} that {kind} can hold, got one of {tensor.abs().max():.4g}; {hint}"
        )


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"expected a file at {path}, found none")
    opened: Any = safetensors.safe_open
    try:
        return opened(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got a damaged or another one: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """The values of a JSON file that has keys."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path.name} in {path.parent}, found none")
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path}: expected keys and values, got {given!r:.60}")
    return given


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
    """Writes files of at most `max_shard_bytes`, or of one larger tensor, and their index when there are several.

    One file's tensors are copied at a time; how many files there are is known when the last is written.
    """
    written: list[tuple[Path, list[str]]] = []
    shard: dict[str, Tensor] = {}
    total = n_bytes = 0

    def write() -> None:
        path = directory / f".{len(written)}.safetensors"
        # cloned: safetensors refuses tensors that share memory, as the parts of a stacked one do
        copies = {name: tensor.clone() for name, tensor in shard.items()}
        safetensors.torch.save_file(copies, path, metadata={"format": "pt"})
        written.append((path, list(shard)))
        shard.clear()

    for name, tensor in _named_tensors(model):
        if shard and n_bytes + tensor.nbytes > max_shard_bytes:
            write()
            n_bytes = 0
        if not bool(tensor.isfinite().all()):
            kind = str(tensor.dtype).removeprefix("torch.")
            hint = "hint: a type with a wider range, or an earlier checkpoint"
            raise ValueError(f"expected finite numbers in {name} as {kind}, got nan or infinity; {hint}")
        shard[name] = tensor
        n_bytes += tensor.nbytes
        total += tensor.nbytes
    write()
    where: dict[str, str] = {}
    for number, (path, names) in enumerate(written, start=1):
        file = _ONE if len(written) == 1 else f"model-{number:05d}-of-{len(written):05d}.safetensors"
        path.rename(directory / file)
        where |= dict.fromkeys(names, file)
    if len(written) > 1:
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
