"""Recording a working set, and replaying it: what was touched, no more and no less."""

from __future__ import annotations

import os
import shutil
import warnings
from array import array

import pytest
from restore_support import PAGE, flip, payloads, run_in_child

import lazyrestore
from lazyrestore import WorkingSet, WorkingSetError

pytestmark = pytest.mark.uffd

# 16 clusters of 4 pages each in "a", of every kind, and 4 in "b".
LAYOUT = {"a": ("dddd" + "rrrr" + "zzzz" + "hhhh" + "dzhr" + "zhzh" + "ddzz" + "drdr") * 2}
LAYOUT["b"] = "d" * 16
TOUCHED = ((0, 5), (1, 2), (0, 2), (0, 3), (0, 15))  # (region, cluster in it)


@pytest.fixture
def image(make_image):
    return make_image(LAYOUT, cluster_size=4 * PAGE)


def touch(session, places=TOUCHED):
    """Both ends of each cluster; the numbers of the clusters in the image."""
    regions = list(session.values())
    for region, cluster in places:
        for at in (4 * PAGE * cluster, 4 * PAGE * (cluster + 1) - 1):
            assert regions[region][at : at + 1] is not None
    return [16 * region + cluster for region, cluster in places]


def check_all(session, image):
    for name, expected in image.expected.items():
        assert session[name][:] == expected


def record(image, path, places=TOUCHED):
    with lazyrestore.restore(image.path, lazy=True, record=path) as session:
        return touch(session, places)


# ---- Recording -----------------------------------------------------------------------------------


def test_it_is_what_was_touched(image, tmp_path):
    numbers = record(image, tmp_path / "run.ws")
    found = WorkingSet.load(tmp_path / "run.ws")
    assert list(found) == numbers
    assert list(found.times_us) == sorted(found.times_us)
    assert found.recordings == 1
    with lazyrestore.open(image.path) as opened:
        assert found.belongs_to(opened)


def test_system_calls_and_writes_count(image, tmp_path):
    with lazyrestore.restore(image.path, lazy=True, record=tmp_path / "run.ws") as session:
        session["b"][0] = 1
        fd = os.open(os.devnull, os.O_WRONLY)
        with memoryview(session["a"]) as view:
            os.writev(fd, [view[4 * PAGE : 12 * PAGE]])
        os.close(fd)
        fd = os.open(image.path, os.O_RDONLY)
        os.preadv(fd, [memoryview(session["a"])[40 * PAGE : 40 * PAGE + 1]], 0)
        os.close(fd)
        found = session.save_working_set()
    # (writev to /dev/null reads nothing.)
    assert list(found) == [16, 10]


def test_nothing_touched_is_an_empty_set(image, tmp_path):
    record(image, tmp_path / "run.ws", ())
    assert len(WorkingSet.load(tmp_path / "run.ws")) == 0
    with lazyrestore.restore(image.path, lazy=True, working_set=tmp_path / "run.ws") as session:
        assert session.wait_working_set()
        assert session.wait()
        check_all(session, image)


def test_what_is_loaded_on_demand_alone_is_recorded(image, tmp_path):
    """populate() is not a touch, and with record= nothing else is loaded ahead"""
    record(image, f"{image.path}.ws")
    with lazyrestore.restore(image.path, lazy=True, record=tmp_path / "run.ws") as session:
        assert session.working_set is None
        assert session.stats().fill == "none"
        session["b"].populate()
        touch(session, [(1, 0), (0, 0)])
    assert list(WorkingSet.load(tmp_path / "run.ws")) == [0]


def test_many_threads(make_image, tmp_path):
    """Each cluster once, whoever touches it first"""
    run_in_child(
        """
        import random, sys, threading
        import lazyrestore
        path, to = sys.argv[1:]
        wanted = random.Random(5).sample(range(256), 100)
        with lazyrestore.restore(path, lazy=True, record=to) as session:
            region = session["a"]
            def work(number):
                for cluster in random.Random(number).sample(wanted, 100):
                    region[cluster * 8192 + 4096 * (number % 2)]
            threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        found = list(lazyrestore.WorkingSet.load(to))
        assert sorted(found) == sorted(wanted), found
        """,
        make_image({"a": "dr" * 256}, cluster_size=8192).path,
        tmp_path / "run.ws",
    )


