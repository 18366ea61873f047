"""One checkpoint by many processes: each writes the pieces that it holds, any number of them read it back.

    state ─ whose is it? ─▶ pieces ─▶ KIND-00001-of-00004.safetensors ─ digests ─▶ first process ─▶ manifest, COMMITTED

torch.distributed.checkpoint does what is collective: plans, a look at whether the pieces make up every tensor, and a
vote after each part, so that an error of one process is everybody's. Its writer for safetensors is used with two parts
of our own: what touches the disk, since it makes a file's bytes in memory and syncs no folder, and the end. Reading is
its own: a piece of a tensor is put together from those files that have some of it, in any split.
"""

import functools
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.futures import Future

from gptrs.files import Written, write_synced
from gptrs.train import manifest, tensorfile
from gptrs.train.snapshot import Tensors, parameter_of
from gptrs.train.tensorfile import Place


class Order(NamedTuple):
    """How a tensor stands along an axis where processes have several parts of it, like rows of queries and of keys."""

    axis: int
    places: Tensor  # (size,): which place of the plain model's tensor stands there


class Share(NamedTuple):
    """What one process writes; by file, as in KIND, KIND+1 for second pieces of a tensor, and name."""

    tensors: Tensors
    places: dict[str, dict[str, Place]]
    names: frozenset[str]  # of all tensors of the run


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one process adds to a checkpoint."""

    directory: Path  # of checkpoints
    step: int
    share: Share
    state: Mapping[str, Any]  # the first process's counts, but for the random states
    keep: int  # newest checkpoints that stay
    logs: Sequence[Path] = ()  # of which `state` knows the lengths


def share_of(tensors: Tensors, group: dist.ProcessGroup, orders: Mapping[str, Order] | None = None) -> Share:
    """Returns the pieces of a run that this process writes.

    A piece that several processes hold is written by one of them; which one goes round by size, so that all write and
    copy about as much. The choice needs no message: it follows from names, sizes and how they are split.

    Args: orders: by parameter, of those that do not stand in the plain model's order.
    """
    share = Share({kind: {} for kind in tensors}, {kind: {} for kind in tensors}, frozenset(_flat(tensors)))
    every = [(kind, name, tensor) for kind, of_kind in tensors.items() for name, tensor in of_kind.items()]
    turn = 0
    for kind, name, tensor in sorted(every, key=lambda entry: (-entry[2].numel(), entry[1])):
        index, count = _replica(tensor, group)
        is_mine = turn % count == index
        turn += count > 1
        for number, (piece, place) in enumerate(_pieces(name, tensor, orders or {}) if is_mine else ()):
            file = f"{kind}+{number}" if number else kind
            share.tensors.setdefault(file, {})[name] = piece
            share.places.setdefault(file, {})[name] = place
    return share


def write(part: Part, group: dist.ProcessGroup) -> None:
    """Writes a checkpoint together with the other processes of the group; all of them call it.

    Raises: OSError on every process when one of them could not write; nothing counts then, and earlier checkpoints are
        as they were. RuntimeError when a process is gone.
    """
    writer = _Writer(part, group)
    try:
        save({}, storage_writer=writer, planner=_SavePlanner(part.share), process_group=group)
    except CheckpointException as error:
        writer.clean()
        cause = _cause(error)
        path = manifest.path_of(part.directory, part.step)
        raise (manifest.not_saved(path, cause) if isinstance(cause, OSError) else cause) from error


def read(
    path: Path,
    files: Sequence[Path],
    wanted: dict[str, Tensor],
    group: dist.ProcessGroup | None,
    orders: Mapping[str, Order] | None = None,
) -> None:
    """Fills tensors, or this process's pieces of them, from some files of a checkpoint; all of the group call it."""
    pieces = {name: _pieces(name, tensor, orders or {}) for name, tensor in wanted.items()}
    reader = HuggingFaceStorageReader(str(path))
    reader.fs = _Only(files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process alone is meant
        try:
            planner = _LoadPlanner(pieces)
            load({}, storage_reader=reader, planner=planner, process_group=group, no_dist=group is None)
        except CheckpointException as error:
            raise _cause(error) from error


def first_of_all(problem: Exception | None, group: dist.ProcessGroup) -> Exception | None:
    """Returns the problem of the first process that has one, on every process; all of the group call it."""
    found: list[Exception | None] = [None] * group.size()
    dist.all_gather_object(found, problem, group=group)
    return next((each for each in found if each is not None), None)


class _SavePlanner(DefaultSavePlanner):
    """Plans the pieces that are there, instead of finding them in tensors."""

    def __init__(self, share: Share) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.share = share

    def create_local_plan(self) -> SavePlan:
        files = self.share.tensors.items()
        items = [_item(name, piece, self.share.places[file][name]) for file, of in files for name, piece in of.items()]
        self.plan = SavePlan(items)
        return self.plan


class _LoadPlanner(DefaultLoadPlanner):
    """Fills the pieces that are there."""

    def __init__(self, pieces: Mapping[str, list[tuple[Tensor, Place]]]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = pieces
        self.at = {(name, place.offsets): piece for name, of_it in pieces.items() for piece, place in of_it}

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items = []
        for name, pieces in self.pieces.items():
            chunks = [_chunk(piece, place) for piece, place in pieces]
            stored = self.metadata.state_dict_metadata[name]
            assert isinstance(stored, TensorStorageMetadata), name
            items += create_read_items_for_chunk_list(name, stored, chunks)
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.at[index.fqn, tuple(index.offset or ())]


class _Only(FileSystem):
    """Some files of a folder: reading weights needs no optimizer."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self.files = [str(file) for file in files]

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return self.files


class _Writer(HuggingFaceStorageWriter):
    """Files with digests, a folder that counts once it is whole, and no file with a pickle."""

    def __init__(self, part: Part, group: dist.ProcessGroup) -> None:
        self.temporary = manifest.temporary_of(part.directory, part.step)
        super().__init__(path=str(self.temporary), save_distributed=True)
        self.part = part
        self.index, self.n_ranks = group.rank(), group.size()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan  # the folder is made once, by the first process, when all are known to be here

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        missing = sorted(self.part.share.names - {item.index.fqn for plan in plans for item in plan.items})
        assert not missing, f"no process writes {missing[:3]}"
        n_bytes = sum(_bytes_of(item) for plan in plans for item in plan.items)
        manifest.begin(self.part.directory, self.part.step, n_bytes)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        planned = {(item.index.fqn, tuple(item.index.offset or ())) for item in plan.items}
        of_n, files = f"{self.index + 1:05d}-of-{self.n_ranks:05d}", {}
        for file, tensors in self.part.share.tensors.items():
            places = self.part.share.places[file]
            mine = {name: piece for name, piece in tensors.items() if (name, places[name].offsets) in planned}
            kind, _, number = file.partition("+")
            name = f"{kind}-{of_n}{f'-{number}' if number else ''}.safetensors"
            files[name] = tensorfile.write(self.temporary / name, mine, places)
        name = manifest.rng_name(self.index, self.n_ranks)
        files[name] = write_synced(self.temporary / name, manifest.as_json(self.part.state["rng"]))
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(MetadataIndex(name), file.n_bytes, file) for name, file in files.items()])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = {result.index.fqn: Written(*result.storage_data) for of_rank in results for result in of_rank}
        state = {key: value for key, value in self.part.state.items() if key != "rng"}
        files["state.json"] = write_synced(self.temporary / "state.json", manifest.as_json(state))
        manifest.commit(self.temporary, manifest.path_of(self.part.directory, self.part.step), files, self.part.logs)
        manifest.prune(self.part.directory, self.part.keep)

    def clean(self) -> None:
        """Removes what a failed save has written; called once nobody writes any more."""
        if self.index == 0:
            manifest.remove(self.temporary)


def _replica(tensor: Tensor, group: dist.ProcessGroup) -> tuple[int, int]:
    """Which of how many holders of the same piece this process is."""
    if not isinstance(tensor, DTensor):
        return group.rank(), group.size()
    at = tensor.device_mesh.get_coordinate()
    assert at is not None, "every process holds a piece of every tensor"
    index, count = 0, 1
    for axis, placement in enumerate(tensor.placements):
        assert not placement.is_partial(), "parameters and their states are no sums under way"
        if isinstance(placement, Replicate):
            index, count = index * tensor.device_mesh.size(axis) + at[axis], count * tensor.device_mesh.size(axis)
    return index, count


def _pieces(name: str, tensor: Tensor, orders: Mapping[str, Order]) -> list[tuple[Tensor, Place]]:
    """Returns this process's memory of a tensor, and where it lies in the plain model's; pieces of nothing left out."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return [(tensor, Place((0,) * tensor.ndim, shape))] if tensor.numel() else []
    offsets = _offsets(tensor.shape, tensor.device_mesh, tensor.placements)
    local, order = tensor.to_local(), orders.get(parameter_of(name))
    if not local.numel():
        return []
    if order is None or len(shape) <= order.axis or shape[order.axis] != len(order.places):
        return [(local, Place(offsets, shape))]
    return list(_runs(local, offsets, shape, order))


@functools.lru_cache(maxsize=4096)  # of one process, whose place in a mesh does not change; layers are alike
def _offsets(shape: torch.Size, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> tuple[int, ...]:
    return tuple(compute_local_shape_and_global_offset(shape, mesh, placements)[1])


def _runs(
    local: Tensor, offsets: tuple[int, ...], shape: tuple[int, ...], order: Order
) -> Iterator[tuple[Tensor, Place]]:
    """Cuts a piece where its places do not follow one another in the plain model's tensor.

    Example: all of places (0, 1, 4, 2, 3) are (0, 1), (4), (2, 3).
    """
    axis, start = order.axis, offsets[order.axis]
    places = order.places[start : start + local.shape[axis]]
    breaks = (places.diff() != 1).nonzero().flatten() + 1
    for begin, end in itertools.pairwise([0, *breaks.tolist(), len(places)]):
        at = (*offsets[:axis], int(places[begin]), *offsets[axis + 1 :])
        yield local.narrow(axis, begin, end - begin), Place(at, shape)


def _flat(tensors: Tensors) -> list[str]:
    return [name for of_kind in tensors.values() for name in of_kind]


def _chunk(piece: Tensor, place: Place) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(place.offsets), sizes=piece.shape)


def _item(name: str, piece: Tensor, place: Place) -> WriteItem:
    chunk, properties = _chunk(piece, place), TensorProperties(dtype=piece.dtype)
    data = TensorWriteData(chunk=chunk, properties=properties, size=torch.Size(place.shape))
    return WriteItem(index=MetadataIndex(name, chunk.offsets), type=WriteItemType.SHARD, tensor_data=data)


def _bytes_of(item: WriteItem) -> int:
    data = item.tensor_data
    assert data is not None
    return data.chunk.sizes.numel() * data.properties.dtype.itemsize


def _cause(error: CheckpointException) -> Exception:
    """The error of the first process that has one, as this process would have had it itself."""
    rank, (first, _) = min(error.failures.items(), key=lambda item: item[0])
    if isinstance(first, OSError):
        return OSError(first.errno, f"process {rank}: {first.strerror or first}")
    return RuntimeError(f"process {rank}: {type(first).__name__}: {first}")
