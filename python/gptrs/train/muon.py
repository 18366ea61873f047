"""Muon: momentum made orthogonal, for the matrices of hidden layers; AdamW for all else, in one optimizer.

    gradient ─▶ momentum ─▶ all matrices of one shape ─Newton–Schulz─▶ orthogonal ─· ratio of the shape─▶ weights

Unusual here: the experts of a layer are a batch of matrices, and what stands in one matrix for one product's sake
(queries, keys and values; gate and value) is taken apart again: orthogonal together, the largest of them would decide
how far the others go. A matrix that is sharded is gathered for the product alone, which one of its ranks makes for all;
its momentum stays sharded.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.optim.adamw import adamw

from gptrs.model.attention import Attention
from gptrs.model.feed_forward import SwiGLU
from gptrs.model.mla import LatentAttention
from gptrs.model.moe import Experts
from gptrs.model.ranks import local

Adjust = Literal["match_rms_adamw", "original"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0: singular values end between 0.7 and 1.2, not at 1
STEPS = 5
_EPS = 1e-7  # smallest norm that is divided by
_CPU_ELEMENTS = 1 << 18  # of one batch of matrices: more of them leave the cache, docs/log.md
_ELEMENTS = 1 << 26  # elsewhere: its copies take 0.4 GB in bf16


class Muon(torch.optim.Optimizer):
    """Muon over groups with `is_hidden`, AdamW over the others; every state is a tensor.

    Fused, it leaves a step out where `found_inf` is 1, as torch's fused optimizers do: on the device, to the bit.
    State: hidden matrices have momentum_buffer, as torch.optim.Muon; others step, exp_avg, exp_avg_sq, as AdamW.
    Source: Keller Jordan's Muon; arXiv 2502.16982, equation 4, for "match_rms_adamw". On matrices that stand alone it
        is torch.optim.Muon, which takes no others.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        is_nesterov: bool = True,
        adjust: Adjust = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool = False,
        stacks: Mapping[Tensor, tuple[int, ...]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Args:
        groups: each with params and is_hidden, and what it has of its own.
        adjust: the rate of an (A, B) matrix in multiples of lr: "match_rms_adamw" 0.2·√max(A, B), so that an element
            moves as far as AdamW's and lr and weight_decay are AdamW's; "original" √max(1, A/B).
        betas, eps, fused: of AdamW.
        stacks: how many rows each of the matrices has that stand in a parameter, see `hidden_matrices`.
        dtype: of Newton–Schulz; by default bf16 on CUDA, else float32 or the parameter's wider type.
        """
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "is_nesterov": is_nesterov,
                    "adjust": adjust, "betas": betas, "eps": eps, "fused": fused}  # fmt: skip
        super().__init__(list(groups), defaults)
        self._stacks = dict(stacks or {})
        self._dtype = dtype
        self._step_supports_amp_scaling = fused  # torch's own name for who reads found_inf

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one update; calls the closure first, where there is one, and returns its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["is_hidden"]:
                self._step_hidden(parameters, group)
            elif parameters:
                self._step_adamw(parameters, group)
        return loss

    def _step_hidden(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum, gradients = group["momentum"], [_gradient(p) for p in parameters]
        buffers = [self._momentum(p) for p in parameters]
        is_left_out = getattr(self, "found_inf", None)
        _follow([local(b) for b in buffers], [local(g) for g in gradients], 1 - momentum, is_left_out)
        moved = buffers
        if group["is_nesterov"]:
            pairs = zip(gradients, buffers, strict=True)
            moved = [_of_parts(b, torch.lerp(local(g), local(b), momentum)) for g, b in pairs]
        updates = self._orthogonal(parameters, moved, group["adjust"])
        kept = 1 - group["lr"] * group["weight_decay"]
        _move([local(p) for p in parameters], [local(u) for u in updates], kept, group["lr"], is_left_out)

    def _orthogonal(self, parameters: list[Tensor], moved: list[Tensor], adjust: Adjust) -> list[Tensor]:
        """What each parameter is moved by at a rate of 1; of its shape, type and sharding."""
        whole = [_whole(m).contiguous() for m in moved]
        is_own = _dealt_out(moved)
        out = [torch.empty_like(w) if own else torch.zeros_like(w) for w, own in zip(whole, is_own, strict=True)]
        by_shape: dict[tuple[int, int], list[_Part]] = {}
        for p, source, target, own in zip(parameters, whole, out, is_own, strict=True):
            if not own:
                continue
            sizes = self._stacks.get(p, ())
            for part in map(_Part, _parts(source, sizes), _parts(target, sizes)):
                by_shape.setdefault((min(part.shape), max(part.shape)), []).append(part)
        for parts in by_shape.values():
            for batch in _batches(parts):
                _orthogonalize(batch, adjust, self._dtype)
        return [_sharded_as(like, target) for like, target in zip(moved, out, strict=True)]

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = _of_parts(p, torch.zeros_like(local(p)))
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            state = self.state[p]
            if not state:
                device = p.device if group["fused"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = _of_parts(p, torch.zeros_like(local(p)))
                state["exp_avg_sq"] = _of_parts(p, torch.zeros_like(local(p)))
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [_gradient(p) for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )


# Of shards element by element: torch 2.11 has no rule for all of this on DTensors. A step that may be left out is made
# beside the old values, a tensor at a time, since 0 times a number that is none would not leave them as they are.


def _follow(buffers: list[Tensor], gradients: list[Tensor], share: float, is_left_out: Tensor | None) -> None:
    """Takes gradients into the momenta, unless the step is left out: 1."""
    if is_left_out is None:
        torch._foreach_lerp_(buffers, gradients, share)
        return
    for buffer, gradient in zip(buffers, gradients, strict=True):
        buffer.copy_(torch.where(is_left_out == 1, buffer, torch.lerp(buffer, gradient, share)))


def _move(weights: list[Tensor], updates: list[Tensor], kept: float, lr: float, is_left_out: Tensor | None) -> None:
    """Makes the step, unless it is left out: 1."""
    if is_left_out is None:
        torch._foreach_mul_(weights, kept)
        torch._foreach_add_(weights, updates, alpha=-lr)
        return
    for weight, update in zip(weights, updates, strict=True):
        weight.copy_(torch.where(is_left_out == 1, weight, weight.mul(kept).add_(update, alpha=-lr)))


def hidden_matrices(model: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """Returns the matrices between embedding and head, with the rows of each that stand in them, over and over.

    Attention's qkv (H·D | K·D | K·D) has three; a latent's kv_down (R | rope) two; its kv_up (nope | v) two, whose rows
    alternate head by head; SwiGLU's up (gate | value) two, of every expert too. () is one. Not among them: embeddings,
    the head, routers, norms and biases.
    """
    head = getattr(model, "head", None)
    found: dict[Tensor, tuple[int, ...]] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            found.setdefault(module.weight, ())
        elif isinstance(module, Attention):
            D = module.head_dim
            found[module.qkv.weight] = (module.n_heads * D, module.kv_heads * D, module.kv_heads * D)
        elif isinstance(module, LatentAttention):
            found[module.kv_down.weight] = (module.rank, module.rope)
            found[module.kv_up.weight] = (module.nope, module.v_dim)
        elif isinstance(module, SwiGLU):
            found[module.up.weight] = (module.up.out_features // 2,) * 2
        elif isinstance(module, Experts):
            n = 1 if module.tensor_group is None else module.tensor_group.size()  # which have (gate | value) each
            found[module.up] = (module.up.shape[1] // (2 * n),) * 2
            found[module.down] = ()
    return {p: sizes for p, sizes in found.items() if p.requires_grad}


def newton_schulz(matrices: Tensor, *, steps: int = STEPS) -> Tensor:
    """Returns U·Vᵀ of each U·S·Vᵀ, roughly: singular values between 0.7 and 1.2; (n, A, B) with A ≤ B, in their type.

    Source: Keller Jordan's quintic iteration X ← aX + (bG + cG²)X with G = X·Xᵀ.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)  # (n, A, B)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)  # (n, A, A)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (n, A, B)
    return x


def ratio(A: int, B: int, adjust: Adjust) -> float:
    """Returns the rate of an (A, B) matrix, rows first, in multiples of the group's."""
    return 0.2 * math.sqrt(max(A, B)) if adjust == "match_rms_adamw" else math.sqrt(max(1, A / B))


class _Part(NamedTuple):
    """One matrix of a parameter, or one of each of its experts, where it stands: (n, turns, size, B) views."""

    source: Tensor
    target: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(A, B) of the matrix: the rows of all turns are its own."""
        _, turns, size, B = self.source.shape
        return turns * size, B


def _orthogonalize(parts: list[_Part], adjust: Adjust, dtype: torch.dtype | None) -> None:
    """Fills the targets, all (A, B) or (B, A), with the orthogonal form of the sources times their ratio."""
    own = parts[0].source
    wide = torch.promote_types(own.dtype, torch.float32)
    dtype = dtype or (torch.bfloat16 if own.device.type == "cuda" else wide)
    flat = [part.source.flatten(1, 2).to(dtype) for part in parts]  # (n, A, B) or (n, B, A) each
    is_high = [A > B for A, B in (part.shape for part in parts)]
    batch = newton_schulz(torch.cat([x.mT if high else x for x, high in zip(flat, is_high, strict=True)]))
    results = torch.split(batch, [len(x) for x in flat])
    for part, high, result in zip(parts, is_high, results, strict=True):
        rows = result.mT if high else result  # (n, turns·size, B)
        part.target.copy_(rows.reshape(part.target.shape)).mul_(ratio(*part.shape, adjust))


def _parts(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The matrices that stand in a parameter, (rows, B) or (n, rows, B): views of (n, turns, size, B) each."""
    n, (rows, B) = 1 if x.ndim == 2 else x.shape[0], x.shape[-2:]
    sizes = sizes or (rows,)
    assert rows % sum(sizes) == 0, (rows, sizes)
    turns = x.view(n, rows // sum(sizes), sum(sizes), B)
    return torch.split(turns, list(sizes), dim=2)


def _batches(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Runs of parts of bounded size, or one alone."""
    most = _CPU_ELEMENTS if parts[0].source.device.type == "cpu" else _ELEMENTS
    batch: list[_Part] = []
    n = 0
    for part in parts:
        if batch and n + part.source.numel() > most:
            yield batch
            batch, n = [], 0
        batch.append(part)
        n += part.source.numel()
    yield batch


def _whole(x: Tensor) -> Tensor:
    """A sharded tensor with all that its matrices need: gathered, unless each shard has whole matrices."""
    if not isinstance(x, DTensor):
        return x
    return x.to_local() if _has_whole_matrices(x) else x.full_tensor()


def _sharded_as(like: Tensor, x: Tensor) -> Tensor:
    """This rank's part of what one of the ranks has made of what `_whole` gave, and the others left 0."""
    if not isinstance(like, DTensor):
        return x
    if _has_whole_matrices(like):
        return _of_parts(like, x)
    mesh = like.device_mesh
    sums = DTensor.from_local(x, mesh, [Partial()] * mesh.ndim, run_check=False)
    return sums.redistribute(mesh, like.placements)


def _of_parts(like: Tensor, x: Tensor) -> Tensor:
    """A tensor of which x is this rank's part, sharded as another is. DTensor's own operators take some 50 ms to work
    out what comes of each new shape on a mesh of three dimensions; element by element there is nothing to work out."""
    if not isinstance(like, DTensor):
        return x
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(x, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def _dealt_out(tensors: list[Tensor]) -> list[bool]:
    """Whether this rank makes each product: of those that several ranks gather one does, and all have about as much.

    Large ones first, each to the rank with the least so far; all ranks come to the same.
    """
    is_own, loads = [True] * len(tensors), dict[Any, list[int]]()
    costs = [x.numel() * min(x.shape[-2:]) for x in tensors]
    for cost, i in sorted(zip(costs, range(len(tensors)), strict=True), key=lambda pair: (-pair[0], pair[1])):
        x = tensors[i]
        if isinstance(x, DTensor) and not _has_whole_matrices(x):
            mesh = x.device_mesh
            load = loads.setdefault(mesh, [0] * mesh.size())
            least = load.index(min(load))
            load[least] += cost
            is_own[i] = int(mesh.mesh.flatten()[least]) == mesh.get_rank()
    return is_own


def _has_whole_matrices(x: DTensor) -> bool:
    """Whether the shards are of experts, or there are none: then nothing has to be gathered."""
    return all(p.is_replicate() or (x.ndim == 3 and isinstance(p, Shard) and p.dim == 0) for p in x.placements)


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None, "chosen for it"
    return p.grad
