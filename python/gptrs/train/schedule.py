"""Learning rate and batch as pure functions of where a run stands: nothing to save, nothing to restore."""

import math
from typing import Literal

Kind = Literal["cosine", "wsd", "linear", "deepseek"]
Decay = Literal["linear", "1-sqrt"]

DEEPSEEK_STAGES = (10 / 14.8, 14.3 / 14.8, 14.633 / 14.8)  # in trillions of tokens; arXiv 2412.19437, section 4.2
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


def learning_rate(
    step: int,
    *,
    peak: float,
    min_lr: float,
    warmup_steps: int,
    steps: int,
    kind: Kind = "cosine",
    decay: Decay = "linear",
    decay_share: float = 0.2,
    stages: tuple[float, ...] = DEEPSEEK_STAGES,
) -> float:
    """Returns the learning rate of update `step`, counted from 0: linear warm-up to `peak`, then down to `min_lr`.

    The update after the warm-up is the first with the peak, update steps - 1 the last on the way down; it and later
    ones have min_lr.

    Args:
        kind: "cosine" and "linear" go down from the peak on. "wsd" (warm-up, stable, decay) stays there until the last
            `decay_share` of the steps, then goes down as `decay` says: 1 - x, or 1 - √x, which falls fast at first.
            "deepseek" stays until the share stages[0] of the steps, is a tenth of the peak at stages[1] after a cosine,
            stays there, and has min_lr from stages[2] on.
    Source: wsd arXiv 2404.06395, section 4; 1 - √x arXiv 2405.18392, section 3.1; deepseek arXiv 2412.19437,
        section 4.2.

    Example: peak 1, min_lr 0, two warm-up steps of five: 1/3, 2/3, 1, 1/2, 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    last = steps - 1
    if step >= last:
        return min_lr
    if kind == "deepseek":
        begin, end, low = (share * last for share in stages)
        if step >= low:
            return min_lr
        return peak / 10 + (peak - peak / 10) * _cosine((step - begin) / (end - begin))
    stable = math.ceil(round((1 - decay_share) * last, 6)) if kind == "wsd" else 0  # 0.3 · 20 is 6.000000000000001
    start = max(warmup_steps, stable)
    if step <= start:
        return peak
    progress = (step - start) / (last - start)  # 0 at the peak, 1 at the last update
    if kind == "cosine":
        left = _cosine(progress)
    else:
        left = 1 - math.sqrt(progress) if kind == "wsd" and decay == "1-sqrt" else 1 - progress
    return min_lr + (peak - min_lr) * left


def batch_rows(step: int, *, start: int, full: int, warmup_steps: int, unit: int) -> int:
    """Returns the rows of update `step`, counted from 0: from `start` to `full` over `warmup_steps` updates, in units.

    Small batches teach as much a row as large ones while the loss falls fast, and their updates come sooner.
    Args: unit: rows that all ranks read at a time, which divides start and full.
    Source: arXiv 2412.19437, section 4.2: 3,072 to 15,360 rows over the first 3 % of the tokens.

    Example: from 2 to 8 rows in units of 2 over six updates: 2, 2, 4, 4, 6, 6, 8, 8, …
    """
    if step >= warmup_steps:
        return full
    return start + (full - start) // unit * step // warmup_steps * unit


def rows_before(step: int, *, start: int, full: int, warmup_steps: int, unit: int) -> int:
    """Returns the rows of all updates before `step`; arguments as in `batch_rows`."""
    warm, n_units = min(step, warmup_steps), (full - start) // unit
    begins = (-(-i * warmup_steps // n_units) for i in range(1, n_units + 1))  # updates from which a unit more is read
    grown = sum(warm - begin for begin in begins if begin < warm)
    return warm * start + grown * unit + (step - warm) * full


def _cosine(progress: float) -> float:
    """From 1 down to 0 while progress goes from 0 to 1; level outside."""
    return 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
