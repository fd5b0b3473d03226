"""A page is seen whole or not at all, by whoever looks when it comes; and who waits is woken.

Each page's content tells its number in every word of it, or is noise, so that half a page shows.
The looking is done in C, by threads that go from page to page together.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap

import pytest
from restore_support import CLUSTER_SIZES, TESTS, run_in_child

pytestmark = pytest.mark.uffd

PREAMBLE = """
import ctypes, mmap, os, random, signal, sys, threading, time
import lazyrestore
from fork_support import *
path, library = sys.argv[1:3]
expected = contents(path)["a"]
pages = len(expected) // PAGE
right = ctypes.create_string_buffer(expected, len(expected))
torn = ctypes.CDLL(library)
torn.torn_run.restype = ctypes.c_uint64
torn.torn_peek.restype = ctypes.c_int64
ROLES = {"up": 0, "down": 1, "across": 2, "system": 3, "store": 4, "touch": 5}
def shuffled(seed, count=pages):
    order = list(range(pages))
    random.Random(seed).shuffle(order)
    return order[:count]
def look(region, order, roles, spread=1):
    '''All at once at each page of `order`, one thread a role; any wrong word is an error.'''
    roles = roles.split()
    where = ctypes.c_uint64()
    wrong = torn.torn_run(
        ctypes.c_void_p(region.address), right, (ctypes.c_uint32 * len(order))(*order), len(order),
        bytes(ROLES[role] for role in roles), len(roles), spread, ctypes.byref(where))
    assert wrong == 0, f"{wrong} wrong; the first in page {where.value}"
def in_thread(work, *arguments):
    failures = []
    def guarded():
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)
            raise
    thread = threading.Thread(target=guarded)
    thread.start()
    def join():
        thread.join()
        assert not failures, failures
    return join
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = os.environ.get("CC", "gcc")
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"no C compiler: {compiler}")
    path = tmp_path_factory.mktemp("torn") / "torn.so"
    source = TESTS / "torn_pages.c"
    options = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*compiler.split(), *options, "-o", str(path), str(source)], check=True)
    return path


@pytest.fixture
def look(library):
    def run(made, script, *arguments, **options):
        script = PREAMBLE + textwrap.dedent(script)
        return run_in_child(script, made.path, library, *arguments, timeout=60, **options)

    return run


# ---- Whole or not at all -------------------------------------------------------------------------


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_threads_at_the_page_that_comes(make_image, look, cluster_size, prefetch):
    """Reads, copies by the kernel and stores of one page, in the moment in which it is loaded."""
    made = make_image({"a": "drdz" * 256}, cluster_size=cluster_size)
    look(
        made,
        """
        for round in range(4):
            with lazyrestore.restore(path, lazy=True, prefetch=sys.argv[3]) as session:
                region = session["a"]
                # In the order of a fill, or in any.
                order = list(range(pages)) if round == 0 else shuffled(round, 600)
                look(region, order, "up down across system")
            with lazyrestore.restore(path, lazy=True, prefetch=sys.argv[3]) as session:
                look(session["a"], shuffled(round + 9, 600), "store up system store")
        """,
        prefetch,
    )


@pytest.mark.parametrize("cluster_size", [16384, 262144])
def test_neighbouring_pages(make_image, look, cluster_size):
    """Each thread has a page of its own, next to the others', in one cluster or across two."""
    made = make_image({"a": "drhd" * 256}, cluster_size=cluster_size)
    look(
        made,
        """
        plans = ("up down store across", "system store up touch", "across " * 6)
        for round, roles in enumerate(plans):
            spread = len(roles.split())
            for prefetch in ("none", "all"):
                for shift in (0, 3):
                    order = list(range(shift, pages - 8, spread))
                    random.Random(round).shuffle(order)
                    with lazyrestore.restore(path, lazy=True, prefetch=prefetch) as session:
                        look(session["a"], order, roles, spread)
        """,
    )


def test_user_mode_only(make_image, look):
    made = make_image({"a": "drdz" * 256}, cluster_size=65536)
    look(
        made,
        """
        for prefetch in ("none", "all"):
            for round in range(3):
                with lazyrestore.restore(
                    path, lazy=True, prefetch=prefetch, privilege="user-mode-only"
                ) as session:
                    assert session.stats().privilege == "user-mode-only"
                    look(session["a"], shuffled(round), "up down across store")
        """,
    )


def test_while_others_populate(make_image, look):
    made = make_image({"a": "drdz" * 256}, cluster_size=16384)
    look(
        made,
        """
        def populate(region, seed):
            for page in shuffled(seed):
                region.populate(page * PAGE, PAGE)
        for round in range(4):
            with lazyrestore.restore(path, lazy=True, prefetch="all") as session:
                region = session["a"]
                joins = [in_thread(populate, region, round), in_thread(populate, region, 50)]
                look(region, shuffled(round), "up store system down")
                for join in joins: join()
        """,
    )


