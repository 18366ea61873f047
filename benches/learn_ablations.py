"""What goes wrong when a part is left out, for the pages in docs/learn: small models, three seeds each.

python benches/learn_ablations.py              # every part; rows go to results/learn.jsonl
python benches/learn_ablations.py moe mtp      # some of them
python benches/learn_ablations.py --write      # puts the newest rows into the pages
python benches/learn_ablations.py --check      # exit code 1 when a page says something else

Everything is trained with AdamW at 3e-3. Losses are nats, over fresh batches or held-out text. The text is the source
of Python's argparse, one byte a token, its last tenth held out.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, ROOT, record, summary
from torch import Tensor, nn

from gptrs.generate import generate
from gptrs.model import ModelConfig, Transformer
from gptrs.model.loss import IGNORED
from gptrs.model.moe import max_violation, rebalance

SEEDS = (1, 2, 3)
MARKERS = re.compile(r"(<!-- measured (\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)
Batches = Callable[[torch.Generator], tuple[Tensor, Tensor]]
Case = tuple[str, dict[str, list[float]]]  # its name, and each figure's value for every seed


class Nothing(nn.Module):
    """Stands where attention was."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(x)


class Number(nn.Module):
    """An id as a number times one learned direction, in place of a vector for each id."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_ids = config.vocab_size
        self.direction = nn.Parameter(torch.randn(config.dim) * 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens / self.n_ids - 0.5).unsqueeze(-1) * self.direction


def small(seed: int = 0, **sizes: Any) -> Transformer:
    """GPT-2's parts in small, or what `sizes` say."""
    defaults = {"max_seq_len": 64, "dim": 64, "n_layers": 1, "n_heads": 4, "inter_dim": 256, "init_std": 0.05}
    return Transformer(ModelConfig(**{**defaults, **sizes}), seed=seed)


def train(model: Transformer, batches: Batches, n_steps: int, seed: int, **loss: Any) -> Iterator[int]:
    """Yields after each update."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    for step in range(n_steps):
        tokens, targets = batches(generator)
        model.loss(tokens, targets, **loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step


def loss_after(model: Transformer, batches: Batches, n_steps: int, seed: int) -> float:
    """The next-token loss over eight fresh batches behind the training."""
    for _ in train(model, batches, n_steps, seed):
        pass
    fresh = torch.Generator().manual_seed(10_000 + seed)
    with torch.no_grad():
        return sum(float(model.next_loss(*batches(fresh))) for _ in range(8)) / 8


# ── the parts, in the order of the pages ──


def token_embedding() -> Iterator[Case]:
    """Each of 64 ids has a partner that is to be named: a look-up, and nothing else."""

    def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        partner = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        tokens = torch.randint(64, (32, 16), generator=generator)
        return tokens, partner[tokens]

    def run(name: str, change: Callable[[Transformer], None]) -> Case:
        losses = []
        for seed in SEEDS:
            model = small(seed, vocab_size=64, is_head_tied=False)
            change(model)
            losses.append(loss_after(model, batches, 150, seed))
        return name, {"loss": losses}

    yield run("a trained vector for each id", lambda model: None)
    yield run("random vectors, frozen", lambda model: setattr(model.embed.token.weight, "requires_grad", False))
    yield run("the id as a number on one line", lambda model: setattr(model.embed, "token", Number(model.config)))


def copied(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight ids of 16, a separator, the eight again, which count."""
    first = torch.randint(16, (32, 8), generator=generator)
    row = torch.cat((first, torch.full((32, 1), 16), first), dim=1)  # (B, 17)
    targets = row[:, 1:].clone()
    targets[:, :8] = IGNORED
    return row[:, :-1], targets


def positions() -> Iterator[Case]:
    for name, position in (
        ("learned", "learned"),
        ("sinusoidal", "sinusoidal"),
        ("rotary", "rope"),
        ("none", "learned"),
    ):
        losses = []
        for seed in SEEDS:
            model = small(seed, vocab_size=17, position=position)
            if name == "none":
                model.embed.position = None
            losses.append(loss_after(model, copied, 300, seed))
        yield name, {"loss on the copied half": losses}


