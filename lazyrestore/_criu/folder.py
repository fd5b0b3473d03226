"""A folder of CRIU's images: what is in it, and that it is whole."""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import TYPE_CHECKING

from lazyrestore.errors import ImageError

from .inventory import INVENTORY, Task, check_inventory, parse_tree
from .layout import SHARED_PREFIX, object_of, pagemap_name, pages_name
from .pagemap import LAZY, PAGE_BYTES, PARENT, PRESENT, Pagemap, parse

PARENT_LINK = "parent"
OURS = "lazyrestore.json"
"""What an image says of its processes; never part of a folder."""
FILE_BYTES_MAX = 4 << 20
"""What is longer becomes a region."""

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

_PAGEMAP_BYTES_MAX = 1 << 30


class Folder:
    """One folder, without its parents.

    Attributes:
        path: absolute, without links.
        names: of its regular files, in order, without those that have an object's pages.
        others: names of what is neither a file nor the link to its parent.
        pagemaps: by object.
    """

    def __init__(self, path: str, *, is_newest: bool) -> None:
        self.path = os.path.realpath(path)
        self.names: list[str] = []
        self.others: list[str] = []
        self.sizes: dict[str, int] = {}
        self._scan()
        if INVENTORY in self.sizes:
            check_inventory(self.read(INVENTORY), f"{self.path}/{INVENTORY}")
        elif is_newest:
            raise ImageError(
                f"{self.path} has no {INVENTORY}: it is not a folder of CRIU's images, or the dump"
                " was given up before its end; dump again"
            )
        self.pagemaps = {
            name: self._parse(name)
            for name in sorted(filter(None, map(object_of, self.sizes)), key=_by_number)
        }
        self._check_pages(is_newest)

    def _scan(self) -> None:
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    self.sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                elif entry.name != PARENT_LINK:
                    self.others.append(entry.name)
        self.others.sort()

    def _parse(self, name: str) -> Pagemap:
        file = pagemap_name(name)
        if self.sizes[file] > _PAGEMAP_BYTES_MAX:
            raise ImageError(f"{self.path}/{file} has more than 1 GiB: it is not a pagemap")
        pagemap = parse(self.read(file), f"{self.path}/{file}")
        for address, _, flags in pagemap.entries:
            if flags == LAZY:
                raise ImageError(
                    f"{self.path}/{file}: the pages at {address:#x} are not in the folder: it was"
                    " dumped with --lazy-pages; dump again without that"
                )
        return pagemap

    def _check_pages(self, is_newest: bool) -> None:
        """Each pagemap has a file of its own, as long as it says."""
        users: dict[str, str] = {}
        for name, pagemap in self.pagemaps.items():
            file = pages_name(pagemap.pages_id)
            what = f"{self.path}/{pagemap_name(name)}"
            if file in users:
                raise ImageError(
                    f"{what} names {file}, as {users[file]} does: the folder is mixed up; take"
                    " another copy"
                )
            users[file] = pagemap_name(name)
            if file not in self.sizes:
                raise ImageError(
                    f"{self.path} has no {file}, where the pages of {pagemap_name(name)} are: take"
                    " another copy, or dump again"
                )
            said, found = pagemap.present_bytes, self.sizes[file]
            if found < said or (found > said and is_newest):
                how = "shorter" if found < said else "longer"
                raise ImageError(
                    f"{self.path}/{file} has {found} bytes, {how} than the {said} of which"
                    f" {pagemap_name(name)} tells: take another copy, or dump again"
                )
        self.names = sorted(name for name in self.sizes if name not in users)

    def read(self, name: str) -> bytes:
        """All of a small file.

        Raises:
            OSError: it cannot be read, or is not as long as it was.
        """
        path = os.path.join(self.path, name)
        fd = self.open(name)
        try:
            wanted = self.sizes[name]
            data = bytearray()
            while chunk := os.read(fd, min(1 << 20, wanted + 1 - len(data))):
                data += chunk
            if len(data) != wanted:
                raise ImageError(f"{path} was changed while it was read: wait for CRIU to end")
            return bytes(data)
        finally:
            os.close(fd)

    def open(self, name: str) -> int:
        """A descriptor of a file, for reading."""
        path = os.path.join(self.path, name)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{path} is not a file any more")
        return fd


