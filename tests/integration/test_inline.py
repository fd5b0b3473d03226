"""Faults answered in the thread that touched: what a Python program may do, and what it may not."""

from __future__ import annotations

import signal

import pytest
from restore_support import run_in_child

import lazyrestore

pytestmark = pytest.mark.uffd

PREAMBLE = """
import faulthandler, gc, mmap, os, signal, sys, threading, zlib
import lazyrestore
from fork_support import *
path = sys.argv[1]
whole = contents(path)

def restored(**options):
    options.setdefault("prefetch", "none")
    return lazyrestore.restore(path, lazy=True, fault_mode="inline", **options)

def damage():
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, bytes(4000), 4096)
    os.close(fd)
"""


def child(made, script, **options):
    import textwrap

    return run_in_child(PREAMBLE + textwrap.dedent(script), made.path, **options)


@pytest.fixture
def image(make_image):
    return make_image({"data": "dzrd" * 100}, cluster_size=16384)


def test_inline_is_offered_to_the_unprivileged(image):
    """It asks for nothing that it could not use."""
    with lazyrestore.restore(
        image.path, lazy=True, fault_mode="inline", prefetch="none"
    ) as session:
        assert session["data"][:] == image.expected["data"]
        stats = session.stats()
        assert stats.faults > 0
        assert stats.service_us is not None
        assert session["data"].touch() == 400


def test_threads_fill_and_views(image):
    """Threads of Python touch, compute and write while a fill runs."""
    child(
        image,
        """
        session = restored(prefetch="all")
        region = session["data"]
        wrong = []

        def work(start):
            for page in range(start, 400, 3):
                at = page * PAGE
                if region[at : at + PAGE] != whole["data"][at : at + PAGE]:
                    wrong.append(page)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong
        assert session.wait()
        assert zlib.crc32(region) == zlib.crc32(whole["data"])
        region[5 * PAGE : 6 * PAGE] = bytes(PAGE)
        view = memoryview(region)
        session.__exit__(None, None, None)
        assert bytes(view[5 * PAGE : 7 * PAGE]) == bytes(PAGE) + whole["data"][6 * PAGE : 7 * PAGE]
        """,
    )


def test_system_calls_need_populate(image):
    """write(2) of what is missing fails; after populate(), or a touch, it does not."""
    child(
        image,
        """
        session = restored()
        region = session["data"]
        fd = os.memfd_create("file")
        try:
            os.write(fd, memoryview(region)[: 4 * PAGE])
        except OSError as error:
            assert error.errno == 14, error
        else:
            raise AssertionError("written though nothing was there")
        region.populate(0, 8 * PAGE)
        assert os.write(fd, memoryview(region)[: 8 * PAGE]) == 8 * PAGE
        assert os.pread(fd, 8 * PAGE, 0) == whole["data"][: 8 * PAGE]
        """,
    )


def test_children_have_it_too(image):
    """os.fork, of which the children answer their own faults."""
    child(
        image,
        """
        session = restored()
        region = session["data"]
        assert region[:PAGE] == whole["data"][:PAGE]
        for generation in range(3):
            pid = os.fork()
            if pid:
                _, status = os.waitpid(pid, 0)
                os._exit(0 if status == 0 else 1)
        try:
            same(region, whole["data"])
            assert session.stats().faults > 90
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
        """,
    )


def test_a_fence_kills_with_sigbus(image):
    """What cannot be loaded is no loop in the handler: the signal does what it does."""
    result = child(
        image,
        """
        session = restored()
        damage()
        print("touching", flush=True)
        session["data"][0]
        """,
        ok=False,
    )
    assert result.returncode == -signal.SIGBUS, result
    assert result.stdout == "touching\n"


def test_a_fence_reaches_the_handler_before(image):
    """faulthandler was there first: it says where the fence was met."""
    result = child(
        image,
        """
        faulthandler.enable()
        session = restored()
        assert session["data"][-PAGE:] == whole["data"][-PAGE:]
        damage()

        def here():
            session["data"][0]

        here()
        """,
        ok=False,
    )
    assert result.returncode == -signal.SIGBUS, result
    assert "Bus error" in result.stderr
    assert "in here" in result.stderr


def test_other_bus_errors_are_not_ours(image):
    """A mapped file that was cut short kills, as it did before."""
    result = child(
        image,
        """
        session = restored()
        fd = os.open(path + ".short", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, PAGE)
        mapped = mmap.mmap(fd, PAGE)
        os.ftruncate(fd, 0)
        same(session["data"], whole["data"])
        print("touching", flush=True)
        mapped[0]
        """,
        ok=False,
    )
    assert result.returncode == -signal.SIGBUS, result
    assert result.stdout == "touching\n"


def test_the_old_handler_comes_back(image):
    """With the last session the program has its own action of SIGBUS again."""
    child(
        image,
        """
        def handled():
            # SigCgt: bit number - 1.
            status = open("/proc/self/status").read()
            caught = int(status.partition("SigCgt:")[2].split()[0], 16)
            return bool(caught >> (signal.SIGBUS - 1) & 1)

        assert not handled()
        first = restored()
        second = restored()
        first.close()
        del first
        gc.collect()
        assert handled()
        same(second["data"], whole["data"])
        second.close()
        del second
        gc.collect()
        assert not handled()
        """,
    )
