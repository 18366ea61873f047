"""AdamW inside the backward pass: the bits of a step behind it, and never all gradients at once."""

import json
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint, find_lr, in_backward, metrics, pretrain
from gptrs.train.config import GuardSettings, PretrainConfig, load
from gptrs.train.distributed import World
from gptrs.train.guard import Event, Guard, step_on_device
from gptrs.train.in_backward import step_in_backward
from gptrs.train.loop import FitOptions, Stops, Update, fit
from gptrs.train.optim import adamw
from gptrs.train.parts import Parts
from gptrs.train.spread import Spread
from test_pretrain import text

__all__ = ["text"]  # the fixture

torch.set_num_threads(1)
CPU = torch.device("cpu")
GPT = ModelConfig(vocab_size=32, max_seq_len=8, dim=16, n_layers=3, n_heads=2, inter_dim=32)
DEEPSEEK = ModelConfig.preset(
    "deepseek-tiny", vocab_size=32, dim=16, n_layers=3, n_heads=2, inter_dim=24, kv_lora_rank=8, moe_inter_dim=12
)
MADE = torch.tensor(0.0)  # as the guard says it


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor
    number: int


def batches() -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(0)
    for number in range(100):
        ids = torch.randint(32, (4, 9), generator=draw)
        yield Batch(ids[:, :-1], ids[:, 1:], number)


class Run:
    """One fit with what it told. `bad`: numbers of batches whose loss is no number; `spiky`: is 1.5 times as large;
    `steep`: has a gradient that is none."""

    def __init__(
        self,
        config: ModelConfig = GPT,
        *,
        in_backward: bool,
        every: int = 0,
        dtype: torch.dtype = torch.float32,
        steps: int = 6,
        bad: tuple[int, ...] = (),
        spiky: tuple[int, ...] = (),
        steep: tuple[int, ...] = (),
        guard: GuardSettings = GuardSettings(),  # noqa: B008
        is_compiled: bool = False,
    ) -> None:
        self.model = Transformer(config, seed=3)
        self.model.checkpoints_blocks = every
        self.optimizer = optimizer(self.model)
        self.updates: list[Update] = []
        self.events: list[Event] = []
        self.saved: list[int] = []

        def loss_fn(model: nn.Module, batch: Batch, totals: Tensor | None = None) -> Tensor:
            loss: Tensor = model.loss(batch.tokens, batch.targets, totals=totals)  # type: ignore[operator]
            if batch.number in steep:  # sqrt(0): a value, and a slope that is no number
                loss = loss + (next(model.parameters()).sum() * 0).sqrt()
            return loss * (math.nan if batch.number in bad else 1.5 if batch.number in spiky else 1.0)

        fit(
            self.model,
            batches(),
            loss_fn=loss_fn,
            optimizer=self.optimizer,
            learning_rate=lambda position: 1e-2 / (1 + position.step),
            options=FitOptions(
                steps=steps, clip=0.0, in_backward=in_backward, dtype=dtype, log_every=1, checkpoint_every=1
            ),
            stops=Stops(
                log=self.updates.append,
                save=lambda position: self.saved.append(position.step),
                evaluate=lambda position, is_last: None,
                sample=lambda position, is_last: None,
                tell=self.events.append,
            ),
            guard=Guard(guard, device=CPU),
            spread=Spread(self.model, World.alone(CPU), dtype=dtype, is_compiled=is_compiled, is_whole=False),
        )


def optimizer(model: nn.Module) -> torch.optim.AdamW:
    return adamw(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)


def assert_equal(one: Run, other: Run) -> None:
    """Weights, moments and their counters, to the bit, and the losses on the way."""
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q), name
        state, wanted = one.optimizer.state.get(p, {}), other.optimizer.state.get(q, {})
        assert state.keys() == wanted.keys(), name
        for key in state:
            assert torch.equal(state[key], wanted[key]), (name, key)
    assert [u.loss for u in one.updates] == [u.loss for u in other.updates]


