"""The next-token loss: the mean cross-entropy over the positions that count, and which those are.

`linear_cross_entropy` never holds the logits of all positions, by far the largest tensor of a training step: it goes
through the head some rows at a time, and since the gradient of a cross-entropy follows from its logits alone, takes the
gradients of states and head in the same pass. What is kept for the backward pass is those two.

    some rows of hidden ─head─▶ logits ─▶ loss, softmax - onehot ─head─▶ gradient of hidden
                                                   └─ hidden ─▶ + gradient of the head

Where ranks share the vocabulary, each has the logits of its tokens and its part of the sum for the gradient of states.
Of each position they tell each other the largest logit, the sum of the exponentials and the target's logit.

In 16 bits the gradient of the head is summed in 32. Where that sum would be large, it is made block after block of the
vocabulary instead, in a second pass that takes the logits of all rows: a third more products, and no wide sum at all.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gptrs.model import ranks
from gptrs.model.matmul import mm, mm_into

IGNORED = -100  # target of a position that does not count
_CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}  # of logits that are there at a time, as if in 32 bits; docs/log.md
_BLOCK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}  # the same, where the head's gradient is made block after block
_WIDE_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}  # of the head's gradient in 32 bits, at most
_ALIGNED = 64  # rows: products of 320 at a time take a fifth less time than of 333


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy in nats over all positions whose target is not -100, in float32 or wider.

    Args: logits: (B, T, V); targets: (B, T), the id that follows each position. Returns: a scalar.
    """
    B, T, V = logits.shape
    wide = logits.to(_wide(logits.dtype))
    return F.cross_entropy(wide.view(B * T, V), targets.reshape(B * T), ignore_index=IGNORED)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    total: Tensor | None = None,
    *,
    multiple: int | None = None,
    span: ranks.Span | None = None,
) -> Tensor:
    """`next_token_loss(hidden @ weight.T, targets)`, with the logits of some rows at a time.

    Args:
        hidden: (B, T, C); weight: (V, C); targets: (B, T), -100 where a position does not count.
        total: what the sum over positions is divided by, where these are some of a larger batch; by default those that
            count here.
        multiple: V is filled up to one of it with rows that have no probability, since products whose sizes are odd
            take the slow way on CUDA; by default 128 there and 1 elsewhere.
        span: the tokens that this rank has, where several share the weight; all others are the same on each of them.
    Returns: a scalar; nan, as there, when no position counts, with gradients of 0. Its gradients are taken once.
    """
    return linear_cross_entropy_z(hidden, weight, targets, total, z_weight=0.0, multiple=multiple, span=span)[0]


