"""dump(): buffers, arrays, mappings of them, files and streams; and what is refused."""

from __future__ import annotations

import array
import ctypes
import io
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from restore_support import run_in_child
from writer_support import KIB, MIB, PAGE, decode, noise, temporaries

import lazyrestore
from lazyrestore import RawFile
from lazyrestore.reports import Skipped


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "image.lzr"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    assert temporaries(tmp_path) == []


# ---- Buffers -------------------------------------------------------------------------------------


def buffers() -> dict[str, object]:
    shared = mmap.mmap(-1, 3 * PAGE)
    shared[5000:5004] = b"abcd"
    return {
        "bytes": b"some bytes",
        "bytearray": bytearray(noise(100_000)),
        "memoryview": memoryview(noise(200_000))[5:-7],
        "mmap": shared,
        "ctypes": (ctypes.c_int * 1000)(*range(1000)),
        "array.array": array.array("d", [1, 2, 3]),
        "empty": b"",
        "with gaps": memoryview(bytes(range(200)))[::2],
        "two dimensions": memoryview(bytes(range(200))).cast("B", [10, 20]),
    }


def test_every_buffer_is_kept(path):
    given = buffers()
    report = lazyrestore.dump(given, path)
    decoded = decode(path)
    assert list(decoded.regions) == list(given)
    for name, data in given.items():
        assert decoded.content(name) == bytes(memoryview(data).tobytes())
    assert [r.length for r in report.regions] == [memoryview(d).nbytes for d in given.values()]


def test_a_single_buffer_is_the_region_memory(path):
    report = lazyrestore.dump(b"abc", path)
    assert decode(path).content("memory") == b"abc"
    assert [region.name for region in report.regions] == ["memory"]


def test_address_and_protection_are_the_buffers(path):
    data = bytearray(10_000)
    here = ctypes.addressof(ctypes.c_char.from_buffer(data))
    readonly = bytes(10_000)
    gaps, tail = memoryview(data)[::2], memoryview(data)[100:]
    lazyrestore.dump({"w": data, "r": readonly, "gaps": gaps, "tail": tail}, path)
    regions = decode(path).regions
    assert (regions["w"].address, regions["w"].protection) == (here, 3)
    assert (regions["tail"].address, regions["tail"].protection) == (here + 100, 3)
    assert regions["r"].protection == 1
    assert regions["r"].address == id(readonly) + bytes.__basicsize__ - 1
    assert (regions["gaps"].address, regions["gaps"].protection) == (0, 3)


def test_an_empty_mapping_is_an_image_without_regions(path):
    report = lazyrestore.dump({}, path)
    assert report.regions == ()
    assert decode(path).logical_bytes == 0


def test_pages_count_from_the_buffers_start_not_from_address_zero(path):
    data = bytearray(64 * KIB + 1000)
    data[1000 + PAGE] = 1
    lazyrestore.dump(memoryview(data)[1000:], path)
    assert decode(path).states("memory") == "zd" + "z" * 14


def test_a_large_buffer_is_the_same_at_any_setting(path):
    data = noise(5 * MIB) + bytes(5 * MIB) + b"text" * MIB + noise(12345)
    digests = {
        lazyrestore.dump(data, path, level=level, threads=threads).digest
        for level, threads in ((1, 1), (3, 2), (-1, 5))
    }
    assert len(digests) == 1
    assert decode(path).content("memory") == data


# ---- Arrays --------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    record = np.dtype([("a", "<i4"), ("b", ">f8", (2, 3)), ("c", "M8[ns]"), ("d", "S5")])
    structured = np.zeros(50, record)
    structured["a"] = np.arange(50)
    readonly = np.arange(10.0)
    readonly.flags.writeable = False
    return {
        "numbers": np.arange(12345, dtype=np.uint8),
        "two dimensions": np.arange(60000.0).reshape(200, 300),
        "fortran": np.asfortranarray(np.arange(60000.0).reshape(200, 300)),
        "every third": np.arange(100_000)[::3],
        "backwards": np.arange(1000)[::-1],
        "transposed part": np.arange(6000).reshape(60, 100)[:, 10:20].T,
        "big-endian": np.arange(1000, dtype=">i4"),
        "complex": np.arange(10) * 1j,
        "bool": np.array([True, False]),
        "dates": np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
        "strings": np.array(["a", "längere"]),
        "bytes": np.array([b"abc", b"d"]),
        "half": np.arange(9, dtype=np.float16),
        "structured": structured,
        "aligned": np.zeros(3, np.dtype("i1,f8", align=True)),
        "zero dimensions": np.array(5),
        "no elements": np.empty((0, 3)),
        "empty strings": np.zeros(4, "S0"),
        "readonly": readonly,
        "subclass": np.rec.array([(1, 2.5), (3, 4.5)], dtype="i4,f8"),
        "broadcast": np.broadcast_to(np.arange(5), (4, 5)),
    }


