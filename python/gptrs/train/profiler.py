"""A trace of some updates: what runs when, on the CPU and the GPU, by torch's own profiler.

profile/trace.json.gz    for https://ui.perfetto.dev or chrome://tracing
profile/operations.txt   the operations that took the most time, as a table
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from gptrs.files import write_atomic

PLACE = "profile"  # in the run directory
_ROWS = 40  # of the table


class Profiler:
    """Traces the updates from a first to a last of one run, the one before them as a warm-up; none when empty.

    What was traced is written by `flush` and not within the last update: that takes seconds, and is no training.
    """

    def __init__(self, directory: Path, *, updates: Sequence[int], say: Callable[[str], None]) -> None:
        self.directory = directory / PLACE
        self.first, self.last = updates or (0, 0)
        self.say = say
        self._profile: profile | None = None
        self._reached = 0

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Is open around update `step`."""
        if self._profile is None and max(self.first - 1, 1) <= step <= self.last:
            self._profile = self._started(step)
        yield
        if self._profile is not None and self._reached < self.last:
            self._reached = step
            self._profile.step()

    def flush(self, *, is_end: bool = False) -> None:
        """Writes the trace once the last update is in it, or at the end of a run that came no further."""
        if self._profile is None or not (is_end or self._reached >= self.last):
            return
        tracing, self._profile = self._profile, None
        tracing.stop()
        if self._reached < self.first:
            return
        self.directory.mkdir(exist_ok=True)
        trace, table = self.directory / "trace.json.gz", self.directory / "operations.txt"
        tracing.export_chrome_trace(str(trace))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_atomic(table, tracing.key_averages().table(sort_by=by, row_limit=_ROWS).encode())
        updates = f"{self.first} to {self._reached}"
        self.say(f"traced updates {updates}: open {trace} in https://ui.perfetto.dev; operations by time in {table}")

    def _started(self, step: int) -> profile:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        n_warm, n = int(step < self.first), self.last - step + 1

        def action(i: int) -> ProfilerAction:
            """What to do in the i-th update from here."""
            if i < n_warm or i >= n:
                return ProfilerAction.WARMUP if i < n_warm else ProfilerAction.NONE
            return ProfilerAction.RECORD if i < n - 1 else ProfilerAction.RECORD_AND_SAVE

        tracing = profile(activities=activities, schedule=action, on_trace_ready=lambda _: None)
        tracing.start()
        return tracing
