"""Where CRIU writes the files of a dump that are not pages: memory, and never a disk.

They hold registers, names of files, what is in pipes and sockets. So they are in a tmpfs of their
own that is mounted nowhere: it can be reached by its descriptors only, and is gone with the last
of them, however this process ends. That needs CAP_SYS_ADMIN, as CRIU itself does. Where it is not
allowed (CRIU's unprivileged mode), they are in a private folder, in /dev/shm if possible, which
this process holds a lock on; a folder that was left behind by one that was killed has none, and
the next dump removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile

__all__ = ["SmallFiles"]

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_SET_STRING, _CREATE = 1, 6
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8

_PREFIX = "lazyrestore-dump-"
_OWN_NAME = re.compile(_PREFIX + r"[0-9a-f]{16}")
_PLACES = ("/dev/shm", "/run")


class SmallFiles:
    """A place for files, as a context manager: gone at its end.

    Attributes:
        fd: descriptor of the folder.
        path: a name of it that other processes can use, as long as this one lives.
        is_detached: True for a tmpfs that has no name in any file system.

    Args:
        limit_bytes: of all files; None: half of the machine's memory. Not for the lesser way.
        detached: False: do not try the tmpfs.

    Raises:
        OSError: there is no place for them.
    """

    def __init__(self, *, limit_bytes: int | None = None, detached: bool = True) -> None:
        self._folder: str | None = None
        self._owner = os.getpid()
        self.fd = _detached(limit_bytes) if detached else -1
        self.is_detached = self.fd >= 0
        if not self.is_detached:
            self.fd, self._folder = _folder()
        self.path = f"/proc/{self._owner}/fd/{self.fd}"

    def names(self) -> list[str]:
        """Of all files, sorted."""
        return sorted(os.listdir(self.fd))

    def size(self, name: str) -> int:
        """Bytes of a file; -1: it is something else than a file."""
        status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def open(self, name: str) -> int:
        """A descriptor to read a file by."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self.fd)

    def read(self, name: str) -> bytes:
        """All of a file; empty where there is none."""
        try:
            with os.fdopen(self.open(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def close(self) -> None:
        """Remove everything. May be called again."""
        # Not in a forked child, which has this object too.
        if self._folder is not None and os.getpid() == self._owner:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> SmallFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


# ---- A tmpfs that is mounted nowhere -------------------------------------------------------------


def _detached(limit_bytes: int | None) -> int:
    """Its root; -1 where that is not allowed, or the kernel is too old (before 5.2)."""
    try:
        context = _call(_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
        try:
            _call(_FSCONFIG, context, _SET_STRING, b"mode", b"0700", 0)
            if limit_bytes is not None:
                _call(_FSCONFIG, context, _SET_STRING, b"size", b"%d" % limit_bytes, 0)
            _call(_FSCONFIG, context, _CREATE, None, None, 0)
            mount = _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, _NOSUID_NODEV_NOEXEC)
        finally:
            os.close(context)
        try:
            # What fsmount gives is a path, which cannot be listed.
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        finally:
            os.close(mount)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return -1


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


# ---- A folder with a lock ------------------------------------------------------------------------


def _folder() -> tuple[int, str]:
    problem: OSError | None = None
    for place in (*_PLACES, tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            _remove_left(place)
        try:
            return _create(place)
        except OSError as error:
            problem = error
    assert problem is not None
    raise problem


def _create(place: str) -> tuple[int, str]:
    while True:
        path = os.path.join(place, f"{_PREFIX}{os.urandom(8).hex()}")
        os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # another dump took it for one that was left
            continue
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd, path
        os.close(fd)


def _remove_left(place: str) -> None:
    """Remove the folders of this user's that nobody holds the lock of."""
    for name in os.listdir(place):
        if not _OWN_NAME.fullmatch(name):
            continue
        path = os.path.join(place, name)
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