# ── the same steps ──


def test_the_worked_example() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(2.0)
    step = adamw(model, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8)
    norm = step_in_backward(model(torch.tensor([[3.0]]).double()).sum(), step, MADE)
    # as test_optim's: both moments, corrected for their start at zero, are the gradient and its square
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3.0 / (3.0 + 1e-8), rel=1e-12)
    assert norm.item() == 3.0 and model.weight.grad is None
    assert len(step.param_groups) == 1 and step.param_groups[0]["params"] == [model.weight]


@pytest.mark.parametrize("config", [GPT, DEEPSEEK], ids=["gpt, tied", "deepseek"])
@pytest.mark.parametrize(
    ("every", "dtype"), [(0, torch.float32), (1, torch.float32), (2, torch.bfloat16)], ids=["plain", "again", "bf16"]
)
def test_weights_and_moments_are_those_of_a_step_behind_backward(
    config: ModelConfig, every: int, dtype: torch.dtype
) -> None:
    """With a tied head, experts and a further token, with blocks that are computed again, and from rounded weights."""
    inside, behind = (Run(config, in_backward=where, every=every, dtype=dtype) for where in (True, False))
    assert len(inside.updates) == 6 and inside.events == []
    assert_equal(inside, behind)
    norms, wanted = ([u.grad_norm for u in run.updates] for run in (inside, behind))
    assert norms == pytest.approx(wanted, rel=1e-6)


def test_a_shared_weight_moves_once_and_one_without_gradient_stays() -> None:
    model = Transformer(GPT, seed=3)
    unused = nn.Parameter(torch.ones(3))
    model.register_parameter("unused", unused)
    step = optimizer(model)
    batch = next(batches())
    step_in_backward(model.loss(batch.tokens, batch.targets), step, MADE)
    assert model.head is None, "the embedding is the head"
    assert step.state[model.embed.token.weight]["step"].item() == 1
    assert unused not in step.state and unused.tolist() == [1.0] * 3


def test_a_frozen_weight_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    step_in_backward(model(torch.ones(1, 2)).sum(), torch.optim.AdamW(model.parameters(), lr=0.1), MADE)
    assert [torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)] == [True, False, False, False]


def test_hooks_and_groups_are_gone_behind_an_error() -> None:
    model = nn.Linear(2, 2)
    step = optimizer(model)
    groups = step.param_groups

    def fail(*_: Any) -> None:
        raise RuntimeError("in the step")

    handle = step.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the step"):
        step_in_backward(model(torch.ones(1, 2)).sum(), step, MADE)
    handle.remove()
    assert step.param_groups is groups and [len(group["params"]) for group in groups] == [1, 1]
    model.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None, "no hook takes it"


# ── the gradients ──


def most_alive(model: Transformer, *, in_backward: bool) -> tuple[int, int]:
    """The most bytes of whole gradients that are there at once in a backward pass, and those of all."""
    step, batch = optimizer(model), next(batches())
    found: list[weakref.ref[Tensor]] = []
    most = 0

    def look(p: Tensor) -> None:
        nonlocal most
        assert p.grad is not None
        found.append(weakref.ref(p.grad))
        most = max(most, sum(g.nbytes for ref in found if (g := ref()) is not None))

    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(look)
    loss = model.loss(batch.tokens, batch.targets)
    if in_backward:
        step_in_backward(loss, step, MADE)
        assert all(p.grad is None for p in model.parameters())
    else:
        loss.backward()  # type: ignore[no-untyped-call]
    return most, sum(p.nbytes for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [GPT, DEEPSEEK], ids=["gpt, tied", "deepseek"])
def test_gradients_are_never_all_there(config: ModelConfig) -> None:
    most, of_all = most_alive(Transformer(config), in_backward=False)
    assert most == of_all, "behind backward they are"
    most, of_all = most_alive(Transformer(config), in_backward=True)
    assert most <= max(p.nbytes for p in Transformer(config).parameters()) < of_all / 5


