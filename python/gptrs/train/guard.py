"""Updates whose loss or gradient cannot be trusted: left out, taken back, or the end of the run.

    loss, gradient norm ─judge─▶ 1 or 0, on the device ─▶ optimizer, routers' biases
                           └─ verdicts, read every few updates ─▶ events · back to a checkpoint · error

The decision is a tensor: no update waits for it, and a healthy run is the same to the bit. On several processes loss
and norm must be those of the whole batch, so that all of them decide alike.

A step inside the backward pass (`in_backward`) is made before the norm is known. It is judged by the loss alone, and a
gradient that turns out to be no number has spoilt the weights: nothing is saved, and the run goes back to its newest
checkpoint or ends.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gptrs.train.config import GuardSettings

_SPIKE, _NONFINITE, _SPOILT = 1, 2, 3  # verdicts; 0 is a sound update. Spoilt: no number, and in the weights
_LEAST_DEVIATION = 0.01  # of the mean: a loss that hardly moves any more has spikes of nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something out of the ordinary, for metrics.jsonl and the display."""

    step: int
    name: str  # what it is, the same words each time
    text: str  # what happened, for people
    values: dict[str, Any] = field(default_factory=dict)  # JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the updates since the last reading came to."""

    events: tuple[Event, ...] = ()
    error: str | None = None  # why the run cannot go on
    is_rollback: bool = False  # the run should go back to its newest checkpoint
    is_sound: bool = True  # the last update was made: what it led to may be saved
    is_finite: bool = True  # loss and gradient norm of the last update are numbers
    in_a_row: int = 0  # updates left out one after the other, up to the last
    spoilt: str | None = None  # why the run cannot go on where there is no checkpoint to go back to