def _by_number(name: str) -> tuple[bool, int]:
    """Tasks by their numbers, then shared memory."""
    return name.startswith(SHARED_PREFIX), int(name.removeprefix(SHARED_PREFIX))


def open_chain(path: str) -> list[Folder]:
    """A folder and those that it builds on, the newest first.

    Raises:
        OSError: one cannot be read.
        ImageError: one is not whole, or of a version that is not known; or they go in a circle.
    """
    chain: list[Folder] = []
    seen: set[tuple[int, int]] = set()
    at = path
    while True:
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in seen:
            raise ImageError(
                f"{chain[-1].path}/{PARENT_LINK} leads back to {os.path.realpath(at)}, which builds"
                " on it: the folders go in a circle; put the links right"
            )
        seen.add((here.st_dev, here.st_ino))
        folder = Folder(at, is_newest=not chain)
        chain.append(folder)
        at = os.path.join(folder.path, PARENT_LINK)
        if not os.path.lexists(at):
            return chain
        if not os.path.isdir(at):
            raise ImageError(
                f"{at} leads to {os.path.realpath(at)}, which is not there: this dump has only what"
                " changed since that one; put that folder in its place"
            )


def needs_parent(pagemap: Pagemap) -> bool:
    """True if it has pages that are in another folder."""
    return any(flags & PARENT for _, _, flags in pagemap.entries)


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """See that an image of processes has all that its files tell of.

    Raises:
        ImageError: something is missing, damaged, or not known.
    """
    where = checkpoint.image.path
    files = checkpoint.image.files
    check_inventory(files.get(INVENTORY, b""), f"{where}: {INVENTORY}")
    tasks = parse_tree(files, where)
    said = [dataclasses.replace(task, nbytes=0) for task in checkpoint.tasks]
    if said != tasks or checkpoint.root != tasks[0].pid:
        raise ImageError(f"{where} is damaged: {OURS} and pstree.img do not agree")
    users: set[int] = set()
    for name in checkpoint.objects():
        pagemap = checkpoint.pagemap(name)
        assert pagemap is not None
        if pagemap.pages_id in users:
            raise ImageError(f"{where} is damaged: two pagemaps have the same pages")
        users.add(pagemap.pages_id)
        for address, pages, flags in pagemap.entries:
            if flags & (PARENT | PRESENT) != PRESENT:
                raise ImageError(
                    f"{where} is damaged: the pages of {name} at {address:#x} are not in the image"
                )
            checkpoint.find(name, address, address + pages * PAGE_BYTES)


def describe(
    tasks: list[Task], pagemaps: dict[str, Pagemap], criu_version: str
) -> dict[str, object]:
    """What `lazyrestore.json` says, for an image of these tasks.

    Args:
        tasks: parents first; the first one is the root of the tree.
        pagemaps: by object, as they are in the image: nothing in a parent.
        criu_version: what dumped them, as "4.1.1"; "" where that is not known.
    """

    def nbytes(name: str) -> int:
        pagemap = pagemaps.get(name)
        return pagemap.present_bytes if pagemap else 0

    tree = [
        {
            "pid": task.pid,
            "ppid": task.ppid,
            "comm": task.comm,
            "threads": task.threads,
            "zombie": task.is_zombie,
            "bytes": nbytes(str(task.pid)),
        }
        for task in tasks
    ]
    shared = [
        {"id": name.removeprefix(SHARED_PREFIX), "bytes": nbytes(name)}
        for name in pagemaps
        if name.startswith(SHARED_PREFIX)
    ]
    return {"criu": criu_version, "root": tasks[0].pid, "tree": tree, "shared": shared}


__all__ = [
    "FILE_BYTES_MAX",
    "OURS",
    "PAGE_BYTES",
    "PRESENT",
    "Folder",
    "describe",
    "needs_parent",
    "object_of",
    "open_chain",
    "pagemap_name",
    "pages_name",
]
