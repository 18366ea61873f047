"""Training time, and the pace of the updates alone: what is between them does not count for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """The time of one run, and its pace since it was last asked.

    Attributes: step: updates done.
    """

    def __init__(self, step: int, elapsed_s: float) -> None:
        """Args: step, elapsed_s: where the run stands, over all its processes."""
        self.step = step
        self._zero = time.perf_counter() - elapsed_s
        self._restart()

    @contextmanager
    def update(self) -> Iterator[None]:
        """Goes around an update."""
        with self.waiting():
            yield
        self.step += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Goes around what waits for updates that the device still has before it: they take that time."""
        start = time.perf_counter()
        yield
        self._busy_s += time.perf_counter() - start

    def count(self, *, n_tokens: int, n_microbatches: int) -> None:
        """Takes an update's size: tokens over all ranks, microbatches of one."""
        self._n_tokens += n_tokens
        self._n_microbatches += n_microbatches

    def elapsed_s(self) -> float:
        """Returns the training time since step 0."""
        return time.perf_counter() - self._zero

    def pace(self) -> tuple[float, float]:
        """Returns tokens a second and the seconds of a microbatch, over the updates since the last call."""
        found = self._n_tokens / self._busy_s, self._busy_s / self._n_microbatches
        self._restart()
        return found

    def _restart(self) -> None:
        self._busy_s, self._n_tokens, self._n_microbatches = 0.0, 0, 0
