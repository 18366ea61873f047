"""Checkpoints: a directory that is whole and checked, or does not count.

    checkpoints/step-00000500/
      model.safetensors       parameters and buffers by name; a shared tensor once
      optimizer.safetensors   optimizer state as NAME OF THE PARAMETER/KEY
      KIND.safetensors        more tensors of the caller as KIND:NAME, like the weights' running mean
      state.json              step, RNG, and what the caller gave: loader state, config, lengths of the logs, versions
      manifest.json           {"version": 1, "files": {name: {"bytes": …, "blake2b": …}}}
      COMMITTED               digest of manifest.json, written last

Everything is written into a hidden directory, synced, then renamed. A directory without COMMITTED was cut short by a
kill and is passed over; a committed one that does not match its digests was damaged later and is an error. No pickle.
"""

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from gptrs.files import digest, sync_directory, write_synced

VERSION = 1
_NAME = re.compile(r"step-\d{8,}")
_OPTIMIZER_KEY = "/"  # between a parameter's name and the name of its state; parameter names have dots only


class HasState(Protocol):
    """What is saved of an optimizer: its tensors for each parameter."""

    @property
    def state(self) -> Mapping[Any, Mapping[str, Tensor]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a directory of checkpoints holds."""

    newest: Path | None  # the newest committed one
    uncommitted: tuple[Path, ...]  # newer ones that were never finished


def save(
    directory: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: "HasState | None",
    state: Mapping[str, Any],
    keep: int,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Writes the checkpoint of `step`, then removes all but the `keep` newest; returns its path.

    Args:
        optimizer: None for a model that comes from elsewhere.
        state: JSON values of the caller; step and RNG are added.
        others: more tensors, by kind and name.
    Raises: OSError when the disk is full; earlier checkpoints are then as they were.
    """
    path = directory / f"step-{step:08d}"
    temporary = directory / f".{path.name}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(directory)
        temporary.mkdir()
        _write(
            temporary, model, optimizer, others or {}, {"version": VERSION, "step": step, "rng": rng_state(), **state}
        )
        if path.exists():  # the same step again, after a resume from before it
            _discard(path)
        temporary.rename(path)
        sync_directory(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        hint = "hint: make room or give leave there, then run the same command"
        text = f"cannot save checkpoint {path}: {error.strerror or error}; earlier checkpoints are intact; {hint}"
        raise OSError(error.errno, text) from error
    for old in _committed(directory)[:-keep]:
        _discard(old)
    return path


def find(directory: Path) -> Found:
    """Returns the newest committed checkpoint and the unfinished ones that are newer."""
    committed = _committed(directory)
    newest = committed[-1] if committed else None
    others = [path for path in _steps(directory) if path not in committed]
    return Found(newest=newest, uncommitted=tuple(p for p in others if newest is None or p.name > newest.name))


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """Puts a checkpoint into model, optimizer and the random generators; returns its state.

    Args: others: more tensors to fill, by kind and name.
    Raises: ValueError naming the file when one is missing, cut short or changed, or is of another model.
    """
    verify(path)
    state = read_state(path)
    _load_model(path, model)
    _load_optimizer(path, model, optimizer)
    for kind, tensors in (others or {}).items():
        _fill(path, kind, named(kind, tensors))
    set_rng_state(state["rng"])
    return state


def load_model(path: Path, model: nn.Module, *, is_averaged: bool = False) -> dict[str, Any]:
    """Puts a checkpoint's weights alone into a model, or their running mean; verifies it and returns its state."""
    verify(path)
    if is_averaged and not (path / "ema.safetensors").is_file():
        raise ValueError(f"expected the weights' running mean in {path}, found none; hint: train.ema=0.999")
    if is_averaged:
        _fill(path, "ema", named("ema", dict(model.named_parameters())))
    else:
        _load_model(path, model)
    return read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """Returns the state.json of a checkpoint."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION} in {path / 'state.json'}, got {state.get('version')!r}")
    return state


def verify(path: Path) -> None:
    """Checks every file of a committed checkpoint against the digests taken when it was written.

    Raises: ValueError naming the first file that is missing, cut short or changed.
    """
    manifest = path / "manifest.json"
    for name in ("COMMITTED", "manifest.json"):
        if not (path / name).is_file():
            raise ValueError(_damaged(path / name, "a file", "none"))
    if (path / "COMMITTED").read_bytes() != f"{digest(manifest)}\n".encode():
        raise ValueError(_damaged(manifest, "the digest in COMMITTED", "another one"))
    for name, entry in json.loads(manifest.read_bytes())["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(_damaged(file, f"{entry['bytes']} bytes", "no file"))
        if (size := file.stat().st_size) != entry["bytes"]:
            raise ValueError(_damaged(file, f"{entry['bytes']} bytes", f"{size}"))
        if (got := digest(file)) != entry["blake2b"]:
            raise ValueError(_damaged(file, f"blake2b {entry['blake2b'][:16]}…", f"{got[:16]}…"))


def rng_state() -> dict[str, Any]:
    """Returns the states of torch's generators, CPU and every CUDA device, in hexadecimal."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": _hex(torch.get_rng_state()), "cuda": [_hex(state) for state in cuda]}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Sets torch's generators; CUDA states are left out where there are not as many devices."""
    torch.set_rng_state(_unhex(state["cpu"]))
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_unhex(text) for text in state["cuda"]])


def named(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns other tensors under the names that they have in a checkpoint."""
    return {f"{kind}:{name}": tensor.detach() for name, tensor in tensors.items()}


def _write(
    path: Path,
    model: nn.Module,
    optimizer: HasState | None,
    others: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    contents: dict[str, Callable[[], bytes]] = {
        "model.safetensors": lambda: safetensors.torch.save(_contiguous(_model_tensors(model))),
        "optimizer.safetensors": lambda: safetensors.torch.save(dict(_optimizer_tensors(model, optimizer))),
        "state.json": lambda: _json(state),
    }
    for kind, tensors in others.items():
        contents[f"{kind}.safetensors"] = functools.partial(safetensors.torch.save, _contiguous(named(kind, tensors)))
    entries = {}
    for name, content in contents.items():  # one at a time: a copy of the model or of the optimizer, never of both
        write_synced(path / name, content())
        entries[name] = {"bytes": (path / name).stat().st_size, "blake2b": digest(path / name)}
    write_synced(path / "manifest.json", _json({"version": VERSION, "files": entries}))
    sync_directory(path)
    write_synced(path / "COMMITTED", f"{digest(path / 'manifest.json')}\n".encode())
    sync_directory(path)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and persistent buffers by name; a tensor under two names stands under its first."""
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def _optimizer_tensors(model: nn.Module, optimizer: HasState | None) -> Iterator[tuple[str, Tensor]]:
    if optimizer is None:
        return
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), (name, key, type(value))
            yield f"{name}{_OPTIMIZER_KEY}{key}", value.detach().contiguous()


def _load_model(path: Path, model: nn.Module) -> None:
    _fill(path, "model", _model_tensors(model))


def _fill(path: Path, kind: str, expected: Mapping[str, Tensor]) -> None:
    tensors = safetensors.torch.load_file(path / f"{kind}.safetensors")
    _check_names(path / f"{kind}.safetensors", set(expected), set(tensors))
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            got = f"{tuple(tensors[name].shape)}; hint: the model settings differ from the run's"
            raise ValueError(f"expected {name} of shape {tuple(tensor.shape)} in {path}, got {got}")
        tensor.copy_(tensors[name])  # state_dict's tensors share the parameters' memory


def _load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gives each parameter its state; moments on its device, the step counter where the optimizer wants it."""
    tensors = safetensors.torch.load_file(path / "optimizer.safetensors")
    names = {name: i for i, name in enumerate(_in_group_order(model, optimizer))}
    packed: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(_OPTIMIZER_KEY)
        if name not in names:
            raise ValueError(
                f"expected the state of a parameter in {path / 'optimizer.safetensors'}, got {full_name!r}"
            )
        packed.setdefault(names[name], {})[key] = tensor.clone()  # own, aligned memory instead of the file's map
    optimizer.load_state_dict({"state": packed, "param_groups": optimizer.state_dict()["param_groups"]})


def _in_group_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Returns parameter names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _check_names(path: Path, expected: set[str], got: set[str]) -> None:
    if expected != got:
        missing, extra = sorted(expected - got)[:3], sorted(got - expected)[:3]
        hint = "hint: the model settings differ from the run's"
        raise ValueError(f"expected the tensors of this model in {path}, got {missing} missing, {extra} extra; {hint}")


def _damaged(file: Path, expected: str, got: str) -> str:
    hint = f"hint: remove {file.parent} to resume from the checkpoint before it"
    return f"damaged checkpoint: expected {expected} for {file}, got {got}; {hint}"


def _steps(directory: Path) -> list[Path]:
    """Returns the checkpoint directories, finished or not, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def _committed(directory: Path) -> list[Path]:
    return [path for path in _steps(directory) if (path / "COMMITTED").is_file()]


def _discard(path: Path) -> None:
    """Removes a checkpoint so that a kill halfway leaves no part under its name."""
    hidden = path.with_name(f".{path.name}.old")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _remove_unfinished(directory: Path) -> None:
    for path in directory.glob(".step-*"):
        shutil.rmtree(path)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _unhex(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
