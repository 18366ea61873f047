"""Whole runs with other optimizers, schedules and batches: what they log, and that they go on to the same bytes."""

import json
import shutil
from pathlib import Path

from gptrs.train import pretrain
from test_pretrain import lines_of, outcome, text, tiny

__all__ = ["text"]  # the fixture
OPTIONS = (
    *("optim.name=muon", "schedule.kind=wsd", "schedule.decay=1-sqrt", "schedule.decay_share=0.4"),
    *("train.micro_batch=1", "train.batch_start=1", "train.batch_warmup_steps=12"),
)


def rewind(run: Path, step: int) -> None:
    """Makes a finished run one that was killed after the checkpoint of `step`."""
    (run / "result.json").unlink()
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


def test_muon_wsd_and_a_growing_batch_go_on_to_the_same_bytes(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(text, run, *OPTIONS, "train.keep_checkpoints=4")
    pretrain.run(config)
    straight = outcome(run)
    for step in (5, 15):  # while the batch grows, and while the rate comes down
        rewind(run, step)
        pretrain.run(config)
        assert outcome(run) == straight
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    state = json.loads((last / "state.json").read_text())
    assert state["loader"]["next_sample"] == config.train.rows_before(20) < 80
    rates = [line["lr"] for line in lines_of(run) if "lr" in line]
    assert set(rates[5:12]) == {config.optim.lr} and rates[-1] == config.schedule.min_lr
