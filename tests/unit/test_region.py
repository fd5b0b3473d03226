"""A region is memory like any other: everything that takes a buffer takes it."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import threading

import numpy
import pytest
from restore_support import CLUSTER_SIZES, PAGE, content_of

import lazyrestore

pytestmark = pytest.mark.uffd


@pytest.fixture
def session(small):
    with lazyrestore.restore(small.path, lazy=True) as session:
        yield session


def restore_array(tmp_path, array, **options):
    path = tmp_path / "array.lzr"
    lazyrestore.dump({"a": array}, path, **options)
    return lazyrestore.restore(path, lazy=True)


def test_it_is_an_mmap_of_exactly_the_dumped_length(session, small):
    region = session["data"]
    assert isinstance(region, mmap.mmap)
    assert isinstance(region, lazyrestore.Region)
    assert len(region) == region.length == len(small.expected["data"])
    assert region.name == "data"
    assert region.metadata == {}
    assert region.address % PAGE == 0


def test_slices_single_bytes_and_steps(session, small):
    region, expected = session["data"], small.expected["data"]
    assert region[5000] == expected[5000]
    assert region[-1] == expected[-1]
    assert region[100:9000] == expected[100:9000]
    assert region[::4096] == expected[::4096]
    assert region[9000:100:-7] == expected[9000:100:-7]
    assert region[:] == expected
    with pytest.raises(IndexError):
        region[len(expected)]


def test_the_methods_of_mmap(session, small):
    region, expected = session["data"], small.expected["data"]
    wanted = expected[30000:30032]
    assert region.find(wanted) == expected.find(wanted)
    assert region.rfind(b"\0" * 4096) == expected.rfind(b"\0" * 4096)
    region.seek(8192)
    assert region.read(10000) == expected[8192:18192]
    assert region.tell() == 18192
    region.seek(0)
    region.write(b"written")
    assert region[:9] == b"written" + expected[7:9]
    region.move(0, 4 * PAGE, 100)
    assert region[:100] == expected[4 * PAGE : 4 * PAGE + 100]
    region.flush()


def test_memoryview_numpy_and_bytes(session, small):
    region, expected = session["data"], small.expected["data"]
    view = memoryview(region)
    assert not view.readonly
    assert view[4000:4200] == expected[4000:4200]
    assert (numpy.frombuffer(region, "u1") == numpy.frombuffer(expected, "u1")).all()
    assert bytes(view) == expected
    view.release()


def test_writes_to_missing_pages_keep_the_rest_of_the_page(session, small):
    region, expected = session["data"], bytearray(small.expected["data"])
    for page in range(64):
        region[page * PAGE + 7] = 0xAB
        expected[page * PAGE + 7] = 0xAB
    assert region[:] == expected


def test_writes_stay_in_this_session(small):
    with lazyrestore.restore(small.path, lazy=True) as one:
        one["data"][:] = b"\xee" * len(one["data"])
        with lazyrestore.restore(small.path, lazy=True) as two:
            assert two["data"][:] == small.expected["data"]
    with lazyrestore.open(small.path) as image:
        assert image.read("data") == small.expected["data"]


def test_readinto_fills_missing_pages_from_a_file(session, tmp_path, small):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * PAGE + 123))
    view = memoryview(session["data"])[2 * PAGE + 50 :]
    with source.open("rb", buffering=0) as file:
        assert file.readinto(view) == 3 * PAGE + 123
    expected = bytearray(small.expected["data"])
    expected[2 * PAGE + 50 : 2 * PAGE + 50 + 3 * PAGE + 123] = source.read_bytes()
    view.release()
    assert session["data"][:] == expected
    assert io.BytesIO(bytes(expected)).readinto(session["data"]) == len(expected)


def test_write_sends_missing_pages_to_a_file(session, tmp_path, small):
    with (tmp_path / "out").open("wb", buffering=0) as file:
        assert os.write(file.fileno(), session["data"]) == len(small.expected["data"])
        assert file.write(memoryview(session["more"])[1000:50000]) == 49000
    written = (tmp_path / "out").read_bytes()
    assert written == small.expected["data"] + small.expected["more"][1000:50000]


def test_vectored_and_positioned_writes(session, tmp_path, small):
    path = tmp_path / "out"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwritev(fd, [session["more"], session["data"]], 0)
        assert path.read_bytes() == small.expected["more"] + small.expected["data"]
    finally:
        os.close(fd)


def test_direct_io_from_and_into_missing_pages(make_image, tmp_path):
    made = make_image({"a": "drzh" * 16, "b": "drzh" * 16})
    path = tmp_path / "direct"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"this file system has no O_DIRECT: {error}")
    try:
        with lazyrestore.restore(made.path, lazy=True) as session:
            assert os.write(fd, session["a"]) == 64 * PAGE
            assert path.read_bytes() == made.expected["a"]
            os.pwrite(fd, mmap.mmap(-1, 64 * PAGE), 0)
            half = memoryview(session["b"])[: 32 * PAGE]
            assert os.preadv(fd, [half], 0) == 32 * PAGE
            half.release()
            assert session["b"][:] == bytes(32 * PAGE) + made.expected["b"][32 * PAGE :]
    finally:
        os.close(fd)


def test_a_socket_sends_and_receives(session, small):
    left, right = socket.socketpair()
    got = bytearray()

    def receive():
        while data := right.recv(65536):
            got.extend(data)

    reader = threading.Thread(target=receive)
    reader.start()
    left.sendall(session["data"])
    left.close()
    reader.join(20)
    assert got == small.expected["data"]
    right.close()
    left, right = socket.socketpair()
    left.sendall(b"x" * 5000)
    view = memoryview(session["more"])[100:5100]
    assert right.recv_into(view, flags=socket.MSG_WAITALL) == 5000
    view.release()
    assert session["more"][:5200] == (
        small.expected["more"][:100] + b"x" * 5000 + small.expected["more"][5100:5200]
    )


def test_pickle_5_takes_it_out_of_band(session, small):
    buffers = []
    stream = pickle.dumps(
        pickle.PickleBuffer(session["data"]), protocol=5, buffer_callback=buffers.append
    )
    assert len(stream) < 100
    again = pickle.loads(stream, buffers=buffers)
    assert bytes(again) == small.expected["data"]
    array = session["more"].array()
    assert (pickle.loads(pickle.dumps(array)) == array).all()


def test_pickling_the_region_itself_makes_a_reference(session, small):
    stream = pickle.dumps(session["data"])
    assert len(stream) < 500
    assert pickle.loads(stream)[:] == small.expected["data"]


def test_resizing_is_refused_and_changes_nothing(session, small):
    region = session["data"]
    for size in (0, 1, PAGE, len(region), 2 * len(region)):
        with pytest.raises(ValueError, match="resized"):
            region.resize(size)
    assert region[:] == small.expected["data"]


def test_a_region_without_metadata_is_an_array_of_bytes(session, small):
    array = session["data"].array()
    assert array.dtype == numpy.uint8
    assert array.shape == (64 * PAGE,)
    assert array.flags.writeable
    assert array.tobytes() == small.expected["data"]


RECORD = numpy.dtype([("id", ">i4"), ("place", "<f8", (2, 3)), ("name", "S5"), ("day", "<M8[D]")])
ARRAYS = {
    "int32": numpy.arange(5000, dtype=numpy.int32),
    "big-endian": numpy.arange(5000, dtype=">f8"),
    "bool": numpy.arange(5000) % 3 == 0,
    "half": numpy.linspace(0, 1, 5000, dtype=numpy.float16),
    "complex": numpy.arange(5000) * (1 + 2j),
    "datetime": numpy.arange("2020-01", "2024-01", dtype="M8[D]"),
    "timedelta": numpy.arange(900, dtype="m8[ns]"),
    "unicode": numpy.array(["a", "läng", "漢字"] * 500),
    "bytes": numpy.array([b"a", b"bcd"] * 500),
    "void": numpy.frombuffer(bytes(range(240)), "V24"),
    "structured": numpy.array([(i, i, b"x", i) for i in range(300)], RECORD),
    "padded": numpy.zeros(50, numpy.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "matrix": numpy.arange(6000.0).reshape(60, 100),
    "fortran": numpy.asfortranarray(numpy.arange(6000.0).reshape(60, 100)),
    "5d": numpy.arange(2 * 3 * 4 * 5 * 6, dtype="u2").reshape(2, 3, 4, 5, 6),
    "fortran-3d": numpy.asfortranarray(numpy.arange(24, dtype="u1").reshape(2, 3, 4)),
    "0-d": numpy.array(42.5),
    "empty": numpy.empty(0, "f4"),
    "empty-2d": numpy.empty((7, 0, 3), "i8"),
    "one": numpy.array([7], "u1"),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("lazy", [True, False])
def test_arrays_keep_dtype_shape_order_and_content(tmp_path, name, lazy):
    array = ARRAYS[name]
    path = tmp_path / "array.lzr"
    lazyrestore.dump({"a": array}, path)
    with lazyrestore.restore(path, lazy=lazy) as session:
        again = session["a"].array()
        assert again.dtype == array.dtype
        assert again.shape == array.shape
        assert again.flags.f_contiguous == array.flags.f_contiguous
        assert again.flags.c_contiguous == array.flags.c_contiguous
        assert again.tobytes() == array.tobytes()
        assert again.flags.writeable
        del again


def test_a_view_that_is_not_contiguous_keeps_its_content(tmp_path):
    array = numpy.arange(10000).reshape(100, 100)[::3, ::-2]
    try:
        session = restore_array(tmp_path, array)
    except (TypeError, ValueError) as error:
        assert "contiguous" in str(error)  # noqa: PT017 - refused is fine; wrong is not
        return
    with session:
        assert (session["a"].array() == array).all()


def test_dlpack_goes_through_array(tmp_path):
    with restore_array(tmp_path, numpy.arange(1000.0)) as session:
        assert (numpy.from_dlpack(session["a"].array()) == numpy.arange(1000.0)).all()


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 12345, 65535, 65537, (2 << 20) + 1])
def test_lengths_that_are_not_of_whole_pages(tmp_path, cluster_size, length):
    path = tmp_path / "odd.lzr"
    data = (content_of("dr" * 257) * 2)[:length]
    lazyrestore.dump(data, path, cluster_size=cluster_size)
    with lazyrestore.restore(path, lazy=True) as session:
        region = session["memory"]
        assert len(region) == length
        assert region[-1] == data[-1]
        assert region[:] == data
        # Behind the end, in the same page, is zero, as in any mapping.
        rest = -length % PAGE
        tail = (numpy.ctypeslib.ctypes.c_char * rest).from_address(region.address + length)
        assert bytes(tail) == bytes(rest)


# ---- populate ------------------------------------------------------------------------------------


def test_populate_loads_a_range_and_no_page_of_it_faults_again(session, small):
    region = session["data"]
    region.populate()
    before = session.stats()
    assert region[:] == small.expected["data"]
    after = session.stats()
    assert before.faults == after.faults == 0
    assert before.pages_copied == sum(k in "dr" for k in ("ddddrrrrzzzzhhhhdzhrzhzhddzzdrdr" * 2))


def test_populate_of_a_part_leaves_other_clusters_alone(session, small):
    region = session["data"]
    region.populate(20000, 10)
    assert session.stats().clusters_decoded == 1
    assert region.resident_bytes == 4 * PAGE
    region.populate(0, 0)
    region.populate(len(region), 0)
    region.populate(len(region))
    assert session.stats().clusters_decoded == 1
    region.populate(16383, 2)
    assert session.stats().clusters_decoded == 2
    assert region[:] == small.expected["data"]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (0, -1), (0, 64 * PAGE + 1), (64 * PAGE, 1), (64 * PAGE + 1, None), (1 << 70, 1)],
)
def test_populate_refuses_what_is_not_within_the_region(session, offset, length):
    with pytest.raises(ValueError, match="'data'"):
        session["data"].populate(offset, length)


def test_populate_keeps_to_its_timeout_and_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "large.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("large")
        image.zero(24 << 30)
        image.write(b"end")
    with lazyrestore.restore(path, lazy=True) as session:
        region = session["large"]
        with pytest.raises(TimeoutError, match="large"):
            region.populate(timeout=0.05)
        first = session.stats().pages_zeroed
        assert first > 0
        with pytest.raises(TimeoutError):
            region.populate(timeout=0)
        assert region[-3:] == b"end"


def test_other_python_threads_run_while_populate_loads(tmp_path):
    path = tmp_path / "large.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("large")
        image.zero(8 << 30)
    with lazyrestore.restore(path, lazy=True) as session:
        done = threading.Event()
        steps = 0

        def load():
            session["large"].populate()
            done.set()

        thread = threading.Thread(target=load)
        thread.start()
        while not done.wait(0.001):
            steps += 1
        thread.join()
        assert steps > 10
        assert session.stats().pages_zeroed == (8 << 30) // PAGE
        assert session["large"].resident_bytes == 0


def test_zero_pages_cost_no_memory_until_they_are_written(make_image):
    made = make_image({"a": "z" * 2000 + "h" * 2000})
    with lazyrestore.restore(made.path, lazy=True) as session:
        region = session["a"]
        assert region.touch() == 4000
        assert region.resident_bytes == 0
        assert session.stats().pages_zeroed == 4000
        region[5] = 1
        region[3000 * PAGE] = 1
        assert region.resident_bytes == 2 * PAGE


def test_touch_counts_pages_and_refuses_other_orders(session):
    region = session["data"]
    assert region.touch(1) == 1
    assert session.stats().touch_us.count == 1
    assert region.touch(5, order="random", seed=3) == 5
    assert region.touch(5, order="random", seed=-3) == 5
    assert region.touch(5, order="random", seed=3 << 64) == 5
    assert region.touch(10, first=60) == 4
    assert region.touch(1000) == 64
    with pytest.raises(ValueError, match="backwards"):
        region.touch(order="backwards")
    with pytest.raises(ValueError, match="first is -1 and count None"):
        region.touch(first=-1)
    with pytest.raises(ValueError, match="count -2"):
        region.touch(-2)


def test_a_closed_region_says_so(small):
    session = lazyrestore.restore(small.path, lazy=True)
    region = session["data"]
    region.close()
    region.close()
    for use in (region.array, region.populate, region.touch, lambda: region.resident_bytes):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(ValueError, match="closed"):
        region[0]
    assert "closed" in repr(region)
    assert session["more"][:] == small.expected["more"]
    assert session.stats().faults
    session.close()


def test_an_empty_region(tmp_path):
    path = tmp_path / "empty.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("nothing")
        image.add_region("something")
        image.write(b"x")
        image.add_region("nothing more")
    for lazy in (True, False):
        with lazyrestore.restore(path, lazy=lazy) as session:
            region = session["nothing"]
            assert len(region) == region.length == region.resident_bytes == 0
            assert bytes(memoryview(region)) == b""
            assert region[:] == b""
            assert region.array().shape == (0,)
            assert region.touch() == 0
            region.populate()
            assert session["something"][:] == b"x"
            assert list(session) == ["nothing", "something", "nothing more"]