def test_the_path_is_that_of_the_time_of_restore(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lazyrestore.restore(image.path, lazy=True, record="run.ws") as session:
        touch(session)
        monkeypatch.chdir("/")
    assert len(WorkingSet.load(tmp_path / "run.ws")) == len(TOUCHED)


def test_saved_on_demand_stays(image, tmp_path):
    """What comes after is in other files, not in that one"""
    with lazyrestore.restore(image.path, lazy=True, record=tmp_path / "run.ws") as session:
        touch(session, TOUCHED[:2])
        assert not (tmp_path / "run.ws").exists()
        first = session.save_working_set()
        touch(session)
        later = session.save_working_set(tmp_path / "later.ws")
    assert list(first) == [5, 18]
    assert WorkingSet.load(tmp_path / "run.ws") == first
    assert WorkingSet.load(tmp_path / "later.ws") == later
    assert len(later) == len(TOUCHED)
    with pytest.raises(ValueError, match="closed"):
        session.save_working_set()


def test_another_path_does_not_count_as_saved(image, tmp_path):
    with lazyrestore.restore(image.path, lazy=True, record=tmp_path / "run.ws") as session:
        session.save_working_set(tmp_path / "other.ws")
        touch(session)
    assert len(WorkingSet.load(tmp_path / "run.ws")) == len(TOUCHED)


@pytest.mark.parametrize(
    ("end", "is_written"),
    [
        ("session.close()", True),
        ("del session, region", True),
        ("sys.exit()", True),
        ("raise KeyError", True),
        ("kept.append(region); del session", True),
        ("os._exit(0)", False),
    ],
)
def test_every_end(image, tmp_path, end, is_written):
    """Closed, forgotten, the interpreter's end; not a crash"""
    child = run_in_child(
        f"""
        import os, sys
        import lazyrestore
        kept = []
        session = lazyrestore.restore(sys.argv[1], lazy=True, record=sys.argv[2])
        region = session["a"]
        region[5 * 16384]
        {end}
        """,
        image.path,
        tmp_path / "run.ws",
        ok=False,
    )
    assert "Warning" not in child.stderr
    assert (tmp_path / "run.ws").exists() == is_written
    if is_written:
        assert list(WorkingSet.load(tmp_path / "run.ws")) == [5]
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []


def test_a_forked_child_writes_where_it_says(image, tmp_path):
    """It goes on in a copy of the record; its parent's file is its parent's"""
    run_in_child(
        """
        import os, sys
        import lazyrestore
        from fork_support import run
        path, to = sys.argv[1:]
        session = lazyrestore.restore(path, lazy=True, record=to)
        region = session["a"]
        region[5 * 16384]
        def work():
            region[9 * 16384]
            try:
                session.save_working_set()
            except ValueError as error:
                assert "child" in str(error)
            else:
                raise AssertionError("written over its parent's")
            assert list(session.save_working_set(to + ".child")) == [5, 9]
            session.close()
        run(work)
        assert not os.path.exists(to)
        region[2 * 16384]
        session.close()
        assert list(lazyrestore.WorkingSet.load(to)) == [5, 2]
        """,
        image.path,
        tmp_path / "run.ws",
    )


def test_no_image_is_replaced_by_a_recording(image, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(image.path)
    for path in (image.path, link):
        with pytest.raises(ValueError, match="another name"):
            lazyrestore.restore(image.path, lazy=True, record=path)
    with lazyrestore.restore(image.path, lazy=True, record=tmp_path / "run.ws") as session:
        with pytest.raises(ValueError, match="another name"):
            session.save_working_set(image.path)
        check_all(session, image)


def test_what_cannot_be_recorded(image, tmp_path):
    run = tmp_path / "run.ws"
    for options, word in (
        ({"lazy": False}, "lazy"),
        ({"prefetch": "all"}, "loaded ahead"),
        ({"working_set": run}, "loaded ahead"),
    ):
        with pytest.raises(ValueError, match=word):
            lazyrestore.restore(image.path, record=run, **options)
    with pytest.raises(FileNotFoundError):
        lazyrestore.restore(image.path, record=tmp_path / "none" / "run.ws")
    with pytest.raises(IsADirectoryError):
        lazyrestore.restore(image.path, record=tmp_path)
    session = lazyrestore.restore(image.path, lazy=True)
    with pytest.raises(ValueError, match="record="):
        session.save_working_set(run)
    session.close()
    assert not run.exists()


def test_what_cannot_be_written_is_a_warning(image, tmp_path):
    """Leaving the session never raises"""
    folder = tmp_path / "folder"
    folder.mkdir()
    session = lazyrestore.restore(image.path, lazy=True, record=folder / "run.ws")
    touch(session)
    shutil.rmtree(folder)
    with pytest.warns(RuntimeWarning, match="working set cannot be written"):
        session.__exit__(None, None, None)
    assert len(session) == 0


# ---- Replay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", ["beside", "before"])
@pytest.mark.parametrize("prefetch", ["auto", "all"])
def test_what_was_recorded_is_there(image, tmp_path, replay, prefetch):
    """No touch of it faults; the rest comes by itself, and all bytes are right"""
    record(image, tmp_path / "run.ws")
    options = {"working_set": tmp_path / "run.ws", "replay": replay, "prefetch": prefetch}
    with lazyrestore.restore(image.path, lazy=True, **options) as session:
        assert len(session.working_set) == len(TOUCHED)
        if replay == "beside":
            assert session.wait_working_set()
        touch(session)
        assert session.faults == 0
        assert session.wait()
        check_all(session, image)
        assert session.faults == 0


def test_touched_while_it_is_replayed(make_image, tmp_path):
    """Whoever comes first: every byte is right"""
    image = make_image({"a": "drzd" * 512}, cluster_size=4 * PAGE)
    places = [(0, (7 * number) % 512) for number in range(300)]
    record(image, f"{image.path}.ws", places)
    for _ in range(5):
        with lazyrestore.restore(image.path, lazy=True) as session:
            touch(session, places[::-1])
            check_all(session, image)


def test_it_is_found_beside_the_image(image):
    numbers = record(image, f"{image.path}.ws")
    with lazyrestore.restore(image.path, lazy=True, replay="before") as session:
        assert list(session.working_set) == numbers
        assert session.working_set.path == f"{image.path}.ws"
    for options in ({"prefetch": "none"}, {"working_set": False}, {"lazy": False}):
        with lazyrestore.restore(image.path, **{"lazy": True, **options}) as session:
            assert session.working_set is None
            assert session.stats().fill == "none"
            with pytest.raises(ValueError, match="no working set"):
                session.wait_working_set()


def test_without_one_nothing_is_loaded_ahead(image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lazyrestore.restore(image.path, lazy=True) as session:
            assert session.working_set is None
            assert session.stats().fill == "none"
            assert session.stats().pages_copied == 0


def make_bad(image, other):
    good = WorkingSet.load(f"{image.path}.ws")
    data = good.pack()
    return {
        "cut": data[:-1],
        "empty": b"",
        "another image's": other.pack(),
    }


@pytest.mark.parametrize("kind", ["cut", "empty", "another image's"])
def test_one_that_cannot_be_used(image, make_image, tmp_path, kind):
    """Named: an error. Found: one warning, and the restore is as without it"""
    record(image, f"{image.path}.ws")
    other = make_image({"a": "r" * 80}, cluster_size=4 * PAGE)
    record(other, tmp_path / "other.ws", ())
    bad = make_bad(image, WorkingSet.load(tmp_path / "other.ws"))[kind]
    (tmp_path / "bad.ws").write_bytes(bad)
    with pytest.raises(WorkingSetError):
        lazyrestore.restore(image.path, working_set=tmp_path / "bad.ws")
    (tmp_path / f"{image.path.name}.ws").write_bytes(bad)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with lazyrestore.restore(image.path, lazy=True) as session:
            assert session.working_set is None
            assert session.stats().fill == "none"
            check_all(session, image)
    assert [each.category for each in caught] == [RuntimeWarning]
    assert "Restored without it" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_named_one_has_to_be_there(image, tmp_path):
    with pytest.raises(FileNotFoundError):
        lazyrestore.restore(image.path, working_set=tmp_path / "none.ws")
    with pytest.raises(ValueError, match="replay"):
        lazyrestore.restore(image.path, replay="after")
    with pytest.raises(ValueError, match="prefetch"):
        lazyrestore.restore(image.path, prefetch="none", working_set=tmp_path / "none.ws")
    with pytest.raises(ValueError, match="working_set"):
        lazyrestore.restore(image.path, working_set=5)


def test_a_damaged_cluster_in_it(image, tmp_path):
    """Is fenced, as by any load; all else is there"""
    record(image, tmp_path / "run.ws")
    flip(image.path, payloads(image.path, "b")[2][0] + 5)
    options = {"working_set": tmp_path / "run.ws", "replay": "before", "prefetch": "auto"}
    with lazyrestore.restore(image.path, lazy=True, **options) as session:
        assert session.wait()
        assert [(error.region, error.offset) for error in session.errors] == [("b", 8 * PAGE)]
        assert session["a"][:] == image.expected["a"]


def test_a_set_in_memory_of_two_runs(image, tmp_path):
    """What either run touched is there"""
    record(image, tmp_path / "one.ws", TOUCHED[:2])
    record(image, tmp_path / "two.ws", TOUCHED[1:])
    one, two = (WorkingSet.load(tmp_path / f"{name}.ws") for name in ("one", "two"))
    options = {"working_set": one.merge(two), "replay": "before"}
    with lazyrestore.restore(image.path, lazy=True, **options) as session:
        touch(session)
        assert session.faults == 0


def test_a_child_touches_what_is_not_there_yet(image):
    """A fork amid or after the replay: right bytes, in parent and child"""
    record(image, f"{image.path}.ws")
    run_in_child(
        """
        import sys
        import lazyrestore
        from fork_support import contents, run, same
        path = sys.argv[1]
        expected = contents(path)
        with lazyrestore.restore(path, lazy=True) as session:
            def work():
                for name, region in session.items():
                    same(region, expected[name])
            run(work)
            work()
        """,
        image.path,
    )


def test_clusters_of_a_set_are_checked_by_the_core(image):
    """One that was made by hand and names a cluster that is not there"""
    with lazyrestore.open(image.path) as opened:
        numbers = (opened.digest, opened.cluster_size, opened.cluster_count)
    made = WorkingSet(*numbers, array("Q", [1, numbers[2]]), array("Q", [0, 0]))
    with pytest.raises(ValueError, match="cannot fill"):
        lazyrestore.restore(image.path, lazy=True, working_set=made)
