"""A pager's side of its keeper: starts it, tells it everything, replaces it when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import holdings as held
from .handover import Channel, HandoverError, HandoverTimeout, Message, pair
from .holdings import HeldImage, HeldListener, HeldPeer, HeldWarden, Holdings, Record
from .reign import Reign

SEND_S = 2.0
"""How long a keeper may take to read, where it must have something before a peer is served."""
_AGAIN_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_S = 60.0
_END_S = 1.0
_LEAVE_ATTEMPTS = 3
_PROMISE_S = 10.0
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_MODULE = "lazyrestore._serve.keeper"

Emit = Callable[..., None]


class Keeping:
    """What a keeper holds for this pager, and the keeper itself.

    Each method notes in `holdings` what it is told, and sends it. The descriptors are lent: they
    stay open until `gone`, or until this ends. A keeper that ended, or that does not read, is
    replaced, and the new one is told everything.

    Args:
        holdings: what there is already.
        reign: under which this pager serves.
        emit: is told of keepers that started and ended.
        is_wanted: False: there is no keeper (--no-keeper), only the notes.
        may_fork: the first keeper is a copy of this process, where that has one thread: it need not
            import anything. What is open here is closed there.
    """

    def __init__(
        self,
        holdings: Holdings,
        reign: Reign,
        emit: Emit,
        *,
        is_wanted: bool = True,
        may_fork: bool = False,
    ) -> None:
        self.holdings = holdings
        self.reign = reign
        self._emit = emit
        self._is_wanted = is_wanted
        self._may_fork = may_fork
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again: asyncio.TimerHandle | None = None
        self._flushing: asyncio.TimerHandle | None = None
        self._failures = 0
        self._started_s = 0.0
        self._extra: list[Message] = []  # told to each keeper, beside what is held
        self._pidfd = -1
        self._watcher: Callable[[int], None] | None = None

    @property
    def pid(self) -> int | None:
        """The keeper's process; None: there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the keeper, and send it all that is held; what it cannot take at once follows.

        Takes some milliseconds. The keeper is good for something from then on: what is sent waits
        for it in the kernel, whatever becomes of this process.
        """
        if not self._is_wanted or self._channel is not None:
            return
        self._started_s = time.monotonic()
        try:
            self._channel = self._spawn()
            assert self._process is not None
            # Before it is told anything: from the first word on it may be who goes on.
            self._set_pidfd(os.pidfd_open(self._process.pid))
            self._send(self._hello())
            for message in [*self._extra, *self.holdings.messages()]:
                self._send(message)
        except OSError as error:
            self._lost(f"it cannot be started: {error.strerror or error}")
            return
        self._watch()

    def _spawn(self) -> Channel:
        may_fork, self._may_fork = self._may_fork, False
        if may_fork and len(os.listdir("/proc/self/task")) == 1:
            return self._fork()
        channel, other = pair()
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH", "")])])
        # -P: what lies in the working folder is not ours to run.
        command = [sys.executable, "-P", "-m", _MODULE, str(other.fileno())]
        # It begins with these blocked, and unblocks them when it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError:
            channel.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()
        return channel

    def _fork(self) -> Channel:
        from .keeper import begin

        channel, other = pair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            pid = os.fork()
            if pid == 0:
                begin(other)
        except OSError:
            channel.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()
        self._process = Forked(pid)
        return channel

    def _hello(self) -> Message:
        pidfd = os.pidfd_open(os.getpid())
        fds = [pidfd, os.dup(self.reign.fd)]
        return Message("hello", {"pid": os.getpid(), "reign": self.reign.known}, fds)

    def watch_keeper(self, watcher: Callable[[int], None] | None) -> None:
        """Have somebody told of each keeper's pidfd, lent, and of -1 before that is closed."""
        self._watcher = watcher
        if watcher is not None:
            watcher(self._pidfd)

    def _set_pidfd(self, pidfd: int) -> None:
        if self._watcher is not None:
            self._watcher(pidfd)
        before, self._pidfd = self._pidfd, pidfd
        if before >= 0:
            os.close(before)

    # What there is to hold.

    def options(self, options: Record) -> None:
        """What the service was asked for."""
        self.holdings.options = options
        self._tell(Message("options", {"options": options}))

    def listener(self, key: str, listener: HeldListener) -> None:
        """A socket that listens."""
        self.holdings.listeners[key] = listener
        self._tell(held.listener_message(key, listener))

    def unlisten(self, key: str) -> None:
        """It does not any more."""
        if self.holdings.listeners.pop(key, None) is not None:
            self._tell(Message("unlisten", {"key": key}))

    def image(self, key: str, image: HeldImage) -> None:
        """An image that peers will be served from."""
        self.holdings.images[key] = image
        self._tell(held.image_message(key, image))

    def unimage(self, key: str) -> None:
        """Nobody is served from it any more."""
        if self.holdings.images.pop(key, None) is not None:
            self._tell(Message("unimage", {"key": key}))

    def accepted(self, key: str, fd: int) -> None:
        """Somebody has connected."""
        self.peer(key, HeldPeer({"socket": fd}))

    def peer(self, key: str, peer: HeldPeer) -> None:
        """Somebody is about to be served, or what is known of him has changed."""
        self.holdings.peers[key] = peer
        self._tell(held.peer_message(key, peer))

    def gone(self, key: str) -> None:
        """Somebody is not served any more, or never will be. Before his descriptors are closed."""
        if self.holdings.peers.pop(key, None) is not None:
            self._tell(Message("gone", {"key": key}))

    def warden(self, key: str, warden: HeldWarden) -> None:
        """A warden that whoever goes on from this process has to ask."""
        self.holdings.wardens[key] = warden
        self._tell(held.warden_message(key, warden))

    def unwarden(self, key: str) -> None:
        """It has been asked. Its descriptors are still whose they were."""
        if self.holdings.wardens.pop(key, None) is not None:
            self._tell(Message("unwarden", {"key": key}))

    def promotions(self, times_s: list[float]) -> None:
        """When keepers became pagers, this one included."""
        self.holdings.promotions = times_s
        self._tell(Message("promotions", {"times_s": times_s}))

    def trial(self, key: str | None) -> None:
        """A peer is tried alone, to see whether it ends the pager; None: it did not."""
        self.holdings.trial = key
        self._tell(Message("trial", {"peer": key}))

    def predecessor(self, message: Message) -> None:
        """Whose peers will be told of now; they are this service's own after `taking`."""
        self._extra = [message]
        self._tell(message)

    def taking(self) -> None:
        """The predecessor is about to be told to stop."""
        self._extra.append(Message("taking"))
        self._tell(self._extra[-1])

    def resolved(self) -> None:
        """The predecessor has stopped, or its peers were forgotten again."""
        self._extra = []
        self._tell(Message("resolved"))

    def leave(self) -> bool:
        """Leave all that is held to the keeper, which serves it when this process has ended.

        False: there is no keeper, nor can one be started: this process has to go on.
        """
        self.holdings.is_leaving = True
        self._unwatch()
        for _ in range(_LEAVE_ATTEMPTS):
            if self._is_promised():
                return True
            self._drop()
            self._loop = None  # from now on nobody else looks after it
            self.start()
        self.holdings.is_leaving = False
        return False

    def _is_promised(self) -> bool:
        """Whether the keeper is there, and has everything: it says so."""
        if self._channel is None:
            return False
        try:
            self._channel.send(Message("leaving"), SEND_S)
            while (message := self._channel.receive(_PROMISE_S)) is not None:
                message.close()
                if message.kind == "holding":
                    return True
        except (OSError, HandoverError):
            return False
        return False

    def finish(self) -> None:
        """Nothing is left to be kept: end the keeper."""
        self._is_wanted = False
        self._unwatch()
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            with contextlib.suppress(OSError, HandoverError):
                channel.send(Message("finish"), SEND_S)
            channel.close()
        if process is not None:
            _reap(process)
        self._set_pidfd(-1)

    # How it is told.

    def _tell(self, message: Message) -> None:
        """Send what must be there before anything else is done."""
        if self._channel is None:
            return
        try:
            self._channel.send(message, SEND_S)
        except HandoverTimeout as error:
            self._lost(str(error))
        except OSError as error:
            self._lost(error.strerror or str(error))

    def _send(self, message: Message) -> None:
        assert self._channel is not None
        self._channel.queue(message)
        if message.kind == "hello":
            message.close()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let a loop watch over the keeper."""
        self._loop = loop
        if self._channel is None:
            self.start()
        else:
            self._watch()

    def _watch(self) -> None:
        if self._loop is None or self._channel is None:
            return
        self._loop.add_reader(self._channel.fileno(), self._on_readable)
        self._flush_later()

    def _flush_later(self) -> None:
        if self._loop is not None and self._channel is not None and self._channel.has_unsent:
            self._flushing = self._loop.call_later(0.005, self._flush)

    def _flush(self) -> None:
        if self._channel is None:
            return
        try:
            self._channel.flush()
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        self._flush_later()

    def _unwatch(self) -> None:
        for timer in (self._again, self._flushing):
            if timer is not None:
                timer.cancel()
        if self._loop is not None and self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())

    def _on_readable(self) -> None:
        assert self._channel is not None
        try:
            self._channel.read()
            while (message := self._channel.next()) is not None:
                message.close()
                if message.kind == "ready":
                    self._emit("keeper_started", pid=self.pid)
            if self._channel.is_at_end:
                self._lost("it has ended")
        except (OSError, HandoverError) as error:
            self._lost(str(error))

    def _lost(self, why: str) -> None:
        """Start another: at once, but later and later if it does not stay."""
        pid = self.pid
        self._unwatch()
        self._drop()
        if time.monotonic() - self._started_s > _STEADY_S:
            self._failures = 0
        delay_s = _AGAIN_S[min(self._failures, len(_AGAIN_S) - 1)]
        self._failures += 1
        self._emit("keeper_lost", pid=pid, reason=why, again_s=delay_s)
        if self._loop is not None:
            self._again = self._loop.call_later(delay_s, self.start)

    def _drop(self) -> None:
        channel, process = self._channel, self._process
        self._channel = self._process = None
        # Killed before it could take the end of the socketpair for the end of this process.
        if process is not None:
            process.kill()
            _reap(process)
        self._set_pidfd(-1)
        if channel is not None:
            channel.close()


class Forked:
    """A child that was forked, as `subprocess.Popen` has others."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._is_over = False

    def kill(self) -> None:
        """End it."""
        if not self._is_over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Wait until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        deadline = time.monotonic() + timeout
        while not self._is_over:
            try:
                self._is_over = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:  # somebody else has
                self._is_over = True
            if not self._is_over and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("keeper", timeout)
            time.sleep(0.001)


def _reap(process: subprocess.Popen[bytes] | Forked) -> None:
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
