"""Accepting from several sockets, as far as descriptors and memory go."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping

from .ledger import Listener

_AT_ONCE = 64
_AGAIN_S = 0.2


class Accepting:
    """Accepts while it is told to; whoever connects meanwhile waits in the socket's queue.

    Args:
        listeners: the sockets; whoever changes them tells by `add` and `remove`.
        accepted: is given each connection, and the path that it came to.
        emit: is told of errors.
    """

    def __init__(
        self,
        listeners: Mapping[str, Listener],
        accepted: Callable[[socket.socket, str], object],
        emit: Callable[..., None],
    ) -> None:
        self._listeners = listeners
        self._accepted = accepted
        self._emit = emit
        self._is_on = False
        self._is_short = False  # of descriptors or memory, at the last attempt
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; within the loop. Does nothing where it goes on already."""
        self._cancel()
        if not self._is_on:
            self._loop = asyncio.get_running_loop()
            self._is_on = True
            for listener in self._listeners.values():
                self._listen(listener)

    def stop(self) -> None:
        """Accept nobody until the next `start`."""
        self._cancel()
        if self._is_on:
            for listener in self._listeners.values():
                self.remove(listener)
            self._is_on = False

    def add(self, listener: Listener) -> None:
        """There is one more."""
        if self._is_on:
            self._listen(listener)

    def remove(self, listener: Listener) -> None:
        """There is one less."""
        if self._is_on:
            self._loop.remove_reader(listener.sock.fileno())

    def _cancel(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _listen(self, listener: Listener) -> None:
        listener.sock.setblocking(False)
        self._loop.add_reader(listener.sock.fileno(), self._accept, listener)

    def _accept(self, listener: Listener) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR, errno.EPROTO):
                    continue
                self._pause(error)
                return
            self._is_short = False
            self._accepted(sock, listener.path)

    def _pause(self, error: OSError) -> None:
        """Nothing can be accepted now."""
        if not self._is_short:
            self._is_short = True
            why = os.strerror(error.errno or 0)
            self._emit("error", reason=f"cannot accept: {why}: whoever connects has to wait")
        self.stop()
        self._again = self._loop.call_later(_AGAIN_S, self.start)
