"""The guard: what becomes of an update whose loss or gradient cannot be trusted."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint, looks, pretrain
from gptrs.train.config import GuardSettings, OptimSettings, PretrainConfig, load
from gptrs.train.guard import Event, Guard, step_on_device
from gptrs.train.loop import FitOptions, Stops, Update, fit
from gptrs.train.optim import adamw, optimizer_of
from gptrs.train.parts import Parts

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=32, max_seq_len=8, dim=16, n_layers=1, n_heads=2, inter_dim=32)
CPU = torch.device("cpu")


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor
    factor: float = 1.0  # of the loss


def loss_fn(model: nn.Module, batch: Batch, totals: Tensor | None = None) -> Tensor:
    return batch.factor * model.loss(batch.tokens, batch.targets, totals=totals)  # type: ignore[operator,no-any-return]


def batches(factors: dict[int, float], *, left_out: tuple[int, ...] = ()) -> Iterator[Batch]:
    """Random batches, some with a factor on their loss, some not at all."""
    generator = torch.Generator().manual_seed(0)
    for number in itertools.count():
        ids = torch.randint(32, (4, 9), generator=generator)
        if number not in left_out:
            yield Batch(ids[:, :-1], ids[:, 1:], factors.get(number, 1.0))


class Run:
    """One fit with what it told."""

    def __init__(self, source: Iterator[Batch], *, steps: int = 8, fused: bool = True, **guard: object) -> None:
        self.updates: list[Update] = []
        self.events: list[Event] = []
        self.saved: list[int] = []
        self.model = Transformer(CONFIG)
        self.optimizer = adamw(self.model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
        if not fused:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, betas=(0.9, 0.99))
        self.guard = Guard(GuardSettings(**guard), device=CPU)  # type: ignore[arg-type]
        fit(
            self.model,
            source,
            loss_fn=loss_fn,
            optimizer=self.optimizer,
            learning_rate=lambda position: 1e-2,
            options=FitOptions(steps=steps, log_every=1, checkpoint_every=1),
            stops=Stops(
                log=self.updates.append,
                save=lambda position: self.saved.append(position.step),
                evaluate=lambda position, is_last: None,
                sample=lambda position, is_last: None,
                tell=self.events.append,
            ),
            guard=self.guard,
        )

    def tensors(self) -> list[Tensor]:
        return [
            *self.model.parameters(),
            *(t for p in self.model.parameters() for t in self.optimizer.state[p].values()),
        ]


def equal(one: Run, other: Run) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def test_a_healthy_run_is_that_of_the_bare_optimizer_to_the_bit() -> None:
    guarded = Run(batches({}), spike="skip")
    model = Transformer(CONFIG).train()
    optimizer = adamw(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
    for batch in itertools.islice(batches({}), 8):
        loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert guarded.events == [] and guarded.saved == list(range(1, 9))
    for name, one in model.named_parameters():
        assert torch.equal(one, guarded.model.get_parameter(name)), name


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_bad_batch_leaves_no_trace_but_an_event(factor: float, fused: bool) -> None:
    run = Run(batches({3: factor}), fused=fused)
    without = Run(batches({}, left_out=(3,)), steps=7, fused=fused)
    assert equal(run, without), "weights, moments and their counters"
    assert [update.step for update in run.updates] == [1, 2, 3, 5, 6, 7, 8] and run.saved == [1, 2, 3, 5, 6, 7, 8]
    (event,) = run.events
    assert (event.step, event.name) == (4, "not finite")
    assert event.text == f"loss {factor}, gradient norm nan at step 4: the update was left out"


def test_a_run_that_begins_with_no_number_ends_at_its_first_step() -> None:
    with pytest.raises(
        ValueError, match=r"expected a finite loss and gradient at the first step, got loss nan.*hint: "
    ):
        Run(batches({0: math.nan}))


def test_too_many_in_a_row_end_the_run() -> None:
    with pytest.raises(ValueError, match=r"got 3 in a row that are none, the last with loss nan.*at step 5: .*hint: "):
        Run(batches({2: math.nan, 3: math.nan, 4: math.nan}), max_in_a_row=3)
    Run(batches({2: math.nan, 3: math.nan, 5: math.nan}), max_in_a_row=3)


def test_a_last_update_that_is_left_out_ends_a_good_run_and_two_do_not() -> None:
    run = Run(batches({7: math.nan}))
    assert equal(run, Run(batches({}), steps=7)) and run.saved == list(range(1, 9))
    (event,) = run.events
    assert event.text == "loss nan, gradient norm nan at step 8: the update was left out"
    with pytest.raises(ValueError, match=r"expected a finite loss at the last step, got nan; hint: "):
        Run(batches({6: math.nan, 7: math.nan}))


def test_the_policy_stop_ends_the_run_before_anything_is_saved() -> None:
    with pytest.raises(ValueError, match=r"got loss nan, .* at step 4: .*and \[guard\] says stop; hint"):
        Run(batches({3: math.nan}), nonfinite="stop")


def test_a_spike_is_told_and_changes_nothing_by_default() -> None:
    spiky = {6: 1.5}
    run = Run(batches(spiky), spike_warmup=4)
    assert equal(run, Run(batches(spiky), spike="off"))
    (event,) = run.events
    assert (event.step, event.name) == (7, "spike") and "the update was made" in event.text
    assert event.values["loss"] == pytest.approx(run.updates[6].loss)


def test_a_spike_can_be_left_out() -> None:
    run = Run(batches({6: 1.5}), spike="skip", spike_warmup=4)
    assert equal(run, Run(batches({}, left_out=(6,)), steps=7)) and run.events[0].name == "spike"
    assert 7 not in run.saved and 8 in run.saved
    with pytest.raises(ValueError, match="says stop"):
        Run(batches({6: 1.5}), spike="stop", spike_warmup=4)


def test_mean_and_deviation_are_those_of_the_losses() -> None:
    guard = Guard(GuardSettings(spike_window=100), device=CPU)
    losses = [3.0, 2.5, 2.75, 2.0, 2.25]
    for loss in [*losses[:3], math.nan, *losses[3:]]:
        guard.judge(torch.tensor(loss), torch.tensor(1.0))
    state = guard.state_dict()
    assert state["mean"] == pytest.approx(sum(losses) / 5) and state["count"] == 5
    assert state["variance"] == pytest.approx(sum((x - sum(losses) / 5) ** 2 for x in losses) / 5)
    other = Guard(GuardSettings(), device=CPU)
    other.load_state_dict(json.loads(json.dumps(state)))
    assert other.state_dict() == state


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_fused_optimizer_leaves_its_step_out_on_the_device(name: Literal["adamw", "muon"]) -> None:
    """The way of CUDA, by the CPU's kernel: weights, moments and counters stay, and other steps keep their bits."""
    draw = torch.Generator().manual_seed(0)
    models = [Transformer(CONFIG), Transformer(CONFIG)]
    flagged, plain = (optimizer_of(model, OptimSettings(name=name, lr=0.1)) for model in models)
    assert getattr(flagged, "_step_supports_amp_scaling", False)
    for i in range(5):
        is_left_out = i in (0, 3)  # the first too, before there is any state
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = one.grad.clone()
            if is_left_out:
                one.grad[..., 0] = math.nan
        step_on_device(flagged, torch.tensor(float(is_left_out)))
        if not is_left_out:
            plain.step()
    assert not hasattr(flagged, "found_inf")
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
        assert flagged.state[one].keys() == plain.state[other].keys()
        for key, value in flagged.state[one].items():
            assert torch.equal(value, plain.state[other][key]), key


