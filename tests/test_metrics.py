"""What a run tells: metrics.jsonl cut back exactly, loss.png, the progress line, peaks for MFU."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gptrs.train import metrics

LINE = {"loss": 2.5, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 100.0, "mfu": None, "time_s": 1.0}


def test_lines_are_json_objects_in_order(tmp_path: Path) -> None:
    log = metrics.MetricsLog(tmp_path)
    log.write("train", 1, **LINE)
    log.write("eval", 1, val_loss=2.0)
    log.close()
    assert metrics.read(tmp_path / "metrics.jsonl") == [
        {"kind": "train", "step": 1, **LINE},
        {"kind": "eval", "step": 1, "val_loss": 2.0},
    ]


def test_a_float_survives_the_file_bit_for_bit(tmp_path: Path) -> None:
    log = metrics.MetricsLog(tmp_path)
    log.write("train", 1, loss=0.1 + 0.2)
    log.close()
    assert metrics.read(tmp_path / "metrics.jsonl")[0]["loss"] == 0.1 + 0.2


def test_what_is_no_number_is_null_as_json_has_none_for_it(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    log = metrics.MetricsLog(tmp_path)
    log.write("stats", 1, ratio=math.inf, loads=[0.5, math.nan], n=3)
    log.event(1, "not finite", "an update is left out", {"loss": -math.inf})
    log.close()
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row, parse_constant=refuse) for row in rows] == [
        {"kind": "stats", "step": 1, "ratio": None, "loads": [0.5, None], "n": 3},
        {"kind": "event", "step": 1, "event": "not finite", "text": "an update is left out", "loss": None},
    ]


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = metrics.MetricsLog(tmp_path)
    log.write("train", 1, loss=3.0)
    length = log.length()
    log.write("train", 2, loss=2.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "tra')  # torn by a kill
    log = metrics.MetricsLog(tmp_path, length=length, step=1)
    log.write("train", 2, loss=1.5)
    log.close()
    assert [line["loss"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [3.0, 1.5]


def test_a_log_shorter_than_its_checkpoint_knows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"{}\n")
    with pytest.raises(ValueError, match=r"expected at least 10 bytes in .*metrics.jsonl, got 3; hint: --fresh"):
        metrics.MetricsLog(tmp_path, length=10)


def test_tensorboard_gets_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = metrics.MetricsLog(tmp_path)
    log.write("train", 1, loss=3.0, mfu=None)
    log.write("train", 2, loss=2.0, mfu=0.5)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 3.0), (2, 2.0)]
    assert [event.step for event in events.Scalars("train/mfu")] == [2]


def test_lists_are_for_the_file_and_numbers_for_trackers_too(tmp_path: Path) -> None:
    class Tracker:
        def write(self, kind: str, step: int, values: object) -> None:
            seen.append((kind, step, values))

    seen: list[object] = []
    log = metrics.MetricsLog(tmp_path)
    log.trackers = Tracker()
    log.write("stats", 4, **{"loads/1": [0.25, 0.75], "act_max/1": 3.5, "mfu": None})
    log.close()
    line = {"kind": "stats", "step": 4, "loads/1": [0.25, 0.75], "act_max/1": 3.5, "mfu": None}
    assert metrics.read(tmp_path / "metrics.jsonl") == [line]
    assert seen == [("stats", 4, {"act_max/1": 3.5})]


def test_smoothing_averages_equal_runs() -> None:
    assert metrics.smooth([1.0, 3.0, 5.0], 2) == [(0.5, 2.0), (2.0, 5.0)]
    assert metrics.smooth([1.0, 3.0], 10) == [(0.0, 1.0), (1.0, 3.0)]
    assert metrics.smooth([]) == []
    assert len(metrics.smooth([0.0] * 1001, 400)) <= 400


@pytest.mark.parametrize("n_train", [0, 1, 900])
def test_the_plot_is_a_png_for_any_number_of_points(tmp_path: Path, n_train: int) -> None:
    lines = [{"kind": "train", "step": i + 1, "loss": 5.0 - i / 1000} for i in range(n_train)]
    metrics.plot(tmp_path / "loss.png", [*lines, {"kind": "eval", "step": 1, "val_loss": 4.0}], unigram_entropy=6.0)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def update(display: metrics.Display, mfu: float | None = 0.25) -> None:
    display.update(10, loss=2.5, tokens_per_s=12345.6, mfu=mfu, seconds_left=125)


def test_without_a_terminal_progress_is_plain_lines() -> None:
    out = io.StringIO()
    display = metrics.Display(steps=20, peak="a 1-thread matmul, measured", console=Console(file=out, width=40))
    display.start()
    update(display)
    update(display, mfu=None)
    display.stop()
    assert out.getvalue().splitlines() == [
        "step 10/20  loss 2.5000  12,346 tokens/s  MFU 25.0% of a 1-thread matmul, measured  2 min 05 s left",
        "step 10/20  loss 2.5000  12,346 tokens/s  2 min 05 s left",
    ]


def test_the_parts_of_a_loss_stand_behind_it() -> None:
    out = io.StringIO()
    display = metrics.Display(steps=20, peak="peak", console=Console(file=out, width=40))
    parts = {"next_loss": 4.5678, "further_loss": 5.25, "balance_loss": 1.03, "max_violation": 0.4}
    display.update(10, loss=6.1, tokens_per_s=100, mfu=None, seconds_left=1, parts=parts)
    expected = "step 10/20  loss 6.1000 (next 4.57, further 5.25, balance 1.03, MaxVio 0.40)  100 tokens/s  1 s left"
    assert out.getvalue().splitlines() == [expected]


def test_memory_stands_on_the_line_with_what_there_is() -> None:
    out = io.StringIO()
    display = metrics.Display(steps=20, peak="peak", console=Console(file=out, width=40))
    taken = (1_234_000_000, 80_000_000_000)
    display.update(10, loss=6.1, tokens_per_s=100, mfu=None, seconds_left=1, memory=taken)
    assert out.getvalue() == "step 10/20  loss 6.1000  100 tokens/s  memory 1.2 of 80.0 GB  1 s left\n"


def test_memory_on_the_cpu_is_what_this_process_holds() -> None:
    before, there = metrics.memory(torch.device("cpu"))
    held = torch.ones(1 << 26)  # 268 MB
    after, _ = metrics.memory(torch.device("cpu"))
    assert 0 < before < there and after - before == pytest.approx(held.nbytes, rel=0.1)


def test_on_a_terminal_progress_is_one_line_that_changes() -> None:
    out = io.StringIO()
    display = metrics.Display(steps=20, peak="peak", console=Console(file=out, width=120, force_terminal=True))
    display.start()
    update(display)
    display.say("step 10  val loss 2.0000")
    display.stop()
    assert "loss 2.5000" in out.getvalue() and "2 min 05 s left" in out.getvalue()
    assert "\x1b[" in out.getvalue() and "val loss 2.0000" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (11400, "3 h 10 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert metrics.duration(seconds) == text


def test_the_cpu_peak_is_measured_and_named() -> None:
    peak, name = metrics.peak_flops(torch.device("cpu"), torch.float32)
    assert peak is not None and 1e8 < peak < 1e14
    assert name == f"{torch.get_num_threads()}-thread matmul, measured"


def test_gpu_names_find_their_dense_peak() -> None:
    peaks = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA H200 NVL": 835e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA GB200": 2500e12,
        "NVIDIA B200": 2250e12,
        "NVIDIA H20": 148e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA L4": 121e12,
        "NVIDIA A10G": 70e12,
        "Tesla V100-SXM2-32GB": 125e12,
        "Tesla T4": 65e12,
        "NVIDIA RTX A4000": None,  # no A40,
        "NVIDIA RTX A1000": None,  # and no A10
        "NVIDIA Quadro": None,
    }
    assert {name: metrics.cuda_peak(name) for name in peaks} == peaks


def test_the_environment_names_machine_and_versions() -> None:
    found = metrics.environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__ and found["device"].startswith("cpu (")
