"""Products of float32 by tiles: as exact as torch's, with the same gradients, and left to torch where they must be."""

import dataclasses
import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gptrs import _core
from gptrs.model import ModelConfig, Transformer, matmul

HAS_TILES = pytest.mark.skipif(not _core.can_multiply(), reason="this processor has no AMX")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("has_region", [False, True], ids=["own threads", "torch's threads"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_are_those_of_float32(threads: int, has_region: bool) -> None:
    region = matmul.region() if has_region else 0
    for m, k, n in ((1, 1, 1), (130, 257, 40), (33, 900, 70), (64, 32, 300)):
        a, b = draw(m, k), draw(k, n, seed=1)
        exact, sizes = (a.double() @ b.double()).numpy(), (a.abs() @ b.abs()).numpy()
        # Of sums of float32 one after the other the errors are as large.
        bound = 8 * 2.0**-24
        for left, right in ((a, b), (a.T.clone().T, b), (a, b.T.clone().T), (a.T.clone().T, b.T.clone().T)):
            memory = np.full((m, n + 2), 2.0, np.float32)
            out = memory[:, :n]
            _core.multiply(left.numpy(), right.numpy(), out, False, threads, region)
            assert (np.abs(out - exact) / sizes).max() <= bound
            _core.multiply(left.numpy(), right.numpy(), out, True, threads, region)
            assert (np.abs(out - 2 * exact) / sizes).max() <= 3 * bound
            assert (memory[:, n:] == 2.0).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    a, b, out = (np.zeros(shape, np.float32) for shape in ((4, 6), (6, 5), (4, 5)))
    with pytest.raises(ValueError, match=r"expected \(m, k\) times \(k, n\)"):
        _core.multiply(a, np.zeros((5, 5), np.float32), out, False, 1, 0)
    with pytest.raises(ValueError, match="side by side"):
        _core.multiply(np.zeros((8, 12), np.float32)[::2, ::2], b, out, False, 1, 0)
    with pytest.raises(ValueError, match="side by side"):
        _core.multiply(a, b, np.zeros((4, 10), np.float32)[:, ::2], False, 1, 0)


@HAS_TILES
@pytest.mark.parametrize("is_biased", [False, True], ids=["plain", "biased"])
def test_a_linear_layer_has_torchs_values_and_gradients(is_biased: bool) -> None:
    given = [draw(4, 130, 256), draw(512, 256, seed=1), *([draw(512, seed=2)] if is_biased else [])]
    inputs = [tensor.requires_grad_() for tensor in given]
    up = draw(4, 130, 512, seed=3)
    ours, theirs = matmul.linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    mine, expected = (torch.autograd.grad(y, inputs, up, create_graph=True) for y in (ours, theirs))
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)
    # Gradients of gradients, as a penalty on them takes.
    second = [torch.autograd.grad(first[0].square().sum(), inputs[1])[0] for first in (mine, expected)]
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-1)


@HAS_TILES
def test_products_go_where_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = draw(160, 1280), draw(1280, 192, seed=1)
    calls: list[bool] = []
    multiply = _core.multiply

    def counted(*given: Any) -> None:
        calls.append(given[3])
        multiply(*given)

    monkeypatch.setattr(matmul._core, "multiply", counted)
    for out in (
        torch.ones(160, 192),
        torch.ones(192, 160).T,
        torch.ones(160, 2, 192)[:, 1],
        torch.ones(160, 384)[:, ::2],
    ):
        matmul.mm_into(out, a, b)
        torch.testing.assert_close(out, a @ b, rtol=1e-5, atol=2e-4)
        matmul.mm_into(out, a, b, adds=True)
        torch.testing.assert_close(out, 2 * (a @ b), rtol=1e-5, atol=4e-4)
    half = a[:, ::2], b[::2]
    torch.testing.assert_close(matmul.mm(*half), half[0] @ half[1], rtol=1e-5, atol=2e-4)
    assert calls == [False, True] * 4 + [False]


@HAS_TILES
def test_all_else_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul._core, "multiply", lambda *_: pytest.fail("this is torch's"))
    x, weight = draw(256, 512), draw(512, 512, seed=1)
    assert torch.equal(matmul.linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
    assert matmul.linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(matmul.linear(x[:64], weight), F.linear(x[:64], weight)), "few rows"
    assert matmul.linear(x.to("meta"), weight.to("meta")).shape == (256, 512)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matmul.linear(x, weight).dtype == torch.bfloat16
    assert matmul.use_tiles(False)
    try:
        assert torch.equal(matmul.linear(x, weight), F.linear(x, weight))
    finally:
        assert not matmul.use_tiles(True)


def small(preset: str) -> Transformer:
    config = ModelConfig.preset(preset, vocab_size=512, dim=256, n_heads=8, n_layers=2, max_seq_len=256)
    return Transformer(dataclasses.replace(config, n_mtp_layers=0), seed=0).train()


@HAS_TILES
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("preset", ["gpt2-small", "deepseek-small"])
def test_models_have_the_same_gradients_with_and_without(preset: str, is_compiled: bool) -> None:
    tokens = torch.randint(512, (2, 256), generator=torch.Generator().manual_seed(0))
    found = []
    for is_on in (True, False):
        matmul.use_tiles(is_on)
        try:
            model = small(preset)
            if is_compiled:
                model.layers[-1].compile()
            loss = model.loss(tokens, tokens.roll(-1, 1))
            loss.backward()
            found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
        finally:
            matmul.use_tiles(True)
    (loss, mine), (expected_loss, expected) = found
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    for name, gradient in expected.items():
        size = 0.0 if gradient is None else float(gradient.abs().max())
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-5 * size, msg=name)


@HAS_TILES
def test_floating_point_operations_are_counted_as_before() -> None:
    tokens = torch.zeros(2, 256, dtype=torch.long)
    counts = []
    for is_on in (True, False):
        matmul.use_tiles(is_on)
        try:
            model = small("gpt2-small")
            with FlopCounterMode(display=False) as counter:
                model.loss(tokens, tokens).backward()
            counts.append(counter.get_total_flops())
        finally:
            matmul.use_tiles(True)
    assert counts[0] == counts[1] > 0


def product_on_one_thread(queue: Any, a: Tensor, b: Tensor) -> None:
    torch.set_num_threads(1)  # OpenMP's threads are gone behind a fork, for torch as for us
    queue.put(float(matmul.mm(a, b).double().sum()))


@HAS_TILES
def test_a_forked_process_multiplies_as_well() -> None:
    a, b = draw(256, 512), draw(512, 256, seed=1)
    expected = float(matmul.mm(a, b).double().sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=product_on_one_thread, args=(queue, a, b))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()
