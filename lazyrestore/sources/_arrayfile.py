"""What files of arrays have in common as sources of a dump."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from typing import ClassVar

from lazyrestore.errors import LazyRestoreError
from lazyrestore.reports import Skipped

from ._files import READ_FLAGS, refuse_target
from .base import Sink


class ArrayFile(ABC):
    """A source: arrays in a file, each a region with its name, dtype and shape.

    Args:
        path: of the file. Not a pipe: it is read at many places.
    """

    format_name: ClassVar[str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fsdecode(path)
        self._total_bytes: int | None = None
        self.skipped: list[Skipped] = []
        self.frozen_us: int | None = None

    def describe(self) -> str:
        """The file."""
        return f"{self.format_name} file {os.path.abspath(self._path)}"

    def check(self, target: str) -> None:
        """Read all headers: refuse what cannot be dumped, and what the image would replace.

        Raises:
            LazyRestoreError: it is not of this format, damaged, or has an array of objects.
            OSError: it cannot be read.
            ValueError: it is the target, or a pipe.
        """
        here = os.stat(self._path)
        if stat.S_ISDIR(here.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        if not stat.S_ISREG(here.st_mode):
            raise ValueError(
                f"{self._path} is not a regular file: {self.format_name} files are read at many"
                " places, so write it to a disk first"
            )
        refuse_target(here, target)
        fd = os.open(self._path, READ_FLAGS)
        try:
            self._total_bytes = self._measure(fd)
        finally:
            os.close(fd)

    def total_bytes(self) -> int | None:
        """Bytes of all arrays; None before `check`."""
        return self._total_bytes

    def write_to(self, sink: Sink) -> None:
        """Write a region for each array."""
        fd = os.open(self._path, READ_FLAGS)
        try:
            self._write(fd, sink)
        finally:
            os.close(fd)

    @abstractmethod
    def _measure(self, fd: int) -> int:
        """Read all headers, and add up the lengths of the arrays."""

    @abstractmethod
    def _write(self, fd: int, sink: Sink) -> None:
        """Write a region for each array; the file need not be what it was for `_measure`."""

    def _refuse(self, why: str) -> LazyRestoreError:
        return LazyRestoreError(f"{self._path} {why}")


def array_metadata(dtype: object, shape: tuple[int, ...], order: str) -> dict[str, object]:
    """What the metadata of an array's region says."""
    return {"array": {"dtype": dtype, "shape": list(shape), "order": order}}
