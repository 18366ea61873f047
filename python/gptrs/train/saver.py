"""Saving beside the training: the loop waits for a copy of its state, a thread writes it.

    loop ── save ──▶ wait for the save before ─▶ copy ─▶ go on         … finish: wait, and raise what went wrong
                                                   └──▶ thread: files, manifest, marker

A disk that is full does not end a run: the failure is told, and the next save tries again. Only the last save of a run
must succeed. Of many processes each has a thread, and these meet in a process group that nothing else uses.
"""

import errno
import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gptrs.train import checkpoint, manifest
from gptrs.train.optim import HasState
from gptrs.train.snapshot import Snapshot, Tensors, tensors_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from gptrs.train.shards import Order


class Saver:
    """The checkpoints of one run."""

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        keep_best: int = 0,
        is_async: bool = True,
        group: "ProcessGroup | None" = None,
        orders: "Mapping[str, Order] | None" = None,
        on_failure: Callable[[int, OSError], None] | None = None,
    ) -> None:
        """Makes the directory, or says why nothing could be saved there, before anything is trained.

        Args:
            keep: newest checkpoints that stay.
            keep_best: those of the least validation loss that stay as well.
            is_async: False: the loop waits until the disk has everything, and no memory is kept for a copy.
            group: of the processes that save together, for CPU tensors (gloo) and for nothing else; None: one alone.
            orders: by parameter, of those of several processes that do not stand in the plain model's order.
            on_failure: what a step that could not be saved is told to; None: it is an error at the next stop.
        """
        self.directory = directory
        self._keep, self._keep_best, self._is_async = keep, keep_best, is_async
        self._group, self._orders, self._on_failure = group, orders, on_failure
        self._snapshot = Snapshot() if is_async else None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None  # of the save under way or the one before
        self._step = 0  # of that save
        self._losses: dict[int, float] = {}  # by step, not yet noted on the disk
        problem = _problem_of(directory) if self._is_first else None
        if group is not None:
            from gptrs.train import shards

            problem = shards.first_of_all(problem, group)
        if problem is not None:
            raise problem

    def save(
        self,
        *,
        step: int,
        model: nn.Module,
        optimizer: HasState,
        state: Mapping[str, Any],
        others: Mapping[str, Mapping[str, Tensor]] | None = None,
        logs: Sequence[Path] = (),
    ) -> None:
        """Begins the checkpoint of a step, once that of the step before is done; its end is told by `finish`.

        All processes of the group call it. Args: as of `checkpoint.save`.
        Raises: what went wrong with the save before, unless it was an OSError that `on_failure` is told.
        """
        self._settle(is_told=True)
        self._step = step
        full = checkpoint.state_of(step, state, self._group)
        write = self._writing(step, tensors_of(model, optimizer, others), full, logs)
        if self._is_async:
            self._thread = threading.Thread(target=self._run, args=(write,), name="gptrs-checkpoint", daemon=True)
            self._thread.start()
        else:
            self._run(write)

    def mark(self, step: int, loss: float) -> None:
        """Notes the validation loss of a step: the best checkpoints stay. One that is under way is noted later."""
        if math.isfinite(loss):
            self._losses[step] = loss
        if self._thread is None or not self._thread.is_alive():
            self._note_losses()

    def wait(self) -> None:
        """Waits until the save under way is done, whatever comes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Waits until the last save is done.

        Raises: what went wrong with it; OSError says that earlier checkpoints are intact.
        """
        self._settle(is_told=False)

    @property
    def _is_first(self) -> bool:
        return self._group is None or self._group.rank() == 0

    def _writing(
        self, step: int, tensors: Tensors, state: dict[str, Any], logs: Sequence[Path]
    ) -> Callable[[], object]:
        """Takes the copy and returns what writes it."""
        snapshot, group = self._snapshot, self._group
        if group is None:
            copies = tensors if snapshot is None else snapshot.take(tensors)

            def write() -> None:
                if snapshot is not None:
                    snapshot.wait()
                checkpoint.write(self.directory, step, copies, state, keep=self._keep, logs=logs)

            return write

        from gptrs.train import shards

        share = shards.share_of(tensors, group, self._orders)
        if snapshot is not None:
            share = share._replace(tensors=snapshot.take(share.tensors))
        part = shards.Part(directory=self.directory, step=step, share=share, state=state, keep=self._keep, logs=logs)

        def write_part() -> None:
            if snapshot is not None:
                snapshot.wait()
            shards.write(part, group)

        return write_part

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # surfaces in the loop at its next stop
            self._error = error

    def _settle(self, *, is_told: bool) -> None:
        """Waits for the save before; its failure is told where training can go on, else raised."""
        self.wait()
        error, self._error = self._error, None
        if isinstance(error, OSError) and is_told and self._on_failure is not None:
            self._on_failure(self._step, error)
        elif error is not None:
            raise error
        self._note_losses()

    def _note_losses(self) -> None:
        losses, self._losses = self._losses, {}
        for step, loss in losses.items() if self._is_first else ():
            try:
                manifest.mark_best(self.directory, step, loss, self._keep_best)
            except OSError as error:
                if self._on_failure is None:
                    raise
                self._on_failure(step, error)


def _problem_of(directory: Path) -> Exception | None:
    """Returns why nothing can be written into a directory, after making it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        hint = "hint: run.dir=… takes another directory"
        text = f"cannot write checkpoints into {directory}: {error.strerror or error}; {hint}"
        return OSError(error.errno or errno.EIO, text)
