"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math


def learning_rate(step: int, *, peak: float, min_lr: float, warmup_steps: int, steps: int) -> float:
    """Returns the learning rate of update `step`, counted from 0: linear warm-up to `peak`, then a cosine to `min_lr`.

    The update after the warm-up is the first with the peak, update steps - 1 the first with min_lr; later ones keep it.

    Example: peak 1, min_lr 0, two warm-up steps of five: 1/3, 2/3, 1, 1/2, 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if step >= steps - 1:
        return min_lr
    progress = (step - warmup_steps) / (steps - 1 - warmup_steps)  # 0 at the peak, 1 at the last update
    return min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
