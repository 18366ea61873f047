"""Which matrices ranks share, how each is cut, and how it is made whole again.

    (q | k | v)  two ranks ─▶  (q₀ k₀ v₀ | q₁ k₁ v₁) ─ Shard(0) ─▶  q₀ k₀ v₀  and  q₁ k₁ v₁

Parameters become DTensors under their own names and of their own shapes, cut along one axis by "tensor" and, for routed
experts, along the first by "expert". Unusual here: a matrix of several pieces side by side is dealt out piece by piece,
so that a rank has whole heads, or both halves of a gate: its DTensor stands in the order of the ranks, not in the plain
model's. `whole` puts it back; whoever stores it for other splits is told the order (`Cut.order`). The vocabulary alone
need not be divisible: the last rank has fewer tokens then.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptrs.model import Transformer
from gptrs.model.attention import Attention
from gptrs.model.embedding import Embedding
from gptrs.model.feed_forward import FeedForward, SwiGLU
from gptrs.model.mla import LatentAttention
from gptrs.model.moe import Experts
from gptrs.model.ranks import Columns, Entries, Rows, Span
from gptrs.train.distributed import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Cut(NamedTuple):
    """How "tensor" cuts a parameter."""

    axis: int
    pieces: tuple[int, ...]  # sizes along it, each divided evenly; one alone as DTensors divide it

    @property
    def has_order(self) -> bool:
        """Whether the parts stand otherwise than in the plain model."""
        return len(self.pieces) > 1

    def order(self, n: int, device: torch.device) -> Tensor:
        """Returns the plain places along the axis in the order of n ranks.

        Example: pieces (4, 2) and two ranks give 0 1 4 2 3 5.
        """
        starts = [sum(self.pieces[:i]) for i in range(len(self.pieces))]
        places = [
            torch.arange(start + rank * size // n, start + (rank + 1) * size // n, device=device)
            for rank in range(n)
            for start, size in zip(starts, self.pieces, strict=True)
        ]
        return torch.cat(places)


def tensor_cuts(model: Transformer) -> dict[str, Cut]:
    """Returns the cut of each parameter that "tensor" ranks share, by name; every rank has the others whole."""
    found: dict[str, Cut] = {}
    for name, module in model.named_modules():
        for key, cut in _cuts_of(module):
            if any(key == own for own, _ in module.named_parameters()):
                found[f"{name}.{key}".lstrip(".")] = cut
    return found


def divide(model: Transformer, world: World) -> None:
    """Leaves this rank its parts of the matrices that "tensor" and "expert" ranks share, and tells layers so."""
    if world.mesh is None or world.sizes.tensor * world.sizes.expert == 1:
        return
    cuts = tensor_cuts(model) if world.sizes.tensor > 1 else {}
    for name, parameter in list(model.named_parameters()):
        is_expert = ".experts." in name and world.sizes.expert > 1
        if name in cuts or is_expert:
            owner, _, key = name.rpartition(".")
            part = _divided(parameter, cuts.get(name), world.mesh, is_expert=is_expert)
            setattr(model.get_submodule(owner), key, nn.Parameter(part, requires_grad=parameter.requires_grad))
    for module in list(model.modules()):
        _tell(module, world)


def whole(tensor: Tensor, cut: Cut | None) -> Tensor:
    """Returns all of a parameter, or of what an optimizer keeps for it, in the plain model's order.

    Every rank that has a part must call it. Args: cut: of the parameter, where "tensor" ranks share it.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    full: Tensor = tensor.full_tensor()
    if cut is None or not cut.has_order:
        return full
    return full.index_select(cut.axis, cut.order(_tensor_ranks(tensor), full.device).argsort())


def put(weight: Tensor, values: Tensor, cut: Cut | None) -> None:
    """Fills this rank's part of a weight from all of its values in the plain model's order; others fill theirs."""
    if not hasattr(weight, "to_local"):
        weight.copy_(values)
        return
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    given = (weight.shape, weight.device_mesh, weight.placements)  # type: ignore[attr-defined]
    shape, offsets = compute_local_shape_and_global_offset(*given)
    order = cut.order(_tensor_ranks(weight), values.device) if cut is not None and cut.has_order else None
    for axis, (start, n) in enumerate(zip(offsets, shape, strict=True)):
        if order is None or cut is None or axis != cut.axis:
            values = values.narrow(axis, start, n)
    if order is not None and cut is not None:
        values = values.index_select(cut.axis, order.narrow(0, offsets[cut.axis], shape[cut.axis]))
    weight.to_local().copy_(values)


