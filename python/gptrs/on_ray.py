"""`prepare` on a Ray cluster: its tasks as remote functions, joined by the caller.

    files ── ray ──▶ task 0, 1, … on any node ──▶ OUT/tasks (shared folder) ── merge_tasks ──▶ OUT

Nothing but a few numbers goes through Ray: workers read the files and write the shards themselves, so all nodes must
see both under the same paths. A task whose node is lost runs again elsewhere and goes on behind its last whole shard.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gptrs.corpus import AnyPath, check_text_field, expand
from gptrs.dataset import Dataset, require
from gptrs.progress import bar
from gptrs.tasks import Options, TaskEnd, merge_tasks, prepare_task

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

# How often a task starts again whose worker or node was lost.
_MAX_RETRIES = 16
# A lost worker may write on for a while, until it finds that its node is gone; the system frees its lock when it ends.
_LOCK_WAIT_S = 120.0


def prepare_on_ray(
    files: AnyPath | Iterable[AnyPath],
    tokenizer: "Tokenizer",
    out: AnyPath,
    *,
    address: str | None = None,
    of: int | None = None,
    keep_tasks: bool = False,
    **options: Unpack[Options],
) -> Dataset:
    """Encodes files into the dataset that `prepare` writes, byte for byte, on all nodes of a Ray cluster.

    When it is cut off, the same call with the same `of` goes on.

    Args:
        files: Paths, globs and folders, as for `prepare`, that every node can read.
        tokenizer: The tokenizer; it travels to the workers.
        out: The folder to write, which all nodes share.
        address: The cluster, for example "auto" or "ray://HOST:10001"; None starts one on this machine. A connection
            that is there already is used.
        of: The number of tasks; None means one for each of the cluster's CPUs.
        keep_tasks: Leave the tasks' folders.
        options: Those of `prepare`; `threads` holds for a task, which asks Ray for as many CPUs (0: one).

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError, OSError: As `prepare` does; the first task that fails ends the call.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "prepare_on_ray needs ray, which is not installed; hint: pip install 'gptrs[ray]'"
        ) from None

    paths = [str(Path(path).absolute()) for path in expand(files)]
    check_text_field(paths, options.get("text_field", "text"))
    folder = Path(fspath(out)).absolute()
    with _connected(ray, address):
        threads = options.get("threads", 0) or 1
        n_tasks = of or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        require("of", n_tasks, 1, 100_000)
        worker_options: Options = {**options, "threads": threads, "progress": False}
        remote = ray.remote(num_cpus=threads, max_retries=_MAX_RETRIES)(_run)
        shared = ray.put((paths, tokenizer, str(folder), worker_options))
        with bar(options.get("progress", True)) as report:
            _wait(ray, [remote.remote(shared, task, n_tasks) for task in range(n_tasks)], report)
    return merge_tasks(paths, tokenizer, folder, n_tasks, keep_tasks=keep_tasks, **options)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connected to the cluster; a connection that is there already is used and stays."""
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        yield
    finally:
        ray.shutdown()
        # `init` put a handler of its own there, and leaves it.
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _run(work: tuple[list[str], "Tokenizer", str, Options], task: int, of: int) -> TaskEnd:
    """One task, on a worker."""
    paths, tokenizer, out, options = work
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return prepare_task(paths, tokenizer, out, task, of, **options)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _wait(ray: Any, tasks: list[Any], report: Any) -> None:
    """Waits for all tasks; the first failure, or Ctrl-C, cancels the others."""
    left = list(tasks)
    try:
        while left:
            done, left = ray.wait(left, timeout=0.2)
            ray.get(done)
            if report is not None:
                report("encode tasks", len(tasks) - len(left), len(tasks))
    except BaseException as error:
        for task in left:
            ray.cancel(task)
        if isinstance(error, ray.exceptions.RayTaskError):
            raise error.cause from None
        raise
