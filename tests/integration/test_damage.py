"""A cluster that cannot be loaded is fenced: an error where it is touched, and nowhere else."""

from __future__ import annotations

import os
import signal

import pytest
from restore_support import PAGE, content_of, flip, payloads, run_in_child

import lazyrestore

pytestmark = pytest.mark.uffd

CLUSTER = 16384


@pytest.fixture
def image(make_image):
    """Four data clusters, one of zeros and holes, one with data and zeros, then data."""
    layouts = {"a": "d" * 16 + "zzhh" + "dzdz" + "dddd", "b": "dr" * 8}
    return make_image(layouts, cluster_size=CLUSTER)


def damage_cluster(image, number, region="a"):
    offset, length = payloads(image.path, region)[number]
    flip(image.path, offset + length // 2)


def check_error(session, cluster, region="a", reason="checksum"):
    (error,) = session.errors
    assert (error.region, error.offset, error.length) == (region, cluster * CLUSTER, CLUSTER)
    assert reason in error.reason
    assert error.fence in ("SIGBUS", "SIGSEGV")
    assert session.stats().errors == 1


@pytest.mark.parametrize("ahead", [True, False])
def test_a_touch_dies_by_the_fence(image, ahead):
    """Whether the cluster breaks before the session is opened, or while it is used."""
    if ahead:
        damage_cluster(image, 2)
    result = run_in_child(
        """
        import resource, sys
        import lazyrestore
        from restore_support import flip
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        region = session["a"]
        region[0]
        if len(sys.argv) > 2:
            flip(sys.argv[1], int(sys.argv[2]))
        print("before", flush=True)
        print(region[2 * 16384 + 5000])
        """,
        image.path,
        *([] if ahead else [payloads(image.path, "a")[2][0] + 9]),
        ok=False,
    )
    assert result.stdout == "before\n"
    assert -result.returncode in (signal.SIGBUS, signal.SIGSEGV)


def test_populate_raises_and_names_the_cluster(image):
    damage_cluster(image, 2)
    with lazyrestore.restore(image.path, lazy=True) as session:
        region = session["a"]
        for _ in range(2):  # the second time as the first, and recorded once
            with pytest.raises(lazyrestore.RestoreError) as caught:
                region.populate()
            assert (caught.value.region, caught.value.offset) == ("a", 2 * CLUSTER)
            assert caught.value.cluster == 2
            assert "'a'" in str(caught.value)
            assert "\n" not in str(caught.value)
        check_error(session, 2)
        expected = image.expected["a"]
        assert region[: 2 * CLUSTER] == expected[: 2 * CLUSTER]
        assert region[3 * CLUSTER :] == expected[3 * CLUSTER :]
        region.populate(3 * CLUSTER)
        assert bytes(session["b"]) == image.expected["b"]


def test_system_calls_fail_or_stop_short_at_the_fence(image, tmp_path):
    damage_cluster(image, 2)
    expected = image.expected["a"]
    with (
        lazyrestore.restore(image.path, lazy=True) as session,
        (tmp_path / "out").open("wb", buffering=0) as file,
    ):
        fd = file.fileno()
        view = memoryview(session["a"])
        try:
            written = os.write(fd, view)
            assert written <= 2 * CLUSTER
            assert (tmp_path / "out").read_bytes() == expected[:written]
        except OSError as error:
            assert error.errno == 14  # noqa: PT017 - EFAULT, where it did not stop short
        with pytest.raises(OSError, match="address"):
            os.write(fd, view[2 * CLUSTER :])
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, 0)
        assert os.write(fd, view[3 * CLUSTER :]) == len(expected) - 3 * CLUSTER
        assert (tmp_path / "out").read_bytes() == expected[3 * CLUSTER :]
        check_error(session, 2)
        view.release()


def test_zero_pages_of_a_broken_cluster_are_still_zeros(image):
    damage_cluster(image, 5)  # dzdz
    with lazyrestore.restore(image.path, lazy=True, trace=64) as session:
        region = session["a"]
        with pytest.raises(lazyrestore.RestoreError):
            region.populate(5 * CLUSTER, 1)
        assert region[5 * CLUSTER + PAGE : 5 * CLUSTER + 2 * PAGE] == bytes(PAGE)
        assert region[5 * CLUSTER + 3 * PAGE : 6 * CLUSTER] == bytes(PAGE)
        assert region[6 * CLUSTER :] == image.expected["a"][6 * CLUSTER :]
        assert session.stats().errors == 1


def test_the_trace_shows_a_fence(image, tmp_path):
    damage_cluster(image, 1)
    with lazyrestore.restore(image.path, lazy=True, trace=64) as session:
        view = memoryview(session["a"])[CLUSTER:]
        with (
            (tmp_path / "out").open("wb", buffering=0) as file,
            pytest.raises(OSError, match="address"),
        ):
            os.write(file.fileno(), view)
        view.release()
        records = session.read_trace()
        assert [r.action for r in records] == ["FENCE"]
        assert records[0].offset == CLUSTER


