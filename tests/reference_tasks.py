"""What workers of several kinds do with references in tests/integration/test_references.py."""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple

import numpy

import lazyrestore
from lazyrestore import _references


class Found(NamedTuple):
    """What a worker saw."""

    pid: int
    total: int
    sessions: int  # in its process
    userfaultfds: int
    lazy: bool
    resident_bytes: int
    faults: int  # of all sessions of its process


def userfaultfds() -> int:
    """Descriptors of this process that are userfaultfds."""
    folder = "/proc/self/fd"
    links = []
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # closed by another thread meanwhile
            links.append(os.readlink(os.path.join(folder, fd)))
    return sum("userfaultfd" in link and not link.startswith("/dev") for link in links)


def add(memory: Any, start: int, stop: int) -> Found:
    """Add numbers of a region, or of the one named "numbers" of a session or of arrays."""
    if isinstance(memory, lazyrestore.Arrays):
        region, array = memory.session["numbers"], memory["numbers"]
    else:
        region = memory["numbers"] if isinstance(memory, lazyrestore.Session) else memory
        array = region.array()
    before = array[start : start + 1].copy()
    total = int(array[start:stop].sum())
    array[start:stop] += 1  # which stays here
    array[start:stop] -= 1
    assert array[start] == before[0]
    return Found(
        os.getpid(),
        total,
        len(_references._sessions),
        userfaultfds(),
        region._core is not None,
        region.resident_bytes,
        sum(shared.session.faults for shared in _references._sessions.values()),
    )


def add_chunk(arguments: tuple[Any, int, int]) -> Found:
    """The same, for a map."""
    return add(*arguments)


def negate(region: lazyrestore.Region) -> int:
    """Change what it holds here; its first number."""
    array = region.array()
    numpy.negative(array, out=array)
    return int(array[1])
