"""Steps of AdamW that are made where a gradient is made, so that nobody ever holds the gradient.

An operator that makes the gradient of a large weight piece by piece asks `step_of` whether to move each piece at once,
and gives `no_gradient` to autograd in its place. `gptrs.train.in_backward` says which weights may move so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Step:
    """A step of AdamW for one weight.

    Attributes: first, second: its moments, which move with it; number: of the step, from 1; squares: the sum of the
        gradient's squares, once the step is made.
    """

    first: Tensor
    second: Tensor
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    number: float
    squares: float | None = None

    def numbers(self) -> list[float]:
        """What the core makes the step with."""
        return [self.lr, *self.betas, self.eps, self.weight_decay, self.number]


_steps: dict[int, Step] = {}


@contextmanager
def moving(steps: dict[Tensor, Step]) -> Iterator[None]:
    """Has these weights move as soon as an operator that can do so has a piece of their gradient.

    A weight must be used once in the pass that the gradients are of, by one operator.
    """
    own = {weight.data_ptr(): step for weight, step in steps.items()}
    _steps.update(own)
    try:
        yield
    finally:
        for place in own:
            del _steps[place]


def step_of(weight: Tensor) -> Step | None:
    """The step that an operator is to make of this weight, which is the whole of a parameter, if any."""
    step = _steps.get(weight.data_ptr()) if _steps else None
    if step is None or step.first.shape != weight.shape:
        return None
    if step.squares is not None:
        raise RuntimeError(
            f"expected one gradient of a weight of {tuple(weight.shape)} that moves inside the backward pass, got two; "
            "hint: optim.in_backward=false"
        )
    return step


def no_gradient(weight: Tensor) -> Tensor:
    """Zeros in the place of a gradient that was used up: memory that no one has touched, and so takes none."""
    return torch.from_numpy(np.zeros(tuple(weight.shape), np.float32))
