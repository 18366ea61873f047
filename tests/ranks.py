"""Several ranks in one test: forked processes on gloo, which cost no second import of torch."""

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp  # once, before the forks

from gptrs.train import distributed
from gptrs.train.config import ParallelSettings
from gptrs.train.distributed import World

TIMEOUT_S = 100  # of all ranks together: a test that hangs fails


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in values.items()}}


def on_ranks(size: int, folder: Path, work: Callable[[World], Any], timeout_s: float = TIMEOUT_S) -> list[Any]:
    """Returns what `work` returned on each rank of a world of so many processes, as JSON has it."""
    port = free_port()

    def one(rank: int) -> None:
        settings = ParallelSettings(timeout_s=timeout_s)
        with distributed.join(settings, torch.device("cpu"), environment(rank, size, port)) as world:
            (folder / f"rank-{rank}.json").write_text(json.dumps(work(world)))

    assert fork(size, one, timeout_s) == [0] * size, "a rank failed, see its traceback"
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]


def fork(size: int, one: Callable[[int], None], timeout_s: float = TIMEOUT_S) -> list[int]:
    """Runs one(rank) in processes of their own; returns their exit codes, negative for signals.

    None begins before all are forked: where a test keeps the store that they come to, its thread is at rest by then. A
    process forked while that thread takes in another rank inherits what it has locked, and hangs at its own connection.
    """
    children = []
    waiting, starting = os.pipe()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(starting)
                os.read(waiting, 1)  # nothing comes: it ends when the last process has closed the other end
                torch.set_num_threads(1)
                one(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    os.close(starting)
    os.close(waiting)
    return _collect(children, time.monotonic() + timeout_s)


def _collect(children: list[int], end: float) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        is_late = time.monotonic() > end
        for child in set(children) - set(codes) if is_late else ():
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]
