"""What a machine is, what it can do, and what fits on it; works without torch, and says so. No torch here.

Every finding is a line with a state; a warning names its cure. Nothing is installed, changed or left behind.
"""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptrs import _core
from gptrs.model import memory
from gptrs.model.config import ModelConfig

OLDEST_TORCH = (2, 11)
NEEDED = ("numpy", "typer", "rich")
FOR_TRAINING = ("torch", "safetensors", "matplotlib", "tensorboard")
OPTIONAL = ("wandb", "trackio", "mlflow-skinny", "ray", "gguf", "transformers", "tokenizers", "nvidia-ml-py")
COMPILE_S = 9.0  # for a function of one line, counted from when all else begins
_SAMPLE = 64 << 20  # bytes written and read
_GB = 1e9
_SPARE = 0.9  # share of the memory that a run may fill
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512vl", "avx512vbmi", "avx512_vbmi2")  # what the encoder uses
_COMPILED = "import torch; f = torch.compile(lambda x: x.sin() + 1); f(torch.ones(8, device={!r})); print('compiled')"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line."""

    group: str  # "machine", "disk", "packages", "torch"
    name: str
    text: str
    cure: str = ""  # of a warning

    @property
    def state(self) -> Literal["ok", "warning"]:
        return "warning" if self.cure else "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What of a model fits on the GPU, or without one in the machine's free memory."""

    name: str
    seq_len: int
    n_params: int
    fixed_bytes: int  # weights, gradients, optimizer
    row_bytes: int  # activations of a row
    micro_batch: int  # rows at a time, 0: it does not fit
    micro_batch_checkpointed: int  # when blocks keep their inputs alone
    dtype: str
    is_compiled: bool


def findings(folder: Path) -> Iterator[Finding]:
    """Everything about this machine, for runs in a folder; takes some seconds.

    Args: folder: where runs would be; the nearest one above it that exists is measured.
    """
    while not folder.is_dir():
        folder = folder.absolute().parent
    compiling, begun = _start_compiling(), time.perf_counter()
    yield from _machine()
    yield from _disk(folder)
    yield from _packages()
    yield from _torch()
    if compiling is not None:
        yield _compiled(compiling, COMPILE_S - (time.perf_counter() - begun))


