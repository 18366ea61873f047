"""AdamW inside the backward pass: a weight moves as soon as its gradient is whole, and the gradient is freed.

    backward ─ gradient of one parameter ─▶ its norm ─▶ AdamW's step of that parameter ─▶ freed ─ … ─▶ norm of all

Unusual here: the optimizer is the run's own, with its groups and its state, and is shown one parameter for each step.
So checkpoints and rates are those of a run that steps behind its backward pass, and weights and moments too, to the
bit. What needs all gradients at once has no place here: clipping, sums over microbatches or ranks, statistics.

Experts whose products go by tiles move piece by piece where their gradient is made (`gptrs.model.moving`), from their
second step on: then they differ in the last bits, and a hook on such a weight sees a gradient of zeros.
Source: arXiv 2306.09782 (LOMO), section 3.2, where the step is SGD's.
"""

import ctypes
import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from gptrs.model.moving import Step, moving
from gptrs.train.guard import make_step

_MATRICES = 3  # axes of stacked experts


def step_in_backward(loss: Tensor, optimizer: torch.optim.Optimizer, is_left_out: Tensor) -> Tensor:
    """Runs the backward pass, makes each parameter's step in it, and returns the norm of the whole gradient.

    No parameter has a gradient afterwards. A weight that others share, as a tied head, moves once, behind the last
    part of its gradient; one that gets none, or is frozen, stays as it is.

    Args: loss: of a whole update; is_left_out: 1 where no step is made, as `Guard.judge` says.
    """
    norms: list[Tensor] = []
    is_on_cpu = is_left_out.device.type == "cpu"  # elsewhere nobody waits for the answer
    steps = _steps_in_pieces(optimizer) if is_on_cpu and not is_left_out.item() else {}
    with ExitStack() as hooks:
        for group in optimizer.param_groups:
            for p in (p for p in group["params"] if p.requires_grad):
                step = functools.partial(_step, optimizer, group, is_left_out, norms, steps.get(p))
                hooks.callback(p.register_post_accumulate_grad_hook(step).remove)
        hooks.enter_context(moving(steps))
        loss.backward()  # type: ignore[no-untyped-call]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if loss.device.type == "cpu":
        _give_back()
    return norm


def _give_back() -> None:
    """Has freed memory go back to the system, where glibc keeps it: in pieces that do not fit together again, which
    would stand beside the next update's activations."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another library, or another system
        return None
    return found


def _steps_in_pieces(optimizer: torch.optim.Optimizer) -> dict[Tensor, Step]:
    """The steps that operators of the core may make: of experts' matrices with plain moments of float32."""
    steps = {}
    for group in optimizer.param_groups:
        if group["amsgrad"] or group["maximize"] or group["differentiable"] or isinstance(group["lr"], Tensor):
            continue
        for p in group["params"]:
            state = optimizer.state.get(p)
            if not state or p.ndim != _MATRICES or not p.requires_grad:
                continue
            first, second = state["exp_avg"], state["exp_avg_sq"]
            if all(_is_simple(each) for each in (p, first, second)):
                number = float(state["step"]) + 1
                steps[p] = Step(first, second, group["lr"], group["betas"], group["eps"], group["weight_decay"], number)
    return steps


def _is_simple(x: Tensor) -> bool:
    is_plain = type(x) in (Tensor, torch.nn.Parameter)
    return is_plain and x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()


def check_ranks(n: int) -> None:
    """Raises ValueError for more than one rank: gradients would be freed before they are added up."""
    if n > 1:
        raise ValueError(f"optim.in_backward needs a single process, got {n} ranks; hint: optim.in_backward=false")


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError for an optimizer that may look at several parameters in a step."""
    if not isinstance(optimizer, torch.optim.AdamW):
        raise ValueError(f"optim.in_backward needs torch.optim.AdamW, got {type(optimizer).__name__}; "
                         "hint: optim.name=adamw")  # fmt: skip


def _step(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    is_left_out: Tensor,
    norms: list[Tensor],
    made: Step | None,
    p: Tensor,
) -> None:
    assert p.grad is not None, "autograd calls this behind the gradient's last part"
    if made is not None and made.squares is not None:  # already, piece by piece
        norms.append(torch.tensor(made.squares, dtype=torch.float32).sqrt())
        optimizer.state[p]["step"] += 1
        p.grad = None
        return
    norms.append(torch.linalg.vector_norm(p.grad, dtype=torch.promote_types(p.grad.dtype, torch.float32)))
    groups = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [p]}]
    try:
        make_step(optimizer, is_left_out)
    finally:
        optimizer.param_groups = groups
    p.grad = None