# ── updates that cannot be trusted ──


def test_a_loss_that_is_no_number_leaves_no_trace_but_an_event() -> None:
    run = Run(in_backward=True, steps=7, bad=(3,))
    assert_equal(run, Run(in_backward=False, steps=7, bad=(3,)))
    assert all(state["step"].item() == 6 for state in run.optimizer.state.values())
    assert run.saved == [1, 2, 3, 5, 6, 7]
    (event,) = run.events
    assert event.text == "loss nan, gradient norm nan at step 4: the update was left out"


def test_a_spike_is_left_out_by_its_loss_before_the_step() -> None:
    guard = GuardSettings(spike="skip", spike_warmup=4)
    run = Run(in_backward=True, steps=7, spiky=(5,), guard=guard)
    assert_equal(run, Run(in_backward=False, steps=7, spiky=(5,), guard=guard))
    assert [(event.step, event.name) for event in run.events] == [(6, "spike")]


def test_steps_are_left_out_on_the_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of CUDA, by the CPU's kernel."""
    monkeypatch.setattr(in_backward, "make_step", step_on_device)
    run = Run(in_backward=True, steps=7, bad=(3,))
    assert_equal(run, Run(in_backward=False, steps=7, bad=(3,)))
    assert not hasattr(run.optimizer, "found_inf")


@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_the_norm_is_found_and_gradients_are_freed_where_steps_are_left_out(flag: float) -> None:
    model, batch = Transformer(GPT, seed=3), next(batches())
    before = [p.clone() for p in model.parameters()]
    norm = step_in_backward(model.loss(batch.tokens, batch.targets), optimizer(model), torch.tensor(flag))
    assert norm > 0 and all(p.grad is None for p in model.parameters())
    kept = [torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True)]
    assert all(kept) if flag else not any(kept)


def test_a_gradient_that_is_no_number_behind_a_loss_that_is_ends_a_run_without_checkpoint() -> None:
    with pytest.raises(
        ValueError,
        match=r"expected a finite gradient, got loss \d.*norm nan at step 4: the update was made, inside .* no "
        r"checkpoint to go back to; hint: optim.in_backward=false leaves",
    ):
        Run(in_backward=True, steps=7, steep=(3,))
    Run(in_backward=False, steps=7, steep=(3,))
    with pytest.raises(ValueError, match=r"got loss \d.* at step 4: the update was made, and \[guard\] says stop"):
        Run(in_backward=True, steps=7, steep=(3,), guard=GuardSettings(nonfinite="stop"))
    with pytest.raises(ValueError, match=r"expected a finite loss and gradient at the first step, got loss \d"):
        Run(in_backward=True, steps=7, steep=(0,))


# ── refusals ──

TINY = (
    *("run.threads=1", "tokenizer.vocab_size=280", "model.dim=16", "model.n_layers=1", "model.n_heads=2"),
    *("model.dropout=0.1", "train.seq_len=16", "train.steps=12", "train.global_batch=4", "train.micro_batch=4"),
    *("train.log_every=1", "train.eval_every=6", "train.eval_rows=4", "train.checkpoint_every=5", "optim.lr=1e-2"),
    *("schedule.warmup_steps=2", "sample.max_new_tokens=3", "optim.clip=0"),
)
INSIDE = "optim.in_backward=true"


