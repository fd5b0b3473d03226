"""A memory cgroup that is smaller than a region: the fill stops short of it, and nobody is killed.

Real cgroups, v1 or v2. What runs in them is a process of its own. Loads that find no memory at all
are in tests/c/test_memory_limit.c: there nothing but the pager allocates.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroup_support import Cgroup, cgroup
from restore_support import PAGE, page_of, run_in_child

import lazyrestore

MIB = 1 << 20
REGION = 192 * MIB
LIMIT = 96 * MIB

pytestmark = [pytest.mark.uffd, pytest.mark.root]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One region that no limit here has room for, each page with its number in it."""
    path = tmp_path_factory.mktemp("pressure") / "large.lzr"
    write_numbered(path, REGION)
    return path


def write_numbered(path: Path, size: int) -> None:
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("data")
        for start in range(0, size // PAGE, 256):
            image.write(b"".join(page_of(number) for number in range(start, start + 256)))


@pytest.fixture
def narrow() -> Iterator[Cgroup]:
    with cgroup(LIMIT) as made:
        yield made


# Checks each page's number, gives what lies behind back as it goes on, and so needs little room.
WALK = """
import mmap, sys, time
import lazyrestore
MIB = 1 << 20
path, folder = sys.argv[1], sys.argv[2]
def walk(region, start, end, give_back=True):
    for window in range(start, end, 4 * MIB):
        stop = min(window + 4 * MIB, end)
        for offset in range(window, stop, 4096):
            first, last = region[offset : offset + 8], region[offset + 4088 : offset + 4096]
            assert first == last == (offset // 4096 + 1).to_bytes(8, "little"), offset
        if give_back:
            region.madvise(mmap.MADV_DONTNEED, window, stop - window)
"""


def test_the_fill_stops_short_of_the_limit(large: Path, narrow: Cgroup) -> None:
    """And what it left comes on demand, as far as the limit, and then as memory is given back"""
    script = f"""{WALK}
from cgroup_support import Cgroup
from pathlib import Path
cgroup = Cgroup(Path(folder), is_v1=(Path(folder) / "memory.limit_in_bytes").exists())
limit = {LIMIT}
with lazyrestore.restore(path, lazy=True, prefetch="all") as session:
    region = session["data"]
    assert session.wait() is False
    assert session.stats().fill == "stopped", session.stats().fill
    assert session.wait(0) is False  # and that does not change
    used, filled = cgroup.used, region.resident_bytes
    assert limit - used >= 12 * MIB, (used, filled)  # a margin of 16, and some noise
    assert limit - used <= 40 * MIB, (used, filled)  # not much earlier than it has to
    assert 24 * MIB <= filled < limit, (used, filled)
    # What was not filled, from the end on, as far as there is room.
    offset = len(region)
    while limit - cgroup.used > 6 * MIB:
        offset -= MIB
        walk(region, offset, offset + MIB, give_back=False)
    assert offset < len(region) - 4 * MIB
    assert region.resident_bytes > filled
    # And all the rest as what was there before is given back.
    region.madvise(mmap.MADV_DONTNEED, offset, len(region) - offset)
    walk(region, 0, offset)
    assert not session.errors
    print("right")
"""
    before = narrow.kills
    result = run_in_child(script, large, narrow.path, wrap=narrow.wrap(), timeout=120)
    assert result.stdout == "right\n"
    assert narrow.kills == before


def test_the_fill_stops_short_of_an_ancestors_limit(large: Path, narrow: Cgroup) -> None:
    inner = narrow.add_child()
    try:
        script = f"""{WALK}
with lazyrestore.restore(path, lazy=True, prefetch="all") as session:
    assert session.wait() is False
    assert session.stats().fill == "stopped", session.stats().fill
    walk(session["data"], 0, len(session["data"]))
    print("right")
"""
        result = run_in_child(script, large, inner.path, wrap=inner.wrap(), timeout=120)
        assert result.stdout == "right\n"
        assert narrow.kills == inner.kills == 0
    finally:
        inner.remove()


def test_with_room_for_all_the_fill_completes(large: Path, narrow: Cgroup) -> None:
    narrow.set_limit(REGION + LIMIT)
    script = f"""{WALK}
with lazyrestore.restore(path, lazy=True, prefetch="all") as session:
    assert session.wait() is True
    assert session.stats().fill == "complete", session.stats().fill
    copied = session.stats().pages_copied
    assert copied * 4096 == len(session["data"])
    walk(session["data"], 0, len(session["data"]))
    assert session.stats().pages_copied == copied
    print("right")
"""
    result = run_in_child(script, large, narrow.path, wrap=narrow.wrap(), timeout=120)
    assert result.stdout == "right\n"
    assert narrow.kills == 0


def test_demand_loads_work_to_the_limit_and_beyond_it_as_memory_comes_back(
    large: Path, narrow: Cgroup
) -> None:
    script = f"""{WALK}
with lazyrestore.restore(path, lazy=True, prefetch="none") as session:
    walk(session["data"], 0, len(session["data"]))
    assert not session.errors
    print("right")
"""
    result = run_in_child(script, large, narrow.path, wrap=narrow.wrap(), timeout=120)
    assert result.stdout == "right\n"
    assert narrow.kills == 0
