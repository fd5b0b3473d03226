"""The mappings of a process, from /proc/PID/smaps, and what a dump does with each.

Only what the text says is used here: nothing is opened, and no memory is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

_HEADER = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ (\d+) *(.*)")
_FLAGS = b"VmFlags:"
_HEX = frozenset(b"0123456789abcdef")

_KERNEL_PROVIDED = frozenset({"[vvar]", "[vvar_vclock]", "[vsyscall]"})
_DEVICE_FLAGS = frozenset({"io", "pf"})  # VM_IO, VM_PFNMAP
_MISSING_FLAGS = frozenset({"um", "ui"})  # registered with userfaultfd: for missing, minor faults
_ANONYMOUS_NAMES = frozenset({"", "[heap]", "[stack]"})
_ANONYMOUS_PREFIXES = ("[anon:", "[stack:")
_HUGE_ANONYMOUS = "/anon_hugepage (deleted)"
_SHARED_ANONYMOUS = re.compile(
    r"/dev/zero \(deleted\)|/SYSV[0-9a-f]{8} \(deleted\)|/memfd:.*|\[anon_shmem:.*"
    r"|/anon_hugepage \(deleted\)",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps, with its VmFlags.

    Attributes:
        start, end: addresses; `end` is the first behind it.
        permissions: as "rw-p".
        offset: in the mapped file, in bytes.
        inode: of the mapped file (SysV memory may have number 0).
        path: of it, or the kernel's name in brackets, or "".
        flags: the two-letter words of VmFlags.
    """

    start: int
    end: int
    permissions: str
    offset: int = 0
    inode: int = 0
    path: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def is_shared(self) -> bool:
        """True if what is written here is seen by others who have it mapped."""
        return self.permissions[3] == "s"

    @property
    def protection(self) -> int:
        """1 read, 2 write, 4 execute, added up."""
        return sum(
            bit for bit, sign in zip((1, 2, 4), "rwx", strict=True) if sign in self.permissions
        )

    @property
    def has_file(self) -> bool:
        """True if there is a file behind it, if only one of shared memory."""
        return self.path != "" and not self.path.startswith("[")

    @property
    def label(self) -> str:
        """START-END, and the path or name if it has one: for messages."""
        return f"{self.start:x}-{self.end:x} {self.path}".rstrip()

    @property
    def is_private_anonymous(self) -> bool:
        """True if a page that does not exist is known to be zero.

        Not so for a private mapping of a file: there it is still the file's.
        """
        if self.is_shared:
            return False
        if self.path == _HUGE_ANONYMOUS:
            return True
        return self.path in _ANONYMOUS_NAMES or self.path.startswith(_ANONYMOUS_PREFIXES)

    @property
    def is_shared_anonymous(self) -> bool:
        """True for shared memory without a name in any file system: fork, SysV, memfd."""
        return self.is_shared and _SHARED_ANONYMOUS.fullmatch(self.path) is not None

    @property
    def may_wait_for_pager(self) -> bool:
        """True if a read of a page that is not there waits for whoever serves its faults."""
        return not self.flags.isdisjoint(_MISSING_FLAGS)

    def unreadable_reason(self) -> str | None:
        """Why nobody can copy this, whatever was asked for; None: it can be tried."""
        if self.path in _KERNEL_PROVIDED:
            return "provided by the kernel: not the process's own"
        if not self.flags.isdisjoint(_DEVICE_FLAGS):
            return "device memory: reading it may have effects"
        return None

    def skip_reason(self) -> str | None:
        """Why a dump of all memory leaves this out; None: it does not."""
        reason = self.unreadable_reason()
        if reason is None and "r" not in self.permissions:
            reason = "no read permission: a guard page, or reserved address space"
        if reason is None and self.is_shared and not self.is_shared_anonymous:
            reason = "shared file mapping: its content is in the file"
        return reason


def parse(lines: Iterable[bytes]) -> Iterator[Mapping]:
    """The mappings in the lines of an smaps (or maps) file, ascending by address."""
    header: re.Match[bytes] | None = None
    flags: frozenset[str] = frozenset()
    for line in lines:
        if line[0] in _HEX:
            if header is not None:
                yield _mapping(header, flags)
            header, flags = _HEADER.match(line), frozenset()
            if header is None:
                raise ValueError(f"not a line of /proc/PID/smaps: {line!r}")
        elif line.startswith(_FLAGS):
            flags = frozenset(line[len(_FLAGS) :].decode("ascii").split())
    if header is not None:
        yield _mapping(header, flags)


def _mapping(header: re.Match[bytes], flags: frozenset[str]) -> Mapping:
    start, end, permissions, offset, inode, path = header.groups()
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        permissions=permissions.decode("ascii"),
        offset=int(offset, 16),
        inode=int(inode),
        # The kernel writes a newline in a path as \012, and all else as it is.
        path=path.replace(rb"\012", b"\n").decode("utf-8", "backslashreplace"),
        flags=flags,
    )
