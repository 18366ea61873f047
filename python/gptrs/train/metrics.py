"""What a run tells while it goes: metrics.jsonl, TensorBoard, loss.png, a progress line; and what a FLOP is worth here.

metrics.jsonl has one JSON object a line, by `kind`; null stands for what is no number:
    train   step, loss, lr, grad_norm, tokens_per_s, mfu, time_s    of that update; time_s: training time since step 0
            memory_bytes                                            allocated on the GPU, at most so far; on the CPU
                                                                    what the process holds
            next_loss, further_loss, balance_loss                   parts of `loss` before they are weighted, where the
                                                                    model predicts further tokens or has experts
            z_loss                                                  mean log²Z, where train.z_loss weighs it
            max_violation                                           of the layer whose busiest expert has the most over
                                                                    the mean load, in multiples of that
    eval    step, val_loss, bits_per_byte, n_targets, time_s        loss in nats for a token
            ema_val_loss                                            that of the weights' running mean, with train.ema
    stats   step, KIND/LAYER/PART, …                                every log.stats_every updates; kinds in `stats`
    event   step, event, text, …                                    something out of the ordinary: its name, what
                                                                    happened, and values that belong to the name
"""

import json
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from gptrs import _core
from gptrs.files import write_atomic

# Dense bf16 tensor-core peaks in FLOP/s; the larger figures of data sheets are for 2:4 sparsity. First match of whole
# words wins: an RTX A4000 is no A40.
CUDA_PEAKS = (
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("H20", 148e12),
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A40", 149.7e12),
    ("A6000", 154.8e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("V100", 125e12),
    ("T4", 65e12),
)
_SHORT = {
    "next_loss": "next", "further_loss": "further", "balance_loss": "balance", "z_loss": "log²Z",
    "max_violation": "MaxVio",
}  # fmt: skip
CURVE_POINTS = 100  # means of neighbouring losses in loss.png: single small batches scatter


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float | None, str]:
    """Returns the FLOP/s that MFU divides by, and what that figure is; None for a GPU that is not in the table."""
    if device.type != "cuda":
        n_threads = torch.get_num_threads()
        return _cpu_peak(dtype, n_threads), f"{n_threads}-thread matmul, measured"
    name = torch.cuda.get_device_name(device)
    return cuda_peak(name), f"{name} dense bf16"


def cuda_peak(name: str) -> float | None:
    """Returns the dense bf16 FLOP/s of a GPU by its name, None for one that is not in the table."""
    return next((peak for key, peak in CUDA_PEAKS if re.search(rf"\b{key}\b", name)), None)


@cache
def _cpu_peak(dtype: torch.dtype, n_threads: int) -> float:
    """Measured once in a process, for all runs in it with as many threads."""
    return measured_peak(dtype)


