"""CoreFile: which memory of a core file is in the image, and what is refused."""

from __future__ import annotations

import os
import random
import struct

import pytest
from core_support import PAGE, Part, build, file_note, note, process_note, vdso_note, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writer_support import MIB, decode, noise, temporaries

import lazyrestore
from lazyrestore import CoreFile, LazyRestoreError
from lazyrestore.sources._elf import SEGMENTS_MAX

BASE = 0x7F00_0000_0000
LEFT_OUT = "left out of the core file (unmodified file pages, coredump_filter)"
CUT = "the core file is cut short: it ends before this"


@pytest.fixture
def core(tmp_path):
    return tmp_path / "core"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.lzr"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    assert temporaries(tmp_path) == []


def skipped(report) -> list[tuple[str, int, str]]:
    return [(piece.name, piece.length, piece.reason) for piece in report.skipped]


# ---- What is in it -------------------------------------------------------------------------------


def test_segments_are_regions(core, path):
    """Named by their addresses, with the protection they had, and byte for byte"""
    parts = [
        Part(0x400000, noise(PAGE, 1), flags=5),
        Part(BASE, noise(3 * MIB + PAGE, 2), flags=6),
        Part(BASE + 16 * MIB, bytes(5 * PAGE), flags=4),
        Part(0x10000, noise(2 * PAGE, 3), flags=7),
    ]
    told = []
    report = lazyrestore.dump(
        CoreFile(write(core, parts)), path, progress=lambda *now: told.append(now)
    )
    decoded = decode(path)
    ends = [(part.address, part.address + len(part.data)) for part in parts]
    assert list(decoded.regions) == [f"{start:x}-{end:x}" for start, end in ends]
    for part, region in zip(parts, decoded.regions.values(), strict=True):
        assert region.address == part.address
        assert decoded.content(region.name) == part.data
    assert [region.protection for region in report.regions] == [5, 3, 1, 7]
    assert report.zero_bytes == 5 * PAGE
    assert report.hole_bytes == 0
    assert report.skipped == ()
    assert decoded.header["source"] == f"core file {core}"
    total = sum(len(part.data) for part in parts)
    assert told[-1][1] == total
    assert report.logical_bytes == total


def test_what_the_file_leaves_out_is_not_zeros(core, path):
    """It is in no region, and in `skipped`"""
    parts = [
        Part(BASE, noise(2 * PAGE, 1), memory=5 * PAGE),
        Part(BASE + 8 * PAGE, memory=3 * PAGE, flags=5),
        Part(BASE + 16 * PAGE, noise(PAGE, 2)),
    ]
    files = file_note([(BASE + 8 * PAGE, BASE + 11 * PAGE, 0, "/lib/some.so")])
    report = lazyrestore.dump(CoreFile(write(core, parts, files)), path)
    decoded = decode(path)
    assert list(decoded.regions) == [
        f"{BASE:x}-{BASE + 2 * PAGE:x}",
        f"{BASE + 16 * PAGE:x}-{BASE + 17 * PAGE:x}",
    ]
    assert decoded.content(f"{BASE:x}-{BASE + 2 * PAGE:x}") == parts[0].data
    assert skipped(report) == [
        (f"{BASE + 2 * PAGE:x}-{BASE + 5 * PAGE:x}", 3 * PAGE, LEFT_OUT),
        (f"{BASE + 8 * PAGE:x}-{BASE + 11 * PAGE:x} /lib/some.so", 3 * PAGE, LEFT_OUT),
    ]


def test_a_mapped_file_without_a_segment_is_told_of(core, path):
    """gcore leaves out even the program header"""
    files = [
        (BASE, BASE + PAGE, 0, "/lib/in.so"),
        (BASE + 4 * PAGE, BASE + 6 * PAGE, PAGE, "/lib/out.so"),
        (BASE + 9 * PAGE, BASE + 10 * PAGE, 0, "/lib/last.so"),
    ]
    report = lazyrestore.dump(
        CoreFile(write(core, [Part(BASE, noise(PAGE))], file_note(files))), path
    )
    assert skipped(report) == [
        (f"{BASE + 4 * PAGE:x}-{BASE + 6 * PAGE:x} /lib/out.so", 2 * PAGE, LEFT_OUT),
        (f"{BASE + 9 * PAGE:x}-{BASE + 10 * PAGE:x} /lib/last.so", PAGE, LEFT_OUT),
    ]