def linear_cross_entropy_z(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    total: Tensor | None = None,
    *,
    z_weight: float,
    multiple: int | None = None,
    span: ranks.Span | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`linear_cross_entropy` plus z_weight times the mean of log²Z, and that mean alone, which has no gradient.

    Z is the sum of exp(logits), on which a softmax does not depend: the term holds it near 1, so that logits do not
    drift off together. Without a weight there is no mean. Source: PaLM, arXiv 2204.02311, section 5, with 1e-4.
    """
    if not torch.is_grad_enabled():  # then no gradient is worth its time
        hidden, weight = hidden.detach(), weight.detach()
    targets = targets.reshape(-1, 1)  # (N, 1)
    counted = targets != IGNORED
    ids, group = targets.masked_fill(~counted, 0), None
    if span is not None:
        ids, group = span.places(ids), span.group
        weight = ranks.part(weight)
    V = weight.shape[0]
    most = V if span is None else span.most  # as many rows at a time on each rank
    missing = most - V + -most % ((128 if weight.is_cuda else 1) if multiple is None else multiple)
    if missing:
        weight = F.pad(weight, (0, 0, 0, missing))
    n = counted.sum() if total is None else total
    loss, z = _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, ids, counted, n, V, z_weight, group)
    return loss, z if z_weight else None


def counts(targets: Tensor, *, ends: Tensor | None = None, n_further: int = 0) -> Tensor:
    """What the parts of a batch's loss are divided by: (2 + n_further,) integers, which add up over batches.

    These are the targets that count, for each further token those of it, and the sequences.
    Args: targets, ends: as in `Transformer.losses`; n_further: the model's n_mtp_layers.
    """
    expected = [further_targets(targets, depth, ends) for depth in range(n_further + 1)]
    found = [(each != IGNORED).sum() for each in expected]
    return torch.stack([*found, torch.full_like(found[0], len(targets))])


def further_targets(targets: Tensor, depth: int, ends: Tensor | None) -> Tensor:
    """The ids depth + 1 behind each position, (B, T - depth), -100 where that one does not count.

    Args: targets: (B, T); ends: (B, T), whether a token is its document's last. "Next", depth 0, has no ends: a
        document's last token is taught what follows it.
    """
    expected = targets[:, depth:]
    if depth and ends is not None:
        expected = expected.masked_fill(crosses_an_end(ends, depth), IGNORED)
    return expected


def crosses_an_end(ends: Tensor, depth: int) -> Tensor:
    """Where the token depth + 1 behind a position is another document's: (B, T) booleans → (B, T - depth).

    Example: ends (0, 0, 1, 0) and depth 1 give (0, 1, 1).
    """
    n_ended = ends.cumsum(dim=-1)  # (B, T), up to each position and with it
    return n_ended[:, depth:] > (n_ended - ends.long())[:, :-depth]


class _LinearCrossEntropy(torch.autograd.Function):
    """Source: d loss / d logits = (softmax(logits) - onehot(target)) / n, from the definition of both.

    The division by n stays outside of the big matrix, and on the CPU the softmax's sum s with it: the matrix becomes
    exp(logits - max) - s·onehot in the logits' memory, and its rows are divided where they are narrow, in the gradient
    of states and in the states. The z term's 2·w·log Z·softmax(logits) / n is a factor 1 + 2·w·log Z of the softmax.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        counted: Tensor,
        n: Tensor,
        V: int,
        z_weight: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        wide = _wide(hidden.dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        is_by_blocks = needs_weight and hidden.dtype != wide and _is_large(weight, wide)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = hidden.new_empty(weight.shape, dtype=wide) if needs_weight and not is_by_blocks else None
        if d_weight is not None and not len(hidden):
            d_weight.zero_()  # no rows will put anything there
        levels = hidden.new_empty(ids.shape, dtype=wide)  # (N, 1)
        loss = hidden.new_zeros((), dtype=wide)
        for part, memory in _chunks(hidden, weight, _BLOCK_BYTES if is_by_blocks else _CHUNK_BYTES):
            x = hidden[part]  # (n, C)
            logits = mm_into(memory, x, weight.T)  # (n, V)
            given = (logits, ids[part], V, needs_hidden or needs_weight, z_weight)
            losses, levels[part], d_logits, sums = _rows(*given) if group is None else _shared_rows(*given, group)
            loss += losses.masked_fill(~counted[part], 0.0).sum()
            share = counted[part].to(wide) / (n.clamp(min=1) * sums)  # (n, 1)
            if d_hidden is not None:
                d_hidden[part] = share * mm(d_logits, weight)
            if d_weight is not None:
                _add_product(d_weight, d_logits.T, (share * x).to(x.dtype), is_first=part.start == 0)
        if is_by_blocks:
            shared = (counted.to(wide) / n.clamp(min=1) * hidden).to(hidden.dtype)  # (N, C)
            d_weight = _weight_gradient(hidden, weight, ids, levels, shared, z_weight)
        if d_hidden is not None and group is not None:
            dist.all_reduce(d_hidden, group=group)
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        z = levels.square().masked_fill(~counted, 0.0).sum() / n if z_weight else torch.zeros_like(loss)
        ctx.mark_non_differentiable(z)
        return loss / n + z_weight * z, z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if d is None else _times(d, grad) for d in ctx.saved_tensors), *(None,) * 6


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _is_large(weight: Tensor, wide: torch.dtype) -> bool:
    return weight.numel() * wide.itemsize > _WIDE_BYTES[_kind(weight)]


def _times(d: Tensor, grad: Tensor) -> Tensor:
    """The product in the memory of `d`: the gradient of a head may be larger than all else. A second backward pass
    through it is refused by torch, which sees that what it saved has changed."""
    grad = grad.to(d.dtype)
    if grad.device.type == "cpu" and not torch.compiler.is_compiling() and grad == 1:
        d[:0].zero_()  # nothing is multiplied, and torch sees a change all the same
        return d
    return d * grad if torch.compiler.is_compiling() else d.mul_(grad)


def _chunks(hidden: Tensor, weight: Tensor, n_bytes: dict[str, int]) -> Iterator[tuple[slice, Tensor]]:
    """For each stretch of rows, the slice and uninitialised (n, V) for its logits, always the same memory."""
    N, V = len(hidden), weight.shape[0]
    rows = max(n_bytes[_kind(hidden)] // (V * _wide(hidden.dtype).itemsize), 1)
    rows = min(rows - rows % _ALIGNED if rows > _ALIGNED else rows, N)
    memory = _logits_memory(rows, V, hidden)  # (rows, V)
    for start in range(0, N, rows):
        part = slice(start, min(start + rows, N))
        yield part, memory[: part.stop - start]


def _kind(x: Tensor) -> str:
    return "cpu" if x.device.type == "cpu" else "cuda"


def _logits_memory(rows: int, columns: int, like: Tensor) -> Tensor:
    """Uninitialised; on the CPU row after row of V, which its products are faster with (docs/log.md)."""
    return like.new_empty(columns, rows).T if like.device.type == "cpu" else like.new_empty(rows, columns)


def _rows(
    logits: Tensor, ids: Tensor, V: int, needs_gradient: bool, z_weight: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """Loss, log Σ exp(logits), and the gradient of the loss times the last one: (n, 1), (n, 1), (n, V), (n, 1) or 1.

    Args: logits: (n, V and what it was filled up by), overwritten where it can be; ids: (n, 1).
    """
    if logits.is_cuda:
        losses, level = _fused(_softmax_less_onehot, logits)(logits, ids, V, _on_device(z_weight, logits))
        return losses, level, logits, 1.0
    wide = logits.to(_wide(logits.dtype))
    wide[:, V:] = -torch.inf
    largest, expected = wide.amax(dim=-1, keepdim=True), wide.gather(-1, ids)  # (n, 1) each
    total = wide.sub_(largest).exp_().sum(dim=-1, keepdim=True)  # (n, 1)
    level = total.log() + largest
    if needs_gradient:
        if z_weight:
            wide.mul_(1 + 2 * z_weight * level)
        wide.scatter_add_(-1, ids, -total)
    return level - expected, level, wide.to(logits.dtype), total


def _shared_rows(
    logits: Tensor, ids: Tensor, V: int, needs_gradient: bool, z_weight: float, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, float]:
    """`_rows` where each rank of a group has other columns; ids are -1 where another one has the target's."""
    logits[:, V:] = -torch.inf
    own, expected = _fused(_levels, logits)(logits, ids)  # (n, 1) each
    largest = own.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    sums = torch.cat([(own - largest).exp(), expected], dim=-1)  # (n, 2)
    dist.all_reduce(sums, group=group)
    total, expected = torch.split(sums, 1, dim=-1)
    level = largest + total.log()
    return level - expected, level, _columns(logits, ids, level, z_weight) if needs_gradient else logits, 1.0


def _levels(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp of rows, and the logits of `ids`, 0 where they are -1: (n, 1) each."""
    wide = logits.to(_wide(logits.dtype))  # (n, V)
    expected = wide.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, 0.0)
    return wide.logsumexp(dim=-1, keepdim=True), expected


def _weight_gradient(
    hidden: Tensor, weight: Tensor, ids: Tensor, levels: Tensor, shared: Tensor, z_weight: float
) -> Tensor:
    """The gradient of the head, (V, C), block after block: each is one product over all rows, rounded once.

    Args: hidden: (N, C); weight: (V, C); ids, levels: (N, 1); shared: hidden / n where a row counts, else 0.
    """
    N, V = len(hidden), weight.shape[0]
    size = max(_BLOCK_BYTES[_kind(hidden)] // (N * levels.element_size()), 1)
    d_weight = torch.empty_like(weight)
    memory = _logits_memory(N, min(size, V), hidden)  # (N, size)
    for start in range(0, V, size):
        part = slice(start, min(start + size, V))
        n = part.stop - start
        logits = torch.mm(hidden, weight[part].T, out=_first_columns(memory, n))  # (N, n)
        d_logits = _columns(logits, ids - start, levels, z_weight)
        torch.mm(d_logits.T, shared, out=d_weight[part])
    return d_weight


def _first_columns(memory: Tensor, n: int) -> Tensor:
    """(N, n) in memory of (N, size). Where that is contiguous, this is: torch.compile breaks its graph at a product
    that is written anywhere else, and would leave the loss out of it."""
    return memory.flatten()[: len(memory) * n].view(-1, n) if memory.is_contiguous() else memory[:, :n]


def _on_device(number: float, like: Tensor) -> Tensor:
    """A number for a kernel: one as Python has it would have the kernel compiled again for each value."""
    return torch.full((), number, dtype=_wide(like.dtype), device=like.device)


def _softmax_less_onehot(logits: Tensor, ids: Tensor, V: int, z_weight: Tensor | float) -> tuple[Tensor, Tensor]:
    """Loss and log Σ exp of rows, (n, 1) each; their gradient takes the place of the logits. To be compiled: one kernel
    reads a row from the cache three times, where torch's own operations would write it out as often in 32 bits."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    wide = logits.to(_wide(logits.dtype)).masked_fill(columns >= V, -torch.inf)  # (n, V)
    level = wide.logsumexp(dim=-1, keepdim=True)  # (n, 1)
    losses = level - wide.gather(-1, ids)
    logits.copy_((wide - level).exp() * (1 + 2 * z_weight * level) - (columns == ids).to(wide.dtype))
    return losses, level


def _columns(logits: Tensor, ids: Tensor, levels: Tensor, z_weight: float) -> Tensor:
    """The same gradient for some columns of the logits, of which `ids` (N, 1) may be inside or not."""
    if logits.is_cuda:
        _fused(_columns_less_onehot, logits)(logits, ids, levels, _on_device(z_weight, logits))
        return logits
    d_logits = logits.to(_wide(logits.dtype)).sub_(levels).exp_()  # (N, n)
    if z_weight:
        d_logits.mul_(1 + 2 * z_weight * levels)
    inside = (ids >= 0) & (ids < logits.shape[1])  # (N, 1)
    d_logits.scatter_add_(-1, ids.clamp(0, logits.shape[1] - 1), -inside.to(d_logits.dtype))
    return d_logits.to(logits.dtype)


def _columns_less_onehot(logits: Tensor, ids: Tensor, levels: Tensor, z_weight: Tensor | float) -> None:
    """`_columns` in the place of the logits, to be compiled."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    wide = logits.to(_wide(logits.dtype))
    shares = (wide - levels).exp() * (1 + 2 * z_weight * levels)  # (N, n)
    logits.copy_(shares - (columns == ids).to(wide.dtype))


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """Adds a @ b, or puts it there first, without a second matrix of this size where torch can."""
    if total.dtype == a.dtype:
        mm_into(total, a, b, adds=not is_first)
        return
    if is_first:
        total.zero_()
    if a.is_cuda and not torch.compiler.is_compiling() and _adds_wide(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


@functools.cache
def _adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch adds a product of 16-bit matrices to a 32-bit one in a single kernel, by trying."""
    one, total = torch.eye(16, device=device, dtype=dtype), torch.ones(16, 16, device=device)
    try:
        torch.addmm(total, one, one, out_dtype=total.dtype, out=total)
    except (RuntimeError, TypeError):
        return False
    return torch.equal(total, 1.0 + torch.eye(16, device=device))


def _fused(function: Any, x: Tensor) -> Any:
    """The function as one kernel on CUDA; a compilation that is under way takes it in as it is."""
    return _compiled(function) if x.is_cuda and not torch.compiler.is_compiling() else function


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=False)  # stretches of rows have one length, and the last another
