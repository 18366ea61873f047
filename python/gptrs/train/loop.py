"""The only training loop. A stage hands in batches, a loss function and what to do at the stops.

    loader ─▶ batch ─▶ loss_fn(model, batch) ─▶ gradient, summed over microbatches ─▶ clip ─▶ AdamW
                                                     every few updates: log · save · evaluate · sample

Unusual here: weights stay fp32 and are rounded to the compute type inside the graph (`objective`), so that gradients
are summed in fp32 and nothing depends on an ambient autocast. A checkpoint comes before the evaluation and the samples
of its step; a resumed run begins with those two, so that its logs are those of a run that was never killed.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gptrs.model.moe import Router
from gptrs.train.optim import clip, set_learning_rate


class HasTokens(Protocol):
    """What the loop itself needs of a batch; a stage's loss function may use more."""

    @property
    def tokens(self) -> Tensor: ...  # (B, T) int64

    @property
    def targets(self) -> Tensor: ...  # (B, T) int64


BatchT = TypeVar("BatchT", bound=HasTokens)
LossFn = Callable[[nn.Module, Any], Tensor]  # (model, batch) → mean loss of the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How long, in which precision, how often to stop."""

    steps: int  # optimizer updates
    accumulation: int = 1  # microbatches of one update; their losses have equal weight
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    dtype: torch.dtype = torch.float32  # of the computation; weights, gradients and moments keep their own
    is_compiled: bool = False  # torch.compile of loss and backward as one
    compile_mode: str | None = None  # of torch.compile
    max_seconds: float | None = None  # training ends after the update that passes this time
    log_every: int = 10  # updates
    eval_every: int = 500  # updates
    sample_every: int = 500  # updates
    checkpoint_every: int = 500  # updates


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
    start: Position = Position(),
) -> Position:
    """Trains from `start` to options.steps or options.max_seconds; returns where it ended.

    Args:
        loader: endless microbatches.
        learning_rate: of the update that comes next at a position.
        after_update: what moves weights beside the optimizer, once for each of its updates.
    Raises: KeyboardInterrupt after SIGINT or SIGTERM, once the update at hand is done and saved; ValueError when the
        loss is no longer a number, before such weights are saved.
    """
    loss_of = objective(model, loss_fn, dtype=options.dtype, is_compiled=options.is_compiled, mode=options.compile_mode)
    batches, clock, position = iter(loader), _Clock(start), start
    model.train()
    with stop_requests() as is_stop_requested:
        if start.step:
            _look(position, options, stops)
        while not _is_done(position, options):
            lr = learning_rate(position)
            set_learning_rate(optimizer, lr)
            with clock.update():
                update = _update(model, batches, loss_of, optimizer, options)
                if after_update is not None:
                    after_update()
            position = clock.position()
            _record(clock, position, update, lr, options, stops, is_stopped=is_stop_requested())
            _look(position, options, stops)
    return position


def objective(
    model: nn.Module, loss_fn: LossFn, *, dtype: torch.dtype, is_compiled: bool = False, mode: str | None = None
) -> Callable[[Any], Tensor]:
    """Returns batch → loss, computed with the weights rounded to `dtype`.

    The rounding is a part of the graph: its backward widens each gradient to the weight's own type before it is added,
    so microbatches sum in fp32. Under torch.compile the casts melt into their neighbours. Routers keep their type, and
    so does what is not trained by gradients: which experts a token takes does not depend on `dtype`'s rounding of them.
    """
    wrapped = _Objective(model, loss_fn)
    routers = {id(p) for module in model.modules() if isinstance(module, Router) for p in module.parameters()}
    cast = {name: p.dtype for name, p in wrapped.named_parameters() if p.requires_grad and id(p) not in routers}
    is_native = all(own == dtype for own in cast.values())

    def loss_of(batch: Any) -> Tensor:
        loss: Tensor
        if is_native:
            loss = wrapped(batch)
        else:
            weights = {name: p.to(dtype) for name, p in wrapped.named_parameters() if name in cast}
            loss = functional_call(wrapped, weights, (batch,))
        return loss

    return torch.compile(loss_of, dynamic=False, mode=mode) if is_compiled else loss_of


class _Objective(nn.Module):
    """A loss function as a module, so that functional_call can exchange the weights under any method it calls."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


@torch.no_grad()
def mean_loss(
    model: nn.Module, batches: Iterable[HasTokens], *, loss_fn: LossFn, dtype: torch.dtype
) -> tuple[float, int]:
    """Returns the mean loss of a target over all batches, in eval mode, and the number of targets.

    Batches may differ in size; every target must count (no -100).
    """
    loss_of = objective(model, loss_fn, dtype=dtype)
    was_training = model.training
    model.eval()
    try:
        total: Tensor | float = 0.0
        n_targets = 0
        for batch in batches:
            n = batch.targets.numel()
            total = total + loss_of(batch).double() * n
            n_targets += n
    finally:
        model.train(was_training)
    return float(total) / n_targets, n_targets


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
    model: nn.Module,
    batches: Iterator[HasTokens],
    loss_of: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
) -> _Sums:
    """Makes one optimizer update."""
    n_tokens = 0
    total = torch.zeros((), device=next(model.parameters()).device)
    for _ in range(options.accumulation):
        batch = next(batches)
        loss = loss_of(batch) / options.accumulation
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        n_tokens += batch.tokens.numel()
    grad_norm = clip(model.parameters(), options.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _Sums(total, grad_norm, n_tokens)


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
        self._step = start.step
        self._zero = time.perf_counter() - start.elapsed_s
        self._busy_s = 0.0
        self._n_updates = 0
        self.n_tokens = 0

    @contextmanager
    def update(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._busy_s += time.perf_counter() - start
        self._step += 1
        self._n_updates += 1

    def position(self) -> Position:
        return Position(step=self._step, elapsed_s=time.perf_counter() - self._zero)

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
