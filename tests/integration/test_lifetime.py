"""However a session ends: no crash, no hang, no zeros, nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys

import pytest
from restore_support import PAGE, mapping_at, run_in_child, threads_become, threads_named

import lazyrestore
from lazyrestore import _core, _native, _open

pytestmark = pytest.mark.uffd

PLACE = 0x2000_0000_0000  # far from what the kernel chooses


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("lazy", [True, False])
def test_200_cycles_leak_no_descriptor_thread_or_mapping(small, lazy):
    with lazyrestore.restore(small.path, lazy=lazy) as session:
        session["data"].array()  # imports numpy
    del session
    gc.collect()
    fds, threads = descriptors(), threads_named()
    with open("/proc/self/maps") as maps:
        mappings = len(maps.readlines())
    for number in range(200):
        session = lazyrestore.restore(small.path, lazy=lazy)
        _ = session["data"][5000]
        match number % 4:
            case 0:
                session.close()
            case 1:
                with session:
                    pass
            case 2:
                session["data"].mine = session["data"]
                array = session["data"].array()
                with session:
                    del array
            case _:
                pass
        del session
    gc.collect()
    assert descriptors() == fds
    assert threads_become(threads)
    with open("/proc/self/maps") as maps:
        now = maps.readlines()
    assert len(now) < mappings + 20, now


def test_failed_restores_leak_nothing(small, tmp_path):
    broken = tmp_path / "broken.lzr"
    broken.write_bytes(small.path.read_bytes()[:-5])
    fds, threads = descriptors(), threads_named()
    for _ in range(100):
        with pytest.raises(lazyrestore.ImageError):
            lazyrestore.restore(broken)
        with pytest.raises(ValueError, match="address"):
            lazyrestore.restore(small.path, at_original_address=True)
    gc.collect()
    assert descriptors() == fds
    assert threads_become(threads)


def test_a_region_kept_after_with_holds_no_pager(small):
    before = threads_named()
    with lazyrestore.restore(small.path, lazy=True) as session:
        region = session["data"]
    assert threads_become(before)
    assert region.closed


def test_a_cycle_of_region_and_view_is_collected(small):
    before = threads_named()
    session = lazyrestore.restore(small.path, lazy=True)
    region = session["data"]
    region.view = memoryview(region)  # (numpy's arrays do not tell the collector what they hold)
    region.session = session
    address = region.address
    del region, session
    gc.collect()
    assert mapping_at(address) is None
    assert threads_become(before)


def test_finalisers_in_a_cycle_may_use_the_region(small):
    seen = []

    class Owner:
        def __del__(self):
            seen.append(self.region[:])
            self.region.populate()
            seen.append(self.session.stats().errors)

    for _ in range(5):
        first, second = Owner(), Owner()
        for owner in (first, second):
            owner.session = lazyrestore.restore(small.path, lazy=True)
            owner.region = owner.session["data"]
            owner.view = memoryview(owner.region)
            owner.region.owner = owner
            owner.others = (first, second)
        del first, second, owner
        gc.collect()
    assert seen == [small.expected["data"], 0] * 10


def test_a_collected_region_fences_nothing_of_a_later_session(make_image):
    """The first session goes on, with a region whose memory the second one has by now."""
    # In a process of its own, where there is no other gap that a region would fit into.
    made = make_image({"data": "d" * 8192, "more": "d" * 16})
    run_in_child(
        """
        import gc, sys
        import lazyrestore
        path = sys.argv[1]
        with lazyrestore.open(path) as image:
            expected = image.read("data")
        reused = 0
        for _ in range(5):
            first = lazyrestore.restore(path, lazy=True)
            region, keep = first["data"], first["more"]
            address = region.address
            region.view = memoryview(region)
            kept_view = memoryview(keep)
            with first:
                pass
            del first, region
            gc.collect()
            second = lazyrestore.restore(path, lazy=True)
            reused += abs(address - second["data"].address) < len(expected)
            del keep, kept_view
            gc.collect()
            assert second["data"][:] == expected
            assert second.stats().errors == 0
            second.close()
        assert reused
        """,
        made.path,
    )


def test_a_later_session_at_the_same_address_never_gets_earlier_bytes(make_image):
    """Threads touch to the last moment, and the pager is still busy with what they touched."""
    # A touch brings one page of a cluster of 512, and then the others, one by one.
    images = [
        make_image(
            {"a": layout * 256, "b": "d"},
            salt=salt,
            cluster_size=2 << 20,
            addresses={"a": PLACE, "b": PLACE + (number << 30)},
        )
        for number, salt, layout in ((1, 1, "dz"), (2, 2, "zd"))
    ]
    run_in_child(
        """
        import gc, sys
        import lazyrestore
        paths = sys.argv[1:]
        expected = [lazyrestore.open(path).read("a") for path in paths]
        reused, last, kept = 0, {}, []
        def first(number, placed):
            session = lazyrestore.restore(paths[0], lazy=True, at_original_address=placed)
            region = session["a"]
            last[placed] = region.address
            # The pager goes on, for the other region.
            kept[:] = [memoryview(session["b"])]
            region.touch(1)
            # At once, while the rest of the cluster is being installed:
            match number % 4:
                case 0:
                    region.me = memoryview(region)
                    del region, session
                    gc.collect()
                case 1:
                    region.close()
                case 2:
                    del region
                    with session: pass
        for number in range(200):
            placed = number % 3 == 0
            first(number, placed)
            with lazyrestore.restore(paths[1], lazy=True, at_original_address=placed) as session:
                reused += session["a"].address == last[placed]
                assert session["a"][:] == expected[1], number
                assert session.stats().pages_copied == 256
                assert session.stats().pages_zeroed == 256
            kept.clear()
        assert reused > 20, reused
        """,
        *(made.path for made in images),
        timeout=60,
    )


ENDINGS = {
    "global": "",
    "region only": "region = session['data']; del session",
    "view": "view = memoryview(session['data'])",
    "array": "array = session['data'].array(); del session",
    "cycle": "session['data'].me = session; view = memoryview(session['data']); del session",
    "in with, by exit": "session.__enter__(); array = session['data'].array(); sys.exit(0)",
    "atexit": """
