"""Forked children read what their parent had not loaded, whatever becomes of the parent."""

from __future__ import annotations

import textwrap

import pytest
from restore_support import CLUSTER_SIZES, run_in_child, write_image

pytestmark = pytest.mark.uffd

PREAMBLE = """
import ctypes, mmap, multiprocessing, os, random, resource, signal, sys, threading, time
import lazyrestore
from fork_support import *
path = sys.argv[1]
expected = contents(path)["a"]
pages = len(expected) // PAGE
def shuffled(seed):
    order = list(range(pages))
    random.Random(seed).shuffle(order)
    return order
"""


def child(image, script, *arguments, **options):
    path = getattr(image, "path", image)
    return run_in_child(PREAMBLE + textwrap.dedent(script), path, *arguments, **options)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """512 pages of every kind, in 128 clusters."""
    path = tmp_path_factory.mktemp("fork") / "image.lzr"
    write_image(
        path, {"a": "dddr" * 64 + "drzh" * 48 + "zzzz" * 8 + "hhhh" * 8}, cluster_size=16384
    )
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """64 MiB: time enough for a background fill to be seen at work."""
    path = tmp_path_factory.mktemp("fork") / "large.lzr"
    write_image(path, {"a": "d" * (64 << 8)})
    return path


# ---- Children and their children -----------------------------------------------------------------


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_a_child_reads_what_its_parent_had_not_loaded(make_image, cluster_size):
    made = make_image({"a": "drzhdddz" * 160}, cluster_size=cluster_size)
    child(
        made,
        """
        with lazyrestore.restore(path, lazy=True) as session:
            region = session["a"]
            same(region, expected, [0, 700])
            before = session.stats()
            def work():
                assert missing(region) > pages // 8, "fork loaded the region"
                same(region, expected, shuffled(1))
                assert missing(region) == 0
            run(work)
            after = session.stats()
            assert (after.faults, after.clusters_decoded) == (
                before.faults, before.clusters_decoded
            ), "the child's loads are counted in the parent"
            assert missing(region) > pages // 8, "the child loaded the parent's memory"
            same(region, expected)
        """,
    )


def test_grandchildren_to_the_fifth_generation(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        def work(generation):
            same(region, expected, shuffled(7)[generation * 20 : generation * 20 + 20])
            if generation < 5:
                assert missing(region)
                run(work, generation + 1)
            same(region, expected)
        work(0)
        """,
    )


def test_brothers_and_their_parent_all_at_once(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        def work(number):
            same(region, expected, shuffled(number))
        children = []
        for number in range(8):
            children.append(fork(work, number))
            same(region, expected, shuffled(100)[number * 40 : number * 40 + 40])
        assert [end_of(pid) for pid in children] == [0] * 8
        """,
    )


def test_multiprocessing_by_fork(image):
    child(
        image,
        """
        import hashlib
        context = multiprocessing.get_context("fork")
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        def digest(page):
            return hashlib.sha256(region[page * PAGE : (page + 1) * PAGE]).digest()
        right = [hashlib.sha256(expected[i * PAGE : (i + 1) * PAGE]).digest() for i in range(pages)]
        # Workers end and are replaced: by forks from a thread of the pool, while others read.
        with context.Pool(3, maxtasksperchild=20) as pool:
            assert pool.map(digest, range(pages), chunksize=4) == right
        def check():
            same(region, expected)
        process = context.Process(target=check)
        process.start()
        process.join(20)
        assert process.exitcode == 0, process.exitcode
        assert [digest(page) for page in range(pages)] == right
        session.close()
        """,
    )