@pytest.mark.parametrize("cut", [1, PAGE - 1, PAGE, 3 * PAGE, 4 * PAGE + 7])
def test_a_file_that_was_cut(core, path, cut):
    """What is there is dumped to the last byte; what is not is in no region"""
    parts = [Part(BASE, noise(2 * PAGE, 1)), Part(BASE + MIB, noise(4 * PAGE, 2))]
    whole = build(parts)
    core.write_bytes(whole[:-cut])
    report = lazyrestore.dump(CoreFile(core), path)
    decoded = decode(path)
    left = 4 * PAGE - cut
    kept = {BASE: parts[0].data[: min(0, left) or None]}
    if left > 0:
        kept[BASE + MIB] = parts[1].data[:left]
    assert {
        region.address: decoded.content(region.name) for region in decoded.regions.values()
    } == kept
    assert sum(piece.length for piece in report.skipped) == cut
    assert {piece.reason for piece in report.skipped} == {CUT}


def test_more_segments_than_the_header_counts(core, path):
    """Their number is in a section header then, behind everything"""
    parts = [Part(PAGE * (2 * number + 2), memory=PAGE) for number in range(65_600)]
    parts[3].data, parts[-1].data = noise(PAGE, 1), noise(PAGE, 2)
    write(core, parts, many=True)
    report = lazyrestore.dump(CoreFile(core), path)
    decoded = decode(path)
    assert {region.address for region in decoded.regions.values()} == {
        parts[3].address,
        parts[-1].address,
    }
    assert decoded.content(list(decoded.regions)[1]) == parts[-1].data
    assert len(report.skipped) == len(parts) - 2
    core.write_bytes(core.read_bytes()[:-1])
    with pytest.raises(LazyRestoreError, match="does not say how many"):
        lazyrestore.dump(CoreFile(core), path)


def test_a_machines_memory_by_physical_address(core, path):
    """Where there is no virtual address; without flags it can be read and written"""
    parts = [
        Part(0, noise(PAGE, 1), flags=0, physical=0),
        Part(0, noise(PAGE, 2), flags=0, physical=0x100000),
    ]
    cpu = note(b"CORE", 1, bytes(336)) + note(b"QEMU", 0, bytes(440))
    report = lazyrestore.dump(CoreFile(write(core, parts, cpu)), path)
    assert [(region.name, region.protection) for region in report.regions] == [
        ("0-1000", 3),
        ("100000-101000", 3),
    ]
    decoded = decode(path)
    assert decoded.content("100000-101000") == parts[1].data
    assert decoded.header["source"] == f"core file {core} of a virtual machine"


def test_what_the_kernel_provides_is_left_out(core, path):
    """[vvar] would be zeros, which it was not; [vdso] is code that is there"""
    vdso = BASE + 16 * PAGE
    parts = [
        Part(BASE + 9 * PAGE, noise(PAGE, 1), flags=4),
        Part(BASE + 10 * PAGE, bytes(4 * PAGE), flags=4),
        Part(BASE + 14 * PAGE, bytes(2 * PAGE), flags=4),
        Part(vdso, noise(2 * PAGE, 2), flags=5),
        Part(0xFFFFFFFFFF600000, noise(PAGE, 3), flags=1),
    ]
    notes = vdso_note(vdso) + file_note([(BASE + 9 * PAGE, BASE + 10 * PAGE, 0, "/lib/x.so")])
    report = lazyrestore.dump(CoreFile(write(core, parts, notes)), path)
    assert [region.address for region in report.regions] == [BASE + 9 * PAGE, vdso]
    assert [piece.name.split()[1] for piece in report.skipped] == ["[vvar]", "[vvar]", "[vsyscall]"]


