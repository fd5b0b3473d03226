"""CRIU's page server, as `criu dump` speaks to it: pages are taken from a socket as they come.

CRIU sends messages of a header each (all numbers little-endian), and waits for some answers:

    u32 command | flags << 16, u32 pages, u64 address, u64 object                   24 bytes
    u32 command | flags << 16, 4 bytes of nothing, u64 pages, u64 address, u64 object     32 bytes

    command 4       an object begins                    answered by one byte: it has no parent, 0
    command 6       pages of it; their bytes follow
    command 0x1023, 0x1024   all is sent                answered by an int32: 0, it was received

An object is a task's memory (its number << 8 | 1) or shared memory (its number << 8 | 2). The first
message tells which of the two headers it is: it begins an object, whose number is not 0 and is
where the longer header has its address, which is 0.

Nothing that comes is trusted: it could be of another version than is known here.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lazyrestore.errors import CriuError

from .pagemap import LAZY, PAGE_BYTES, PRESENT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CutShort", "PageServer", "PagesTo"]

_SHORT = struct.Struct("<IIQQ")
_LONG = struct.Struct("<I4xQQQ")
_OPEN, _PAGES, _FLUSH, _FLUSH_AND_CLOSE = 4, 6, 0x1023, 0x1024
_TYPE_BITS = 8
_TASK, _SHARED = 1, 2
_PAGES_MAX = 1 << 36
_END_MAX = 1 << 64

_BUFFER_BYTES = 64 << 10

_VERSIONS = "take a version of CRIU from 3.17 to 4.2"


class CutShort(CriuError):
    """CRIU has ended in the middle; why is in its log."""

    def __init__(self) -> None:
        super().__init__("CRIU ended before it had sent all pages")


class PagesTo(Protocol):
    """Who the pages are for."""

    def open_task(self, pid: int) -> None:
        """The pages that follow are the memory of a task."""

    def open_shared(self, number: int) -> None:
        """The pages that follow are shared memory; addresses are offsets in it."""

    def add_pages(
        self, address: int, nbytes: int, flags: int, fetch: Callable[[memoryview], int]
    ) -> None:
        """Take all `nbytes` by `fetch`, as `ImageWriter.fill` does. In order of addresses."""


class _Message(NamedTuple):
    command: int
    flags: int
    pages: int
    address: int
    target: int


class PageServer:
    """The receiving end of one dump's pages.

    Args:
        connection: a stream socket that blocks; stays the caller's.
        pages: who they are for. What it raises is for the caller of `receive`.
    """

    def __init__(self, connection: socket.socket, pages: PagesTo) -> None:
        self._socket = connection
        self._pages = pages
        self._header: struct.Struct | None = None
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0  # of what is in the buffer
        self._missing = 0  # bytes of pages that are announced and not yet fetched
        self._seen: set[int] = set()
        self._open = 0
        self._next_address = 0
        self._is_complete = False
        self._has_ended = False

    @property
    def is_complete(self) -> bool:
        """True when CRIU has said that it has sent everything."""
        return self._is_complete

    @property
    def is_wide(self) -> bool:
        """True if CRIU gives numbers of pages in 64 bits."""
        return self._header is _LONG

    def receive(self) -> bool:
        """Handle what has come; does not wait for a message to begin, but for all of its pages.

        Returns:
            False: CRIU has closed its end. Whether it had sent all: `is_complete`.

        Raises:
            CriuError: CRIU has sent what it must not, or ended in the middle of some pages.
        """
        while self._has_header():
            self._handle(self._take_message())
        return not self._has_ended

    # ---- Messages --------------------------------------------------------------------------------

    def _handle(self, message: _Message) -> None:
        if self._is_complete:
            raise CriuError(f"CRIU has sent something after its last page: {_VERSIONS}")
        if message.command == _PAGES:
            self._take_pages(message)
        elif message.command == _OPEN:
            self._begin(message)
        elif message.command in (_FLUSH, _FLUSH_AND_CLOSE):
            if message.command == _FLUSH_AND_CLOSE:
                self._is_complete = True
            self._answer(struct.pack("<i", 0))
        else:
            raise CriuError(
                f"CRIU has sent a message that is not known (command {message.command:#x}, flags"
                f" {message.flags:#x}): {_VERSIONS}"
            )

    def _begin(self, message: _Message) -> None:
        kind, number = message.target & (1 << _TYPE_BITS) - 1, message.target >> _TYPE_BITS
        if message.flags or message.pages or message.address:
            raise CriuError(
                f"CRIU began an object of memory in an unknown way: {message}: {_VERSIONS}"
            )
        if message.target in self._seen:
            raise CriuError(
                f"CRIU has sent the memory {message.target:#x} a second time: {_VERSIONS}"
            )
        if kind == _TASK and 0 < number < 1 << 31:
            self._pages.open_task(number)
        elif kind == _SHARED:
            self._pages.open_shared(number)
        else:
            raise CriuError(
                f"CRIU has sent memory of an unknown kind: {message.target:#x}: {_VERSIONS}"
            )
        self._seen.add(message.target)
        self._open = message.target
        self._next_address = 0
        self._answer(b"\0")

    def _take_pages(self, message: _Message) -> None:
        if message.target != self._open or not self._open:
            raise CriuError(
                f"CRIU has sent pages of {message.target:#x} while {self._open:#x} was under way:"
                f" {_VERSIONS}"
            )
        if not message.flags & PRESENT or message.flags & ~(PRESENT | LAZY):
            raise CriuError(
                f"CRIU has sent a piece of memory with the flags {message.flags}: only whole dumps"
                " can be stored, not what has a parent or is to be fetched later: leave out such"
                " options"
            )
        nbytes = message.pages * PAGE_BYTES
        if (
            not 0 < message.pages <= _PAGES_MAX
            or message.address % PAGE_BYTES
            or message.address < self._next_address
            or message.address + nbytes > _END_MAX
        ):
            raise CriuError(
                f"CRIU has sent {message.pages} pages at {message.address:#x}, which cannot be:"
                f" the last ended at {self._next_address:#x}: {_VERSIONS}"
            )
        self._next_address = message.address + nbytes
        self._missing = nbytes
        self._pages.add_pages(message.address, nbytes, message.flags, self._fetch)
        assert not self._missing, "the pages were not all taken"

    def _answer(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)  # a few bytes: there is always room
        except OSError as error:
            raise CutShort from error

    # ---- Bytes -----------------------------------------------------------------------------------

    def _has_header(self, flags: int = socket.MSG_DONTWAIT) -> bool:
        """False: there is not a whole one yet, or nothing will come any more."""
        wanted = (self._header or _SHORT).size
        if self._start and self._end - self._start < wanted:
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        while self._end - self._start < wanted:
            try:
                got = self._socket.recv_into(self._buffer[self._end :], 0, flags)
            except BlockingIOError:
                return False
            except ConnectionError:
                got = 0
            if not got:
                self._has_ended = True
                return False
            self._end += got
        return True

    def _take_message(self) -> _Message:
        if self._header is None:
            command, _, _, last = _SHORT.unpack_from(self._buffer, self._start)
            self._header = _LONG if command == _OPEN and not last else _SHORT
            # If it is the longer one, the rest of it was sent by the same call.
            if not self._has_header(flags=0):
                raise CutShort
        command, *numbers = self._header.unpack_from(self._buffer, self._start)
        self._start += self._header.size
        return _Message(command & 0xFFFF, command >> 16, *numbers)

    def _fetch(self, view: memoryview) -> int:
        """Fill the view from what is announced: all of it, or as much as there is of that."""
        wanted = min(len(view), self._missing)
        done = min(wanted, self._end - self._start)
        view[:done] = self._buffer[self._start : self._start + done]
        self._start += done
        while done < wanted:
            try:
                got = self._socket.recv_into(view[done:wanted], 0, socket.MSG_WAITALL)
            except ConnectionError:
                got = 0
            if not got:
                raise CutShort
            done += got
        self._missing -= wanted
        return wanted