def test_touch_leaves_out_what_is_fenced(image):
    damage_cluster(image, 1)
    result = run_in_child(
        """
        import sys
        import lazyrestore
        with lazyrestore.restore(sys.argv[1], lazy=True) as session:
            print(session["a"].touch(), len(session.errors))
        """,
        image.path,
        ok=False,
    )
    assert result.stdout.split() == ["24", "1"], result


@pytest.mark.parametrize("what", ["truncated", "emptied", "overwritten"])
def test_a_file_that_changes_under_the_session(image, what):
    whole = image.path.read_bytes()
    expected = image.expected["a"]
    with lazyrestore.restore(image.path, lazy=True) as session:
        region = session["a"]
        assert region[: 2 * CLUSTER] == expected[: 2 * CLUSTER]
        before = session.stats().clusters_decoded
        match what:
            case "truncated":
                os.truncate(image.path, payloads(image.path, "a")[2][0] + 5)
            case "emptied":
                os.truncate(image.path, 0)
            case _:
                image.path.write_bytes(b"\xa5" * len(whole))
        for cluster in (2, 3, 5, 6):
            with pytest.raises(lazyrestore.RestoreError):
                region.populate(cluster * CLUSTER, 1)
        assert before == 2
        assert region[: 2 * CLUSTER] == expected[: 2 * CLUSTER]
        errors = session.errors
        assert [error.offset for error in errors] == [c * CLUSTER for c in (2, 3, 5, 6)]
        assert all(error.reason and error.fence for error in errors)
        # And when it is whole again, so are they: nothing was lost but time.
        image.path.write_bytes(whole)
        region.populate()
        if errors[0].fence == "SIGBUS":
            assert region[:] == expected


def find_node(path):
    """The payload of the first index node, found as docs/format.md says."""
    import msgpack

    data = path.read_bytes()
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 30)
    unpacker.feed(data)
    for record in unpacker:
        if "index" in record:
            return data.index(record["index"]), len(record["index"])
    raise AssertionError("there is no index node")


@pytest.mark.parametrize("where", ["level", "entry", "states", "end"])
def test_a_damaged_index_node(image, where):
    offset, length = find_node(image.path)
    at = {"level": 0, "entry": 16 + 3, "states": 16 + 24, "end": length - 1}[where]
    flip(image.path, offset + at)
    with lazyrestore.restore(image.path, lazy=True) as session:
        for name in ("a", "b"):
            with pytest.raises(lazyrestore.RestoreError):
                session[name].populate()
        assert len(session.errors) == 2
        assert {error.region for error in session.errors} == {"a", "b"}
        assert all(error.length == CLUSTER for error in session.errors)
    with pytest.raises(lazyrestore.ClusterError):
        lazyrestore.restore(image.path, lazy=False)


def test_the_last_cluster_of_a_region_says_its_true_length(tmp_path):
    path = tmp_path / "odd.lzr"
    data = content_of("d" * 5) + b"odd"
    lazyrestore.dump(data, path, cluster_size=CLUSTER)
    flip(path, payloads(path, "memory")[1][0] + 9)
    with lazyrestore.restore(path, lazy=True) as session:
        with pytest.raises(lazyrestore.RestoreError):
            session["memory"].populate()
        (error,) = session.errors
        assert (error.offset, error.length) == (CLUSTER, len(data) - CLUSTER)


def test_eager_restore_raises_a_cluster_error(image):
    damage_cluster(image, 2)
    with pytest.raises(lazyrestore.ClusterError) as caught:
        lazyrestore.restore(image.path, lazy=False)
    assert (caught.value.region, caught.value.offset) == ("a", 2 * CLUSTER)


def test_all_of_many_clusters_broken(make_image):
    made = make_image({"a": "d" * 3000}, cluster_size=4096)
    with lazyrestore.restore(made.path, lazy=True) as session:
        os.truncate(made.path, 100)  # afterwards, or it would not open
        for page in range(3000):
            with pytest.raises(lazyrestore.RestoreError):
                session["a"].populate(page * PAGE, 1)
        assert len(session.errors) == 1024
        assert session.stats().errors == 3000


def test_shared_clusters_fail_in_each_place(tmp_path):
    path = tmp_path / "twice.lzr"
    data = content_of("dddd")
    lazyrestore.dump({"a": data, "b": data}, path, cluster_size=CLUSTER)
    flip(path, payloads(path, "a")[0][0] + 9)
    with lazyrestore.restore(path, lazy=True) as session:
        for name in ("a", "b"):
            with pytest.raises(lazyrestore.RestoreError):
                session[name].populate()
        assert {error.region for error in session.errors} == {"a", "b"}


def test_threads_that_touch_a_broken_cluster_all_die_or_none_hangs(image):
    damage_cluster(image, 2)
    run_in_child(
        """
        import os, sys, threading
        import lazyrestore
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        view = memoryview(session["a"])[2 * 16384:]
        failed = []
        def write(number):
            fd = os.memfd_create("out")
            try:
                os.write(fd, view[number * 100 :])
            except OSError as error:
                failed.append(error.errno)
        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert failed == [14] * 8, failed
        assert len(session.errors) == 1
        """,
        image.path,
    )
