"""Checkpoints by many processes: any number of them reads what any number wrote, and an error of one is everybody's."""

import dataclasses
import errno
import json
import math
import os
import random
import re
import shutil
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from gptrs.cli_model import open_model
from gptrs.exchange.hf import export_hf, import_hf
from gptrs.model import ModelConfig, Transformer
from gptrs.tokenizer import Tokenizer
from gptrs.train import checkpoint, tensorfile
from gptrs.train.optim import adamw
from gptrs.train.saver import Saver
from gptrs.train.shards import Order

torch.set_num_threads(1)
CONFIG = ModelConfig.preset(  # rows that 2 and 4 do not divide, experts, and routers' biases
    "deepseek-tiny", vocab_size=31, dim=12, n_layers=2, n_heads=2, inter_dim=10, kv_lora_rank=6, qk_nope_head_dim=6,
    qk_rope_head_dim=4, v_head_dim=6, moe_inter_dim=5, n_mtp_layers=0,
)  # fmt: skip
Group = dist.ProcessGroup
SECONDS = 90  # after which a process ends itself


class World:
    """Some processes, forked from this one, that can talk to each other."""

    def __init__(self, folder: Path, n: int, work: Callable[[Group], object]) -> None:
        store = folder / f"store-{uuid.uuid4().hex}"
        self.children = [self._fork(store, rank, n, work) for rank in range(n)]

    def codes(self) -> list[int]:
        """Waits for all and returns their exit codes, negative for a signal."""
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in self.children]

    @staticmethod
    def _fork(store: Path, rank: int, n: int, work: Callable[[Group], object]) -> int:
        child = os.fork()
        if child:
            return child
        signal.alarm(SECONDS)
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=n, timeout=timedelta(seconds=60)
            )
            work(dist.new_group(backend="gloo"))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def together(folder: Path, n: int, work: Callable[[Group], object]) -> None:
    assert World(folder, n, work).codes() == [0] * n


class Run(NamedTuple):
    """One process's part of a run."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    orders: dict[str, Order]


def make(wrap: Callable[[nn.Module], dict[str, Order] | None] = lambda model: None) -> Run:
    """A model, split by `wrap`, and its optimizer with a state."""
    model = Transformer(CONFIG)
    orders = wrap(model)
    optimizer = adamw(model, lr=0.0, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return Run(model, optimizer, orders or {})


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a run by name, or this process's piece of it as a DTensor."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{key}", value


def value_of(name: str, shape: torch.Size, step: int) -> Tensor:
    """What a tensor holds at a step."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(step * 1009 + hash_of(name)))


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "little") % 99991


def placed(name: str, tensor: Tensor, step: int, orders: dict[str, Order]) -> tuple[Tensor, Tensor]:
    """This process's memory of a tensor, and what it should hold."""
    full, order = value_of(name, tensor.shape, step), orders.get(name.partition("/")[0])
    if order is not None and tensor.ndim:
        full = full.index_select(order.axis, order.places)
    if not isinstance(tensor, DTensor):
        return tensor, full
    return tensor.to_local(), distribute_tensor(full, tensor.device_mesh, tensor.placements).to_local()


def set_to(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, orders: dict[str, Order]) -> None:
    for name, tensor in whole(model, optimizer):
        mine, value = placed(name, tensor, step, orders)
        mine.copy_(value)


def check(path: Path, run: Run, group: Group | None = None) -> int:
    """Loads a checkpoint and compares all of it; returns its step."""
    step: int = checkpoint.load(path, run.model, run.optimizer, group=group, orders=run.orders)["step"]
    for name, tensor in whole(run.model, run.optimizer):
        mine, value = placed(name, tensor, step, run.orders)
        assert torch.equal(mine, value), (path, name)
    return step


def fsdp(model: nn.Module) -> None:
    """Every block and the rest, split over all processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def hsdp(model: nn.Module) -> None:
    """Two copies, each split over two processes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "pieces"))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def by_columns(model: nn.Module) -> None:
    """Matrices and experts split by the last axis, as when layers are computed in parts; the rest is everywhere."""
    _split(model, -1, {})