@pytest.mark.parametrize("name", arrays())
def test_arrays_come_back(path, name):
    given = arrays()[name]
    lazyrestore.dump({name: given}, path)
    region = decode(path).regions[name]
    about = region.metadata["array"]
    assert region.length == given.nbytes
    assert tuple(about["shape"]) == given.shape
    with lazyrestore.restore(path, lazy=False) as session:
        again = session[name].array()
        assert again.dtype == given.dtype
        assert again.shape == given.shape
        np.testing.assert_array_equal(again, given)
        del again


def test_arrays_address_is_that_of_their_data(path):
    plain, fortran = np.arange(1000), np.asfortranarray(np.ones((50, 60)))
    gaps, readonly = np.arange(1000)[::2], np.arange(1000)
    readonly.flags.writeable = False
    lazyrestore.dump({"p": plain, "f": fortran, "g": gaps, "r": readonly}, path)
    regions = decode(path).regions
    assert regions["p"].address == plain.ctypes.data
    assert regions["f"].address == fortran.ctypes.data
    assert regions["f"].metadata["array"]["order"] == "F"
    assert regions["g"].address == 0
    assert regions["p"].protection == 3
    assert regions["r"].protection == 1


def test_buffers_do_not_import_numpy(path):
    run_in_child(
        """
        import sys, lazyrestore
        lazyrestore.dump({"a": b"x", "b": bytearray(5)}, sys.argv[1])
        assert "numpy" not in sys.modules
        """,
        path,
    )


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (np.array([object()]), TypeError, "objects are only references"),
        (np.zeros(3, dtype=[("a", "i4"), ("b", "O")]), TypeError, "objects are only references"),
        (np.array(["x"], dtype=np.dtypes.StringDType()), TypeError, "references"),
        (np.ma.masked_array([1, 2], [0, 1]), TypeError, "mask"),
        ("/some/path", TypeError, "RawFile"),
        (Path("/some/path"), TypeError, "RawFile"),
        (5, TypeError, "int is neither a buffer nor a numpy array"),
        ([b"a"], TypeError, "list"),
        ({"a": b"x", "b": None}, TypeError, "'b'.*NoneType"),
        ({"": b"x"}, ValueError, "empty"),
        ({"n" * 4097: b"x"}, ValueError, "4096"),
        ({5: b"x"}, TypeError, "int"),
    ],
)
def test_what_is_not_memory_is_refused_before_a_file_is_made(tmp_path, path, source, error, words):
    with pytest.raises(error, match=words):
        lazyrestore.dump(source, path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options", [{"level": 99}, {"cluster_size": 5000}, {"threads": 0}, {"cluster_size": 1 << 22}]
)
def test_settings_are_looked_at_before_the_source(tmp_path, path, options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        lazyrestore.dump(RawFile("/missing"), path, **options)
    assert os.listdir(tmp_path) == []


def test_an_unwritable_target_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        lazyrestore.dump(b"x", tmp_path / "missing" / "image.lzr")
    assert raised.value.filename == str(tmp_path / "missing" / "image.lzr")


def test_a_path_may_be_bytes(path):
    report = lazyrestore.dump(b"x", os.fsencode(path))
    assert report.path == str(path)


# ---- The report ----------------------------------------------------------------------------------


def test_report_has_the_sources_own_part(path):
    class Odd:
        """A source of somebody else's."""

        def __init__(self) -> None:
            self.skipped: list[Skipped] = []
            self.frozen_us: int | None = None

        def describe(self) -> str:
            return "something odd"

        def total_bytes(self) -> int | None:
            return 7

        def check(self, target: str) -> None:
            assert target == str(path)

        def write_to(self, sink) -> None:
            sink.add_region("odd")
            sink.write(b"oddness")
            self.skipped = [Skipped("1000-2000", 0x1000, 0x1000, "not there")]
            self.frozen_us = 12

    told = []
    report = lazyrestore.dump(Odd(), path, progress=lambda *now: told.append(now))
    assert report.skipped == (Skipped("1000-2000", 0x1000, 0x1000, "not there"),)
    assert report.frozen_us == 12
    assert told[-1] == (7, 7)
    decoded = decode(path)
    assert decoded.header["source"] == "something odd"
    assert decoded.content("odd") == b"oddness"


def test_report_adds_up(path):
    data = noise(3 * PAGE) + bytes(5 * PAGE) + noise(PAGE + 1)
    report = lazyrestore.dump(data, path, cluster_size=PAGE)
    assert report.logical_bytes == len(data)
    assert report.zero_bytes == 5 * PAGE
    assert report.hole_bytes == 0
    assert report.data_bytes == 4 * PAGE + 1
    # The same first page again: noise() begins alike.
    assert report.duplicate_bytes == PAGE
    assert report.stored_bytes == path.stat().st_size
    assert report.ratio == pytest.approx(len(data) / path.stat().st_size)
    assert report.seconds > 0
    assert report.frozen_us is None
    assert report.skipped == ()


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, PAGE, MIB - 1, MIB, MIB + 1, 5 * MIB + 123])
def test_a_files_bytes_are_kept(tmp_path, path, length):
    data = noise(length)
    (tmp_path / "file").write_bytes(data)
    told = []
    lazyrestore.dump(RawFile(tmp_path / "file"), path, progress=lambda *now: told.append(now))
    decoded = decode(path)
    assert decoded.content("memory") == data
    assert decoded.header["source"] == f"file {tmp_path / 'file'}"
    assert told[-1][0] == length


