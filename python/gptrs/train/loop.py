"""The only training loop. A stage hands in batches, a loss function and what to do at the stops.

    loader ─▶ batch ─▶ loss_fn(model, batch) ─▶ gradient, summed over microbatches ─▶ clip ─▶ AdamW
                                                     every few updates: log · save · evaluate · sample

Unusual here: an update takes its microbatches first and counts what its loss is divided by over all of them and over
all ranks, so that neither their number nor what each leaves out changes it. A checkpoint comes before the evaluation
and the samples of its step; a resumed run begins with those two, so that its logs are those of one never killed.
Whether an update is made at all, `guard` decides. With `in_backward` the step is a part of the backward pass.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gptrs.model.loss import counts
from gptrs.train.clock import Clock
from gptrs.train.config import GuardSettings
from gptrs.train.distributed import World
from gptrs.train.guard import Event, Guard, Reading, make_step
from gptrs.train.in_backward import check_optimizer, check_ranks, step_in_backward
from gptrs.train.optim import set_learning_rate
from gptrs.train.signals import Stopped, StopRequests, stop_requests
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
    microbatches_before: Callable[[int], int] | None = None  # those of all updates before one, where a batch grows;
    # None: accumulation each
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    dtype: torch.dtype = torch.float32  # of the computation; weights, gradients and moments keep their own
    in_backward: bool = False  # weights move inside the backward pass: AdamW, one microbatch and process, no clipping
    is_compiled: bool = False  # torch.compile of loss and backward as one
    max_seconds: float | None = None  # training ends after the update that passes this time
    log_every: int = 10  # updates
    eval_every: int = 500  # updates
    sample_every: int = 500  # updates
    checkpoint_every: int = 500  # updates

    def __post_init__(self) -> None:
        if self.in_backward and (self.clip > 0 or self.accumulation > 1):
            got = f"got clip={self.clip}, accumulation={self.accumulation}"
            raise ValueError(f"in_backward needs updates of one microbatch that are not clipped, {got}; hint: clip=0")

    def at(self, step: int) -> "FitOptions":
        """The options of the update after `step` others."""
        return replace(self, accumulation=self.n_microbatches(step, step + 1))

    def n_microbatches(self, first: int, end: int) -> int:
        """Those of a rank in the updates after `first` others, up to `end` of them."""
        if self.microbatches_before is None:
            return (end - first) * self.accumulation
        return self.microbatches_before(end) - self.microbatches_before(first)


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
    seconds_left: float  # at that pace of microbatches: updates that grow take longer
    time_s: float  # training time since step 0


def _warn(event: Event) -> None:
    warnings.warn(event.text, stacklevel=2)


def _has_no_checkpoint(guard: Guard) -> None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stops:
    """What a stage does at the stops. `is_last`: after this one the run ends.

    `tell` hears of what is out of the ordinary. `roll_back` puts the newest checkpoint into everything but the loader,
    which stays where it is, and returns its step; None when there is no checkpoint.
    """

    log: Callable[[Update], None]
    save: Callable[[Position], None]
    evaluate: Callable[[Position, bool], None]
    sample: Callable[[Position, bool], None]
    tell: Callable[[Event], None] = _warn
    roll_back: Callable[[Guard], int | None] = _has_no_checkpoint


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
    after_update: Callable[[Tensor], None] | None = None,
    watch: Callable[[int], AbstractContextManager[object]] = nullcontext,
    start: Position = Position(),
    counts: Counts = n_targets,
    spread: Spread | None = None,
    guard: Guard | None = None,
) -> Position:
    """Trains from `start` to options.steps or options.max_seconds; returns where it ended.

    Args:
        loader: endless microbatches, of several ranks each its own.
        loss_fn: (model, batch, totals) → the batch's share of the update's loss; `totals` is the sum of `counts`.
        learning_rate: of the update that comes next at a position.
        after_update: what moves weights beside the optimizer, once for each of its updates; its argument is 1 where
            the guard leaves the update out, else 0.
        counts: what the parts of a batch's loss are divided by.
        spread: the model over several ranks, and its precision; by default on this process alone.
        watch: what is open around each update, by its number from 1; the time that it takes counts.
        guard: judge of the updates, with its state; by default one of the default settings.
    Raises: Stopped (a KeyboardInterrupt) after a signal, once the update at hand is done and saved, or at once during
        an evaluation or a sample; ValueError when the guard ends the run, before such weights are saved, and for
        `in_backward` with several processes or another optimizer than AdamW.
    """
    spread = spread or Spread(model, _alone(model), dtype=options.dtype, is_compiled=options.is_compiled)
    batches, clock, position = iter(loader), Clock(start.step, start.elapsed_s), start
    guard = guard or Guard(GuardSettings(), device=spread.world.device)
    if options.in_backward:
        check_ranks(spread.world.size)
        check_optimizer(optimizer)
    make_update = _update_in_backward if options.in_backward else _update
    model.train()
    with stop_requests() as requests:
        book = _Book(clock, guard, options, stops, requests, spread.world)
        if start.step:
            book.look(position)
        while not _is_done(position, options):
            lr = learning_rate(position)
            set_learning_rate(optimizer, lr)
            with clock.update(), watch(position.step + 1):
                update = make_update(spread, batches, loss_fn, counts, optimizer, guard, options.at(position.step))
                if after_update is not None:
                    after_update(update.is_left_out)
            position = book.record(update, lr)
            book.look(position)
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
    Raises: ValueError when no target counts.
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
    if not n:
        raise ValueError("expected held-out rows with tokens to be predicted, got none; hint: a larger train.eval_rows")
    return total / n, int(n)


class _Sums(NamedTuple):
    """One update; the tensors are still on the device."""

    loss: Tensor
    grad_norm: Tensor
    n_tokens: int
    n_microbatches: int
    is_left_out: Tensor


def _update(
    spread: Spread,
    batches: Iterator[HasTokens],
    loss_fn: LossFn,
    counts: Counts,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    options: FitOptions,
) -> _Sums:
    """Makes one optimizer update, or leaves it out."""
    microbatches = [next(batches) for _ in range(options.accumulation)]
    totals = spread.world.sum(torch.stack([counts(batch) for batch in microbatches]).sum(dim=0))
    losses = []
    for i, batch in enumerate(microbatches):
        with spread.microbatch(is_last=i + 1 == len(microbatches)):
            loss = spread.loss(loss_fn, batch, totals)
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    total, grad_norm = spread.world.sum(torch.stack(losses).sum()), spread.clip(options.clip)
    is_left_out = guard.judge(total, grad_norm)
    make_step(optimizer, is_left_out)
    optimizer.zero_grad(set_to_none=True)
    n_tokens = sum(batch.tokens.numel() for batch in microbatches) * spread.world.data_size
    return _Sums(total, grad_norm, n_tokens, len(microbatches), is_left_out)


def _update_in_backward(
    spread: Spread,
    batches: Iterator[HasTokens],
    loss_fn: LossFn,
    counts: Counts,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    _: FitOptions,
) -> _Sums:
    """`_update` of one microbatch on one process, with the steps in its backward pass; judged by the loss alone."""
    batch = next(batches)
    loss = spread.loss(loss_fn, batch, counts(batch))
    total = loss.detach()
    is_left_out = guard.judge(total)
    grad_norm = step_in_backward(loss, optimizer, is_left_out)
    guard.judge_norm(grad_norm, is_left_out)
    return _Sums(total, grad_norm, batch.tokens.numel(), 1, is_left_out)


def _alone(model: nn.Module) -> World:
    return World.alone(_device(model))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class _Book:
    """What happens between two updates: lines, checkpoints, looks; it hears the guard and obeys requests to stop."""

    def __init__(
        self,
        clock: Clock,
        guard: Guard,
        options: FitOptions,
        stops: Stops,
        requests: StopRequests,
        world: World,
    ) -> None:
        self.clock = clock
        self.guard = guard
        self.options = options
        self.stops = stops
        self.requests = requests
        self.world = world
        self._saved_step = clock.step
        self._is_save_due = False

    def record(self, update: _Sums, lr: float) -> Position:
        """Logs and saves where it is due, or goes back to a checkpoint; then obeys a request to stop.

        Returns where the run stands then.
        """
        options, step = self.options, self.clock.step
        elapsed_s, number = self.world.agreed(self.clock.elapsed_s(), self.requests.number or 0)
        position = Position(step=step, elapsed_s=elapsed_s)
        self.clock.count(n_tokens=update.n_tokens, n_microbatches=update.n_microbatches)
        is_last = _is_done(position, options)
        is_logged = is_last or step % options.log_every == 0
        is_read = is_logged or self.guard.is_due(step, options.log_every)
        self._is_save_due |= is_last or number != 0 or step % options.checkpoint_every == 0
        if is_read or self._is_save_due:
            with self.clock.waiting():
                loss, grad_norm = update.loss.item(), update.grad_norm.item()
            reading = self._hear(position, lr)
            if reading.error:
                raise ValueError(reading.error)
            if reading.is_rollback and (back := self._roll_back(position, reading)) is not None:
                return back
            # One alone may be its batch's fault: the last evaluation tells whether the weights are any good.
            if is_last and not reading.is_finite and reading.in_a_row > 1:
                raise ValueError(f"expected a finite loss at the last step, got {loss}; hint: go on from the newest "
                                 "checkpoint with a lower optim.lr and --allow optim.lr")  # fmt: skip
            if is_logged and reading.is_finite:
                self.stops.log(self._report(position, loss, lr, grad_norm))
            if self._is_save_due and (reading.is_sound or is_last):
                self._save(position)
        if number:
            raise self._stopped(number, position)
        return position

    def _report(self, position: Position, loss: float, lr: float, grad_norm: float) -> Update:
        """Returns the record of the last update and starts the next stretch of the pace."""
        options = self.options
        tokens_per_s, microbatch_s = self.clock.pace()
        left_s = options.n_microbatches(position.step, options.steps) * microbatch_s
        if options.max_seconds is not None:
            left_s = min(left_s, options.max_seconds - position.elapsed_s)
        return Update(
            step=position.step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_s=tokens_per_s,
            seconds_left=left_s,
            time_s=position.elapsed_s,
        )

    def look(self, position: Position) -> None:
        """Evaluates and samples where it is due. A request to stop ends that at once: the weights are saved."""
        try:
            if self.world.size == 1:
                with self.requests.at_once():
                    self._look(position)
            else:
                self._look(position)
        except Stopped as stopped:
            reading = self._hear(position, lr=0.0)
            if self._saved_step != position.step and reading.is_sound and not (reading.is_rollback or reading.error):
                self._save(position)
            raise self._stopped(stopped.number, position) from None

    def _look(self, position: Position) -> None:
        is_last = _is_done(position, self.options)
        if is_last or position.step % self.options.eval_every == 0:
            self._try("evaluation", self.stops.evaluate, position, is_fatal=is_last or self.world.size > 1)
        if is_last or position.step % self.options.sample_every == 0:
            self._try("sampling", self.stops.sample, position, is_fatal=False)

    def _try(self, name: str, look: Callable[[Position, bool], None], position: Position, *, is_fatal: bool) -> None:
        """Looks; what goes wrong there is told and ends no training, unless the run's result needs it."""
        try:
            look(position, _is_done(position, self.options))
        except Exception as error:
            if is_fatal:
                raise
            text = f"{name} at step {position.step} failed: {type(error).__name__}: {error}; training goes on"
            self.stops.tell(Event(step=position.step, name=f"{name} failed", text=text))

    def _hear(self, position: Position, lr: float) -> Reading:
        reading = self.guard.read(position.step, lr)
        for event in reading.events:
            self.stops.tell(event)
        return reading

    def _save(self, position: Position) -> None:
        self.stops.save(position)
        self.guard.saved()
        self._saved_step, self._is_save_due = position.step, False

    def _roll_back(self, position: Position, reading: Reading) -> Position | None:
        """Returns where the newest checkpoint stands, once everything but the loader is there; None without one.

        Raises: ValueError where the weights are spoilt and there is none.
        """
        step = self.stops.roll_back(self.guard)
        if step is None and reading.spoilt:
            raise ValueError(reading.spoilt)
        if step is None:
            text = f"no checkpoint to go back to at step {position.step}: training goes on without that update"
            self.stops.tell(Event(step=position.step, name="no rollback", text=text))
            return None
        self.clock.step = step
        self._saved_step, self._is_save_due = step, False
        return Position(step=step, elapsed_s=position.elapsed_s)

    def _stopped(self, number: int, position: Position) -> Stopped:
        is_saved = self._saved_step == position.step
        state = "which is saved" if is_saved else "which is not saved, as its update was left out"
        return Stopped(number, f"stopped after step {position.step} of {self.options.steps}, {state}")


def _is_done(position: Position, options: FitOptions) -> bool:
    is_late = options.max_seconds is not None and position.elapsed_s >= options.max_seconds
    return position.step >= options.steps or (is_late and position.step > 0)
