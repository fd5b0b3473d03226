"""Running CRIU: with a log, of which one clear message is made where it fails.

CRIU is started without a shell, its output in files of a folder that the caller gives. Signals
that end programs are blocked for it, and a dump has a group of its own, which no terminal's Ctrl-C
reaches: CRIU killed in the middle breaks the process that it was to dump, so only who started it
decides when it ends. A restore stays in our group, where it may use the terminal (--shell-job).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from lazyrestore.errors import CriuError

from .find import HOW_TO_GET, Criu, not_started, search_path

LEVEL = "-v2"
"""Errors and warnings: at -v4 a restore takes a fifth longer. An option of the user's comes later
on the command line, and counts."""

_SHIELDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
_BACK_TO_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
_TEXT_MAX = 4 << 20

_ERROR = re.compile(
    r"^(?:\(\s*\d+\.\d+\)\s*)?(?:pie: )?(?:\s*\d+: )?\s*Error \([^)]*\): (?P<text>.*)$"
)
_MARKED = re.compile(r"^(?:\(\s*\d+\.\d+\)|\s*\d+: |Warn |Error |pie: )")

# Errors that CRIU writes and goes on, and those that only say that there were others.
_NOISE = (
    "rlimit: Can't setup RLIMIT_NOFILE",
    "Restoring FAILED",
    "Dumping FAILED",
    "exited, status=",
    "Killing processes because of failure on restore",
    "The Network was unlocked so some data",
    "cleanup: ",
    "Can't wait or bad status",
)

# (what CRIU writes, what to do about it): the first that fits is said.
_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"Unexpected rt vDSO area bounds",
        f"kernels from 6.13 on need CRIU 4.1: {HOW_TO_GET}",
    ),
    (
        r"Can't get 1:16 opt: Operation not supported",
        "kernels from 6.16 on need CRIU 4.2 for programs with network sockets:"
        " packaging/criu/fetch-criu.sh DIR forky has it; or have it listen at a Unix socket",
    ),
    (
        r"Can't fork for \d+: File exists|Pid \d+ do not match expected|"
        r"Unable to create a thread: -17",
        "its number is taken by another process: wait until that has ended, or restore in a"
        " namespace of its own, where all numbers are free: unshare -p -f --mount-proc"
        " lazyrestore restore ... (without -d: a namespace ends with its first process)",
    ),
    (
        r"session leader .* outside of its pid namespace",
        "start it as a session of its own in its namespace: unshare -p -f --mount-proc setsid ...",
    ),
    (
        r"Can't dump nested pid namespace",
        "dump the first process of that pid namespace instead of the one that made it",
    ),
    (
        r"shell-job|[Ff]ound (?:dangling|slave) (?:tty|peer)|session leader .* outside",
        "it belongs to a terminal: add --criu-opt=--shell-job, to the dump and to the restore,"
        " or start it with setsid and its output in files",
    ),
    (
        r"tcp-established|[Cc]onnected TCP socket",
        "it has TCP connections: add --criu-opt=--tcp-established (both ends must still be there"
        " when it is restored), or --criu-opt=--tcp-close",
    ),
    (
        r"External socket is used|ext-unix-sk",
        "it has a socket whose other end is outside of what is dumped: dump the process that has"
        " it too, or add --criu-opt=--ext-unix-sk",
    ),
    (
        r"Can't splice all pages",
        "some of its memory cannot be read: pages that a lazy restore could not load, or that the"
        " hardware lost; start it again",
    ),
    (
        r"Can't lookup mount",
        "it has a file open that is from outside of its mount namespace: have it open its files"
        " inside, its standard streams as well",
    ),
    (r"file-locks|file locks are hold", "add --criu-opt=--file-locks, to both"),
    (r"link-remap", "it has a file that was removed: add --criu-opt=--link-remap"),
    (r"[Gg]host file|ghost-limit", "it has a large removed file: add --criu-opt=--ghost-limit=1G"),
    (r"criu itself is within dumped tree", "dump it from outside of that process and its children"),
    (
        r"anon_inode:\[userfaultfd\]",
        "CRIU cannot dump who has a userfaultfd: a process whose memory is still being restored,"
        " or that restores some itself; wait until it is all there",
    ),
    (r"anon_inode:\[io_uring\]", "CRIU cannot dump who uses io_uring: turn that off in it"),
    (
        r"File (.*) has bad (?:size|mode|build-ID|checksum)|Can't open file .* on restore",
        "the process needs its files as they were: put them back, or restore where they are",
    ),
    (
        r"Can't bind inet socket|Address already in use",
        "another process listens at the same address: end that, or restore in a network"
        " namespace of its own (unshare -n)",
    ),
    (
        r"Can't (?:seize|attach|interrupt)|ptrace.*Operation not permitted",
        "another program traces it (gdb, strace), or it is another user's: end that, or be root",
    ),
    (
        r"This process tree can only be restored in a new pid namespace",
        "dump it from inside of its pid namespace, or with that namespace's first process",
    ),
    (r"userfaultfd.*(?:not permitted|implemented)", "`lazyrestore doctor` says what is allowed"),
    (r"unrecognized option|requires an argument|invalid option", "check --criu-opt"),
    (r"Operation not permitted|CAP_SYS_ADMIN", "CRIU needs to be root: use sudo"),
    (
        r"Can't chose service_fd_base|Can't retrieve FDs from socket|Too many open files",
        "it needs more descriptors than the limit allows: raise that by ulimit -n",
    ),
    (r"No space left on device", "free some space"),
    (r"Cannot allocate memory", "free some memory"),
)


class Running:
    """CRIU, while it runs.

    Attributes:
        pid: of the process.
        action: "dump", "restore" and so on.
        log: path of its log.
        code: what it ended with, -N where signal N ended it; None: it has not been waited for.
    """

    def __init__(self, criu: Criu, pid: int, action: str, log: str, output: str) -> None:
        self.pid = pid
        self.action = action
        self.log = log
        self.code: int | None = None
        self._criu = criu
        self._output = output

    def wait(self) -> int:
        """Wait until it ends; its exit code, -N where signal N ended it."""
        if self.code is None:
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def poll(self) -> int | None:
        """Its exit code if it has ended, else None."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self) -> None:
        """End it at once, where it has not been waited for."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> None:
        """Wait until it ends.

        Raises:
            CriuError: it failed; the message says why, as far as its log tells.
        """
        if self.wait() != 0:
            raise self.failure()

    def failure(self) -> CriuError:
        """What went wrong, once it has ended; keeps the log."""
        return failure_of(self._criu, self.action, self.code or 0, self.log, self._output)


def start(
    criu: Criu,
    action: str,
    arguments: Sequence[str],
    *,
    folder: str,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start CRIU, not as another thread changes signal masks or working folder.

    Args:
        criu: which.
        action: "dump", "restore" and so on.
        arguments: what follows it; may say -v and -o of their own at the end.
        folder: for its log, and its working folder (-W).
        pass_fds: descriptors that it shall have, at the same numbers.
        environment: beside this process's own.

    Raises:
        CriuError: it cannot be started.
    """
    output = os.path.join(folder, f"{action}.out")
    argv = [criu.path, action, LEVEL, "-W", folder, "-o", f"{action}.log", *arguments]
    with contextlib.suppress(FileNotFoundError):  # an earlier run's would be taken for this one's
        os.unlink(os.path.join(folder, f"{action}.log"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    fd = os.open(output, flags, 0o600)
    own_group: dict[str, Any] = {} if action == "restore" else {"setpgroup": 0}
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, fd, 1),
            (os.POSIX_SPAWN_DUP2, fd, 2),
            *((os.POSIX_SPAWN_DUP2, one, one) for one in pass_fds),
        ]
        pid = os.posix_spawn(
            criu.path,
            argv,
            {**os.environ, **(environment or {}), "PATH": search_path()},
            file_actions=actions,
            setsigmask=_SHIELDED,
            setsigdef=_BACK_TO_DEFAULT,
            **own_group,
        )
    except OSError as error:
        raise not_started(criu.path, error) from None
    finally:
        os.close(fd)
    return Running(criu, pid, action, os.path.join(folder, f"{action}.log"), output)


