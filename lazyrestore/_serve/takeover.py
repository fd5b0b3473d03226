"""From one service to the next, while peers wait: both sides.

    heir                                   who serves
     {"type": "takeover", "force": ...} ▶
                                         ◀ "refused", or
                                         ◀ "reign", everything that is held, "all"
     (has its own keeper hold all of it)
     "take" ▶
                                           stops serving, passes its reign to the heir, and ends
     serves

Until the reign was passed nothing has changed: if the heir dies, who serves goes on. From then on
the heir is responsible, or its keeper. If who serves dies, its keeper and the heir both want the
reign, and one of them gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lazyrestore.errors import RemoteError

from .handover import Channel, HandoverError, Message
from .holdings import Holdings
from .keeping import Keeping
from .listen import foreign_user
from .reign import Reign, await_release, new_number

ANSWER_S = 15.0
"""How long the other side may take for each step."""
RELEASE_S = 5.0
"""How long who serves may take to stop."""
_LOOK_S = 0.002


class TakeoverRefused(RemoteError):
    """Who serves goes on serving."""


class TakeoverLost(RemoteError):
    """Who served has ended in the middle: whoever goes on from it is to be asked."""


# The heir's side, before its loop runs.


@dataclass
class Inheritance:
    """Everything of a service that is about to stop.

    Attributes:
        holdings: what it held; the descriptors are the heir's.
        pid: of who serves.
        pidfd: the same.
        reign: the other's.
        heir: the number under which this one would go on.
    """

    holdings: Holdings
    pid: int
    pidfd: int
    reign: Reign
    heir: int
    _channel: Channel

    def predecessor(self) -> Message:
        """For the heir's own keeper: who has to stop first. The descriptors are lent."""
        fields: dict[str, object] = {"reign": self.reign.known, "heir": self.heir}
        return Message("predecessor", fields, [self.pidfd, self.reign.fd])

    def take(self) -> None:
        """Have the other stop; it does not serve any more when this returns.

        Raises:
            TakeoverLost: the keeper of who served goes on instead.
        """
        # Where it has ended, or hangs, the reign tells who goes on.
        with contextlib.suppress(OSError, HandoverError):
            self._channel.send(Message("take", {"heir": self.heir}), ANSWER_S)
        if not await_release(self.reign, self.heir, self.pidfd, RELEASE_S):
            raise TakeoverLost(f"process {self.pid} has ended, and its keeper serves")

    def close(self) -> None:
        """Let go of what was for taking over; what is held stays open."""
        self._channel.close()
        self.reign.close()
        os.close(self.pidfd)

    def decline(self) -> None:
        """Let go of everything: the other goes on."""
        self.holdings.close()
        self.close()


def ask(sock: socket.socket, *, force: bool) -> Inheritance:
    """Ask whoever serves a connection for everything that it has.

    Args:
        sock: it is closed with the inheritance, or at once where there is none.
        force: also of a service that means to go on.

    Raises:
        TakeoverRefused: it goes on, or is another user's.
        TakeoverLost: it ended.
        HandoverError: it does not answer, or what it says cannot be.
    """
    channel = Channel(sock)
    holdings = Holdings()
    reign: Message | None = None
    try:
        if (uid := foreign_user(sock)) is not None:
            raise TakeoverRefused(
                f"user {uid} listens there: give another path, or end that process"
            )
        request = json.dumps({"type": "takeover", "force": force}).encode() + b"\n"
        try:
            sock.sendall(request)
        except OSError:
            raise TakeoverLost("who served has ended") from None
        while (message := _receive(channel)).kind != "all":
            if message.kind == "refused":
                raise TakeoverRefused(str(message.fields.get("reason")))
            if message.kind == "reign":
                reign = message
            elif not holdings.apply(message):
                raise HandoverError(f"a message {message.kind!r} is not known")
        return _inherit(channel, holdings, reign)
    except BaseException:
        holdings.close()
        if reign is not None:
            reign.close()
        channel.close()
        raise


def _receive(channel: Channel) -> Message:
    try:
        message = channel.receive(ANSWER_S)
    except OSError:
        message = None
    if message is None:
        raise TakeoverLost("who served has ended")
    return message


def _inherit(channel: Channel, holdings: Holdings, message: Message | None) -> Inheritance:
    if message is None or len(message.fds) != 2:
        raise HandoverError("who serves has not said so")
    pid, known = message.fields.get("pid"), message.fields.get("reign")
    if not isinstance(pid, int) or not isinstance(known, int):
        raise HandoverError("who serves has not said who it is")
    pidfd, fd = message.take_fds()
    return Inheritance(holdings, pid, pidfd, Reign(fd, known), new_number(), channel)


# The side of who serves, in its loop.


class Giver(Protocol):
    """A service, as this module sees it."""

    keeping: Keeping

    @property
    def is_replaceable(self) -> bool:
        """It only goes on for the peers that it has."""

    async def pause(self) -> None:
        """Accept nobody, and leave alone who has connected but is not served yet."""

    def resume(self) -> None:
        """Undo `pause`."""

    async def stop_serving(self) -> None:
        """Stop all peers' threads: nothing is fenced, nobody waked, nothing closed."""

    def leave_to(self, sock: socket.socket) -> None:
        """Have the warden wait for who is connected there, when this process ends."""


async def give(sock: socket.socket, request: Mapping[str, object], service: Giver) -> bool:
    """Give everything to who has asked; True: it has all, and this process is to end.

    Args:
        sock: the connection; closed when this returns.
        request: what came over it.
        service: what serves; nothing has changed for it if the answer is False.
    """
    channel = Channel(sock)
    try:
        if not service.is_replaceable and request.get("force") is not True:
            reason = f"already served by PID {os.getpid()}: stop it, or add --takeover"
            channel.send(Message("refused", {"reason": reason, "pid": os.getpid()}), 1.0)
            return False
        await service.pause()
        try:
            heir = await asyncio.wait_for(_offer(channel, service.keeping), ANSWER_S)
        except (OSError, HandoverError, TimeoutError):
            heir = None
        if heir is None:
            service.resume()
            return False
        await service.stop_serving()
        service.leave_to(sock)
        # If that fails, the heir has lost patience, and is the one who serves.
        service.keeping.reign.pass_to(heir)
        service.keeping.finish()
        return True
    except (OSError, HandoverError):  # only of the refusal
        return False
    finally:
        channel.close()


async def _offer(channel: Channel, keeping: Keeping) -> int | None:
    """Send everything; the number of the heir that has it, or None: it ended, or wants none."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        fields: dict[str, object] = {"pid": os.getpid(), "reign": keeping.reign.known}
        channel.queue(Message("reign", fields, [pidfd, keeping.reign.fd]))
        # All at one moment: peers may end while it goes. The heir sees that for itself.
        for message in keeping.holdings.messages():
            channel.queue(message)
        channel.queue(Message("all"))
    finally:
        os.close(pidfd)
    while not channel.flush():
        await asyncio.sleep(_LOOK_S)
    while (answer := channel.next()) is None:
        if channel.is_at_end:
            return None
        if not channel.read():
            await asyncio.sleep(_LOOK_S)
    heir = answer.fields.get("heir")
    answer.close()
    return heir if answer.kind == "take" and isinstance(heir, int) else None
