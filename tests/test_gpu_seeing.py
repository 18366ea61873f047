"""What a run tells on CUDA: memory, statistics, a trace with kernels, the doctor. Run by `make test-gpu`."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from gptrs import doctor
from gptrs.model import ModelConfig
from gptrs.train import metrics
from gptrs.train.profiler import Profiler
from test_stats import DEEPSEEK, GPT, run

pytestmark = pytest.mark.gpu


def test_memory_is_the_most_that_was_allocated() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    device = torch.device("cuda")
    before, there = metrics.memory(device)
    held = torch.ones(1 << 26, device=device)  # 268 MB
    after, _ = metrics.memory(device)
    assert after - before >= held.nbytes and there == torch.cuda.get_device_properties(device).total_memory


@pytest.mark.parametrize("config", [GPT, DEEPSEEK], ids=["gpt", "deepseek"])
def test_statistics_are_finite_and_near_the_cpus(config: ModelConfig) -> None:
    cpu, cuda = (run(config, every=1, steps=1, device=device)["found"][1] for device in ("cpu", "cuda"))
    assert cpu.keys() == cuda.keys()
    for name, value in cuda.items():
        if isinstance(value, float):
            assert math.isfinite(value), name
        if name.startswith("weight_norm"):
            assert value == pytest.approx(cpu[name], rel=1e-3), name


def test_the_trace_has_the_gpus_kernels(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, updates=(2, 3), say=lambda text: None)
    a = torch.ones(256, 256, device="cuda")
    for step in range(1, 5):
        with profiler.watch(step):
            torch.mm(a, a)
        profiler.flush()
    events = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("cat") == "kernel" for event in events) >= 2


def test_the_doctor_sees_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_start_compiling", lambda: None)
    found = {finding.name: finding for finding in doctor.findings(tmp_path)}
    assert torch.cuda.get_device_name() in found["GPU 0"].text
    assert {"bf16", "fp8", "flash attention", "distributed"} <= found.keys() and "nccl" in found["distributed"].text
    assert doctor._room()[1]
