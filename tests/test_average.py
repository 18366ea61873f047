"""The running mean of weights: the formula, its beginning, what is evaluated, and what a checkpoint keeps."""

import itertools
import math
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from gptrs.cli import app
from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint, pretrain
from gptrs.train.average import Average
from gptrs.train.parts import Parts
from gptrs.train.signals import Stopped
from test_pretrain import lines_of, outcome, text, tiny
from test_training_options import rewind

__all__ = ["text"]  # the fixture


def moved(model: nn.Module, values: list[float], average: Average) -> None:
    for value in values:
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(value)
        average.update()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_corrected_mean_weighs_the_updates_alone(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2).to(dtype)
    average = Average(model, decay=0.5)
    moved(model, [3.0], average)
    assert average.means["weight"].unique().tolist() == [3.0]
    moved(model, [6.0, 9.0], average)
    expected = (0.125 * 3 + 0.25 * 6 + 0.5 * 9) / (0.125 + 0.25 + 0.5)
    assert average.means["weight"].unique().item() == pytest.approx(expected, rel=1e-6)
    assert average.means["weight"].dtype == dtype and average.n_updates == 3


def test_an_uncorrected_mean_begins_with_the_first_weights() -> None:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, decay=0.9, is_corrected=False)
    moved(model, [2.0, 3.0], average)
    assert average.means["weight"].unique().item() == pytest.approx(0.81 * 1 + 0.09 * 2 + 0.1 * 3, rel=1e-6)


@pytest.mark.parametrize("is_corrected", [True, False])
def test_an_update_that_was_left_out_leaves_the_mean_as_it_is(is_corrected: bool) -> None:
    model, other = nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 2).to(torch.bfloat16)
    other.load_state_dict(model.state_dict())
    average, expected = (Average(each, decay=0.9, is_corrected=is_corrected) for each in (model, other))
    random = torch.Generator().manual_seed(1)
    for is_left_out in (1.0, 0.0, 1.0, 1.0, 0.0, 0.0):
        if not is_left_out:
            for p, same in zip(model.parameters(), other.parameters(), strict=True):
                p.data.copy_(torch.randn(p.shape, generator=random))
                same.data.copy_(p.data)
            expected.update()
        average.update(torch.tensor(is_left_out))
        assert all(torch.equal(average.means[name], mean) for name, mean in expected.means.items())
    assert average.n_updates == expected.n_updates == 3


def test_half_precision_weights_have_a_wide_mean_and_come_back_as_they_were() -> None:
    model = nn.Linear(4, 4).to(torch.bfloat16)
    average = Average(model, decay=0.999)
    average.update()
    before = model.weight.detach().clone()
    average.means["weight"].add_(1.0)
    with pytest.raises(KeyError), average.applied():
        assert (model.weight - before).float().mean().item() == pytest.approx(1.0, abs=0.02)
        raise KeyError
    assert torch.equal(model.weight, before) and average.means["weight"].dtype == torch.float32


