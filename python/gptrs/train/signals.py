"""Requests to stop: noted while an update or a save is at work, obeyed at once where nothing is lost by it.

SIGINT is Ctrl-C. SIGTERM is what clusters and service managers send before they kill, SIGUSR1 what Slurm is asked to
send ahead of the time limit (`--signal=USR1@120`): after both the run wants to be started again, and the exit code says
so.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code of Ctrl-C, as in every shell
AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A run leaves because a signal asked it to; what it has saved is said in the text."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(*filter(None, [text]))
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; 75 after SIGTERM and SIGUSR1, for whoever starts the command again."""
        return INTERRUPTED if self.number == signal.SIGINT else AGAIN


class StopRequests:
    """What signals have asked for so far. The second one raises `Stopped` wherever the program is.

    Attributes: number: of the first signal, None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._is_at_once = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        is_second = self.number is not None
        if not is_second:
            self.number = number
        if is_second or self._is_at_once:
            raise Stopped(number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal too raises `Stopped`; one that was noted before does when it begins."""
        self._is_at_once = True
        try:
            if self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self._is_at_once = False


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Makes the signals requests. Outside of the main thread they stay as they are."""
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.signal(number, requests.note) for number in NUMBERS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set from outside Python


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Makes the signals `Stopped` at once: for work that leaves whole files only."""
    with stop_requests() as requests, requests.at_once():
        yield