import atexit
atexit.register(lambda: check(session['data'][:]))
""",
    "atexit close": "import atexit; atexit.register(session.close)",
    "os._exit": "os._exit(0)",
    "thread": """
import threading
def touch(region=session['data']):
    while True:
        region.touch(64, order='random')
for _ in range(2):
    threading.Thread(target=touch, daemon=True).start()
""",
    "many": "more = [lazyrestore.restore(sys.argv[1], lazy=True) for _ in range(5)]",
    "module": "import builtins; sys.modules['mine'] = builtins.mine = session",
    "finaliser": """
class Late:
    def __del__(self, check=check):
        check(self.region[:])
late = Late(); late.region = session['data']; late.me = late; del session
""",
    "placed": """
from lazyrestore import ImageWriter
path = sys.argv[1] + f'.{os.getpid()}'
with ImageWriter(path) as image:
    image.add_region('p', address=0x200000000000); image.write(b'x' * 100000)
placed = lazyrestore.restore(path, lazy=True, at_original_address=True)
view = memoryview(placed['p']); os.unlink(path)
""",
}


def test_100_exits_with_a_live_session(small):
    """Every kind of end, several times, and not one crash, hang or word on stderr."""
    script = """
import os, sys
import lazyrestore
expected = lazyrestore.open(sys.argv[1]).read("data")
def check(got, expected=expected):
    if got != expected:
        os.write(2, b"wrong bytes")
        os._exit(9)
