"""The only training loop. A stage hands in batches, a loss function and what to do at the stops.

    loader ─▶ batch ─▶ loss_fn(model, batch) ─▶ gradient, summed over microbatches ─▶ clip ─▶ AdamW
                                                     every few updates: log · save · evaluate · sample

Unusual here: an update takes its microbatches first and counts what its loss is divided by over all of them and over
all ranks, so that neither their number nor what each leaves out changes it. A checkpoint comes before the evaluation
and the samples of its step; a resumed run begins with those two, so that its logs are those of one never killed.
"""

import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gptrs.model.loss import counts
from gptrs.train.distributed import World
from gptrs.train.optim import set_learning_rate
from gptrs.train.spread import LossFn, Spread


class HasTokens(Protocol):
    """What the loop itself needs of a batch; a stage's loss function may use more."""

    @property
    def tokens(self) -> Tensor: ...  # (B, T) int64

    @property
    def targets(self) -> Tensor: ...  # (B, T) int64


BatchT = TypeVar("BatchT", bound=HasTokens)
Counts = Callable[[Any], Tensor]  # batch → what the parts of its loss are divided by, numbers that add up


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How long, in which precision, how often to stop."""

    steps: int  # optimizer updates
    accumulation: int = 1  # microbatches of one update on each rank
    accumulation_at: Callable[[int], int] | None = None  # those of the update after as many; None: always accumulation
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    dtype: torch.dtype = torch.float32  # of the computation; weights, gradients and moments keep their own
    is_compiled: bool = False  # torch.compile of loss and backward
    max_seconds: float | None = None  # training ends after the update that passes this time
    log_every: int = 10  # updates
    eval_every: int = 500  # updates
    sample_every: int = 500  # updates
    checkpoint_every: int = 500  # updates

    def at(self, step: int) -> "FitOptions":
        """The options of the update after `step` others."""
        return self if self.accumulation_at is None else replace(self, accumulation=self.accumulation_at(step))


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands, as a checkpoint keeps it."""

    step: int = 0  # updates done
    elapsed_s: float = 0.0  # training time so far, over all its processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One logged optimizer update."""

    step: int  # counted from 1
    loss: float  # of its batch, before the update
    lr: float
    grad_norm: float  # before clipping
    tokens_per_s: float  # over the updates since the last log, stops not counted
    seconds_left: float  # at that pace
    time_s: float  # training time since step 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stops:
    """What a stage does at the stops. `is_last`: after this one the run ends."""

    log: Callable[[Update], None]
    save: Callable[[Position], None]
    evaluate: Callable[[Position, bool], None]
    sample: Callable[[Position, bool], None]


def n_targets(batch: HasTokens) -> Tensor:
    """What a loss is divided by that has no parts but the targets that count and, for balance, the sequences: (2,)."""
    return counts(batch.targets)


def fit(
    model: nn.Module,
    loader: Iterable[BatchT],
    *,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[Position], float],
    options: FitOptions,
    stops: Stops,
    after_update: Callable[[], None] | None = None,
    watch: Callable[[int], AbstractContextManager[object]] = nullcontext,
    start: Position = Position(),
    counts: Counts = n_targets,
    spread: Spread | None = None,
) -> Position:
    """Trains from `start` to options.steps or options.max_seconds; returns where it ended.

    Args:
        loader: endless microbatches, of several ranks each its own.
        loss_fn: (model, batch, totals) → the batch's share of the update's loss; `totals` is the sum of `counts`.
        learning_rate: of the update that comes next at a position.
        after_update: what moves weights beside the optimizer, once for each of its updates.
        counts: what the parts of a batch's loss are divided by.
        spread: the model over several ranks, and its precision; by default on this process alone.
        watch: what is open around each update, by its number from 1; the time that it takes counts.
    Raises: KeyboardInterrupt after SIGINT or SIGTERM, once the update at hand is done and saved; ValueError when the
        loss is no longer a number, before such weights are saved.
    """
    spread = spread or Spread(model, _alone(model), dtype=options.dtype, is_compiled=options.is_compiled)
    batches, clock, position = iter(loader), _Clock(start), start
    model.train()
    with stop_requests() as is_stop_requested:
        if start.step:
            _look(position, options, stops)
        while not _is_done(position, options):
            lr = learning_rate(position)
            set_learning_rate(optimizer, lr)
            with clock.update(), watch(position.step + 1):
                update = _update(spread, batches, loss_fn, counts, optimizer, options.at(position.step))
                if after_update is not None:
                    after_update()
            elapsed_s, is_stopped = spread.world.agreed(clock.elapsed_s(), is_stop_requested())
            position = Position(step=clock.step, elapsed_s=elapsed_s)
            _record(clock, position, update, lr, options, stops, is_stopped=is_stopped)
            _look(position, options, stops)
    return position


