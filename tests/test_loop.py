"""fit(): the only loop. Overfitting, accumulation, precision, stops, resumption, signals."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gptrs.model import ModelConfig, Transformer
from gptrs.model.moe import MoE
from gptrs.train.loop import FitOptions, Position, Stops, Update, fit, mean_loss, objective
from gptrs.train.optim import adamw
from gptrs.train.signals import Stopped, stop_requests

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=32, max_seq_len=8, dim=16, n_layers=2, n_heads=2, inter_dim=32)


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor


def next_token_loss(model: nn.Module, batch: Batch, totals: Tensor | None = None) -> Tensor:
    return model.loss(batch.tokens, batch.targets, totals=totals)  # type: ignore[operator,no-any-return]


def batches(seed: int = 0, rows: int = 4, start: int = 0) -> Iterator[Batch]:
    """An endless stream of random rows; `start` skips as many rows."""
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randint(32, (4096, 9), generator=generator)
    while True:
        part = stream[start : start + rows]
        yield Batch(part[:, :-1], part[:, 1:])
        start += rows


@dataclass
class Log:
    """Remembers every stop in order."""

    events: list[tuple[str, int]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)

    def stops(self, **others: Callable[..., None]) -> Stops:
        def log(update: Update) -> None:
            self.events.append(("log", update.step))
            self.updates.append(update)

        def note(kind: str) -> Callable[..., None]:
            def stop(position: Position, is_last: bool = False) -> None:
                self.events.append((kind + " last" * is_last, position.step))
                if kind in others:
                    others[kind](position)

            return stop

        return Stops(log=log, save=note("save"), evaluate=note("evaluate"), sample=note("sample"))


def run(
    *,
    model: Transformer | None = None,
    steps: int = 6,
    source: Iterator[Batch] | None = None,
    lr: float = 1e-2,
    stops: Stops | None = None,
    start: Position = Position(),  # noqa: B008
    **options: object,
) -> tuple[Transformer, Log, Position]:
    model = model or Transformer(CONFIG)
    optimizer = adamw(model, lr=lr, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8)
    log = Log()
    end = fit(
        model,
        source or batches(),
        loss_fn=next_token_loss,
        optimizer=optimizer,
        learning_rate=lambda position: lr,
        options=FitOptions(steps=steps, **{"log_every": 1, **options}),  # type: ignore[arg-type]
        stops=stops or log.stops(),
        start=start,
    )
    return model, log, end


KINDS = {
    "gpt": CONFIG,
    "deepseek": ModelConfig.preset(
        "deepseek-tiny", vocab_size=32, dim=16, n_layers=2, n_heads=2, inter_dim=24, kv_lora_rank=8, moe_inter_dim=12
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_overfits_one_batch(kind: str) -> None:
    one = next(batches())
    _, log, end = run(model=Transformer(KINDS[kind]), steps=300, source=iter(lambda: one, None))
    assert log.updates[-1].loss < 0.01 and end.step == 300
    if kind == "gpt":
        assert log.updates[0].loss == pytest.approx(math.log(32), abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_microbatches_equal_one_batch(kind: str) -> None:
    """In double precision, with an optimizer that does not divide by a gradient near 0."""

    def losses(rows: int, accumulation: int) -> tuple[Transformer, list[float]]:
        model, log = Transformer(KINDS[kind]).double(), Log()
        fit(
            model,
            batches(rows=rows),
            loss_fn=next_token_loss,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            learning_rate=lambda position: 0.1,
            options=FitOptions(steps=6, accumulation=accumulation, dtype=torch.float64, log_every=1),
            stops=log.stops(),
        )
        return model, [update.loss for update in log.updates]

    (whole, expected), (parts, found) = losses(8, 1), losses(2, 4)
    assert found == pytest.approx(expected, abs=1e-12)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_growing_batch_takes_more_microbatches_of_the_same_stream() -> None:
    """Updates of 2, 4 and 6 rows read what one batch of each size at its place reads."""
    sizes = [1, 2, 3]
    growth: dict[str, object] = {"accumulation": 3, "microbatches_before": lambda step: sum(sizes[:step])}
    parts, log, _ = run(steps=3, source=batches(rows=2), **growth)  # type: ignore[arg-type]
    stream = [next(batches(rows=rows, start=start)) for rows, start in ((2, 0), (4, 2), (6, 6))]
    whole, log_whole, _ = run(steps=3, source=iter(stream))
    assert [u.loss for u in log.updates] == pytest.approx([u.loss for u in log_whole.updates], abs=2e-5)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    start = Position(step=2)
    resumed, log, _ = run(steps=3, source=batches(rows=2, start=6), start=start, **growth)  # type: ignore[arg-type]
    assert [u.step for u in log.updates] == [3] and resumed is not parts


def test_one_seed_gives_one_run() -> None:
    assert [u.loss for u in run()[1].updates] == [u.loss for u in run()[1].updates]


def test_the_stops_come_in_order_save_before_evaluate_before_sample() -> None:
    _, log, _ = run(steps=5, log_every=2, checkpoint_every=4, eval_every=2, sample_every=4)
    assert log.events == [
        *(("log", 2), ("evaluate", 2)),
        *(("log", 4), ("save", 4), ("evaluate", 4), ("sample", 4)),
        *(("log", 5), ("save", 5), ("evaluate last", 5), ("sample last", 5)),
    ]


def test_a_resumed_run_first_does_what_its_checkpoint_came_before() -> None:
    _, log, _ = run(steps=5, log_every=2, checkpoint_every=4, eval_every=2, sample_every=4, start=Position(step=4))
    assert log.events[:2] == [("evaluate", 4), ("sample", 4)]
    _, log, _ = run(steps=5, start=Position(step=5, elapsed_s=1.0))
    assert log.events == [("evaluate last", 5), ("sample last", 5)]


def test_it_ends_after_the_update_that_passes_the_time_limit() -> None:
    _, log, end = run(steps=10_000, max_seconds=0.3, log_every=1000)
    assert 0 < end.step < 10_000 and end.elapsed_s >= 0.3
    assert log.events[-4:] == [(e, end.step) for e in ("log", "save", "evaluate last", "sample last")]
    _, log, again = run(steps=10_000, max_seconds=0.3, start=end)
    assert again == end and log.events == [("evaluate last", end.step), ("sample last", end.step)]


def test_the_gradient_is_clipped_but_reported_whole() -> None:
    free, _, _ = run(steps=1, clip=0.0, lr=1e-3)
    _, log, _ = run(steps=1, clip=1e-9, lr=1e-3)
    assert log.updates[0].grad_norm > 0.1
    moved = [
        (a - b).abs().max().item() for a, b in zip(free.parameters(), Transformer(CONFIG).parameters(), strict=True)
    ]
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_of_each_update_is_asked_by_where_it_begins() -> None:
    asked: list[Position] = []
    model = Transformer(CONFIG)
    fit(
        model,
        batches(),
        loss_fn=next_token_loss,
        optimizer=adamw(model, lr=1.0, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8),
        learning_rate=lambda position: asked.append(position) or 1e-3,  # type: ignore[func-returns-value]
        options=FitOptions(steps=3),
        stops=Log().stops(),
    )
    assert [position.step for position in asked] == [0, 1, 2]
    times = [position.elapsed_s for position in asked]
    assert times[0] == 0.0 and times == sorted(set(times))


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved() -> None:
    log = Log()
    with pytest.raises(ValueError, match=r"a finite loss at the last step, got nan; hint: .* --allow optim.lr"):
        run(lr=1e30, stops=log.stops(), clip=0.0, checkpoint_every=1, log_every=1000)
    assert ("save", 6) not in log.events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves(number: signal.Signals) -> None:
    log = Log()

    def source() -> Iterator[Batch]:
        for i, batch in enumerate(batches()):
            if i == 2:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 3 of 6, which is saved") as stopped:
        run(source=source(), stops=log.stops(), checkpoint_every=100)
    assert stopped.value.exit_code == (130 if number == signal.SIGINT else 75)
    assert log.events[-1] == ("save", 3)
    assert signal.getsignal(number) is before


def test_a_second_signal_stops_at_once() -> None:
    with pytest.raises(Stopped), stop_requests() as requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal did not interrupt")


def test_bf16_computes_in_bf16_and_updates_fp32_weights() -> None:
    seen: set[torch.dtype] = set()
    model = Transformer(CONFIG)
    model.layers[0].register_forward_hook(lambda module, inputs, output: seen.add(output[0].dtype))
    _, log, _ = run(model=model, dtype=torch.bfloat16)
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    reference = run()[1]
    assert [u.loss for u in log.updates] == pytest.approx([u.loss for u in reference.updates], abs=0.02)


def test_bf16_gradients_are_those_of_the_rounded_model_summed_in_fp32() -> None:
    model, batch = Transformer(CONFIG), next(batches())
    objective(model, next_token_loss, dtype=torch.bfloat16)(batch).backward()
    rounded = Transformer(CONFIG).to(torch.bfloat16)
    rounded.loss(batch.tokens, batch.targets).backward()
    for (name, one), other in zip(model.named_parameters(), rounded.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert one.grad.dtype == torch.float32 and torch.equal(one.grad, other.grad.float()), name
    objective(model, next_token_loss, dtype=torch.bfloat16)(batch).backward()
    for (name, one), other in zip(model.named_parameters(), rounded.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, 2 * other.grad.float()), name


def test_mean_loss_weighs_each_target_once_and_leaves_the_mode() -> None:
    model = Transformer(
        ModelConfig(vocab_size=32, max_seq_len=8, dim=16, n_layers=1, n_heads=2, inter_dim=32, dropout=0.5)
    )
    model.train()
    row = next(batches(rows=5))
    parts = [Batch(row.tokens[:3], row.targets[:3]), Batch(row.tokens[3:], row.targets[3:])]
    loss, n = mean_loss(model, parts, loss_fn=next_token_loss, dtype=torch.float32)
    assert n == 40 and model.training
    model.eval()
    assert loss == pytest.approx(model.loss(row.tokens, row.targets).item(), abs=1e-6)


@pytest.mark.long
def test_a_compiled_loop_gives_the_same_losses() -> None:
    plain = run(steps=3)[1]
    compiled = run(steps=3, is_compiled=True)[1]
    assert [u.loss for u in compiled.updates] == pytest.approx([u.loss for u in plain.updates], abs=1e-4)


def test_the_pace_counts_updates_only() -> None:
    log = Log()
    run(steps=4, stops=log.stops(evaluate=lambda position: time.sleep(0.3)), eval_every=1, log_every=2)
    assert all(update.tokens_per_s > 32 / 0.3 for update in log.updates)
    assert log.updates[-1].time_s >= 0.9 and log.updates[-1].seconds_left == 0


def test_the_time_left_is_that_of_the_microbatches_to_come() -> None:
    """After two updates of one microbatch there are two of ten left: no fifth of the time, as updates would have it."""
    log, microbatch_s = Log(), 0.01
    sizes = [1, 1, 10, 10]

    def slow(model: nn.Module, batch: Batch, totals: Tensor | None = None) -> Tensor:
        time.sleep(microbatch_s)
        return next_token_loss(model, batch, totals)

    model = Transformer(CONFIG)
    fit(
        model,
        batches(),
        loss_fn=slow,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        learning_rate=lambda position: 0.1,
        options=FitOptions(steps=4, microbatches_before=lambda step: sum(sizes[:step]), log_every=1),
        stops=log.stops(),
    )
    lefts = [update.seconds_left for update in log.updates]
    assert lefts[1] >= 20 * microbatch_s and lefts[2] >= 10 * microbatch_s and lefts[3] == 0


def test_after_each_update_and_not_each_microbatch_the_stage_has_its_turn() -> None:
    torch.manual_seed(0)
    model, calls = Transformer(CONFIG), []
    fit(
        model,
        batches(),
        loss_fn=next_token_loss,
        optimizer=adamw(model, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8),
        learning_rate=lambda position: 1e-3,
        options=FitOptions(steps=5, accumulation=3),
        stops=Log().stops(),
        after_update=lambda is_left_out: calls.append(model.norm.weight.grad is None),
    )
    assert calls == [True] * 5, "the gradients are gone by then"


def test_routing_under_bf16_is_that_of_fp32_on_the_same_inputs() -> None:
    """A router's bias moves by a thousandth, and its scores differ by less between experts: bf16 would round both."""
    model = Transformer(ModelConfig.preset("deepseek-tiny", n_layers=2, vocab_size=32, n_mtp_layers=0))
    mixture = model.layers[1].ffn
    assert isinstance(mixture, MoE)
    seen: list[tuple[Tensor, Tensor]] = []
    original = mixture.router.scores

    def scores(x: Tensor) -> Tensor:
        seen.append((x.detach(), original(x)))
        return seen[-1][1]

    mixture.router.scores = scores  # type: ignore[method-assign]
    objective(model, next_token_loss, dtype=torch.bfloat16)(next(batches())).backward()
    ((x, found),) = seen
    assert x.dtype == torch.bfloat16 and found.dtype == torch.float32
    assert torch.equal(found, original(x.float()))
    rounded = torch.nn.functional.linear(x.float(), mixture.router.weight.bfloat16().float()).sigmoid()
    assert not torch.equal(found, rounded), "the weight's lower bits count"
    gradient = mixture.router.weight.grad
    assert gradient is not None and not torch.equal(gradient, gradient.bfloat16().float())
