"""Requests to stop: noted while an update or a save is at work, obeyed at once where nothing is lost by it.

SIGINT is Ctrl-C. SIGTERM is what clusters and service managers send before they kill, SIGUSR1 what Slurm is asked to
send ahead of the time limit (`--signal=USR1@120`): after both the run wants to be started again, and the exit code says
so.

Unusual here: Python prints and drops what is raised inside of a finalizer or a weak reference's callback, so a request
that comes there would be lost. The hook that Python calls then has the signal come once more, a moment later.
"""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code of Ctrl-C, as in every shell
AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_AGAIN_S = 0.05  # until a request that was dropped is made again: finalizers are over by then


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
        self._is_lost = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        is_second = self.number is not None and not self._is_lost
        self._is_lost = False
        if self.number is None:
            self.number = number
        if is_second or self._is_at_once:
            raise Stopped(number)

    def dropped(self, stopped: Stopped) -> None:
        """Is told of a `Stopped` that Python has dropped: its signal comes once more."""
        self._is_lost = True
        timer = threading.Timer(_AGAIN_S, _thread.interrupt_main, [stopped.number])
        timer.daemon = True
        timer.start()

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
    hook = sys.unraisablehook

    def tell(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, Stopped):
            requests.dropped(unraisable.exc_value)
        else:
            hook(unraisable)

    sys.unraisablehook = tell
    try:
        yield requests
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set from outside Python


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Makes the signals `Stopped` at once: for work that leaves whole files only."""
    with stop_requests() as requests, requests.at_once():
        yield
