"""The loss through the head some rows at a time, against the loss of all logits at once."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import inference_mode
from torch._dynamo.testing import CompileCounter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from gptrs.model import ModelConfig, Transformer, next_token_loss
from gptrs.model import loss as losses
from gptrs.model.ranks import Span
from ranks import on_ranks


def case(dtype=torch.float64, n_ignored=5):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 8, 16, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(40, 16, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(40, (3, 8), generator=generator)
    targets.view(-1)[:n_ignored] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("rows", [1, 5, 24, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_loss_and_gradients_are_those_of_all_logits_at_once(monkeypatch, rows, dtype, tolerance):
    monkeypatch.setitem(losses._CHUNK_BYTES, "cpu", rows * 40 * dtype.itemsize)
    hidden, weight, targets = case(dtype)
    loss, expected = losses.linear_cross_entropy(hidden, weight, targets), next_token_loss(hidden @ weight.T, targets)
    assert (loss - expected).abs() <= tolerance * 10
    for got, wanted in zip(
        torch.autograd.grad(3.0 * loss, (hidden, weight)), torch.autograd.grad(3.0 * expected, (hidden, weight)),
        strict=True,
    ):  # fmt: skip
        assert (got - wanted).abs().max() <= tolerance


def test_half_precision_is_summed_in_single():
    hidden, weight, targets = case(torch.bfloat16)
    loss, expected = losses.linear_cross_entropy(hidden, weight, targets), next_token_loss(hidden @ weight.T, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for got, wanted in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert got.dtype == torch.bfloat16
        assert (got - wanted).abs().max() < 0.01


@pytest.mark.parametrize("z_weight", [0.0, 0.1])
@pytest.mark.parametrize("columns", [1, 7, 40])
def test_the_heads_gradient_by_blocks_of_the_vocabulary_is_the_same(monkeypatch, columns, z_weight):
    """Each block is rounded once, so it is nearer to the truth than a sum over rows can be."""
    hidden, weight, targets = case(torch.bfloat16)
    logits = hidden.double() @ weight.double().T  # (B, T, V)
    z = logits.logsumexp(dim=-1)[targets != -100].square().mean()
    truth = torch.autograd.grad(next_token_loss(logits, targets) + z_weight * z, (hidden, weight))
    monkeypatch.setitem(losses._WIDE_BYTES, "cpu", 0)
    monkeypatch.setitem(losses._BLOCK_BYTES, "cpu", columns * 24 * 4)
    loss, _ = losses.linear_cross_entropy_z(hidden, weight, targets, z_weight=z_weight)
    expected = next_token_loss(hidden @ weight.T, targets).item() + z_weight * z.item()
    assert loss.item() == pytest.approx(expected, abs=1e-5 + 0.01 * z_weight * z.item())
    for got, wanted in zip(torch.autograd.grad(3.0 * loss, (hidden, weight)), truth, strict=True):
        assert (got - 3.0 * wanted).norm() < 0.01 * (3.0 * wanted).norm()


@pytest.mark.parametrize("multiple", [1, 16, 128])
def test_rows_that_fill_the_vocabulary_up_have_no_probability(multiple):
    hidden, weight, targets = case()
    loss = losses.linear_cross_entropy(hidden, weight, targets, multiple=multiple)
    expected = next_token_loss(hidden @ weight.T, targets)
    assert (loss - expected).abs() < 1e-13
    for got, wanted in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert got.shape == wanted.shape and (got - wanted).abs().max() < 1e-14


@pytest.mark.parametrize("z_weight", [0.0, 0.1])
def test_what_is_one_kernel_on_cuda_computes_the_same(z_weight):
    hidden, weight, targets = case(n_ignored=0)
    logits, ids = (hidden @ weight.T).flatten(0, 1).detach(), targets.flatten().unsqueeze(-1)
    d_logits = torch.cat((logits, torch.zeros(24, 8, dtype=logits.dtype)), dim=-1)  # filled up by 8
    parts, levels = losses._softmax_less_onehot(d_logits, ids, 40, z_weight)
    plain, same_levels, d_plain, total = losses._rows(logits.clone(), ids, 40, True, z_weight)
    assert (parts - plain).abs().max() < 1e-13 and (levels - same_levels).abs().max() < 1e-13
    assert (d_logits[:, :40] - d_plain / total).abs().max() < 1e-14 and not d_logits[:, 40:].any()
    some = logits[:, 10:30].clone()
    plain = losses._columns(some.clone(), ids - 10, levels, z_weight)
    losses._columns_less_onehot(some, ids - 10, levels, z_weight)
    assert (some - plain).abs().max() < 1e-14
    assert (some - d_logits[:, 10:30]).abs().max() < 1e-13


@pytest.mark.parametrize("is_by_blocks", [False, True])
def test_on_cuda_the_loss_is_one_graph(is_by_blocks, monkeypatch):
    """Its memory and its kernels, on the CPU; the vocabulary, 40, is no multiple of a block, 12."""

    def rows(logits, ids, V, needs_gradient, z_weight):
        return *losses._softmax_less_onehot(logits, ids, V, z_weight), logits, 1.0

    def columns(logits, ids, levels, z_weight):
        losses._columns_less_onehot(logits, ids, levels, z_weight)
        return logits

    def memory(n_rows, n_columns, like):
        return like.new_empty(n_rows, n_columns)

    sizes = {"_CHUNK_BYTES": 1200, "_BLOCK_BYTES": 1200, "_WIDE_BYTES": 0 if is_by_blocks else 1 << 20}
    for name, size in sizes.items():
        monkeypatch.setitem(getattr(losses, name), "cpu", size)
    for function, name in ((rows, "_rows"), (columns, "_columns"), (memory, "_logits_memory")):
        monkeypatch.setattr(losses, name, function)
    hidden, weight, targets = (x.detach() for x in case())
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(losses.linear_cross_entropy, fullgraph=True, dynamic=False, backend="eager")
    plain, fused = losses.linear_cross_entropy(hidden, weight, targets), compiled(hidden, weight, targets)
    assert torch.equal(plain, fused)
    for got, wanted in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (fused, plain)), strict=True):
        assert torch.equal(got, wanted)


def test_the_kernels_of_cuda_are_compiled_a_few_times_whatever_comes():
    """torch gives up behind eight: further tokens and evaluations have other weights of z, stretches and modes."""
    torch._dynamo.reset()
    counter = CompileCounter()
    kernel = torch.compile(losses._softmax_less_onehot, backend=counter, fullgraph=True)
    for n, z_weight, mode in itertools.product((64, 40, 33, 1, 17), (1e-3, 3e-4, 0.0), (torch.no_grad, inference_mode)):
        with mode():
            logits, ids = torch.randn(64, 48)[:n], torch.randint(0, 40, (64, 1))[:n]
            kernel(logits, ids, 40, losses._on_device(z_weight, logits))
    assert counter.frame_count <= 6


def test_a_second_backward_pass_is_refused():
    hidden, weight, targets = case()
    loss = losses.linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


PEAK = """
import sys, torch
from pathlib import Path
from gptrs.model.loss import linear_cross_entropy, next_token_loss
torch.set_num_threads(1)
dtype = getattr(torch, sys.argv[1])
hidden = torch.randn(1, 1024, 64).to(dtype).requires_grad_()
weight = torch.randn(100_000, 64).to(dtype).requires_grad_()
targets = torch.randint(100_000, (1, 1024))
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3
next_token_loss(hidden[:, :64] @ weight[:64].T, targets[:, :64] % 64).backward()  # what libraries take
hidden.grad = weight.grad = None
Path("/proc/self/clear_refs").write_text("5")
before = peak()
linear_cross_entropy(hidden, weight, targets).backward()
print(peak() - before - (weight.nbytes + hidden.nbytes) / 1e6)
"""


@pytest.mark.parametrize(("dtype", "at_most"), [("float32", 100), ("bfloat16", 180)])
def test_all_logits_are_never_there(dtype, at_most):
    """Peak of the process above inputs and gradients, in MB; all logits in 32 bits alone are 410."""
    # Large blocks go back at once: else the allocator keeps some, now these and now those, and the peak is 180 to 280.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    command = [sys.executable, "-c", PEAK, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)
    assert float(done.stdout) < at_most


@pytest.mark.parametrize("rows", [5, 1000])
@pytest.mark.parametrize("z_weight", [1e-4, 0.3])
def test_the_z_term_and_its_gradients_are_those_of_all_logits_at_once(monkeypatch, rows, z_weight):
    monkeypatch.setitem(losses._CHUNK_BYTES, "cpu", rows * 40 * 8)
    hidden, weight, targets = case()
    loss, z = losses.linear_cross_entropy_z(hidden, weight, targets, z_weight=z_weight)
    logits = hidden @ weight.T  # (B, T, V)
    mean = logits.logsumexp(dim=-1)[targets != -100].square().mean()
    expected = next_token_loss(logits, targets) + z_weight * mean
    assert (loss - expected).abs() <= 1e-13 and (z - mean).abs() <= 1e-13 and not z.requires_grad
    for got, wanted in zip(
        torch.autograd.grad(3.0 * loss, (hidden, weight)), torch.autograd.grad(3.0 * expected, (hidden, weight)),
        strict=True,
    ):  # fmt: skip
        assert (got - wanted).abs().max() <= 1e-13


def test_the_z_term_pulls_logits_towards_a_sum_of_one():
    hidden, weight, targets = case(n_ignored=0)
    with torch.no_grad():
        weight += 1.0  # all logits of a position drift off together, which the cross-entropy does not see
    before = (hidden @ weight.T).logsumexp(dim=-1).square().mean()
    for _ in range(20):
        loss, _ = losses.linear_cross_entropy_z(hidden, weight, targets, z_weight=0.1)
        (d_weight,) = torch.autograd.grad(loss, (weight,))
        weight.data -= 0.5 * d_weight
    assert (hidden @ weight.T).logsumexp(dim=-1).square().mean() < 0.5 * before


def test_no_position_that_counts_gives_what_torch_gives():
    hidden, weight, targets = case(n_ignored=24)
    assert losses.linear_cross_entropy(hidden, weight, targets).isnan()
    assert next_token_loss(hidden @ weight.T, targets).isnan()


def test_one_side_alone_and_neither_can_be_asked_for():
    hidden, weight, targets = case()
    (whole,) = torch.autograd.grad(losses.linear_cross_entropy(hidden, weight, targets), (weight,))
    (alone,) = torch.autograd.grad(losses.linear_cross_entropy(hidden.detach(), weight, targets), (weight,))
    assert torch.equal(alone, whole)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = losses.linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert counter.get_total_flops() == 2 * 24 * 16 * 40  # the logits, and nothing of a gradient
    assert loss.item() == pytest.approx(next_token_loss(hidden @ weight.T, targets).item(), abs=1e-12)


def test_a_tied_head_gets_both_gradients():
    config = ModelConfig(vocab_size=40, max_seq_len=8, dim=16, n_layers=1, n_heads=2, inter_dim=32)
    model, tokens = Transformer(config).double(), torch.arange(24).view(3, 8)
    model.loss(tokens, tokens + 1).backward()
    got = model.embed.token.weight.grad.clone()
    model.zero_grad()
    next_token_loss(model(tokens), tokens + 1).backward()
    assert (got - model.embed.token.weight.grad).abs().max() < 1e-14


def shares_of_a_vocabulary(world):
    """Of several sizes, types and ways: the largest difference to one process, and the products beside the whole's."""
    found = []
    for V, dtype, z_weight, by_blocks in (
        (40, torch.float64, 0.1, False),
        (41, torch.float64, 0.0, False),
        (41, torch.bfloat16, 0.1, True),
    ):
        losses._WIDE_BYTES["cpu"] = 0 if by_blocks else 1 << 26
        losses._CHUNK_BYTES["cpu"] = losses._BLOCK_BYTES["cpu"] = 5 * V * 8  # some rows at a time
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(3, 8, 16, generator=generator).to(dtype).requires_grad_()
        weight = torch.randn(V, 16, generator=generator).to(dtype)
        targets = torch.randint(V, (3, 8), generator=generator)
        targets[0, :5] = -100
        whole = weight.clone().requires_grad_()
        with FlopCounterMode(display=False) as all_products:
            loss, z = losses.linear_cross_entropy_z(hidden, whole, targets, z_weight=z_weight)
        expected = [*torch.autograd.grad(3.0 * loss, (hidden, whole)), loss, *([] if z is None else [z])]
        mesh = init_device_mesh("cpu", (world.size,))
        own = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None).requires_grad_()
        span = Span.own(V, mesh.get_group())
        with FlopCounterMode(display=False) as products:
            loss, z = losses.linear_cross_entropy_z(hidden, own, targets, z_weight=z_weight, multiple=8, span=span)
        d_hidden, d_own = torch.autograd.grad(3.0 * loss, (hidden, own))
        got = [d_hidden, d_own.full_tensor(), loss, *([] if z is None else [z])]
        differences = [float((a - b).detach().abs().max()) for a, b in zip(got, expected, strict=True)]
        found.append([max(differences), products.get_total_flops() / all_products.get_total_flops()])
    return found


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_that_share_the_vocabulary_share_the_products(size, tmp_path):
    for found in on_ranks(size, tmp_path, shares_of_a_vocabulary):
        even, odd, rounded = found
        assert even[0] < 1e-13 and odd[0] < 1e-13 and rounded[0] < 0.05, found
        assert all(share <= (48 + 8 * size) / (40 * size) for _, share in found), "filled up to a multiple of 8"
