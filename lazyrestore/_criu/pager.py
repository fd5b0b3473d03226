"""The process that has the pages of a restore: forked before anything is known, on its own at last.

It imports what it needs while its parent finds out what is to be done; serves once that says so;
and when "they run" has been said, it ends as the last task does. If its parent ends without a word,
it ends what there is of the restore, and itself.

    parent ──{"options": ..., "folder": ..., "log": ...} and the socket that listens──> serve
           ──"R"──> the processes run          ──end of file──> they never will

Imports little: a restore begins with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from .folders import PrivateFolder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import NoReturn, Self

SOCKET_NAME = "lazy-pages.socket"
ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
"""Signals that end a restore."""
_SO_PASSPIDFD = 76  # Linux 6.5
_RUNS = b"R"
_MESSAGE_BYTES_MAX = 1 << 18


def listen(path: str) -> socket.socket:
    """A socket at a path, listening; for this user alone, as its folder is.

    As `lazyrestore._serve.criu.bind` makes one, without that many imports: the daemon has them.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Each task sends its own message, and the kernel says who it is.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)
        sock.bind(os.fsencode(path))
        sock.listen(8)
    except BaseException:
        sock.close()
        raise
    return sock


class Daemon:
    """The process that has the pages, seen from who forked it.

    Attributes:
        pid: its number.
        has_begun: it was told to serve.
        said: where it says what happens, a line each; at the end of file it has ended.
    """

    def __init__(self, pid: int, link: socket.socket, said: int) -> None:
        self.pid = pid
        self.has_begun = False
        self.said = said
        self._link = link

    @classmethod
    def fork(cls) -> Self:
        """Start it: it gets ready, and waits for `begin`. Not where other threads are."""
        from .early import fork

        pid, link, said = fork()
        return cls(pid, socket.socket(fileno=link), said)

    def begin(
        self,
        options: dict[str, object],
        folder: PrivateFolder,
        listening: socket.socket,
        log: str | None,
    ) -> None:
        """Have it serve.

        Args:
            options: what to do, as `ServeOptions.to_record`; paths are absolute.
            folder: of the restore; it is removed if that does not come to its end.
            listening: where CRIU connects; this process closes it.
            log: absolute path of the file for what it says; None: it says so to this process.
        """
        import json

        self.has_begun = True
        text = json.dumps({"options": options, "folder": folder.path, "log": log})
        with contextlib.suppress(BrokenPipeError):  # it has ended: who waits for it says so
            socket.send_fds(self._link, [text.encode()], [listening.fileno()])
        listening.close()  # if it ends, CRIU shall not wait in a queue of ours

    def let_go(self) -> None:
        """The processes run: it is on its own."""
        with contextlib.suppress(BrokenPipeError):
            self._link.send(_RUNS)
        self._link.close()

    def give_up(self) -> None:
        """The processes do not run: it ends them, and then itself."""
        self._link.close()

    def discard(self) -> None:
        """It is not needed: end it, unless it was told to serve."""
        if not self.has_begun:
            self._link.close()
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)

    def last_words(self) -> str:
        """What it said why it ended, to be put behind that it did."""
        os.set_blocking(self.said, False)
        try:
            lines = os.read(self.said, 1 << 16).decode("utf-8", "replace").splitlines()
        except BlockingIOError:
            return ""
        words = [text for text in map(bad_news, lines) if text is not None]
        return f": {words[-1]}" if words else ""


def bad_news(line: str) -> str | None:
    """What one line of the daemon's says that went wrong; None: nothing did."""
    if not line.startswith("{"):
        return line.removeprefix("lazyrestore: ") or None
    import json

    try:
        event = json.loads(line)
        name = event["event"]
    except (ValueError, KeyError, TypeError):
        return None
    if name not in ("error", "refused"):
        return None
    who = f"process {event['pid']}: " if event.get("pid") else ""
    if "region" not in event:
        return f"{who}{event.get('reason')}"
    where = f"region {event['region']} at offset {event.get('offset')}"
    return f"{who}{where} cannot be loaded: {event.get('reason')}"


# ---- In the daemon -------------------------------------------------------------------------------


def be_daemon(link: int, saying: int) -> NoReturn:
    """Be it, in a child that was just forked.

    Args:
        link: a socket, whose other end says what to do.
        saying: a pipe, for what there is to say.
    """
    code = 1
    try:
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        _redirect(saying, [link])
        _serve(socket.socket(fileno=link))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"lazyrestore: {error}\n".encode("utf-8", "backslashreplace"))
    finally:
        os._exit(code)


def _redirect(saying: int, kept: Collection[int]) -> None:
    """Keep nothing of the command's: whoever reads its output shall not wait for the daemon."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, fd in enumerate((nothing, nothing, saying)):
        os.dup2(fd, number)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # that of the list itself
                os.close(fd)


def _serve(link: socket.socket) -> None:
    import gc
    import json
    import threading

    gc.disable()  # while modules are imported: a tenth of the time that takes
    from lazyrestore._serve.criu import prepare, run_daemon
    from lazyrestore._serve.listen import Listener
    from lazyrestore._serve.options import ServeOptions

    prepare()
    gc.freeze()
    gc.enable()
    data, fds, _, _ = socket.recv_fds(link, _MESSAGE_BYTES_MAX, 1)
    if not data:
        return  # the image cannot be used, and who knows why says so
    message = json.loads(data)
    folder = PrivateFolder(message["folder"])
    os.chdir("/")
    if message["log"] is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(message["log"], flags, 0o600)
        os.dup2(log, 2)
        os.close(log)
    path = os.path.join(folder.path, SOCKET_NAME)
    found = os.lstat(path)
    sock = socket.socket(fileno=fds[0])
    listener = Listener(sock, path, (found.st_dev, found.st_ino), "criu")
    watch = threading.Thread(target=_watch, args=(folder, link), daemon=True)
    run_daemon(ServeOptions.from_record(message["options"]), listener, watch.start)


def _watch(folder: PrivateFolder, link: socket.socket) -> None:
    """Wait until the processes run; if they never will, end whatever there is of them."""
    with link:
        if link.recv(1) == _RUNS:
            return
    from .family import end_strangers

    # Nobody is left who would know: of a parent that lives they are ended already.
    end_strangers(folder.path)
    folder.remove()
    os.kill(os.getpid(), signal.SIGTERM)
