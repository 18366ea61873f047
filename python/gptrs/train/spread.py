"""A model spread over the ranks of a world: what computes its loss, sums its gradients and clips them.

    loss_fn(model, batch, totals) ─ rounded weights ─▶ Objective ─ DDP or FSDP2 ─▶ share of the update's loss
                                                          gradients: sums over all ranks that read other rows

Unusual here: nothing is a mean over ranks. Each rank's loss is its share of the whole update's, divided by what counts
on all of them, so gradients are added up and an update is the same however rows are dealt out, targets left out of it
or not. Weights stay fp32 and are rounded to the compute type inside the graph, not by an ambient autocast.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.func import functional_call

from gptrs.model import Transformer
from gptrs.model.block import keeping
from gptrs.model.ranks import local
from gptrs.train.cuts import Cut, divide, put, tensor_cuts, whole
from gptrs.train.distributed import World
from gptrs.train.fsdp import DIMENSIONS, routers, shard
from gptrs.train.optim import clip

LossFn = Callable[..., Tensor]  # (model, batch, totals) → the batch's share of the loss that `totals` divides


class Objective(nn.Module):
    """(loss function, its arguments behind the model) → loss, computed with the weights rounded to `dtype`.

    The rounding is a part of the graph: its backward widens each gradient to the weight's own type before it is added,
    so microbatches sum in fp32. Under torch.compile the casts melt into their neighbours. Routers keep their type, and
    so does what is not trained by gradients: which experts a token takes does not depend on `dtype`'s rounding of them.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None) -> None:
        """Args: dtype: None when somebody else rounds."""
        super().__init__()
        self.call = _Call(model)
        self.dtype = dtype
        kept = {id(p) for p in routers(model)}
        cast = {name: p.dtype for name, p in self.call.named_parameters() if p.requires_grad and id(p) not in kept}
        self.cast = () if dtype is None or all(own == dtype for own in cast.values()) else tuple(cast)

    def forward(self, loss_fn: LossFn, *given: Any) -> Tensor:
        if not self.cast:
            loss: Tensor = self.call(loss_fn, *given)
            return loss
        parameters = dict(self.call.named_parameters())
        weights = {name: parameters[name].to(self.dtype) for name in self.cast}
        rounded: Tensor = functional_call(self.call, weights, (loss_fn, *given))
        return rounded


