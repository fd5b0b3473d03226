"""Telling others that the service is ready: systemd (sd_notify), and who gave a --status-fd."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Speaks to whoever listens at $NOTIFY_SOCKET; without one it says nothing.

    What cannot be said is not said: a service does not fail for it.

    Args:
        environ: the environment.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = ""
        if name.startswith("/"):
            self._address = name
        elif name.startswith("@"):
            self._address = "\0" + name[1:]
        self.watchdog_s = _watchdog(environ) if self._address else None

    def ready(self, status: str) -> None:
        """Connections are served from now on."""
        self._send("READY=1", f"STATUS={_line(status)}", f"MAINPID={os.getpid()}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_line(status)}")

    def stopping(self, status: str, *, extend_s: float | None = None) -> None:
        """The service is on its way out, which takes up to `extend_s` seconds."""
        extend = [f"EXTEND_TIMEOUT_USEC={int(extend_s * 1e6)}"] if extend_s else []
        self._send("STOPPING=1", f"STATUS={_line(status)}", *extend)

    def main_pid(self, status: str) -> None:
        """Say that this process is the service now, whoever was it before."""
        self._send(f"MAINPID={os.getpid()}", f"STATUS={_line(status)}")

    def watchdog(self) -> None:
        """The service is alive; to be said more often than each `watchdog_s` seconds."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            # Nobody waits here for a supervisor that does not read.
            sock.settimeout(1.0)
            sock.sendto("\n".join(lines).encode(), self._address)


def _watchdog(environ: Mapping[str, str]) -> float | None:
    try:
        asked_s = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return None
    return asked_s if asked_s > 0 else None


def _line(text: str) -> str:
    return " ".join(text.split())


class StatusFd:
    """A descriptor that gets the line "ready" when the service is, and is closed then.

    End of file without that line means that the service did not come up.

    Args:
        number: --status-fd.
        word: what it gets in the place of that line.

    Raises:
        ValueError: no such descriptor is open for writing.
    """

    def __init__(self, number: int, word: bytes = b"ready\n") -> None:
        self._word = word
        if number < 0:
            raise ValueError(f"--status-fd {number}: a descriptor is a number from 0 on")
        try:
            os.write(number, b"")
            os.set_inheritable(number, False)
        except OSError as error:
            raise ValueError(
                f"--status-fd {number}: {error.strerror}; give the number of a descriptor that is"
                " open for writing"
            ) from None
        self._number = number

    def ready(self) -> None:
        """Say so; whoever asked may have stopped listening. Does nothing the second time."""
        number, self._number = self._number, -1
        if number < 0:
            return
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            try:
                os.write(number, self._word)
            except BlockingIOError:  # a full pipe that nobody reads
                time.sleep(0.01)
                continue
            except OSError:
                pass
            break
        if number > 2:
            os.close(number)
