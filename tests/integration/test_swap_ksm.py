"""What the kernel does with loaded pages: swap, merging, binding, compaction. Right bytes, and no
page is loaded a second time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from owner_support import owner_child
from restore_support import PAGE, page_of

import lazyrestore

pytestmark = pytest.mark.uffd

SWAP_BYTES = 256 << 20
KSM = Path("/sys/kernel/mm/ksm")


def _run(*command: object) -> str:
    """What it printed; what failed is said by an exception."""
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip() or f"exit {ended.returncode}"
        raise OSError(f"{command[0]}: {said}")
    return ended.stdout


@contextmanager
def _zram() -> Iterator[Path]:
    """A compressed disk in memory, of our own."""
    control = Path("/sys/class/zram-control")
    number = int((control / "hot_add").read_text())
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text(str(SWAP_BYTES))
        yield Path(f"/dev/zram{number}")
    finally:
        with suppress(OSError):
            Path(f"/sys/block/zram{number}/reset").write_text("1")
            (control / "hot_remove").write_text(str(number))


@contextmanager
def _file() -> Iterator[Path]:
    path = Path(f"/var/tmp/lazyrestore-swap.{os.getpid()}")
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(fd, 0, SWAP_BYTES)
        yield path
    finally:
        os.close(fd)
        path.unlink()


@pytest.fixture(scope="module", params=[_zram, _file], ids=["zram", "file"])
def swap(request: pytest.FixtureRequest) -> Iterator[None]:
    """Some swap for this machine, as long as the tests run."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root, to add swap")
    ready = False
    try:
        with request.param() as device:
            _run("mkswap", device)
            _run("swapon", device)
            ready = True
            try:
                yield
            finally:
                _run("swapoff", device)
    except OSError as error:
        if ready:
            raise
        pytest.skip(f"no swap here: {error}")


SWAPPING = """
import time
def swap_out(address, pages, least):
    for _ in range(100):
        madvise(address, pages * PAGE, PAGEOUT)
        out = swapped(address, pages)
        if out >= least:
            return out
        time.sleep(0.01)
    raise AssertionError(f"{out} pages of {least} in swap")
"""


def swapping(made, script, *arguments, **options):
    owner_child(made.path, SWAPPING + textwrap.dedent(script), *arguments, **options)


@pytest.mark.usefixtures("swap")
def test_swapped_pages_come_back_from_swap(make_image):
    made = make_image({"a": "drzd" * 256}, cluster_size=16384)
    swapping(
        made,
        """
        with restore() as session:
            region, base = session["a"], session["a"].address
            region.populate()
            put(base, b"mine")
            want = b"mine" + expected[4:]
            copied = session.stats().pages_copied
            for _ in range(2):
                swap_out(base, COUNT, COUNT // 2)
                region.populate()
                same(base, want)
            swap_out(base, COUNT, COUNT // 2)
            for page in shuffled(COUNT):
                assert get(base + page * PAGE) == want[page * PAGE :][:PAGE], page
            assert session.stats().pages_copied == copied
            assert not session.errors
        """,
    )


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_swapped_out_while_the_rest_is_loaded(make_image, prefetch):
    made = make_image({"a": "drdd" * 256}, cluster_size=16384)
    swapping(
        made,
        """
        with restore(prefetch=sys.argv[2]) as session:
            region, base = session["a"], session["a"].address
            region.populate(0, COUNT // 2 * PAGE)
            swap_out(base, COUNT // 2, COUNT // 4)
            def out():
                for _ in range(8):
                    madvise(base, COUNT * PAGE, PAGEOUT)
            def read(seed):
                for page in shuffled(COUNT, seed):
                    assert get(base + page * PAGE) == expected[page * PAGE :][:PAGE], page
            run_all(out, region.populate, lambda: read(1), lambda: read(2))
            same(base, expected)
            assert session.stats().pages_copied == COUNT, session.stats()
        """,
        prefetch,
        timeout=60,
    )


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("advice", ["DONTNEED", "FREE"])
def test_swapped_pages_are_given_up(make_image, advice):
    made = make_image({"a": "drdd" * 64}, cluster_size=16384)
    swapping(
        made,
        """
        with restore() as session:
            region, base = session["a"], session["a"].address
            region.populate()
            swap_out(base, COUNT, COUNT // 2)
            out = [page for page in range(100) if swapped(base + page * PAGE, 1)]
            assert len(out) > 10
            for page in out:
                madvise(base + page * PAGE, PAGE, globals()[sys.argv[2]])
            region.populate()
            same(base, gone(expected, out))
        """,
        advice,
    )


@pytest.mark.usefixtures("swap")
def test_swapped_pages_are_moved(make_image):
    made = make_image({"a": "drdd" * 64}, cluster_size=16384)
    swapping(
        made,
        """
        session = CSession(path)
        base = session.map()
        session.populate(0, 128 * PAGE)
        swap_out(base, 128, 64)
        to = mmap(len(expected))
        mremap(base, len(expected), len(expected), to)
        same(to, expected)
        assert session.pages_copied == COUNT
        done()
        """,
    )


@pytest.mark.usefixtures("swap")
def test_swapped_pages_in_a_forked_child(make_image):
    made = make_image({"a": "drdd" * 64}, cluster_size=16384)
    swapping(
        made,
        """
        with restore() as session:
            base = session["a"].address
            session["a"].populate(0, 128 * PAGE)
            swap_out(base, 128, 64)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    same(base, expected)
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            same(base, expected)
        """,
    )


