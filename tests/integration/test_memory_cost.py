"""What restored memory costs: only the pages that were touched, and zero pages nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from restore_support import PAGE, run_in_child, write_image

import lazyrestore

pytestmark = pytest.mark.uffd

ZEROS = 256 << 20

# Which pages of a mapping are present, and this process's memory, as the kernel counts.
PRELUDE = """
import array, json, mmap, os, random, sys
import lazyrestore

PAGE = 4096

def present(address, length):
    count = -(-length // PAGE)
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        entries = array.array("Q", pagemap.read(count * 8))
    assert len(entries) == count
    return [number for number, entry in enumerate(entries) if entry >> 63]

def rss_bytes():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Rss:"))
"""


def in_child(script: str, *arguments: object) -> dict[str, int]:
    result: dict[str, int] = json.loads(run_in_child(PRELUDE + script, *arguments).stdout)
    return result


@pytest.mark.parametrize("kind", ["zero", "hole"])
def test_zeros_cost_no_memory_until_they_are_written(tmp_path: Path, kind: str) -> None:
    """256 MiB of zeros are read in full for less than 4 MiB; each page that is written costs one"""
    path = tmp_path / "zeros.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("memory")
        getattr(image, kind)(ZEROS)
    seen = in_child(
        """
with lazyrestore.restore(sys.argv[1], lazy=True, prefetch="none") as session:
    region = session["memory"]
    region[0], rss_bytes(), session.stats()  # whatever Python has to import for it
    before = rss_bytes()
    touched = region.touch()
    after = rss_bytes()
    read = session.stats()
    there = len(present(region.address, region.length))
    written = [7 * number + 3 for number in range(500)]
    before_writing = rss_bytes()
    for page in written:
        region[page * PAGE + 11] = 1
    wrote = rss_bytes()
    print(json.dumps({
        "touched": touched, "present": there, "grown": after - before,
        "zeroed": read.pages_zeroed, "copied": read.pages_copied,
        "resident_read": read.resident_bytes,
        "resident_written": session.stats().resident_bytes,
        "grown_written": wrote - before_writing,
    }))
""",
        path,
    )
    pages = ZEROS // PAGE
    assert seen["touched"] == seen["present"] == seen["zeroed"] == pages
    assert seen["copied"] == 0
    assert seen["resident_read"] == 0
    assert seen["grown"] < 4 << 20
    assert seen["resident_written"] == 500 * PAGE
    assert 500 * PAGE <= seen["grown_written"] < 500 * PAGE + (1 << 20)


def test_eager_zeros_cost_no_memory(tmp_path: Path) -> None:
    """lazy=False leaves zero pages to the kernel: nothing is resident but the data"""
    path = tmp_path / "state.lzr"
    write_image(path, {"memory": "zd" * 8 + "zh" * 500})
    with lazyrestore.restore(path, lazy=False) as session:
        assert session.stats().resident_bytes == 8 * PAGE


def test_exactly_the_touched_pages_are_there(tmp_path: Path) -> None:
    """4 KiB clusters, no fill: K data and Z zero pages give K+Z faults, K copies, Z zero pages"""
    path = tmp_path / "literal.lzr"
    layout = "dzhrddhhzz" * 40
    write_image(path, {"memory": layout}, cluster_size=PAGE)
    data = [number for number, kind in enumerate(layout) if kind in "dr"][::3]
    zeros = [number for number, kind in enumerate(layout) if kind in "zh"][::2]
    seen = in_child(
        """
pages = json.loads(sys.argv[2])
random.Random(5).shuffle(pages)
with lazyrestore.restore(sys.argv[1], lazy=True, prefetch="none") as session:
    region = session["memory"]
    empty = present(region.address, region.length)
    for page in pages * 2:
        region[page * PAGE + page % PAGE]
    stats = session.stats()
    print(json.dumps({
        "empty": empty, "present": present(region.address, region.length),
        "faults": stats.faults, "copied": stats.pages_copied, "zeroed": stats.pages_zeroed,
        "resident": stats.resident_bytes,
    }))
""",
        path,
        json.dumps(data + zeros),
    )
    assert seen["empty"] == []
    assert seen["faults"] == len(data) + len(zeros)
    assert seen["copied"] == len(data)
    assert seen["zeroed"] == len(zeros)
    assert seen["present"] == sorted(data + zeros)
    assert seen["resident"] == len(data) * PAGE


def test_writes_count_as_touches(tmp_path: Path) -> None:
    """Writing to a missing zero page: one fault, one ZEROPAGE, and then one page of memory"""
    path = tmp_path / "written.lzr"
    write_image(path, {"memory": "zd" * 64}, cluster_size=PAGE)
    seen = in_child(
        """
with lazyrestore.restore(sys.argv[1], lazy=True, prefetch="none") as session:
    region = session["memory"]
    for page in range(0, 20):
        region[page * PAGE + 9] = 77
    stats = session.stats()
    print(json.dumps({
        "faults": stats.faults, "copied": stats.pages_copied, "zeroed": stats.pages_zeroed,
        "resident": stats.resident_bytes, "present": present(region.address, region.length),
        "kept": [region[page * PAGE + 9] for page in range(20)],
        "beside": [region[page * PAGE + 8] != 0 for page in range(20)],
    }))
""",
        path,
    )
    assert seen["faults"] == 20
    assert seen["copied"] == seen["zeroed"] == 10
    assert seen["present"] == list(range(20))
    assert seen["resident"] == 20 * PAGE
    assert seen["kept"] == [77] * 20
    assert seen["beside"] == [False, True] * 10
