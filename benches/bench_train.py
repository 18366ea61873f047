"""Training steps and the loss's memory, ours and peers with the same shapes, batches, optimizer and threads, in turn.

    python benches/bench_train.py                       # cpu, loss, compile, moe; on a CUDA device all but cpu's
    python benches/bench_train.py --only gpt2 ladder    # some of them
    python benches/bench_train.py --only gpt2 --tiny    # the same code with tiny shapes on the CPU; no row is kept

cpu: nanoGPT's CPU setting against transformers. loss: the loss over 129,280 tokens, forward and backward. compile: what
a start and a step cost by speed.compile. gpt2: GPT-2 124M in bf16 against transformers, compiled. moe: deepseek-small
against a dense model of as many active parameters, on the CPU four layers of it in fp32. ladder: what each setting of
[speed] gains.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, child, record, summary
from train_steps import DTYPES, config_of, gpt2_of_transformers, peak, reset_peak, steps_child

from gptrs.exchange.hf import export_hf
from gptrs.model import ModelConfig, Transformer, next_token_loss
from gptrs.model.loss import linear_cross_entropy

V, C, L, H, T, B = 256, 128, 4, 4, 64, 12
STEPS = 100
PACKAGES = ["torch", "transformers"]
CUDA_TASKS = ("gpt2", "ladder")
LOSS = {"N": 8192, "V": 129_280, "C": 2048}
MOST_GB = {"fp32": 0.6, "bf16": 0.4}  # of the loss above inputs and gradients

# What stands at each rung of the ladder; the settings of the one before stay.
RUNGS: dict[str, dict[str, Any]] = {
    "fp32, eager": {"dtype": "fp32", "vocab_multiple": 1},
    "+ tf32": {"dtype": "fp32", "vocab_multiple": 1, "tf32": True},
    "+ bf16": {"dtype": "bf16", "vocab_multiple": 1},
    "+ vocab_multiple 128": {"dtype": "bf16"},
    "+ compile blocks": {"dtype": "bf16", "compile": "blocks"},
    "+ compile whole": {"dtype": "bf16", "compile": "whole"},
    "+ cuda_graphs": {"dtype": "bf16", "compile": "whole", "cuda_graphs": True},
    "blocks, fp8": {"dtype": "bf16", "compile": "blocks", "fp8": True},
    "blocks, checkpoint_blocks 2": {"dtype": "bf16", "compile": "blocks", "checkpoint_blocks": 2},
    "blocks, checkpoint_blocks 1": {"dtype": "bf16", "compile": "blocks", "checkpoint_blocks": 1},
}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=TASKS, help="tasks to run")
    parser.add_argument("--tiny", action="store_true", help="CUDA's tasks with tiny shapes on the CPU, rows not kept")
    parser.add_argument("--batch", type=int, default=32, help="rows of a step on CUDA (default: 32)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a repeat on CUDA (default: 20)")
    options = parser.parse_args()
    has_cuda = torch.cuda.is_available()
    chosen = options.only or (["loss", "moe", *CUDA_TASKS] if has_cuda else ["cpu", "loss", "compile", "moe"])
    missing = [task for task in chosen if task in CUDA_TASKS and not (has_cuda or options.tiny)]
    if missing:
        print(f"{', '.join(missing)}: needs a CUDA device, torch finds none; hint: --tiny runs the code on the CPU")
        return 1
    for task in chosen:
        TASKS[task](options)
    return 0


# ── cpu ──


def cpu(options: argparse.Namespace) -> None:
    batches = make_batches()
    model = Transformer(ModelConfig(vocab_size=V, max_seq_len=T, dim=C, n_layers=L, n_heads=H, inter_dim=4 * C))
    engines = {"gptrs": engine_of(model.parameters(), model.loss), "transformers GPT2LMHeadModel": theirs(model)}
    first = {name: float(engine(batches[0], update=False)) for name, engine in engines.items()}
    assert max(first.values()) - min(first.values()) < 1e-4, f"untrained losses differ: {first}"
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for round_ in range(options.rounds + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            for step in range(STEPS):
                loss = engine(batches[step % len(batches)], update=True)
            rate = STEPS / (time.perf_counter() - start)
            if round_ > 0:  # the first round warms up
                rates[name].append(rate)
    for name, engine in engines.items():
        last = float(engine(batches[0], update=False))
        assert last < first[name] - 0.5, f"{name} did not learn: {first[name]} -> {last}"
        record("train", {"task": "train nanoGPT's CPU setting, fp32, fused AdamW, 2 threads", "engine": name,
                         "B": B, "T": T, "threads": torch.get_num_threads(), "last_loss": round(float(loss), 4),
                         "steps_per_s": summary(rates[name], 2)}, packages=PACKAGES)  # fmt: skip


def make_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of a text that can be learned: this file, repeated."""
    data = np.frombuffer(Path(__file__).read_bytes() * 4, dtype=np.uint8).astype(np.int64)
    rng = np.random.default_rng(0)
    rows = [torch.from_numpy(np.stack([data[s : s + T + 1] for s in rng.integers(0, len(data) - T - 1, B)]))
            for _ in range(32)]  # fmt: skip
    return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


