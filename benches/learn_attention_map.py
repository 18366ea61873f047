"""Trains a small GPT on English text and draws where its heads look, for docs/learn/attention.md.

python benches/learn_attention_map.py --text FILE [--run DIR] [--minutes 4]

A run that has a checkpoint is only drawn. The picture is of one sentence; the table beside it is the mean over 64 rows
of held-out text. Row: results/learn_map.jsonl.
"""

import argparse
import re
from pathlib import Path

import torch
from harness import ROOT, record

from gptrs.attention_map import Head, attention_weights, draw, heads
from gptrs.cli_model import open_model
from gptrs.train import config as train_config
from gptrs.train import pretrain

PROMPT = "I am from Pune, India. I speak"
PAGE = ROOT / "docs" / "learn" / "attention.md"
MARKERS = re.compile(r"(<!-- map -->\n).*?(<!-- /map -->)", re.DOTALL)
ROWS, LENGTH = 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="English text; its last fiftieth is held out")
    parser.add_argument("--run", type=Path, default=Path("runs/learn_map"))
    parser.add_argument("--minutes", type=float, default=4.0)
    given = parser.parse_args()
    if not any(given.run.glob("checkpoints/step-*")):
        train(given.text, given.run, given.minutes)
    model, tokenizer = open_model(str(given.run), None, "cpu")
    ids = tokenizer.encode(PROMPT)
    weights = attention_weights(model, torch.tensor([ids]))
    draw(PAGE.parent / "attention_map.png", [of_layer[0] for of_layer in weights], [tokenizer.decode([i]) for i in ids])
    end = given.text.read_bytes()[-20 * ROWS * LENGTH :].decode("utf-8", "ignore")
    held_out = torch.tensor(tokenizer.encode(end, disallowed_special=())[: ROWS * LENGTH]).view(ROWS, LENGTH)
    found = heads(attention_weights(model, held_out))
    with torch.no_grad():
        loss = float(model.next_loss(held_out[:, :-1], held_out[:, 1:]))
    step = max(path.name for path in given.run.glob("checkpoints/step-*"))
    means = [[round(x, 3) for x in (h.first, h.previous, h.own, h.entropy)] for h in found]
    row = {"task": "attention map", "step": int(step[5:]), "held_out_loss": round(loss, 3), "heads": means}
    record("learn_map", row, packages=["torch"])
    text = PAGE.read_text("utf-8")
    PAGE.write_text(MARKERS.sub(lambda marks: marks[1] + table(found) + marks[2], text), "utf-8")


def train(text: Path, run: Path, minutes: float) -> None:
    """GPT-2's parts with rotary positions: 3 layers of 4 heads, C = 96, 2,048 ids."""
    settings = {
        "data.text": text, "data.val_fraction": 0.02, "run.dir": run, "run.seed": 1, "tokenizer.vocab_size": 2048,
        "model.position": "rope", "model.dim": 96, "model.n_layers": 3, "train.seq_len": LENGTH, "train.steps": 1500,
        "train.eval_every": 1000, "train.max_minutes": minutes,
    }  # fmt: skip
    pretrain.run(train_config.load("demo", [f"{key}={value}" for key, value in settings.items()]))


def table(found: list[Head]) -> str:
    lines = ["| layer, head | first token | previous | itself | entropy |", "|---|---|---|---|---|"]
    lines += [
        f"| {h.layer}, {h.head} | {h.first:.2f} | {h.previous:.2f} | {h.own:.2f} | {h.entropy:.2f} |" for h in found
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