def tiny(text: Path, directory: Path, *overrides: str) -> PretrainConfig:
    return load("shakespeare_cpu", [*TINY, f"data.text={text}", f"run.dir={directory}", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.clip=1"], r"optim.in_backward moves .* got optim.clip=1.0 .*hint: optim.clip=0"),
        (["optim.name=muon"], r"optim.in_backward is AdamW's, optim.name is muon .*hint: optim.name=adamw"),
        (["train.micro_batch=2"], r"one microbatch for an update, got 2 .*hint: train.micro_batch=4 or"),
        (
            ["train.micro_batch=2", "train.batch_start=2", "train.batch_warmup_steps=5"],
            r"one microbatch for an update, got 2 ",
        ),
        (["log.stats_every=5"], r"frees the gradients .*got log.stats_every=5 .*hint: log.stats_every=0"),
        (
            ["run.compile=true", "speed.compile=whole"],
            r"speed.compile=whole makes all at once.*hint: speed.compile=blocks",
        ),
        (
            ["run.compile=true", "speed.compile=whole", "speed.cuda_graphs=true"],
            r"hint: speed.compile=blocks, without speed.cuda_graphs",
        ),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    tiny(tmp_path, tmp_path / "run", *overrides)
    with pytest.raises(ValueError, match=message.replace(" .*hint", ".*hint")):
        tiny(tmp_path, tmp_path / "run", INSIDE, *overrides)


def test_ranks_other_optimizers_and_options_are_refused_by_the_loop() -> None:
    """A whole run says so of its ranks before it begins: test_bad_ranks."""
    model = Transformer(GPT)
    spread = Spread(model, World.alone(CPU), dtype=torch.float32)
    spread.world = replace(spread.world, size=2)
    with pytest.raises(ValueError, match=r"needs a single process, got 2 ranks; hint: optim\.in_backward=false"):
        start(model, optimizer(model), spread=spread)
    with pytest.raises(ValueError, match=r"optim.in_backward needs torch.optim.AdamW, got SGD; hint: "):
        start(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"of one microbatch that are not clipped, got clip=1.0, accumulation=1"):
        FitOptions(steps=1, in_backward=True)
    growing = FitOptions(steps=9, in_backward=True, clip=0.0, microbatches_before=lambda step: step * step)
    assert growing.at(0).accumulation == 1
    with pytest.raises(ValueError, match=r"got clip=0.0, accumulation=3"):
        growing.at(1)


def start(model: Transformer, step: torch.optim.Optimizer, **given: Any) -> None:
    fit(
        model,
        batches(),
        loss_fn=lambda *_: pytest.fail("no update may be made"),
        optimizer=step,
        learning_rate=lambda position: 0.1,
        options=FitOptions(steps=1, clip=0.0, in_backward=True),
        stops=Stops(log=print, save=print, evaluate=print, sample=print),
        **given,
    )


# ── whole runs ──


def outcome(directory: Path) -> list[object]:
    """Losses and evaluations, and the bytes of the last checkpoint."""
    last = sorted((directory / "checkpoints").glob("step-*"))[-1]
    lines = metrics.read(directory / "metrics.jsonl")
    found: list[object] = [(line["step"], line.get("loss"), line.get("val_loss")) for line in lines if "lr" in line
                           or line["kind"] == "eval"]  # fmt: skip
    return [*found, *((last / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer"))]


class KillError(Exception):
    """Ends a run as a kill would: nothing is saved."""


def killed(monkeypatch: pytest.MonkeyPatch, config: PretrainConfig, *, step: int) -> None:
    original = pretrain.Session._log

    def log(self: pretrain.Session, update: Update) -> None:
        original(self, update)
        if update.step == step:
            raise KillError

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Session, "_log", log)
        with pytest.raises(KillError):
            pretrain.run(config)


EXPERTS = (
    *("model.preset=deepseek-tiny", "model.kv_lora_rank=8", "model.inter_dim=24", "model.moe_inter_dim=8"),
    *("model.n_layers=2", "model.dropout=0", "speed.checkpoint_blocks=1"),
)


@pytest.mark.parametrize("model", [(), EXPERTS], ids=["gpt", "deepseek"])
def test_a_run_goes_on_from_either_with_the_same_bits(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: tuple[str, ...]
) -> None:
    given = (*model, "train.ema=0.9", "train.steps=9")
    pretrain.run(tiny(text, tmp_path / "straight", *given))
    wanted = outcome(tmp_path / "straight")
    for first, then in (((), (INSIDE,)), ((INSIDE,), ())):
        directory = tmp_path / f"run-{len(first)}"
        killed(monkeypatch, tiny(text, directory, *given, *first), step=8)
        with pytest.raises(ValueError, match=r"--allow optim\.in_backward goes on"):
            pretrain.run(tiny(text, directory, *given, *then))
        pretrain.run(tiny(text, directory, *given, *then), allow=["optim.in_backward"])
        assert outcome(directory) == wanted


def steep(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Gives a microbatch, counted from 0, a gradient that is no number."""
    original, n = Parts.loss, 0

    def loss(self: Parts, model: nn.Module, *given: Any) -> Tensor:
        nonlocal n
        found = original(self, model, *given)
        if model.training:
            n += 1
            if n == number + 1:
                return found + (next(model.parameters()).sum() * 0).sqrt()
        return found

    monkeypatch.setattr(Parts, "loss", loss)


def test_a_spoilt_update_takes_a_run_back_to_its_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steep(monkeypatch, 7)
    pretrain.run(tiny(text, tmp_path / "run", INSIDE))
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    (event,) = [line for line in lines if line["kind"] == "event"]
    assert event["text"] == "back to step 5, past samples 20 to 31"
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    newest = checkpoint.find(tmp_path / "run" / "checkpoints").newest
    assert newest is not None and checkpoint.read_state(newest)["left_out"] == [[20, 32]]


def test_a_search_for_the_rate_ends_at_a_spoilt_update(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steep(monkeypatch, 70)
    with pytest.warns(UserWarning, match="gradient norm nan at step 71: the update was made"):
        found = find_lr.find_rate(tiny(text, tmp_path / "run", INSIDE))
    losses = json.loads((tmp_path / "run-find-lr" / "find-lr.json").read_text())["losses"]
    assert 1e-5 < found.lr < 1 and len(losses) == 70 and max(losses) < 10


def test_a_model_fits_without_its_gradients(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and two moments are three times the weights; gradients would be a fourth."""
    n_bytes = 4 * sum(p.numel() for p in pretrain_model(text).parameters())
    monkeypatch.setattr(metrics, "memory", lambda _: (0, int(3.5 * n_bytes)))
    with pytest.raises(MemoryError, match="whose weights, gradients and optimizer take"):
        pretrain.run(tiny(text, tmp_path / "behind"))
    pretrain.run(tiny(text, tmp_path / "inside", INSIDE, "train.steps=1"))
    monkeypatch.setattr(metrics, "memory", lambda _: (0, int(2.5 * n_bytes)))
    with pytest.raises(MemoryError, match="whose weights and optimizer take"):
        pretrain.run(tiny(text, tmp_path / "small", INSIDE))


def pretrain_model(text: Path) -> Transformer:
    config = tiny(text, text.parent / "none")
    return Transformer(config.model.resolve(vocab_size=280, seq_len=config.train.seq_len))


@pytest.mark.long
@pytest.mark.parametrize("config", [GPT, DEEPSEEK], ids=["gpt, tied", "deepseek"])
def test_compiled_blocks_take_the_same_steps(config: ModelConfig) -> None:
    torch._dynamo.reset()
    inside, behind = (Run(config, in_backward=where, is_compiled=True) for where in (True, False))
    assert_equal(inside, behind)


def test_freed_memory_goes_back_once_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(in_backward, "_malloc_trim", lambda: calls.append)
    model = nn.Linear(2, 2)
    step_in_backward(model(torch.ones(1, 2)).sum(), optimizer(model), MADE)
    assert calls == [0]
    monkeypatch.setattr(in_backward, "_malloc_trim", lambda: None)  # another library has no such call
    step_in_backward(model(torch.ones(1, 2)).sum(), optimizer(model), MADE)
    assert calls == [0]
