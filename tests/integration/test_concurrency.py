"""Many threads on the same and on neighbouring pages: whole pages, right bytes, no deadlock.

In children, because what fails here hangs or crashes.
"""

from __future__ import annotations

import pytest
from restore_support import CLUSTER_SIZES, run_in_child

pytestmark = pytest.mark.uffd

PREAMBLE = """
import ctypes, hashlib, os, random, sys, threading
import lazyrestore
path = sys.argv[1]
expected = lazyrestore.open(path).read("a")
PAGE = 4096
failures = []
def guarded(work):
    def run(*arguments):
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)
            raise
    return run
def run_all(work, count, *arguments):
    start = threading.Barrier(count)
    @guarded
    def one(number):
        start.wait()
        work(number, *arguments)
    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failures, failures
"""


def child(made, script, *arguments, **options):
    import textwrap

    return run_in_child(PREAMBLE + textwrap.dedent(script), made.path, *arguments, **options)


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_python_threads_slice_the_same_pages_at_once(make_image, cluster_size):
    made = make_image({"a": "drzh" * 128}, cluster_size=cluster_size)
    child(
        made,
        """
        def work(number, region, order):
            for page in order:
                begin = page * PAGE
                assert region[begin : begin + PAGE] == expected[begin : begin + PAGE], page
        for round in range(4):
            with lazyrestore.restore(path, lazy=True) as session:
                order = list(range(len(expected) // PAGE))
                random.Random(round).shuffle(order)
                run_all(work, 8, session["a"], order)
                stats = session.stats()
                assert stats.pages_copied == 256, stats
                assert stats.pages_zeroed == 256, stats
        """,
    )


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_threads_without_the_gil_see_whole_pages(make_image, cluster_size):
    """memcmp by ctypes, and sums by numpy: both touch while no lock of Python's is held."""
    made = make_image({"a": "ddrdzddh" * 128}, cluster_size=cluster_size)
    child(
        made,
        """
        import numpy
        libc = ctypes.CDLL(None)
        libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        right = ctypes.create_string_buffer(expected, len(expected))
        base = ctypes.addressof(right)
        total = int(numpy.frombuffer(expected, "u8").sum())
        def work(number, region, array, order):
            chance = random.Random(number // 2)
            if number % 4 == 3:
                assert int(array.sum()) == total
                return
            for page in order:
                at = page * PAGE
                if number % 4 == 2:  # pages next to each other, and across their borders
                    at += chance.choice((-8, 0, 8))
                at = max(0, min(at, len(expected) - PAGE))
                assert libc.memcmp(region.address + at, base + at, PAGE) == 0, at
        for round in range(4):
            with lazyrestore.restore(path, lazy=True) as session:
                order = list(range(len(expected) // PAGE))
                random.Random(round).shuffle(order)
                array = session["a"].array().view("u8")
                run_all(work, 8, session["a"], array, order)
                del array
        """,
    )


def test_all_ways_of_touching_at_once(make_image):
    made = make_image({"a": "drzd" * 256}, cluster_size=16384)
    child(
        made,
        """
        def work(number, region):
            chance = random.Random(number)
            match number % 6:
                case 0:
                    region.populate()
                case 1:
                    for _ in range(100):
                        offset = chance.randrange(len(region))
                        region.populate(offset, min(50000, len(region) - offset))
                case 2:
                    fd = os.memfd_create("out")
                    assert os.write(fd, region) == len(expected)
                    assert os.pread(fd, len(expected), 0) == expected
                    os.close(fd)
                case 3:
                    region.touch(order="random", seed=number)
                case 4:
                    assert hashlib.sha256(region).digest() == hashlib.sha256(expected).digest()
                case _:
                    for _ in range(20):
                        session.stats(), session.errors, session.read_trace()
                    assert region[:] == expected
        for _ in range(8):
            with lazyrestore.restore(path, lazy=True, trace=4096) as session:
                run_all(work, 12, session["a"])
                assert session["a"][:] == expected
                stats = session.stats()
                assert (stats.pages_copied, stats.pages_zeroed) == (768, 256), stats
        """,
        timeout=60,
    )


def test_writers_and_readers_of_one_page_lose_nothing(make_image):
    made = make_image({"a": "d" * 256}, cluster_size=16384)
    child(
        made,
        """
        def work(number, region):
            for page in range(256):
                region[page * PAGE + number] = 0xE0 + number
                assert region[page * PAGE + number] == 0xE0 + number
        for _ in range(10):
            with lazyrestore.restore(path, lazy=True) as session:
                run_all(work, 8, session["a"])
                want = bytearray(expected)
                for page in range(256):
                    want[page * PAGE : page * PAGE + 8] = bytes(range(0xE0, 0xE8))
                assert session["a"][:] == want
        """,
    )


def test_sessions_are_opened_and_closed_by_many_threads(make_image):
    made = make_image({"a": "drzh" * 32, "b": "d" * 4}, cluster_size=16384)
    child(
        made,
        """
        def work(number):
            for round in range(40):
                session = lazyrestore.restore(path, lazy=True)
                assert session["a"][number * PAGE :] == expected[number * PAGE :]
                if round % 3:
                    session.close()
        run_all(work, 8)
        import gc
        gc.collect()
        from restore_support import threads_become, threads_named
        assert threads_become(0)
        """,
    )


def test_one_image_in_many_sessions_at_once(make_image):
    made = make_image({"a": "drzh" * 64})
    child(
        made,
        """
        sessions = [lazyrestore.restore(path, lazy=True) for _ in range(20)]
        def work(number):
            for session in sessions[number:] + sessions[:number]:
                session["a"].touch(64, order="random", seed=number)
                assert session["a"][:] == expected
        run_all(work, 8)
        for session in sessions:
            assert session.stats().pages_copied == 128
            session.close()
        """,
    )


def test_a_region_is_closed_while_others_populate_and_touch(make_image):
    made = make_image({"a": "d" * 1024, "b": "d" * 1024}, cluster_size=4096)
    child(
        made,
        """
        def work(number, session, a, b):
            try:
                if number == 0:
                    a.populate()
                elif number == 1:
                    b.populate()
                elif number == 2:
                    b.touch(order="random")
                else:
                    a.close()
            except ValueError as error:
                assert "closed" in str(error) or "detached" in str(error), error
        for _ in range(50):
            with lazyrestore.restore(path, lazy=True) as session:
                run_all(work, 4, session, session["a"], session["b"])
                assert session["b"][:] == expected
                assert session["b"].closed is False and session["a"].closed
                assert session.stats().errors == 0, session.errors
        """,
    )


def test_a_system_call_and_a_store_race_for_one_cluster(make_image):
    made = make_image({"a": "d" * 512}, cluster_size=2 << 20)
    child(
        made,
        """
        def work(number, region):
            if number == 0:
                fd = os.memfd_create("out")
                os.write(fd, region)
                assert os.pread(fd, PAGE, 300 * PAGE)[1:] == expected[300 * PAGE + 1 : 301 * PAGE]
                os.close(fd)
            else:
                region[(number * 37 % 512) * PAGE] = 1
        for _ in range(30):
            with lazyrestore.restore(path, lazy=True) as session:
                run_all(work, 6, session["a"])
        """,
    )
