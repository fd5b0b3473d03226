"""`lazyrestore._map`: what is where, against each cluster looked up by itself."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest
from image_files import SOUND, sound
from image_surgery import Surgery
from restore_support import PAGE, flip, write_image

import lazyrestore
from lazyrestore import _map
from lazyrestore._clusters import LISTED, Index
from lazyrestore._map import (
    DATA,
    DATA_KINDS,
    HOLE,
    KINDS,
    PLANES,
    RAW,
    REPEAT,
    UNKNOWN,
    ZERO,
    survey,
)
from lazyrestore._open import Image


def expected(image: Image, drawn: _map.ImageMap) -> list[tuple[list[int], list[int], int]]:
    """(bytes of each kind, pages of each kind in each cell, stored bytes), cluster by cluster."""
    seen: set[int] = set()
    found = []
    with image.reader() as reader:
        for number, region in enumerate(image.regions):
            nbytes, stored = [0] * KINDS, 0
            count = -(-region.length // image.cluster_size)
            cells = [0] * (KINDS * -(-count // drawn.cell_clusters))
            for cluster in range(count):
                info = reader.cluster(image.first_cluster(number) + cluster)
                kind = PLANES if info.planes else RAW if info.kind == 3 else DATA
                if info.payload_bytes:
                    if info.payload_offset in seen:
                        kind = REPEAT
                    else:
                        stored += info.payload_bytes
                    seen.add(info.payload_offset)
                for page in range(info.pages):
                    state = info.states[page // 32] >> (2 * (page % 32)) & 3
                    what = (HOLE, ZERO, kind)[state]
                    cells[cluster // drawn.cell_clusters * KINDS + what] += 1
                    start = cluster * image.cluster_size + page * image.page_size
                    nbytes[what] += min(image.page_size, region.length - start)
            found.append((nbytes, cells, stored))
    return found


def check(image: Image, columns: int = 8, rows: int = 4) -> _map.ImageMap:
    drawn = survey(image, columns, rows)
    assert not drawn.damage
    for region, (nbytes, cells, stored) in zip(drawn.regions, expected(image, drawn), strict=True):
        assert (region.bytes, list(region.cells)) == (nbytes, cells)
        assert region.stored_bytes == stored
        assert sum(region.bytes) == region.region.length
    lines = sum(-(-region.cell_count // columns) for region in drawn.regions)
    assert lines <= rows + sum(1 for region in drawn.regions if region.clusters)
    return drawn


@pytest.mark.parametrize("name", [name for name in SOUND if name != "tall_tree"])
def test_golden_images(name: str) -> None:
    """Each page of each, and the tallies that the image itself has"""
    with lazyrestore.open(sound(name)) as image:
        drawn = check(image)
        info = image.info
    sums = [sum(region.bytes[kind] for region in drawn.regions) for kind in range(KINDS)]
    assert sums[ZERO] == info.zero_bytes
    assert sums[HOLE] == info.hole_bytes
    assert sum(sums[kind] for kind in DATA_KINDS) == info.data_bytes
    assert sums[REPEAT] == info.duplicate_bytes


def test_what_is_too_long_to_look_at_each() -> None:
    """The tallies of the image with the tallest tree, at once"""
    with lazyrestore.open(sound("tall_tree")) as image:
        drawn = survey(image, 64, 20)
        info = image.info
    assert sum(region.bytes[ZERO] for region in drawn.regions) == info.zero_bytes
    assert sum(region.bytes[HOLE] for region in drawn.regions) == info.hole_bytes
    assert sum(region.data_bytes for region in drawn.regions) == info.data_bytes


@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 << 20])
def test_random_layouts(tmp_path: Path, cluster_size: int) -> None:
    """Regions of all lengths, with repeats, and the same after optimize put them elsewhere"""
    draw = random.Random(cluster_size)
    layouts = {
        f"r{number}": "".join(draw.choice("dzhr") * draw.randrange(40) for _ in range(number * 3))
        for number in range(9)
    }
    layouts["again"] = layouts["r8"]
    path, other = tmp_path / "a.lzr", tmp_path / "b.lzr"
    write_image(path, layouts, cluster_size=cluster_size)
    with lazyrestore.open(path) as image:
        drawn = check(image)
        count = image.cluster_count
        hot = draw.sample(range(count), count // 3)
        kept = lazyrestore.WorkingSet(
            image.digest, cluster_size, count, array("Q", hot), array("Q", [0] * len(hot))
        )
        lazyrestore.optimize(path, kept, other)
        marked = survey(image, 8, 4, kept)
    assert sum(region.hot_clusters for region in marked.regions) == len(hot)
    assert sum(sum(region.hot) for region in marked.regions) == len(hot)
    with lazyrestore.open(other) as image:
        again = check(image)
    assert [each.bytes for each in again.regions] == [each.bytes for each in drawn.regions]
    assert any(each.bytes[REPEAT] for each in drawn.regions)


def test_a_cell_fits_the_picture() -> None:
    """As few clusters a cell as there is room for"""
    assert _map.clusters_per_cell([64 * 21], 64, 20) == 1
    assert _map.clusters_per_cell([64 * 21 + 1], 64, 20) == 2
    assert _map.clusters_per_cell([1] * 5000, 64, 20) == 1
    assert _map.clusters_per_cell([1 << 46], 64, 20) == 1 << 36
    assert _map.clusters_per_cell([], 64, 20) == 1


def test_a_damaged_node(tmp_path: Path) -> None:
    """What lies below it is unknown, all else is there, and the place is said"""
    path = tmp_path / "x.lzr"
    write_image(path, {"a": "d" * 700, "b": "d" * 20}, cluster_size=PAGE)
    with lazyrestore.open(path) as image:
        index = Index(image)
        list(index.stretches(0, 1))
        child = index._kept[0][0]
    flip(path, child[0] + 20)
    with lazyrestore.open(path) as image:
        drawn = survey(image, 64, 20)
    first, second = drawn.regions
    assert first.bytes[UNKNOWN] == 256 * PAGE
    assert first.bytes[DATA] == 444 * PAGE
    assert second.data_bytes == 20 * PAGE
    (damage,) = drawn.damage
    assert (damage.region, damage.offset, damage.length) == ("a", 0, 256 * PAGE)
    assert f"byte {child[0]} of the file" in damage.reason


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", 0), ("kind", 9), ("offset", 1 << 60), ("bytes", 1 << 20), ("reserved", 255)],
)
def test_an_entry_that_contradicts_itself(tmp_path: Path, field: str, value: int) -> None:
    """Unknown, where the core refuses it too"""
    path = tmp_path / "x.lzr"
    write_image(path, {"a": "dzhd" * 8}, cluster_size=4 * PAGE)
    surgery = Surgery(path.read_bytes())
    entries = [each for each in surgery.fields() if each.name == f"entry.{field}"]
    entries[3].put(surgery.data, value)
    path.write_bytes(surgery.reseal())
    with lazyrestore.open(path) as image:
        with image.reader() as reader, pytest.raises(lazyrestore.ClusterError):
            reader.data(3) and reader.cluster(3)
        drawn = survey(image, 64, 20)
    (damage,) = drawn.damage
    assert (damage.offset, damage.length) == (3 * 4 * PAGE, 4 * PAGE)
    assert drawn.regions[0].bytes[UNKNOWN] == 4 * PAGE
    assert drawn.regions[0].bytes[DATA] == 7 * 2 * PAGE


def test_neighbours_that_are_lost(tmp_path: Path) -> None:
    """Are one damage, in their region"""
    path = tmp_path / "x.lzr"
    write_image(path, {"a": "d" * 40, "b": "d" * 40}, cluster_size=4 * PAGE)
    surgery = Surgery(path.read_bytes())
    kinds = [each for each in surgery.fields() if each.name == "entry.kind"]
    for number in (3, 4, 5, 8, 9, 10, 11):
        kinds[number].put(surgery.data, 7)
    path.write_bytes(surgery.reseal())
    with lazyrestore.open(path) as image:
        damage = survey(image, 64, 20).damage
    assert [(each.region, each.cluster, each.length) for each in damage] == [
        ("a", 3, 12 * PAGE),
        ("a", 8, 8 * PAGE),
        ("b", 10, 8 * PAGE),
    ]


def test_entries_are_believed_where_the_core_believes_them() -> None:
    """Of each golden image, each cluster's pages"""
    for name in SOUND:
        with lazyrestore.open(sound(name)) as image, image.reader() as reader:
            index = Index(image)
            for stretch in index.stretches(0, min(image.cluster_count, 3000)):
                for number, entry in enumerate(stretch.entries, stretch.first):
                    info = reader.cluster(number)
                    tally = index.tally(entry, info.pages)
                    assert tally is not None
                    assert tally[0] == info.data_pages
                assert stretch.kind != LISTED or len(stretch.entries) == stretch.count
