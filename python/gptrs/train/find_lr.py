"""Which learning rate fits: the start of a run with a rate that rises until the loss does.

    updates at 1e-5, 1.1e-5, … 1 ─▶ losses, smoothed ─▶ where they fall fastest, where they turn ─▶ find-lr.json, .png

Source: the range test of arXiv 1506.01186, section 3.3, with an exponential rise.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptrs.files import write_atomic
from gptrs.train import rundir
from gptrs.train.config import PretrainConfig
from gptrs.train.guard import Guard
from gptrs.train.loop import Stops, Update
from gptrs.train.pretrain import Session, opened

LOWEST, HIGHEST = 1e-5, 1.0
N_UPDATES = 100
LARGE = 1e4  # stands for a loss that is no number
_REACH = 4  # updates on either side that a smoothed loss is a mean of, nearer ones weighing more
_TURN = 0.25  # share of what the loss fell by that it must rise again to count as diverging


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """What a search came to; rates are peaks for optim.lr."""

    lr: float  # the smaller of steepest and a tenth of diverging
    steepest: float  # where the smoothed loss falls fastest over the logarithm of the rate
    lowest: float  # where it is lowest
    diverging: float | None  # where it has risen again by a quarter of its fall; None: nowhere


class Search:
    """Rates and losses of the updates so far."""

    def __init__(self, n_updates: int = N_UPDATES) -> None:
        self.n_updates = n_updates
        self.losses: list[float] = []

    def rate(self, step: int) -> float:
        """Returns the rate of update `step`, counted from 0."""
        return float(LOWEST * (HIGHEST / LOWEST) ** (step / (self.n_updates - 1)))

    @property
    def rates(self) -> list[float]:
        return [self.rate(step) for step in range(len(self.losses))]

    @property
    def is_over(self) -> bool:
        """Whether the loss has risen so far that larger rates tell nothing: above its beginning, after a fall."""
        smoothed = smooth(self.losses)
        is_number = not self.losses or self.losses[-1] < LARGE
        return not is_number or smoothed[-1] > smoothed[0] + 0.5 * (smoothed[0] - min(smoothed)) + 0.05 * smoothed[0]

    def suggestion(self) -> Suggestion:
        """Returns what the losses say.

        Raises: ValueError when they never fell.
        """
        return suggest(self.rates, self.losses)


def find_rate(config: PretrainConfig) -> Suggestion:
    """Searches the learning rate for the start of a run, in a directory of its own beside the run's; prints it last.

    Raises: ValueError and OSError as `pretrain.run`; ValueError when the loss never falls; KeyboardInterrupt on Ctrl-C.
    """
    path = config.run.path
    own = replace(config.run, name=f"{config.run.name}-find-lr", dir=str(path.with_name(f"{path.name}-find-lr")))
    with opened(replace(config, run=own, train=replace(config.train, steps=N_UPDATES)), is_fresh=True) as session:
        search = _search(session)
        found = search.suggestion()
        if session.world.is_main:
            write(session.dir, search, found)
            for line in _lines(session.dir, found):
                session.display.say(line)
    return found


def _search(session: Session) -> Search:
    """Trains with a rate that rises with each update until the loss rises too; the model is spoilt then."""
    found, display = Search(), session.display

    def log(update: Update) -> None:
        found.losses.append(update.loss)
        if session.world.is_main and update.step % 10 == 0:
            left_s = update.seconds_left
            display.update(
                update.step, loss=update.loss, tokens_per_s=update.tokens_per_s, mfu=None, seconds_left=left_s
            )
        if found.is_over:
            raise _Over

    def loss_fn(*given: Any) -> Tensor:  # a loss that is no number ends the search, not the program
        return torch.nan_to_num(session.parts.loss(*given), nan=LARGE, posinf=LARGE)

    def end(_: Guard) -> None:  # with optim.in_backward a gradient that is no number has spoilt the weights
        raise _Over

    try:
        session.fit(
            loss_fn=loss_fn,
            learning_rate=lambda position: found.rate(position.step),
            changes={"max_seconds": None, "log_every": 1, "checkpoint_every": found.n_updates},
            stops=Stops(log=log, save=lambda _: None, evaluate=lambda *_: None, sample=lambda *_: None, roll_back=end),
        )
    except _Over:
        pass
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the search was stopped, nothing is kept of it") from None
    finally:
        display.stop()
    return found


def _lines(directory: Path, found: Suggestion) -> Iterator[str]:
    """What a user is told, the suggestion last."""
    yield f"losses of all rates: {directory / 'find-lr.png'}, {directory / 'find-lr.json'}"
    turn = "nowhere" if found.diverging is None else f"at {found.diverging:.1e}"
    yield f"the loss falls fastest at {found.steepest:.1e}, is lowest at {found.lowest:.1e}, diverges {turn}"
    yield f"suggestion optim.lr={found.lr:g}"


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Returns the rate to train with, from losses of updates at rising rates.

    Raises: ValueError when the loss never fell by a hundredth.
    """
    curve = smooth([min(loss, LARGE) for loss in losses])
    low = min(range(len(curve)), key=curve.__getitem__)
    fall = curve[0] - curve[low]
    if fall < 0.01 * abs(curve[0]):
        text = f"expected the loss to fall at some rate up to {rates[-1]:.1e}, got {curve[0]:.4f} at first"
        raise ValueError(f"{text} and {curve[low]:.4f} at best; hint: larger batches (train.global_batch)")
    slopes = [curve[i + 1] - curve[i - 1] for i in range(1, low)] or [0.0]  # rates are equally far apart by logarithm
    steepest = rates[1 + min(range(len(slopes)), key=slopes.__getitem__)]
    turned = (i for i in range(low, len(curve)) if curve[i] > curve[low] + _TURN * fall)
    diverging = next((rates[i] for i in turned), None)
    best = steepest if diverging is None else min(steepest, diverging / 10)
    return Suggestion(lr=float(f"{best:.1e}"), steepest=steepest, lowest=rates[low], diverging=diverging)


