"""Working sets: which clusters a run touched, in order of their first touch.

A file of its own, by custom beside its image with `.ws` appended (docs/working-sets.md). It says
only what to load first: a wrong one costs time, never a byte.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

from ._native import ffi, lib
from .errors import ImageError, WorkingSetError

if TYPE_CHECKING:
    from ._open import Image

VERSION = 1
SUFFIX = ".ws"
FILE_BYTES_MAX = 1 << 30
CLUSTERS_MAX = 1 << 50  # of an image: 2^62 bytes of 4 KiB clusters

_MAGIC = b"\xb7lazyrestore working set"  # the first key; the byte before it says how many there are
_KEY = "lazyrestore working set"
# The last key and the start of its value, a u32 of which the file's last four bytes are the rest.
_CRC_HEAD = b"\xa6crc32c\xce"
_CRC_BYTES = 4
_GAP_MAX = (1 << 32) - 1


class WorkingSet:
    """Which clusters of an image one or several runs touched.

    Attributes:
        digest: content digest of the image that it belongs to, in hexadecimal.
        cluster_size: of that image, in bytes.
        cluster_count: clusters in that image.
        recordings: how many were merged in this; 1: it is one run's.
        path: the file that it was read from, or None.
    """

    def __init__(
        self,
        digest: str,
        cluster_size: int,
        cluster_count: int,
        clusters: array[int],
        times_us: array[int],
        *,
        recordings: int = 1,
        path: str | None = None,
    ) -> None:
        self.digest = digest
        self.cluster_size = cluster_size
        self.cluster_count = cluster_count
        self.recordings = recordings
        self.path = path
        self._clusters = clusters
        self._times_us = times_us

    @property
    def clusters(self) -> array[int]:
        """Numbers of the clusters, counted through the image, in the order of their first touch."""
        return self._clusters[:]

    @property
    def times_us(self) -> array[int]:
        """When each was touched first, in microseconds since its session was opened."""
        return self._times_us[:]

    @property
    def nbytes(self) -> int:
        """Bytes of memory in these clusters, a region's last one counted as whole."""
        return len(self) * self.cluster_size

    def __len__(self) -> int:
        return len(self._clusters)

    def __iter__(self) -> Iterator[int]:
        return iter(self._clusters)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkingSet):
            return NotImplemented
        return self._key() == other._key() and self._times_us == other._times_us

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    def _key(self) -> tuple[object, ...]:
        return (
            self.digest,
            self.cluster_size,
            self.cluster_count,
            self.recordings,
            self._clusters,
        )

    def __repr__(self) -> str:
        return f"<lazyrestore.WorkingSet of {self.digest[:12]}: {len(self)} clusters>"

    def belongs_to(self, image: Image) -> bool:
        """Whether it was recorded of that image, or of one with the same content."""
        return (self.digest, self.cluster_size, self.cluster_count) == (
            image.digest,
            image.cluster_size,
            image.cluster_count,
        )

    def check(self, image: Image) -> WorkingSet:
        """Make sure that it belongs to an image, and return it.

        Raises:
            WorkingSetError: it belongs to another.
        """
        if not self.belongs_to(image):
            raise WorkingSetError(
                f"{self._name()} belongs to an image of digest {self.digest[:16]}..., and"
                f" {image.path} has {image.digest[:16]}...: record one of this image"
            )
        return self

    def _name(self) -> str:
        return f"the working set {self.path}" if self.path is not None else "this working set"

    def merge(self, *others: WorkingSet) -> WorkingSet:
        """All clusters that any of these has.

        A cluster's place goes by the smallest rank that it has in any: whichever run comes next,
        what it wants first is loaded first. Where ranks are equal, the earlier ones of these come
        first. Its time is the earliest.

        Raises:
            WorkingSetError: they do not belong to the same image.
        """
        best: dict[int, tuple[int, int]] = {}
        times: dict[int, int] = {}
        for number, each in enumerate((self, *others)):
            if (each.digest, each.cluster_size, each.cluster_count) != (
                self.digest,
                self.cluster_size,
                self.cluster_count,
            ):
                raise WorkingSetError(
                    f"{each._name()} and {self._name()} belong to different images: merge those of"
                    " one"
                )
            for rank, (cluster, time_us) in enumerate(
                zip(each._clusters, each._times_us, strict=True)
            ):
                best[cluster] = min(best.get(cluster, (rank, number)), (rank, number))
                times[cluster] = min(times.get(cluster, time_us), time_us)
        clusters = array("Q", sorted(best, key=best.__getitem__))
        return WorkingSet(
            self.digest,
            self.cluster_size,
            self.cluster_count,
            clusters,
            array("Q", itertools.accumulate((times[cluster] for cluster in clusters), max)),
            recordings=sum((each.recordings for each in others), self.recordings),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, which is there as a whole (mode 0600) or not at all.

        Raises:
            OSError: it cannot be written; what was there before still is.
        """
        from ._outfile import OutputFile

        file = OutputFile(os.fsdecode(path))
        try:
            file.append(self.pack())
            file.commit()
        finally:
            file.discard()

    def pack(self) -> bytes:
        """The file's bytes."""
        import msgpack

        fields = {
            _KEY: VERSION,
            "digest": bytes.fromhex(self.digest),
            "cluster_size": self.cluster_size,
            "cluster_count": self.cluster_count,
            "recordings": self.recordings,
            "clusters": _little(array(_code(self.cluster_count), self._clusters)),
            "gaps_us": _little(array("I", _gaps(self._times_us))),
            "crc32c": _GAP_MAX,  # which takes as many bytes as any that is to stand there
        }
        packed = msgpack.packb(fields, use_bin_type=True)
        assert isinstance(packed, bytes)
        body = packed[:-_CRC_BYTES]
        assert body[1:].startswith(_MAGIC)
        assert body.endswith(_CRC_HEAD)
        return body + _crc32c(body).to_bytes(_CRC_BYTES, "big")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WorkingSet:
        """Read a file and check everything in it.

        Raises:
            OSError: it is not there or cannot be read.
            WorkingSetError: it is no working set, damaged, cut short or of a newer version.
        """
        name = os.fsdecode(path)
        return cls.unpack(_read(name), name)

    @classmethod
    def unpack(cls, data: bytes, path: str | None = None) -> WorkingSet:
        """From a file's bytes; see `load`."""
        return _Parser(data, path).parse()


class _Parser:
    """One file's bytes, which anybody may have written."""

    def __init__(self, data: bytes, path: str | None) -> None:
        self._data = data
        self._path = path
        self._what = path or "these bytes"

    def parse(self) -> WorkingSet:
        from ._open import unpack

        if not self._data[1:].startswith(_MAGIC):
            raise WorkingSetError(
                f"{self._what} is not a working set: give a file that"
                " `lazyrestore restore --lazy --record` wrote"
            )
        body, crc = self._data[:-_CRC_BYTES], self._data[-_CRC_BYTES:]
        if not body.endswith(_CRC_HEAD) or _crc32c(body) != int.from_bytes(crc, "big"):
            self._fail("its checksum is wrong, or it is cut short")
        try:
            fields = unpack(self._data, self._what)
        except ImageError as error:
            raise WorkingSetError(str(error)) from None
        if not isinstance(fields, dict):
            self._fail("it is not a map")
        version = self._number(fields, _KEY, 0, 1 << 64)
        if version != VERSION:
            raise WorkingSetError(
                f"{self._what} is a working set of version {version}, and {VERSION} is known:"
                " upgrade lazyrestore, or record it again"
            )
        digest = fields.get("digest")
        if not isinstance(digest, bytes) or len(digest) != 32:
            self._fail("its digest is not one")
        cluster_count = self._number(fields, "cluster_count", 0, CLUSTERS_MAX)
        cluster_size = self._number(fields, "cluster_size", 4096, 2 << 20)
        if cluster_size & (cluster_size - 1):
            self._fail("its cluster_size is not a power of two")
        clusters = array("Q", self._array(fields, "clusters", _code(cluster_count)))
        gaps = self._array(fields, "gaps_us", "I")
        if len(clusters) != len(gaps):
            self._fail("it has not one time a cluster")
        if clusters and max(clusters) >= cluster_count:
            self._fail("it has a cluster that no such image has")
        if len(set(clusters)) != len(clusters):
            self._fail("it has a cluster twice")
        return WorkingSet(
            digest.hex(),
            cluster_size,
            cluster_count,
            clusters,
            array("Q", itertools.accumulate(gaps)),
            recordings=self._number(fields, "recordings", 1, 1 << 32),
            path=self._path,
        )

    def _number(self, fields: dict[object, object], key: str, low: int, high: int) -> int:
        value = fields.get(key)
        if type(value) is not int or not low <= value <= high:
            self._fail(f"its {key} is not a number from {low} to {high}")
        return value

    def _array(self, fields: dict[object, object], key: str, code: str) -> array[int]:
        value = fields.get(key)
        numbers = array(code)
        if not isinstance(value, bytes) or len(value) % numbers.itemsize:
            self._fail(f"its {key} are not whole numbers of {numbers.itemsize} bytes")
        numbers.frombytes(value)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def _fail(self, why: str) -> NoReturn:
        raise WorkingSetError(f"{self._what}: the working set is damaged: {why}: record it again")


def path_beside(image_path: str | os.PathLike[str]) -> str:
    """Where the working set of an image is looked for."""
    return os.fsdecode(image_path) + SUFFIX


def keep_apart(path: str | os.PathLike[str], others: Iterable[str]) -> None:
    """Make sure that a working set is not written over what it is made of.

    Raises:
        ValueError: `path` is one of the other files.
    """
    for other in others:
        with contextlib.suppress(OSError):
            if os.path.samefile(path, other):
                raise ValueError(
                    f"{os.fsdecode(path)} is what is read here, and would be replaced: give"
                    " another name"
                )


def load_beside(image: Image) -> WorkingSet | None:
    """The working set beside an image: None where there is none.

    Raises:
        OSError, WorkingSetError: there is one that cannot be used.
    """
    try:
        return WorkingSet.load(path_beside(image.path)).check(image)
    except FileNotFoundError:
        return None


def _read(path: str) -> bytes:
    """All of a regular file."""
    # Not blocking: a FIFO of that name must not be waited for.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            raise WorkingSetError(
                f"{path} is not a working set: it is no regular file of 1 GiB or less"
            )
        parts = []
        left = FILE_BYTES_MAX
        while left > 0 and (part := os.read(fd, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def _code(cluster_count: int) -> str:
    """How cluster numbers of such an image are written: as u32 or u64."""
    return "I" if cluster_count <= 1 << 32 else "Q"


def _crc32c(data: bytes) -> int:
    return int(lib.lr_crc32c(0, ffi.from_buffer(data), len(data)))


def _little(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _gaps(times_us: array[int]) -> Iterator[int]:
    """Times since the one before; more than 71 minutes are not told apart."""
    before = 0
    for time_us in times_us:
        yield min(max(time_us - before, 0), _GAP_MAX)
        before = time_us
