"""Regions, sessions and arrays go to other processes as references, and are lazy there again."""

from __future__ import annotations

import gc
import os
import pickle
import textwrap
import time

import numpy
import pytest
from restore_support import mapping_at, run_in_child, threads_become, threads_named

import lazyrestore
from lazyrestore import Image, _references
from lazyrestore._serve.images import Images

pytestmark = pytest.mark.uffd

NUMBERS = 4 << 20  # of 8 bytes
CHUNK = 1 << 14


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """32 MiB of numbers, and as much that nobody asks for."""
    path = tmp_path_factory.mktemp("references") / "x.lzr"
    numbers = numpy.arange(NUMBERS)
    lazyrestore.dump({"numbers": numbers, "others": numbers[::-1], "few": b"few"}, path, level=1)
    return path


def copied(value):
    return pickle.loads(pickle.dumps(value))


# ---- Workers of other processes ------------------------------------------------------------------

PREAMBLE = f"""
import os, pickle, sys
import numpy
import lazyrestore
from reference_tasks import *
path, kind = sys.argv[1:3]
NUMBERS, CHUNK = {NUMBERS}, {CHUNK}
starts = range(0, NUMBERS, NUMBERS // 16)
expected = [sum(range(start, start + CHUNK)) for start in starts]
session = lazyrestore.restore(path, lazy=True)
arrays = lazyrestore.load(path, lazy=True)
things = {{"region": session["numbers"], "session": session, "arrays": arrays}}
memory = things[kind]
tasks = [(memory, start, start + CHUNK) for start in starts]
assert len(pickle.dumps(tasks)) < 4000

def check(found, others=True):
    assert [one.total for one in found] == expected, found
    workers = {{one.pid for one in found}}
    assert os.getpid() not in workers or not others
    assert {{one.sessions for one in found}} == {{1}}, found
    assert {{one.userfaultfds for one in found}} == {{1}}, found  # for all tasks, and both regions
    assert all(one.lazy for one in found), found
    # What is touched is there, and of the rest no page.
    assert max(one.resident_bytes for one in found) <= 16 * (8 * CHUNK + (128 << 10)), found
    assert session.stats().faults == 0  # nothing of it was read here
"""


def in_workers(script, *arguments, **options):
    return run_in_child(PREAMBLE + textwrap.dedent(script), *arguments, timeout=90, **options)


KINDS = ["region", "session", "arrays"]


@pytest.mark.parametrize(("method", "kind"), [("spawn", "region"), ("forkserver", "arrays")])
def test_a_pool_of_multiprocessing(path, method, kind):
    in_workers(
        """
        import multiprocessing
        context = multiprocessing.get_context(sys.argv[3])
        with context.Pool(2) as pool:
            check(pool.map(add_chunk, tasks, chunksize=2))
            things["region"].array()[1] = 5
            assert pool.map(negate, [things["region"]]) == [-1]  # it is the image's, not 5
            pool.close()
            pool.join()
        assert things["region"].array()[1] == 5
        """,
        path,
        kind,
        method,
    )


def test_an_executor_of_concurrent_futures(path):
    in_workers(
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            check(list(executor.map(add_chunk, tasks)))
        """,
        path,
        "session",
    )


def test_a_worker_keeps_what_its_tasks_have_loaded(path, tmp_path):
    """Of the last two images: a third takes the place of the one that was used longest ago"""
    for name in ("second", "third"):
        lazyrestore.dump({"numbers": numpy.arange(CHUNK)}, tmp_path / name)
    in_workers(
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        context = multiprocessing.get_context("spawn")
        more = [lazyrestore.load(other, lazy=True) for other in sys.argv[3:]]
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            def ask(memory):
                found = executor.submit(add, memory, 0, CHUNK).result()
                assert found.total == sum(range(CHUNK))
                return found.sessions, found.faults
            sessions, faults = ask(memory)
            assert sessions == 1 and faults > 0
            assert ask(memory) == (1, faults)
            _, both = ask(more[0])
            assert both > faults
            for one in (memory, more[0], memory):
                assert ask(one) == (2, both)
            sessions, others = ask(more[1])
            assert sessions == 2
            assert ask(memory) == (2, others)  # it was used after the second one
            assert ask(more[1]) == (2, others)
            assert ask(more[0])[0] == 2
        """,
        path,
        "region",
        tmp_path / "second",
        tmp_path / "third",
    )