def test_names_from_the_notes(core, path):
    """The process, and which file a region was a piece of"""
    parts = [Part(BASE, noise(PAGE, 1)), Part(BASE + 4 * PAGE, noise(PAGE, 2))]
    notes = process_note(4711, "some name") + file_note(
        [(BASE - PAGE, BASE + 2 * PAGE, 5 * PAGE, "/lib/a file.so")]
    )
    lazyrestore.dump(CoreFile(write(core, parts, notes)), path)
    decoded = decode(path)
    assert decoded.header["source"] == f"core file {core} of process 4711 (some name)"
    with lazyrestore.open(path) as image:
        assert image.metadata(image.regions[0].name) == {
            "path": "/lib/a file.so",
            "offset": 6 * PAGE,
        }
        assert image.metadata(image.regions[1].name) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<QQ", 1, PAGE),
        struct.pack("<QQ", 1 << 60, PAGE),
        struct.pack("<QQQQQ", 1, 0, BASE, BASE + PAGE, 0) + b"page size\0",
        struct.pack("<QQQQQ", 1, PAGE, BASE, BASE + PAGE, 1 << 60) + b"offset\0",
        struct.pack("<QQQQQ", 1, PAGE, BASE + PAGE, BASE, 0) + b"inverted\0",
        struct.pack("<QQQQQ", 1, PAGE, BASE, BASE + PAGE, 0) + b"no end",
    ],
    ids=["empty", "short", "count", "page size", "offset", "inverted", "no end"],
)
def test_notes_that_cannot_be_are_passed_over(core, path, content):
    """They only name things: the memory is dumped all the same"""
    notes = note(b"CORE", 0x46494C45, content) + process_note(5, "x") + b"rest"
    lazyrestore.dump(CoreFile(write(core, [Part(BASE, noise(PAGE))], notes)), path)
    assert decode(path).content(f"{BASE:x}-{BASE + PAGE:x}") == noise(PAGE)
    with lazyrestore.open(path) as image:
        assert image.metadata(image.regions[0].name) == {}
        assert image.info.source.endswith("of process 5 (x)")


@pytest.mark.parametrize("unit", [4, 8])
def test_notes_are_walked_by_their_alignment(core, path, unit):
    """Each begins where the one before ends, rounded up"""
    content = process_note(4711, "found")[20:]
    notes = note(b"ODD", 7, bytes(13), unit) + note(b"CORE", 3, content, unit)
    data = bytearray(build([Part(BASE, noise(PAGE))], notes))
    struct.pack_into("<Q", data, 64 + 48, unit)  # p_align of the first header
    core.write_bytes(data)
    lazyrestore.dump(CoreFile(core), path)
    assert decode(path).header["source"].endswith("process 4711 (found)")


def test_holes_of_the_file_are_not_read(core, path):
    """40 GiB of memory that was hardly touched"""
    length = 40 << 30
    head = build([Part(BASE, memory=length, file_bytes=length, offset=PAGE)])
    chance = random.Random(1)
    with open(core, "wb") as file:
        file.write(head)
        places = sorted(chance.randrange(length) for _ in range(20))
        for place in places:
            file.seek(PAGE + place)
            file.write(b"here")
        file.truncate(PAGE + length)
    if core.stat().st_blocks > 1 << 20:
        pytest.skip("this file system has no holes")
    report = lazyrestore.dump(CoreFile(core), path)
    assert report.logical_bytes == length
    assert report.data_bytes <= 40 * PAGE
    assert report.seconds < 10  # reading 40 GiB takes longer
    with lazyrestore.open(path) as image:
        for place in places:
            name = image.regions[0].name
            assert image.read(name, place - 3, 10) == b"\0\0\0here\0\0\0"


# ---- What is refused -----------------------------------------------------------------------------