def measured_peak(dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.3) -> float:
    """Returns the FLOP/s of the best of several square matmuls on the CPU with torch's present threads."""
    a = torch.ones(size, size, dtype=dtype)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory(device: torch.device) -> tuple[int, int]:
    """Returns the bytes that a run takes and those there are: on CUDA the most that were allocated so far and the
    device's, elsewhere what this process holds and the machine's."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_allocated(device), total
    page = os.sysconf("SC_PAGE_SIZE")
    return _resident_bytes(page), os.sysconf("SC_PHYS_PAGES") * page


def _resident_bytes(page: int) -> int:
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text(encoding="ascii").split()[1]) * page
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, the most so far


def environment(device: torch.device) -> dict[str, str]:
    """Returns what the figures of a run depend on besides its config: machine, versions, source commit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    found = {
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gptrs": _core.__version__,
    }
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    """Returns the commit of the checkout that this package is imported from, None for an installed one."""
    root = Path(__file__).parents[3]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    done = subprocess.run([git, "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)  # noqa: S603
    return done.stdout.strip() or None


class HasWrite(Protocol):
    """What a log hands its lines on to."""

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None: ...


class MetricsLog:
    """metrics.jsonl and TensorBoard of one run; opened at a length, it forgets what a killed run wrote after it.

    Attributes: trackers: what else gets the lines, set by the stage.
    """

    def __init__(self, directory: Path, *, length: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.trackers: HasWrite | None = None
        self.path = directory / "metrics.jsonl"
        self._file: IO[bytes] = cut(self.path, length)
        purge = step + 1 if step else None
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=purge)

    def write(self, kind: str, step: int, **values: float | list[float] | None) -> None:
        """Adds a line; the file has it when this returns. Lists are for the file alone."""
        self._add({"kind": kind, "step": step, **values})
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if self.trackers is not None:
            self.trackers.write(kind, step, numbers)

    def event(self, step: int, name: str, text: str, values: Mapping[str, Any]) -> None:
        """Adds what is out of the ordinary; the file has it when this returns."""
        self._add({"kind": "event", "step": step, "event": name, "text": text, **values})
        self._board.add_text(f"event/{name}", text, step)

    def _add(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({name: _plain(value) for name, value in line.items()}).encode() + b"\n")
        self._file.flush()

    def length(self) -> int:
        """Returns the bytes written so far; whoever notes them sees to it that the disk has them."""
        return flushed(self._file)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _plain(value: Any) -> Any:
    """The value with null for what JSON has no number for: nan and the infinities."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut(path: Path, length: int) -> IO[bytes]:
    """Returns the file opened for appending after its first `length` bytes.

    Raises: ValueError when the file is shorter: it was changed since the checkpoint that knows its length.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < length:
        raise ValueError(f"expected at least {length} bytes in {path}, got {size}; hint: --fresh starts the run anew")
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(length)
    file.seek(length)
    return file


def flushed(file: IO[bytes]) -> int:
    """Returns the length of a file that was appended to, once a kill of this process leaves it; a power cut may not."""
    file.flush()
    return file.tell()


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def smooth(values: list[float], points: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """Returns (position, mean) of at most `points` equal runs of neighbouring values, position as an index."""
    width = max(1, math.ceil(len(values) / points))
    runs = [values[i : i + width] for i in range(0, len(values), width)]
    return [(i * width + (len(run) - 1) / 2, sum(run) / len(run)) for i, run in enumerate(runs)]


def plot(path: Path, lines: Iterable[dict[str, Any]], *, unigram_entropy: float | None) -> None:
    """Writes loss.png: training and validation loss over the steps, and the loss of knowing token frequencies alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = list(lines)
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    figure = Figure(figsize=(7.2, 4.0), dpi=120)  # margins by hand: to work them out draws everything twice
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.095, right=0.985, bottom=0.12, top=0.975)
    axes = figure.add_subplot()
    curve = smooth([line.get("next_loss", line["loss"]) for line in train])  # what validation measures
    axes.plot(
        [train[round(at)]["step"] for at, _ in curve], [y for _, y in curve], lw=1.2, color="#7a9cc6", label="train"
    )
    axes.plot(
        [line["step"] for line in evals],
        [line["val_loss"] for line in evals],
        "o-",
        ms=3,
        color="#c44e52",
        label="validation",
    )
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, ls="--", lw=1, color="#777777", label="unigram entropy (validation)")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


class Display:
    """The progress line on a terminal, plain lines elsewhere."""

    def __init__(self, *, steps: int, peak: str, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False)
        self._steps = steps
        self._peak = peak
        counter, state = (
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("{task.description}", markup=False),
        )
        columns = (counter, BarColumn(bar_width=20), state)
        self._bar = Progress(*columns, console=self.console) if self.console.is_terminal else None
        self._task = self._bar.add_task("", total=steps) if self._bar else TaskID(0)

    def start(self) -> None:
        if self._bar:
            self._bar.start()

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()

    def update(
        self,
        step: int,
        *,
        loss: float,
        tokens_per_s: float,
        mfu: float | None,
        seconds_left: float,
        parts: Mapping[str, float] | None = None,
        memory: tuple[int, int] | None = None,
    ) -> None:
        """Shows the state after an update; `parts` as in metrics.jsonl; `memory`: bytes taken, bytes there are."""
        shown = ", ".join(f"{_SHORT[name]} {value:.2f}" for name, value in (parts or {}).items())
        text = f"loss {loss:.4f}{f' ({shown})' if shown else ''}  {tokens_per_s:,.0f} tokens/s"
        if mfu is not None:
            text += f"  MFU {mfu:.1%} of {self._peak}"
        if memory is not None:
            text += f"  memory {memory[0] / 1e9:.1f} of {memory[1] / 1e9:.1f} GB"
        text += f"  {duration(seconds_left)} left"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        else:
            self.say(f"step {step}/{self._steps}  {text}")

    def say(self, text: str) -> None:
        """Prints a line; on a terminal it stands above the progress line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Pace:
    """Keeps what takes long and may be left out, as pictures of a run that goes on, to a share of its time."""

    def __init__(self, share: float = 0.01) -> None:
        self._share = share
        self._next = -math.inf

    def do(self, work: Callable[[], None], *, is_last: bool = False) -> None:
        """Does the work when it is due: the first time, the last, and where what it took is paid off."""
        start = time.perf_counter()
        if start < self._next and not is_last:
            return
        work()
        self._next = start + (time.perf_counter() - start) / self._share


def duration(seconds: float) -> str:
    """Returns a time for people: 45 s, 2 min 05 s, 3 h 10 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
