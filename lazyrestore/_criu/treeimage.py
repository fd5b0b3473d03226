"""From what CRIU sends and writes to an image: docs/format.md, "Processes"."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lazyrestore.reports import ProcessInfo
from lazyrestore.sources._files import copy_piece

from .folder import FILE_BYTES_MAX, OURS, describe, pagemap_name
from .inventory import parse_tree
from .layout import FILE_PREFIX, SHARED_PREFIX, Placer
from .pagemap import PAGE_BYTES, Entry, Pagemap

if TYPE_CHECKING:
    from lazyrestore.sources.base import Sink

    from .smallfiles import SmallFiles

__all__ = ["TreeImage"]

_FILES_BYTES_MAX = 128 << 20  # of all small files; what is above becomes regions


class TreeImage:
    """Writes one tree of processes to a sink: its pages as they come, then all else.

    Args:
        sink: the image.
        before: called when the first page is about to come.
    """

    def __init__(self, sink: Sink, before: Callable[[], None]) -> None:
        self._sink = sink
        self._before = before
        self._placer: Placer | None = None
        self._pagemaps: dict[str, Pagemap] = {}
        self._entries: list[Entry] = []

    @property
    def pids(self) -> set[int]:
        """The tasks whose memory has come."""
        return {int(name) for name in self._pagemaps if not name.startswith(SHARED_PREFIX)}

    # ---- What the page server calls -----------------------------------------------------------

    def open_task(self, pid: int) -> None:
        """The pages that follow are the memory of a task."""
        self._open(str(pid))

    def open_shared(self, number: int) -> None:
        """The pages that follow are shared memory; addresses are offsets in it."""
        self._open(f"{SHARED_PREFIX}{number}")

    def add_pages(
        self, address: int, nbytes: int, flags: int, fetch: Callable[[memoryview], int]
    ) -> None:
        """Some pages of what is open; `fetch` gives all of them."""
        assert self._placer is not None
        self._placer.place(address, nbytes)
        self._entries.append((address, nbytes // PAGE_BYTES, flags))
        self._sink.fill(fetch, nbytes)

    def _open(self, name: str) -> None:
        self._finish_object()
        if not self._pagemaps:
            self._before()
        self._placer = Placer(self._sink, name)
        self._entries = []
        # Numbered as CRIU numbers them, in the order in which it writes them.
        self._pagemaps[name] = Pagemap(len(self._pagemaps) + 1, self._entries)

    def _finish_object(self) -> None:
        if self._placer is not None:
            self._placer.finish()
            self._placer = None

    # ---- All else ------------------------------------------------------------------------------

    def add_rest(
        self, files: SmallFiles, names: Sequence[str], criu_version: str, *, is_wide: bool
    ) -> tuple[ProcessInfo, ...]:
        """Add what CRIU wrote, the pagemaps that it did not write, and what is in it all.

        Args:
            files: where CRIU's files are.
            names: of those to add.
            criu_version: as "4.1.1".
            is_wide: True if CRIU writes numbers of pages in 64 bits.

        Returns:
            The processes, parents before their children.

        Raises:
            ImageError: what CRIU wrote cannot be understood.
        """
        self._finish_object()
        small: dict[str, bytes] = {}
        total = 0
        for name in names:
            nbytes = files.size(name)
            if nbytes > FILE_BYTES_MAX or total + nbytes > _FILES_BYTES_MAX:
                self._add_long(files, name, nbytes)
            else:
                small[name] = files.read(name)
                total += nbytes
        for name, pagemap in self._pagemaps.items():
            pagemap.is_wide = is_wide
            self._add_pagemap(pagemap_name(name), pagemap, small)
        tasks = parse_tree(small, "CRIU's dump")
        for name, data in sorted(small.items()):
            self._sink.add_file(name, data)
        description = describe(tasks, self._pagemaps, criu_version)
        self._sink.add_file(OURS, json.dumps(description, separators=(",", ":")).encode())
        return tuple(
            ProcessInfo(
                task.pid, task.ppid, task.comm, task.threads, task.is_zombie, self._nbytes(task.pid)
            )
            for task in tasks
        )

    def _nbytes(self, pid: int) -> int:
        pagemap = self._pagemaps.get(str(pid))
        return pagemap.present_bytes if pagemap is not None else 0

    def _add_pagemap(self, name: str, pagemap: Pagemap, small: dict[str, bytes]) -> None:
        data = pagemap.build()
        if len(data) > FILE_BYTES_MAX:
            self._sink.add_region(FILE_PREFIX + name, protection=1)
            self._sink.write(data)
        else:
            small[name] = data

    def _add_long(self, files: SmallFiles, name: str, nbytes: int) -> None:
        fd = files.open(name)
        try:
            self._sink.add_region(FILE_PREFIX + name, protection=1)
            copy_piece(self._sink, fd, 0, nbytes, name, name)
        finally:
            os.close(fd)
