"""Muon and the z term on CUDA: as torch's own, and as the plain formula. Run by `make test-gpu`."""

import pytest
import torch
from torch import nn

from gptrs.model import ModelConfig, Transformer, next_token_loss
from gptrs.model.loss import linear_cross_entropy_z
from gptrs.train.config import OptimSettings
from gptrs.train.muon import Muon
from gptrs.train.optim import optimizer_of

pytestmark = pytest.mark.gpu


def test_muon_is_torch_muon_step_for_step() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 96), (96, 64), (64, 64)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator).cuda()) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon([{"params": ours, "is_hidden": True}], lr=0.02, weight_decay=0.3)
    peer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator).cuda()
            other.grad = mine.grad.clone()
        muon.step()
        peer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(muon.state[mine]["momentum_buffer"], peer.state[other]["momentum_buffer"])
        # products of a batch may round to other neighbours in bf16 than single ones; an update moves by about 0.004
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=0)


def test_an_update_on_cuda_is_that_of_the_cpu_but_for_bf16() -> None:
    config = ModelConfig.preset(
        "deepseek-tiny", vocab_size=64, max_seq_len=16, dim=64, n_layers=2, n_heads=2, inter_dim=96, moe_inter_dim=32
    )
    weights = {}
    for device in ("cpu", "cuda"):
        model = Transformer(config, seed=3).to(device)
        optimizer = optimizer_of(model, OptimSettings(name="muon", lr=1e-2))
        generator = torch.Generator().manual_seed(0)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(device) if p.requires_grad else None
        optimizer.step()
        weights[device] = {name: p.detach().cpu() for name, p in model.named_parameters()}
    for name, expected in weights["cpu"].items():  # an update moves an element by about 0.002, by 0.01 under AdamW
        torch.testing.assert_close(weights["cuda"][name], expected, atol=3e-4, rtol=0, msg=name)


@pytest.mark.parametrize("V", [1000, 1024])
def test_the_z_term_in_one_kernel_is_the_formula(V: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 64, 32, generator=generator).cuda().requires_grad_()
    weight = torch.randn(V, 32, generator=generator).cuda().requires_grad_()
    targets = torch.randint(V, (4, 64), generator=generator).cuda()
    loss, z = linear_cross_entropy_z(hidden, weight, targets, z_weight=0.01)
    logits = hidden @ weight.T
    mean = logits.logsumexp(dim=-1).square().mean()
    expected = next_token_loss(logits, targets) + 0.01 * mean
    assert z is not None and z.item() == pytest.approx(mean.item(), rel=1e-5)
    for got, wanted in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)
