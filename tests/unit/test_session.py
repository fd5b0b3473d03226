"""A session: a mapping of regions, what it measures, and how it ends."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Mapping

import pytest
from restore_support import PAGE, mapping_at, run_in_child, threads_become, threads_named

import lazyrestore

pytestmark = pytest.mark.uffd

DATA = "ddddrrrrzzzzhhhhdzhrzhzhddzzdrdr" * 2


def test_it_is_a_mapping_in_dump_order(make_image):
    made = make_image({"z": "d", "a": "d", "m": "d"})
    with lazyrestore.restore(made.path, lazy=True) as session:
        assert isinstance(session, Mapping)
        assert list(session) == ["z", "a", "m"]
        assert len(session) == 3
        assert "a" in session
        assert "b" not in session
        assert session.get("b") is None
        assert [name for name, _ in session.items()] == ["z", "a", "m"]
        assert session["a"] is session["a"]
        assert session.lazy


def test_an_unknown_region_is_named_with_those_there_are(small):
    with lazyrestore.restore(small.path, lazy=True) as session:
        with pytest.raises(lazyrestore.RegionNotFound, match=r"'nope'.*'data', 'more'"):
            session["nope"]
        with pytest.raises(KeyError):
            session["nope"]


def test_granularity(make_image):
    """By the page: what is resident is what was touched; else all of its cluster."""
    made = make_image({"a": "d" * 64}, cluster_size=65536)
    for granularity, pages in (("page", 2), ("cluster", 32)):
        options = {"granularity": granularity, "prefetch": "none"}
        with lazyrestore.restore(made.path, lazy=True, **options) as session:
            for page in (3, 40):
                at = page * PAGE
                assert session["a"][at : at + PAGE] == made.expected["a"][at : at + PAGE]
            stats = session.stats()
            assert (stats.faults, stats.pages_copied) == (2, pages)
            assert stats.resident_bytes == pages * PAGE
            assert session["a"][:] == made.expected["a"]


def test_an_image_without_regions(tmp_path):
    path = tmp_path / "none.lzr"
    lazyrestore.ImageWriter(path).close()
    for lazy in (True, False):
        with lazyrestore.restore(path, lazy=lazy) as session:
            assert len(session) == 0
            assert session.stats().faults == 0


@pytest.mark.parametrize(
    "options",
    [
        {"lazy": "maybe"},
        {"lazy": None},
        {"prefetch": "some"},
        {"prefetch": None},
        {"granularity": "pages"},
        {"granularity": None},
        {"fault_mode": "signal"},
        {"fault_mode": None},
        {"privilege": "root"},
        {"privilege": None},
        {"trace": 1 << 40},
    ],
)
def test_arguments_that_cannot_be_are_refused(small, options):
    with pytest.raises(ValueError, match=str(next(iter(options)))):
        lazyrestore.restore(small.path, **options)


def test_lazy_restore_by_default_and_without_a_warning(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lazyrestore.restore(small.path) as session:
            assert session.lazy
            assert session["data"][:] == small.expected["data"]


def test_eager_restore_has_all_and_no_pager(small):
    before = threads_named()
    with lazyrestore.restore(small.path, lazy=False) as session:
        assert not session.lazy
        assert threads_become(before)
        assert session.wait() is True
        assert session.errors == []
        assert session.read_trace() == []
        assert {name: bytes(region) for name, region in session.items()} == small.expected
        stats = session.stats()
        assert (stats.faults, stats.pages_copied, stats.privilege) == (0, 0, "none")
        session["data"].populate()
        assert session["data"].touch() == 64


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without other threads")
def test_an_eager_restore_where_no_thread_can_be_had(tmp_path):
    path = tmp_path / "large.lzr"  # for more than one thread
    lazyrestore.dump({"a": bytes(range(256)) * (9 << 12), "b": b"few"}, path, level=1)
    run_in_child(
        """
        import os, resource, sys, threading
        import lazyrestore
        from fork_support import become_nobody
        with lazyrestore.restore(sys.argv[1], lazy=False):
            pass  # all is imported that is needed
        os.chdir(os.path.dirname(sys.argv[1]))  # which others cannot reach
        name = os.path.basename(sys.argv[1])
        os.chmod(".", 0o755)
        os.chmod(name, 0o644)
        become_nobody(61235)  # a user that nobody else is: its threads are counted
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            pass
        else:
            raise AssertionError("there can be threads")
        with lazyrestore.restore(name, lazy=False, threads=4) as session:
            assert session["a"][:] == bytes(range(256)) * (9 << 12)
            assert session["b"][:] == b"few"
        """,
        path,
    )


def test_waiting_without_a_fill_is_refused(small):
    with (
        lazyrestore.restore(small.path, lazy=True) as session,
        pytest.raises(ValueError, match="fill"),
    ):
        session.wait(timeout=1)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**12])
def test_a_time_limit_without_an_end(small, timeout):
    with lazyrestore.restore(small.path, lazy=True, prefetch="all") as session:
        assert session.wait(timeout)
        session["data"].populate(timeout=timeout)


# ---- Figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_each_page_of_4k_clusters_is_one_fault_and_one_installation(make_image, seed):
    made = make_image({"a": DATA}, cluster_size=4096)
    copied = sum(kind in "dr" for kind in DATA)
    with lazyrestore.restore(made.path, lazy=True, prefetch="none") as session:
        assert session["a"].touch(order="random", seed=seed) == 64
        stats = session.stats()
        assert (stats.faults, stats.pages_copied, stats.pages_zeroed) == (64, copied, 64 - copied)
        assert stats.clusters_decoded == copied
        assert stats.resident_bytes == copied * PAGE
        assert stats.touch_us.count == stats.service_us.count == 64
        assert stats.errors == 0
        assert stats.privilege == "full"
        assert session["a"][:] == made.expected["a"]
        assert session.stats().faults == 64


def test_latencies_are_in_order_and_add_up(small):
    with lazyrestore.restore(small.path, lazy=True) as session:
        assert session.stats().touch_us is None
        assert session.stats().service_us is None
        session["data"].touch(order="random")
        session["more"].touch()
        stats = session.stats()
        for latency in (stats.touch_us, stats.service_us):
            assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= latency.max
            assert 0 < latency.mean <= latency.max
            assert sum(count for _, _, count in latency.histogram) == latency.count
            for low, high, _ in latency.histogram:
                assert low < high
        assert stats.service_us.count == stats.faults
        assert stats.touch_us.max >= stats.service_us.p50
        assert 0 < stats.payload_bytes_read < os.path.getsize(small.path)


def test_trace_tells_each_fault_as_it_was(make_image):
    made = make_image({"a": DATA, "b": "dd"}, cluster_size=4096)
    with lazyrestore.restore(made.path, lazy=True, trace=1024) as session:
        region = session["a"]
        order = [5, 60, 8, 0, 63, 13]
        for page in order[:3]:
            assert region[page * PAGE + 15] == made.expected["a"][page * PAGE + 15]
        for page in order[3:]:
            region[page * PAGE + 4095] = 1
        _ = session["b"][1]
        records = session.read_trace()
        assert session.read_trace() == []
    assert [r.region for r in records] == ["a"] * 6 + ["b"]
    assert [r.offset for r in records] == [page * PAGE for page in order] + [0]
    within = [15] * 3 + [4095] * 3 + [1]
    if records[0].address % PAGE:  # exact addresses since Linux 5.18
        assert [r.address % PAGE for r in records] == within
    assert {r.thread for r in records} == {threading.get_native_id()}
    assert [r.write for r in records] == [False] * 3 + [True] * 3 + [False]
    actions = ["COPY" if DATA[page] in "dr" else "ZEROPAGE" for page in order] + ["COPY"]
    assert [r.action for r in records] == actions
    assert {r.bytes for r in records} == {PAGE}
    times = [r.time_us for r in records]
    assert times == sorted(times)
    assert all(0 < r.service_us < 10e6 for r in records)


def test_trace_addresses_lie_in_the_region(small):
    with lazyrestore.restore(small.path, lazy=True, trace=1024) as session:
        region = session["data"]
        region.touch(order="random")
        records = session.read_trace()
        assert len(records) == session.stats().faults
        for record in records:
            assert record.address - record.address % PAGE - region.address == record.offset
        copied = sum(r.bytes for r in records if r.action == "COPY")
        # A data fault also installs the zero pages of its cluster.
        assert copied >= session.stats().pages_copied * PAGE


def test_a_trace_that_nobody_reads_counts_what_it_loses(make_image):
    made = make_image({"a": "d" * 64}, cluster_size=4096)
    with lazyrestore.restore(made.path, lazy=True, trace=10) as session:
        session["a"].touch()
        assert session.trace_lost == 64 - 16  # rounded up to a power of two
        assert len(session.read_trace()) == 16
        assert session["a"][:] == made.expected["a"]
    with lazyrestore.restore(made.path, lazy=True) as session:
        session["a"].touch()
        assert session.read_trace() == []
        assert session.trace_lost == 0


def test_reading_the_trace_waits_for_the_first_record(small):
    with lazyrestore.restore(small.path, lazy=True, trace=64) as session:
        begin = time.monotonic()
        assert session.read_trace(timeout=0.1) == []
        assert time.monotonic() - begin >= 0.09
        toucher = threading.Timer(0.1, session["data"].touch, args=(1,))
        toucher.start()
        assert len(session.read_trace(timeout=60)) == 1
        toucher.join()
        # What was read does not count as new: this waits again.
        begin = time.monotonic()
        assert session.read_trace(timeout=0.1) == []
        assert time.monotonic() - begin >= 0.09


# ---- The end -------------------------------------------------------------------------------------


def test_close_unmaps_and_ends_the_pager(small):
    before = threads_named()
    session = lazyrestore.restore(small.path, lazy=True)
    assert threads_become(before + 1)
    address = session["data"].address
    assert mapping_at(address)
    session.close()
    session.close()
    assert threads_become(before)
    assert mapping_at(address) is None
    assert "closed" in repr(session)
    with pytest.raises(ValueError, match="closed"):
        session["data"]
    assert session.errors == []
    assert session.stats().faults == 0


def test_close_with_a_view_raises_and_changes_nothing(small):
    session = lazyrestore.restore(small.path, lazy=True)
    view = memoryview(session["more"])
    for _ in range(2):
        with pytest.raises(BufferError, match="'more'"):
            session.close()
        with pytest.raises(BufferError, match="'more'"):
            session["more"].close()
    assert session["data"][:] == small.expected["data"]
    assert view == small.expected["more"]
    view.release()
    session.close()


def test_close_with_an_array_raises_until_it_is_gone(small):
    session = lazyrestore.restore(small.path, lazy=True)
    array = session["data"].array()[5:10]
    with pytest.raises(BufferError):
        session.close()
    assert array.tobytes() == small.expected["data"][5:10]
    del array
    session.close()


def test_with_never_raises_and_views_are_served_on(small):
    before = threads_named()
    with lazyrestore.restore(small.path, lazy=True) as session:
        array = session["data"].array()
        gone = session["more"].address
        address = session["data"].address
    assert array.tobytes() == small.expected["data"]
    assert mapping_at(gone) is None
    assert threads_become(before + 1)
    del array
    assert mapping_at(address) is None
    assert threads_become(before)


def test_with_lets_an_exception_through(small):
    with pytest.raises(RuntimeError, match="mine"):  # noqa: SIM117, PT012
        with lazyrestore.restore(small.path, lazy=True) as session:
            view = memoryview(session["data"])
            raise RuntimeError("mine")
    assert view == small.expected["data"]


def test_a_region_lives_without_its_session(small):
    region = lazyrestore.restore(small.path, lazy=True)["data"]
    assert region[:] == small.expected["data"]
    region.populate()
    assert region.metadata == {}


def test_a_region_that_is_held_through_with_is_closed_there(small):
    with lazyrestore.restore(small.path, lazy=True) as session:
        region = session["data"]
    with pytest.raises(ValueError, match="closed"):
        region[0]


def test_closing_one_region_leaves_the_others(small):
    with lazyrestore.restore(small.path, lazy=True) as session:
        session["data"].close()
        assert session["more"][:] == small.expected["more"]
        session.stats()
