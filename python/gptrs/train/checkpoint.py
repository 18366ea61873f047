"""Checkpoints: a directory that is whole and checked, or does not count.

    checkpoints/step-00000500/
      model.safetensors       parameters and buffers by name; a shared tensor once
      optimizer.safetensors   optimizer state as NAME OF THE PARAMETER/KEY
      KIND.safetensors        more tensors of the caller as KIND:NAME, like the weights' running mean
      state.json              step, RNG, and what the caller gave: loader state, config, lengths of the logs, versions
      manifest.json           {"version": 1, "files": {name: {"bytes": …, "blake2b": …}}}
      COMMITTED               digest of manifest.json, written last

Of N processes each writes its pieces, KIND-00001-of-0000N.safetensors, and its random states, rng-00001-of-0000N.json.
Any number of processes reads either form. No pickle.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from gptrs.files import write_synced
from gptrs.train import manifest, tensorfile
from gptrs.train.manifest import Found, find, read_state, verify
from gptrs.train.optim import HasState
from gptrs.train.rng import reseed, rng_state, set_rng_state
from gptrs.train.snapshot import OPTIMIZER_KEY, Tensors, model_tensors, named, tensors_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from gptrs.train.shards import Order

__all__ = [
    "Found", "find", "load", "load_model", "read_state", "reseed", "rng_state", "save", "set_rng_state", "state_of",
    "verify", "write",
]  # fmt: skip


def save(
    directory: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: HasState | None,
    state: Mapping[str, Any],
    keep: int,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
    logs: Sequence[Path] = (),
) -> Path:
    """Writes the checkpoint of `step`, then removes all but the `keep` newest and the best; returns its path.

    Tensors go to the disk from where they are: no second copy of them is made.

    Args:
        optimizer: None for a model that comes from elsewhere.
        state: JSON values of the caller; step and RNG are added.
        others: more tensors, by kind and name.
        logs: files of which `state` knows the lengths; the disk has them before the checkpoint counts.
    Raises: OSError when the disk is full; earlier checkpoints are then as they were.
    """
    return write(directory, step, tensors_of(model, optimizer, others), state_of(step, state), keep=keep, logs=logs)


def state_of(step: int, state: Mapping[str, Any], group: "ProcessGroup | None" = None) -> dict[str, Any]:
    """Returns the content of state.json: what the caller gave, and where this process stands."""
    world_size = 1 if group is None else group.size()
    return {"version": manifest.VERSION, "step": step, "world_size": world_size, "rng": rng_state(), **state}


def write(
    directory: Path, step: int, tensors: Tensors, state: Mapping[str, Any], *, keep: int, logs: Sequence[Path] = ()
) -> Path:
    """Writes a checkpoint of tensors that nobody changes meanwhile; otherwise as `save`."""
    path = manifest.path_of(directory, step)
    try:
        temporary = manifest.begin(directory, step, sum(map(tensorfile.n_bytes, tensors.values())))
        files = {}
        for kind, of_kind in tensors.items():
            files[f"{kind}.safetensors"] = tensorfile.write(temporary / f"{kind}.safetensors", of_kind)
        files["state.json"] = write_synced(temporary / "state.json", manifest.as_json(state))
        manifest.commit(temporary, path, files, logs)
        manifest.prune(directory, keep)
    except OSError as error:
        manifest.remove(manifest.temporary_of(directory, step))
        raise manifest.not_saved(path, error) from error
    return path


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
    group: "ProcessGroup | None" = None,
    orders: "Mapping[str, Order] | None" = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Puts a checkpoint into model, optimizer and the random generators; returns its state.

    Args:
        others: more tensors to fill, by kind and name.
        group: of the processes that load together, each of which calls this; None for one alone.
        orders: by parameter, of those of several processes that do not stand in the plain model's order.
        seed: of the random states, where not as many processes read the checkpoint as wrote it.
    Raises: ValueError naming the file when one is missing, cut short or changed, or is of another model.
    """
    _verify(path, group)
    state = read_state(path)
    wanted = {"model": model_tensors(model)}
    wanted |= {kind: named(kind, of_kind) for kind, of_kind in (others or {}).items()}
    read = functools.partial(_read, path, group, orders)
    _fill(path, wanted, read)
    _load_optimizer(path, model, optimizer, read)
    _load_rng(path, state, seed, group)
    return state


