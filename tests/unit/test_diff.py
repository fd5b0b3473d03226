"""`lazyrestore.diff`: against the bytes of both images, read and compared page by page."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from restore_support import PAGE, flip, page_of, payloads, write_image

import lazyrestore
from lazyrestore import DiffReport, ImageWriter
from lazyrestore._diff_pages import _Worker
from lazyrestore.reports import DiffPart, RegionDiff


def ranges_of(region: RegionDiff) -> set[int]:
    """Numbers of the pages that differ."""
    return {
        page
        for offset, length in region.ranges
        for page in range(offset // PAGE, -(-(offset + length) // PAGE))
    }


def check(a: Path, b: Path, **options: object) -> DiffReport:
    """Both ways round, against what both read as; the report of a and b."""
    report = lazyrestore.diff(a, b, limit=1 << 30, **options)  # type: ignore[arg-type]
    back = lazyrestore.diff(b, a, limit=1 << 30, **options)  # type: ignore[arg-type]
    assert (report.same, report.different_pages) == (back.same, back.different_pages)
    with lazyrestore.open(a) as one, lazyrestore.open(b) as other:
        for region in report.regions:
            length = region.length
            first = one.read(region.name, region.offset, length)
            second = other.read(region.other_name, region.other_offset, length)
            pages = {
                (region.offset + at) // PAGE
                for at in range(0, length, PAGE)
                if first[at : at + PAGE] != second[at : at + PAGE]
            }
            assert ranges_of(region) == pages
            assert region.different_pages == len(pages) == sum(region.states.values())
            assert region.range_count == len(region.ranges)
            assert sum(nbytes for _, nbytes in region.ranges) == region.different_bytes
    return report


def write(path: Path, layouts: Mapping[str, bytes], **options: object) -> Path:
    with ImageWriter(path, **options) as image:  # type: ignore[arg-type]
        for name, data in layouts.items():
            image.add_region(name)
            image.write(data)
    return path


def test_the_same_content(tmp_path: Path) -> None:
    """Whatever level, cluster size and page size it was written with"""
    draw = random.Random(1)
    data = b"".join(
        draw.choice((page_of(n), bytes(PAGE), draw.randbytes(PAGE))) for n in range(700)
    )
    memory = {"a": data + b"tail", "b": b"", "c": data[: 5 * PAGE]}
    paths = [
        write(tmp_path / f"{number}.lzr", memory, **options)
        for number, options in enumerate(
            (
                {},
                {"level": 12},
                {"cluster_size": 4096},
                {"cluster_size": 2 << 20, "level": 1},
                {"page_size": 16384},
                {"page_size": 65536, "cluster_size": 262144},
            )
        )
    ]
    for path in paths[1:]:
        report = check(paths[0], path)
        assert report.same
        assert report.page_size == PAGE
        assert report.pages == 701 + 5


@pytest.mark.parametrize("seed", range(6))
def test_random_changes(tmp_path: Path, seed: int) -> None:
    """Any pages, any two ways to write them, regions that end in the middle of a page"""
    draw = random.Random(seed)
    layouts: list[dict[str, bytes]] = [{}, {}]
    for number in range(4):
        pages = draw.randrange(1, 600)
        before = [draw.choice((page_of(n), bytes(PAGE), page_of(n, 7))) for n in range(pages)]
        after = list(before)
        for _ in range(draw.randrange(30)):
            at = draw.randrange(pages)
            page = bytearray(after[at])
            page[draw.randrange(PAGE)] ^= 1
            after[at] = draw.choice((bytes(page), bytes(PAGE), page_of(at, 9)))
        tail = draw.randbytes(draw.randrange(PAGE))
        layouts[0][f"r{number}"] = b"".join(before) + tail
        layouts[1][f"r{number}"] = b"".join(after) + tail[: draw.randrange(len(tail) + 1)]
    sizes = ({"cluster_size": draw.choice((4096, 16384, 65536, 1 << 20))} for _ in layouts)
    paths = [
        write(tmp_path / f"{number}.lzr", memory, **options)
        for number, (memory, options) in enumerate(zip(layouts, sizes, strict=True))
    ]
    report = check(*paths)
    assert not report.same


def test_pages_of_two_sizes(tmp_path: Path) -> None:
    """One byte in 64 KiB pages: the 4 KiB around it"""
    data = bytearray(b"".join(map(page_of, range(64))))
    a = write(tmp_path / "a.lzr", {"m": bytes(data)})
    data[37 * PAGE + 5] ^= 1
    data[63 * PAGE : 64 * PAGE] = bytes(PAGE)
    b = write(tmp_path / "b.lzr", {"m": bytes(data)}, page_size=65536, cluster_size=65536)
    (region,) = check(a, b).regions
    assert ranges_of(region) == {37, 63}
    assert region.states == {"data, data": 2}  # its page is data, though this part of it is zeros


def test_what_pages_were_and_are(tmp_path: Path) -> None:
    """By states; zero pages and holes read alike"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    write_image(a, {"m": "dddd" + "zzzz" + "hhhh" + "dzh"})
    write_image(b, {"m": "dzhr" + "zdhd" + "hzdd" + "dzh"}, cluster_size=4096)
    report = check(a, b)
    (region,) = report.regions
    assert region.states == {
        "data, data": 1,
        "data, zero": 1,
        "data, hole": 1,
        "zero, data": 2,
        "hole, data": 2,
    }
    assert region.zero_pages == 2
    assert ranges_of(region) == {1, 2, 3, 5, 7, 10, 11}


