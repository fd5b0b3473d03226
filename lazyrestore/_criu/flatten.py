"""Folders that build on one another: which page is in which of them.

An incremental dump has only what changed; its other entries say that the pages are in the folder
that `parent` points to, which may have a parent too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .pagemap import LAZY, PAGE_BYTES, PARENT, PRESENT, Entry, Pagemap

NOWHERE = -1
"""The level of a piece that no folder has."""


class Piece(NamedTuple):
    """Pages that lie together, in memory and in a file.

    Attributes:
        address: of the first, in bytes; of shared memory: its offset.
        nbytes: how long it is.
        flags: PRESENT, and LAZY where that is so.
        level: the folder: 0 is the newest, 1 its parent.
        offset: where in that folder's pages file.
    """

    address: int
    nbytes: int
    flags: int
    level: int
    offset: int

    def part(self, start: int, end: int) -> Piece:
        """What of it lies between two addresses."""
        offset = self.offset + start - self.address
        return Piece(start, end - start, self.flags, self.level, offset)


def flatten(levels: Sequence[Pagemap | None]) -> list[Piece]:
    """Where all pages of an object are: ascending, and what lies together in one piece.

    Args:
        levels: its pagemaps, the newest first; None where a folder has none of it: what is older
            cannot be meant then.

    Returns:
        Pieces; one that should be in a parent, and is not there, has the level NOWHERE.
    """
    below: list[Piece] = []
    # From the oldest on, so that no depth is too much.
    for level in range(len(levels) - 1, -1, -1):
        pagemap = levels[level]
        below = [] if pagemap is None else _merge(_resolve(pagemap.entries, level, below))
    return below


def _resolve(entries: Sequence[Entry], level: int, below: Sequence[Piece]) -> Iterable[Piece]:
    offset = 0
    at = 0  # in `below`: both are ascending
    for start, pages, flags in entries:
        address, end = start, start + pages * PAGE_BYTES
        if not flags & PARENT:
            yield Piece(address, end - address, flags, level, offset)
            offset += end - address
            continue
        while at < len(below) and below[at].address + below[at].nbytes <= address:
            at += 1
        number = at
        while address < end:
            if number == len(below) or below[number].address >= end:
                yield Piece(address, end - address, PRESENT, NOWHERE, 0)
                break
            piece = below[number]
            if piece.address > address:
                yield Piece(address, piece.address - address, PRESENT, NOWHERE, 0)
                address = piece.address
            stop = min(end, piece.address + piece.nbytes)
            part = piece.part(address, stop)
            yield part._replace(flags=part.flags | flags & LAZY)
            address = stop
            number += 1


def _merge(pieces: Iterable[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for piece in pieces:
        if merged:
            last = merged[-1]
            if (
                last.address + last.nbytes == piece.address
                and last.flags == piece.flags
                and last.level == piece.level
                and (last.offset + last.nbytes == piece.offset or piece.level == NOWHERE)
            ):
                merged[-1] = last._replace(nbytes=last.nbytes + piece.nbytes)
                continue
        merged.append(piece)
    return merged


def entries_of(pieces: Iterable[Piece]) -> list[Entry]:
    """The entries of a pagemap that has all of these pages itself."""
    entries: list[Entry] = []
    for piece in pieces:
        pages = piece.nbytes // PAGE_BYTES
        if entries:
            address, before, flags = entries[-1]
            if flags == piece.flags and address + before * PAGE_BYTES == piece.address:
                entries[-1] = (address, before + pages, flags)
                continue
        entries.append((piece.address, pages, piece.flags))
    return entries