GOOD = Part(BASE, b"x" * PAGE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"some text, long enough for a header: " * 4, "not an ELF core file"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd -d"),
        (b"\x1f\x8b" + bytes(100), "gunzip"),
        (b"KDUMP   " + bytes(100), "kdump"),
        (b"\x81\xablazyrestore" + bytes(100), "an image already"),
        (build([GOOD])[:5], "cut short"),
        (build([GOOD])[:63], "cut short"),
        (build([GOOD])[:100], "cut short, or damaged"),
        (build([GOOD])[:200], "has no memory in it: it is cut short"),
        (build([GOOD], bits=1), "32 bits, little-endian"),
        (build([GOOD], order=2), "64 bits, big-endian"),
        (build([GOOD], kind=2), "a program rather than a core file"),
        (build([GOOD], kind=3), "shared library"),
        (build([GOOD], entry=32), "32 bytes"),
        (build([], note(b"CORE", 1, b"")), "all of it was left out"),
        (build([GOOD], count=0), "without segments"),
        (build([GOOD], count=200), "200 program headers"),
        (build([Part(BASE, memory=PAGE)]), "all of it was left out"),
        (build([Part(BASE, b"x" * PAGE, memory=PAGE - 1)]), "4096 bytes in the file, and 4095"),
        (build([Part((1 << 64) - PAGE, b"x" * 2 * PAGE)]), "behind the last address"),
        (
            build([Part(BASE, offset=(1 << 64) - 1, file_bytes=PAGE, memory=PAGE), GOOD]),
            "outside of any file",
        ),
        (build([GOOD, Part(BASE + PAGE - 1, b"y" * PAGE)]), "overlap"),
        (build([Part(BASE + 1, b"y"), GOOD]), "overlap"),
        (build([GOOD, GOOD]), "overlap"),
    ],
)
def test_what_is_no_good_core_file(tmp_path, core, path, content, words):
    """One sentence that names the file; no image is made"""
    core.write_bytes(content)
    with pytest.raises(LazyRestoreError, match=words) as raised:
        lazyrestore.dump(CoreFile(core), path)
    assert str(core) in str(raised.value)
    assert os.listdir(tmp_path) == ["core"]


def test_more_segments_than_can_be_read(core, path):
    """Refused by their number, before any is read"""
    data = bytearray(build([GOOD], many=True))
    struct.pack_into("<I", data, len(data) - 64 + 44, SEGMENTS_MAX + 1)
    core.write_bytes(data)
    os.truncate(core, 64 + 56 * (SEGMENTS_MAX + 2))
    with pytest.raises(LazyRestoreError, match="at most 1048576"):
        lazyrestore.dump(CoreFile(core), path)


def test_what_cannot_be_read_at_all(tmp_path, core, path):
    with pytest.raises(FileNotFoundError):
        lazyrestore.dump(CoreFile(core), path)
    with pytest.raises(IsADirectoryError):
        lazyrestore.dump(CoreFile(tmp_path), path)
    os.mkfifo(core)
    with pytest.raises(ValueError, match="not a regular file"):
        lazyrestore.dump(CoreFile(core), path)
    with pytest.raises(TypeError, match="CoreFile"):
        CoreFile(5)


def test_the_target_is_the_core_file(core):
    before = write(core, [GOOD]).read_bytes()
    with pytest.raises(ValueError, match="to be dumped"):
        lazyrestore.dump(CoreFile(core), core)
    assert core.read_bytes() == before


def test_a_file_that_shrinks_meanwhile(core, path):
    """An error, not zeros"""
    write(core, [Part(BASE, noise(64 * MIB))])

    def shrink(done: int, total: int | None) -> None:
        os.truncate(core, 5 * MIB)

    with pytest.raises(OSError, match="shorter"):
        lazyrestore.dump(CoreFile(core), path, progress=shrink)
    assert not path.exists()


WHOLE = build(
    [
        Part(BASE, noise(PAGE, 1), memory=3 * PAGE),
        Part(BASE + 8 * PAGE, noise(2 * PAGE, 2), flags=4),
        Part(BASE + 10 * PAGE, noise(PAGE, 3), flags=5),
    ],
    process_note(4711, "name")
    + vdso_note(BASE + 10 * PAGE)
    + file_note(
        [(BASE, BASE + 3 * PAGE, 0, "/lib/a.so"), (BASE + 5 * PAGE, BASE + 6 * PAGE, 0, "b")]
    ),
)
HEADERS = WHOLE.index(noise(PAGE, 1)[:64])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, HEADERS - 9), st.sampled_from([1, 2, 4, 8]), st.binary(min_size=8)
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, len(WHOLE)),
)
def test_any_damage_to_the_headers(tmp_path, changes, length):
    """Is refused in words, or leaves regions that are pieces of the file"""
    data = bytearray(WHOLE)
    for at, width, value in changes:
        data[at : at + width] = value[:width]
    data = data[: max(length, HEADERS)]
    core, path = tmp_path / "core", tmp_path / "image.lzr"
    core.write_bytes(data)
    path.unlink(missing_ok=True)
    try:
        lazyrestore.dump(CoreFile(core), path, level=1, threads=1)
    except LazyRestoreError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert str(core) in refusal
        assert not path.exists()
        return
    decoded = decode(path)
    for name in decoded.regions:
        assert decoded.content(name) in data
