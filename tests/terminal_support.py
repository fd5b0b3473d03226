"""A terminal of a given size, in which a command runs, and what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping

import pytest
from cli_support import TIMEOUT_S, environment

_ESCAPES = re.compile(
    r"\x1b(\[[0-9;?<>=]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[=>78])"
)


def plain(text: str) -> str:
    """Without what sets colours and the like."""
    return _ESCAPES.sub("", text)


class Terminal:
    """A command whose standard streams are a terminal (or only some of them)."""

    def __init__(
        self,
        *command: object,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        streams: str = "012",
        **options: object,
    ) -> None:
        self.shown = ""
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        variables = environment({"TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})})
        if "COLUMNS" not in (env or {}):
            del variables["COLUMNS"]  # the terminal says it
        for name, number in (("stdin", "0"), ("stdout", "1"), ("stderr", "2")):
            if number in streams:
                options[name] = inner
            else:
                options.setdefault(name, subprocess.DEVNULL)

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

        self.child = subprocess.Popen(  # type: ignore[call-overload]
            [*map(str, command)], env=variables, preexec_fn=take_terminal, **options
        )
        os.close(inner)

    def type(self, text: str) -> None:
        """As if somebody typed it."""
        os.write(self._fd, text.encode())

    def read(self, seconds: float) -> bool:
        """Take what has been shown meanwhile; False: it is all that there will be."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # everybody has closed it
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def wait_for(self, is_there: str | Callable[[str], object]) -> str:
        """Wait until it is shown; all that was shown so far."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            text = plain(self.shown)
            if is_there in text if isinstance(is_there, str) else is_there(text):
                return text
            if time.monotonic() > deadline:
                pytest.fail(f"never shown: {is_there}\n{self.shown!r}")
            if not self.read(0.1):
                pytest.fail(f"it ended, and had never shown {is_there}\n{self.shown!r}")

    def finish(self) -> int:
        """Wait until it has ended; its exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.read(0.1):
            if time.monotonic() > deadline:
                pytest.fail(f"it does not end\n{self.shown!r}")
        return self.child.wait(TIMEOUT_S)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self._fd)
