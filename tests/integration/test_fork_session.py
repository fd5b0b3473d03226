"""A session in forked children: it works, it ends, it leaves nothing behind, however many fork."""

from __future__ import annotations

import textwrap

import pytest
from restore_support import run_in_child, write_image

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


# ---- The session in a child ----------------------------------------------------------------------


def test_the_session_works_in_a_child(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True, trace=64)
        region = session["a"]
        def work():
            start = session.stats()
            region.populate(0, 40 * PAGE)
            between = session.stats()
            assert 0 < between.pages_copied - start.pages_copied <= 40, (start, between)
            assert between.faults == start.faults
            same(region, expected, shuffled(1))
            after = session.stats()
            assert after.faults > between.faults
            data = sum(bool(any(expected[i * PAGE : (i + 1) * PAGE])) for i in range(pages))
            assert after.pages_copied - start.pages_copied == data, (start, after, data)
            assert after.privilege == "full"
            assert session.errors == []
            assert region.touch() == pages
            session.read_trace()
            region.populate(timeout=5)
        run(work)
        stats = session.stats()
        assert (stats.faults, stats.pages_copied, stats.errors) == (0, 0, 0), stats
        assert session.read_trace() == []
        same(region, expected)
        """,
    )


def test_a_child_closes_its_session_and_the_parent_goes_on(image):
    child(
        image,
        """
        files, count = len(open_files()), threads()
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        same(region, expected, [0])
        held, pagers = open_files(), threads()
        def work(deep):
            if deep:
                run(work, deep - 1)
            address = region.address
            same(region, expected, [100])
            assert userfaultfds() == 1, open_files()
            assert threads() == pagers, threads()
            session.close()
            assert userfaultfds() == 0, open_files()
            assert threads() == count, threads()
            assert len(open_files()) <= files + 1, open_files()  # the device may be kept
            dies_by_fence(ctypes.string_at, address, 1)
            try:
                region[0]
            except ValueError:
                pass
            else:
                raise AssertionError("read a closed region")
        for deep in (0, 0, 1):
            run(work, deep)
            assert open_files() == held, "descriptors are left behind"
            assert threads() == pagers, "threads are left behind"
        same(region, expected)
        session.close()
        assert threads() == count
        """,
    )


def test_a_child_restores_for_itself(make_image, image):
    other = make_image({"a": "rd" * 50, "b": "dzh" * 20}, salt=3)
    child(
        image,
        """
        more = contents(sys.argv[2])
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        def work():
            with (
                lazyrestore.restore(sys.argv[2], lazy=True, prefetch="all") as own,
                lazyrestore.restore(path, lazy=True) as again,
            ):
                def grandchild():
                    same(again["a"], expected, shuffled(2))
                    same(own["b"], more["b"])
                    same(region, expected)
                run(grandchild)
                same(own["a"], more["a"])
                same(region, expected, shuffled(3))
                same(again["a"], expected)
                assert own.wait() is True
            session.close()
            with lazyrestore.restore(path, lazy=True) as own:
                same(own["a"], expected)
        run(work)
        same(region, expected)
        """,
        other.path,
    )


def test_a_childs_pager_blocks_signals_and_takes_part_in_setuid(image):
    """Signals are the program's; setuid asks every thread, and would wait for one that is deaf."""
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        def work():
            blocked = []
            for task in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{task}/status") as file:
                    status = dict(line.split(":", 1) for line in file)
                blocked.append((int(task), int(status["SigBlk"], 16)))
            assert len(blocked) >= 2, blocked  # this one, and the pager
            for task, mask in blocked:
                if task != os.getpid():
                    assert mask & 0x7FFBFEFF == 0x7FFBFEFF, hex(mask)  # all but KILL and STOP
            seen = []
            signal.signal(signal.SIGUSR1, lambda *_: seen.append(threading.get_native_id()))
            for number in range(100):
                os.kill(os.getpid(), signal.SIGUSR1)
                same(region, expected, [number])
            assert set(seen) == {os.getpid()}, seen
            if os.geteuid() == 0:
                become_nobody()
            same(region, expected)
        run(work)
        """,
    )


# ---- Many at once --------------------------------------------------------------------------------


def test_forks_from_many_threads_amid_faults(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True, prefetch="all")
        region = session["a"]
        failures = []
        def forks(number):
            for again in range(15):
                code = end_of(fork(same, region, expected, shuffled(number * 100 + again)[:60]))
                if code:
                    failures.append(code)
        def touches(number):
            same(region, expected, shuffled(number))
        workers = [threading.Thread(target=forks, args=(number,)) for number in range(4)]
        workers += [threading.Thread(target=touches, args=(number,)) for number in range(2)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        assert not failures, failures
        same(region, expected)
        session.close()
        """,
        timeout=60,
    )


def test_forks_while_others_give_up_populate_restore_and_close(image):
    """What the child inherits is something that was: an image's page, or zeros where given up."""
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        over, failures, done = threading.Event(), [], [0, 0, 0, 0]
        fills = ["none", "all"]
        state = {"scratch": lazyrestore.restore(path, lazy=True)}
        def give_ups(random):
            give_up(state["scratch"]["a"], random.randrange(pages - 8), random.randrange(1, 8))
        def populates(random):
            state["scratch"]["a"].populate(random.randrange(pages) * PAGE, PAGE)
        def restores(random):
            with lazyrestore.restore(path, lazy=True, prefetch=random.choice(fills)) as own:
                same(own["a"], expected, random.sample(range(pages), 10))
        def renews(random):
            time.sleep(0.02)
            old, state["scratch"] = state["scratch"], lazyrestore.restore(path, lazy=True)
            # Only forgotten: another thread may be using it, and the last to let go closes it.
        def loop(number, work):
            chance = random.Random(number)
            try:
                while not over.is_set():
                    work(chance)
                    done[number] += 1
            except BaseException as error:
                failures.append(error)
                raise
        workers = [
            threading.Thread(target=loop, args=given)
            for given in enumerate((give_ups, populates, restores, renews))
        ]
        for worker in workers: worker.start()
        def work(number, scratch):
            some = shuffled(number)[:40]
            same(region, expected, some)
            for page in some:
                here = slice(page * PAGE, (page + 1) * PAGE)
                assert scratch["a"][here] in (expected[here], bytes(PAGE)), page
            if number % 3 == 0:
                run(work, number + 1, scratch)
            if number % 3 == 1:
                session.close()
        for number in range(60):
            run(work, number, state["scratch"])
        over.set()
        for worker in workers: worker.join()
        assert not failures, failures
        assert min(done) > 3, done
        same(region, expected)
        """,
        timeout=60,
    )


def test_a_fork_while_another_thread_uses_the_library_for_the_first_time():
    run_in_child(
        """
        import os, signal, sys, threading
        import lazyrestore
        begun, forked = threading.Event(), threading.Event()

        class Slow:  # to be imported
            def find_spec(self, name, path=None, target=None):
                if name == "lazyrestore._open" and not begun.is_set():
                    begun.set()
                    forked.wait(1)  # in vain: the fork waits for this

        sys.meta_path.insert(0, Slow())
        thread = threading.Thread(target=lambda: lazyrestore.open)
        thread.start()
        begun.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(15)
            lazyrestore.open
            os._exit(0)
        forked.set()
        assert os.waitpid(pid, 0)[1] == 0
        thread.join()
        """
    )