def test_holes_of_a_file_are_zero_pages_and_not_read(tmp_path, path):
    file = tmp_path / "sparse"
    chance = random.Random(1)
    with open(file, "wb") as sparse:
        sparse.truncate(40 << 30)
        places = sorted(chance.randrange(40 << 30) for _ in range(20))
        for place in places:
            sparse.seek(place)
            sparse.write(b"here")
    if file.stat().st_blocks > 1 << 20:
        pytest.skip("this file system has no holes")
    begin = time.process_time()
    report = lazyrestore.dump(RawFile(file), path)
    assert time.process_time() - begin < 3  # reading 40 GiB takes longer
    assert report.hole_bytes == 0
    assert report.data_bytes <= 40 * PAGE
    with lazyrestore.open(path) as image:
        for place in places:
            assert image.read("memory", place - 3, 10) == b"\0\0\0here\0\0\0"


@pytest.mark.parametrize(
    "layout", ["d", "h", "dh", "hd", "dhd", "hdh", "hhdd"], ids=lambda layout: layout
)
def test_holes_at_either_end_of_a_file(tmp_path, path, layout):
    piece = 256 * KIB
    expected = b"".join(b"\1" * piece if kind == "d" else bytes(piece) for kind in layout) + bytes(
        9
    )
    with open(tmp_path / "file", "wb") as file:
        for number, kind in enumerate(layout):
            if kind == "d":
                file.seek(number * piece)
                file.write(b"\1" * piece)
        file.truncate(len(expected))
    lazyrestore.dump(RawFile(tmp_path / "file"), path)
    assert decode(path).content("memory") == expected


def test_a_file_without_a_length_is_read_to_its_end(path):
    lazyrestore.dump(RawFile("/proc/self/status"), path)
    assert b"VmRSS" in decode(path).content("memory")


def test_a_pipe_is_read_to_its_end(tmp_path, path):
    data = noise(3 * MIB + 7)
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,), daemon=True)
    writing.start()
    told = []
    lazyrestore.dump(RawFile(tmp_path / "pipe"), path, progress=lambda *now: told.append(now))
    writing.join(timeout=20)
    assert decode(path).content("memory") == data
    assert told[-1] == (len(data), None)


