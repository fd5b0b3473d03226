"""Restoring and closing again and again leaves nothing behind."""

from __future__ import annotations

import pytest
from conftest import MakeImage
from restore_support import run_in_child

pytestmark = pytest.mark.uffd

COUNT = """
    import gc, os, sys, time
    import lazyrestore

    path = sys.argv[1]

    def count():
        gc.collect()
        # A thread that was joined may be in /proc for a moment more.
        deadline = time.monotonic() + 30
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        with open("/proc/self/maps") as maps:
            mappings = len(maps.readlines())
        fds = len(os.listdir("/proc/self/fd"))
        return fds, len(os.listdir("/proc/self/task")), mappings

    def resident_kib():
        # Counted page by page: what status says lags behind by some pages a processor.
        with open("/proc/self/smaps_rollup") as rollup:
            return next(int(line.split()[1]) for line in rollup if line.startswith("Rss:"))
"""

LOOP = """
    for step in range(60):
        cycle(step)
    before, kib_before = count(), resident_kib()
    for step in range(300):
        cycle(step)
    after, kib = count(), resident_kib()
    # Descriptors and threads to the last; mappings but for what the allocator made of its own.
    assert after[:2] == before[:2], f"descriptors and threads: {before} before, {after} after"
    assert after[2] <= before[2] + 8, f"mappings: {before} before, {after} after"
    # Of 300 sessions that each leave one page behind, or a buffer of a cluster, it would be more.
    assert kib < kib_before + 1024, f"resident: {kib_before} KiB before, {kib} KiB after"
"""

# Each leaves the session in a different way.
CYCLES = {
    "with": """
    def cycle(step):
        with lazyrestore.restore(path, lazy=True) as session:
            region = session["data"]
            assert region[0] == 1
            region[step % 64 * 4096] = 7
            region.populate(offset=0, length=step % 64 * 4096)
            session.stats()
    """,
    "close_with_views": """
    def cycle(step):
        session = lazyrestore.restore(path, lazy=True)
        view = memoryview(session["data"])
        assert view[0] == 1
        try:
            session.close()
        except BufferError:
            pass
        else:
            raise AssertionError("closed under a view")
        view.release()
        session.close()
    """,
    "forgotten": """
    def cycle(step):
        session = lazyrestore.restore(path, lazy=True)
        view = memoryview(session["data"])[4096 * (step % 8):]
        del session
        assert view[0] == step % 8 + 1
    """,
    "forked": """
    def cycle(step):
        if step % 10:
            return
        with lazyrestore.restore(path, lazy=True) as session:
            region = session["data"]
            pid = os.fork()
            if pid == 0:
                os._exit(0 if region[0] == 1 else 1)
            assert os.waitpid(pid, 0)[1] == 0
    """,
    "filled": """
    def cycle(step):
        with lazyrestore.restore(path, lazy=True, prefetch="all") as session:
            assert session["data"][0] == 1
            if step % 4 == 0:
                assert session.wait()
    """,
}


@pytest.mark.parametrize("way", sorted(CYCLES))
def test_300_cycles_leave_nothing(make_image: MakeImage, way: str) -> None:
    image = make_image({"data": "dddddddd" + "ddrzdhdd" * 7, "more": "dz" * 8}, cluster_size=16384)

    run_in_child(COUNT + CYCLES[way] + LOOP, image.path, timeout=120)
