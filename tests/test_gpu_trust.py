"""The guard and the switch for the same bits on CUDA. Run by `make test-gpu`; nothing here skips without a device."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gptrs.model import ModelConfig, Transformer
from gptrs.train.config import GuardSettings
from gptrs.train.determinism import deterministic
from gptrs.train.guard import Event, Guard
from gptrs.train.loop import FitOptions, Stops, fit
from gptrs.train.optim import adamw

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig(vocab_size=256, max_seq_len=64, dim=64, n_layers=2, n_heads=4, inter_dim=256)
CUDA = "cuda"


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor
    factor: float = 1.0  # of the loss


def loss_fn(model: nn.Module, batch: Batch, totals: Tensor | None = None) -> Tensor:
    return batch.factor * model.loss(batch.tokens, batch.targets, totals=totals)  # type: ignore[operator,no-any-return]


def batches(bad: int | None = None, left_out: int | None = None) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    for number in range(1000):
        ids = torch.randint(256, (8, 65), generator=generator).to(CUDA)
        if number != left_out:
            yield Batch(ids[:, :-1], ids[:, 1:], math.nan if number == bad else 1.0)


def run(source: Iterator[Batch], steps: int, **guard: object) -> tuple[list[Tensor], list[Event]]:
    """Weights and moments after some updates, and what was told; the log waits for the device at the end alone."""
    model = Transformer(CONFIG, seed=1).to(CUDA)
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
    events: list[Event] = []

    def nothing(*_: object) -> None:
        pass

    fit(
        model,
        source,
        loss_fn=loss_fn,
        optimizer=optimizer,
        learning_rate=lambda position: 1e-3,
        options=FitOptions(steps=steps, log_every=1000, eval_every=1000, sample_every=1000, checkpoint_every=1000),
        stops=Stops(log=nothing, save=nothing, evaluate=nothing, sample=nothing, tell=events.append),
        guard=Guard(GuardSettings(max_in_a_row=1000, **guard), device=torch.device(CUDA)),  # type: ignore[arg-type]
    )
    state = [tensor for p in model.parameters() for tensor in optimizer.state[p].values()]
    return [p.detach() for p in model.parameters()] + state, events


def test_a_bad_update_is_left_out_on_the_device() -> None:
    with deterministic(True):
        found, events = run(batches(bad=3), steps=8)
        expected, none = run(batches(left_out=3), steps=7)
    assert [(event.step, event.name) for event in events] == [(4, "not finite")] and not none
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_guard_changes_no_healthy_run() -> None:
    with deterministic(True):
        told, off = run(batches(), steps=8), run(batches(), steps=8, spike="off")
    assert all(torch.equal(one, other) for one, other in zip(told[0], off[0], strict=True))