@pytest.fixture
def ksm() -> Iterator[None]:
    """The kernel merges equal pages, quickly, until the test is over."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root, to switch KSM on")
    if not (KSM / "run").exists():
        pytest.skip("this kernel has no KSM")
    wanted = {"smart_scan": "0", "advisor_mode": "none", "sleep_millisecs": "1"}
    wanted |= {"pages_to_scan": "20000", "run": "1"}
    with open("/var/tmp/lazyrestore-ksm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {}
        for name, value in wanted.items():
            with suppress(OSError):  # newer kernels have more of them
                text = (KSM / name).read_text().strip()
                before[name] = text.partition("[")[2].partition("]")[0] or text
                (KSM / name).write_text(value)
        try:
            yield
        finally:
            for name in reversed(before):
                (KSM / name).write_text(before[name])


@pytest.mark.usefixtures("ksm")
def test_merged_pages(tmp_path):
    """Every other page is the same as the next: they are merged, and part again when written."""
    path = tmp_path / "equal.lzr"
    with lazyrestore.ImageWriter(path, cluster_size=16384) as image:
        image.add_region("a")
        for number in range(1024):
            image.write(page_of(number // 2) if number % 4 < 2 else bytes([7]) * PAGE)
    owner_child(
        path,
        """
        import time
        def merged():
            try:
                text = open("/proc/self/ksm_merging_pages").read()
            except FileNotFoundError:
                text = open("/sys/kernel/mm/ksm/pages_sharing").read()
            return int(text)
        with restore() as session:
            region, base = session["a"], session["a"].address
            try:
                madvise(base, len(expected), MERGEABLE)
            except OSError as error:
                print("skip MADV_MERGEABLE:", error)
                done()
            region.populate(0, len(expected) // 2)
            for _ in range(1500):
                if merged() >= 200:
                    break
                time.sleep(0.01)
            else:
                raise AssertionError(f"only {merged()} pages were merged")
            copied = session.stats().pages_copied
            assert copied == COUNT // 2, "KSM loaded pages"
            same(base, expected[: len(expected) // 2])
            assert session.stats().pages_copied == copied
            put(base + 2 * PAGE, b"mine")
            madvise(base + 6 * PAGE, 2 * PAGE, DONTNEED)
            want = gone(expected, (6, 7))
            want = want[: 2 * PAGE] + b"mine" + want[2 * PAGE + 4 :]
            same(base, want)
            assert session.stats().pages_copied == COUNT
            madvise(base, len(expected), UNMERGEABLE)
            region.populate()
            same(base, want)
            assert session.stats().pages_copied == COUNT
        """,
        timeout=60,
    )


def test_bound_to_a_node(make_image):
    """With a policy of its own a part is a mapping of its own, whose pages may be moved."""
    made = make_image({"a": "drzd" * 128}, cluster_size=65536)
    owner_child(
        made.path,
        """
        import errno
        for fill in ("none", "all"):
            with restore(prefetch=fill) as session:
                region, base = session["a"], session["a"].address
                try:
                    mbind(base + 3 * PAGE, 100 * PAGE)
                except OSError as error:
                    print("skip mbind:", error)
                    done()
                region.populate(0, 50 * PAGE)
                MOVE = 2
                mbind(base + 20 * PAGE, 60 * PAGE, flags=MOVE)
                same(base, expected)
                copied = session.stats().pages_copied
                assert copied == 3 * COUNT // 4, copied
                mbind(base, len(expected), flags=MOVE)
                same(base, expected)
                assert session.stats().pages_copied == copied
        """,
    )


def test_pages_are_asked_to_move(make_image):
    made = make_image({"a": "drdd" * 64}, cluster_size=16384)
    owner_child(
        made.path,
        """
        with restore() as session:
            region, base = session["a"], session["a"].address
            region.populate(0, 128 * PAGE)
            try:
                status = move_pages([base + page * PAGE for page in range(COUNT)])
            except OSError as error:
                print("skip move_pages:", error)
                done()
            assert all(node >= 0 for node in status[:128]), status
            assert all(node < 0 for node in status[128:]), "a missing page has a node"
            same(base, expected)
            assert session.stats().pages_copied == COUNT
        """,
    )


@pytest.mark.root
def test_while_memory_is_compacted(make_image):
    """Compaction moves pages to other frames: from under readers, and from under a COPY."""
    switch = Path("/proc/sys/vm/compact_memory")
    if not switch.exists():
        pytest.skip("this kernel cannot compact memory")
    made = make_image({"a": "drdd" * 256})
    compact = "while True: open('/proc/sys/vm/compact_memory', 'w').write('1')"
    compactor = subprocess.Popen([sys.executable, "-c", compact])
    try:
        owner_child(
            made.path,
            """
            for fill in ("none", "all"):
                with restore(prefetch=fill) as session:
                    base = session["a"].address
                    def read(seed):
                        for page in shuffled(COUNT, seed):
                            assert get(base + page * PAGE) == expected[page * PAGE :][:PAGE], page
                    run_all(*(lambda seed=seed: read(seed) for seed in range(3)))
                    same(base, expected)
                    assert session.stats().pages_copied == COUNT
            """,
            timeout=60,
        )
        assert compactor.poll() is None
    finally:
        compactor.kill()
        compactor.wait()