class Guard:
    """The judge of one run's updates.

    A loss spikes when it is `spike_sigmas` standard deviations above the mean, both over the last `spike_window`
    updates or so that were made, after `spike_warmup` of them.
    Source: going back and past the batches, PaLM (arXiv 2204.02311, section 5.1).
    """

    def __init__(self, settings: GuardSettings, *, device: torch.device) -> None:
        self.settings = settings
        self._mean, self._variance, self._count = torch.zeros(3, dtype=torch.float64, device=device).unbind()
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, norm, verdict of each update not yet read
        self._in_a_row = 0  # updates left out, up to the last that was read
        self._n_rollbacks = 0  # since the last checkpoint

    def is_due(self, step: int, log_every: int) -> bool:
        """Whether verdicts are read after update `step`: a function of the step alone, so that resuming changes none.

        The first is always: a model that begins with no number never comes to one.
        """
        return step == 1 or step % min(log_every, self.settings.max_in_a_row) == 0

    @torch.no_grad()
    def judge(self, loss: Tensor, grad_norm: Tensor | None = None) -> Tensor:
        """Returns whether an update is to be left out: 1 or 0, a float32 on the device, as `found_inf` of optimizers.

        Args: loss: of the whole batch, a scalar; grad_norm: of the whole gradient, before clipping; None: it follows
            by `judge_norm`.
        """
        grad_norm = loss if grad_norm is None else grad_norm
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        if self.settings.spike == "off":
            self._pending.append((loss, grad_norm, is_bad * _NONFINITE))
            return is_bad.float()
        above = loss.double() - self._mean
        deviation = torch.maximum(self._variance.sqrt(), _LEAST_DEVIATION * self._mean)
        is_spike = (above > self.settings.spike_sigmas * deviation) & (self._count >= self.settings.spike_warmup)
        self._pending.append((loss, grad_norm, torch.where(is_bad, _NONFINITE, is_spike * _SPIKE)))
        is_left_out = is_bad if self.settings.spike == "tell" else is_bad | is_spike
        self._follow(above, ~is_left_out)
        return is_left_out.float()

    @torch.no_grad()
    def judge_norm(self, grad_norm: Tensor, is_left_out: Tensor) -> None:
        """Takes the norm of the update that `judge` saw last, once its step was made or left out.

        Where it is no number an update that was made cannot be left out any more: "skip" is "rollback" then, and
        without a checkpoint the run ends.
        """
        loss, _, verdict = self._pending.pop()
        late = torch.where(is_left_out == 1, _NONFINITE, _SPOILT)
        self._pending.append((loss, grad_norm, torch.where(torch.isfinite(grad_norm), verdict, late)))

    def read(self, step: int, lr: float) -> Reading:
        """Returns what the updates up to `step` came to; waits for the device."""
        if not self._pending:
            return Reading()
        rows = torch.stack([x.double() for row in self._pending for x in row]).view(-1, 3).tolist()
        self._pending.clear()
        events: list[Event] = []
        policies: dict[int, str] = {_SPIKE: self.settings.spike, _NONFINITE: self.settings.nonfinite}
        policies[_SPOILT] = "stop" if self.settings.nonfinite == "stop" else "rollback"
        error, spoilt, is_rollback, is_left_out = None, None, False, False
        for at, (loss, norm, verdict) in enumerate(rows, start=step - len(rows) + 1):
            policy = policies.get(int(verdict), "fine")
            is_left_out = policy not in ("fine", "tell")
            self._in_a_row = self._in_a_row + 1 if is_left_out else 0
            if policy == "fine":
                continue
            is_made = verdict == _SPOILT or not is_left_out
            events.append(self._event(at, loss, norm, is_made=is_made, is_spike=verdict == _SPIKE))
            is_rollback |= policy == "rollback"
            error = error or self._error(at, events[-1].text, policy, lr)
            if verdict == _SPOILT:  # what came since was computed with spoilt weights and tells nothing
                spoilt = _why_spoilt(events[-1].text)
                break
        *_, (loss, norm, _) = rows
        return Reading(
            events=tuple(events),
            error=error,
            is_rollback=is_rollback,
            is_sound=not is_left_out,
            is_finite=math.isfinite(loss) and math.isfinite(norm),
            in_a_row=self._in_a_row,
            spoilt=spoilt,
        )

    def rolled_back(self, state: dict[str, Any], step: int) -> None:
        """Goes back with the run to a checkpoint's state.

        Raises: ValueError when that was tried often enough.
        """
        n = self._n_rollbacks + 1
        if n > self.settings.max_rollbacks:
            raise ValueError(
                f"expected sound updates after going back to step {step} {n - 1} times, got trouble again; "
                "hint: a lower optim.lr with --allow optim.lr"
            )
        self.load_state_dict(state)
        self._n_rollbacks = n

    def saved(self) -> None:
        """Is told of each checkpoint: what came before it is over."""
        self._n_rollbacks = 0

    def state_dict(self) -> dict[str, Any]:
        """What continues this guard exactly: JSON."""
        mean, variance, count = torch.stack([self._mean, self._variance, self._count]).tolist()
        return {"mean": mean, "variance": variance, "count": int(count), "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at the state of another guard."""
        for tensor, name in ((self._mean, "mean"), (self._variance, "variance"), (self._count, "count")):
            tensor.fill_(state[name])
        self._in_a_row = state["in_a_row"]
        self._pending.clear()

    def _follow(self, above: Tensor, is_made: Tensor) -> None:
        """Takes a loss into mean and variance: exact ones at first, then with weights that fall off exponentially."""
        share = 1 / (self._count + 1).clamp(max=self.settings.spike_window) * is_made
        above = torch.where(is_made, above, 0.0)  # nan times 0 is nan
        self._mean.add_(share * above)
        self._variance.copy_((1 - share) * (self._variance + share * above.square()))
        self._count.add_(is_made)

    def _event(self, step: int, loss: float, norm: float, *, is_made: bool, is_spike: bool) -> Event:
        what = f"loss {loss:.4f}, gradient norm {norm:.4g}"
        values = {"loss": loss, "grad_norm": norm} if math.isfinite(loss) and math.isfinite(norm) else {}
        done = "the update was made" if is_made else "the update was left out"
        name = "spike" if is_spike else "not finite"
        return Event(step=step, name=name, text=f"{what} at step {step}: {done}", values=values)

    def _error(self, step: int, text: str, policy: str, lr: float) -> str | None:
        hint = f"hint: lower optim.lr (now {lr:.2e}), with --allow optim.lr from the newest checkpoint, or with --fresh"
        if step == 1:
            return f"expected a finite loss and gradient at the first step, got {text}; {hint}"
        if policy == "stop":
            return f"expected a sound update, got {text}, and [guard] says stop; {hint}"
        if self._in_a_row >= self.settings.max_in_a_row:
            return f"expected a sound update, got {self._in_a_row} in a row that are none, the last with {text}; {hint}"
        return None


def _why_spoilt(text: str) -> str:
    return (
        f"expected a finite gradient, got {text}, inside the backward pass, and there is no checkpoint to go back to; "
        "hint: optim.in_backward=false leaves such updates out"
    )


def make_step(optimizer: torch.optim.Optimizer, is_left_out: Tensor) -> None:
    """Makes an optimizer's step unless it is to be left out.

    On the CPU the answer is at hand. Elsewhere fused optimizers decide on the device; others wait for it.
    """
    if is_left_out.device.type != "cpu" and getattr(optimizer, "_step_supports_amp_scaling", False):
        step_on_device(optimizer, is_left_out)
    elif not is_left_out.item():
        optimizer.step()


def step_on_device(optimizer: torch.optim.Optimizer, is_left_out: Tensor) -> None:
    """Makes the step of a fused optimizer, whose kernel leaves it out where a GradScaler's flag is 1."""
    optimizer.found_inf = is_left_out  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