STANDARD_INPUT = """
    import sys, lazyrestore
    if len(sys.argv) > 2:
        sys.stdin.buffer.raw.read(int(sys.argv[2]))
    report = lazyrestore.dump(lazyrestore.RawFile("-"), sys.argv[1])
    print(report.logical_bytes)
"""


def test_standard_input_as_a_pipe(path):
    data = noise(2 * MIB + 7)
    done = subprocess.run(
        [sys.executable, "-c", "if 1:" + STANDARD_INPUT, path],
        input=data,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) == len(data)
    decoded = decode(path)
    assert decoded.content("memory") == data
    assert decoded.header["source"] == "standard input"


@pytest.mark.parametrize("taken", [0, 1000])
def test_standard_input_as_a_file_from_where_it_is(tmp_path, path, taken):
    data = noise(2 * MIB + 7)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        subprocess.run(
            [sys.executable, "-c", "if 1:" + STANDARD_INPUT, path, str(taken)],
            stdin=file,
            capture_output=True,
            timeout=60,
            check=True,
        )
    assert decode(path).content("memory") == data[taken:]


def test_a_file_object(path):
    data = noise(2 * MIB + 7)
    file = io.BytesIO(data)
    lazyrestore.dump(RawFile(file, name="named"), path)
    assert decode(path).content("named") == data
    assert not file.closed


def test_an_object_that_can_only_read(path):
    class Reader:
        def __init__(self, data: bytes) -> None:
            self._file = io.BytesIO(data)

        def read(self, length: int) -> bytes:
            return self._file.read(min(length, 10_000))

    data = noise(100_007)
    lazyrestore.dump(RawFile(Reader(data)), path)
    assert decode(path).content("memory") == data


def test_a_text_file_and_other_things_are_refused(tmp_path, path):
    (tmp_path / "text").write_text("text")
    with open(tmp_path / "text") as file, pytest.raises(TypeError, match="'rb'"):
        lazyrestore.dump(RawFile(file), path)
    with pytest.raises(TypeError, match="int"):
        RawFile(5)
    assert not path.exists()


@pytest.mark.parametrize("way", ["same", "link", "hard link"])
def test_a_target_that_is_the_source_is_refused(tmp_path, way):
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    target = file if way == "same" else tmp_path / "other"
    if way == "link":
        target.symlink_to("file")
    elif way == "hard link":
        target.hardlink_to(file)
    with pytest.raises(ValueError, match="is the file to be dumped"):
        lazyrestore.dump(RawFile(file), target)
    assert file.read_bytes() == b"precious"


def test_files_that_cannot_be_read(tmp_path, path):
    with pytest.raises(FileNotFoundError) as raised:
        lazyrestore.dump(RawFile(tmp_path / "missing"), path)
    assert raised.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError) as raised:
        lazyrestore.dump(RawFile(tmp_path), path)
    assert raised.value.filename == str(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path, path):
    path.write_bytes(b"old")
    file = tmp_path / "file"
    file.write_bytes(noise(80 * MIB))

    def shrink(done: int, total: int | None) -> None:
        os.truncate(file, 5 * MIB)

    with pytest.raises(OSError, match="became shorter") as raised:
        lazyrestore.dump(RawFile(file), path, progress=shrink)
    assert raised.value.filename == str(file)
    assert path.read_bytes() == b"old"


def test_a_file_that_grows_meanwhile_is_dumped_as_it_was(tmp_path, path):
    file = tmp_path / "file"
    data = noise(40 * MIB)
    file.write_bytes(data)

    def grow(done: int, total: int | None) -> None:
        with open(file, "ab") as end:
            end.write(b"more")

    report = lazyrestore.dump(RawFile(file), path, progress=grow)
    assert report.logical_bytes == len(data)
    with lazyrestore.open(path) as image:
        assert image.read("memory") == data


def test_a_read_error_says_of_what(path):
    """/proc/self/mem gives EIO where nothing is mapped: at 0, where reading begins."""
    with pytest.raises(OSError, match="/proc/self/mem"):
        lazyrestore.dump(RawFile("/proc/self/mem"), path)
    assert not path.exists()