def test_zero_is_like_a_hole(tmp_path: Path) -> None:
    """Runs of them, of any length, take no time; it is said, and is no difference"""
    paths = []
    for kind in ("zero", "hole"):
        paths.append(tmp_path / f"{kind}.lzr")
        with ImageWriter(paths[-1]) as image:
            image.add_region("m")
            getattr(image, kind)(1 << 50)
            image.write(b"x")
            getattr(image, kind)((1 << 40) + 1)
    report = lazyrestore.diff(*paths)
    assert report.same
    assert report.regions[0].zero_pages == (1 << 38) + (1 << 28)
    with lazyrestore.open(paths[0]) as image:
        assert image.digest != lazyrestore.open(paths[1]).digest


def test_what_is_said_of_regions(tmp_path: Path) -> None:
    """Length, protection, sharing and metadata; not the address"""
    paths = []
    for number in (0, 1):
        paths.append(tmp_path / f"{number}.lzr")
        with ImageWriter(paths[-1]) as image:
            image.add_region("alike", address=0x10000 * (1 + number), metadata={"a": [1]})
            image.write(page_of(1))
            image.add_region(
                "other", protection=3 + number, shared=bool(number), metadata={"a": number}
            )
            image.write(page_of(2) + b"x" * number)
    report = check(*paths)
    alike, other = report.regions
    assert alike.changes == ()
    assert other.changes == (
        ("length", PAGE, PAGE + 1),
        ("metadata", {"a": 0}, {"a": 1}),
        ("protection", 3, 4),
        ("shared", False, True),
    )
    assert report.different_pages == 0
    assert not report.same
    assert lazyrestore.diff(*paths, regions=["alike"]).same


def test_regions_of_one_image(tmp_path: Path) -> None:
    """Listed as a whole"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    write_image(a, {"m": "d", "gone": "dd", "void": ""})
    write_image(b, {"come": "ddd", "m": "d"})
    report = check(a, b)
    assert not report.same
    assert report.only_a == (DiffPart("gone", 0, 2 * PAGE), DiffPart("void", 0, 0))
    assert report.only_b == (DiffPart("come", 0, 3 * PAGE),)
    assert lazyrestore.diff(a, b, regions=["gone"]).only_b == ()
    with pytest.raises(lazyrestore.RegionNotFound, match="nix"):
        lazyrestore.diff(a, b, regions=["m", "nix"])
    with pytest.raises(TypeError, match=r"\['gone'\]"):
        lazyrestore.diff(a, b, regions="gone")


def test_processes_whose_memory_moved(tmp_path: Path) -> None:
    """What is named for its address belongs together where the addresses overlap"""
    base = 0x7F0000000000
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"

    def add(image: ImageWriter, owner: str, first: int, last: int, salt: int = 0) -> None:
        start = base + first * PAGE
        image.add_region(f"{owner}{start:x}-{base + last * PAGE:x}", address=start)
        image.write(b"".join(page_of(n, salt) for n in range(first, last)))

    with ImageWriter(a) as image:
        add(image, "7/", 3, 40)
        add(image, "7/", 50, 60)
        add(image, "7/", 70, 71)
        add(image, "8/", 100, 110)
    with ImageWriter(b, cluster_size=16384) as image:
        add(image, "7/", 0, 10)
        add(image, "7/", 20, 55, salt=1)
        add(image, "8/", 70, 71)
        add(image, "8/", 100, 111)
    report = check(a, b)
    parts = [
        (each.offset // PAGE, each.other_offset // PAGE, each.pages) for each in report.regions
    ]
    assert parts == [(0, 3, 7), (17, 0, 20), (0, 30, 5), (0, 0, 10)]
    assert [each.different_pages for each in report.regions] == [0, 20, 5, 0]
    gone = [(each.offset // PAGE, each.length // PAGE) for each in report.only_a]
    assert gone == [(7, 10), (5, 5), (0, 1)]
    come = [(each.offset // PAGE, each.length // PAGE) for each in report.only_b]
    assert come == [(0, 3), (20, 10), (0, 1), (10, 1)]


def test_files(tmp_path: Path) -> None:
    """Those of one image, and those of both with other contents"""
    paths = []
    for number, names in enumerate(("abc", "bcd")):
        paths.append(tmp_path / f"{number}.lzr")
        with ImageWriter(paths[-1]) as image:
            for name in names:
                image.add_file(name, b"alike" if name == "b" else bytes([number]))
            image.add_region("m")
            image.write(page_of(1))
    report = check(*paths)
    assert report.files.only_a == ("a",)
    assert report.files.only_b == ("d",)
    assert report.files.different == ("c",)
    assert not report.same
    assert lazyrestore.diff(*paths, regions=["m"]).same


def test_a_limit(tmp_path: Path) -> None:
    """Of what is listed; all is counted. What touches from one piece to the next is one range"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    write_image(a, {"m": "dz" * 300})
    write_image(b, {"m": "zz" * 300})
    (region,) = lazyrestore.diff(a, b, limit=7).regions
    assert (region.range_count, len(region.ranges)) == (300, 7)
    write_image(b, {"m": "dd" * 1500})
    write_image(a, {"m": "dd" * 1500}, salt=3)
    (region,) = lazyrestore.diff(a, b, limit=1).regions
    assert region.ranges == ((0, 3000 * PAGE),)