def test_joblib(path):
    """Its own processes; and what it knows of a region is its digest, not its content"""
    pytest.importorskip("joblib", reason="joblib is not installed")
    in_workers(
        """
        import joblib
        parallel = joblib.Parallel(n_jobs=2, backend="loky")
        check(parallel(joblib.delayed(add)(*task) for task in tasks))
        again = lazyrestore.restore(path, lazy=True)
        assert joblib.hash(session["others"]) == joblib.hash(again["others"])
        assert joblib.hash(session["others"]) != joblib.hash(again["numbers"])
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True)
        """,
        path,
        "region",
    )


def test_workers_of_dask(path):
    """With two threads each, which share the session of their process"""
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    in_workers(
        """
        if __name__ == "__main__":
            from distributed import Client, LocalCluster
            with (
                LocalCluster(
                    n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50
                ) as cluster,
                Client(cluster) as client,
            ):
                check(client.gather([client.submit(add, *task, pure=False) for task in tasks]))
        """,
        path,
        "arrays",
        environment={"DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "False"},
    )


def test_a_worker_refuses_a_changed_image(path, tmp_path):
    mine = tmp_path / "mine.lzr"
    mine.write_bytes(path.read_bytes())
    pytest.importorskip("joblib", reason="joblib is not installed")
    in_workers(
        """
        import joblib
        lazyrestore.dump({"numbers": numpy.zeros(NUMBERS, int), "others": b"", "few": b""}, path)
        parallel = joblib.Parallel(n_jobs=2, backend="loky")
        try:
            parallel(joblib.delayed(add)(*task) for task in tasks)
        except Exception as error:
            assert "another image than when the reference" in str(error.__cause__), error.__cause__
        else:
            raise AssertionError("it was taken for the old one")
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True)
        """,
        mine,
        "session",
    )


# ---- Within one process --------------------------------------------------------------------------


def test_all_references_share_one_session(path):
    before = threads_named()
    with lazyrestore.restore(path) as session, lazyrestore.load(path) as arrays:
        references = [pickle.dumps(one) for one in (session["numbers"], session, arrays)]
        references.append(pickle.dumps(copied(session["numbers"])))  # of what is one already
        references.append(pickle.dumps(copied(session)))
    assert all(len(reference) < 400 for reference in references)
    region, again, others, same, more = map(pickle.loads, references)
    assert len(_references._sessions) == 1
    assert region is same is again["numbers"] is others.session["numbers"] is more["numbers"]
    assert again["few"] is others.session["few"]
    assert list(again) == list(others) == ["numbers", "others", "few"]
    assert others["numbers"][NUMBERS - 1] == NUMBERS - 1
    assert threads_become(before + 1)
    assert type(again) is lazyrestore.Session
    assert again.digest
    assert again.stats().faults == more.stats().faults == others.session.faults == 1
    # What is written is seen by all of them, in this process.
    others["numbers"][0] = 7
    assert region.array()[0] == 7
    # It goes with its last user.
    address = region.address
    del again, others, same, more
    assert len(_references._sessions) == 1
    del region
    assert len(_references._sessions) == 0
    assert mapping_at(address) is None
    assert threads_become(before)


def test_an_array_alone_keeps_it(path):
    with lazyrestore.restore(path, lazy=True) as session:
        reference = pickle.dumps(session["numbers"])
    array = pickle.loads(reference).array()
    gc.collect()
    assert len(_references._sessions) == 1
    assert pickle.loads(reference).array()[5] == 5
    assert array[NUMBERS // 2] == NUMBERS // 2
    del array
    assert len(_references._sessions) == 0


def test_who_closes_a_shared_session_lets_go_of_it_only(path):
    with lazyrestore.restore(path, lazy=True) as original:
        reference = pickle.dumps(original)
    one, two = pickle.loads(reference), pickle.loads(reference)
    array = one["numbers"].array()
    assert two["few"][:] == b"few"
    one.close()  # though it has views
    with pytest.raises(ValueError, match="closed"):
        one["numbers"]
    with two:
        assert two["numbers"].array()[3] == 3
    assert array[NUMBERS - 1] == NUMBERS - 1
    assert len(_references._sessions) == 1
    del array
    assert len(_references._sessions) == 0


def test_a_shared_region_that_was_closed_is_restored_again(path):
    with lazyrestore.restore(path, lazy=True) as original:
        reference = pickle.dumps(original["few"])
        other = copied(original["numbers"])
    region = pickle.loads(reference)
    region[0:1] = b"F"
    region.close()
    again = pickle.loads(reference)
    assert again is not region
    assert again[:] == b"few"
    assert other.array()[5] == 5


def test_a_shared_region_that_was_let_go_of_is_restored_again(path):
    with lazyrestore.restore(path, lazy=True) as original:
        few, numbers = pickle.dumps(original["few"]), pickle.dumps(original["numbers"])
        session = copied(original)
    other = pickle.loads(numbers)
    for _ in range(3):
        region = pickle.loads(few)
        assert region[:] == b"few"
        region[:] = b"xxx"
        del region
        assert other.array()[5] == 5
    assert session["few"][:] == b"few"
    assert session["numbers"] is other
    assert pickle.loads(few) is session["few"]


def test_names_and_mode_travel(path):
    with lazyrestore.load(path, mode="r", names=["few", "numbers"]) as arrays:
        again = copied(arrays)
        assert list(again) == ["few", "numbers"]
        assert again.mode == "r"
        assert not again["numbers"].flags.writeable
        with pytest.raises(lazyrestore.RegionNotFound):
            again["others"]
        assert list(copied(again)) == ["few", "numbers"]


@pytest.mark.parametrize(
    ("options", "privilege"),
    [
        ({"privilege": "user-mode-only"}, "user-mode-only"),
        ({"fault_mode": "inline"}, "full"),
        ({"granularity": "page", "on_error": "fence"}, "full"),
        ({"lazy": False}, "none"),
        ({"lazy": True, "prefetch": "none"}, "full"),
    ],
)
def test_it_is_restored_as_it_was(path, options, privilege):
    with lazyrestore.restore(path, **options) as session:
        again = copied(copied(session))
        assert again.lazy == session.lazy
        assert again.stats().privilege == session.stats().privilege == privilege
        if session.lazy:
            assert again["numbers"][8] == 1
            pages = 1 if "granularity" in options else 16  # of which the touched one comes first
            until = time.monotonic() + 20
            while again["numbers"].resident_bytes < pages * 4096:
                assert time.monotonic() < until
            assert again["numbers"].resident_bytes == pages * 4096
        assert copied(session["numbers"]) is again["numbers"]
        other = copied(lazyrestore.load(path, lazy=False, prefetch="none"))  # another way
        assert other.session["numbers"] is not again["numbers"]
    del again, other, session
    gc.collect()
    assert len(_references._sessions) == 0


def test_a_fill_goes_on_for_all_regions(path):
    with lazyrestore.restore(path, prefetch="all") as session:
        region = copied(session["numbers"])
    again = copied(lazyrestore.load(path, prefetch="all")).session
    assert again.wait(60)
    assert region.array()[77] == 77
    assert again["others"].array()[0] == NUMBERS - 1
    del region, again
    gc.collect()
    assert len(_references._sessions) == 0


def test_a_working_set_travels_by_its_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lazyrestore.restore(path, record="mine.ws") as session:
        assert session["numbers"].array()[9] == 9
        assert session["few"][0] == ord("f")
    for given in ("mine.ws", lazyrestore.WorkingSet.load("mine.ws")):
        with lazyrestore.restore(path, working_set=given) as session:
            reference = pickle.dumps(session)
        monkeypatch.chdir("/")
        again = pickle.loads(reference)
        assert len(again.working_set) == 2
        assert again.wait_working_set(60)
        del again, session
        gc.collect()
        monkeypatch.chdir(tmp_path)


def test_a_path_that_is_not_absolute(path, tmp_path, monkeypatch):
    """It is of where it was restored, and not of where it is pickled"""
    monkeypatch.chdir(path.parent)
    session, arrays = lazyrestore.restore(path.name), lazyrestore.load(os.fsencode(path.name))
    monkeypatch.chdir(tmp_path)
    references = pickle.dumps([session, arrays, session["few"]])
    session.close()
    arrays.close()
    again, others, few = pickle.loads(references)
    assert again.path == os.fspath(path)
    assert again["few"][:] == others["few"].tobytes() == few[:] == b"few"


def test_a_path_that_leads_back_from_behind_a_link(path, tmp_path, monkeypatch):
    """As the kernel goes it, and not to the files of these names beside the link"""
    inner = tmp_path / "far" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inner)
    there = inner.parent / "x.lzr"
    there.write_bytes(path.read_bytes())
    lazyrestore.dump(b"another", tmp_path / "x.lzr")
    monkeypatch.chdir(tmp_path)
    with lazyrestore.restore("link/../x.lzr", record="link/../mine.ws") as session:
        assert session["few"][0] == ord("f")
    assert (inner.parent / "mine.ws").exists()
    with lazyrestore.restore("link/../x.lzr", working_set="link/../mine.ws") as session:
        reference = pickle.dumps(session)
    with Image(Images("link/../x.lzr").single) as served:
        assert served.digest == lazyrestore.open(path).digest
    monkeypatch.chdir("/")
    with pickle.loads(reference) as again:
        assert again["few"][:] == b"few"
        assert len(again.working_set) == 1
    del again, session
    gc.collect()


def test_an_image_that_has_changed_is_refused(path, tmp_path):
    mine = tmp_path / "mine.lzr"
    mine.write_bytes(path.read_bytes())
    with lazyrestore.restore(mine) as session:
        digest = session.digest
        references = [pickle.dumps(one) for one in (session, session["few"])]
        mine.unlink()
        report = lazyrestore.dump({"few": b"few", "numbers": numpy.zeros(5)}, mine)
        for reference in references:
            with pytest.raises(lazyrestore.ImageError) as caught:
                pickle.loads(reference)
            for part in (str(mine), digest, report.digest, "put the old one back"):
                assert part in str(caught.value)
        assert session["few"][:] == b"few"  # the old one is open
    mine.unlink()
    for reference in references:
        with pytest.raises(FileNotFoundError, match=r"mine\.lzr"):
            pickle.loads(reference)
    lazyrestore.dump(b"cut short" * 1000, mine)
    os.truncate(mine, 100)
    with pytest.raises(lazyrestore.ImageError):
        pickle.loads(references[0])
    assert len(_references._sessions) == 0


def test_the_same_content_elsewhere_in_its_place_will_do(path, tmp_path):
    """At another level: it is the content that counts"""
    mine = tmp_path / "mine.lzr"
    lazyrestore.dump({"a": b"abc" * 10_000}, mine, level=1)
    with lazyrestore.restore(mine) as session:
        reference = pickle.dumps(session["a"])
    lazyrestore.dump({"a": b"abc" * 10_000}, mine, level=19)
    assert pickle.loads(reference)[-3:] == b"abc"


def test_many_threads_unpickle_at_once(path):
    run_in_child(
        """
        import pickle, sys, threading
        import lazyrestore
        from lazyrestore import _references
        from reference_tasks import userfaultfds
        with lazyrestore.restore(sys.argv[1]) as session:
            references = [pickle.dumps(session["numbers"]), pickle.dumps(session["others"])]
        for again in range(30):
            start = threading.Barrier(6)
            found = []
            def work(number):
                start.wait(30)
                found.append(pickle.loads(references[number % 2]))
                found.append(pickle.loads(references[1 - number % 2]))
            threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            assert len(found) == 12
            assert len({id(region) for region in found}) == 2
            assert len(_references._sessions) == 1
            assert userfaultfds() == 1
            assert found[0][8] in (1, 254), found[0][8]
            found.clear()
            assert len(_references._sessions) == 0
            assert userfaultfds() == 0
        """,
        path,
        timeout=60,
    )


def test_a_forked_child_goes_on_with_what_it_inherits(path):
    """And unpickles by itself, also where a thread that was unpickling is gone"""
    run_in_child(
        """
        import pickle, sys, threading
        import lazyrestore
        from lazyrestore import _references
        from fork_support import *
        with lazyrestore.restore(sys.argv[1]) as session:
            one, two, three = (pickle.dumps(session[name]) for name in session)
        region = pickle.loads(one)
        region[8:9] = b"x"
        over = threading.Event()
        other = pickle.dumps(lazyrestore.restore(sys.argv[1], granularity="page")["others"])
        def unpickles():
            while not over.is_set():
                assert pickle.loads(other)[1] == 255
        thread = threading.Thread(target=unpickles)
        thread.start()
        def work():
            mine = pickle.loads(one)
            assert mine is region and mine[8:9] == b"x"
            few = pickle.loads(three)  # of the session that it inherits
            assert few[:] == b"few"
            assert few._keeper is mine._keeper
            assert pickle.loads(two)[0] == 255
            assert pickle.loads(other)[0] == 255
            mine[16:17] = b"y"
        try:
            for _ in range(40):
                run(work)
        finally:
            over.set()
            thread.join()
        assert region[16:17] == bytes([2])
        """,
        path,
        timeout=90,
    )


def test_what_is_closed_cannot_be_pickled(path):
    session, arrays = lazyrestore.restore(path), lazyrestore.load(path)
    region = session["few"]
    session.close()
    arrays.close()
    for one in (session, region, arrays):
        with pytest.raises(ValueError, match="closed: restore the image again"):
            pickle.dumps(one)


def test_a_buffer_of_it_is_its_content(path):
    """In band and out of band"""
    with lazyrestore.restore(path) as session:
        region = session["few"]
        buffers = []
        stream = pickle.dumps(
            [pickle.PickleBuffer(region), region], protocol=5, buffer_callback=buffers.append
        )
        raw, again = pickle.loads(stream, buffers=buffers)
        assert bytes(raw) == again[:] == b"few"
        assert again is not region
        assert bytes(pickle.loads(pickle.dumps(pickle.PickleBuffer(region), protocol=5))) == b"few"
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(region, protocol))[:] == b"few"
        del raw, buffers
