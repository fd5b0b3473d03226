"""Folders that build on one another, against a model of single pages."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyrestore._criu.flatten import NOWHERE, Piece, entries_of, flatten
from lazyrestore._criu.layout import Placer, RegionTable, length_of, object_of, pagemap_name
from lazyrestore._criu.pagemap import PAGE_BYTES, Pagemap
from lazyrestore.reports import RegionInfo


@st.composite
def levels(draw):
    """Pagemaps over some 40 pages, the newest first; None where a folder has none."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        entries, at = [], 0
        for gap, pages, flags in draw(
            st.lists(
                st.tuples(st.integers(0, 3), st.integers(1, 6), st.sampled_from([1, 4, 6])),
                max_size=12,
            )
        ):
            entries.append(((at + gap) * PAGE_BYTES, pages, flags))
            at += gap + pages
        found.append(Pagemap(1, entries) if draw(st.integers(0, 9)) else None)
    return found


def model(found):
    """{page: (flags, level, number of the page in its file)}, a page at a time."""
    below = {}
    for level in reversed(range(len(found))):
        here, number = {}, 0
        for address, pages, flags in found[level].entries if found[level] else ():
            for page in range(address // PAGE_BYTES, address // PAGE_BYTES + pages):
                if flags & 4:
                    here[page] = (flags, level, number)
                    number += 1
                else:
                    here[page] = below.get(page, (4, NOWHERE, 0))
        below = here
    return below


@given(levels())
def test_each_page_is_found_where_it_is(found):
    pieces = flatten(found)
    pages = {}
    for piece in pieces:
        assert piece.nbytes > 0
        for at in range(0, piece.nbytes, PAGE_BYTES):
            offset = (piece.offset + at) // PAGE_BYTES if piece.level != NOWHERE else 0
            page = (piece.address + at) // PAGE_BYTES
            assert page not in pages
            pages[page] = (piece.flags, piece.level, offset)
    assert pages == model(found)
    assert [piece.address for piece in pieces] == sorted(piece.address for piece in pieces)
    listed = {}
    for address, count, flags in entries_of(pieces):
        for page in range(address // PAGE_BYTES, address // PAGE_BYTES + count):
            listed[page] = flags
    assert listed == {page: flags for page, (flags, _, _) in model(found).items()}


def test_a_thousand_folders_are_not_too_many():
    newest = [Pagemap(1, [(0, 1000, 1)])] * 999
    oldest = Pagemap(1, [(0, 500, 6), (500 * PAGE_BYTES, 500, 4)])
    half = 500 * PAGE_BYTES
    assert flatten([*newest, oldest]) == [
        Piece(0, half, 6, 999, 0),
        Piece(half, half, 4, 999, half),
    ]


class Regions:
    """A sink that only notes what regions it gets."""

    def __init__(self, cluster_size):
        self.cluster_size = cluster_size
        self.regions = []

    def add_region(self, name, *, address=0, protection=3, shared=False, metadata=None, width=0):
        self.regions.append([name, address, 0, shared])

    def rename_region(self, name):
        self.regions[-1][0] = name

    def hole(self, nbytes):
        assert nbytes >= 0
        self.regions[-1][2] += nbytes


RUNS = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 50)), max_size=30)


@given(RUNS, st.sampled_from([4096, 65536, 2 << 20]), st.sampled_from(["17", "shmem-5"]))
def test_regions_begin_at_clusters_and_hold_all_pages(gaps, cluster_size, name):
    sink = Regions(cluster_size)
    placer = Placer(sink, name)
    runs, at = [], 0
    for gap, pages in gaps:
        at += gap * PAGE_BYTES
        placer.place(at, pages * PAGE_BYTES)
        sink.regions[-1][2] += pages * PAGE_BYTES
        runs.append((at, pages * PAGE_BYTES))
        at += pages * PAGE_BYTES
    placer.finish()
    infos = []
    before = 0
    for text, address, length, shared in sink.regions:
        start, end = (int(part, 16) for part in text.removeprefix(f"{name}/").split("-"))
        assert end - start == length
        assert start % cluster_size == 0
        assert start >= before  # never over one another
        assert address == (0 if name.startswith("shmem") else start)
        assert shared == name.startswith("shmem")
        infos.append(RegionInfo(text, address, length, 3, shared))
        before = end
    assert sum(info.length for info in infos) == length_of(runs, cluster_size)
    table = RegionTable([RegionInfo("other/0-1000000", 0, 1 << 24, 3), *infos])
    for address, nbytes in runs:
        start, end, number = table.find(name, address)
        assert start <= address
        assert address + nbytes <= end
        assert infos[number - 1].name == f"{name}/{start:x}-{end:x}"
    assert table.find(name, 1 << 50) is None
    assert table.find("18", 0) is None
    # What lies near is in one region: at most one for each gap of more than 1 MiB or a cluster.
    limit = max(1 << 20, cluster_size)
    wide = sum(
        later - (first + nbytes) > limit for (first, nbytes), (later, _) in itertools.pairwise(runs)
    )
    assert len(infos) == (wide + 1 if runs else 0)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("pagemap-7.img", "7"),
        ("pagemap-shmem-57.img", "shmem-57"),
        ("pagemap-7.img.bak", None),
        ("pagemap-7", None),
        ("pagemap-.img", None),
        ("pagemap-shmem-.img", None),
        ("pagemap-shmem-shmem-5.img", None),
        ("pagemap-x.img", None),
        ("pagemap-٣.img", None),
        ("pages-7.img", None),
        ("xpagemap-7.img", None),
    ],
)
def test_pagemaps_are_known_by_their_names(name, found):
    assert object_of(name) == found
    if found:
        assert pagemap_name(found) == name
