"""A folder for one restore, and the file with the process's number: there, or not at all."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_PREFIX = "lazyrestore-"
# A socket's path can have 107 bytes.
_PATH_BYTES_MAX = 64


class PrivateFolder:
    """A folder that only this user can look into.

    Attributes:
        path: absolute, and short enough for a socket in it.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def make(cls) -> Self:
        """In TMPDIR, or /tmp.

        Raises:
            OSError: it cannot be made.
        """
        where = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")
        if len(os.fsencode(where)) > _PATH_BYTES_MAX or not os.path.isdir(where):
            where = "/tmp"
        path = os.path.join(where, _PREFIX + os.urandom(8).hex())
        os.mkdir(path, 0o700)
        return cls(path)

    def read_pid(self) -> int:
        """What CRIU has written as the first process's number."""
        with open(os.path.join(self.path, "pid"), encoding="ascii") as file:
            return int(file.read())

    def remove(self) -> None:
        """With all that is in it; where it has gone, nothing."""
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)


class Pidfile:
    """A file that is to have the process's number once there is one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._new = f"{path}.{os.urandom(4).hex()}"
        fd = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.close(fd)

    def commit(self, pid: int) -> None:
        """Put it where it belongs, in the place of an older one."""
        with open(self._new, "w", encoding="ascii") as file:
            file.write(f"{pid}\n")
        os.replace(self._new, self._path)

    def cancel(self) -> None:
        """Leave nothing."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._new)