def by_rows_of_parts(model: nn.Module) -> dict[str, Order]:
    """Split by rows, of which each process has some of the first third and some of the others."""
    n = dist.get_world_size()
    orders = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            rows = torch.arange(len(parameter))
            parts = [part.tensor_split(n) for part in rows.tensor_split([len(rows) // 3])]
            orders[name] = Order(0, torch.cat([part[rank] for rank in range(n) for part in parts]))
    _split(model, 0, orders)
    return orders


def _split(model: nn.Module, axis: int, orders: dict[str, Order]) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim >= 2:
                order = orders.get(f"{path}.{name}")
                full = parameter.detach() if order is None else parameter.detach()[order.places]
                split = distribute_tensor(full, mesh, [Shard(axis % parameter.ndim)])
                setattr(module, name, nn.Parameter(split, requires_grad=parameter.requires_grad))


WAYS: dict[str, Callable[[nn.Module], dict[str, Order] | None]] = {
    "fsdp": fsdp,
    "columns": by_columns,
    "parts": by_rows_of_parts,
    "copies": lambda model: None,
}


def save(directory: Path, step: int, run: Run, group: Group | None) -> None:
    set_to(step, *run)
    is_async = directory.name.partition("-")[0] in ("fsdp", "parts")
    saver = Saver(directory, keep=2, group=group, orders=run.orders, is_async=is_async)
    saver.save(step=step, model=run.model, optimizer=run.optimizer, state={"model": dataclasses.asdict(CONFIG)})
    saver.finish()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint by each number of processes and each way of splitting."""
    folder = tmp_path_factory.mktemp("saved")
    for n in (2, 4):

        def work(group: Group, n: int = n) -> None:
            for way, wrap in {**WAYS, **({"hsdp": hsdp} if n == 4 else {})}.items():
                save(folder / f"{way}-{n}", n, make(wrap), group)

        together(folder, n, work)
    save(folder / "plain-1", 1, make(), None)
    return folder


def checkpoints(folder: Path) -> list[Path]:
    found = [checkpoint.find(path).newest for path in sorted(folder.iterdir()) if path.is_dir()]
    assert len(found) == 10 and None not in found
    return [path for path in found if path is not None]


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("is_every", [pytest.param(True, marks=pytest.mark.long), False])
def test_any_number_of_processes_and_any_split_reads_any_checkpoint(
    saved: Path, tmp_path: Path, n: int, is_every: bool
) -> None:
    """Every split every checkpoint, or each checkpoint one of the splits."""
    if n == 1:
        for path in checkpoints(saved):
            check(path, make())
            assert checkpoint.read_state(path)["model"]["dim"] == 12
        return

    def work(group: Group) -> None:
        runs = [make(wrap) for wrap in WAYS.values()]
        for i, path in enumerate(checkpoints(saved)):
            for run in runs if is_every else [runs[(i + n) % len(runs)]]:
                check(path, run, group)

    together(tmp_path, n, work)


def test_a_file_for_each_process_and_each_tensor_once(saved: Path) -> None:
    sizes = {}
    for path in checkpoints(saved):
        n = int(path.parent.name[-1])
        names = {"manifest.json", "COMMITTED", "state.json"}
        if n == 1:
            names |= {"model.safetensors", "optimizer.safetensors"}
        for rank in range(n if n > 1 else 0):
            names |= {f"{kind}-{rank + 1:05d}-of-{n:05d}.safetensors" for kind in ("model", "optimizer")}
            names |= {f"rng-{rank + 1:05d}-of-{n:05d}.json"}
        second = r"(model|optimizer)-0000\d-of-0000\d-\d\.safetensors"  # further pieces of a tensor
        found = {file.name for file in path.iterdir()}
        assert {name for name in found if not re.fullmatch(second, name)} == names
        assert (found != names) == path.parent.name.startswith("parts")
        pieces = [piece for file in path.glob("*.safetensors") for piece in tensorfile.pieces(file).values()]
        sizes[path.parent.name] = sum(math.prod(piece.shape) * piece.dtype.itemsize for piece in pieces)
        for kind in ("model", "optimizer") if n > 1 else ():
            shares = [file.stat().st_size for file in path.glob(f"{kind}-?????-of-?????.safetensors")]
            assert max(shares) < 2 * sum(shares) / n, "all write about as much"
    assert set(sizes.values()) == {sizes["plain-1"]}


def test_the_weights_alone_are_read_from_pieces(saved: Path) -> None:
    for path in checkpoints(saved):
        model = Transformer(CONFIG, seed=5)
        step = checkpoint.load_model(path, model)["step"]
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, value_of(name, parameter.shape, step))


def test_a_run_of_many_processes_is_exported_without_its_optimizer(saved: Path, tmp_path: Path) -> None:
    (path,) = (path for path in checkpoints(saved) if path.parent.name == "parts-4")
    copy = tmp_path / "run" / "checkpoints" / path.name
    shutil.copytree(path, copy)
    Tokenizer.train_from_iterator(["a b c"], 256, special_tokens=[], progress=False).save(
        tmp_path / "run/tokenizer.json"
    )
    for file in copy.glob("optimizer-*"):
        file.write_bytes(b"?" * file.stat().st_size)
    model, _ = open_model(str(tmp_path / "run"), None, "cpu")
    export_hf(model, tmp_path / "out")
    again = dict(import_hf(tmp_path / "out").named_parameters())
    step = int(path.name[5:])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, value_of(name, parameter.shape, step)), name
        assert torch.equal(parameter, again[name]), name


def test_each_process_goes_on_with_its_random_numbers_and_others_begin_fixed_ones(tmp_path: Path) -> None:
    def write(group: Group) -> None:
        torch.manual_seed(100 + group.rank())
        save(tmp_path / "run", 7, make(), group)
        (tmp_path / f"expected-{group.rank()}").write_text(json.dumps(torch.rand(3).tolist()))

    def same(group: Group) -> None:
        check(tmp_path / "run" / "step-00000007", make(), group)
        assert torch.rand(3).tolist() == json.loads((tmp_path / f"expected-{group.rank()}").read_text())

    together(tmp_path, 2, write)
    together(tmp_path, 2, same)
    drawn = []
    for seed in (1, 1, 2):
        run = make()
        checkpoint.load(tmp_path / "run" / "step-00000007", run.model, run.optimizer, seed=seed)
        drawn.append(torch.rand(3).tolist())
    checkpoint.reseed(1, 7, 1)
    assert drawn[0] == drawn[1] != drawn[2] and torch.rand(3).tolist() not in drawn


def test_damage_that_one_process_finds_is_everybodys_error(saved: Path, tmp_path: Path) -> None:
    (path,) = (path for path in checkpoints(saved) if path.parent.name == "fsdp-4")
    names = [file.name for file in path.iterdir()]

    def work(group: Group) -> None:
        for name in sorted(names):
            file = path / name
            data = file.read_bytes()
            dist.barrier(group)
            if group.rank() == 0:
                file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            dist.barrier(group)
            with pytest.raises(ValueError, match=r"damaged checkpoint: .*; hint: remove "):
                checkpoint.load(path, run.model, run.optimizer, group=group)
            dist.barrier(group)
            if group.rank() == 0:
                file.write_bytes(data)
            dist.barrier(group)
        checkpoint.load(path, run.model, run.optimizer, group=group)

    run = make()
    together(tmp_path, 2, work)


class Breaking:
    """os.open or os.write that does something at its n-th call for a file of a checkpoint under way."""

    def __init__(self, name: str, n: int, action: Callable[[], object]) -> None:
        self.left, self.action, self.call = n, action, getattr(os, name)
        setattr(os, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.action()
        return self.call(*args, **kwargs)


def fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", [0, 1])
def test_a_full_disk_of_one_process_is_known_to_all_and_training_goes_on(tmp_path: Path, broken: int) -> None:
    directory = tmp_path / "run"

    def work(group: Group) -> None:
        run, told = make(fsdp), list[str]()
        saver = Saver(directory, keep=1, group=group, on_failure=lambda step, error: told.append(str(error)))

        def save(step: int) -> None:
            set_to(step, *run)
            saver.save(step=step, model=run.model, optimizer=run.optimizer, state={})

        save(1)
        saver.finish()
        for n in range(1, 6):  # calls of this process: headers and tensors of two files, random states
            dist.barrier()
            if group.rank() == broken:
                Breaking("write", n, fail)
            save(2)
            saver.wait()
            assert checkpoint.find(directory).newest == directory / "step-00000001"
        save(3)
        saver.finish()
        assert len(told) == 5 and all(f"process {broken}: No space left on device; earlier" in text for text in told)
        assert f"cannot save checkpoint {directory}/step-00000002" in told[0]
        assert check(directory / "step-00000003", run, group) == 3

    together(tmp_path, 2, work)
    assert [path.name for path in directory.iterdir()] == ["step-00000003"]


def test_a_place_that_cannot_be_written_is_known_to_all_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def work(group: Group) -> None:
        with pytest.raises(OSError, match=r"cannot write checkpoints into .*file: .*; hint: run\.dir="):
            Saver(tmp_path / "file", keep=1, group=group)

    together(tmp_path, 2, work)


def kill_one(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    """Kills a process of two at its n-th call of a kind in the second save; the next two go on from what is there."""
    directory, last = tmp_path / "run", 0
    for i, (name, n) in enumerate(calls):

        def work(group: Group, killed: int = i % 2, name: str = name, n: int = n) -> None:
            run, saver = make(fsdp), Saver(directory, keep=1, group=group)
            newest = checkpoint.find(directory).newest
            start = 0 if newest is None else check(newest, run, group)
            for step in (start + 1, start + 2):
                if step == start + 2 and group.rank() == killed:
                    saver.finish()
                    Breaking(name, n, lambda: os.kill(os.getpid(), signal.SIGKILL))
                set_to(step, *run)
                saver.save(step=step, model=run.model, optimizer=run.optimizer, state={})
            saver.finish()

        codes = World(tmp_path, 2, work).codes()
        assert codes[i % 2] in (-signal.SIGKILL, 0) and codes[1 - i % 2] in (1, 0), "it learns that the other is gone"
        found = checkpoint.find(directory)
        assert found.newest is not None and found.uncommitted == ()
        step = check(found.newest, make())
        assert step in (last + 1, last + 2)
        last = step


def test_a_process_killed_during_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    kill_one(tmp_path, [("open", 1), ("write", 3), ("fsync", 2), ("fsync", 5)])


@pytest.mark.long
def test_a_process_killed_at_any_call_of_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    calls = [(name, n) for name in ("open", "write", "fsync") for n in range(1, 11)]
    random.Random(3).shuffle(calls)
    kill_one(tmp_path, calls)


@pytest.mark.long
def test_kills_of_all_processes_at_random_moments_leave_whole_checkpoints(tmp_path: Path) -> None:
    directory, draw, last = tmp_path / "run", random.Random(4), 0

    def work(group: Group) -> None:
        run, saver = make(fsdp), Saver(directory, keep=2, group=group)
        for step in range(last + 1, last + 10_000):
            set_to(step, *run)
            saver.save(step=step, model=run.model, optimizer=run.optimizer, state={})

    for _ in range(25):
        world = World(tmp_path, 2, work)
        time.sleep(draw.uniform(0.5, 2.5))
        for child in world.children:
            os.kill(child, signal.SIGKILL)
        world.codes()
        found = checkpoint.find(directory)
        assert found.uncommitted == ()
        if found.newest is not None:
            step = check(found.newest, make())
            assert step >= last
            last = step
    assert last > 0
