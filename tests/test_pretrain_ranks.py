"""Whole runs on several ranks: the metrics of one process, resumed by another number of them, after a rank's death."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptrs import cli
from gptrs.train import checkpoint, metrics, pretrain
from gptrs.train.config import PretrainConfig, load
from gptrs.train.loop import Update
from gptrs.train.parts import Parts
from ranks import environment, fork, free_port

WORDS = "a true friend accepts you as you are and you accept a friend who is true to you "
TINY = (
    *("run.threads=1", "run.dtype=fp32", "tokenizer.vocab_size=280", "tokenizer.special_tokens=<|endoftext|>"),
    *("model.dim=16", "model.n_layers=2", "model.n_heads=4", "model.dropout=0.0", "train.seq_len=16"),
    *("train.steps=12", "train.global_batch=4", "train.log_every=1", "train.eval_every=5", "train.checkpoint_every=4"),
    *("optim.lr=1e-2", "train.eval_rows=9", "schedule.warmup_steps=5", "sample.max_new_tokens=5"),
)  # fmt: skip
DEEPSEEK = (
    *("model.preset=deepseek-tiny", "model.inter_dim=32", "model.kv_lora_rank=8", "model.moe_inter_dim=8"),
    *("train.bias_speed=0.01", "train.balance_weight=0.01"),
)


def tiny(folder: Path, name: str, *overrides: str) -> PretrainConfig:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(120)))
    return load("shakespeare_cpu", [*TINY, f"data.text={text}", f"run.dir={folder / name}", *overrides])


def torchrun() -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*command, "--master-port", str(free_port())]


def on_ranks(size: int, work: Callable[[], Any]) -> list[int]:
    """Exit codes of ranks that do the work as those of torchrun would."""
    port = free_port()

    def one(rank: int) -> None:
        os.environ.update(environment(rank, size, port))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()

    return fork(size, one)


def losses(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (line["kind"], line["step"], line.get("loss", line.get("val_loss")))
        for line in metrics.read(folder / "metrics.jsonl")
        if line["kind"] in ("train", "eval")
    ]


def statistics(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics.read(folder / "metrics.jsonl") if line["kind"] == "stats"]


def check(found: list[tuple[str, int, float]], expected: list[tuple[str, int, float]]) -> None:
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (2, ("train.micro_batch=1",)),
        pytest.param(
            2, (*DEEPSEEK, "parallel.data=fsdp", "optim.name=muon", "log.stats_every=4"), marks=pytest.mark.long
        ),
        (4, (*DEEPSEEK, "parallel.expert=2", "parallel.tensor=2", "optim.name=muon", "log.stats_every=4")),
    ],
)
def test_a_run_on_several_ranks_is_the_run_of_one(size: int, overrides: tuple[str, ...], tmp_path: Path) -> None:
    alone = [text for text in overrides if not text.startswith("parallel.")]
    straight = pretrain.run(tiny(tmp_path, "one", *alone))
    config = tiny(tmp_path, "many", *overrides)
    assert on_ranks(size, lambda: pretrain.run(config)) == [0] * size
    check(losses(tmp_path / "many"), losses(tmp_path / "one"))
    for line, plain in zip(statistics(tmp_path / "many"), statistics(tmp_path / "one"), strict=True):
        assert line.keys() == plain.keys()
        for key in plain:
            if key.startswith(("grad_norm", "weight_norm", "update_ratio", "logit_max", "loads")):
                assert line[key] == pytest.approx(plain[key], rel=1e-3, abs=1e-7), key
    assert (tmp_path / "many" / "samples.txt").read_bytes() == (tmp_path / "one" / "samples.txt").read_bytes()
    assert {p.name for p in (tmp_path / "many").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    assert straight.val_loss == pytest.approx(losses(tmp_path / "many")[-1][2], abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "others"), [("parallel.tensor=2", 4), pytest.param("parallel.data=fsdp", 1, marks=pytest.mark.long)]
)
def test_a_stopped_run_goes_on_with_another_number_of_ranks(setting: str, others: int, tmp_path: Path) -> None:
    """SIGTERM reaches one rank alone: both save and leave after the same update."""
    pretrain.run(tiny(tmp_path, "one", *DEEPSEEK))
    config = tiny(tmp_path, "many", *DEEPSEEK, setting)
    original = pretrain.Session._log

    def stopped() -> None:
        def log(session: Any, update: Any) -> None:
            original(session, update)
            if update.step == 6 and session.world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        pretrain.Session._log = log  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(config)

    assert on_ranks(2, stopped) == [0, 0]
    before = len(losses(tmp_path / "many"))
    assert on_ranks(others, lambda: pretrain.run(config)) == [0] * others
    assert 0 < before < len(losses(tmp_path / "many"))
    check(losses(tmp_path / "many"), losses(tmp_path / "one"))


def test_a_mistake_ends_all_ranks_with_rank_0_s_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny(tmp_path, "run")
    overrides = [*TINY, f"data.text={tmp_path / 'text.txt'}", f"run.dir={tmp_path / 'run'}", "train.global_batch=3"]

    def work() -> None:
        sys.argv = ["gptrs", "train", "shakespeare_cpu", *overrides]
        with pytest.raises(SystemExit, match="1"):
            cli.main()

    assert on_ranks(2, work) == [0, 0]
    assert not (tmp_path / "run" / "config.toml").exists()
    message = "error: train.global_batch must be a multiple of 2, for 2 ranks that read 1 rows at a time, got 3"
    assert capfd.readouterr().err.count(message) == 1


@pytest.mark.long
def test_torchrun_starts_a_killed_rank_again_and_the_run_goes_on(tmp_path: Path) -> None:
    overrides = [*TINY, "train.steps=120", "train.checkpoint_every=10", f"data.text={tmp_path / 'text.txt'}"]
    tiny(tmp_path, "one")
    command = torchrun()
    command += ["--max-restarts", "1", "-m", "gptrs", "train", "shakespeare_cpu", *overrides, "parallel.data=fsdp"]
    pretrain.run(load("shakespeare_cpu", [*overrides, "parallel.data=fsdp", f"run.dir={tmp_path / 'one'}"]))
    with subprocess.Popen([*command, f"run.dir={tmp_path / 'many'}"], stdout=subprocess.DEVNULL) as agent:
        end = time.monotonic() + 300
        while not (tmp_path / "many" / "checkpoints" / "step-00000020").exists():
            assert time.monotonic() < end and agent.poll() is None
            time.sleep(0.05)
        os.kill(children(agent.pid)[-1], signal.SIGKILL)
        assert agent.wait(300) == 0
    check(losses(tmp_path / "many"), losses(tmp_path / "one"))


@pytest.mark.long
def test_the_command_line_runs_on_ranks(tmp_path: Path) -> None:
    """torchrun itself, with the command of README."""
    tiny(tmp_path, "one")
    command = torchrun()
    command += ["-m", "gptrs", "train", "shakespeare_cpu", *TINY, f"data.text={tmp_path / 'text.txt'}"]
    command += ["train.steps=2", f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val loss") >= 2 and "2 ranks: replicate 2" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert again.returncode != 0 and again.stderr.count("holds a finished run of this config") == 1


@pytest.mark.long
def test_a_machine_that_is_lost_and_one_that_comes_change_no_loss(tmp_path: Path) -> None:
    """torchrun on one to two machines: one dies, the other goes on alone, a new one joins, and both go on."""
    overrides = [*TINY, "train.steps=100", "train.global_batch=64", "train.checkpoint_every=5", "train.micro_batch=1"]
    tiny(tmp_path, "one")
    overrides.append(f"data.text={tmp_path / 'text.txt'}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"]
    command += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    train = ["-m", "gptrs", "train", "shakespeare_cpu", *overrides, f"run.dir={tmp_path / 'many'}"]

    def machine(is_host: int) -> "subprocess.Popen[bytes]":
        words = [*command, "--rdzv-conf", f"last_call_timeout=5,is_host={is_host}", *train]
        # With a store that agents share, torch tells a machine that joins later no address.
        return subprocess.Popen(words, stdout=output, env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})

    def wait(has_come: Callable[[], bool]) -> None:
        end = time.monotonic() + 200
        while not has_come():
            assert time.monotonic() < end and host.poll() is None
            time.sleep(0.05)

    with (tmp_path / "output").open("w+b") as output:
        host = machine(1)
        lost = machine(0)
        wait((tmp_path / "many" / "checkpoints" / "step-00000010").exists)
        for process in (lost.pid, *children(lost.pid)):
            os.kill(process, signal.SIGKILL)
        lost.wait()
        wait(lambda: losses(tmp_path / "many")[-1][1] >= 30)
        new = machine(0)
        assert (host.wait(300), new.wait(60)) == (0, 0)
        starts = [line for line in (tmp_path / "output").read_text().splitlines() if ", from step" in line]
    pretrain.run(load("shakespeare_cpu", [*overrides, f"run.dir={tmp_path / 'one'}"]))
    check(losses(tmp_path / "many"), losses(tmp_path / "one"))
    assert len(starts) == 3, starts


def children(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


BAD = 27  # a sample of update 7, which rank 1 of 2 reads


def poisoned(config: PretrainConfig, factor: float, notes: Path) -> None:
    """Runs with another loss for one sample; each rank notes what it sees."""
    loss, log = Parts.loss, pretrain.Session._log

    def bad_loss(self: Parts, model: Any, rows: Any, totals: Any) -> Any:
        sample = rows.sample + self.world.data_rank  # rows.sample is the first of all ranks
        return loss(self, model, rows, totals) * (factor if sample == BAD else 1.0)

    def noted(session: pretrain.Session, update: Update) -> None:
        log(session, update)
        with (notes / f"rank {session.world.rank} of {session.world.size}").open("a") as file:
            file.write(f"{update.step} {update.loss!r} {update.grad_norm!r} {session.loader.next_sample}\n")

    Parts.loss, pretrain.Session._log = bad_loss, noted  # type: ignore[method-assign]
    pretrain.run(config)


@pytest.mark.parametrize(
    ("factor", "overrides", "logged"),
    [
        (math.nan, ("guard.nonfinite=skip",), [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]),
        (math.nan, ("guard.nonfinite=rollback", "parallel.data=fsdp"), [1, 2, 3, 4, 5, 6, *range(5, 13)]),
        (30.0, ("guard.spike=rollback", "guard.spike_warmup=4"), [1, 2, 3, 4, 5, 6, *range(5, 13)]),
    ],
)
def test_trouble_on_one_rank_is_trouble_on_all(
    factor: float, overrides: tuple[str, ...], logged: list[int], tmp_path: Path
) -> None:
    config = tiny(tmp_path, "many", "train.micro_batch=1", *overrides)
    assert on_ranks(2, lambda: poisoned(config, factor, tmp_path)) == [0, 0]
    first, other = ((tmp_path / f"rank {rank} of 2").read_text() for rank in (0, 1))
    assert first == other and [int(line.split()[0]) for line in first.splitlines()] == logged
    alone = tiny(tmp_path, "one", "train.micro_batch=1", *[text for text in overrides if "parallel" not in text])
    assert on_ranks(1, lambda: poisoned(alone, factor, tmp_path)) == [0]
    check(losses(tmp_path / "many"), losses(tmp_path / "one"))
    assert events(tmp_path / "many") == events(tmp_path / "one") != []


def events(folder: Path) -> list[tuple[int, str, Any]]:
    lines = [line for line in metrics.read(folder / "metrics.jsonl") if line["kind"] == "event"]
    return [(line["step"], line["event"], line.get("samples")) for line in lines]


def test_a_full_disk_of_one_rank_is_told_and_all_of_them_go_on(tmp_path: Path) -> None:
    config = tiny(tmp_path, "run", "train.micro_batch=1", "parallel.data=fsdp")
    original = os.open

    def full(path: Any, *args: Any, **kwargs: Any) -> int:
        if os.environ["RANK"] == "1" and ".step-00000004.tmp/optimizer" in os.fsdecode(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *args, **kwargs)

    def run() -> None:
        os.open = full
        pretrain.run(config)

    assert on_ranks(2, run) == [0, 0]
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    events = [(line["step"], line["event"], line["errno"]) for line in lines if line["kind"] == "event"]
    assert events == [(4, "not saved", errno.ENOSPC)]
    found = checkpoint.find(tmp_path / "run" / "checkpoints")
    assert found.newest is not None and found.newest.name == "step-00000012" and found.uncommitted == ()