def test_an_update_judged_by_its_loss_alone_is_spoilt_by_its_norm_or_was_left_out() -> None:
    """Rows: loss, norm, the policy for spikes; what a reading says of it."""
    for loss, norm, spike, is_rollback, text in (
        (1.0, 2.0, "tell", False, None),
        (math.nan, math.nan, "tell", False, "loss nan, gradient norm nan at step 7: the update was left out"),
        (math.nan, 2.0, "tell", False, "loss nan, gradient norm 2 at step 7: the update was left out"),
        (1.0, math.inf, "tell", True, "loss 1.0000, gradient norm inf at step 7: the update was made"),
        (9.0, 2.0, "skip", False, "loss 9.0000, gradient norm 2 at step 7: the update was left out"),
        (9.0, math.nan, "skip", False, "loss 9.0000, gradient norm nan at step 7: the update was left out"),
        (9.0, math.nan, "tell", True, "loss 9.0000, gradient norm nan at step 7: the update was made"),
    ):
        guard = Guard(GuardSettings(spike=spike, spike_warmup=2), device=CPU)  # type: ignore[arg-type]
        for _ in range(5):
            guard.judge(torch.tensor(1.0), torch.tensor(1.0))
        is_left_out = guard.judge(torch.tensor(loss))
        guard.judge_norm(torch.tensor(norm), is_left_out)
        reading = guard.read(7, lr=0.1)
        assert [event.text for event in reading.events] == ([text] if text else [])
        assert reading.is_rollback == (reading.spoilt is not None) == is_rollback
        assert reading.is_sound == (text is None) and reading.error is None


