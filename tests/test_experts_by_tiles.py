"""Experts whose products the core makes, one expert a thread: values, gradients, and steps made with the gradient."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gptrs import _core
from gptrs.model import ModelConfig, Transformer, expert_by_expert, matmul, moving
from gptrs.model.moving import Step
from gptrs.train.in_backward import step_in_backward
from gptrs.train.optim import adamw

HAS_TILES = pytest.mark.skipif(not _core.can_multiply(), reason="this processor has no AMX")
MADE = torch.tensor(0.0)  # as the guard says it
SIZES = {"dim": 64, "moe_inter_dim": 64, "inter_dim": 96, "n_routed_experts": 4, "n_activated_experts": 2}


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each processor had tiles: without them the core is right, too, and slow."""
    monkeypatch.setattr(expert_by_expert, "has_tiles", lambda x: x.dtype == torch.float32 and matmul._is_on)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Layer:
    """Experts with tokens, of which the second one has none."""

    def __init__(self, N: int = 70, C: int = 40, m: int = 24, A: int = 2, E: int = 5) -> None:
        self.x, self.dy, self.weights = draw(N, C, seed=1), draw(N, C, seed=2), draw(N, A, seed=3).sigmoid()
        self.up, self.down = draw(E, 2 * m, C, seed=4), draw(E, C, m, seed=5)
        scores = draw(N, E, seed=6)
        scores[:, 1] = -torch.inf
        ids = scores.topk(A).indices
        self.order, self.loads = ids.flatten().argsort(stable=True), torch.bincount(ids.flatten(), minlength=E)

    def given(self, dtype: torch.dtype) -> list[Tensor]:
        wide = [each.to(dtype) for each in (self.x, self.up, self.down, self.weights)]
        return [*wide, self.order, self.loads]

    def run(self, *, by_tiles: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        given = self.given(dtype)
        y, kept = torch.ops.gptrs.experts(*given, True, by_tiles)
        gradients = torch.ops.gptrs.experts_backward(self.dy.to(dtype), *given, kept, True, True, by_tiles)
        return [y, *gradients]


@pytest.mark.parametrize("shape", [{}, {"N": 300, "C": 130, "m": 65, "A": 3}, {"N": 1, "A": 1}, {"N": 0}], ids=str)
def test_values_and_gradients_are_as_exact_as_those_of_the_loop(shape: dict[str, int]) -> None:
    layer = Layer(**shape)
    exact = layer.run(by_tiles=False, dtype=torch.float64)
    for found, loop, wanted in zip(layer.run(by_tiles=True), layer.run(by_tiles=False), exact, strict=True):
        assert found.shape == wanted.shape
        largest = wanted.abs().max() if wanted.numel() else 0.0
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=float(3e-6 * largest))
        torch.testing.assert_close(loop.double(), wanted, rtol=0, atol=float(3e-6 * largest))


def test_nothing_is_kept_or_made_that_is_not_asked_for() -> None:
    layer = Layer()
    given = layer.given(torch.float32)
    y, kept = torch.ops.gptrs.experts(*given, True, True)
    assert torch.equal(y, layer.run(by_tiles=True)[0]) and kept.numel() == 0
    d_x, d_up, d_down, d_weights = torch.ops.gptrs.experts_backward(layer.dy, *given, kept, False, False, True)
    assert d_up.numel() == d_down.numel() == 0
    _, *wanted = layer.run(by_tiles=True)
    assert torch.equal(d_x, wanted[0]) and torch.equal(d_weights, wanted[3])


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, up, down, weights, order, loads = (each.numpy() for each in Layer().given(torch.float32))
    rows, y = np.empty((len(order), x.shape[1]), np.float32), np.empty_like(x)
    with pytest.raises(ValueError, match=r"expected 140 choices, got loads of 141, an order of 140"):
        _core.experts_forward(x, up, down, weights, order, loads + (loads == 0), rows, y, 1, 0)
    with pytest.raises(ValueError, match=r"expected 4800 numbers of down, got 960"):
        _core.experts_forward(x, up, down[:1], weights, order, loads, rows, y, 1, 0)
    with pytest.raises(ValueError, match=r"each of 140 places once, got 0 again"):
        _core.experts_forward(x, up, down, weights, order * 0, loads, rows, y, 1, 0)


def model(**given: int) -> Transformer:
    sizes = {**SIZES, "vocab_size": 64, "n_layers": 3, "n_heads": 2, "kv_lora_rank": 32, "max_seq_len": 64, **given}
    return Transformer(ModelConfig.preset("deepseek-tiny", **sizes), seed=3)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(64, (3, 65), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=pytest.mark.long)], ids=["eager", "compiled"])