def _tensor_ranks(tensor: Tensor) -> int:
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return int(mesh.shape[mesh.mesh_dim_names.index("tensor")])


def _divided(parameter: nn.Parameter, cut: Cut | None, mesh: "DeviceMesh", *, is_expert: bool) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    tensor, names, placements = parameter.data, [], []
    if is_expert:
        names.append("expert")
        placements.append(Shard(0))
    if cut is not None:
        names.append("tensor")
        placements.append(Shard(cut.axis))
        if cut.has_order:
            tensor = tensor.index_select(cut.axis, cut.order(mesh["tensor"].size(), tensor.device))
    # Every rank has drawn the same weights: nothing needs to travel.
    return distribute_tensor(tensor, mesh[tuple(names)], placements, src_data_rank=None)


def _cuts_of(module: nn.Module) -> Iterator[tuple[str, Cut]]:
    """The cuts of a module's own parameters, those that it may lack too."""
    if isinstance(module, Attention):
        D = module.head_dim
        yield from _column_cuts("qkv", module.n_heads * D, module.kv_heads * D, module.kv_heads * D)
        yield "output.weight", Cut(1, (module.n_heads * D,))
    elif isinstance(module, LatentAttention):
        yield from _column_cuts("q", module.n_heads * (module.nope + module.rope))
        yield from _column_cuts("kv_up", module.n_heads * (module.nope + module.v_dim))
        yield "output.weight", Cut(1, (module.n_heads * module.v_dim,))
    elif isinstance(module, FeedForward | SwiGLU):
        width = module.down.in_features
        yield from _column_cuts("up", *([width] * (2 if isinstance(module, SwiGLU) else 1)))
        yield "down.weight", Cut(1, (width,))
    elif isinstance(module, Experts):
        width = module.down.shape[-1]
        yield "up", Cut(1, (width, width))
        yield "down", Cut(2, (width,))
    elif isinstance(module, Embedding):
        yield "token.weight", Cut(0, (module.token.num_embeddings,))
    elif isinstance(module, Transformer):
        yield "head.weight", Cut(0, (module.config.vocab_size,))


def _column_cuts(name: str, *pieces: int) -> Iterator[tuple[str, Cut]]:
    yield f"{name}.weight", Cut(0, pieces)
    yield f"{name}.bias", Cut(0, pieces)


def _tell(module: nn.Module, world: World) -> None:
    """Lets a layer know whom it shares its parts with."""
    assert world.mesh is not None
    n, group = world.sizes.tensor, world.mesh["tensor"].get_group()
    if isinstance(module, Experts):
        experts = world.mesh["expert"].get_group() if world.sizes.expert > 1 else None
        module.share(expert_group=experts, tensor_group=group if n > 1 else None)
    if n == 1:
        return
    if isinstance(module, Attention):
        module.n_heads, module.kv_heads = module.n_heads // n, module.kv_heads // n
        _replace(module, group, qkv=Columns, output=Rows)
    elif isinstance(module, LatentAttention):
        module.n_heads, module.group = module.n_heads // n, group
        _replace(module, group, q=Columns, kv_up=Columns, output=Rows)
    elif isinstance(module, FeedForward | SwiGLU):
        _replace(module, group, up=Columns, down=Rows)
    elif isinstance(module, Embedding):
        table, span = module.token, Span.own(module.token.num_embeddings, group)
        with torch.device("meta"):
            module.token = Entries(table.num_embeddings, table.embedding_dim)
        module.token.weight, module.token.span = table.weight, span
    elif isinstance(module, Transformer):
        module.span = Span.own(module.config.vocab_size, group)


def _replace(module: nn.Module, group: dist.ProcessGroup, **kinds: type[Columns] | type[Rows]) -> None:
    """Puts shared linear layers in the place of whole ones, around the same parameters."""
    for name, kind in kinds.items():
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        inner, outer = linear.in_features, linear.out_features  # of this rank
        if kind is Columns:
            outer //= group.size()
        else:
            inner //= group.size()
        with torch.device("meta"):
            shared = kind(inner, outer, bias=linear.bias is not None)
        shared.weight, shared.bias, shared.group = linear.weight, linear.bias, group
        setattr(module, name, shared)