@pytest.mark.parametrize("privilege", ["full", "user-mode-only"])
@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_another_process_looks_on(make_image, look, privilege, prefetch):
    """By process_vm_readv: each read is of the whole page, or is refused."""
    made = make_image({"a": "drdz" * 512}, cluster_size=65536)
    look(
        made,
        """
        libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # where Yama is, allow it
        pid = os.getpid()
        for round in range(3):
            told, tell = os.pipe()
            def peek(seed):
                os.close(tell)  # or the parent's failure would leave this one waiting
                address = os.read(told, 8)
                if not address:
                    return
                refused = ctypes.c_uint64()
                order = (ctypes.c_uint32 * pages)(*shuffled(seed))
                wrong = torn.torn_peek(
                    pid, ctypes.c_uint64(int.from_bytes(address, "little")), right, order, pages,
                    ctypes.byref(refused))
                assert wrong == 0, wrong
                assert sys.argv[3] != "full" or refused.value == 0, refused.value
            children = [fork(peek, round), fork(peek, round + 100)]
            os.close(told)
            session = lazyrestore.restore(
                path, lazy=True, prefetch=sys.argv[4], privilege=sys.argv[3])
            region = session["a"]
            os.write(tell, region.address.to_bytes(8, "little"))
            os.write(tell, region.address.to_bytes(8, "little"))
            os.close(tell)
            look(region, shuffled(round), "up down")
            assert [end_of(child) for child in children] == [0, 0]
            session.close()
        """,
        privilege,
        prefetch,
    )


def test_direct_writes_to_a_file(make_image, look, tmp_path):
    """O_DIRECT: the kernel pins the pages and hands them to the device."""
    try:
        os.close(os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {tmp_path}: {error}")
    made = make_image({"a": "drdz" * 256}, cluster_size=65536)
    look(
        made,
        """
        for prefetch in ("none", "all"):
            with lazyrestore.restore(path, lazy=True, prefetch=prefetch) as session:
                region = session["a"]
                view = memoryview(region)
                def write(order):
                    fd = os.open(sys.argv[3], os.O_WRONLY | os.O_DIRECT)
                    for page in order:
                        here = slice(page * PAGE, (page + 4) * PAGE)
                        assert os.pwrite(fd, view[here], page * PAGE) == 4 * PAGE
                    os.close(fd)
                quarters = [4 * n for n in range(pages // 4)]
                random.Random(3).shuffle(quarters)
                join = in_thread(write, quarters)
                look(region, quarters, "up system down touch", 4)
                join()
                view.release()
            with open(sys.argv[3], "rb") as file:
                same(file.read(), expected)
        """,
        tmp_path / "out",
    )


# ---- Nobody is left waiting ----------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", ["none", "all"])
@pytest.mark.parametrize(("cluster_size", "spread"), [(4096, 1), (16384, 1), (16384, 4)])
def test_all_that_wait_for_a_page_go_on(make_image, look, cluster_size, spread, prefetch):
    """Eight threads at once, thousands of pages: one lost wake-up hangs, and time runs out."""
    made = make_image({"a": "ddzr" * 1024}, cluster_size=cluster_size)
    look(
        made,
        """
        spread = int(sys.argv[3])
        with lazyrestore.restore(path, lazy=True, prefetch=sys.argv[4]) as session:
            order = [n for n in range(0, pages - spread, spread)]
            look(session["a"], order, "touch touch system touch touch system touch touch", spread)
        """,
        spread,
        prefetch,
    )


def test_waiting_while_signals_arrive(make_image, look):
    """A signal takes a thread out of its wait, and it comes back to it."""
    made = make_image({"a": "ddzr" * 768}, cluster_size=4096)
    look(
        made,
        """
        count = 0
        def tick(*_):
            global count
            count += 1
        signal.signal(signal.SIGALRM, tick)
        signal.siginterrupt(signal.SIGALRM, False)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for prefetch in ("none", "all"):
            with lazyrestore.restore(path, lazy=True, prefetch=prefetch) as session:
                look(session["a"], shuffled(1), "touch touch up touch")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert count > 0
        """,
    )


def test_waiting_while_pages_are_given_up(make_image, look):
    """Messages of give-ups come between those of faults: none of either is lost."""
    made = make_image({"a": "ddzr" * 512, "b": "d" * 512}, cluster_size=16384)
    look(
        made,
        """
        over = threading.Event()
        def give_ups(region):
            chance = random.Random(4)
            while not over.is_set():
                give_up(region, chance.randrange(500), chance.randrange(1, 12))
                region[chance.randrange(len(region))]
        for prefetch in ("none", "all"):
            for round in range(2):
                with lazyrestore.restore(path, lazy=True, prefetch=prefetch) as session:
                    over.clear()
                    join = in_thread(give_ups, session["b"])
                    look(session["a"], shuffled(round, 1500), "touch up system store")
                    over.set()
                    join()
        """,
    )


def test_waiting_while_children_are_made(make_image, look):
    """Who waits in the parent when it forks is served; and so is the child."""
    made = make_image({"a": "ddzr" * 512}, cluster_size=16384)
    look(
        made,
        """
        over = threading.Event()
        def forks(region):
            for number in range(1000):
                code = end_of(fork(same, region, expected, shuffled(number, 30)))
                assert code == 0, code
                if over.is_set():
                    break
        for round in range(3):
            with lazyrestore.restore(path, lazy=True, prefetch="none") as session:
                over.clear()
                join = in_thread(forks, session["a"])
                look(session["a"], shuffled(round), "touch up system down")
                over.set()
                join()
        """,
    )
