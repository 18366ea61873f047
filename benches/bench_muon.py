"""In how many steps Muon reaches AdamW's loss: the same model, text, order of rows and schedule, three seeds each.

python benches/bench_muon.py deepseek_tiny                    # on the source of Python's standard library
python benches/bench_muon.py shakespeare_cpu --data DIR       # DIR holds tinyshakespeare.txt
python benches/bench_muon.py plot                             # the newest rows as results/muon.png

Both optimizers have the best of the same rates for the first seed; weight decay and all else is equal. In deepseek_tiny
Muon's schedule ends at a share of AdamW's steps, so that each run ends with its rate down; losses are those of all
held-out text. shakespeare_cpu trains Muon alone, as long as the config says.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

from harness import RESULTS, arguments, record, summary

from gptrs.demo import standard_library
from gptrs.files import write_atomic
from gptrs.train import corpus, pretrain
from gptrs.train.config import load
from gptrs.train.metrics import read

SEEDS = (1, 2, 3)
COLORS = {"adamw": "#7a9cc6", "muon": "#c44e52"}
LOOKS = 10  # evaluations of a run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("task", choices=["deepseek_tiny", "shakespeare_cpu", "plot"])
    parser.add_argument("--steps", type=int, help="AdamW's updates (default: 200; 2,000 for shakespeare_cpu)")
    parser.add_argument("--share", type=float, default=0.6, help="Muon's steps over AdamW's (default: 0.6)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="rates that are tried")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each (default: 1)")
    options = parser.parse_args()
    workers = ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as work, workers:
        if options.task == "deepseek_tiny":
            deepseek_tiny(Path(work), workers, options.steps or 200, options.share, options.rates)
        elif options.task == "shakespeare_cpu":
            shakespeare_cpu(Path(work), workers, options.data, options.steps or 2000, options.rates)
    plot()


def deepseek_tiny(work: Path, workers: ProcessPoolExecutor, steps: int, share: float, rates: list[float]) -> None:
    shared = _prepared(work)
    lengths = {"adamw": steps, "muon": round(share * steps)}
    found = _tuned(workers, {name: partial(_deepseek, shared, work, name, n) for name, n in lengths.items()}, rates)
    (adamw, adamw_lr, adamw_tried), (muon, muon_lr, muon_tried) = found["adamw"], found["muon"]
    reached = sum(mine <= other for mine, other in zip(muon, adamw, strict=True))
    record("quality", {
        "task": f"deepseek_tiny: Muon in {share} of AdamW's {steps} steps", "engine": "gptrs",
        "adamw": summary(adamw), "muon": summary(muon), "seeds_reached": reached, "share": share,
        "lr": {"adamw": adamw_lr, "muon": muon_lr}, "adamw_rates": adamw_tried, "muon_rates": muon_tried,
    }, packages=["torch"])  # fmt: skip


def shakespeare_cpu(work: Path, workers: ProcessPoolExecutor, data: Path, steps: int, rates: list[float]) -> None:
    run = partial(_shakespeare, data / "tinyshakespeare.txt", work, steps)
    losses, best, tried = _tuned(workers, {"muon": run}, rates)["muon"]
    record("quality", {
        "task": f"shakespeare_cpu with Muon, {steps} steps", "engine": "gptrs", "muon": summary(losses), "lr": best,
        "muon_rates": tried,
    }, packages=["torch"])  # fmt: skip


def _tuned(
    workers: ProcessPoolExecutor, runs: dict[str, Callable[[float, int], float]], rates: list[float]
) -> dict[str, tuple[list[float], float, dict[str, float]]]:
    """Returns for each run the losses of all seeds at the best rate of the first, that rate, and what each gave."""
    sweeps = {name: workers.map(run, rates, [SEEDS[0]] * len(rates)) for name, run in runs.items()}
    tried = {name: dict(zip(rates, losses, strict=True)) for name, losses in sweeps.items()}
    best = {name: min(losses, key=losses.__getitem__) for name, losses in tried.items()}
    others = {name: workers.map(run, [best[name]] * len(SEEDS[1:]), SEEDS[1:]) for name, run in runs.items()}
    return {
        name: (
            [tried[name][best[name]], *others[name]],
            best[name],
            {str(lr): round(loss, 4) for lr, loss in tried[name].items()},
        )
        for name in runs
    }


def _deepseek(shared: list[str], work: Path, name: str, steps: int, lr: float, seed: int) -> float:
    overrides = [*shared, f"optim.name={name}", "train.max_minutes=none", f"schedule.warmup_steps={steps // 10}",
                 "train.eval_rows=16"]  # fmt: skip
    return _run("demo_deepseek_tiny", "deepseek_tiny", work / f"{name}-{lr}-{seed}", steps, lr, seed, overrides)


def _shakespeare(text: Path, work: Path, steps: int, lr: float, seed: int) -> float:
    overrides = [f"data.text={text}", "optim.name=muon", "run.threads=1", "train.eval_rows=64"]
    return _run("shakespeare_cpu", "shakespeare_cpu", work / f"{lr}-{seed}", steps, lr, seed, overrides)


def plot() -> None:
    """Writes results/muon.png: held-out loss over the steps, for each optimizer's best rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (RESULTS / "quality.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [row for row in rows if row["task"].startswith("deepseek_tiny: Muon in ")]
    if not ends:
        return
    newest = {(r["optimizer"], r["lr"], r["seed"]): r for r in rows if r["task"] == "deepseek_tiny run"}
    figure = Figure(figsize=(7.2, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, lr, seed), row in newest.items():
        if lr == ends[-1]["lr"][name]:
            label = f"{name}, {row['steps']} steps, rate {lr:g}" if seed == SEEDS[0] else None
            axes.plot(*zip(*row["curve"], strict=True), "o-", ms=2.5, lw=1, color=COLORS[name], label=label)
    axes.axhline(ends[-1]["adamw"]["median"], ls="--", lw=1, color="#777777", label="AdamW's last loss, median")
    axes.set(xlabel="step", ylabel="held-out loss, nats per token", title="deepseek-tiny, 512 tokens a step, 3 seeds")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(RESULTS / "muon.png", buffer.getvalue())


def _prepared(folder: Path) -> list[str]:
    """Trains the tokenizer and encodes the text once; returns the overrides that name both."""
    config = load("demo_deepseek_tiny", [f"data.text={Path(__file__)}"])
    files = tuple(str(path) for path in standard_library())
    corpus.from_text(
        files, folder, val_fraction=0.005, text_field="text", tokenizer_path=None, threads=0,
        vocab_size=config.tokenizer.vocab_size, pattern=config.tokenizer.pattern,
        special_tokens=config.tokenizer.special_tokens,
    )  # fmt: skip
    return [f"data.train={folder / 'data/train'}", f"data.val={folder / 'data/val'}",
            f"tokenizer.path={folder / 'tokenizer.json'}"]  # fmt: skip


def _run(config_name: str, task: str, folder: Path, steps: int, lr: float, seed: int, overrides: list[str]) -> float:
    """Trains, records the run and its curve, and returns the held-out loss at its end."""
    own = [f"optim.lr={lr}", f"schedule.min_lr={lr / 10}", f"run.seed={seed}", f"run.dir={folder}",
           f"train.steps={steps}", f"train.eval_every={steps // LOOKS}", f"train.checkpoint_every={steps}",
           "sample.max_new_tokens=1"]  # fmt: skip
    config = load(config_name, [*overrides, *own])
    start, start_cpu = time.perf_counter(), time.process_time()
    result = pretrain.run(config)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    lines = [line for line in read(folder / "metrics.jsonl") if line["kind"] == "eval"]
    record("quality", {
        "task": f"{task} run", "engine": "gptrs", "optimizer": config.optim.name, "steps": result.steps,
        "lr": lr, "seed": seed, "val_loss": round(result.val_loss, 4),
        "curve": [[line["step"], round(line["val_loss"], 4)] for line in lines],
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
    }, packages=["torch"])  # fmt: skip
    return result.val_loss


if __name__ == "__main__":
    main()
