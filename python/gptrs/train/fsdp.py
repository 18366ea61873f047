"""FSDP2 and HSDP: each rank keeps a part of each weight and gets the others while a block computes.

    "shard" × "expert" ranks share a block's weights, "shard" ranks alone those of its routed experts;
    "replicate" groups of such ranks hold the same.

Routers stay whole on every rank in their own type, and so does what "tensor" has cut along its only axis: their
gradients are left to the caller.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gptrs.model import Transformer
from gptrs.model.moe import Experts, Router
from gptrs.train.distributed import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

# Dimensions of the world that are one in a mesh of FSDP's.
DIMENSIONS = {"dense": ("shard", "expert")}


def routers(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are never rounded to the compute type."""
    return [p for module in model.modules() if isinstance(module, Router) for p in module.parameters()]


def shard(
    root: nn.Module, model: Transformer, world: World, *, dtype: torch.dtype, is_compiled: bool
) -> list[nn.Parameter]:
    """Wraps the blocks of a model and `root`, through which it is called, in place; computes in `dtype`.

    Returns: the trained parameters that stay out of it.
    Raises: ValueError when a size cannot be divided among the ranks.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    own = next(model.parameters()).dtype
    rounds: dict[str, Any] = {} if own == dtype else {"param_dtype": dtype, "reduce_dtype": own}
    names = {id(p): name for name, p in model.named_parameters()}
    kept = {id(p) for p in routers(model)}
    outside = [p for p in model.parameters() if id(p) in kept or _axis(p, 1) is None]
    dense, sparse = _meshes(world)

    def wrap(module: nn.Module, mesh: "DeviceMesh") -> None:
        n = mesh.size(mesh.ndim - 1)
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=n > 1 and module is not root,
            shard_placement_fn=_placement(n, names),
            mp_policy=MixedPrecisionPolicy(**rounds, cast_forward_inputs=False),
            ignored_params=set(outside),
        )

    for block in (*model.layers, *model.further):
        if is_compiled:
            block.compile(dynamic=False)
        for module in block.modules():
            if isinstance(module, Experts) and world.sizes.expert > 1:
                wrap(module, sparse)
        wrap(block, dense)
    wrap(root, dense)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums, not means,
            module.set_force_sum_reduction_for_comms(True)  # by a reduction that gloo has too
    return [p for p in outside if p.requires_grad]


def _meshes(world: World) -> "tuple[DeviceMesh, DeviceMesh]":
    """Returns the ranks that share a block, and those that share its routed experts."""
    mesh, sizes = world.mesh, world.sizes
    assert mesh is not None
    sparse = mesh["replicate", "shard"] if sizes.replicate > 1 else mesh["shard"]
    if sizes.expert == 1:
        return sparse, sparse
    dense = mesh["shard", "expert"]._flatten("dense")
    if sizes.replicate > 1:
        with warnings.catch_warnings():  # torch 2.15 would have such a mesh kept; it has no other way to one of both
            warnings.simplefilter("ignore")
            dense = mesh["replicate", "dense"]
    return dense, sparse


def _placement(n: int, names: dict[int, str]) -> "Callable[[nn.Parameter], Shard]":
    from torch.distributed.tensor import Shard

    def placement(parameter: nn.Parameter) -> Any:
        axis = _axis(parameter, n)
        if axis is None:
            shape, name = tuple(parameter.shape), names[id(parameter)]
            raise ValueError(
                f"the {n} ranks of parallel.shard must divide a size of {name} {shape} that parallel.expert and "
                "parallel.tensor leave whole; hint: another parallel.shard"
            )
        return Shard(axis)

    return placement


def _axis(parameter: Tensor, n: int) -> int | None:
    """Returns the axis along which n ranks share a parameter: the first if it is whole, else the last that is and that
    n divides; None when there is none."""
    cut = {p.dim for p in getattr(parameter, "placements", ()) if p.is_shard()}
    if 0 not in cut:
        return 0
    free = [axis for axis in range(parameter.ndim) if axis not in cut and parameter.shape[axis] % n == 0]
    return free[-1] if free else None
