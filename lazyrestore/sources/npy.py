"""numpy's .npy files as sources: one array, with its dtype and shape."""

from __future__ import annotations

import os
from collections.abc import Callable

from lazyrestore._npy import Header, read_header

from ._arrayfile import ArrayFile, array_metadata
from ._files import copy_piece
from .base import Sink
from .buffer import UNNAMED

OBJECTS = (
    "references to Python's objects, which lie elsewhere: load it with numpy, if you trust it, and"
    " convert it, or use dump_pickle"
)


class NpyFile(ArrayFile):
    """A source: the array in a .npy file, as `numpy.save` writes it.

    Its dtype, shape and order are kept; numpy is not needed. Holes of a sparse file are not read.
    An array of objects is refused: it is a pickle.

    Args:
        path: of the file.
        name: of the region.
    """

    format_name = ".npy"

    def __init__(self, path: str | os.PathLike[str], *, name: str = UNNAMED) -> None:
        super().__init__(path)
        self.name = name

    def _measure(self, fd: int) -> int:
        return self._read_header(fd).data_bytes

    def _write(self, fd: int, sink: Sink) -> None:
        header = self._read_header(fd)
        metadata = array_metadata(header.dtype, header.shape, header.order)
        sink.add_region(self.name, metadata=metadata, width=header.kind.width)
        start = header.header_bytes
        copy_piece(sink, fd, start, start + header.data_bytes, self.describe(), self._path)

    def _read_header(self, fd: int) -> Header:
        try:
            header = read_header(_reader(fd))
        except ValueError as error:
            raise self._refuse(str(error)) from None
        if header.kind.has_objects:
            raise self._refuse(f"is an array of objects: {OBJECTS}")
        size = os.fstat(fd).st_size
        wanted = header.header_bytes + header.data_bytes
        if size < wanted:
            raise self._refuse(
                f"is cut short: it has {size} bytes, and its array would end at {wanted}: take"
                " another copy"
            )
        if size > wanted:
            raise self._refuse(
                f"goes on behind its array, from byte {wanted} on: only files of one array can be"
                " dumped"
            )
        return header


def _reader(fd: int) -> Callable[[int], bytes]:
    """Reads a file from its start."""
    at = 0

    def read(nbytes: int) -> bytes:
        nonlocal at
        pieces = []
        while nbytes and (piece := os.pread(fd, nbytes, at)):
            pieces.append(piece)
            at += len(piece)
            nbytes -= len(piece)
        return b"".join(pieces)

    return read
