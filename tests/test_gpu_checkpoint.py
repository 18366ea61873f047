"""Checkpoints of a run on CUDA: the copy is of its moment, nobody waits for it, and a run goes on from it."""

import statistics
import time
from pathlib import Path

import pytest
import torch

from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint
from gptrs.train.optim import adamw
from gptrs.train.saver import Saver
from gptrs.train.snapshot import Snapshot, tensors_of

pytestmark = pytest.mark.gpu


def make(config: ModelConfig) -> tuple[Transformer, torch.optim.AdamW]:
    model = Transformer(config, seed=1).to("cuda")
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return model, optimizer


SMALL = ModelConfig(vocab_size=300, max_seq_len=64, dim=64, n_layers=2, n_heads=4, inter_dim=256)


def test_a_copy_is_of_its_moment_and_in_pinned_memory() -> None:
    snapshot, model = Snapshot(), make(SMALL)[0]
    state = tensors_of(model, None)
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        copies = snapshot.take(state)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(-1.0)  # queued behind the copy
        snapshot.wait()
        for name, copy in copies["model"].items():
            assert copy.is_pinned() and (copy == value).all(), name


def test_a_run_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    model, optimizer = make(SMALL)
    saver = Saver(tmp_path, keep=1)
    saver.save(step=1, model=model, optimizer=optimizer, state={})
    expected = {k: {n: t.clone() for n, t in of.items()} for k, of in tensors_of(model, optimizer).items()}
    drawn = torch.rand(4, device="cuda")
    optimizer.step()
    saver.finish()
    other, its_optimizer = make(SMALL)
    checkpoint.load(tmp_path / "step-00000001", other, its_optimizer)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)
    for kind, tensors in tensors_of(other, its_optimizer).items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[kind][name]) and tensor.is_cuda, name


def test_the_loop_of_a_124m_model_pauses_for_50_ms_at_most(tmp_path: Path) -> None:
    """The host and the GPU: from the call to when work that was queued behind it is done."""
    model, optimizer = make(ModelConfig.preset("gpt2-small"))
    saver, pauses = Saver(tmp_path, keep=1), []
    for step in range(6):
        saver.finish()
        torch.cuda.synchronize()
        start = time.perf_counter()
        saver.save(step=step, model=model, optimizer=optimizer, state={})
        torch.cuda.synchronize()
        pauses.append(time.perf_counter() - start)
    saver.finish()
    assert statistics.median(pauses[1:]) <= 0.050, pauses
