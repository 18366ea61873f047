"""`prepare` on a Ray cluster: a real one of several node processes, of which one is killed half-way."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gptrs import Tokenizer, prepare, prepare_on_ray

ray = pytest.importorskip("ray")

N_TASKS = 6
OPTIONS: dict[str, Any] = {"shard_tokens": 20_000, "progress": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no task and three nodes of one CPU; the node that a test kills is not replaced."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 80 << 20, "include_dashboard": False}
    # A dead node is found within some seconds instead of half a minute.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}
    on_sigterm = signal.getsignal(signal.SIGTERM)  # starting nodes sets one
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0, "_system_config": health})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1, **node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        signal.signal(signal.SIGTERM, on_sigterm)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, list[Path]]:
    """A tokenizer whose pattern runs in the regex engine, and files that keep it busy for some seconds."""
    folder, draw = tmp_path_factory.mktemp("slow"), random.Random(5)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 9))) for _ in range(3000)]
    paths = []
    for i in range(8):
        path = folder / f"{i:02}.txt"
        path.write_text(" ".join(draw.choices(words, k=120_000)))
        paths.append(path)
    return Tokenizer.train_from_iterator([" ".join(words)], 400, pattern=r"\w(?!\d)\w*|\W"), paths


def nodes_at_work(cluster: Any, out: Path) -> Iterator[Any]:
    """The nodes with a worker in the middle of a task: it holds the task's lock, a shard is there and no marker."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    for folder in sorted(out.glob("tasks/*")):
        if not (folder / "shard-00000.gts").exists() or (folder / "task.json").exists():
            continue
        for process in Path("/proc").glob("[0-9]*"):
            try:
                holds = any(fd.readlink() == folder / ".lock" for fd in (process / "fd").iterdir())
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended meanwhile, or is not ours
                continue
            if holds and parent in raylets:
                yield raylets[parent]


def test_a_node_killed_half_way_changes_nothing(cluster: Any, slow: tuple[Tokenizer, list[Path]], tmp_path: Path):
    tokenizer, paths = slow
    out, killed = tmp_path / "out", []

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for node in nodes_at_work(cluster, out):
                killed.append(node)
                cluster.remove_node(node, allow_graceful=False)
                return
            time.sleep(0.01)

    killer = Thread(target=kill_one)
    killer.start()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    dataset = prepare_on_ray(paths, tokenizer, out, address=cluster.address, of=N_TASKS, **OPTIONS)
    killer.join()
    assert signal.getsignal(signal.SIGTERM) is on_sigterm
    assert len(killed) == 1, "no node was found at work"
    whole = prepare(paths, tokenizer, tmp_path / "whole", **OPTIONS)
    assert dataset.fingerprint == whole.fingerprint and dataset.manifest == whole.manifest
    dataset.verify(progress=False)
    assert not (out / "tasks").exists()


def test_ctrl_c_ends_the_tasks(cluster: Any, slow: tuple[Tokenizer, list[Path]], tmp_path: Path):
    tokenizer, paths = slow
    out = tmp_path / "out"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not next(nodes_at_work(cluster, out), None):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    killer = Thread(target=interrupt)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        prepare_on_ray(paths, tokenizer, out, address=cluster.address, of=2, **OPTIONS)
    killer.join()
    deadline = time.monotonic() + 30
    while next(nodes_at_work(cluster, out), None) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert next(nodes_at_work(cluster, out), None) is None and not (out / "manifest.json").exists()


def test_a_failing_task_ends_the_call_with_its_error(cluster: Any, slow: tuple[Tokenizer, list[Path]], tmp_path: Path):
    tokenizer, paths = slow
    (tmp_path / "bad.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl is not a valid JSON lines file: line 1"):
        prepare_on_ray(
            [tmp_path / "bad.jsonl", paths[0]], tokenizer, tmp_path / "out", address=cluster.address, of=2, **OPTIONS
        )
    with pytest.raises(ValueError, match="of must be 1 to 100000"):
        prepare_on_ray(paths, tokenizer, tmp_path / "out", address=cluster.address, of=1 << 20, **OPTIONS)
