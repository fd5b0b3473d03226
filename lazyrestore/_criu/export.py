"""Writing a folder of CRIU's images from an image of ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator

from lazyrestore.errors import ImageError

from .checkpoint import Checkpoint
from .layout import FILE_PREFIX, object_of, pages_name
from .pagemap import PAGE_BYTES, PRESENT, Entry, Pagemap

Progress = Callable[[int, int | None], None]
Rewrite = Callable[[str, Pagemap], Pagemap]

_WINDOW_BYTES = 4 << 20
_PIECES_MAX = 1024  # in one writev
_FILE_MODE = 0o600


def write_folder(
    checkpoint: Checkpoint,
    folder: str,
    progress: Progress | None = None,
    *,
    rewrite: Rewrite | None = None,
) -> None:
    """Write all files, and the pages that pagemaps say are there.

    Args:
        checkpoint: of an open image.
        folder: empty, or not there yet; removed or emptied again if anything fails.
        progress: called with the bytes that are written and their total.
        rewrite: makes another pagemap of an object's; None: they stay as they are.
    """
    new = _NewFolder(folder)
    try:
        _Export(checkpoint, new, progress, rewrite).run()
    except BaseException:
        new.undo()
        raise
    finally:
        new.close()


class _NewFolder:
    """A folder that is being filled; nothing that was there before is touched."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_ours = True
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if os.listdir(path):
                raise OSError(
                    errno.ENOTEMPTY, "The folder is not empty: give a new one", path
                ) from None
            self._is_ours = False
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._names: set[str] = set()

    def create(self, name: str) -> int:
        """A new file's descriptor.

        Raises:
            ImageError: there was one of that name already.
        """
        if name in self._names:
            raise ImageError(
                f"cannot write {self.path}/{name} twice: the image is damaged; `lazyrestore verify`"
                " says how"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, _FILE_MODE, dir_fd=self._fd)
        self._names.add(name)
        return fd

    def undo(self) -> None:
        """Remove what was written."""
        for name in self._names:
            os.unlink(name, dir_fd=self._fd)
        if self._is_ours:
            os.rmdir(self.path)

    def close(self) -> None:
        """Done with it."""
        os.close(self._fd)


class _Export:
    """One run; for one thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: _NewFolder,
        progress: Progress | None,
        rewrite: Rewrite | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._folder = folder
        self._progress = progress
        self._rewrite = rewrite
        self._done = 0
        self._total: int | None = None
        self._room = bytearray()

    def run(self) -> None:
        checkpoint = self._checkpoint
        pagemaps: dict[str, Pagemap] = {}
        for name in checkpoint.names():
            of = object_of(name)
            pagemap = checkpoint.pagemap(of) if of else None
            if of is None or pagemap is None:
                self._write_file(name)
                continue
            if self._rewrite is None:
                self._write_file(name)
            else:
                pagemap = self._rewrite(of, pagemap)
                self._write_bytes(name, pagemap.build())
            pagemaps[of] = pagemap
        self._done = 0
        self._total = sum(pagemap.present_bytes for pagemap in pagemaps.values())
        with checkpoint.image.reader() as reader:
            for of, pagemap in pagemaps.items():
                windows = self._windows(of, pagemap.entries)
                fd = self._folder.create(pages_name(pagemap.pages_id))
                try:
                    for number, offset, span, pieces in windows:
                        if span > len(self._room):
                            self._room = bytearray(span)
                        with memoryview(self._room)[:span] as view:
                            reader.read_into(number, offset, view)
                            for at in range(0, len(pieces), _PIECES_MAX):
                                some = pieces[at : at + _PIECES_MAX]
                                self._write(fd, [view[start:end] for start, end in some])
                finally:
                    os.close(fd)

    def _windows(
        self, of: str, entries: Iterable[Entry]
    ) -> Iterator[tuple[int, int, int, list[tuple[int, int]]]]:
        """What to read at once, and which parts of that are wanted.

        Yields (region, offset in it, bytes, [(start, end) in these bytes]). What is not wanted in
        between is less than a cluster, which would be decoded anyway.
        """
        cluster_size = self._checkpoint.image.cluster_size
        window: list[tuple[int, int]] = []
        number = first = 0  # the window's region, and where in it it begins
        for at, run, length in self._runs(of, entries):
            offset = run
            while offset < run + length:
                if window:
                    end = first + window[-1][1]
                    near = at == number and end <= offset < end + cluster_size
                    if not near or offset + PAGE_BYTES - first > _WINDOW_BYTES:
                        yield number, first, window[-1][1], window
                        window = []
                if not window:
                    number, first = at, offset
                step = min(run + length, first + _WINDOW_BYTES) - offset
                if window and first + window[-1][1] == offset:
                    window[-1] = (window[-1][0], window[-1][1] + step)
                else:
                    window.append((offset - first, offset - first + step))
                offset += step
        if window:
            yield number, first, window[-1][1], window

    def _runs(self, of: str, entries: Iterable[Entry]) -> Iterator[tuple[int, int, int]]:
        """(region, offset in it, bytes) of what is present."""
        for address, pages, flags in entries:
            if flags & PRESENT:
                end = address + pages * PAGE_BYTES
                start, number = self._checkpoint.find(of, address, end)
                yield number, address - start, end - address

    def _write_file(self, name: str) -> None:
        checkpoint = self._checkpoint
        if not checkpoint.is_long(name):
            self._write_bytes(name, checkpoint.content(name))
            return
        image = checkpoint.image
        number = image.number(FILE_PREFIX + name)
        length = image.regions[number].length
        fd = self._folder.create(name)
        try:
            with image.reader() as reader:
                for offset in range(0, length, _WINDOW_BYTES):
                    piece = bytearray(min(_WINDOW_BYTES, length - offset))
                    reader.read_into(number, offset, piece)
                    self._write(fd, [memoryview(piece)])
        finally:
            os.close(fd)

    def _write_bytes(self, name: str, data: bytes) -> None:
        fd = self._folder.create(name)
        try:
            self._write(fd, [memoryview(data)])
        finally:
            os.close(fd)

    def _write(self, fd: int, views: list[memoryview]) -> None:
        written = os.writev(fd, views)
        for view in views:
            at = min(len(view), written)
            written -= at
            while at < len(view):  # a disk that is nearly full takes less than all
                at += os.write(fd, view[at:])
            self._done += len(view)
        if self._progress is not None and self._total is not None:
            self._progress(self._done, self._total)
