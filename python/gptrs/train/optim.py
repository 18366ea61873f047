"""AdamW with weight decay on matrices only, or Muon for hidden matrices beside it; clipping."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptrs.train.config import OptimSettings

FUSED_DEVICES = ("cpu", "cuda")  # one kernel for the whole update; elsewhere torch's loop over tensors


class HasState(Protocol):
    """What an optimizer keeps for each parameter: tensors by name."""

    @property
    def state(self) -> Mapping[Any, Mapping[str, Tensor]]: ...


def optimizer_of(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Returns the optimizer that the settings name, over the model's trainable parameters as they are now."""
    beta1, beta2 = settings.betas
    if settings.name == "adamw":
        decay = settings.weight_decay
        return adamw(model, lr=settings.lr, weight_decay=decay, betas=(beta1, beta2), eps=settings.eps)
    from gptrs.train.muon import Muon, hidden_matrices  # imports DTensor, half a second

    hidden = hidden_matrices(model)
    others = [p for p in model.parameters() if p.requires_grad and p not in hidden]
    matrices = {"params": list(hidden), "is_hidden": True, "weight_decay": settings.weight_decay}
    matrices["lr_ratio"] = (settings.matrix_lr or settings.lr) / settings.lr
    groups = [matrices, *({**group, "is_hidden": False} for group in _by_decay(others, settings.weight_decay))]
    return Muon(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        adjust=settings.adjust,
        betas=(beta1, beta2),
        eps=settings.eps,
        fused=_is_fused(others),
        stacks=hidden,
    )


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters in two groups: decayed (ndim ≥ 2) and not (biases, norms).

    Embeddings are matrices and decay too, as in GPT-2's training. The learning rate of each step is set by the loop.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = _by_decay(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=_is_fused(parameters))


def _by_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_fused(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in FUSED_DEVICES for p in parameters)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every parameter group the learning rate of the coming update, times its lr_ratio where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Returns the norm of the whole gradient and scales the gradient down to `max_norm` (0: leaves it)."""
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm
