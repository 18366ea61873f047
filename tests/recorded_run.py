"""A run that notes what it trains on; as a command, recorded_run.py NOTES OVERRIDE…, for torchrun."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from gptrs.train import pretrain
from gptrs.train.config import PretrainConfig, load
from gptrs.train.loop import Update
from gptrs.train.parts import Parts


def recorded(config: PretrainConfig, folder: Path) -> None:
    """Runs, and notes each microbatch that is trained on and each update, as they come, in files that only grow."""
    log, loss = pretrain.Session._log, Parts.loss

    def note(kind: str, *values: object) -> None:
        with (folder / f"{kind}.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def noted_loss(self: Parts, model: Any, rows: Any, totals: Any) -> Any:
        sample = rows.sample + self.world.data_rank * len(rows.tokens)  # rows.sample is the first of all ranks
        note("rows", sample, hashlib.sha256(rows.tokens.numpy().tobytes()).hexdigest()[:16])
        return loss(self, model, rows, totals)

    def noted_log(self: Any, update: Update) -> None:
        log(self, update)
        if self.world.is_main:
            note("updates", update.step, self.loader.next_sample)

    pretrain.Session._log, Parts.loss = noted_log, noted_loss  # type: ignore[method-assign]
    pretrain.run(config)


if __name__ == "__main__":
    recorded(load("shakespeare_cpu", sys.argv[2:]), Path(sys.argv[1]))