def test_a_model_learns_the_same_by_tiles(is_compiled: bool) -> None:
    found = []
    for is_on in (True, False):
        before = matmul.use_tiles(is_on)
        try:
            torch._dynamo.reset()
            ours = model()
            if is_compiled:
                ours.compile_blocks()
            loss = ours.loss(*batch(0))
            loss.backward()  # type: ignore[no-untyped-call]
            found.append((loss, {name: p.grad for name, p in ours.named_parameters()}))
        finally:
            matmul.use_tiles(before)
    (loss, gradients), (wanted, wanted_gradients) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


# ── steps made with the gradient ──


def optimizer(of: nn.Module) -> torch.optim.AdamW:
    # With a larger ε a step does not depend on the last bits of a gradient that is next to nothing.
    return adamw(of, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-3)


def experts_of(of: Transformer) -> list[nn.Parameter]:
    return [p for p in of.parameters() if p.ndim == 3]


@pytest.mark.parametrize("every", [0, 1], ids=["plain", "again"])
def test_experts_move_where_their_gradient_is_made(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bits: weights, moments, their counters and the norm of the whole gradient."""
    inside, behind = model(), model()
    inside.checkpoints_blocks = behind.checkpoints_blocks = every
    steps = optimizer(inside), optimizer(behind)
    made: list[tuple[int, ...]] = []
    of = moving.no_gradient

    def no_gradient(weight: Tensor) -> Tensor:
        made.append(tuple(weight.shape))
        return of(weight)

    monkeypatch.setattr(expert_by_expert, "no_gradient", no_gradient)
    for seed in range(3):
        norm = step_in_backward(inside.loss(*batch(seed)), steps[0], MADE)
        behind.loss(*batch(seed)).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in behind.parameters() if p.grad is not None]
        wanted = torch.linalg.vector_norm(torch.cat([each.flatten().double() for each in gradients])).float()
        torch.testing.assert_close(norm, wanted, rtol=1e-5, atol=0)
        steps[1].step()
        steps[1].zero_grad()
        assert all(p.grad is None for p in inside.parameters())
    n_layers = len(experts_of(inside)) // 2
    assert sorted(made) == sorted([(4, 128, 64), (4, 64, 64)] * 2 * n_layers), "in all steps but the first"
    for (name, p), q in zip(inside.named_parameters(), behind.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-5, msg=name)
        for key, of_p in steps[0].state.get(p, {}).items():
            torch.testing.assert_close(of_p, steps[1].state[q][key], rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


def test_a_step_that_is_left_out_leaves_experts_as_they_are() -> None:
    ours = model()
    step = optimizer(ours)
    step_in_backward(ours.loss(*batch(0)), step, MADE)
    before = [p.detach().clone() for p in experts_of(ours)]
    norm = step_in_backward(ours.loss(*batch(1)), step, torch.tensor(1.0))
    assert norm > 0 and all(map(torch.equal, before, experts_of(ours)))
    assert not moving._steps, "nothing is left behind"


@pytest.mark.parametrize(
    "change", [{"amsgrad": True}, {"maximize": True}, {"lr": torch.tensor(1e-2)}], ids=["amsgrad", "maximize", "lr"]
)
def test_other_kinds_of_steps_are_the_optimizers_own(change: dict[str, object]) -> None:
    ours, theirs = model(), model()
    for each in (ours, theirs):
        step = torch.optim.AdamW(experts_of(each), **{"lr": 1e-2, **change})  # type: ignore[arg-type]
        for seed in range(2):
            loss = each.loss(*batch(seed))
            if each is ours:
                step_in_backward(loss, step, MADE)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                step.step()
                step.zero_grad()
    assert all(map(torch.equal, experts_of(ours), experts_of(theirs)))


def test_a_weight_that_is_used_twice_is_refused() -> None:
    layer = Layer()
    x, up, down, weights, order, loads = layer.given(torch.float32)
    steps = {
        of: Step(torch.zeros_like(of), torch.zeros_like(of), 1e-2, (0.9, 0.99), 1e-8, 0.0, 1.0) for of in (up, down)
    }
    _, kept = torch.ops.gptrs.experts(x, up, down, weights, order, loads, True, True)
    given = (layer.dy, x, up, down, weights, order, loads, kept, True, True, True)
    message = re.escape("expected one gradient of a weight of (5, 48, 40) that moves inside the backward pass, got two")
    with moving.moving(steps):
        torch.ops.gptrs.experts_backward(*given)
        with pytest.raises(RuntimeError, match=message):
            torch.ops.gptrs.experts_backward(*given)
    assert steps[up].squares is not None and not moving._steps
