"""AdamW with weight decay on matrices only."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FUSED_DEVICES = ("cpu", "cuda")  # one kernel for the whole update; elsewhere torch's loop over tensors


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters in two groups: decayed (ndim ≥ 2) and not (biases, norms).

    Embeddings are matrices and decay too, as in GPT-2's training. The learning rate of each step is set by the loop.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    is_fused = all(p.device.type in FUSED_DEVICES for p in parameters)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=is_fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every parameter group the learning rate of the coming update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Returns the norm of the whole gradient and scales the gradient down to `max_norm` (0: leaves it)."""
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm
