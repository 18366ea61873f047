"""What a layer does when ranks share its heads, widths, tokens or experts; without such ranks all of this is nothing.

    x ─enter─▶ a rank's heads or widths ─▶ its part of the sum ─leave─▶ y          the same x and y on each of them
    ids ─▶ the vectors of a rank's tokens, 0 for others ─leave─▶ y                 the same ids and y on each of them
    x ─exchange─▶ the ranks whose experts the tokens chose ─exchange─▶ y           other x and y on each of them

`enter` and `leave` are each other's gradient: a copy for all ranks, whose gradients add up, and a sum, whose gradient
is everyone's.
Source: arXiv 1909.08053, section 3 (f and g there); exchange: arXiv 2006.16668, section 3.2.
"""

import math
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model.matmul import linear


class Span(NamedTuple):
    """The tokens of a vocabulary that this rank has, of those that a group shares: `n` from `first` on."""

    first: int
    n: int
    of: int  # in all
    group: dist.ProcessGroup

    @classmethod
    def own(cls, of: int, group: dist.ProcessGroup) -> Self:
        """As DTensors are cut: the last ranks may have fewer."""
        size = math.ceil(of / group.size())
        first = min(group.rank() * size, of)
        return cls(first, min(size, of - first), of, group)

    @property
    def most(self) -> int:
        """How many a rank has that has most."""
        return math.ceil(self.of / self.group.size())

    def places(self, ids: Tensor) -> Tensor:
        """Where tokens stand among this rank's; -1 for those of others."""
        own = ids - self.first
        return own.masked_fill((own < 0) | (own >= self.n), -1)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that ranks share; any other as it is."""
    return part(tensor) if hasattr(tensor, "to_local") else tensor


def part(weight: Tensor) -> Tensor:
    """This rank's part of a weight that ranks share. A compiled layer asks nothing of the weight's type."""
    own: Tensor = weight.to_local()  # type: ignore[attr-defined]
    return own


def enter(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """x, for a part that each rank of the group computes another share of."""
    if group is None:
        return x
    y: Tensor = _Enter.apply(x, group)
    return y


def leave(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of the ranks' shares."""
    if group is None:
        return x
    y: Tensor = _Leave.apply(x, group)
    return y


def gather(x: Tensor, span: Span | None) -> Tensor:
    """What all ranks have for their tokens side by side: (..., n) → (..., V)."""
    if span is None:
        return x
    y: Tensor = _Gather.apply(x, span)
    return y


def exchange(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """The rows that the ranks of the group have for this one, in their order: (Σ sent, C) → (Σ received, C).

    Args: sent, received: rows for and from each rank.
    """
    y: Tensor = _Exchange.apply(x, sent, received, group)
    return y


class Columns(nn.Linear):
    """A linear layer of which each rank has some outputs."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else part(self.bias).to(x.dtype)
        return linear(enter(x, self.group), part(self.weight), bias)


class Rows(nn.Linear):
    """A linear layer of which each rank has some inputs; the bias is added once."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        y = leave(linear(x, part(self.weight)), self.group)
        return y if self.bias is None else y + self.bias


class Entries(nn.Embedding):
    """A table of vectors of which each rank has those of some tokens."""

    span: Span

    def forward(self, ids: Tensor) -> Tensor:
        own = self.span.places(ids)
        x = F.embedding(own.clamp(min=0), part(self.weight))  # (..., C)
        return leave(x.masked_fill((own < 0).unsqueeze(-1), 0.0), self.span.group)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _sum(dy, ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, span: Span) -> Tensor:
        ctx.span = span
        padded = F.pad(x, (0, span.most - span.n)).contiguous()
        found = [torch.empty_like(padded) for _ in range(span.group.size())]
        dist.all_gather(found, padded, group=span.group)
        return torch.cat(found, dim=-1)[..., : span.of]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy[..., ctx.span.first : ctx.span.first + ctx.span.n].contiguous(), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(dy, ctx.received, ctx.sent, ctx.group), None, None, None


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _all_to_all(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    y = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(y, x.contiguous(), received, sent, group=group)
    return y
