"""Comparing pieces of two images, on any thread."""

from __future__ import annotations

import dataclasses
import itertools
import os
import queue
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from . import format as fmt
from ._clusters import LISTED, LOST, Index
from ._diff_pairs import Known, Piece
from ._native import ffi, lib
from ._open import Image, Reader
from .errors import ClusterError, ImageError
from .reports import Damage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._clusters import Entry

SAME, DIFFERENT, UNREADABLE = range(3)
"""Verdicts of a page."""
_LOST_STATE = 3  # beside the states of docs/format.md
_CONTRADICTS = "an index entry contradicts itself"


@dataclasses.dataclass(slots=True)
class Outcome:
    """What was found of a piece.

    Attributes:
        piece: it.
        runs: (start, end, verdict) in bytes, counted as in the piece; without gaps.
        changed: pages that are not what they were: by (state, state, verdict).
        lost: (0 or 1 for the image, what and where) that cannot be read.
    """

    piece: Piece
    runs: list[tuple[int, int, int]]
    changed: dict[tuple[int, int, int], int] = dataclasses.field(default_factory=dict)
    lost: list[tuple[int, Damage]] = dataclasses.field(default_factory=list)


class Comparer:
    """Compares pieces of two images.

    Args:
        a: the first image.
        b: the second.
        page_size: bytes of a page, as it is counted: the smaller one of the two images'.
    """

    def __init__(self, a: Image, b: Image, page_size: int) -> None:
        self._images = (a, b)
        self._page_size = page_size
        self._workers: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._is_one_file = _is_one_file(a, b)

    def look(self, piece: Piece) -> Outcome:
        """Compare one; from any thread."""
        kinds = [known.kind for known in piece.known]
        if LOST in kinds:
            return self._lose(piece)
        if LISTED not in kinds:
            return self._take_alike(piece)
        try:
            worker = self._workers.get_nowait()
        except queue.Empty:
            worker = _Worker(self._images, self._page_size, is_one_file=self._is_one_file)
        try:
            return worker.look(piece)
        finally:
            self._workers.put(worker)

    def _take_alike(self, piece: Piece) -> Outcome:
        """No data in either: it reads as zeros."""
        outcome = Outcome(piece, [(piece.start, piece.end, SAME)])
        a, b = (known.kind for known in piece.known)
        if a != b:
            pages = -(-(piece.end - piece.start) // self._page_size)
            outcome.changed[a, b, SAME] = pages
        return outcome

    def _lose(self, piece: Piece) -> Outcome:
        outcome = Outcome(piece, [(piece.start, piece.end, UNREADABLE)])
        for side, known in enumerate(piece.known):
            if known.kind == LOST:
                offset = piece.offsets[side] + piece.start
                damage = Damage(None, offset, piece.end - piece.start, known.first, known.reason)
                outcome.lost.append((side, damage))
        return outcome


class _Worker:
    """Readers and room for one thread at a time."""

    def __init__(self, images: tuple[Image, Image], page_size: int, *, is_one_file: bool) -> None:
        self._images = images
        self._page_size = page_size
        self._is_one_file = is_one_file
        self._indexes = (Index(images[0]), Index(images[1]))
        self._readers: tuple[Reader, Reader] = (images[0].reader(), images[1].reader())

    def look(self, piece: Piece) -> Outcome:
        """Compare what has data in one of the images."""
        lost: list[tuple[int, Damage]] = []
        states = [self._states(piece, side, lost) for side in (0, 1)]
        verdicts = bytearray(len(states[0]))
        for start, end in self._doubtful(piece, states, verdicts):
            self._compare(piece, start, end, verdicts, lost)
        changed = Counter(zip(*states, verdicts, strict=True))
        outcome = Outcome(piece, list(self._runs(piece, verdicts)), lost=lost)
        for (a, b, verdict), count in changed.items():
            if verdict == DIFFERENT or (verdict == SAME and a != b):
                outcome.changed[a, b, verdict] = count
        return outcome

    # ---- What the indexes say --------------------------------------------------------------------

    def _states(self, piece: Piece, side: int, lost: list[tuple[int, Damage]]) -> bytes:
        """The state of each page of the piece in one image."""
        known = piece.known[side]
        pages = -(-(piece.end - piece.start) // self._page_size)
        if known.kind != LISTED:
            return bytes([known.kind]) * pages
        image, index = self._images[side], self._indexes[side]
        repeat = image.page_size // self._page_size
        region = image.regions[piece.numbers[side]]
        first = image.first_cluster(piece.numbers[side])
        parts = []
        for number, entry in enumerate(known.entries, known.first):
            offset = (number - first) * image.cluster_size
            nbytes = min(image.cluster_size, region.length - offset)
            inside = -(-nbytes // image.page_size)
            if index.tally(entry, inside) is None:
                lost.append((side, Damage(None, offset, nbytes, number, _CONTRADICTS)))
                parts.append(bytes([_LOST_STATE]) * inside * repeat)
            else:
                parts.append(_unpack(entry[6], inside, repeat))
        skip = (piece.offsets[side] + piece.start) % image.cluster_size // self._page_size
        return b"".join(parts)[skip : skip + pages]

    def _doubtful(
        self, piece: Piece, states: list[bytes], verdicts: bytearray
    ) -> Iterator[tuple[int, int]]:
        """Runs of pages that have to be decoded. Marks what cannot be."""
        a, b = states
        is_doubtful = bytearray(len(a))
        for page, pair in enumerate(zip(a, b, strict=True)):
            if _LOST_STATE in pair:
                verdicts[page] = UNREADABLE
            elif fmt.PAGE_DATA in pair:
                is_doubtful[page] = 1
        for start, end in self._stored_alike(piece):
            is_doubtful[start:end] = bytes(end - start)
        page = 0
        for doubtful, group in itertools.groupby(is_doubtful):
            count = sum(1 for _ in group)
            if doubtful:
                yield page, page + count
            page += count

    def _stored_alike(self, piece: Piece) -> Iterator[tuple[int, int]]:
        """Runs of pages of clusters that both images have stored in the same way."""
        a, b = self._images
        size = a.cluster_size
        begins = [(offset + piece.start) % size for offset in piece.offsets]
        if (
            (a.cluster_size, a.page_size) != (b.cluster_size, b.page_size)
            or begins[0] != begins[1]
            or piece.known[0].kind != LISTED
            or piece.known[1].kind != LISTED
        ):
            return
        pages = size // self._page_size
        skip = begins[0] // self._page_size
        last = -(-(piece.end - piece.start) // self._page_size)
        both = zip(piece.known[0].entries, piece.known[1].entries, strict=False)
        for number, (one, other) in enumerate(both):
            if one[1] and one[1:] == other[1:] and self._is_stored_alike(one, other):
                start = number * pages - skip
                yield max(0, start), min(last, start + pages)

    def _is_stored_alike(self, one: Entry, other: Entry) -> bool:
        """Of entries that say the same but for the place."""
        if self._is_one_file and one[0] == other[0]:
            return True
        stored = []
        for image, entry in zip(self._images, (one, other), strict=True):
            if entry[0] > image.file_bytes - entry[1]:
                return False
            try:
                stored.append(image.read_raw(entry[0], entry[1]))
            except (OSError, ImageError):
                return False  # decoding says what is wrong
        if stored[0] != stored[1]:
            return False
        return int(lib.lr_crc32c(0, ffi.from_buffer(stored[0]), len(stored[0]))) == one[2]

    # ---- Bytes -----------------------------------------------------------------------------------

    def _compare(
        self,
        piece: Piece,
        first: int,
        last: int,
        verdicts: bytearray,
        lost: list[tuple[int, Damage]],
    ) -> None:
        """Decode a run of pages of both images, and mark those that differ."""
        size = self._page_size
        start = piece.start + first * size
        end = min(piece.end, piece.start + last * size)
        data = []
        for side in (0, 1):
            room = bytearray(end - start)
            try:
                self._read(piece, side, start, room)
            except ClusterError as error:
                if last - first > 1 and end - start > size:
                    self._compare_smaller(piece, first, last, verdicts, lost)
                    return
                self._note(piece, side, error, lost)
                verdicts[first:last] = bytes([UNREADABLE]) * (last - first)
                return
            data.append(room)
        if data[0] == data[1]:
            return
        a, b = data
        for page in range(first, last):
            at = (page - first) * size
            if a[at : at + size] != b[at : at + size]:
                verdicts[page] = DIFFERENT

    def _read(self, piece: Piece, side: int, start: int, room: bytearray) -> None:
        reader = self._readers[side]
        reader.read_into(piece.numbers[side], piece.offsets[side] + start, room, is_zeroed=True)

    def _compare_smaller(
        self,
        piece: Piece,
        first: int,
        last: int,
        verdicts: bytearray,
        lost: list[tuple[int, Damage]],
    ) -> None:
        """In two halves: something in it cannot be read."""
        middle = (first + last) // 2
        self._compare(piece, first, middle, verdicts, lost)
        self._compare(piece, middle, last, verdicts, lost)

    def _note(
        self, piece: Piece, side: int, error: ClusterError, lost: list[tuple[int, Damage]]
    ) -> None:
        """That a cluster cannot be read; once, though each of its pages finds it out."""
        image = self._images[side]
        region = image.regions[piece.numbers[side]]
        cluster = error.cluster
        if any(kept[0] == side and kept[1].cluster == cluster for kept in lost):
            return
        offset = error.offset
        length = min(image.cluster_size, region.length - offset) if offset is not None else 0
        reason = str(error).removeprefix(f"cannot read {image.path}: ").partition(" (")[0]
        lost.append((side, Damage(None, offset, length, cluster, reason)))

    def _runs(self, piece: Piece, verdicts: bytearray) -> Iterator[tuple[int, int, int]]:
        page = 0
        for verdict, group in itertools.groupby(verdicts):
            count = sum(1 for _ in group)
            start = piece.start + page * self._page_size
            page += count
            yield start, min(piece.end, piece.start + page * self._page_size), verdict


@lru_cache(maxsize=4096)
def _unpack(states: bytes, pages: int, repeat: int) -> bytes:
    """A byte for each page, of so many that each page of the image counts for."""
    found = fmt.unpack_states(states, pages)
    return found if repeat == 1 else b"".join(bytes([state]) * repeat for state in found)


def _is_one_file(a: Image, b: Image) -> bool:
    try:
        return os.path.samefile(a.path, b.path)
    except OSError:
        return False


__all__ = ["DIFFERENT", "SAME", "UNREADABLE", "Comparer", "Known", "Outcome"]
