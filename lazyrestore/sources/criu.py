"""A folder of CRIU's images: whole processes, as `criu dump` left them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping

from lazyrestore._content import PROCESS_CLUSTER_SIZE
from lazyrestore._criu.flatten import NOWHERE, Piece, entries_of, flatten
from lazyrestore._criu.folder import (
    FILE_BYTES_MAX,
    OURS,
    Folder,
    describe,
    needs_parent,
    open_chain,
    pagemap_name,
    pages_name,
)
from lazyrestore._criu.inventory import parse_tree, report
from lazyrestore._criu.layout import FILE_PREFIX, Placer, length_of
from lazyrestore._criu.pagemap import Pagemap
from lazyrestore.errors import ImageError
from lazyrestore.reports import ProcessInfo, Skipped

from ._files import copy_piece, read_error
from .base import Sink

_FILES_BYTES_MAX = 32 << 20
_SPARSE_BYTES = 1 << 20  # of a piece in which holes are worth looking for


class CriuFolder:
    """A source: the processes in a folder that `criu dump` made.

    A folder that builds on others (`criu dump --prev-images-dir`) becomes one image with all pages.

    Args:
        path: the folder.
        criu_version: what made it, as "4.1.1", where that is known.
    """

    default_cluster_size = PROCESS_CLUSTER_SIZE

    def __init__(self, path: str | os.PathLike[str], *, criu_version: str = "") -> None:
        self.skipped: list[Skipped] = []
        self.frozen_us: int | None = None
        self._path = os.fsdecode(path)
        self._criu_version = criu_version
        self._opened: _Opened | None = None
        self.processes: tuple[ProcessInfo, ...] = ()

    def describe(self) -> str:
        """What this is, for people."""
        opened = self._open()
        root = opened.tasks[0]
        more = f" and {len(opened.tasks) - 1} more" if len(opened.tasks) > 1 else ""
        return f"process {root.pid} {root.comm}{more}, CRIU images in {opened.chain[0].path}"

    def check(self, target: str) -> None:
        """Refuse a folder that is not whole, or not known; and one that the image would be put in.

        Raises:
            OSError: it cannot be read.
            ImageError: it, or one that it builds on, is damaged, given up, or of another version.
            ValueError: the image would be one of its files.
        """
        folders = [folder.path for folder in self._open().chain]
        if os.path.realpath(os.path.dirname(target) or ".") in folders:
            raise ValueError(
                f"{target} would be among the images that are read: put it into another folder"
            )

    def total_bytes(self) -> int | None:
        """Length of all regions, or nearly."""
        opened = self._open()
        pages = sum(
            length_of(((piece.address, piece.nbytes) for piece in pieces), PROCESS_CLUSTER_SIZE)
            for pieces in opened.pieces.values()
        )
        return pages + sum(opened.chain[0].sizes[name] for name in opened.long_names)

    def write_to(self, sink: Sink) -> None:
        """Write the processes' memory, and all other files as they are."""
        opened = self._open()
        for name, pieces in opened.pieces.items():
            self._write_pages(sink, name, pieces)
        newest = opened.chain[0]
        for name in opened.long_names:
            sink.add_region(FILE_PREFIX + name, protection=1)
            self._copy(sink, newest, name, 0, newest.sizes[name])
        for name, data in opened.files.items():
            sink.add_file(name, data)
        description = describe(opened.tasks, opened.pagemaps, self._criu_version)
        sink.add_file(OURS, json.dumps(description, separators=(",", ":")).encode())
        nbytes = {name: pagemap.present_bytes for name, pagemap in opened.pagemaps.items()}
        self.processes = report(
            dataclasses.replace(task, nbytes=nbytes.get(str(task.pid), 0)) for task in opened.tasks
        )
        for name in newest.others:
            self.skipped.append(Skipped(name, 0, 0, "it is not a file"))

    def _open(self) -> _Opened:
        if self._opened is None:
            self._opened = _Opened(self._path)
        return self._opened

    def _write_pages(self, sink: Sink, name: str, pieces: list[Piece]) -> None:
        opened = self._open()
        placer = Placer(sink, name)
        files: dict[int, _Pages] = {}
        try:
            for piece in pieces:
                file = files.get(piece.level)
                if file is None:
                    folder = opened.chain[piece.level]
                    file = _Pages(folder, pages_name(folder.pagemaps[name].pages_id))
                    files[piece.level] = file
                placer.place(piece.address, piece.nbytes)
                file.copy(sink, piece.offset, piece.nbytes)
            placer.finish()
        finally:
            for file in files.values():
                file.close()

    @staticmethod
    def _copy(sink: Sink, folder: Folder, name: str, start: int, end: int) -> None:
        what = os.path.join(folder.path, name)
        fd = folder.open(name)
        try:
            copy_piece(sink, fd, start, end, what, what)
        finally:
            os.close(fd)