def engine_of(parameters, loss_of):  # type: ignore[no-untyped-def]
    """One training step as a function: forward, backward, clip to 1.0, fused AdamW."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def step(batch: tuple[torch.Tensor, torch.Tensor], *, update: bool) -> torch.Tensor:
        loss = loss_of(*batch)
        if update:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def theirs(model: Transformer):  # type: ignore[no-untyped-def]
    """transformers' model with the same weights, and its step."""
    other = gpt2_of_transformers(model.config)
    with tempfile.TemporaryDirectory() as folder:
        export_hf(model, folder)
        other.load_state_dict(type(other).from_pretrained(folder).state_dict())

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(other(tokens).logits.flatten(0, 1), targets.flatten())

    return engine_of(other.parameters(), loss_of)


# ── loss ──


def loss(options: argparse.Namespace) -> None:
    """A process each: its peak is the engine's own. Gradients go through files, to be compared with the plain ones."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"N": 64, "V": 2000, "C": 32} if options.tiny else LOSS
    for name in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            runs = {engine: measured(engine, device, name, folder, *sizes.values()) for engine in ("gptrs", "plain")}
            apart = {key: distance(Path(folder), key) for key in ("hidden", "weight")}
        apart["loss"] = abs(runs["gptrs"]["loss"] / runs["plain"]["loss"] - 1.0)
        most = 1e-5 if name == "fp32" else 2e-2  # plain gradients in bf16 are themselves that far from the true ones
        assert max(apart.values()) <= most, f"{name}: loss or gradients differ by {apart}"
        for engine, run in runs.items():
            row = {"task": f"loss of {sizes['N']:,} tokens, vocabulary {sizes['V']:,}, dim {sizes['C']:,}, {name}, "
                           f"forward and backward, {device}", "engine": engine, "loss": run["loss"],
                   "gb_above": round(run["gb_above"], 3), "seconds": round(run["seconds"], 2),
                   "threads": torch.get_num_threads(),
                   "apart": {key: float(f"{value:.2e}") for key, value in apart.items()}}  # fmt: skip
            keep(row, options)
        if not options.tiny:
            assert runs["gptrs"]["gb_above"] <= MOST_GB[name], f"{name}: {runs['gptrs']['gb_above']} GB"


def measured(*given: Any) -> dict[str, Any]:
    return child(__file__, "loss", *map(str, given))


def loss_child(engine: str, device: str, name: str, folder: str, *sizes: str) -> dict[str, Any]:
    """One forward and backward pass; memory is what it takes above inputs, weight and the gradients of both."""
    n, v, c = map(int, sizes)
    dtype = DTYPES[name]
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, std: float) -> torch.Tensor:
        out = torch.empty(rows, c, dtype=dtype)
        for part in out.split(4096):  # without all of it in float32
            part.copy_(torch.randn(len(part), c, generator=generator) * std)
        return out.to(device).requires_grad_()

    hidden, weight = normal(n, 1.0), normal(v, 0.02)
    targets = torch.randint(v, (1, n), generator=generator).to(device)

    def run(x: torch.Tensor, w: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(0)
        found = linear_cross_entropy(x, w, ids) if engine == "gptrs" else next_token_loss(x @ w.T, ids)
        found.backward()
        return found.detach()

    run(hidden[:16], weight[:512], targets[:, :16] % 512)  # what libraries take for themselves
    hidden.grad = weight.grad = None
    gc.collect()
    before = reset_peak(device)
    start = time.perf_counter()
    value = run(hidden, weight, targets).item()  # the head itself: a slice of it would have a gradient of its own
    seconds = time.perf_counter() - start
    above = peak(device) - before - (hidden.nbytes + weight.nbytes) / 1e9
    for key, tensor in (("hidden", hidden), ("weight", weight)):
        tensor.grad.float().cpu().numpy().tofile(Path(folder) / f"{engine}.{key}")
    return {"loss": value, "gb_above": above, "seconds": seconds}


def distance(folder: Path, key: str) -> float:
    """‖a - b‖ / ‖b‖ of two files of float32."""
    a, b = (np.memmap(folder / f"{engine}.{key}", np.float32, "r") for engine in ("gptrs", "plain"))
    squares = np.zeros(2)
    for start in range(0, len(b), 1 << 24):
        part = slice(start, start + (1 << 24))
        true = b[part].astype(np.float64)
        squares += ((a[part] - true) ** 2).sum(), (true**2).sum()
    return float(np.sqrt(squares[0] / squares[1]))


# ── steps of training on CUDA, and what compilation costs on the CPU ──


def compile_(options: argparse.Namespace) -> None:
    """Eight layers, so that compiling each or all of them would show."""
    sizes = {"dim": 32, "n_layers": 2} if options.tiny else {"dim": 128, "n_layers": 8}
    shape = {"preset": "gpt2-small", "vocab_size": V, "max_seq_len": T, "n_heads": H,
             "inter_dim": 4 * sizes["dim"], **sizes}  # fmt: skip
    for kind in (None, "blocks", "whole"):
        run = steps(shape, {"dtype": "fp32", "compile": kind}, rows=B, n_steps=options.steps, n_repeats=3, device="cpu")
        keep({"task": f"{sizes['n_layers']} layers, dim {sizes['dim']}, {B} × {T} tokens, CPU, by speed.compile",
              "engine": f"gptrs, {kind or 'eager'}", "start_s": round(run["start_s"], 1),
              "steps_per_s": summary(run["steps_per_s"], 2)}, options)  # fmt: skip


def gpt2(options: argparse.Namespace) -> None:
    shape: dict[str, Any] = {"preset": "gpt2-small"}
    if options.tiny:
        shape |= {"vocab_size": 300, "max_seq_len": 16, "dim": 32, "n_layers": 2, "n_heads": 2, "inter_dim": 128}
    kind = None if options.tiny else "blocks"
    engines = {
        "gptrs": {"dtype": "bf16", "compile": kind},
        "transformers GPT2LMHeadModel": {"dtype": "bf16", "compile": kind, "peer": True},
    }
    compare("GPT-2 124M, context 1,024, bf16, fused AdamW", {name: (shape, given) for name, given in engines.items()},
            options)  # fmt: skip


def moe(options: argparse.Namespace) -> None:
    sparse: dict[str, Any] = {"preset": "deepseek-small"}
    on_cpu = not (torch.cuda.is_available() or options.tiny)
    if on_cpu:
        sparse |= {"n_layers": 4, "max_seq_len": 512}
    if options.tiny:
        sparse = {"preset": "deepseek-tiny", "vocab_size": 300, "n_layers": 2}
    config = config_of(sparse)
    active = (config.n_activated_experts + config.n_shared_experts) * config.moe_inter_dim
    dense = sparse | {"n_routed_experts": 0, "n_shared_experts": 0, "n_activated_experts": 0, "n_dense_layers": 0,
                      "moe_inter_dim": 0, "inter_dim": active}  # fmt: skip
    given = {"dtype": "fp32" if on_cpu else "bf16", "compile": None if on_cpu or options.tiny else "blocks"}
    what = "4 layers, 512 positions, fp32, CPU" if on_cpu else "bf16"
    rows = compare(f"{sparse['preset']}, {what}, FLOP/s beside a dense model of as many active parameters",
                   {"gptrs": (sparse, given), "gptrs, dense": (dense, given)}, options, on_cpu=on_cpu)  # fmt: skip
    print(f"MFU ratio {rows[0]['gflop_per_s'] / rows[1]['gflop_per_s']:.3f}")


def ladder(options: argparse.Namespace) -> None:
    shape: dict[str, Any] = {"preset": "gpt2-small"}
    if options.tiny:
        shape |= {"vocab_size": 301, "max_seq_len": 16, "dim": 32, "n_layers": 2, "n_heads": 2, "inter_dim": 128}
    for name, rung in RUNGS.items():
        cuda_only = ("compile", "cuda_graphs", "fp8") if options.tiny else ()
        given = {key: value for key, value in rung.items() if key not in cuda_only}
        compare("GPT-2 124M, context 1,024, by setting", {f"gptrs, {name}": (shape, given)}, options)


def compare(
    task: str, engines: dict[str, tuple[Any, Any]], options: argparse.Namespace, *, on_cpu: bool = False
) -> list[dict[str, Any]]:
    """Rows of engines, each in processes of its own, in turn."""
    if options.tiny:
        device, rows, n_steps, n_rounds = "cpu", 2, 2, 1
    elif on_cpu:
        device, rows, n_steps, n_rounds = "cpu", 4, 1, 2
    else:
        device, rows, n_steps, n_rounds = "cuda", options.batch, options.steps, 2
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for _ in range(n_rounds):
        for name, (shape, given) in engines.items():
            runs[name].append(steps(shape, given, rows=rows, n_steps=n_steps, n_repeats=3, device=device))
    first = [found[0]["first_loss"] for found in runs.values()]
    assert max(first) - min(first) < 0.3, f"untrained losses differ: {dict(zip(runs, first, strict=True))}"
    out = []
    for name, found in runs.items():
        assert all(run["last_loss"] < run["first_loss"] for run in found), f"{name} did not learn: {found}"
        tokens = [rate * found[0]["n_tokens"] for run in found for rate in run["steps_per_s"]]
        flop_per_s = summary(tokens, 0)["median"] * found[0]["flops_per_token"]
        row = {"task": f"{task}, {rows} rows", "engine": name, "device": found[0]["device"],
               "tokens_per_s": summary(tokens, 0), "gflop_per_s": round(flop_per_s / 1e9, 1),
               "mfu": found[0]["mfu_of"] and round(flop_per_s / found[0]["mfu_of"], 4),
               "peak_mb": summary([run["peak_mb"] for run in found], 0),
               "start_s": summary([run["start_s"] for run in found], 1)}  # fmt: skip
        keep(row, options)
        out.append(row)
    return out


def steps(shape: Any, given: Any, *, rows: int, n_steps: int, n_repeats: int, device: str) -> dict[str, Any]:
    """Training steps in a process of their own."""
    plan = {"shape": shape, "given": given, "rows": rows, "n_steps": n_steps, "n_repeats": n_repeats, "device": device}
    return child(__file__, "steps", json.dumps(plan))


def keep(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Records a row, or shows it when its shapes are tiny."""
    if options.tiny:
        print(json.dumps(row))
    else:
        record("train", row, packages=PACKAGES)


TASKS = {"cpu": cpu, "loss": loss, "compile": compile_, "gpt2": gpt2, "moe": moe, "ladder": ladder}
CHILDREN = {"loss": loss_child, "steps": steps_child}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in CHILDREN:
        print(json.dumps(CHILDREN[sys.argv[1]](*sys.argv[2:])))
        sys.exit(0)
    sys.exit(main())
