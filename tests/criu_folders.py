"""Folders as CRIU leaves them, made here: only what is needed of them, and broken as wanted."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4
COMMON, INVENTORY, PSTREE, CORE, PAGEMAP = (
    *(0x54564319, 0x58313116, 0x50273030, 0x55053847, 0x56084025),
)

Pages = Mapping[int, bytes]
"""Content of each page by its address."""


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Protobuf, written a second time; behind its length."""
    body = b""
    for number, value in fields:
        if isinstance(value, int):
            body += varint(number << 3) + varint(value)
        else:
            body += varint(number << 3 | 2) + varint(len(value)) + value
    return struct.pack("<I", len(body)) + body


def magic(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def pagemap(pages_id: int, entries: Sequence[tuple[int, int, int]]) -> bytes:
    """As CRIU 4.1 writes it; an entry is address, number of pages, flags."""
    head = magic(COMMON, PAGEMAP) + message((1, pages_id))
    messages = (message((1, address), (2, pages), (4, flags)) for address, pages, flags in entries)
    return head + b"".join(messages)


def page(seed: object) -> bytes:
    """A page that is like no other; of 0 it is all zeros."""
    return (str(seed).encode() * PAGE)[:PAGE] if seed else bytes(PAGE)


class FolderMaker:
    """A folder with a root task and whatever else is asked for."""

    def __init__(self, path: Path, *, pids: Sequence[int] = (7,), version: int = 2) -> None:
        self.path = path
        path.mkdir()
        self.put("inventory.img", magic(INVENTORY) + message((1, version), (2, 1)))
        tree = b""
        for number, pid in enumerate(pids):
            parent = pids[number - 1] if number else 0
            tree += message((1, pid), (2, parent), (3, pids[0]), (4, pids[0]), (5, varint(pid)))
            self.core(pid, f"task {pid}")
        self.put("pstree.img", magic(COMMON, PSTREE) + tree)
        self.put("stats-dump", b"\0" * 20)
        self._pages_id = 0

    def put(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)

    def core(self, pid: int, comm: str, state: int = 1) -> None:
        inner = message((1, state), (2, 0), (6, comm.encode()))[4:]
        self.put(f"core-{pid}.img", magic(COMMON, CORE) + message((1, 1), (3, inner)))

    def memory(self, name: str, entries: Sequence[tuple[int, Sequence[object], int]]) -> None:
        """An object's pages: entries of address, a seed for each page, flags."""
        self._pages_id += 1
        listed = [(address, len(seeds), flags) for address, seeds, flags in entries]
        self.put(f"pagemap-{name}.img", pagemap(self._pages_id, listed))
        content = [page(seed) for _, seeds, flags in entries if flags & PRESENT for seed in seeds]
        self.put(f"pages-{self._pages_id}.img", b"".join(content))

    def parent(self, other: Path | str) -> None:
        (self.path / "parent").symlink_to(other)


def contents(folder: Path) -> dict[str, bytes]:
    """All that is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def make_incremental(folder: Path, older: Path) -> int:
    """Make a whole folder one that builds on another, as CRIU's own incremental dumps are.

    Pages that are the same in both are taken out of the newer. Returns how many those are.
    """
    from lazyrestore._criu.pagemap import parse

    shared = 0
    for path in folder.glob("pagemap-*.img"):
        newer = parse(path.read_bytes(), path.name)
        before = older / path.name
        if not before.exists():
            continue
        known = dict(pages_of(older, path.name))
        entries: list[tuple[int, int, int]] = []
        content = []
        flags_of = {
            address + number * PAGE: flags
            for address, count, flags in newer.entries
            for number in range(count)
        }
        for address, data in pages_of(folder, path.name):
            flags = flags_of[address] if known.get(address) != data else PARENT
            if flags != PARENT:
                content.append(data)
            shared += flags == PARENT
            if entries:
                first, count, last_flags = entries[-1]
                if last_flags == flags and first + count * PAGE == address:
                    entries[-1] = (first, count + 1, flags)
                    continue
            entries.append((address, 1, flags))
        path.write_bytes(pagemap(newer.pages_id, entries))
        (folder / f"pages-{newer.pages_id}.img").write_bytes(b"".join(content))
    (folder / "parent").symlink_to(f"../{older.name}")
    return shared


def pages_of(folder: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Address and content of each page of a pagemap; those in a parent are looked up there."""
    from lazyrestore._criu.pagemap import parse

    found = parse((folder / name).read_bytes(), name)
    inherited: dict[int, bytes] | None = None
    with open(folder / f"pages-{found.pages_id}.img", "rb") as file:
        for address, count, flags in found.entries:
            for at in range(address, address + count * PAGE, PAGE):
                if flags & PRESENT:
                    yield at, file.read(PAGE)
                    continue
                if inherited is None:
                    inherited = dict(pages_of(folder / "parent", name))
                yield at, inherited[at]
