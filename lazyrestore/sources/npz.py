"""numpy's .npz files as sources: an array for each member of an archive."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from lazyrestore._content import check_name
from lazyrestore._npy import Header, read_header
from lazyrestore.errors import LazyRestoreError

from ._arrayfile import ArrayFile, array_metadata
from .base import CHUNK_BYTES, Sink
from .npy import OBJECTS

_SUFFIX = ".npy"
_READ_BYTES_MAX = 64 << 20
"""At once, which only the archive's directory may want: more than a million members have one of
this length, and each takes half a kilobyte of memory."""
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class NpzFile(ArrayFile):
    """A source: the arrays in a .npz file, as `numpy.savez` and `savez_compressed` write it.

    Each array is a region with its name, dtype, shape and order; a member that is no .npy file is a
    region of bytes with the member's whole name. numpy is not needed, and memory does not grow with
    the arrays: members are read, and decompressed, as they are written. Their checksums are looked
    at. An array of objects is refused: it is a pickle.

    Args:
        path: of the file.
    """

    format_name = ".npz"

    def _measure(self, fd: int) -> int:
        total = 0
        with self._archive(fd) as archive:
            names: set[str] = set()
            for info in archive.infolist():
                name = self._check(info)
                if name in names:
                    raise self._refuse(
                        f"has two members for {name!r}: write it anew, with each name once"
                    )
                names.add(name)
                with self._member(archive, info) as member:
                    header = self._read_header(info, member)
                total += info.file_size if header is None else header.data_bytes
        return total

    def _write(self, fd: int, sink: Sink) -> None:
        with self._archive(fd) as archive:
            for info in archive.infolist():
                name = self._check(info)
                with self._member(archive, info) as member:
                    self._copy(info, member, name, sink)

    def _copy(self, info: zipfile.ZipInfo, member: IO[bytes], name: str, sink: Sink) -> None:
        header = self._read_header(info, member)
        nbytes = info.file_size
        if header is None:
            sink.add_region(name)
        else:
            metadata = array_metadata(header.dtype, header.shape, header.order)
            sink.add_region(name, metadata=metadata, width=header.kind.width)
            nbytes = header.data_bytes

        def fetch(view: memoryview) -> int:
            filled = 0
            while filled < len(view):
                with _problems(self._path, info.filename):  # with the last byte, of its checksum
                    data = member.read(min(len(view) - filled, CHUNK_BYTES))
                if not data:
                    break
                view[filled : filled + len(data)] = data
                filled += len(data)
            return filled

        if sink.fill(fetch, nbytes) < nbytes:
            raise self._refuse(f"is cut short: it ends within member {info.filename!r}")

    def _check(self, info: zipfile.ZipInfo) -> str:
        """The name of the region that a member is; a member that cannot be read is refused."""
        what = f"member {info.filename[:200]!r}"
        if info.flag_bits & _ENCRYPTED:
            raise self._refuse(f"has {what} encrypted: decrypt it first")
        if info.compress_type not in _METHODS:
            raise self._refuse(
                f"has {what} compressed by method {info.compress_type}, which numpy does not write:"
                " repack it by `zip`, or numpy.savez"
            )
        name = info.filename.removesuffix(_SUFFIX)
        try:
            check_name(name)
        except ValueError as error:
            raise self._refuse(f"has {what}: {error}") from None
        return name

    def _read_header(self, info: zipfile.ZipInfo, member: IO[bytes]) -> Header | None:
        """What a member says of its array; None for one that is not an array."""
        if not info.filename.endswith(_SUFFIX):
            return None
        with _problems(self._path, info.filename):
            try:
                header = read_header(member.read)
            except ValueError as error:
                raise self._refuse(f"has member {info.filename!r}, which {error}") from None
        if header.kind.has_objects:
            raise self._refuse(f"has array {info.filename!r} of objects: {OBJECTS}")
        there = info.file_size - header.header_bytes
        if there != header.data_bytes:
            raise self._refuse(
                f"is damaged: member {info.filename!r} has {there} bytes behind its header, where"
                f" {header.data_bytes} would be right"
            )
        return header

    @contextmanager
    def _archive(self, fd: int) -> Iterator[zipfile.ZipFile]:
        with _Bounded(os.dup(fd)) as file:
            with _problems(self._path, None):
                archive = zipfile.ZipFile(file)
            with archive:
                yield archive

    @contextmanager
    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
        with _problems(self._path, info.filename):
            member = archive.open(info)
        with member:
            yield member


class _Bounded(io.FileIO):
    """A file of which only so much is read at once, whatever its headers want."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > _READ_BYTES_MAX:
            raise zipfile.BadZipFile(f"its directory has more than {_READ_BYTES_MAX >> 20} MiB")
        return super().read(size) or b""


@contextmanager
def _problems(path: str, member: str | None) -> Iterator[None]:
    """What is wrong with an archive, as one kind of exception: zipfile raises many."""
    try:
        yield
    except (LazyRestoreError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, path) from None
        reason = str(error) or "it is cut short"
        if member is None:
            message = f"{path} is not a .npz file, or damaged ({reason}): take another copy"
        else:
            message = f"{path} is damaged in member {member!r} ({reason}): take another copy"
        raise LazyRestoreError(message) from None
