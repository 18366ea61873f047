"""An update on CUDA, of tensors that have the device's name and no values: no GPU is needed.

What mixes devices fails here, and so does what waits for a value: an update must not. Backward passes need a device.
"""

from typing import Literal

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from gptrs.model import ModelConfig, Transformer, attend
from gptrs.model import loss as losses
from gptrs.model.loss import counts
from gptrs.train.config import GuardSettings, OptimSettings
from gptrs.train.guard import Guard, make_step
from gptrs.train.optim import optimizer_of
from gptrs.train.spread import Objective, clip

SIZES = {"gpt2-small": {"dim": 64, "n_heads": 4, "inter_dim": 128}, "deepseek-tiny": {}}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("preset", SIZES)
def test_an_update_stays_on_the_device_and_waits_for_nothing(
    preset: str, name: Literal["adamw", "muon"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for module in (losses, attend):
        monkeypatch.setattr(module, "_compiled", lambda function: function)
    monkeypatch.setattr(losses, "_adds_wide", lambda device, dtype: False)  # it tries, once, with values
    config = ModelConfig.preset(preset, vocab_size=512, max_seq_len=128, n_layers=2, **SIZES[preset])
    with FakeTensorMode(), torch.device("cuda", 0):
        tokens, model = torch.zeros(4, 128, dtype=torch.int64), Transformer(config).train()
        with pytest.raises(DataDependentOutputException):
            tokens.sum().item()  # so would anything that waits
        totals = counts(tokens, n_further=config.n_mtp_layers)
        loss = Objective(model, dtype=torch.bfloat16)(lambda m: m.loss(tokens, tokens, totals=totals))
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        left_out = Guard(GuardSettings(), device=tokens.device).judge(loss.detach(), clip(model.parameters(), 1.0))
        make_step(optimizer_of(model, OptimSettings(name=name, lr=1e-3)), left_out)
        assert loss.is_cuda and left_out.is_cuda