class _Call(nn.Module):
    """A loss function's call as a module, so that functional_call can exchange the weights under any method of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_fn: LossFn, *given: Any) -> Tensor:
        return loss_fn(self.model, *given)


class Spread:
    """A model as one rank of a world trains it.

    Attributes: model: with this rank's parts of its weights, under its own parameter names; world; cuts: of the
        parameters that "tensor" ranks share, by name (see `cuts`).
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        dtype: torch.dtype,
        is_compiled: bool = False,
        is_whole: bool = True,
        mode: str | None = None,
        activation_budget: float | None = None,
        seed: int | None = None,
        before_memory: Callable[[int, int], None] | None = None,
    ) -> None:
        """Divides the model among the ranks, in place, and moves it to their devices. One on the meta device becomes
        real here: no rank ever has more than its own parts and one weight.

        Args: is_whole: compiles loss and backward as one, not block by block; FSDP2 always has blocks. mode: of
            torch.compile. activation_budget: see `block.keeping`. seed: of the weights of a model on the meta device;
            None: the caller fills them. before_memory: is told parameters and bytes of this rank's parts of such a
            model before they take memory, and may raise.
        Raises: ValueError when its sizes cannot be divided so.
        """
        self.model = model
        self.world = world
        self.cuts: dict[str, Cut] = {}
        self._sums_rest: list[nn.Parameter] = []  # whose gradients are added up here: no wrapper has them
        is_sharded = world.sizes.shard * world.sizes.expert > 1 or (world.sizes.tensor > 1 and world.data_size > 1)
        if world.size > 1:
            assert isinstance(model, Transformer)
            self.cuts = tensor_cuts(model) if world.sizes.tensor > 1 else {}
            divide(model, world)
        self._keeping = functools.partial(keeping, activation_budget, world.device) if is_compiled else nullcontext
        self._module: nn.Module = Objective(model, dtype=None if is_sharded else dtype)
        if is_compiled and not is_sharded:
            self._module.compile(dynamic=False, mode=mode) if is_whole else _blocks_of(model, activation_budget)
        if is_sharded:
            assert isinstance(model, Transformer)
            self._sums_rest = shard(self._module, model, world, dtype=dtype, is_compiled=is_compiled)
        self._place(seed, before_memory)
        if world.data_size > 1 and not is_sharded:
            self._module = _ddp(self._module, world)

    def loss(self, loss_fn: LossFn, *given: Any) -> Tensor:
        """Returns loss_fn(model, *given) with the weights rounded."""
        with self._keeping():
            loss: Tensor = self._module(loss_fn, *given)
        if not torch.is_grad_enabled() and (reshard := getattr(self._module, "reshard", None)) is not None:
            reshard()  # otherwise the backward pass does, and parameters are this rank's parts again
        return loss

    @contextmanager
    def microbatch(self, *, is_last: bool) -> Iterator[None]:
        """Goes around loss and backward of each microbatch of an update; gradients cross ranks with the last alone."""
        if isinstance(self._module, nn.parallel.DistributedDataParallel) and not is_last:
            with self._module.no_sync():
                yield
            return
        if (set_sync := getattr(self._module, "set_requires_gradient_sync", None)) is not None:
            set_sync(is_last)
        yield
        if is_last:
            self._sum_rest()

    def _place(self, seed: int | None, before_memory: Callable[[int, int], None] | None) -> None:
        """Brings the parts to the rank's device; those of a model on the meta device get memory, and their weights."""
        if not next(self.model.parameters()).is_meta:
            self._module.to(self.world.device)
            return
        names = {id(p): name for name, p in self.model.named_parameters()}
        rest = [names[id(p)] for p in self._sums_rest]
        if before_memory is not None:
            held = [local(p) for p in self.model.parameters()]
            before_memory(sum(p.numel() for p in held), sum(p.numel() * p.element_size() for p in held))
        self._module.to_empty(device=self.world.device)
        self._sums_rest = [self.model.get_parameter(name) for name in rest]  # with memory they are others
        if seed is not None:
            assert isinstance(self.model, Transformer)
            cut_of = {id(p): self.cuts.get(name) for name, p in self.model.named_parameters()}
            self.model.init_weights(seed, put=lambda weight, values: put(weight, values, cut_of[id(weight)]))

    def whole(self) -> Transformer | None:
        """Returns the model with all of its weights on rank 0, None on the others; every rank must call it.

        On one process, and where every rank has all weights, it is the model itself.
        """
        assert isinstance(self.model, Transformer)
        if not self.is_divided:
            return self.model if self.world.is_main else None
        with torch.device("meta"):
            plain = Transformer(self.model.config)
        for name, parameter in self.model.named_parameters():
            full = whole(parameter.detach(), self.cuts.get(name))
            if self.world.is_main:
                owner, _, key = name.rpartition(".")
                setattr(plain.get_submodule(owner), key, nn.Parameter(full, requires_grad=parameter.requires_grad))
        return plain.train(self.model.training) if self.world.is_main else None

    def clip(self, max_norm: float) -> Tensor:
        """Returns the norm of the whole gradient, and scales the gradient down to `max_norm` (0: leaves it)."""
        if self.world.size == 1:
            return clip(self.model.parameters(), max_norm)
        with_gradient = [p for p in self.model.parameters() if p.grad is not None]
        counted = [local(p.grad) for p in with_gradient if p.grad is not None and self.counts_here(p)]
        square = nn.utils.get_total_norm(counted).square() if counted else torch.zeros((), device=self.world.device)
        norm = self.world.sum_of_all(square.double()).sqrt()
        if max_norm > 0:
            scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            for p in with_gradient:
                assert p.grad is not None
                local(p.grad).mul_(scale.to(p.grad.dtype))
        return norm

    def split_groups(self, optimizer: torch.optim.Optimizer) -> None:
        """Parts each group of a new optimizer by where its parameters live: one kernel updates those of one mesh."""
        groups = []
        for group in optimizer.param_groups:
            by_mesh: dict[Any, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_mesh.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
            groups += [{**group, "params": parameters} for parameters in by_mesh.values()]
        optimizer.param_groups[:] = groups

    @property
    def is_divided(self) -> bool:
        """Whether ranks have other parts of some weights."""
        return any(hasattr(p, "full_tensor") for p in self.model.parameters())

    def counts_here(self, parameter: nn.Parameter) -> bool:
        """Whether this rank speaks for its part of a parameter: of those with the same part, the first does."""
        divided = {dim for dim, n in _divisions(parameter) if n > 1}
        return all(place == 0 or dim in divided for dim, place in self.world.place().items())

    def _sum_rest(self) -> None:
        """Adds up over the data ranks the gradients that no wrapper does."""
        gradients = [local(p.grad) for p in self._sums_rest if p.grad is not None]
        if not gradients or self.world.data_size == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=self.world.data_group)
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def _blocks_of(model: nn.Module, activation_budget: float | None) -> None:
    assert isinstance(model, Transformer)
    model.compile_blocks(activation_budget=activation_budget)


def _divisions(parameter: nn.Parameter) -> Iterator[tuple[str, int]]:
    """The mesh's dimensions along which ranks have other parts of a parameter, and how many ranks."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return
    for name, n, placement in zip(mesh.mesh_dim_names, mesh.shape, parameter.placements, strict=True):  # type: ignore[attr-defined]
        if placement.is_shard():
            yield from ((part, n) for part in DIMENSIONS.get(name, (name,)))


def _ddp(module: nn.Module, world: World) -> nn.parallel.DistributedDataParallel:
    ids = None if world.device.type == "cpu" else [world.device]
    wrapped = nn.parallel.DistributedDataParallel(
        module, device_ids=ids, process_group=world.data_group, gradient_as_bucket_view=True
    )
    wrapped.register_comm_hook(world.data_group, _sum)
    return wrapped


def _sum(group: dist.ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The ranks' gradients added up, where DDP by itself takes their mean.

    Of more than two ranks, who adds first depends on a number's place in the message, and DDP arranges its buckets
    anew behind a process's first update. On the CPU a run that goes on gives the same bits: gradients go one by one.
    """
    buffer = bucket.buffer()
    if buffer.device.type == "cpu":
        works = [dist.all_reduce(gradient, group=group, async_op=True) for gradient in bucket.gradients()]
        return torch.futures.collect_all([work.get_future() for work in works]).then(lambda _: buffer)
    work = dist.all_reduce(buffer, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
