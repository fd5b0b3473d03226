"""Dumping a tree of processes: CRIU freezes it and reads it, its pages go straight into an image.

What CRIU writes beside the pages is in memory (smallfiles.py). The pages come by a socket
(pageserver.py). By another one (rpc.py) CRIU asks before each step, and the last question comes
while all processes are still frozen: it is answered only when the image is complete, durable and
in its place. Without that answer, for whatever reason (an error, a full disk, the end of this
process), CRIU lets the processes run on. So at no moment is there neither the image nor the
processes.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from lazyrestore.errors import CriuError

from . import processes, rpc
from .dumpoptions import DumpOptions
from .find import Criu, find_criu, not_started, search_path
from .pageserver import CutShort, PageServer
from .protobuf import MessageError, decode, frames
from .run import Running, failure_of
from .smallfiles import SmallFiles
from .treeimage import TreeImage

if TYPE_CHECKING:
    from lazyrestore.reports import ProcessInfo
    from lazyrestore.sources.base import Sink

__all__ = ["TreeDump"]

_LOG, _OUTPUT, _STATS = "dump.log", "dump.out", "stats-dump"
_NOT_KEPT = frozenset({_LOG, _OUTPUT, _STATS})
_QUERY, _POST_DUMP = "query-ext-files", "post-dump"

# Only this process ends CRIU's work: killed in the middle, it can leave a process in its own code.
# And a socket that is closed must be an error for it, and not its end (SIGPIPE).
_SHIELDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGPIPE,
)
_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SETTINGS = (
    "see whether /etc/criu/default.conf, ~/.criu/default.conf or CRIU_CONFIG_FILE changes how it"
    " dumps"
)
_SOCKET_BYTES = 4 << 20  # of pages that CRIU may send ahead
_SO_SNDBUFFORCE = 32
_MM_IMAGE = re.compile(r"mm-([0-9]+)\.img")
_PAGE_IMAGE = re.compile(r"pages(?:map)?-.*\.img|pagemap-.*\.img|parent")
_STATS_HEAD_BYTES = 8
_STATS_DUMP, _FROZEN_TIME = 1, 2


class TreeDump:
    """One dump of one tree; used once.

    Args:
        pid: root of the tree.
        leave_running: True: the processes run on; False: they end, once the image is complete.
        criu: path of CRIU; None: as find_criu finds it.
        criu_options: options of `criu dump`, as "--shell-job".

    Attributes:
        frozen_us: how long the processes stood still, in µs; None: they did not (yet).
        processes: that are in the image.

    Raises:
        ValueError: an option cannot be given.
    """

    def __init__(
        self,
        pid: int,
        *,
        leave_running: bool = False,
        criu: str | None = None,
        criu_options: Sequence[str] = (),
    ) -> None:
        self.pid = pid
        self.leave_running = leave_running
        self.options = DumpOptions.of(criu_options)
        self.frozen_us: int | None = None
        self.processes: tuple[ProcessInfo, ...] = ()
        self._criu = criu

    def run(self, sink: Sink) -> None:
        """Dump into the sink, and close it.

        Raises:
            ProcessError: the process is not there, or must not be dumped now.
            CriuError: CRIU is missing or failed. The processes run on, unless the message says
                otherwise.
            OSError: the image cannot be written. The processes run on.
        """
        processes.check_root(self.pid)
        processes.refuse_traced(self.pid)
        criu = find_criu(self._criu)
        version = criu.version_text
        processes.refuse_incomplete(self.pid)
        with SmallFiles() as files:
            _Conversation(self, criu, version, files, sink).hold()


class _Conversation:
    """CRIU at work, and what it is told."""

    def __init__(
        self, dump: TreeDump, criu: Criu, version: str, files: SmallFiles, sink: Sink
    ) -> None:
        self._dump = dump
        self._criu = criu
        self._version = version
        self._files = files
        self._sink = sink
        self._image = TreeImage(sink, before=self._look_again)
        self._stack = ExitStack()
        self._has_looked = False
        self._is_complete = False  # the image is

    def hold(self) -> None:
        """Start CRIU, and answer it until it ends."""
        with self._stack:
            pages, criu_pages = self._pair(socket.SOCK_STREAM)
            questions, criu_questions = self._pair(socket.SOCK_SEQPACKET)
            _widen(criu_pages)
            running = self._start(criu_pages.fileno(), criu_questions.fileno())
            try:
                questions.sendall(self._request(criu_pages.fileno()))
                criu_pages.close()
                criu_questions.close()
                success = self._serve(pages, questions)
            finally:
                # To whatever CRIU still asks, this is a "no": also where a process that was forked
                # meanwhile, by somebody else here, has these sockets too.
                for one in (pages, questions):
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                for one in (pages, questions, criu_pages, criu_questions):
                    one.close()
                running.wait()
        if success and running.code == 0:
            if not self._is_complete:
                raise CriuError(
                    f"CRIU did not ask before it was done with process {self._dump.pid}: there is"
                    " no image; see whether it runs on"
                )
            self._dump.frozen_us = _frozen_us(self._files)
            return
        code, path = running.code or 0, f"{self._files.path}/"
        failure = failure_of(self._criu, "dump", code, path + _LOG, path + _OUTPUT)
        if not self._is_complete and code >= 0:
            raise failure
        # In the middle, CRIU has processes run code of its own, which only it ends.
        what = "the image is complete, but then " if self._is_complete else ""
        raise CriuError(f"{what}{failure}; see whether process {self._dump.pid} runs on")

    # ---- Starting --------------------------------------------------------------------------------

    def _pair(self, kind: int) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self._stack.enter_context(ours)
        self._stack.enter_context(theirs)
        return ours, theirs

    def _start(self, *descriptors: int) -> Running:
        """CRIU as the servant of this process: `criu swrk`, which waits for a request."""
        fd = os.open(_OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._files.fd)
        try:
            pid = os.posix_spawn(
                self._criu.path,
                [self._criu.path, *self._dump.options.arguments, "swrk", str(descriptors[-1])],
                {**os.environ, "PATH": search_path()},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, fd, 1),
                    (os.POSIX_SPAWN_DUP2, fd, 2),
                    *((os.POSIX_SPAWN_DUP2, one, one) for one in descriptors),
                ],
                setsigmask=_SHIELDED,
                setsigdef=[signal.SIGXFSZ, signal.SIGCHLD],
            )
        except OSError as error:
            raise not_started(self._criu.path, error) from None
        finally:
            os.close(fd)
        _protect(pid)
        path = f"{self._files.path}/"
        return Running(self._criu, pid, "dump", path + _LOG, path + _OUTPUT)

    def _request(self, pages_fd: int) -> bytes:
        return rpc.dump_request(
            pid=self._dump.pid,
            images_fd=self._files.fd,
            pages_fd=pages_fd,
            leave_running=self._dump.leave_running,
            log_level=self._dump.options.log_level,
            log_file=_LOG,
        )

    # ---- Answering -------------------------------------------------------------------------------

    def _serve(self, pages: socket.socket, questions: socket.socket) -> bool:
        """Take what comes until CRIU ends. Returns whether it says that it succeeded."""
        server = PageServer(pages, self._image)
        poll = select.poll()
        poll.register(pages, select.POLLIN)
        poll.register(questions, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == pages.fileno():
                    try:
                        is_open = server.receive()
                    except CutShort:
                        return False
                    if not is_open:
                        poll.unregister(pages)
                    continue
                said = rpc.receive(questions)
                if said is None:
                    return False
                if said.notification is None:
                    return said.success
                self._answer(said.notification, server)
                with suppress(OSError):  # it is gone: then the next message is the end
                    rpc.send_answer(questions, True)

    def _answer(self, notification: str, server: PageServer) -> None:
        """Do what has to be done at this step; an exception is a "no"."""
        if notification == _QUERY:
            self._look_again()
        elif notification == _POST_DUMP:
            if not server.is_complete:
                raise CriuError(f"CRIU has not sent the pages to where it was told: {_SETTINGS}")
            self._stack.enter_context(_signals_held_back())
            self._complete(server)

    def _look_again(self) -> None:
        """Now that all is frozen, see that no page waits for a pager."""
        if not self._has_looked:
            processes.refuse_incomplete(self._dump.pid)
            self._has_looked = True

    def _complete(self, server: PageServer) -> None:
        names = [name for name in self._files.names() if name not in _NOT_KEPT]
        self._check_names(names)
        self._dump.processes = self._image.add_rest(
            self._files, names, self._version, is_wide=server.is_wide
        )
        self._sink.close()
        self._is_complete = True

    def _check_names(self, names: list[str]) -> None:
        """What CRIU was not told to write would be missed, or doubled, when it is restored."""
        with_memory = set()
        for name in names:
            if _PAGE_IMAGE.fullmatch(name) or self._files.size(name) < 0:
                raise CriuError(f"CRIU has written {name}, as is not asked of it here: {_SETTINGS}")
            found = _MM_IMAGE.fullmatch(name)
            if found:
                with_memory.add(int(found[1]))
        if with_memory != self._image.pids:
            raise CriuError(
                f"CRIU has dumped the processes {sorted(with_memory)}, and sent the pages of"
                f" {sorted(self._image.pids)}: {_SETTINGS}"
            )


def _widen(connection: socket.socket) -> None:
    """Let CRIU send ahead: it copies while others compress."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BYTES)
    except PermissionError:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)


def _protect(pid: int) -> None:
    """Let CRIU be no victim of the OOM killer. The processes are: CRIU stores what theirs is."""
    with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("-1000")


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Once begun, the last step is gone through: what ends it in the middle is not heard.

    An image that takes its place while the user is told that it did not would be a lie. It takes
    as long as the disk takes. Python hears signals in its main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(_number: int, _frame: FrameType | None) -> None:
        pass

    before = {}
    try:
        for number in _HELD_BACK:
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, ignore)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _frozen_us(files: SmallFiles) -> int | None:
    """As CRIU has measured it."""
    try:
        message = next(frames(files.read(_STATS), _STATS_HEAD_BYTES))
        stats = dict(decode(message))[_STATS_DUMP]
        frozen = dict(decode(stats))[_FROZEN_TIME] if isinstance(stats, bytes) else None
    except (StopIteration, KeyError, MessageError):
        return None
    return frozen if isinstance(frozen, int) else None
