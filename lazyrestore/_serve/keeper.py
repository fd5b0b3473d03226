"""The keeper: a process that does nothing but hold what a pager must not take with it.

    python -m lazyrestore._serve.keeper FD

FD is its end of a socketpair (handover.py says what comes over it). It has everything imported and
the images open, and sleeps. When the pager ends without having said that nothing is left, the
keeper becomes the pager, in this same process, and starts a keeper of its own.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .handover import Channel, HandoverError, Message
from .holdings import Holdings
from .reign import Reign, await_release, end, is_over, new_number

_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_END_S = 2.0
"""How long a pager may take to end, once its end of the socketpair is closed."""
RELEASE_S = 5.0
"""How long a service may take to stop, once another has everything."""
_OOM_STEP = 100


class Kept:
    """What a keeper has been told.

    Attributes:
        holdings: what it holds.
        reign: under which its pager serves.
        pager: pidfd of the pager; -1: it has not said.
        pager_pid: its number.
        is_finished: nothing is left to be kept.
    """

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.reign: Reign | None = None
        self.pager = -1
        self.pager_pid = 0
        self.is_finished = False
        self._predecessor: tuple[Reign, int, int] | None = None
        self._is_taking = False

    def apply(self, message: Message) -> None:
        """Take in what the pager said.

        Raises:
            HandoverError: it cannot be.
        """
        if self.holdings.apply(message):
            return
        try:
            if message.kind == "hello":
                self.pager_pid = _number(message, "pid")
                number = _number(message, "reign")
                self.pager, reign = message.take_fds()
                self.reign = Reign(reign, number)
            elif message.kind == "predecessor":
                known, heir = _number(message, "reign"), _number(message, "heir")
                pidfd, reign = message.take_fds()
                self._predecessor = (Reign(reign, known), heir, pidfd)
            elif message.kind == "taking":
                self._is_taking = True
            elif message.kind == "resolved":
                self._forget_predecessor()
            elif message.kind == "finish":
                self.is_finished = True
            else:
                raise HandoverError(f"a message {message.kind!r} is not known")
        except (KeyError, TypeError, ValueError) as error:
            raise HandoverError(f"a message {message.kind!r} lacks something: {error!r}") from None
        finally:
            message.close()

    def may_serve(self) -> bool:
        """After the pager's end: whether this keeper is the one that goes on.

        Waits until nobody serves any more.
        """
        if self.is_finished or self.reign is None:
            return False
        if not is_over(self.pager, _END_S):
            # It lives, but has closed its end: it cannot be told that somebody else serves.
            end(self.pager)
        if self._predecessor is not None:
            reign, heir, pidfd = self._predecessor
            # Unless it was told to stop, it serves on.
            if not self._is_taking or not await_release(reign, heir, pidfd, RELEASE_S):
                return False
            self._forget_predecessor()
        return self.reign.pass_to(new_number())

    def _forget_predecessor(self) -> None:
        if self._predecessor is not None:
            reign, _, pidfd = self._predecessor
            self._predecessor = None
            self._is_taking = False
            reign.close()
            os.close(pidfd)


def _number(message: Message, name: str) -> int:
    value = message.fields[name]
    if not isinstance(value, int):
        raise TypeError(name)
    return value


def keep(channel: Channel, kept: Kept, prepare: Callable[[Holdings], None]) -> None:
    """Take in all that the pager says, until it ends or has said that nothing is left.

    Raises:
        HandoverError: what it says cannot be: this keeper is good for nothing.
    """
    while not kept.is_finished:
        message = channel.receive(None, kept.pager)
        if message is None:
            return
        kept.apply(message)
        if message.kind in ("options", "image", "unimage"):
            prepare(kept.holdings)
        if message.kind == "leaving":
            with contextlib.suppress(OSError):
                channel.send(Message("holding"), _END_S)


def ignore_signals() -> None:
    """Let whoever ends services end the pager: that one knows what to do, and tells."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)


def raise_limits() -> None:
    """As many open files as may be: each peer needs several."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def outlive() -> int | None:
    """Where memory runs out, be taken after the pager; the score before, or None: not allowed."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            before = int(file.read())
            file.seek(0)
            file.write(str(max(-1000, before - _OOM_STEP)))
    except (OSError, ValueError):
        return None
    return before


def restore_score(before: int | None) -> None:
    """Be what the pager was."""
    if before is not None:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(before))


def main(arguments: Sequence[str]) -> int:
    """Hold, and serve when the pager has ended; the exit code."""
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    channel.sock.set_inheritable(False)
    ignore_signals()
    raise_limits()
    score = outlive()
    kept = Kept()
    from .promoted import Prepared, run

    prepared = Prepared()
    with contextlib.suppress(OSError):
        channel.send(Message("ready"), 1.0)
    try:
        keep(channel, kept, prepared.follow)
        channel.close()
        if not kept.may_serve():
            return 0
    except HandoverError as error:
        # The pager starts another.
        print(f"lazyrestore: the keeper gives up: {error}", file=sys.stderr)
        return 1
    restore_score(score)
    assert kept.reign is not None
    run(kept.holdings, kept.reign, kept.pager_pid, prepared)
    return 0


def begin(sock: socket.socket) -> NoReturn:
    """Be one, in a child that was just forked: nothing of the parent's stays but standard error.

    Args:
        sock: the keeper's end of the socketpair.
    """
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != sock.fileno():
                with contextlib.suppress(OSError):  # that of the list itself
                    os.close(fd)
        code = main([str(sock.detach())])
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"lazyrestore: the keeper fails: {error!r}\n".encode())
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """Not by way of the interpreter's end, which takes down what still may be in use."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