def objective(
    model: nn.Module, loss_fn: LossFn, *, dtype: torch.dtype, is_compiled: bool = False
) -> Callable[..., Tensor]:
    """Returns (batch, totals) → loss, computed with the weights rounded to `dtype` as `Objective` does."""
    spread = Spread(model, _alone(model), dtype=dtype, is_compiled=is_compiled)
    return functools.partial(spread.loss, loss_fn)


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    batches: Iterable[HasTokens],
    *,
    loss_fn: LossFn,
    dtype: torch.dtype,
    spread: Spread | None = None,
) -> tuple[float, int]:
    """Returns the mean loss of a target that counts over all batches, in eval mode, and the number of such targets.

    Batches may differ in size. Of several ranks each gives its own batches, as many as every other.
    """
    spread = spread or Spread(model, _alone(model), dtype=dtype)
    was_training = model.training
    model.eval()
    try:
        sums = torch.zeros(2, dtype=torch.float64, device=_device(model))
        for batch in batches:
            found = counts(batch.targets)
            loss = spread.loss(loss_fn, batch, found.clamp(min=1)).double()
            sums += torch.stack((loss * found[0], found[0].double()))
    finally:
        model.train(was_training)
    total, n = spread.world.sum(sums).tolist()
    return total / n, int(n)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Makes SIGINT and SIGTERM a request that the loop asks about; a second one stops at once.

    Outside the main thread signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        for each in numbers:
            signal.signal(each, signal.default_int_handler)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set from outside Python


class _Sums(NamedTuple):
    """One update; the tensors are still on the device."""

    loss: Tensor
    grad_norm: Tensor
    n_tokens: int


def _update(
    spread: Spread,
    batches: Iterator[HasTokens],
    loss_fn: LossFn,
    counts: Counts,
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
) -> _Sums:
    """Makes one optimizer update."""
    microbatches = [next(batches) for _ in range(options.accumulation)]
    totals = spread.world.sum(torch.stack([counts(batch) for batch in microbatches]).sum(dim=0))
    losses = []
    for i, batch in enumerate(microbatches):
        with spread.microbatch(is_last=i + 1 == len(microbatches)):
            loss = spread.loss(loss_fn, batch, totals)
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    grad_norm = spread.clip(options.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    n_tokens = sum(batch.tokens.numel() for batch in microbatches) * spread.world.data_size
    return _Sums(spread.world.sum(torch.stack(losses).sum()), grad_norm, n_tokens)


def _alone(model: nn.Module) -> World:
    return World.alone(_device(model))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _record(
    clock: "_Clock",
    position: Position,
    update: _Sums,
    lr: float,
    options: FitOptions,
    stops: Stops,
    *,
    is_stopped: bool,
) -> None:
    """Logs and saves where it is due, then obeys a request to stop."""
    clock.n_tokens += update.n_tokens
    is_last = _is_done(position, options)
    is_saved = is_last or is_stopped or position.step % options.checkpoint_every == 0
    is_logged = is_last or position.step % options.log_every == 0
    if is_logged or is_saved:
        loss, grad_norm = clock.wait(update)
        if not math.isfinite(loss):
            text = f"expected a finite loss at step {position.step}, got {loss}"
            raise ValueError(f"{text}; hint: lower optim.lr (now {lr:.2e}) or start anew with --fresh")
        if is_logged:
            stops.log(clock.report(position, loss, lr, grad_norm, options))
    if is_saved:
        stops.save(position)
    if is_stopped:
        raise KeyboardInterrupt(f"stopped after step {position.step} of {options.steps}, which is saved")


def _look(position: Position, options: FitOptions, stops: Stops) -> None:
    """Evaluates and samples where it is due."""
    is_last = _is_done(position, options)
    if is_last or position.step % options.eval_every == 0:
        stops.evaluate(position, is_last)
    if is_last or position.step % options.sample_every == 0:
        stops.sample(position, is_last)


def _is_done(position: Position, options: FitOptions) -> bool:
    is_late = options.max_seconds is not None and position.elapsed_s >= options.max_seconds
    return position.step >= options.steps or (is_late and position.step > 0)


class _Clock:
    """Training time, and the pace of the updates alone."""

    def __init__(self, start: Position) -> None:
        self.step = start.step
        self._zero = time.perf_counter() - start.elapsed_s
        self._busy_s = 0.0
        self._n_updates = 0
        self.n_tokens = 0

    @contextmanager
    def update(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._busy_s += time.perf_counter() - start
        self.step += 1
        self._n_updates += 1

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._zero

    def wait(self, update: _Sums) -> tuple[float, float]:
        """Returns loss and gradient norm; on CUDA this waits for the updates that are still queued, which counts."""
        start = time.perf_counter()
        values = update.loss.item(), update.grad_norm.item()
        self._busy_s += time.perf_counter() - start
        return values

    def report(self, position: Position, loss: float, lr: float, grad_norm: float, options: FitOptions) -> Update:
        """Returns the record of the last update and starts the next stretch of the pace."""
        left_s = (options.steps - position.step) * self._busy_s / self._n_updates
        if options.max_seconds is not None:
            left_s = min(left_s, options.max_seconds - position.elapsed_s)
        update = Update(
            step=position.step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_s=self.n_tokens / self._busy_s,
            seconds_left=left_s,
            time_s=position.elapsed_s,
        )
        self._busy_s, self._n_updates, self.n_tokens = 0.0, 0, 0
        return update
