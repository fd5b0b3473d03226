"""The segments and the notes of an ELF core file, from elf(5) and core(5).

What the file says is not trusted: every length is held against the file's own, and what is kept
grows with nothing else. Only headers and two kinds of notes are read here, no memory.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from lazyrestore.errors import LazyRestoreError
from lazyrestore.format import MAGIC

SEGMENTS_MAX = 1 << 20
_NOTES_MAX = 1 << 20
_FILE_NOTE_BYTES_MAX = 64 << 20

_ELF = b"\x7fELF"
_EHDR = struct.Struct("<16xHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")
_CLASS_64, _LITTLE_ENDIAN, _VERSION = 2, 1, 1
_TYPES = {1: "an object file", 2: "a program", 3: "a program or a shared library"}
_TYPE_CORE = 4
_MANY_SEGMENTS = 0xFFFF  # PN_XNUM: the number is in the first section header
_LOAD, _NOTES = 1, 4
_NT_PRPSINFO, _NT_AUXV, _NT_FILE = 3, 6, 0x46494C45
_AUXV_BYTES_MAX = 4096
_AT_SYSINFO_EHDR = 33
_VSYSCALL = 0xFFFFFFFFFF600000
_VVAR_BYTES_MAX = 64 << 10
_PRPSINFO_BYTES, _PRPSINFO_PID, _PRPSINFO_NAME = 136, 24, slice(40, 56)

_OTHERS = (
    (b"\x28\xb5\x2f\xfd", "is compressed: `zstd -d` makes a core file of it"),
    (b"\x1f\x8b", "is compressed: `gunzip` makes a core file of it"),
    (b"\xfd7zXZ\0", "is compressed: `unxz` makes a core file of it"),
    (b"\x04\x22\x4d\x18", "is compressed: `unlz4` makes a core file of it"),
    (b"BZh", "is compressed: `bunzip2` makes a core file of it"),
    (b"KDUMP   ", "is a kdump file, not ELF: dump the guest's memory without a compressed format"),
    (b"makedumpfile", "is a makedumpfile, not ELF: let `makedumpfile -R` or `-E` make one of it"),
    (b"PAGEDU", "is a Windows dump, not ELF: dump the guest's memory in the format elf"),
    (MAGIC, "is an image already: it need not be dumped"),
)


class Segment(NamedTuple):
    """A piece of memory.

    Attributes:
        address: of its first byte: virtual, or where there is none, physical.
        length: bytes of memory.
        offset: in the file.
        file_bytes: how many of them the file should have, from the first on.
        protection: 1 read, 2 write, 4 execute, added up.
    """

    address: int
    length: int
    offset: int
    file_bytes: int
    protection: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.length


class MappedFile(NamedTuple):
    """A mapping of a file that the process had: a line of the note NT_FILE."""

    start: int
    end: int
    offset: int
    path: str


class Core(NamedTuple):
    """What a core file says of itself.

    Attributes:
        size: of the file, in bytes.
        segments: in the order of the file; no two overlap in memory.
        files: ascending by address; none where there is no such note.
        origin: what was dumped, in words; "" where it does not say.
        provided: names, by address, of the segments that are the kernel's and not the process's.
    """

    size: int
    segments: list[Segment]
    files: list[MappedFile]
    origin: str
    provided: dict[int, str]


def read_core(fd: int, path: str) -> Core:
    """The headers and notes of a core file.

    Raises:
        LazyRestoreError: it is none, or one that cannot be read; the message says which.
        OSError: the file cannot be read.
    """
    size = os.fstat(fd).st_size
    reader = _Reader(fd, path, size)
    offset, count = reader.read_header()
    segments, notes = [], []
    for kind, flags, at, virtual, physical, file_bytes, length, align in reader.headers(
        offset, count
    ):
        if kind == _NOTES:
            notes.append((at, file_bytes, align))
        elif kind == _LOAD and length:
            segment = Segment(virtual or physical, length, at, file_bytes, _protection(flags))
            reader.check_segment(segment)
            segments.append(segment)
    reader.check_overlap(segments)
    # A virtual machine's memory has no flags: all of it can be read and written.
    if not any(segment.protection for segment in segments):
        segments = [segment._replace(protection=3) for segment in segments]
    files, origin, vdso = _read_notes(reader, notes)
    return Core(size, segments, files, origin, _find_provided(segments, files, vdso))


class _Reader:
    """Reads headers, and says where the file contradicts itself."""

    def __init__(self, fd: int, path: str, size: int) -> None:
        self._fd = fd
        self._path = path
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        pieces = []
        while length and offset < self.size:
            piece = os.pread(self._fd, length, offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def refuse(self, why: str) -> LazyRestoreError:
        return LazyRestoreError(f"{self._path} {why}")

    def read_header(self) -> tuple[int, int]:
        """Where the program headers begin, and how many there are."""
        head = self.read(0, _EHDR.size)
        self._check_identity(head)
        if len(head) < _EHDR.size:
            raise self.refuse("is cut short: it ends in its first header: take another copy")
        kind, _, _, _, offset, sections, _, _, entry, count, section_entry, _, _ = _EHDR.unpack(
            head
        )
        if kind != _TYPE_CORE:
            what = _TYPES.get(kind, f"of type {kind}")
            raise self.refuse(f"is an ELF file, but {what} rather than a core file")
        if count == _MANY_SEGMENTS:
            count = self._read_count(sections, section_entry)
        if count == 0:
            raise self.refuse("has no memory in it: it is a core file without segments")
        if entry != _PHDR.size:
            raise self.refuse(
                f"is damaged: its program headers are said to have {entry} bytes: take another copy"
            )
        if count > SEGMENTS_MAX:
            raise self.refuse(f"has {count} segments: at most {SEGMENTS_MAX} can be read")
        if offset + count * _PHDR.size > self.size:
            raise self.refuse(
                f"is cut short, or damaged: it has {self.size} bytes, and {count} program headers"
                f" at byte {offset}"
            )
        return offset, count

    def _check_identity(self, head: bytes) -> None:
        if not head:
            raise self.refuse("is empty: no core file was written (is there room on the disk?)")
        for magic, why in _OTHERS:
            if head.startswith(magic):
                raise self.refuse(why)
        if not head.startswith(_ELF):
            raise self.refuse("is not an ELF core file: --file dumps the bytes of any file")
        identity = head[4:7]
        if len(identity) == 3 and identity != bytes([_CLASS_64, _LITTLE_ENDIAN, _VERSION]):
            bits = {1: "32 bits", 2: "64 bits"}.get(identity[0], f"class {identity[0]}")
            order = {1: "little-endian", 2: "big-endian"}.get(identity[1], f"order {identity[1]}")
            raise self.refuse(
                f"is an ELF file of {bits}, {order}: only those of 64 bits, little-endian, can be"
                " dumped"
            )

    def _read_count(self, sections: int, section_entry: int) -> int:
        """The number of program headers where the header has no room for it."""
        head = self.read(sections, _SHDR.size) if sections else b""
        if section_entry != _SHDR.size or len(head) < _SHDR.size:
            raise self.refuse(
                "is cut short, or damaged: it has 65535 segments or more, and does not say how"
                " many (that stands at its end): take another copy"
            )
        return int(_SHDR.unpack(head)[7])

    def headers(self, offset: int, count: int) -> Iterator[tuple[int, ...]]:
        """The fields of the program headers, one after another."""
        while count:
            some = min(count, 1024)
            data = self.read(offset, some * _PHDR.size)
            if len(data) < some * _PHDR.size:
                raise self.refuse("became shorter while it was read: dump it again")
            yield from _PHDR.iter_unpack(data)
            offset += len(data)
            count -= some

    def check_segment(self, segment: Segment) -> None:
        why = None
        if segment.end > 1 << 64:
            why = "ends behind the last address that there is"
        elif segment.file_bytes > segment.length:
            why = f"has {segment.file_bytes} bytes in the file, and {segment.length} in memory"
        elif segment.offset + segment.file_bytes > 1 << 64:
            why = "lies outside of any file"
        if why:
            raise self.refuse(
                f"is damaged: its segment at {segment.address:x} {why}: take another copy"
            )

    def check_overlap(self, segments: list[Segment]) -> None:
        ordered = sorted(segments)
        for before, after in itertools.pairwise(ordered):
            if after.address < before.end:
                raise self.refuse(
                    f"cannot be dumped: its segments {before.address:x}-{before.end:x} and"
                    f" {after.address:x}-{after.end:x} overlap, and which is right is not known"
                )


def _protection(flags: int) -> int:
    """From PF_R 4, PF_W 2, PF_X 1 to PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4."""
    return (flags & 4) >> 2 | flags & 2 | (flags & 1) << 2


# ---- Notes ---------------------------------------------------------------------------------------
#
# They only name things. What is wrong with them is passed over: the memory is there without them.


def _read_notes(
    reader: _Reader, places: list[tuple[int, int, int]]
) -> tuple[list[MappedFile], str, int]:
    """Mapped files, what was dumped, and the address of the vdso (or 0)."""
    files: list[MappedFile] = []
    origin, vdso = "", 0
    for owner, kind, offset, length in _walk_notes(reader, places):
        if owner == b"QEMU":
            origin = "a virtual machine"
        elif owner != b"CORE":
            continue
        elif kind == _NT_PRPSINFO and length == _PRPSINFO_BYTES:
            origin = _process_name(reader.read(offset, length)) or origin
        elif kind == _NT_AUXV and length <= _AUXV_BYTES_MAX:
            vdso = _vdso_address(reader.read(offset, length)) or vdso
        elif kind == _NT_FILE and length <= _FILE_NOTE_BYTES_MAX:
            files = _mapped_files(reader.read(offset, length))
    return files, origin, vdso


def _walk_notes(
    reader: _Reader, places: list[tuple[int, int, int]]
) -> Iterator[tuple[bytes, int, int, int]]:
    """(owner, kind, offset and length of what it has) of each note."""
    left = _NOTES_MAX
    for start, length, align in places:
        at, end = start, min(start + length, reader.size)
        unit = 8 if align == 8 else 4
        while at + _NOTE.size <= end and left:
            left -= 1
            head = reader.read(at, _NOTE.size + 8)
            if len(head) < _NOTE.size:
                return
            name_bytes, content_bytes, kind = _NOTE.unpack_from(head)
            content = at + _round_up(_NOTE.size + name_bytes, unit)
            if content + content_bytes > end:
                break
            owner = head[_NOTE.size : _NOTE.size + min(name_bytes, 8)].rstrip(b"\0")
            yield owner, kind, content, content_bytes
            at = content + _round_up(content_bytes, unit)


def _round_up(length: int, unit: int) -> int:
    return length + -length % unit


def _process_name(content: bytes) -> str:
    if len(content) < _PRPSINFO_BYTES:
        return ""
    (pid,) = struct.unpack_from("<i", content, _PRPSINFO_PID)
    name = content[_PRPSINFO_NAME].partition(b"\0")[0].decode("utf-8", "backslashreplace")
    return f"process {pid} ({name})"


def _mapped_files(content: bytes) -> list[MappedFile]:
    if len(content) < 16:
        return []
    count, page_size = struct.unpack_from("<QQ", content)
    if count > (len(content) - 16) // 24 or not 0 < page_size <= 1 << 30:
        return []
    names = content[16 + count * 24 :].split(b"\0", count)
    if len(names) <= count:
        return []
    ranges = struct.iter_unpack("<QQQ", content[16 : 16 + count * 24])
    return sorted(
        MappedFile(start, end, offset * page_size, name.decode("utf-8", "backslashreplace"))
        for (start, end, offset), name in zip(ranges, names, strict=False)
        if start < end and offset * page_size < 1 << 64
    )


def _vdso_address(content: bytes) -> int:
    pairs = struct.iter_unpack("<QQ", content[: len(content) & ~15])
    return next((value for key, value in pairs if key == _AT_SYSINFO_EHDR), 0)


def _find_provided(segments: list[Segment], files: list[MappedFile], vdso: int) -> dict[int, str]:
    """The segments that the kernel gives to every process, and does not write to a core file.

    [vvar] lies right before [vdso], and reads as zeros there, which it was not.
    """
    provided = {_VSYSCALL: "[vsyscall]"}
    end, mapped = vdso, {file.start for file in files}
    by_end = {segment.end: segment for segment in segments}
    while end and (before := by_end.get(end)) is not None:
        if before.protection != 1 or before.address in mapped:
            break
        if vdso - before.address > _VVAR_BYTES_MAX:
            break
        end = before.address
        provided[end] = "[vvar]"
    return provided
