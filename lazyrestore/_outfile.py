"""A file that is there as a whole or not at all: docs/format.md, "Writing".

Until it is complete it has a temporary name beside the target's: .NAME.RANDOM.tmp. Whoever writes
it holds a lock on it (flock), which ends with the writer, however that ends. So the next writer of
the same target knows what was left behind, and removes it: a file of such a name that it can lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from types import TracebackType
from typing import Protocol

from ._native import lib

_FLUSH_BYTES = 4 << 20
_FLUSH_PARTS = 512  # below IOV_MAX
_WRITE_OUT_BYTES = 8 << 20  # that the kernel may keep before it begins to write them to the disk
_LINKS_MAX = 40  # as many as the kernel follows
_NAME_BYTES = 200  # of the target's name in the temporary one's, which may have 255 in all


class _Abortable(Protocol):
    def abort(self) -> None:
        """Give up."""


class AbortOnError:
    """Has a writer give up if the block raises anything, and lets that go on."""

    def __init__(self, writer: _Abortable) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._writer.abort()


class OutputFile:
    """A temporary file beside `path`, which takes its place on `commit`.

    Raises:
        OSError: the folder is not there or not writable, or `path` is something that must not be
            replaced (a folder, a device).
    """

    def __init__(self, path: str) -> None:
        self._fd = self._folder = -1
        self._temporary: str | None = None
        self._owner = os.getpid()
        self.path = path
        self.position = 0  # of what is appended next
        self._written_out = 0  # up to here the kernel was told to begin
        self._parts: list[bytes | memoryview] = []
        self._parts_bytes = 0
        folder, self._name = os.path.split(path)
        try:
            _refuse_target(path, self._name)
            self._folder = _open_folder(folder or ".")
            self._create()
            self._remove_debris()
        except OSError as error:
            self.discard()
            raise OSError(error.errno, _reason(error), path) from None
        except BaseException:
            self.discard()
            raise

    def _create(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            # Known before it exists, so that an interrupt in between leaves nothing behind.
            self._temporary = f"{_temporary_start(self._name)}{_random_word()}.tmp"
            try:
                self._fd = os.open(self._temporary, flags, 0o600, dir_fd=self._folder)
            except FileExistsError:
                self._temporary = None  # another's
                continue
            os.fchmod(self._fd, 0o600)  # whatever the umask
            if self._lock():
                return
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _lock(self) -> bool:
        """False: another writer took it for something left behind, and removes it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # there are no locks on this file system: nobody will take any
            return True
        return os.fstat(self._fd).st_nlink > 0

    def _remove_debris(self) -> None:
        """Remove what writers of this target left who were killed."""
        own = re.compile(re.escape(_temporary_start(self._name)) + r"[0-9a-f]{16}\.tmp")
        with contextlib.suppress(OSError):  # the folder may be one that cannot be listed
            for name in os.listdir(self._folder):
                if own.fullmatch(name) and name != self._temporary:
                    with contextlib.suppress(OSError):
                        _remove_if_left(name, self._folder)

    def append(self, *parts: bytes | memoryview) -> None:
        """Add bytes at the end. Parts are written later: they must not change until `flush`."""
        for part in parts:
            if len(part):
                self._parts.append(part)
                self._parts_bytes += len(part)
                self.position += len(part)
        if self._parts_bytes >= _FLUSH_BYTES or len(self._parts) >= _FLUSH_PARTS:
            self.flush()

    def flush(self) -> None:
        """Hand over to the kernel all that was appended."""
        parts, self._parts, self._parts_bytes = self._parts, [], 0
        start = 0
        while start < len(parts):
            try:
                written = os.writev(self._fd, parts[start : start + _FLUSH_PARTS])
            except OSError as error:
                raise OSError(error.errno, _reason(error), self.path) from None
            while start < len(parts) and written >= len(parts[start]):
                written -= len(parts[start])
                start += 1
            if written:
                parts[start] = memoryview(parts[start])[written:]
        # What the disk does by and by need not be waited for at the end.
        ahead = self.position - self._written_out
        if ahead >= _WRITE_OUT_BYTES:
            lib.lr_file_start_writing(self._fd, self._written_out, ahead)
            self._written_out = self.position

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write at a place of its own, at once; from any thread. Not to be mixed with `append`."""
        view = memoryview(data)
        try:
            while len(view):
                written = os.pwrite(self._fd, view, offset)
                view = view[written:]
                offset += written
        except OSError as error:
            raise OSError(error.errno, _reason(error), self.path) from None

    def set_length(self, nbytes: int) -> None:
        """Make it so long; what was not written reads as zeros, and takes no space."""
        try:
            os.ftruncate(self._fd, nbytes)
        except OSError as error:
            raise OSError(error.errno, _reason(error), self.path) from None

    def commit(self) -> None:
        """Make it durable and put it in the target's place."""
        self.flush()
        assert self._temporary is not None
        try:
            os.fsync(self._fd)
            self._rename(self._temporary)
            self._temporary = None
            with contextlib.suppress(PermissionError):  # a folder that is not readable: O_PATH
                _sync_folder(self._folder)
        except OSError as error:
            raise OSError(error.errno, _reason(error), self.path) from None
        finally:
            self.discard()

    def _rename(self, temporary: str) -> None:
        try:
            os.rename(temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileNotFoundError:
            message = "The folder, or the temporary file in it, was removed meanwhile"
            raise OSError(errno.ENOENT, message) from None

    def discard(self) -> None:
        """Remove the temporary file, if it is still one. May be called again."""
        self._parts = []
        # Not in a forked child, which has this object too when it ends.
        if self._temporary is not None and self._folder >= 0 and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
        self._temporary = None  # only now: an interrupt before this, and it is tried again
        for name in ("_fd", "_folder"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def __del__(self) -> None:
        self.discard()


def _random_word() -> str:
    return os.urandom(8).hex()  # `secrets` would do the same, and load OpenSSL for it


def _temporary_start(name: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:_NAME_BYTES])}."


def _remove_if_left(name: str, folder: int) -> None:
    """Remove a temporary file of this user's, unless somebody holds its lock."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return
    # For writing: locks of some network file systems ask for that.
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(fd)


def _refuse_target(path: str, name: str) -> None:
    """A rename would replace whatever is there; only a file or a link may be."""
    if name in ("", ".", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(mode) and _stands_for_open_file(path):
        message = "It stands for an open file, and would be replaced by one: give another name"
        raise FileExistsError(errno.EEXIST, message)
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        message = "It is not a regular file, and would be replaced by one: give another name"
        raise FileExistsError(errno.EEXIST, message)


def _stands_for_open_file(path: str) -> bool:
    """Whether a link leads to one of /proc, as /dev/stdout does: the whole system needs that one,
    and root may replace it.
    """
    for _ in range(_LINKS_MAX):
        folder = os.path.realpath(os.path.dirname(path) or ".")
        if f"{folder}/".startswith("/proc/"):
            return True
        try:
            path = os.path.join(folder, os.readlink(path))
        except OSError:
            break
    return False


def _open_folder(folder: str) -> int:
    flags = os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_RDONLY)
    except PermissionError:  # one may write to a folder without listing it
        return os.open(folder, flags | os.O_PATH)


def _sync_folder(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        # O_PATH, or a file system that cannot: the rename is then as durable as it gets.
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.EROFS):
            raise


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "No space left on device: free some, or write elsewhere"
    if error.errno == errno.EFBIG:
        return (
            "File too large for the file system or the limit: raise it (ulimit -f), or write"
            " elsewhere"
        )
    return error.strerror or str(error)