def smooth(losses: Sequence[float]) -> list[float]:
    """Returns means over neighbours whose weights fall linearly with their distance; no curve is moved by it.

    Example: with a reach of 1, 0, 0, 4, 0 and 0 become 0, 1, 2, 1 and 0.
    """
    out = []
    for i in range(len(losses)):
        reach = min(_REACH, i, len(losses) - 1 - i)  # as many on both sides: a slope at an end stays one
        near = range(i - reach, i + reach + 1)
        weights = [reach + 1 - abs(i - j) for j in near]
        out.append(sum(w * losses[j] for w, j in zip(weights, near, strict=True)) / sum(weights))
    return out


def write(directory: Path, search: Search, found: Suggestion) -> None:
    """Writes find-lr.json (what was found, rates, losses) and find-lr.png."""
    values = {**asdict(found), "rates": search.rates, "losses": search.losses}
    write_atomic(directory / rundir.SEARCH, (json.dumps(values, indent=1) + "\n").encode())
    _plot(directory / "find-lr.png", search.rates, search.losses, found)


def _plot(path: Path, rates: list[float], losses: list[float], found: Suggestion) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curve = smooth(losses)
    axes.plot(rates, losses, lw=0.8, color="#7a9cc6", alpha=0.6, label="loss of each update")
    axes.plot(rates, curve, lw=1.6, color="#35618f", label="smoothed")
    axes.axvline(found.lr, lw=1.6, color="#333333", label=f"suggestion, {found.lr:g}")
    marks = (("falls fastest", found.steepest, "#4c8c4a"), ("diverging", found.diverging, "#c44e52"))
    for label, rate, color in marks:
        if rate is not None:
            axes.axvline(rate, ls="--", lw=1, color=color, label=f"{label}, {rate:.1e}")
    fall = curve[0] - min(curve)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, nats per token")
    axes.set_ylim(min(curve) - 0.15 * fall, curve[0] + 0.5 * fall)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


class _Over(Exception):  # noqa: N818
    """Ends a search that has seen enough."""