# ---- What went wrong -----------------------------------------------------------------------------


def failure_of(criu: Criu, action: str, code: int, log: str, output: str) -> CriuError:
    """One message of what CRIU wrote; its log is copied to where it stays.

    Args:
        criu: which.
        action: "dump", "restore" and so on.
        code: its exit code; -N where signal N ended it.
        log: path of its log.
        output: path of what it wrote elsewhere.
    """
    written = _read(log) + _read(output)
    errors = errors_of(written)
    hint = hint_of(written)
    if hint is None and code > 0:
        try:
            hint = criu.too_old()
        except CriuError:
            hint = None
    if code < 0:
        why = f"signal {-code} ended it"
    elif errors:
        why = errors[0]
    else:
        why = next(iter(plain_lines(written)), f"exit code {code}")
    kept = keep_log(written, action)
    parts = [f"CRIU's {action} failed: {why.rstrip('. ')}"]
    if hint is not None:
        parts.append(hint)
    if kept is not None:
        parts.append(f"its log is {kept}")
    return CriuError("; ".join(parts))


def errors_of(text: str) -> list[str]:
    """The errors in a log, without where CRIU's source has them, the first one first."""
    found = []
    for line in text.splitlines():
        match = _ERROR.match(line)
        if match and match["text"].strip() and not match["text"].startswith(_NOISE):
            found.append(match["text"].strip())
    return found


def plain_lines(text: str) -> list[str]:
    """Lines that are not a log's: what CRIU says before it has one."""
    lines = (line.strip() for line in text.splitlines())
    return [line.rstrip(":. ") for line in lines if line and not _MARKED.match(line)]


def hint_of(text: str) -> str | None:
    """What to do about the first error that is known; None: none is."""
    for line in errors_of(text) or plain_lines(text)[:1]:
        for pattern, hint in _HINTS:
            if re.search(pattern, line):
                return hint
    return None


def keep_log(text: str, action: str) -> str | None:
    """Write a log where it stays; its path, or None where there is nothing, or no room."""
    if not text:
        return None
    import tempfile

    try:
        fd, path = tempfile.mkstemp(prefix=f"lazyrestore-criu-{action}-", suffix=".log")
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return None
    return path


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_TEXT_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