def fits(models: Mapping[str, tuple[ModelConfig, int]], found: list[Finding]) -> list[Fit]:
    """The largest micro batches of models, each with its row length, by the formulas of `model.memory`."""
    n_bytes, is_gpu, has_bf16 = _room()
    is_compiled = is_gpu and any(f.name == "compile" and f.state == "ok" for f in found)
    out = []
    for name, (config, seq_len) in models.items():
        rank = memory.rank(config, seq_len=seq_len)
        fixed = rank.weights + rank.gradients + rank.optimizer
        wide = 1 if has_bf16 else 2  # the formulas' activations are bfloat16
        rows = [wide * n for n in (rank.activations, rank.activations_checkpointed)]
        free = int(_SPARE * n_bytes) - fixed
        out.append(
            Fit(
                name=name,
                seq_len=seq_len,
                n_params=rank.n_params,
                fixed_bytes=fixed,
                row_bytes=rows[0],
                micro_batch=max(0, free // rows[0]),
                micro_batch_checkpointed=max(0, free // rows[1]),
                dtype="bf16" if has_bf16 else "fp32",
                is_compiled=is_compiled,
            )
        )
    return out


def _machine() -> Iterator[Finding]:
    name, flags = _cpu()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(group="machine", name="CPU", text=f"{name}, {os.cpu_count()} cores, {usable} for this process")
    level = "avx512" if flags.issuperset(_AVX512) else "avx2" if "avx2" in flags else ""
    text = f"{level}: the tokenizer's fast scanners run" if level else "none that the tokenizer has scanners for"
    yield Finding(group="machine", name="SIMD", text=text)
    text = "AMX: large products of float32 go by bfloat16" if _core.can_multiply() else "none: all products are torch's"
    yield Finding(group="machine", name="tiles", text=text)
    total, available = memory_bytes()
    yield Finding(
        group="machine",
        name="memory",
        text=f"{total / _GB:.1f} GB, {available / _GB:.1f} GB free",
        cure="end other processes: little is left for a run" if available < 2 * _GB else "",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(
        group="machine",
        name="open files",
        text=f"{soft:,} of {'any number' if hard == resource.RLIM_INFINITY else f'{hard:,}'}",
        cure="ulimit -n 65536: datasets of many shards and many ranks need more" if 0 <= soft < 1024 else "",
    )
    shared = Path("/dev") / "shm"
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        cure = "docker run --shm-size=8g: ranks exchange through it" if size < _GB else ""
        yield Finding(group="machine", name=str(shared), text=f"{size / _GB:.1f} GB", cure=cure)


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    cure = "make room, or take another disk with run.dir: checkpoints are 12 bytes a parameter" if free < 5e9 else ""
    yield Finding(group="disk", name="free space", text=f"{free / _GB:,.0f} GB in {folder}", cure=cure)
    try:
        write, read = _speeds(folder)
    except OSError as error:
        cure = "give leave to write there, or take another directory with run.dir"
        yield Finding(group="disk", name="speed", text=f"{folder} cannot be written: {error.strerror}", cure=cure)
        return
    text = f"{write / 1e6:,.0f} MB/s written and synced, {read / 1e6:,.0f} MB/s read"
    slow = "a slow disk makes every checkpoint wait: take a local one with run.dir"
    yield Finding(group="disk", name="speed", text=text, cure=slow if write < 50e6 else "")


def _speeds(folder: Path) -> tuple[float, float]:
    """Bytes a second that are written to the disk, and read from it, as far as the system lets its cache be dropped."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".gptrs-doctor-") as file:
        start = time.perf_counter()
        for _ in range(_SAMPLE // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.perf_counter()
        while file.read(1 << 20):
            pass
        return _SAMPLE / (written - start), _SAMPLE / (time.perf_counter() - begun)


def _packages() -> Iterator[Finding]:
    yield Finding(group="packages", name="python", text=f"{platform.python_version()}, {platform.platform()}")
    for name in (*NEEDED, *FOR_TRAINING, *OPTIONAL):
        try:
            yield Finding(group="packages", name=name, text=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            cure = "" if name in OPTIONAL else "pip install 'gptrs[train]'"
            yield Finding(group="packages", name=name, text="not installed", cure=cure)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA's that is missing
        cure = "pip install 'gptrs[train]'; tokenizers, shards and plans work without"
        yield Finding(group="torch", name="torch", text=f"does not load: {error}", cure=cure)
        return
    version = torch.__version__
    is_old = tuple(map(int, version.split("+")[0].split(".")[:2])) < OLDEST_TORCH
    cure = f"pip install 'torch>={'.'.join(map(str, OLDEST_TORCH))}'" if is_old else ""
    yield Finding(group="torch", name="torch", text=f"{version}, {torch.get_num_threads()} threads", cure=cure)
    yield from _gpus(torch)
    names = [n for n in ("nccl", "gloo", "mpi") if getattr(torch.distributed, f"is_{n}_available", bool)()]
    cure = "" if names else "a torch with distributed support: several devices need it"
    yield Finding(group="torch", name="distributed", text=", ".join(names) or "none", cure=cure)


def _gpus(torch: Any) -> Iterator[Finding]:
    driver = _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    if not torch.cuda.is_available():
        cure = "a torch built for this driver: https://pytorch.org/get-started" if driver else ""
        text = f"none that torch can use{f', driver {driver[0]}' if driver else ''}: runs take the CPU"
        yield Finding(group="torch", name="GPU", text=text, cure=cure)
        has_bf16 = _cpu()[1].intersection(("avx512_bf16", "amx_bf16"))
        text = "by the CPU's own instructions" if has_bf16 else "emulated, slower than fp32"
        yield Finding(group="torch", name="bf16", text=text)
        return
    n = torch.cuda.device_count()
    for i in range(n):
        found = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        sizes = f"{found.name}, {total / _GB:.1f} GB, {free / _GB:.1f} GB free"
        text = f"{sizes}, compute capability {found.major}.{found.minor}, driver {driver[0] if driver else '?'}"
        cure = "end what else runs on it" if free < 0.8 * total else ""
        yield Finding(group="torch", name=f"GPU {i}", text=text, cure=cure)
    if n > 1:
        links = _said_by("nvidia-smi", "nvlink", "--status")
        text = "NVLink" if "GB/s" in links else "no NVLink: gradients go over the bus"
        yield Finding(group="torch", name="links", text=text)
    capability = torch.cuda.get_device_capability()
    is_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    yield Finding(group="torch", name="bf16", text="yes" if is_bf16 else "no: runs compute in fp32")
    yield Finding(group="torch", name="fp8", text="yes" if capability >= (8, 9) else "no: needs capability 8.9")
    is_flash = torch.backends.cuda.is_flash_attention_available() and capability >= (8, 0)
    yield Finding(group="torch", name="flash attention", text="yes" if is_flash else "no: SDPA's other kernels run")


def _start_compiling() -> "subprocess.Popen[str] | None":
    """A process that compiles a function of one line, beside everything else that is looked at."""
    if importlib.util.find_spec("torch") is None:
        return None
    device = "cuda" if _said_by("nvidia-smi", "-L") else "cpu"
    command = [sys.executable, "-c", _COMPILED.format(device)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


def _compiled(process: "subprocess.Popen[str]", seconds_left: float) -> Finding:
    try:
        out, error = process.communicate(timeout=max(seconds_left, 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        cure = "try again on a quiet machine, or leave run.compile off"
        return Finding(group="torch", name="compile", text=f"not done in {COMPILE_S:.0f} s", cure=cure)
    if "compiled" in out:
        return Finding(group="torch", name="compile", text="works")
    last = (error.strip().splitlines() or ["no word"])[-1]
    cure = "a C++ compiler (apt install g++) on the CPU, Triton on CUDA; or leave run.compile off"
    return Finding(group="torch", name="compile", text=f"fails: {last[:200]}", cure=cure)


def _room() -> tuple[int, bool, bool]:
    """Bytes for a run, whether they are a GPU's, and whether it computes in bfloat16."""
    try:
        import torch
    except (ImportError, OSError):
        return memory_bytes()[1], False, False
    if not torch.cuda.is_available():
        return memory_bytes()[1], False, False
    return torch.cuda.mem_get_info()[0], True, torch.cuda.is_bf16_supported(including_emulation=False)


def memory_bytes() -> tuple[int, int]:
    """The machine's memory, and what of it a new process can have."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="ascii").splitlines() if info.is_file() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), total)
    return total, free


def _cpu() -> tuple[str, set[str]]:
    """The processor's name and flags, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return found.get("model name", platform.processor() or platform.machine()), set(found.get("flags", "").split())


def _said_by(*command: str) -> str:
    """What a program prints; nothing when it is not there, fails or hangs."""
    path = shutil.which(command[0])
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=3)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
