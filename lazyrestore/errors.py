"""What can go wrong, as one tree of exceptions.

    LazyRestoreError                 exit code 1
    ├── ImageError                   3   the image is damaged, cut short, or not one
    │   └── ClusterError             3   one cluster of it cannot be decoded
    │       └── RestoreError         3   ... and was wanted by a session
    ├── WorkingSetError              3   a working set is damaged, not one, or another image's
    ├── KernelError                  4   the kernel or a permission says no
    ├── RemoteError                  5   the other side of a socket failed
    │   └── CriuError                5   CRIU is missing, too old, or failed
    ├── ProcessError                 1   the process to dump is not there, ended, or cannot be read
    └── RegionNotFound               2   the image has no region of that name (also a KeyError)

Each message says what happened, where, and what to do about it. The class owns the exit code of
the command line.
"""

from __future__ import annotations

from typing import ClassVar


class LazyRestoreError(Exception):
    """The base of everything that lazyrestore raises by itself."""

    exit_code: ClassVar[int] = 1


class ImageError(LazyRestoreError):
    """The image is damaged, cut short, of a newer version, or not an image at all."""

    exit_code = 3


class ClusterError(ImageError):
    """One cluster cannot be read or decoded; the rest of the image may be sound.

    Attributes:
        region: name of the region, or None where it is not known.
        offset: where the cluster begins in its region, in bytes, or None.
        cluster: the cluster's number in the image, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        region: str | None = None,
        offset: int | None = None,
        cluster: int | None = None,
    ) -> None:
        super().__init__(message)
        self.region = region
        self.offset = offset
        self.cluster = cluster


class RestoreError(ClusterError):
    """A session wanted a cluster that cannot be loaded."""


class WorkingSetError(LazyRestoreError):
    """A working set is damaged, of a newer version, not one at all, or belongs to another image."""

    exit_code = 3


class KernelError(LazyRestoreError):
    """The kernel, or a permission, does not allow what was asked."""

    exit_code = 4


class RemoteError(LazyRestoreError):
    """The other side of a connection failed."""

    exit_code = 5


class CriuError(RemoteError):
    """CRIU is not installed, too old for the kernel, or could not dump or restore a process."""


class ProcessError(LazyRestoreError):
    """The process to dump does not exist, ended, or its memory cannot be read."""


class RegionNotFound(LazyRestoreError, KeyError):
    """The image has no region of that name."""

    exit_code = 2

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""
