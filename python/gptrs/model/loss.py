"""The next-token loss: the mean cross-entropy over the positions that count, and which those are.

`linear_cross_entropy` never holds the logits of all positions, by far the largest tensor of a training step: it goes
through the head some rows at a time, and since the gradient of a cross-entropy follows from its logits alone, takes the
gradients of states and head in the same pass. What is kept for the backward pass is those two.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # target of a position that does not count
_CHUNK_BYTES = 1 << 26  # of logits that are there at a time; docs/log.md
_ALIGNED = 64  # rows: products of 320 at a time take a fifth less time than of 333


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy in nats over all positions whose target is not -100, in float32 or wider.

    Args: logits: (B, T, V); targets: (B, T), the id that follows each position. Returns: a scalar.
    """
    B, T, V = logits.shape
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.view(B * T, V), targets.reshape(B * T), ignore_index=IGNORED)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, total: Tensor | None = None) -> Tensor:
    """`next_token_loss(hidden @ weight.T, targets)`, with the logits of some rows at a time.

    Args: hidden: (B, T, C); weight: (V, C); targets: (B, T), -100 where a position does not count; total: what the sum
        over positions is divided by, where these are some of a larger batch; by default those that count here.
    Returns: a scalar; nan, as there, when no position counts, with gradients of 0.
    """
    if not torch.is_grad_enabled():  # then no gradient is worth its time
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(), total)
    return loss


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

    The softmax's sum s and n stay outside of the big matrix: it becomes exp(logits - max) - s·onehot in the logits'
    memory, and its rows are divided where they are narrow, in the gradient of states and in the states.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, total_count: Tensor | None) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        counts = targets != IGNORED  # (N,)
        n = counts.sum() if total_count is None else total_count
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        rows = max(_CHUNK_BYTES // (weight.shape[0] * hidden.element_size()), 1)
        rows -= rows % _ALIGNED if rows > _ALIGNED else 0
        memory = _logits_memory(min(rows, len(targets)), hidden, weight)  # (rows, V)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            x, counted = hidden[part], counts[part].unsqueeze(-1)  # (n, C), (n, 1)
            ids = targets[part].unsqueeze(-1).masked_fill(~counted, 0)  # (n, 1)
            logits = torch.mm(x, weight.T, out=memory[: len(x)]).to(wide)  # (n, V)
            largest, expected = logits.amax(dim=-1, keepdim=True), logits.gather(-1, ids)  # (n, 1) each
            logits.sub_(largest).exp_()
            total = logits.sum(dim=-1, keepdim=True)  # (n, 1)
            loss += (total.log() + largest - expected).masked_fill(~counted, 0.0).sum()
            if d_hidden is None and d_weight is None:
                continue
            d_logits = logits.scatter_add_(-1, ids, -total).to(x.dtype)  # (n, V), n·total times too large
            share = counted.to(wide) / (n.clamp(min=1) * total)  # (n, 1)
            if d_hidden is not None:
                d_hidden[part] = share * (d_logits @ weight)
            if d_weight is not None and x.dtype == wide:
                d_weight.addmm_(d_logits.T, share * x)  # without a second matrix of the head's size
            elif d_weight is not None:
                d_weight += d_logits.T @ (share * x).to(x.dtype)
        ctx.save_for_backward(d_hidden, d_weight if d_weight is None else d_weight.to(weight.dtype))
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_weight is None else d_weight * grad.to(d_weight.dtype),
            None,
            None,
        )


def _logits_memory(rows: int, hidden: Tensor, weight: Tensor) -> Tensor:
    """Uninitialised (rows, V); on the CPU row after row of V, which its products are faster with (docs/log.md)."""
    V = weight.shape[0]
    if hidden.device.type == "cpu":
        return hidden.new_empty(V, rows).T
    return hidden.new_empty(rows, V)