def test_a_stop_while_weights_are_put_back_saves_them_whole(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of a run that leaves during an evaluation of the mean has not a part of that mean in it."""
    given = ("train.ema=0.8", "train.steps=4", "train.eval_every=2", "train.keep_checkpoints=4")
    pretrain.run(tiny(text, tmp_path / "straight", *given, "train.checkpoint_every=2"))
    original, calls = Average._put, itertools.count(1)

    def put(self: Average, tensors: dict[str, Tensor]) -> None:
        if next(calls) == 2:  # the first puts the mean in
            name = next(iter(tensors))
            self._parameters[name].data.copy_(tensors[name])
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, tensors)

    monkeypatch.setattr(Average, "_put", put)
    with pytest.raises(Stopped, match="stopped after step 2 of 4, which is saved"):
        pretrain.run(tiny(text, tmp_path / "left", *given, "train.checkpoint_every=100"))
    saved, expected = (
        safetensors.torch.load_file(tmp_path / run / "checkpoints" / "step-00000002" / "model.safetensors")
        for run in ("left", "straight")
    )
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in expected.items())


def test_a_run_logs_saves_and_goes_on_with_its_mean(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(text, run, "train.ema=0.8", "train.keep_checkpoints=4")
    pretrain.run(config)
    straight, lines = outcome(run), [line for line in lines_of(run) if line["kind"] == "eval"]
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    mean = safetensors.torch.load_file(last / "ema.safetensors")
    rewind(run, 10)
    pretrain.run(config)
    assert outcome(run) == straight
    again = safetensors.torch.load_file(last / "ema.safetensors")
    assert mean.keys() == again.keys() and all(torch.equal(mean[name], again[name]) for name in mean)

    model = Transformer(ModelConfig(**checkpoint.read_state(last)["model"]))
    checkpoint.load_model(last, model, is_averaged=True)
    rows = list(_held_out(run))
    model.requires_grad_(False)
    losses = [model.eval().next_loss(tokens, targets) * targets.numel() for tokens, targets in rows]
    n = sum(targets.numel() for _, targets in rows)
    assert lines[-1]["ema_val_loss"] == pytest.approx(float(sum(losses)) / n, rel=1e-5)
    assert lines[-1]["ema_val_loss"] != pytest.approx(lines[-1]["val_loss"], rel=1e-4)

    for flags in ([], ["--ema"]):
        done = CliRunner().invoke(app, ["export", "--run", str(run), "--out", str(tmp_path / f"out{flags}"), *flags])
        assert done.exit_code == 0, done.output
    exported = [
        safetensors.torch.load_file(tmp_path / f"out{flags}" / "model.safetensors") for flags in ([], ["--ema"])
    ]
    name = "transformer.ln_f.weight"
    assert torch.equal(exported[1][name], mean["ema:norm.weight"])
    assert not torch.equal(exported[0][name], exported[1][name])


def test_a_run_that_goes_on_with_a_mean_begins_it_with_the_weights_there(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain.run(tiny(text, run, "train.steps=5"))
    given = ("train.steps=8", "train.ema=0.5", "train.is_ema_corrected=false", "train.checkpoint_every=1")
    config = tiny(text, run, *given, "train.keep_checkpoints=9")
    allow = [f"train.{key}" for key in ("steps", "ema", "is_ema_corrected", "checkpoint_every", "keep_checkpoints")]
    pretrain.run(config, allow=allow)
    saved = [run / "checkpoints" / f"step-{step:08d}" for step in (5, 6, 7, 8)]
    weights = [safetensors.torch.load_file(path / "model.safetensors")["norm.weight"] for path in saved]
    expected = 0.125 * weights[0] + 0.125 * weights[1] + 0.25 * weights[2] + 0.5 * weights[3]
    mean = safetensors.torch.load_file(saved[-1] / "ema.safetensors")["ema:norm.weight"]
    assert torch.allclose(mean, expected, rtol=1e-6) and checkpoint.read_state(saved[-1])["n_averaged"] == 3


def test_a_bad_update_of_a_run_is_not_in_its_mean(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and mean after update 4, which was left out, are those after update 3, on a resumed run too."""
    found: list[tuple[bool, bool, int]] = []
    original = pretrain.Session._after_update

    def after_update(self: pretrain.Session, is_left_out: Tensor) -> None:
        assert self.average is not None
        before = {name: mean.clone() for name, mean in self.average.means.items()}
        original(self, is_left_out)
        is_same = all(torch.equal(before[name], mean) for name, mean in self.average.means.items())
        found.append((bool(is_left_out), is_same, self.average.n_updates))

    monkeypatch.setattr(pretrain.Session, "_after_update", after_update)
    given = (text, tmp_path / "run", "train.ema=0.8", "train.checkpoint_every=1", "train.keep_checkpoints=9")
    with monkeypatch.context() as context:
        calls = itertools.count(1)
        loss = Parts.loss
        factor = {7: math.nan}  # of the microbatches, two an update
        context.setattr(Parts, "loss", lambda *given: loss(*given) * factor.get(next(calls), 1.0))
        pretrain.run(tiny(*given, "train.steps=6"))
    expected = [(False, False, 1), (False, False, 2), (False, False, 3), (True, True, 3), (False, False, 4)]
    assert found[:5] == expected and found[5][2] == 5
    rewind(tmp_path / "run", 5)
    found.clear()
    pretrain.run(tiny(*given, "train.steps=6"))
    assert found == [(False, False, 5)]


def _held_out(run: Path):
    from gptrs.dataset import Dataset
    from gptrs.train import corpus

    for rows in corpus.rows(Dataset(run / "data/val"), seq_len=16, batch=4, device=torch.device("cpu"), n_rows=None):
        yield rows.tokens, rows.targets


def test_a_checkpoint_without_a_mean_says_so(text: Path, tmp_path: Path) -> None:
    pretrain.run(tiny(text, tmp_path / "run", "train.steps=2"))
    path = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    model = Transformer(ModelConfig(**checkpoint.read_state(path)["model"]))
    with pytest.raises(
        ValueError, match=r"expected the weights' running mean in .*, found none; hint: train.ema=0.999"
    ):
        checkpoint.load_model(path, model, is_averaged=True)