def sums(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each id is the sum of the two before it, modulo 7."""
    row = torch.randint(7, (32, 2), generator=generator)
    for _ in range(15):
        row = torch.cat((row, (row[:, -1:] + row[:, -2:-1]) % 7), dim=1)
    targets = row[:, 1:].clone()
    targets[:, 0] = IGNORED
    return row[:, :-1], targets


def attention() -> Iterator[Case]:
    for name in ("with attention", "without"):
        losses = []
        for seed in SEEDS:
            model = small(seed, vocab_size=7)
            if name == "without":
                model.layers[0].attn = Nothing()
            losses.append(loss_after(model, sums, 300, seed))
        yield name, {"loss": losses}


def four_back(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bits; to be named is the number that the last four of them spell."""
    tokens = torch.randint(2, (32, 24), generator=generator)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, 3:] = sum(tokens[:, 3 - back : 24 - back] << back for back in range(4))  # type: ignore[arg-type]
    return tokens, targets


def multi_head() -> Iterator[Case]:
    for n_heads in (1, 2, 4):
        losses = [loss_after(small(seed, vocab_size=16, n_heads=n_heads), four_back, 200, seed) for seed in SEEDS]
        yield f"{n_heads} heads of {64 // n_heads}" if n_heads > 1 else "1 head of 64", {"loss": losses}


def kv_cache() -> Iterator[Case]:
    model = small(vocab_size=256, max_seq_len=1024, dim=128, n_layers=4, n_heads=4, inter_dim=512).eval()
    for n_known in (128, 512, 960):
        prompt = torch.randint(256, (n_known,), generator=torch.Generator().manual_seed(n_known)).tolist()
        ms: dict[bool, list[float]] = {True: [], False: []}
        for _ in SEEDS:
            ids = {}
            for use_cache in (True, False):
                start = time.process_time()
                ids[use_cache] = generate(model, [prompt], max_new_tokens=17, temperature=0.0, use_cache=use_cache)
                whole = time.process_time() - start
                start = time.process_time()
                generate(model, [prompt], max_new_tokens=1, temperature=0.0, use_cache=use_cache)
                ms[use_cache].append((whole - (time.process_time() - start)) / 16 * 1000)
            assert ids[True] == ids[False], "the cache changes what is written"
        yield f"{n_known} tokens known", {"CPU ms a new token, with": ms[True], "without": ms[False]}


def text_batches(*, is_held_out: bool = False, is_shifted: bool = True) -> Batches:
    data = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()), dtype=torch.uint8).long()
    cut = len(data) * 9 // 10
    part = data[cut:] if is_held_out else data[:cut]

    def batches(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(part) - 64, (16,), generator=generator)
        rows = part[starts.unsqueeze(-1) + torch.arange(65)]  # (16, 65)
        return rows[:, :-1], rows[:, 1:] if is_shifted else rows[:, :-1]

    return batches


MODERN = {"vocab_size": 256, "position": "rope", "norm": "rms", "feed_forward": "swiglu", "has_bias": False}
EXPERTS = {"n_routed_experts": 16, "n_activated_experts": 2, "n_shared_experts": 1, "moe_inter_dim": 32}


