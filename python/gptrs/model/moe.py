"""A mixture of experts: each token goes through a few of many feed-forward layers, and through the shared one.

    x ─router─▶ scores ─▶ A experts of each token, weighted ──▶ Σ weight·expert(x) ─┐
    x ─shared experts──────────────────────────────────────────────────────────────┴▶ + ─▶ y

No token is dropped, however many choose an expert: tokens are sorted by expert, and each stretch is multiplied by its
own matrices, all in one grouped product or, on the CPU, one after the other. Where ranks share the experts, tokens
travel to them and back. A bias that only the choice sees, moved after each step towards equal load, keeps the experts
busy without a gradient of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model.config import ModelConfig
from gptrs.model.expert_by_expert import expert_by_expert
from gptrs.model.feed_forward import SwiGLU, gated
from gptrs.model.matmul import has_tiles
from gptrs.model.ranks import enter, exchange, leave, part

_ROUTER_BYTES = 4  # of each number of a router, at least
_ALIGNED = 16  # bytes that the grouped product wants the inner sizes to be a multiple of


class Use(NamedTuple):
    """How a layer's experts were used in one forward pass."""

    balance: Tensor  # a scalar, see `balance`
    loads: Tensor  # (E,), how often each was chosen


class Router(nn.Module):
    """Which experts each token takes, and how much of each; in float32 also where the rest is in a narrower type.

    Attributes: weight: (E, C); bias: (E,), not trained by gradients, or None for softmax scores. Both keep float32 when
        the model is brought to bfloat16 or float16: experts differ by less than those tell apart.
    Source: arXiv 2412.19437, equations 12 to 16; groups arXiv 2405.04434, section 2.2.2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E = config.n_routed_experts
        self.config = config
        self.weight = nn.Parameter(torch.empty(E, config.dim))
        is_balanced = config.score_func == "sigmoid"
        self.bias = nn.Parameter(torch.empty(E), requires_grad=False) if is_balanced else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: parameter.data for name, parameter in self.named_parameters(recurse=False)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, parameter in self.named_parameters(recurse=False):
            if parameter.element_size() < _ROUTER_BYTES <= kept[name].element_size():
                parameter.data = kept[name].to(parameter.device, torch.float32)
        return self

    def scores(self, x: Tensor) -> Tensor:
        """How well each expert fits each token, in float32 or wider: (N, C) → (N, E)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(wide), self.weight.to(wide))  # (N, E)
        return logits.sigmoid() if self.config.score_func == "sigmoid" else logits.softmax(dim=-1)

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and their weights: (N, E) → (N, A) ids, (N, A) of the scores' type."""
        config = self.config
        choice = scores if self.bias is None else scores + self.bias.to(scores.dtype)
        if config.n_limited_groups < config.n_expert_groups:
            choice = choice.masked_fill(~self._is_in_best_groups(choice), -torch.inf)
        ids = choice.topk(config.n_activated_experts, dim=-1).indices  # (N, A)
        weights = scores.gather(-1, ids)  # (N, A)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return ids, weights * config.route_scale

    def _is_in_best_groups(self, choice: Tensor) -> Tensor:
        """Whether each expert is in a group its token may choose from: booleans (N, E)."""
        config = self.config
        groups = choice.view(len(choice), config.n_expert_groups, -1)  # (N, groups, E / groups)
        n_best = 2 if config.group_score == "top2" else 1
        strength = groups.topk(n_best, dim=-1).values.sum(dim=-1)  # (N, groups)
        best = strength.topk(config.n_limited_groups, dim=-1).indices  # (N, n_limited_groups)
        is_best = torch.zeros_like(strength, dtype=torch.bool).scatter(-1, best, True)  # (N, groups)
        return is_best.unsqueeze(-1).expand_as(groups).flatten(-2)


class Experts(nn.Module):
    """E SwiGLU layers of moe_inter_dim, stacked.

    Attributes: up: (E, 2·m, C), rows ordered (gate | up); down: (E, C, m); expert_group, tensor_group: the ranks that
        share the experts, and the inner width of each, or None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, m = config.n_routed_experts, config.dim, config.moe_inter_dim
        self.up = nn.Parameter(torch.empty(E, 2 * m, C))
        self.down = nn.Parameter(torch.empty(E, C, m))
        self.expert_group: dist.ProcessGroup | None = None
        self.tensor_group: dist.ProcessGroup | None = None
        self._apply_afar = _apply_afar

    def share(self, expert_group: dist.ProcessGroup | None, tensor_group: dist.ProcessGroup | None) -> None:
        """Tells which ranks share the experts, and which the inner width of each; the caller deals out the weights."""
        self.expert_group, self.tensor_group = expert_group, tensor_group
        if expert_group is not None:
            # How many rows travel is known only when they do. Not a decorator: that would import the compiler, which
            # takes longer than torch, wherever a model is used.
            self._apply_afar = torch.compiler.disable(_apply_afar)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Σ weight·expert(x) of each token: (N, C), (N, A), (N, A) → (N, C)."""
        x, weights = enter(x, self.tensor_group), enter(weights, self.tensor_group)
        up: Tensor = self.up
        down: Tensor = self.down
        if self.expert_group is not None or self.tensor_group is not None:
            up, down = part(up), part(down)
        if self.expert_group is None:
            y = _apply(x, ids, weights, up, down)
        else:
            y = self._apply_afar(x, ids, weights, up, down, self.expert_group)
        return leave(y, self.tensor_group)