session = lazyrestore.restore(sys.argv[1], lazy=True)
_ = session["data"][5000]
"""
    # One interpreter per exit, by fork from a warm one that has no session yet.
    run_in_child(
        """
        import os, signal, sys, time
        import lazyrestore, numpy
        lazyrestore.restore, lazyrestore.open, lazyrestore.ImageWriter  # imported
        endings = sys.argv[2:]
        for number in range(100):
            source = endings[number % len(endings)]
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                import __main__
                exec(source, vars(__main__))
                sys.exit(0)
            _, status = os.waitpid(child, 0)
            assert status == 0, (os.waitstatus_to_exitcode(status), source)
        """,
        small.path,
        *(script + ending for ending in ENDINGS.values()),
        timeout=90,
    )


@pytest.mark.parametrize("name", ENDINGS)
def test_a_fresh_interpreter_exits_cleanly(small, name):
    run_in_child(
        """
        import os, sys
        import lazyrestore
        expected = lazyrestore.open(sys.argv[1]).read("data")
        def check(got, expected=expected):
            if got != expected:
                os.write(2, b"wrong bytes")
                os._exit(9)
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        _ = session["data"][5000]
        exec(sys.argv[2])
        """,
        small.path,
        ENDINGS[name],
    )


# ---- fork ----------------------------------------------------------------------------------------


def test_a_forked_child_reads_what_its_parent_had_not_loaded(small):
    run_in_child(
        """
        import os, sys
        import lazyrestore
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        expected = lazyrestore.open(sys.argv[1]).read("data")
        region = session["data"]
        assert region[0] == expected[0]
        child = os.fork()
        if child == 0:
            os._exit(region[:] != expected)
        assert os.waitpid(child, 0)[1] == 0
        assert region[:] == expected
        """,
        small.path,
    )


def test_a_forked_child_may_collect_close_and_exit(small):
    run_in_child(
        """
        import gc, os, signal, sys
        import lazyrestore
        expected = lazyrestore.open(sys.argv[1]).read("data")
        def parent():
            session = lazyrestore.restore(sys.argv[1], lazy=True)
            return session, session["data"]
        def close(s, r): s.close()
        def leave(s, r):
            with s: pass
        def collect(s, r): r.me = s
        def populate(s, r):
            r.populate()
            assert s.stats().pages_copied and not s.stats().faults
            assert r[:] == expected
        def ask(s, r): s.stats(), s.errors, s.read_trace(), repr(s), repr(r)
        def again(s, r):
            with lazyrestore.restore(sys.argv[1], lazy=True) as mine:
                assert mine["data"][:] == expected
        def eager(s, r):
            with lazyrestore.restore(sys.argv[1], lazy=False) as mine:
                assert mine["data"][:] == expected
        def grandchild(s, r):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                again(s, r)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
        for action in (close, leave, collect, populate, ask, again, eager, grandchild):
            session, region = parent()
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                action(session, region)
                del session, region
                gc.collect()
                sys.exit(0)
            status = os.waitpid(child, 0)[1]
            assert status == 0, (action, os.waitstatus_to_exitcode(status))
            assert region[:] == expected, action
            session.close()
        """,
        small.path,
    )


@pytest.mark.parametrize("placed", [False, True])
def test_a_child_that_drops_an_inherited_region_keeps_its_own_memory(make_image, placed):
    made = make_image({"a": "d" * 256}, addresses={"a": 0x2000_0000_0000})
    run_in_child(
        """
        import gc, mmap, os, signal, sys
        import lazyrestore
        placed = sys.argv[2] == "1"
        session = lazyrestore.restore(sys.argv[1], lazy=True, at_original_address=placed)
        address, length = session["a"].address, len(session["a"])
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            mine = [mmap.mmap(-1, length) for _ in range(200)]
            for number, memory in enumerate(mine):
                memory[:] = bytes([number]) * length
            with session: pass
            del session
            gc.collect()
            for number, memory in enumerate(mine):
                assert memory[:] == bytes([number]) * length
            sys.exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, os.waitstatus_to_exitcode(status)
        """,
        made.path,
        int(placed),
    )


def test_forks_while_threads_touch_neither_hang_nor_harm(make_image):
    made = make_image({"a": "dr" * 1000}, cluster_size=4096)
    run_in_child(
        """
        import os, signal, sys, threading
        import lazyrestore
        expected = lazyrestore.open(sys.argv[1]).read("a")
        for _ in range(8):
            with lazyrestore.restore(sys.argv[1], lazy=True) as session:
                region = session["a"]
                threads = [
                    threading.Thread(target=region.touch, kwargs={"order": "random", "seed": n})
                    for n in range(3)
                ]
                for thread in threads: thread.start()
                for _ in range(10):
                    child = os.fork()
                    if child == 0:
                        signal.alarm(10)
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
                for thread in threads: thread.join()
                assert region[:] == expected
        """,
        made.path,
    )


def test_subprocesses_run_while_regions_are_lazy(small):
    import subprocess

    with lazyrestore.restore(small.path, lazy=True) as session:
        for options in ({}, {"close_fds": False}, {"preexec_fn": lambda: None}):
            out = subprocess.run(
                [sys.executable, "-c", "print(2)"],
                stdout=subprocess.PIPE,
                timeout=60,
                check=True,
                **options,
            )
            assert out.stdout == b"2\n"
        # A lazy region as the input of another program.
        out = subprocess.run(
            ["cat"], input=memoryview(session["data"]), stdout=subprocess.PIPE, timeout=60
        )
        assert out.stdout == small.expected["data"]


def test_descriptors_are_not_inherited_by_other_programs(small):
    with lazyrestore.restore(small.path, lazy=True):
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue
            if "userfaultfd" in target or target == str(small.path) or "eventfd" in target:
                assert not os.get_inheritable(int(fd)), target


# ---- Signals, and the file underneath ------------------------------------------------------------


def test_ctrl_c_ends_populate_soon_and_the_session_goes_on(tmp_path):
    path = tmp_path / "large.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("large")
        image.write(b"begin")
        image.zero(200 << 30)
    run_in_child(
        """
        import os, signal, sys, threading, time
        import lazyrestore
        with lazyrestore.restore(sys.argv[1], lazy=True) as session:
            def interrupt():
                while session.stats().pages_zeroed < 100_000:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)
            threading.Thread(target=interrupt).start()
            try:
                session["large"].populate()
            except KeyboardInterrupt:
                print("interrupted")
            assert session["large"][:6] == b"begin\\0"
        """,
        path,
        timeout=60,
    )


@pytest.mark.parametrize("opens", ["lr_image_open", "lr_session_open"])
def test_ctrl_c_while_it_is_opened_leaves_nothing_open(small, monkeypatch, opens):
    """It is raised right behind the call, by which all is done"""

    class Interrupted:
        def __getattr__(self, name):
            function = getattr(_native.lib, name)
            return function if name != opens else lambda *given: self.interrupt(function(*given))

        def interrupt(self, code):
            assert code == 0
            raise KeyboardInterrupt

    before, threads = descriptors(), threads_named()
    for module in (_open, _core):
        monkeypatch.setattr(module, "lib", Interrupted())
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            lazyrestore.restore(small.path, lazy=True)
    monkeypatch.undo()
    gc.collect()
    assert threads_become(threads)
    assert descriptors() == before


def test_ctrl_c_in_the_place_of_a_finaliser_leaves_nothing_open(small):
    run_in_child(
        """
        import gc, os, sys, threading
        import lazyrestore

        met = []

        def interrupt(frame, event, argument):
            code = frame.f_code
            if code.co_filename.endswith(("weakref.py", "region.py")) and code.co_name in (
                "__call__", "__del__"
            ):
                met.append(code.co_name)
                raise KeyboardInterrupt  # as at its first instruction; and no more of these

        def there():
            return len(os.listdir("/proc/self/fd"))

        sys.unraisablehook = lambda _: None
        before = there()
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        assert session["data"][0] >= 0
        sys.settrace(interrupt)
        try:
            session.__exit__(None, None, None)
            del session
        finally:
            sys.settrace(None)
        gc.collect()
        assert len(met) == 1, met
        assert there() == before
        """,
        small.path,
        timeout=60,
    )


def test_signals_during_touches_do_no_harm(make_image):
    made = make_image({"a": "dr" * 2000}, cluster_size=4096)
    run_in_child(
        """
        import signal, sys
        import lazyrestore
        count = 0
        def tick(number, frame):
            global count
            count += 1
        signal.signal(signal.SIGALRM, tick)
        expected = lazyrestore.open(sys.argv[1]).read("a")
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        for privilege in ("full", "user-mode-only"):
            with lazyrestore.restore(sys.argv[1], lazy=True, privilege=privilege) as session:
                region = session["a"]
                for offset in range(0, len(region), 4096):
                    assert region[offset : offset + 4096] == expected[offset : offset + 4096]
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert count > 10
        """,
        made.path,
    )


def test_an_image_that_is_replaced_goes_on_as_it_was(make_image):
    old = make_image({"a": "d" * 256}, salt=1)
    new = make_image({"a": "d" * 256}, salt=2)
    with lazyrestore.restore(old.path, lazy=True) as session:
        assert session["a"][:PAGE] == old.expected["a"][:PAGE]
        os.rename(new.path, old.path)
        assert session["a"][:] == old.expected["a"]
        assert session["a"].metadata == {}
    with lazyrestore.restore(old.path, lazy=True) as session:
        assert session["a"][:] == new.expected["a"]


def test_an_image_that_is_deleted_goes_on(make_image):
    made = make_image({"a": "d" * 256})
    with lazyrestore.restore(made.path, lazy=True) as session:
        os.unlink(made.path)
        assert session["a"][:] == made.expected["a"]
        assert session.errors == []


def test_a_killed_process_is_gone_at_once(make_image):
    made = make_image({"a": "d" * 256})
    result = run_in_child(
        """
        import os, signal, sys
        import lazyrestore
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        session["a"].touch(100)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        made.path,
        ok=False,
    )
    assert result.returncode == -signal.SIGKILL


def test_closing_while_another_thread_reads_bytes(small):
    """Reading a byte keeps the GIL until the page is there: closing must not need it meanwhile."""
    run_in_child(
        """
        import sys, threading, time
        import lazyrestore
        for _ in range(200):
            session = lazyrestore.restore(sys.argv[1], lazy=True)
            region = session["data"]
            started = threading.Event()
            def read():
                started.set()
                offset = 0
                try:
                    while True:
                        region[offset]
                        offset += 4096
                except (ValueError, IndexError):
                    pass
            reader = threading.Thread(target=read)
            reader.start()
            started.wait()
            session.close()
            reader.join()
        """,
        small.path,
        timeout=60,
    )


def test_closing_ends_a_wait_for_the_trace(small):
    run_in_child(
        """
        import sys, threading, time
        import lazyrestore
        session = lazyrestore.restore(sys.argv[1], lazy=True, trace=16)
        reader = threading.Thread(target=session.read_trace, args=(None,))
        reader.start()
        time.sleep(0.2)
        session.close()
        reader.join()  # or the limit of this process ends it
        """,
        small.path,
    )
