"""Experts kept busy by their biases against experts left alone: load and validation loss of deepseek-tiny, three seeds.

The text, vocabulary and settings are those of `gptrs demo --model deepseek-tiny`, without its limit of time. MaxVio is
what the busiest expert has over the mean load, in multiples of it: that of the layer where it is largest, over 256 rows
of held-out text behind the last update.

    python benches/bench_balance.py
    python benches/bench_balance.py --steps 1040
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence

import torch
from harness import record

from gptrs import Dataset, demo, trace
from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint, corpus, pretrain

SEEDS = (1, 2, 3)
WAYS: dict[str, Sequence[str]] = {
    "balanced": (),
    "unbalanced": ("train.bias_speed=0", "train.balance_weight=0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=520, help="updates of each run (default: 520)")
    options = parser.parse_args()
    losses: dict[str, list[float]] = {name: [] for name in WAYS}
    loads: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in SEEDS:
        for name, overrides in WAYS.items():
            loss, load = measured(seed, options.steps, overrides)
            losses[name].append(loss)
            loads[name].append(load)
            print(f"seed {seed}, {name}: val loss {loss:.4f}, MaxVio {load:.2f}", flush=True)
    for name in WAYS:
        record("quality", {
            "task": f"deepseek-tiny, {options.steps} updates, experts {name}", "engine": "gptrs", "seeds": len(SEEDS),
            "val_loss": spread(losses[name]), "max_violation": spread(loads[name]),
        }, packages=["torch"])  # fmt: skip
    ratio = statistics.mean(losses["balanced"]) / statistics.mean(losses["unbalanced"])
    print(f"balanced over unbalanced: {ratio:.4f} of the loss")


def measured(seed: int, steps: int, overrides: Sequence[str]) -> tuple[float, float]:
    """Validation loss and MaxVio of one run."""
    with tempfile.TemporaryDirectory() as work:
        given = (f"run.dir={work}/run", f"run.seed={seed}", f"train.steps={steps}", "train.max_minutes=none")
        config = demo.configured(None, (*given, *overrides), "deepseek-tiny")
        result = pretrain.run(config)
        found = checkpoint.find(config.run.path / "checkpoints").newest
        assert found is not None
        model = Transformer(ModelConfig(**checkpoint.read_state(found)["model"]))
        checkpoint.load_model(found, model)
        val = Dataset(config.run.path / "data" / "val")
        rows = corpus.rows(val, seq_len=config.train.seq_len, batch=16, device=torch.device("cpu"), n_rows=256)
        used = trace.usage(model, ((row.tokens, row.targets) for row in rows), eot_id=None)
        return result.val_loss, max(violation(load.counts) for load in used.loads)


def violation(counts: Sequence[float]) -> float:
    """The busiest expert's load over the mean, in multiples of the mean."""
    return max(counts) * len(counts) / sum(counts) - 1


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(statistics.mean(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


if __name__ == "__main__":
    main()