class _Pages:
    """A file with pages. There may be very many short pieces of it."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._path = os.path.join(folder.path, name)
        self._fd = folder.open(name)
        self._at = 0

    def copy(self, sink: Sink, offset: int, nbytes: int) -> None:
        """Append a piece of it to the sink."""
        if nbytes >= _SPARSE_BYTES:
            copy_piece(sink, self._fd, offset, offset + nbytes, self._path, self._path)
            return
        self._at = offset
        sink.fill(self._fetch, nbytes)

    def _fetch(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            try:
                count = os.preadv(self._fd, [view[filled:] if filled else view], self._at)
            except OSError as error:
                raise read_error(error, self._path) from None
            if count == 0:
                raise ImageError(f"{self._path} became shorter while it was read: dump again")
            filled += count
            self._at += count
        return filled

    def close(self) -> None:
        """Done with it."""
        os.close(self._fd)


class _Opened:
    """What was found in a folder and its parents.

    Attributes:
        chain: the folders, the newest first.
        files: the small files, by their names, as they shall be in the image.
        long_names: of the files that become regions.
        pagemaps: by object, with nothing in a parent any more.
        pieces: where the pages are, by object.
        tasks: the processes.
    """

    def __init__(self, path: str) -> None:
        self.chain = open_chain(path)
        newest = self.chain[0]
        if OURS in newest.sizes:
            raise ImageError(
                f"{newest.path} has a file {OURS}, which is not one of CRIU's: take it away"
            )
        self.pieces: dict[str, list[Piece]] = {}
        self.pagemaps: dict[str, Pagemap] = {}
        rewritten: dict[str, bytes] = {}
        for name, pagemap in newest.pagemaps.items():
            pieces = flatten([folder.pagemaps.get(name) for folder in self.chain])
            self._refuse_missing(name, pieces)
            self.pieces[name] = pieces
            self.pagemaps[name] = pagemap
            if needs_parent(pagemap):
                whole = Pagemap(pagemap.pages_id, entries_of(pieces), pagemap.is_wide)
                self.pagemaps[name] = whole
                rewritten[pagemap_name(name)] = whole.build()
        self.files, self.long_names = _read_files(newest, rewritten)
        self.tasks = parse_tree(self.files, newest.path)

    def _refuse_missing(self, name: str, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.level == NOWHERE:
                newest = self.chain[0].path
                why = "leads to another dump's" if len(self.chain) > 1 else "is not there"
                raise ImageError(
                    f"{newest}/{pagemap_name(name)}: the pages at {piece.address:#x} are in the"
                    f" folder that this one builds on, and its link `parent` {why}: put the right"
                    " one there, or dump again"
                )


def _read_files(
    folder: Folder, rewritten: Mapping[str, bytes]
) -> tuple[dict[str, bytes], list[str]]:
    """The small files, and the names of the others."""
    files: dict[str, bytes] = {}
    long_names: list[str] = []
    total = 0
    for name in folder.names:
        nbytes = folder.sizes[name]
        if name in rewritten:
            files[name] = rewritten[name]
        elif nbytes > FILE_BYTES_MAX or total + nbytes > _FILES_BYTES_MAX:
            long_names.append(name)
        else:
            files[name] = folder.read(name)
        total += len(files.get(name, b""))
    return files, long_names