def load_model(path: Path, model: nn.Module, *, is_averaged: bool = False) -> dict[str, Any]:
    """Puts a checkpoint's weights alone into a model, or their running mean, after verifying them; returns its state.

    Other files are neither read nor held, so a run may train meanwhile.
    """
    kind = "ema" if is_averaged else "model"
    verify(path, lambda number, name: not name.endswith(".safetensors") or manifest.kind_of(name) == kind)
    if not manifest.tensor_files(path, kind):
        raise ValueError(f"expected the weights' running mean in {path}, found none; hint: train.ema=0.999")
    wanted = named(kind, dict(model.named_parameters())) if is_averaged else model_tensors(model)
    _fill(path, {kind: wanted}, functools.partial(_read, path, None, None))
    return read_state(path)


def _verify(path: Path, group: "ProcessGroup | None") -> None:
    """Checks every file once, a share of them by each process of the group."""
    if group is None:
        verify(path)
        return
    from gptrs.train import shards

    problem: Exception | None = None
    rank, size = group.rank(), group.size()
    try:
        verify(path, lambda number, name: number % size == rank)
    except (ValueError, OSError) as error:
        problem = error
    if (first := shards.first_of_all(problem, group)) is not None:
        raise first


def _contents(path: Path, kind: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Returns shape and type of the tensors of a kind by name, whole ones, from the headers of the files alone."""
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for file in manifest.tensor_files(path, kind):
        for name, piece in tensorfile.pieces(file).items():
            ends = tuple(start + size for start, size in zip(piece.offsets, piece.shape, strict=True))
            shape, _ = found.get(name, (ends, piece.dtype))
            found[name] = tuple(map(max, zip(shape, ends, strict=True))), piece.dtype
    return found


def _fill(path: Path, wanted: Tensors, read: Callable[[str, dict[str, Tensor]], None]) -> None:
    """Fills all tensors of some kinds, which must be those of the checkpoint."""
    hint = "hint: the model settings differ from the run's"
    for kind, tensors in wanted.items():
        contents = _contents(path, kind)
        _check_names(path / f"{kind}.safetensors", set(tensors), set(contents), hint)
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != (shape := contents[name][0]):
                raise ValueError(f"expected {name} of shape {tuple(tensor.shape)} in {path}, got {shape}; {hint}")
        read(kind, tensors)


def _read(
    path: Path,
    group: "ProcessGroup | None",
    orders: "Mapping[str, Order] | None",
    kind: str,
    tensors: dict[str, Tensor],
) -> None:
    plain = path / f"{kind}.safetensors"
    if group is None and plain.is_file():
        with safe_open(plain, "pt") as file:
            for name, tensor in tensors.items():  # one at a time: a run's state is never there twice
                tensor.copy_(file.get_tensor(name))
    elif tensors:
        from gptrs.train import shards

        shards.read(path, manifest.tensor_files(path, kind), tensors, group, orders)


def _load_optimizer(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    read: Callable[[str, dict[str, Tensor]], None],
) -> None:
    """Gives each parameter its state; moments on its device, the step counter where the optimizer wants it."""
    parameters = dict(model.named_parameters())
    numbers = {name: i for i, name in enumerate(_in_group_order(model, optimizer))}
    packed: dict[int, dict[str, Tensor]] = {}
    wanted: dict[str, Tensor] = {}
    for full_name, (shape, dtype) in _contents(path, "optimizer").items():
        name, _, key = full_name.rpartition(OPTIMIZER_KEY)
        if name not in numbers:
            raise ValueError(f"expected the state of a parameter in {path}, got {full_name!r}")
        is_like = tuple(parameters[name].shape) == shape
        value = torch.empty_like(parameters[name], dtype=dtype) if is_like else torch.empty(shape, dtype=dtype)
        wanted[full_name] = packed.setdefault(numbers[name], {})[key] = value.detach()
    read("optimizer", wanted)
    optimizer.load_state_dict({"state": packed, "param_groups": optimizer.state_dict()["param_groups"]})


def _in_group_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Returns parameter names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _load_rng(path: Path, state: Mapping[str, Any], seed: int, group: "ProcessGroup | None") -> None:
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    if state.get("world_size", 1) != size:
        reseed(seed, state["step"], rank)
    elif "rng" in state:
        set_rng_state(state["rng"])
    else:
        set_rng_state(json.loads((path / manifest.rng_name(rank, size)).read_bytes()))


def _check_names(path: Path, expected: set[str], got: set[str], hint: str) -> None:
    if expected != got:
        missing, extra = sorted(expected - got)[:3], sorted(got - expected)[:3]
        raise ValueError(f"expected the tensors of this model in {path}, got {missing} missing, {extra} extra; {hint}")
