"""`gptrs ARGUMENTS…` in processes forked from one that has imported torch, which takes seconds that nobody tests.

As a program it is that process: it reads requests from the socket on its standard input.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
_MOST_BYTES = 1 << 20  # of a request


class WarmCli:
    """Starts the process at the first call and ends it with `close`."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def __call__(self, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        """As subprocess.run of the command line with text captured. Args: options: `input`, `cwd`, `env`."""
        words = list(map(str, arguments))
        request = {
            "arguments": words,
            "cwd": str(options.pop("cwd", Path.cwd())),
            "env": dict(options.pop("env", os.environ)),
        }
        given = options.pop("input", "")
        assert not options, options
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as stdin,
            tempfile.TemporaryFile("w+", encoding="utf-8") as stdout,
            tempfile.TemporaryFile("w+", encoding="utf-8") as stderr,
        ):
            stdin.write(given)
            stdin.seek(0)
            link = self._link()
            socket.send_fds(link, [json.dumps(request).encode()], [file.fileno() for file in (stdin, stdout, stderr)])
            code = json.loads(link.recv(64))
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(["gptrs", *words], code, stdout.read(), stderr.read())

    def _link(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.settimeout(TIMEOUT_S)
            with theirs:
                command = [sys.executable, str(Path(__file__))]
                self._server = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL)
        return self._socket

    def close(self) -> None:
        if self._socket is not None and self._server is not None:
            self._socket.close()
            self._server.wait(TIMEOUT_S)


def _serve() -> None:
    import torch  # noqa: F401

    import gptrs.cli
    import gptrs.exchange
    import gptrs.generate

    link = socket.socket(fileno=os.dup(0))
    while True:
        request, files, _, _ = socket.recv_fds(link, _MOST_BYTES, 3)
        if not request:
            return
        child = os.fork()
        if child == 0:
            link.close()
            _run(json.loads(request), files, gptrs.cli.main)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        link.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def _run(request: dict[str, Any], files: list[int], main: Any) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = ["gptrs", *request["arguments"]]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
