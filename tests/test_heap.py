"""Freed activations go back to the system while a backward pass runs on the CPU."""

import subprocess
import sys

import pytest
import torch

from gptrs.model import ModelConfig, Transformer, heap

# Pieces that stay keep free ones from the end of the heap, the only place that malloc gives back by itself. They are
# too large for holes that importing left: those of 256 bytes found some, and all that was freed lay at the end.
SCRIPT = """
import torch
from gptrs.model import heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

pieces = [torch.ones(n) for _ in range(400) for n in (1 << 17, 1 << 14)]
whole = resident()
del pieces[::2]
x = torch.ones(1 << 20, requires_grad=True) * 2
heap.shrinks_behind(x)
freed = resident()
x.sum().backward()
print((whole - freed) >> 20, (freed - resident()) >> 20)
"""


def config(n_layers: int, dim: int) -> ModelConfig:
    return ModelConfig.preset(
        "gpt2-small", vocab_size=64, dim=dim, n_layers=n_layers, n_heads=2, inter_dim=dim, max_seq_len=512
    )


@pytest.mark.skipif(heap._trim is None, reason="malloc of this system does not shrink on demand")
def test_what_was_freed_goes_back_when_backward_leaves_a_block() -> None:
    # mmap from 16 MiB on: the pieces are in the heap from the first on
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120,
        env={"MALLOC_MMAP_THRESHOLD_": f"{1 << 24}", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    by_itself, behind = map(int, done.stdout.split())
    assert by_itself < 20 and behind >= 180, "MiB of the 200 freed"


def test_before_the_backward_pass_of_each_block_where_it_is_large_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(heap, "_trim", calls.append)
    model = Transformer(config(3, 512)).train()
    tokens = torch.zeros(4, 512, dtype=torch.long)
    model.loss(tokens, tokens).backward()
    assert calls == [0] * 3
    with torch.no_grad():
        model.loss(tokens, tokens)
    model.loss(tokens[:, :256], tokens[:, :256]).backward()
    assert calls == [0] * 3
    model.checkpoints_blocks = 1
    model.loss(tokens, tokens).backward()
    assert calls == [0] * 6