def mla() -> Iterator[Case]:
    """One kind of attention for another at equal heads: what it costs in loss, on text, and in cached numbers."""
    kinds: dict[str, dict[str, Any]] = {
        "MHA": {}, "MQA": {"n_kv_heads": 1},
        "MLA, latent 24 + 8": {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    }  # fmt: skip
    for name, sizes in kinds.items():
        losses, cached = [], []
        for seed in SEEDS:
            model = small(seed, **MODERN, n_layers=2, **sizes)
            for _ in train(model, text_batches(), 200, seed):
                pass
            losses.append(held_out_loss(model))
            config = model.config
            cached.append(float(config.kv_lora_rank + config.qk_rope_head_dim if config.is_latent
                                else 2 * config.kv_heads * config.head_dim))  # fmt: skip
        yield name, {"cached numbers a token and layer": cached, "held-out loss": losses}


@torch.no_grad()
def held_out_loss(model: Transformer) -> float:
    fresh, batches = torch.Generator().manual_seed(0), text_batches(is_held_out=True)
    return sum(float(model.next_loss(*batches(fresh))) for _ in range(16)) / 16


def moe() -> Iterator[Case]:
    for name, speed in (("bias moved by 0.01 a step", 0.01), ("never", 0.0)):
        violations, idle, losses = [], [], []
        for seed in SEEDS:
            model = small(seed, **MODERN, **EXPERTS).train()
            ((_, layer),) = model.experts()
            late = torch.zeros(16, dtype=torch.int64)
            seen = []
            for step in train(model, text_batches(), 200, seed, balance_weight=0.0):
                loads = layer.take_loads()
                rebalance(layer.router, loads, speed=speed)
                if step >= 150:
                    seen.append(max_violation(loads))
                    late += loads
            violations.append(sum(seen) / len(seen))
            idle.append(float((late < late.sum() / 16 / 4).sum()))
            losses.append(held_out_loss(model))
        yield name, {"MaxVio, steps 150 to 200": violations, "experts below a quarter of the mean load": idle,
                     "held-out loss": losses}  # fmt: skip


def mtp() -> Iterator[Case]:
    for name, weight in (("λ = 0.3", 0.3), ("λ = 0", 0.0)):
        losses, accepted = [], []
        for seed in SEEDS:
            model = small(seed, **MODERN, n_layers=2, n_mtp_layers=1)
            for _ in train(model, text_batches(), 200, seed, mtp_weight=weight):
                pass
            losses.append(held_out_loss(model))
            accepted.append(acceptance(model.eval()))
        yield name, {"held-out loss of the next token": losses, "drafts that the model would have written": accepted}


@torch.no_grad()
def acceptance(model: Transformer) -> float:
    """How often the likeliest second token is the one that the model itself finds likeliest a position later."""
    fresh, batches, n_equal, n = torch.Generator().manual_seed(0), text_batches(is_held_out=True), 0, 0
    for _ in range(8):
        tokens, _ = batches(fresh)
        hidden = model.hidden(tokens)  # (B, T, C)
        ((states, _),) = model.further_states(hidden, tokens, None, None)  # (B, T - 1, C)
        is_equal = model.logits(states).argmax(-1) == model.logits(hidden[:, 1:]).argmax(-1)  # (B, T - 1)
        n_equal, n = n_equal + int(is_equal.sum()), n + is_equal.numel()
    return n_equal / n


def objective() -> Iterator[Case]:
    for name, is_shifted in (("targets one to the right", True), ("targets not shifted", False)):
        own, true, distinct = [], [], []
        for seed in SEEDS:
            model = small(seed, vocab_size=256, n_layers=2)
            own.append(loss_after(model, text_batches(is_shifted=is_shifted), 200, seed))
            true.append(held_out_loss(model))
            (new,) = generate(model, [list(b"    def ")], max_new_tokens=40, temperature=0.0)
            distinct.append(float(len(set(new))))
        yield name, {"training loss": own, "held-out loss of the next token": true,
                     "different bytes in 40 written": distinct}  # fmt: skip


PARTS = {part.__name__: part for part in
         (token_embedding, positions, attention, multi_head, kv_cache, mla, moe, mtp, objective)}  # fmt: skip


# ── rows and pages ──


def measure(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        start = time.process_time()
        for case, figures in PARTS[name]():
            row = {"task": name, "case": case, "seeds": list(SEEDS),
                   "figures": {figure: summary(values, 4) for figure, values in figures.items()}}  # fmt: skip
            record("learn", row, packages=["torch"])
        print(f"{name}: {time.process_time() - start:.0f} s", file=sys.stderr)


def table(name: str) -> str:
    """The rows of the newest run of one part; smallest and largest beside the median where they differ."""
    rows = [json.loads(line) for line in (RESULTS / "learn.jsonl").read_text("utf-8").splitlines()]
    newest = {row["case"]: row["figures"] for row in rows if row["task"] == name}
    figures = list(next(iter(newest.values())))
    lines = ["| | " + " | ".join(figures) + " |", "|---" * (1 + len(figures)) + "|"]
    lines += [f"| {case} | " + " | ".join(map(_cell, of_case.values())) + " |" for case, of_case in newest.items()]
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, float]) -> str:
    low, middle, high = (_short(found[key]) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def pages(*, is_written: bool) -> int:
    """Puts the tables into the pages, or says which differ."""
    wrong = 0
    for path in sorted((ROOT / "docs" / "learn").glob("*.md")):
        text = path.read_text("utf-8")
        new = MARKERS.sub(lambda found: found[1] + table(found[2]) + found[3], text)
        if is_written:
            path.write_text(new, "utf-8")
        elif new != text:
            print(f"{path.name} differs from benches/results/learn.jsonl; hint: --write")
            wrong = 1
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="by default all")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if given.write or given.check:
        return pages(is_written=given.write)
    measure(given.parts or list(PARTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