def test_what_follows_a_spoilt_update_does_not_count() -> None:
    """With lines far apart the updates behind it have losses that are none: ten in a row would end the run."""
    guard = Guard(GuardSettings(), device=CPU)
    for number in range(10):
        loss = torch.tensor(1.0 if number == 0 else math.nan)
        is_left_out = guard.judge(loss)
        guard.judge_norm(torch.tensor(math.nan), is_left_out)
    reading = guard.read(20, lr=0.1)
    assert reading.is_rollback and reading.error is None and reading.spoilt and not reading.is_sound
    assert [event.step for event in reading.events] == [11]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("spike_sigmas", 0.0, "guard.spike_sigmas must be positive, got 0.0"),
        ("max_in_a_row", 0, "guard.max_in_a_row must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(key: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardSettings(**{key: value})  # type: ignore[arg-type]


# ── a whole run ──

TINY = (
    *("run.threads=1", "tokenizer.vocab_size=280", "model.dim=16", "model.n_layers=1", "model.n_heads=2"),
    *("model.dropout=0.1", "train.seq_len=16", "train.steps=16", "train.global_batch=4", "train.micro_batch=2"),
    *("train.log_every=1", "train.eval_every=5", "train.eval_rows=4", "train.checkpoint_every=5", "optim.lr=1e-2"),
    *("schedule.warmup_steps=2", "sample.max_new_tokens=3"),
)


def tiny(tmp_path: Path, name: str, *overrides: str) -> PretrainConfig:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} a true friend accepts you as you are\n" for i in range(120)))
    return load("shakespeare_cpu", [*TINY, f"data.text={text}", f"run.dir={tmp_path / name}", *overrides])


def poison(monkeypatch: pytest.MonkeyPatch, *samples: int) -> list[int]:
    """Makes the loss of microbatches no number; returns the list that each microbatch's first sample goes into."""
    original, seen = Parts.loss, []

    def loss(self: Parts, model: nn.Module, rows: object, totals: Tensor) -> Tensor:
        seen.append(rows.sample)  # type: ignore[attr-defined]
        found = original(self, model, rows, totals)  # type: ignore[arg-type]
        return found * (math.nan if seen[-1] in samples else 1.0)

    monkeypatch.setattr(Parts, "loss", loss)
    return seen


def lines(directory: Path) -> list[dict[str, object]]:
    timed = ("time_s", "tokens_per_s", "mfu", "memory_bytes")
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_a_rollback_goes_past_the_samples_and_a_kill_after_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = poison(monkeypatch, 26)  # the second microbatch of update 7
    pretrain.run(tiny(tmp_path, "run", "guard.nonfinite=rollback"))
    assert seen == [*range(0, 28, 2), *range(28, 72, 2)], "each sample once, and none again"
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found if line["kind"] == "train"] == list(range(1, 17))
    (event,) = [line for line in found if line["kind"] == "event"]
    assert event["event"] == "rollback" and event["samples"] == [20, 28]
    assert event["text"] == "back to step 5, past samples 20 to 27" and event["text"] in capsys.readouterr().out
    newest = checkpoint.find(tmp_path / "run" / "checkpoints").newest
    assert newest is not None and checkpoint.read_state(newest)["left_out"] == [[20, 28]]

    class KillError(Exception):
        pass

    def kill(self: object, update: Update) -> None:
        original(self, update)  # type: ignore[arg-type]
        if update.step == 9 and len(seen) > 18:
            raise KillError

    original = pretrain.Session._log
    with monkeypatch.context() as context:
        context.setattr(pretrain.Session, "_log", kill)
        seen.clear()
        with pytest.raises(KillError):
            pretrain.run(tiny(tmp_path, "again", "guard.nonfinite=rollback"))
    seen.clear()
    pretrain.run(tiny(tmp_path, "again", "guard.nonfinite=rollback"))
    assert seen == [*range(20, 28, 2), *range(28, 72, 2)], "from the checkpoint, into the trouble, past it again"
    assert lines(tmp_path / "again") == found


