"""The learning rate as a pure function of where a run stands: nothing to save, nothing to restore."""

import math

_SLACK = 0.1  # share of the time by which the clock may be ahead of the steps before it decides


def stand(step: int, *, steps: int, elapsed_s: float, max_seconds: float | None) -> int:
    """Returns the update at which the schedule stands: `step`, or a later one when the time will end the run early.

    A rate that is still high when a run ends costs it more than the steps it misses: so it comes down by the clock on a
    machine that is too slow for all steps, and ends low there too. A run that fits in its time, with a tenth to spare
    on the way, never sees the clock and is the same every time.

    Example: of 100 steps in 10 s, update 20 after 2 s stands at 20, after 5.5 s at 50, after 10 s at 99.
    """
    if max_seconds is None:
        return step
    share = (elapsed_s / max_seconds - _SLACK) / (1 - _SLACK)
    return max(step, min(int(share * steps), steps - 1))


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
