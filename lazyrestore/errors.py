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
the command line, and `causes`: what it comes from as a rule, and what helps (docs/errors.md).
"""

from __future__ import annotations

from typing import ClassVar

Causes = tuple[tuple[str, str], ...]


class LazyRestoreError(Exception):
    """The base of everything that lazyrestore raises by itself."""

    exit_code: ClassVar[int] = 1
    causes: ClassVar[Causes] = (
        (
            "What was given is not what it was taken for: a core file that is none, an image"
            " without memory.",
            "The message says what was expected; `lazyrestore info FILE` says what an image is.",
        ),
    )


class ImageError(LazyRestoreError):
    """The image is damaged, cut short, of a newer version, or not an image at all."""

    exit_code = 3
    causes: ClassVar[Causes] = (
        (
            "It is another kind of file: an archive of arrays, a core file, a compressed file.",
            "Give a file that `lazyrestore dump` made. `dump --npz`, `--npy`, `--safetensors`,"
            " `--core`, `--criu` and `--file` make one of what there is.",
        ),
        (
            "It is cut short: a copy was interrupted, the disk was full.",
            "Copy it again, or dump again. A dump that was given up leaves no image behind.",
        ),
        (
            "It is damaged: a checksum is wrong.",
            "`lazyrestore verify` lists what is lost. Take another copy, or dump again; what is"
            " sound can still be read.",
        ),
        (
            "A newer version of lazyrestore made it.",
            "`pip install -U lazyrestore`; or dump again with the older one.",
        ),
        (
            "It was changed or replaced while it was in use.",
            "Do not write to an image: write another beside it, and rename that.",
        ),
    )


class ClusterError(ImageError):
    """One cluster cannot be read or decoded; the rest of the image may be sound.

    Attributes:
        region: name of the region, or None where it is not known.
        offset: where the cluster begins in its region, in bytes, or None.
        cluster: the cluster's number in the image, or None.
    """

    causes: ClassVar[Causes] = (
        (
            "The file has other bytes there than were written: a bad disk, a bad copy.",
            "`lazyrestore verify` lists all such places. Take another copy, or dump again.",
        ),
        (
            "The file became shorter while it was in use.",
            "Do not change an image that is in use.",
        ),
        (
            "The disk, or the network file system, fails.",
            "`dmesg` says more. Copy the image elsewhere, and verify the copy.",
        ),
    )

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

    causes: ClassVar[Causes] = (
        (
            "As ClusterError. `populate()` and `wait()` raise it; a plain touch of such a page"
            " gives SIGBUS, never zeros.",
            "`session.errors` has what is lost. Take another copy of the image, and restore again:"
            " all else can be used meanwhile.",
        ),
    )


class WorkingSetError(LazyRestoreError):
    """A working set is damaged, of a newer version, not one at all, or belongs to another image."""

    exit_code = 3
    causes: ClassVar[Causes] = (
        (
            "The image was dumped again, and the working set is of the one before.",
            "Record it again: `lazyrestore restore --lazy --record FILE IMAGE`.",
        ),
        (
            "It is another file, or damaged.",
            "Give a file that `--record` or `record=` wrote, or leave it out: everything works"
            " without one.",
        ),
    )


class KernelError(LazyRestoreError):
    """The kernel, or a permission, does not allow what was asked."""

    exit_code = 4
    causes: ClassVar[Causes] = (
        (
            "userfaultfd is not allowed: an ordinary user, or a container.",
            "`lazyrestore doctor` has the command that changes it. Without any right there are"
            ' `--privilege auto` (`privilege="auto"`) and `--or-eager` (`lazy="auto"`).',
        ),
        (
            "The kernel is older than Linux 5.11, or was built without userfaultfd.",
            "`lazyrestore doctor` says what is missing. `--or-eager` works anywhere.",
        ),
        (
            "libzstd is missing.",
            "`apt-get install libzstd1`, or let LAZYRESTORE_LIBZSTD name the library.",
        ),
        (
            "A limit is reached: open files, mappings, threads, memory.",
            "Raise it: `ulimit -n`, `ulimit -u`, `sysctl vm.max_map_count`; in a container its"
            " memory.",
        ),
        (
            "The addresses are taken (`--at-original-address`).",
            "Restore it at any address, or before what lies there now is mapped.",
        ),
    )


class RemoteError(LazyRestoreError):
    """The other side of a connection failed."""

    exit_code = 5
    causes: ClassVar[Causes] = (
        (
            "No service listens at that socket, or it has ended.",
            "Start it: `lazyrestore serve IMAGE --socket PATH`.",
        ),
        (
            "The service refused: another user, no userfaultfd, ranges that are not the image's.",
            "The message says why, and the service's own output too. `--allow-uid` admits a user.",
        ),
        (
            "Something else listens there, or another version.",
            "Give the socket of a `lazyrestore serve` of this version.",
        ),
    )


class CriuError(RemoteError):
    """CRIU is not installed, too old for the kernel, or could not dump or restore a process."""

    causes: ClassVar[Causes] = (
        (
            "CRIU is not installed, or not found.",
            "Install it, or name it: `--criu-bin PATH`, `CRIU=PATH`. `lazyrestore doctor` says"
            " what it finds.",
        ),
        (
            "It is older than the kernel: Linux 6.13 and newer need CRIU 4.1.",
            "Take a newer one; `criu check` says whether it works here.",
        ),
        (
            "The process has what CRIU cannot dump: a terminal, a device, a connection.",
            "The message has CRIU's reason. Often an option helps: `--criu-opt=--shell-job`,"
            " `--criu-opt=--tcp-established`.",
        ),
    )


class ProcessError(LazyRestoreError):
    """The process to dump does not exist, ended, or its memory cannot be read."""

    causes: ClassVar[Causes] = (
        ("There is no such process, or it has just ended.", "`ps -e` lists those that run."),
        (
            "It is another user's, or kernel.yama.ptrace_scope forbids it.",
            "Be its user or root; in a container `--cap-add SYS_PTRACE`. `lazyrestore doctor` says"
            " whose memory can be dumped.",
        ),
        (
            "It is being traced: a debugger, strace, another dump.",
            "End that, and try again.",
        ),
        (
            "It is itself being lazily restored, and not yet complete.",
            "Wait until it is, or have it populate its regions, and dump again.",
        ),
    )


class RegionNotFound(LazyRestoreError, KeyError):
    """The image has no region of that name."""

    exit_code = 2
    causes: ClassVar[Causes] = (
        (
            "Another name.",
            "`lazyrestore ls IMAGE` lists the regions; those of a process are named by their"
            " addresses, START-END.",
        ),
    )

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""