def test_a_last_update_is_rolled_back_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = poison(monkeypatch, 62)  # the second microbatch of update 16
    pretrain.run(tiny(tmp_path, "run", "guard.nonfinite=rollback"))
    assert seen == list(range(0, 68, 2)), "update 16 again, with the samples behind"
    assert [line["step"] for line in lines(tmp_path / "run") if line["kind"] == "train"] == list(range(1, 17))


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_that_evaluate_to_no_number_are_no_result(tmp_path: Path, steps: int) -> None:
    """The one update that is made leaves weights of 1e30, the second is left out."""
    rates = ("optim.lr=1e30", "schedule.warmup_steps=0", "schedule.min_lr=1e30")
    config = tiny(tmp_path, "run", f"train.steps={steps}", *rates)
    for _ in range(2):  # the same again from its checkpoint
        with pytest.raises(
            ValueError, match="expected a finite loss on held-out text at the last step, got nan; hint: "
        ):
            pretrain.run(config)
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_evaluation_on_the_way_that_gives_no_number_is_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, factors = looks.mean_loss, iter([math.nan, math.inf])

    def loss(*args: object, **options: object) -> tuple[float, int]:
        found, n_targets = original(*args, **options)  # type: ignore[arg-type]
        return found * next(factors, 1.0), n_targets

    monkeypatch.setattr(looks, "mean_loss", loss)
    pretrain.run(tiny(tmp_path, "run", "train.eval_every=4"))
    found = lines(tmp_path / "run")
    events = [(line["step"], line["event"]) for line in found if line["kind"] == "event"]
    assert events == [(4, "no held-out loss"), (8, "no held-out loss")]
    evaluated = [(line["step"], math.isfinite(line["val_loss"])) for line in found if line["kind"] == "eval"]  # type: ignore[arg-type]
    assert evaluated == [(12, True), (16, True)]
    assert (tmp_path / "run" / "result.json").exists()


def test_rollbacks_end_when_they_do_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, *range(24, 400, 2))
    with pytest.raises(ValueError, match=r"after going back to step 5 2 times, got trouble again; hint: a lower"):
        pretrain.run(tiny(tmp_path, "run", "guard.nonfinite=rollback", "guard.max_rollbacks=2"))


def test_without_a_checkpoint_the_update_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 8)
    pretrain.run(tiny(tmp_path, "run", "guard.nonfinite=rollback"))
    events = [line for line in lines(tmp_path / "run") if line["kind"] == "event"]
    assert [(line["step"], line["event"]) for line in events] == [(3, "not finite"), (3, "no rollback")]


def test_a_router_s_bias_stays_where_an_update_is_left_out() -> None:
    deepseek = ModelConfig.preset(
        "deepseek-tiny", vocab_size=32, dim=16, n_layers=2, n_heads=2, inter_dim=24, kv_lora_rank=8, moe_inter_dim=8
    )
    model = Transformer(deepseek)
    parts = Parts(mtp_weight=0.3, balance_weight=0.0, bias_speed=0.1, attention="stream", eot_id=None)
    mixtures = [mixture for _, mixture in model.experts()]
    for flag, is_moved in ((1.0, False), (0.0, True)):
        before = [mixture.router.bias.clone() for mixture in mixtures if mixture.router.bias is not None]
        parts.loss(model, next(batches({}))).backward()
        parts.after_update(mixtures, torch.tensor(flag))
        after = [mixture.router.bias for mixture in mixtures if mixture.router.bias is not None]
        assert after and all(torch.equal(a, b) != is_moved for a, b in zip(before, after, strict=True))
