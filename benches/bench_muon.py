"""In how many steps Muon reaches AdamW's loss: the same model, text, order of rows and schedule, three seeds each.

python benches/bench_muon.py deepseek_tiny                    # on the source of Python's standard library
python benches/bench_muon.py shakespeare_cpu --data DIR       # DIR holds tinyshakespeare.txt
python benches/bench_muon.py --plot                           # the newest rows as results/muon.png

AdamW's rate is the best of a few for the first seed. In deepseek_tiny Muon has that rate and decay, untuned, and its
schedule ends at a share of AdamW's steps, so that each run ends with its rate down; losses are those of all held-out
text. In shakespeare_cpu both have the same steps and each the best of its rates.
"""

import json
import tempfile
import time
from io import BytesIO
from pathlib import Path

from harness import RESULTS, arguments, record, summary

from gptrs import config as configs
from gptrs.demo import standard_library
from gptrs.files import write_atomic
from gptrs.train import corpus, pretrain
from gptrs.train.config import PretrainConfig, load
from gptrs.train.metrics import read

SEEDS = (1, 2, 3)
COLORS = {"adamw": "#7a9cc6", "muon": "#c44e52"}
LOOKS = 10  # evaluations of a run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("task", nargs="?", choices=["deepseek_tiny", "shakespeare_cpu"])
    parser.add_argument("--steps", type=int, help="AdamW's updates (default: 300; 2,000 for shakespeare_cpu)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.6], help="Muon's steps over AdamW's")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="rates that are tried")
    parser.add_argument("--plot", action="store_true", help="only the plot")
    options = parser.parse_args()
    if options.task == "deepseek_tiny" and not options.plot:
        deepseek_tiny(options.steps or 300, options.shares, options.rates)
    elif options.task == "shakespeare_cpu" and not options.plot:
        shakespeare_cpu(options.data / "tinyshakespeare.txt", options.steps or 2000, options.rates)
    plot()


def deepseek_tiny(steps: int, shares: list[float], rates: list[float]) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        shared = [*_prepared(folder), "sample.max_new_tokens=1", "train.max_minutes=none", "train.eval_rows=32"]

        def run(name: str, n_steps: int, lr: float, seed: int) -> float:
            overrides = [*shared, f"optim.name={name}", f"optim.lr={lr}", f"schedule.min_lr={lr / 10}"]
            config = load("demo_deepseek_tiny", [*overrides, *_looks(n_steps), f"run.seed={seed}",
                                                 f"run.dir={folder / f'{name}-{n_steps}-{lr}-{seed}'}"])  # fmt: skip
            return _run("deepseek_tiny", config)

        tried = {lr: run("adamw", steps, lr, SEEDS[0]) for lr in rates}
        best = min(tried, key=tried.__getitem__)
        adamw = [tried[best], *(run("adamw", steps, best, seed) for seed in SEEDS[1:])]
        for share in shares:
            muon = [run("muon", round(share * steps), best, seed) for seed in SEEDS]
            reached = sum(mine <= other for mine, other in zip(muon, adamw, strict=True))
            record("quality", {
                "task": f"deepseek_tiny: Muon in {share} of AdamW's {steps} steps", "engine": "gptrs",
                "adamw": summary(adamw), "muon": summary(muon), "seeds_reached": reached, "lr": best,
                "adamw_rates": {str(lr): round(loss, 4) for lr, loss in tried.items()},
            }, packages=["torch"])  # fmt: skip


def shakespeare_cpu(text: Path, steps: int, rates: list[float]) -> None:
    with tempfile.TemporaryDirectory() as work:

        def run(lr: float, seed: int) -> float:
            overrides = [f"data.text={text}", "optim.name=muon", f"optim.lr={lr}", f"schedule.min_lr={lr / 10}",
                         *_looks(steps), f"run.seed={seed}", f"run.dir={Path(work) / f'{lr}-{seed}'}",
                         "run.threads=1", "sample.max_new_tokens=1", "train.eval_rows=64"]  # fmt: skip
            return _run("shakespeare_cpu", load("shakespeare_cpu", overrides))

        tried = {lr: run(lr, SEEDS[0]) for lr in rates}
        best = min(tried, key=tried.__getitem__)
        muon = [tried[best], *(run(best, seed) for seed in SEEDS[1:])]
        record("quality", {
            "task": f"shakespeare_cpu with Muon, {steps} steps", "engine": "gptrs", "muon": summary(muon), "lr": best,
            "muon_rates": {str(lr): round(loss, 4) for lr, loss in tried.items()},
        }, packages=["torch"])  # fmt: skip


def plot() -> None:
    """Writes results/muon.png: held-out loss over the steps, for each optimizer's best rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (RESULTS / "quality.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [row for row in rows if row["task"].startswith("deepseek_tiny: Muon in ")]
    if not ends:
        return
    newest = {(r["optimizer"], r["steps"], r["lr"], r["seed"]): r for r in rows if r["task"] == "deepseek_tiny run"}
    figure = Figure(figsize=(7.2, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, steps, lr, seed), row in newest.items():
        if lr == ends[-1]["lr"]:
            label = f"{name}, {steps} steps, rate {lr:g}" if seed == SEEDS[0] else None
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
        files, folder, val_fraction=0.01, text_field="text", tokenizer_path=None, threads=0,
        vocab_size=config.tokenizer.vocab_size, pattern=config.tokenizer.pattern,
        special_tokens=config.tokenizer.special_tokens,
    )  # fmt: skip
    return [f"data.train={folder / 'data/train'}", f"data.val={folder / 'data/val'}",
            f"tokenizer.path={folder / 'tokenizer.json'}"]  # fmt: skip


def _looks(steps: int) -> list[str]:
    return [f"train.steps={steps}", f"train.eval_every={steps // LOOKS}", f"train.checkpoint_every={steps}"]


def _run(task: str, config: PretrainConfig) -> float:
    """Trains, records the run and its curve, and returns the held-out loss at its end."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = pretrain.run(config)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    lines = [line for line in read(Path(result.dir) / "metrics.jsonl") if line["kind"] == "eval"]
    record("quality", {
        "task": f"{task} run", "engine": "gptrs", "optimizer": config.optim.name, "steps": result.steps,
        "lr": config.optim.lr, "seed": config.run.seed, "val_loss": round(result.val_loss, 4),
        "curve": [[line["step"], round(line["val_loss"], 4)] for line in lines], "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1), "optim": configs.to_dict(config.optim),
    }, packages=["torch"])  # fmt: skip
    return result.val_loss


if __name__ == "__main__":
    main()
