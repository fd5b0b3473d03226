"""ELF core files, written from a list of segments and notes, right or wrong in any field."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

PAGE = 4096
PT_LOAD, PT_NOTE = 1, 4
NT_PRPSINFO, NT_AUXV, NT_FILE = 3, 6, 0x46494C45


@dataclasses.dataclass
class Part:
    """A PT_LOAD segment; what is None follows from the data."""

    address: int
    data: bytes = b""
    memory: int | None = None
    flags: int = 6
    physical: int = 0
    file_bytes: int | None = None
    offset: int | None = None


def note(owner: bytes, kind: int, content: bytes, unit: int = 4) -> bytes:
    def padded(data: bytes, before: int = 0) -> bytes:
        return data + bytes(-(len(data) + before) % unit)

    name = owner + b"\0"
    head = struct.pack("<III", len(name), len(content), kind)
    return head + padded(name, len(head)) + padded(content)


def file_note(files: Sequence[tuple[int, int, int, str]]) -> bytes:
    """(start, end, offset in bytes, path) of mapped files."""
    content = struct.pack("<QQ", len(files), PAGE)
    content += b"".join(struct.pack("<QQQ", start, end, at // PAGE) for start, end, at, _ in files)
    content += b"".join(path.encode() + b"\0" for *_, path in files)
    return note(b"CORE", NT_FILE, content)


def process_note(pid: int, name: str) -> bytes:
    content = bytearray(136)
    struct.pack_into("<i", content, 24, pid)
    content[40 : 40 + len(name)] = name.encode()
    return note(b"CORE", NT_PRPSINFO, bytes(content))


def vdso_note(address: int) -> bytes:
    return note(b"CORE", NT_AUXV, struct.pack("<6Q", 6, PAGE, 33, address, 0, 0))


def build(
    parts: Sequence[Part],
    notes: bytes = b"",
    *,
    kind: int = 4,
    bits: int = 2,
    order: int = 1,
    count: int | None = None,
    entry: int = 56,
    many: bool = False,
) -> bytes:
    """The bytes of a core file. `many`: the number of segments stands in a section header."""
    number = len(parts) + bool(notes)
    data_at = 64 + 56 * number
    notes_at = data_at
    data_at += len(notes)
    data_at += -data_at % PAGE
    headers, contents = [], []
    if notes:
        headers.append(struct.pack("<IIQQQQQQ", PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4))
    for part in parts:
        offset = data_at if part.offset is None else part.offset
        file_bytes = len(part.data) if part.file_bytes is None else part.file_bytes
        memory = file_bytes if part.memory is None else part.memory
        headers.append(
            struct.pack(
                "<IIQQQQQQ",
                PT_LOAD,
                part.flags,
                offset,
                part.address,
                part.physical,
                file_bytes,
                memory,
                PAGE,
            )
        )
        padding = bytes(-len(part.data) % PAGE)
        contents.append(part.data + padding)
        data_at += len(part.data) + len(padding)
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 1, 0, number, 0, 0) if many else b""
    head = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH",
        *(kind, 62, 1, 0, 64, data_at if many else 0, 0, 64, entry),
        0xFFFF if many else number if count is None else count,
        *((64, 1, 0) if many else (0, 0, 0)),
    )
    start = head + b"".join(headers) + notes
    return b"".join((start, bytes(-len(start) % PAGE if contents else 0), *contents, section))


def write(path: Path, parts: Sequence[Part], notes: bytes = b"", **fields: int) -> Path:
    path.write_bytes(build(parts, notes, **fields))
    return path