def _apply(x: Tensor, ids: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`Experts.forward` with the experts of this rank alone."""
    N, A = ids.shape
    order = ids.flatten().argsort(stable=True)  # (N·A,): places of (token, choice), expert by expert
    loads = count_choices(ids.view(1, N * A), up.shape[0]).squeeze(0)  # (E,)
    if _goes_by_expert(x):
        return expert_by_expert(x, up, down, weights, order, loads)
    apply = _grouped if _has_grouped_product(x, up, down) else _one_by_one
    back = _inverse(order)
    rows: Tensor = _Moved.apply(x, order, back, A)  # (N·A, C), expert by expert
    out: Tensor = _Moved.apply(apply(rows, loads, up, down), back, order, 1)  # (N·A, C), token by token
    return (out.view(N, A, -1) * weights.unsqueeze(-1).to(out.dtype)).sum(dim=1)  # (N, C)


def _inverse(order: Tensor) -> Tensor:
    """Where each place went: (n,) → (n,)."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class _Moved(torch.autograd.Function):
    """Rows, each n times, in another order: (N, C) → (N·n, C).

    The gradient comes back the same way, by reading. That of torch would add row by row into zeros, for which a GPU's
    threads wait for each other and which sums in no order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Tensor, back: Tensor, n: int) -> Tensor:
        """Args: forth, back: (N·n,), a permutation and its inverse; n: copies of each row, which stand together."""
        ctx.save_for_backward(back)
        ctx.n = n
        return x.index_select(0, forth // n if n > 1 else forth)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        d = grad.index_select(0, back)
        return d.view(-1, ctx.n, d.shape[-1]).sum(dim=1) if ctx.n > 1 else d, None, None, None


def _apply_afar(x: Tensor, ids: Tensor, weights: Tensor, up: Tensor, down: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The same with E / n experts on each of the group's n ranks: tokens go there, their sums come back.

    Every token arrives, whatever the loads: ranks tell each other first how many rows come for which expert.
    """
    N, A = ids.shape
    n, E = group.size(), len(up)  # E: of this rank
    order = ids.flatten().argsort(stable=True)  # (N·A,), expert by expert and so rank by rank
    loads = count_choices(ids.view(1, N * A), n * E).view(n, E)
    arriving = exchange(loads, [1] * n, [1] * n, group)  # (n, E), rows from each rank for each expert here
    sent, received = loads.sum(dim=1).tolist(), arriving.sum(dim=1).tolist()
    back = _inverse(order)
    rows = exchange(_Moved.apply(x, order, back, A), sent, received, group)  # (M, C)
    whose = torch.arange(E, device=x.device).repeat(n)  # (n·E,)
    own = whose.repeat_interleave(arriving.flatten(), output_size=len(rows)).unsqueeze(-1)  # (M, 1); nobody waits for M
    out = _apply(rows, own, torch.ones_like(own, dtype=weights.dtype), up, down)  # (M, C)
    out = _Moved.apply(exchange(out, received, sent, group), back, order, 1)  # (N·A, C), token by token
    y: Tensor = (out.view(N, A, -1) * weights.unsqueeze(-1).to(out.dtype)).sum(dim=1)  # (N, C)
    return y


def _grouped(x: Tensor, loads: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """(N·A, C), sorted by expert → (N·A, C), all experts in one product for each matrix."""
    ends = loads.cumsum(0).to(torch.int32)  # (E,)
    h = gated(_product(x, up.transpose(-2, -1), ends))  # (N·A, m)
    return _product(h, down.transpose(-2, -1), ends)


def _product(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Rows, sorted by expert, times the matrix of theirs: (n, K), (E, K, M), (E,) → (n, M)."""
    if torch.compiler.is_compiling() and x.dtype == torch.float32 and not _IS_TRACED:
        y: Tensor = _opaque(x, matrices, ends)
        return y
    return F.grouped_mm(x, matrices, offs=ends)


# Whether torch.compile knows the shape of a grouped product in float32: torch 2.15 does, 2.11 refuses the type. A look
# with meta tensors would tell, and import sympy for it.
_IS_TRACED = torch.__version__ >= (2, 15)  # type: ignore[operator]


@torch.library.custom_op("gptrs::grouped_product", mutates_args=())
def _opaque(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """`_product` as one call that torch.compile does not look into."""
    return F.grouped_mm(x, matrices, offs=ends)


@_opaque.register_fake
def _(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(len(x), matrices.shape[-1])


def _opaque_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, matrices, ends = ctx.saved_tensors
    return _opaque(grad, matrices.transpose(-2, -1), ends), _opaque_gradient(x, grad, ends), None


@torch.library.custom_op("gptrs::grouped_gradient", mutates_args=())
def _opaque_gradient(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    """The gradient of the matrices: (n, K), (n, M), (E,) → (E, K, M)."""
    return F.grouped_mm(x.T, grad, offs=ends)


@_opaque_gradient.register_fake
def _(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(len(ends), x.shape[-1], grad.shape[-1])


_opaque.register_autograd(_opaque_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def _one_by_one(x: Tensor, loads: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The same, expert after expert."""
    out = []
    for stretch, wide, narrow in zip(torch.split(x, loads.tolist()), up, down, strict=True):
        out.append(F.linear(gated(F.linear(stretch, wide)), narrow))
    return torch.cat(out)


class MoE(nn.Module):
    """The feed-forward part of a block: shared experts, and the routed ones that each token chooses.

    Attributes: router; experts; shared: SwiGLU of n_shared_experts·moe_inter_dim, or None; loads: how many times each
        expert was chosen since `take_loads`, (E,), as far as `count` was told.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        n_shared = config.n_shared_experts
        self.shared = SwiGLU(config, n_shared * config.moe_inter_dim) if n_shared else None
        self.loads: Tensor | None = None

    def forward(self, x: Tensor, *, counts_use: bool = True) -> tuple[Tensor, Use | None]:
        """The output (B, T, C), and how the experts were used, where that is asked for."""
        B, T, C = x.shape
        flat = x.reshape(B * T, C)  # (N, C)
        scores = self.router.scores(flat)  # (N, E)
        ids, weights = self.router.choose(scores)  # (N, A) each
        y = self.experts(flat, ids, weights).view(B, T, C)
        if self.shared is not None:
            y = y + self.shared(x)  # (B, T, C)
        if not counts_use:
            return y, None
        chosen = count_choices(ids.view(B, -1), scores.shape[-1])  # (B, E)
        return y, Use(balance=_balance(scores.view(B, T, -1), chosen), loads=chosen.sum(dim=0))

    def count(self, loads: Tensor) -> None:
        """Adds the loads of a forward pass; not in `forward`, which checkpointing runs twice."""
        self.loads = loads if self.loads is None else self.loads + loads

    def take_loads(self) -> Tensor | None:
        """How often each expert was chosen in training since the last call, (E,); None when it was not."""
        loads, self.loads = self.loads, None
        return loads


def balance(scores: Tensor, ids: Tensor) -> Tensor:
    """Σ f·P over experts, the mean over sequences: 1 when all experts are equally likely and equally busy.

    f is how often an expert was chosen, times E / (A·T); P the mean of its share of the scores. Only P has a gradient.
    Args: scores: (B, T, E); ids: (B, T, A).
    Source: arXiv 2412.19437, equations 17 to 20, without α.
    """
    return _balance(scores, count_choices(ids.flatten(1), scores.shape[-1]))


def _balance(scores: Tensor, chosen: Tensor) -> Tensor:
    """`balance` by how often each expert was chosen in each sequence, (B, E)."""
    E = scores.shape[-1]
    share = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)  # (B, T, E); sigmoids may all be 0
    n = chosen.sum(dim=-1, keepdim=True)  # (B, 1), A·T
    return (chosen.to(scores.dtype) * E / n * share.mean(dim=1)).sum(dim=-1).mean()


def count_choices(ids: Tensor, n_experts: int) -> Tensor:
    """How often each expert stands in each row: (B, n) ids → (B, E) integers."""
    counts = torch.zeros(ids.shape[0], n_experts, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(1, ids, torch.ones_like(ids))


def max_violation(loads: Tensor) -> float:
    """How far the busiest expert is above the mean load: 0 is perfect balance, 1 twice the mean.

    Source: MaxVio, arXiv 2408.15664, section 4.1.
    """
    mean = loads.double().mean()
    return float((loads.max() - mean) / mean)


@torch.no_grad()
def rebalance(router: Router, loads: Tensor, *, speed: float) -> None:
    """Moves each expert's bias by `speed` up when it had less than the mean load, down when it had more.

    Once for each optimizer step, with the loads of all its microbatches and ranks.
    Source: arXiv 2408.15664, algorithm 1.
    """
    assert router.bias is not None, "softmax scores have no bias"
    wide = loads.to(torch.float64)
    router.bias.add_(speed * torch.sign(wide.mean() - wide).to(router.bias.dtype))


def _goes_by_expert(x: Tensor) -> bool:
    """Whether experts run one after the other with a backward pass of their own, which keeps a fifth of the memory."""
    if torch.compiler.is_compiling():  # what is kept has the type of x, which autocast would change
        return has_tiles(x) and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu"


def _has_grouped_product(x: Tensor, *matrices: Tensor) -> bool:
    """Whether `grouped_mm` takes these: float32 or bfloat16, inner sizes a multiple of 16 bytes, on that device."""
    is_aligned = all(size * x.element_size() % _ALIGNED == 0 for matrix in matrices for size in matrix.shape[1:])
    is_known = x.dtype in (torch.float32, torch.bfloat16) and x.device.type in ("cpu", "cuda")
    return is_known and is_aligned and len(x) > 0  # no row may come to a rank's experts
