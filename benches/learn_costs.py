"""MHA, GQA, MQA and MLA of the same heads side by side, for docs/learn/mla.md: counted, and one measured column.

python benches/learn_costs.py             # measures decoding; rows go to results/learn_costs.jsonl
python benches/learn_costs.py --write     # puts table and picture into docs/learn
python benches/learn_costs.py --check     # exit code 1 when the page says something else
"""

import json
import re
import sys
import time
from typing import Any

import torch
from harness import RESULTS, ROOT, record, summary

from gptrs.model import ModelConfig, count, new_cache
from gptrs.model.attention import Attention
from gptrs.model.mla import LatentAttention
from gptrs.model.rope import rotations

CACHED = 8192
_PLAIN: dict[str, Any] = {
    "vocab_size": 256, "max_seq_len": 2 * CACHED, "dim": 2048, "n_layers": 1, "n_heads": 16, "inter_dim": 64,
    "position": "rope", "norm": "rms", "has_bias": False,
}  # fmt: skip
_LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
KINDS = {
    "MHA": ModelConfig(**_PLAIN),
    "GQA, K = 4": ModelConfig(**_PLAIN, n_kv_heads=4),
    "MQA": ModelConfig(**_PLAIN, n_kv_heads=1),
    "MLA": ModelConfig(**_PLAIN, **_LATENT),
}
PAGE = ROOT / "docs" / "learn" / "mla.md"
PICTURE = PAGE.parent / "costs.png"
MARKERS = re.compile(r"(<!-- costs -->\n).*?(<!-- /costs -->)", re.DOTALL)


def costs(config: ModelConfig) -> dict[str, int]:
    """Parameters, cache bytes in bfloat16, and FLOPs of one layer's attention for one token, forward alone."""
    n_params = count.by_layer(config)["0"]["attention"]
    scores = count.attention_flops(config, CACHED) // 3
    # Absorbed, each head multiplies with the cached latent twice: as key with the rotated part, as value without.
    absorbed = 2 * config.n_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim) * CACHED
    return {
        "parameters": n_params,
        "cache bytes a token": count.kv_bytes_per_token(config),
        "prefill FLOPs a token": 2 * n_params + scores // 2,  # causal: half of the square
        "decode FLOPs a token": 2 * n_params + (absorbed if config.is_latent else scores),
    }


@torch.inference_mode()
def tokens_per_s(config: ModelConfig, n_tokens: int = 8) -> list[float]:
    """One new token at a time through one layer behind CACHED positions, by CPU time."""
    torch.manual_seed(0)
    layer = (LatentAttention if config.is_latent else Attention)(config, 0)
    cache = new_cache(config, 1, CACHED + n_tokens + 2)
    cache.advance(CACHED)
    for states in cache.seen(0):
        states.normal_()
    rates = []
    for _ in range(n_tokens + 2):
        x, turns = torch.randn(1, 1, config.dim), rotations(config, cache.positions(1)).float()
        start = time.process_time()
        layer(x, cache=cache, turns=turns)
        rates.append(1 / (time.process_time() - start))
        cache.advance(1)
    return rates[2:]


def measure() -> None:
    torch.set_num_threads(1)
    for kind, config in KINDS.items():
        row = {"task": "decode one layer", "engine": kind, "cached": CACHED, "threads": 1,
               "tokens_per_cpu_s": summary(tokens_per_s(config), 1)}  # fmt: skip
        record("learn_costs", row, packages=["torch"])


def newest() -> dict[str, float]:
    rows = [json.loads(line) for line in (RESULTS / "learn_costs.jsonl").read_text("utf-8").splitlines()]
    return {row["engine"]: row["tokens_per_cpu_s"]["median"] for row in rows}


def table() -> str:
    measured = newest()
    lines = [
        f"| | parameters | cache bytes a token, bf16 | prefill of {CACHED:,}: MFLOPs a token | "
        f"decode at {CACHED:,}: MFLOPs a token | MB read a token | decode, tokens a CPU second |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, config in KINDS.items():
        params, cached, prefill, decode = costs(config).values()
        lines.append(f"| {kind} | {params:,} | {cached:,} | {prefill / 1e6:.1f} | {decode / 1e6:.1f} | "
                     f"{cached * CACHED / 1e6:.1f} | {measured[kind]:.0f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def draw() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    measured = newest()
    panels = {
        "million parameters": [costs(config)["parameters"] / 1e6 for config in KINDS.values()],
        "cache, bytes a token": [costs(config)["cache bytes a token"] for config in KINDS.values()],
        f"MFLOPs a new token at {CACHED:,}": [costs(c)["decode FLOPs a token"] / 1e6 for c in KINDS.values()],
        "tokens a CPU second, fp32": [measured[kind] for kind in KINDS],
    }
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        bars = axes.bar([kind.split(",")[0] for kind in KINDS], values, color=["#7a9cc6"] * 3 + ["#c44e52"])
        axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values], fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(PICTURE)


def main() -> int:
    if not {"--write", "--check"} & set(sys.argv):
        measure()
        return 0
    text = PAGE.read_text("utf-8")
    new = MARKERS.sub(lambda found: found[1] + table() + found[2], text)
    if "--write" in sys.argv:
        PAGE.write_text(new, "utf-8")
        draw()
    elif new != text:
        print(f"{PAGE.name} differs from the formulas or benches/results/learn_costs.jsonl; hint: --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