def test_damaged_clusters(tmp_path: Path) -> None:
    """In either image: what is lost is said, all else is compared"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    write_image(a, {"m": "d" * 160 + "dz" * 8})
    write_image(b, {"m": "d" * 64 + "r" + "d" * 95 + "dd" * 8})
    for path, clusters in ((a, (2, 10)), (b, (3,))):
        places = payloads(path, "m")
        for cluster in clusters:
            flip(path, places[cluster][0])
    report = lazyrestore.diff(a, b)
    (region,) = report.regions
    assert region.unreadable_pages == 16 + 16 + 8
    # In the last cluster every other page is zero, which no damage of the data hides.
    assert ranges_of(region) == {64, *range(161, 176, 2)}
    found = [(each.path, each.damage.offset, each.damage.length) for each in report.damage]
    assert found == [
        (str(a), 2 * 65536, 65536),
        (str(b), 3 * 65536, 65536),
        (str(a), 10 * 65536, 65536),
    ]
    assert all("checksum" in each.damage.reason for each in report.damage)
    assert not report.same


def test_the_same_damage_in_both(tmp_path: Path) -> None:
    """Two files that are the same byte for byte, and a cluster that neither gives back"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    write_image(a, {"m": "d" * 64})
    flip(a, payloads(a, "m")[1][0])
    b.write_bytes(a.read_bytes())
    report = lazyrestore.diff(a, b)
    assert not report.same
    assert report.regions[0].unreadable_pages == 16


def test_equal_checksums_are_no_proof(tmp_path: Path) -> None:
    """An index that has the other one's checksum, with other bytes below"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    data = bytearray(random.Random(1).randbytes(PAGE))
    write(a, {"m": bytes(data)})
    # CRC32C is linear: what is XORed here changes no checksum of any length.
    pattern = (0x11EDC6F41).to_bytes(5, "big")
    reflected = bytes(int(f"{byte:08b}"[::-1], 2) for byte in pattern)
    for at, byte in enumerate(reflected):
        data[100 + at] ^= byte
    write(b, {"m": bytes(data)})
    with lazyrestore.open(a) as one, lazyrestore.open(b) as other:
        entries = [image.reader().cluster(0) for image in (one, other)]
        assert entries[0].crc32c == entries[1].crc32c
        assert entries[0].payload_bytes == entries[1].payload_bytes == PAGE
    (region,) = check(a, b).regions
    assert region.different_pages == 1


def test_what_is_stored_alike_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of the same bytes, and one with itself; where one page differs, its cluster is"""
    a, b, c = (tmp_path / f"{name}.lzr" for name in "abc")
    write_image(a, {"m": "dr" * 800})
    write_image(b, {"m": "dr" * 800})
    write_image(c, {"m": "dr" * 400 + "rr" + "dr" * 399})
    read: list[int] = []
    real = _Worker._read

    def note(self: _Worker, piece: object, side: int, start: int, room: bytearray) -> None:
        read.append(len(room))
        real(self, piece, side, start, room)  # type: ignore[arg-type]

    monkeypatch.setattr(_Worker, "_read", note)
    assert lazyrestore.diff(a, b).same
    assert lazyrestore.diff(a, a).same
    assert read == []
    assert lazyrestore.diff(a, c).different_pages == 1
    assert sum(read) == 2 * 65536


def test_open_images_stay_open(tmp_path: Path) -> None:
    """And threads do not matter"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    write_image(a, {"m": "d" * 2000})
    write_image(b, {"m": "d" * 1999 + "z"})
    told: list[tuple[int, int | None]] = []
    with lazyrestore.open(a) as one, lazyrestore.open(b) as other:
        first = lazyrestore.diff(one, other, threads=1, progress=lambda *of: told.append(of))
        second = lazyrestore.diff(one, b, threads=5)
        assert one.read("m", 0, 8) == page_of(0)[:8]
        assert first.regions == second.regions
    assert told[-1] == (2000 * PAGE, 2000 * PAGE)