def test_a_child_that_ends_as_programs_do(image):
    """By sys.exit, with sessions open: the interpreter's end neither hangs nor crashes."""
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        same(region, expected, [3])
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                same(region, expected, [3, 100])
                sys.exit(0)
            assert end_of(pid) == 0
        """,
    )


def test_several_sessions_regions_and_original_addresses(tmp_path):
    path = tmp_path / "image.lzr"
    write_image(
        path,
        {"a": "drzh" * 40, "b": "d" * 99},
        addresses={"a": 0x2A0000000000, "b": 0x2B0000000000},
    )
    child(
        path,
        """
        other = contents(path)["b"]
        sessions = [lazyrestore.restore(path, lazy=True) for _ in range(3)]
        sessions.append(lazyrestore.restore(path, lazy=True, at_original_address=True))
        sessions[1].close()
        del sessions[1]
        def work():
            for session in sessions:
                same(session["a"], expected)
                same(session["b"], other)
            sessions.clear()
        run(work)
        run(run, work)
        work()
        """,
    )


# ---- The parent goes on, or ends -----------------------------------------------------------------


def test_children_while_the_fill_is_running(large):
    out = child(
        large,
        """
        session = lazyrestore.restore(path, lazy=True, prefetch="all")
        region = session["a"]
        def work(number):
            assert session.stats().fill == "none", session.stats().fill
            try:
                session.wait(0)
            except ValueError:
                pass
            else:
                raise AssertionError("a child waits for a fill that it has not got")
            same(region, expected, shuffled(number)[:2000])
            same(region, expected)
        children, missed = [], []
        for number in range(4):
            children.append(fork(work, number))
            missed.append(missing(region))
            same(region, expected, shuffled(10 + number)[:50])
        assert [end_of(pid) for pid in children] == [0] * 4
        assert session.wait() is True
        assert session.stats().fill == "complete"
        assert missing(region) == 0
        run(same, region, expected)
        same(region, expected)
        print(missed[0])
        """,
    ).stdout
    assert int(out) > 0, "the fill was over before the first fork: it shows nothing"


@pytest.mark.parametrize("end", ["exits", "is killed", "closes"])
def test_the_parent_ends_before_the_child_touches(image, end):
    child(
        image,
        """
        libc.prctl(36, 1, 0, 0, 0)  # orphans become ours
        here, there = os.pipe()
        def orphan(parent, region):
            while os.getppid() == parent:
                time.sleep(0.001)
            assert missing(region)
            run(same, region, expected, shuffled(1))
            same(region, expected, shuffled(2))
            os.write(there, b"right")
        def parent():
            session = lazyrestore.restore(path, lazy=True)
            region = session["a"]
            same(region, expected, range(0, pages, 50))
            fork(orphan, os.getpid(), region)
            if sys.argv[2] == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif sys.argv[2] == "closes":
                session.close()
                del session, region
        end_of(fork(parent))
        os.close(there)
        assert os.read(here, 100) == b"right"
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        """,
        end,
    )


def test_the_parent_is_killed_amid_faults_of_all(image):
    child(
        image,
        """
        libc.prctl(36, 1, 0, 0, 0)
        here, there = os.pipe()
        def one(region, number):
            for _ in range(3):
                same(region, expected, shuffled(number))
            os.write(there, b"right")
        def parent(number):
            session = lazyrestore.restore(path, lazy=True, prefetch="all")
            region = session["a"]
            for _ in range(3):
                fork(one, region, number)
            threading.Timer(0.001 * number, os.kill, (os.getpid(), signal.SIGKILL)).start()
            for again in range(1000):
                same(region, expected, shuffled(again))
        for number in range(8):
            code = end_of(fork(parent, number))
            assert code == -signal.SIGKILL, code
        os.close(there)
        codes, told = [], b""
        while True:
            try:
                codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
            except ChildProcessError:
                break
        assert codes == [0] * len(codes), codes
        assert os.read(here, 1000) == b"right" * len(codes)
        """,
    )


def test_a_session_that_is_left_while_a_view_lives(image):
    child(
        image,
        """
        with lazyrestore.restore(path, lazy=True) as session:
            view = memoryview(session["a"])
        del session
        run(same, view, expected)
        run(run, same, view, expected, shuffled(3))
        same(view, expected)
        """,
    )


# ---- Copy on write -------------------------------------------------------------------------------


def test_neither_sees_what_the_other_writes(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        model = bytearray(expected)
        def write(into, mark, pages):
            for page in pages:  # some loaded, most not; the rest of each page must stay
                at = page * PAGE + 8 * mark
                region[at : at + 8] = into[at : at + 8] = bytes([mark]) * 8
        same(region, expected, range(0, pages, 3))
        write(model, 1, range(0, pages, 5))
        asked, answer = os.pipe(), os.pipe()
        def work():
            mine = bytearray(model)
            write(mine, 2, range(0, pages, 7))
            os.write(answer[1], b"1")
            assert os.read(asked[0], 1) == b"1"  # the parent has written too
            same(region, bytes(mine), shuffled(5))
            def grandchild():
                ours = bytearray(mine)
                write(ours, 3, range(1, pages, 11))
                same(region, bytes(ours))
            run(grandchild)
            same(region, bytes(mine))
        pid = fork(work)
        assert os.read(answer[0], 1) == b"1"
        same(region, bytes(model), shuffled(6)[: pages // 2])
        write(model, 4, range(2, pages, 3))
        os.write(asked[1], b"1")
        assert end_of(pid) == 0
        same(region, bytes(model))
        """,
    )


def test_what_was_given_up_stays_given_up(image):
    """By the parent before the fork: zeros in both. By the child: zeros in the child alone."""
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        model = bytearray(expected)
        def drop(into, page, count):
            give_up(region, page, count)
            into[page * PAGE : (page + count) * PAGE] = bytes(count * PAGE)
        same(region, expected, range(0, 64, 2))
        region[3 * PAGE] = model[3 * PAGE] = 99
        drop(model, 0, 6)       # loaded, one of them written
        drop(model, 101, 9)     # not loaded, and not on borders of clusters
        def work():
            mine = bytearray(model)
            drop(mine, 20, 5)
            drop(mine, 151, 3)
            same(region, bytes(mine), shuffled(8))
            run(same, region, bytes(mine))
        run(work)
        same(region, bytes(model), shuffled(9))
        """,
    )


def test_a_region_that_its_owner_has_cut_up(image):
    """Parts unmapped, replaced, moved and protected: the rest is served, the new is let alone."""
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        address = region.address
        libc.mremap.restype = ctypes.c_void_p
        libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
        # Pages 10 to 19: memory of somebody else's now. 30 to 39: gone. 50 to 59: moved away.
        foreign = address + 10 * PAGE
        assert libc.mmap(foreign, 10 * PAGE, 3, 0x32, -1, 0) == foreign
        ctypes.memset(foreign, 0x77, 5 * PAGE)
        assert libc.munmap(address + 30 * PAGE, 10 * PAGE) == 0
        beside = libc.mmap(None, 10 * PAGE, 0, 0x22, -1, 0)
        moved = libc.mremap(address + 50 * PAGE, 10 * PAGE, 10 * PAGE, 3, ctypes.c_void_p(beside))
        assert moved == beside
        assert libc.mprotect(address + 70 * PAGE, 10 * PAGE, 1) == 0
        kept = [n for n in range(pages) if not (10 <= n < 20 or 30 <= n < 40 or 50 <= n < 60)]
        def work(depth):
            same(region, expected, kept)
            assert ctypes.string_at(foreign, 10 * PAGE) == b"w" * 5 * PAGE + bytes(5 * PAGE)
            assert ctypes.string_at(moved, 10 * PAGE) == expected[50 * PAGE : 60 * PAGE]
            if depth:
                run(work, depth - 1)
        run(work, 1)
        work(0)
        os._exit(0)  # the interpreter's end would unmap what is not all its own
        """,
    )
