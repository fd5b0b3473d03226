"""`lazyrestore.load`: a mapping of arrays, each mapped when it is asked for."""

from __future__ import annotations

import copy
import gc
import threading

import numpy
import pytest
from restore_support import mapping_at, run_in_child

import lazyrestore
from lazyrestore import _arrays

pytestmark = pytest.mark.uffd

ARRAYS = {
    "numbers": numpy.arange(200_000, dtype="f4").reshape(400, 500),
    "fortran": numpy.asfortranarray(numpy.arange(6000.0).reshape(60, 100)),
    "scalar": numpy.float64(4.5),
    "nothing": numpy.empty((0, 3)),
    "bytes": b"abc" * 5000,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "x.lzr"
    lazyrestore.dump(ARRAYS, path)
    return path


def as_arrays(value):
    return numpy.frombuffer(value, "u1") if isinstance(value, bytes) else numpy.asarray(value)


@pytest.mark.parametrize("lazy", ["auto", True, False])
@pytest.mark.parametrize("prefetch", ["auto", "none", "all"])
def test_it_is_a_mapping_in_dump_order(path, lazy, prefetch):
    with lazyrestore.load(path, lazy=lazy, prefetch=prefetch) as arrays:
        assert list(arrays) == list(ARRAYS)
        assert len(arrays) == 5
        assert "numbers" in arrays
        assert "more" not in arrays
        assert ["numbers"] not in arrays
        for name, array in arrays.items():
            assert array is arrays[name]  # kept
            assert array.dtype == as_arrays(ARRAYS[name]).dtype
            assert (array == as_arrays(ARRAYS[name])).all()
        with pytest.raises(lazyrestore.RegionNotFound, match=r"'more'.*'numbers'"):
            arrays["more"]
        with pytest.raises(KeyError):
            arrays["more"]
        assert arrays.get("more") is None
        assert arrays == arrays
        assert arrays != dict(arrays)
        assert {arrays: 1}[arrays] == 1
        assert arrays.session.lazy is bool(lazy)
        del array


def test_what_is_not_asked_for_is_not_mapped(path):
    with lazyrestore.load(path, lazy=True) as arrays:
        session = arrays.session
        assert "numbers" in arrays
        assert list(session)
        assert len(session) == 5
        assert session.stats().resident_bytes == 0
        assert repr(arrays) == (
            f"<lazyrestore.Arrays {str(path)!r}: 'numbers', 'fortran', 'scalar', 'nothing',"
            " 'bytes'>"
        )
        assert list(session._regions) == []
        assert arrays["numbers"][0, 5] == 5
        assert list(session._regions) == ["numbers"]
        assert session["numbers"].name == "numbers"


def test_names_choose_and_order(path):
    for lazy in (True, False):
        with lazyrestore.load(path, names=["bytes", "numbers", "bytes"], lazy=lazy) as arrays:
            assert list(arrays) == ["bytes", "numbers"]
            assert "fortran" not in arrays
            assert arrays["numbers"][1, 0] == 500
            with pytest.raises(lazyrestore.RegionNotFound, match="'fortran' was not restored"):
                arrays["fortran"]
    with pytest.raises(lazyrestore.RegionNotFound, match="has no region 'more'"):
        lazyrestore.load(path, names=["numbers", "more"])
    with pytest.raises(ValueError, match="list of names"):
        lazyrestore.load(path, names="numbers")
    with lazyrestore.load(path, names=[]) as arrays:
        assert list(arrays) == []


def test_modes(path):
    with lazyrestore.load(path) as arrays, lazyrestore.load(path, mode="r") as others:
        arrays["numbers"][0, 0] = 77
        assert arrays["numbers"][0, 0] == 77
        assert others["numbers"][0, 0] == 0
        for name in others:
            assert not others[name].flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            others["numbers"][0, 0] = 1
    with lazyrestore.load(path) as arrays:
        assert arrays["numbers"][0, 0] == 0
    for mode in ("r+", "w", None):
        with pytest.raises(ValueError, match="an image is never written to"):
            lazyrestore.load(path, mode=mode)


@pytest.mark.parametrize(
    ("option", "value"), [("lazy", "yes"), ("prefetch", "some"), ("privilege", "none")]
)
def test_other_arguments_that_cannot_be(path, option, value):
    with pytest.raises(ValueError, match=f"{option} is '{value}'"):
        lazyrestore.load(path, **{option: value})


def test_with_less_privilege(path):
    with lazyrestore.load(path, privilege="user-mode-only") as arrays:
        assert arrays["numbers"][399, 499] == 199_999
        assert arrays.session.stats().privilege == "user-mode-only"


def test_an_array_outlives_the_mapping(path):
    array = lazyrestore.load(path)["numbers"]
    gc.collect()
    address = array.__array_interface__["data"][0]
    assert array[399, 499] == 199_999
    assert (array == ARRAYS["numbers"]).all()
    del array
    assert mapping_at(address) is None
    arrays = lazyrestore.load(path)
    array = arrays["numbers"]
    arrays.close()
    arrays.close()
    for use in (lambda: arrays["numbers"], lambda: arrays.session["numbers"]):
        with pytest.raises(ValueError, match="closed: restore the image again"):
            use()
    assert list(arrays) == []
    assert "closed" in repr(arrays)
    assert (array == ARRAYS["numbers"]).all()


def test_leaving_it_unmaps_what_nobody_uses(path):
    with lazyrestore.load(path) as arrays:
        address = arrays["numbers"].__array_interface__["data"][0]
        assert mapping_at(address) is not None
    assert mapping_at(address) is None


def test_the_image_may_be_replaced_meanwhile(path, tmp_path):
    """What is mapped later is of the same image"""
    mine = tmp_path / "mine.lzr"
    mine.write_bytes(path.read_bytes())
    with lazyrestore.load(mine) as arrays:
        lazyrestore.dump({"numbers": numpy.zeros((400, 500), "f4"), "more": b"x"}, mine)
        assert (arrays["numbers"] == ARRAYS["numbers"]).all()


def test_many_threads_ask_at_once(tmp_path):
    """Each array is mapped once"""
    names = [f"array-{number}" for number in range(40)]
    content = {name: numpy.full(5000, number) for number, name in enumerate(names)}
    lazyrestore.dump(content, tmp_path / "x.lzr")
    for _ in range(10):
        with lazyrestore.load(tmp_path / "x.lzr", lazy=True) as arrays:
            start = threading.Barrier(4)
            found = [dict[str, numpy.ndarray]() for _ in range(4)]

            def work(mine, arrays=arrays, start=start):
                start.wait(20)
                for name in names:
                    mine[name] = arrays[name]

            threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for name in names:
                assert len({id(mine[name]) for mine in found}) == 1
                assert (found[0][name] == content[name]).all()
            del found


def test_copies(path):
    """A shallow one is the same memory; a deep one has what was written, and is of its own"""
    with lazyrestore.load(path) as arrays:
        arrays["numbers"][0, 0] = 77
        region = arrays.session["numbers"]
        assert copy.copy(region) is region
        assert copy.copy(arrays) is arrays
        assert copy.copy(arrays.session) is arrays.session
        deep = copy.deepcopy({"region": region, "arrays": arrays, "again": region})
        assert deep["region"] is deep["again"] is deep["arrays"].session["numbers"]
        array = deep["region"].array()
        assert array[0, 0] == 77
        assert (array[1:] == ARRAYS["numbers"][1:]).all()
        array[0, 0] = 78
        assert arrays["numbers"][0, 0] == 77
        assert list(deep["arrays"]) == list(ARRAYS)
        assert (deep["arrays"]["fortran"] == ARRAYS["fortran"]).all()
        assert deep["region"].name == "numbers"
        del array
    assert deep["arrays"]["numbers"][0, 0] == 78


def test_a_deep_copy_of_a_closed_region_is_refused(path):
    with lazyrestore.restore(path) as session:
        region = session["numbers"]
    for use in (copy.deepcopy, lambda region: region.__reduce_ex__(2)):
        with pytest.raises(ValueError, match="closed"):
            use(region)


def test_a_deep_copy_of_what_cannot_be_loaded_is_an_error(path, tmp_path):
    damaged = tmp_path / "damaged.lzr"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    damaged.write_bytes(content)
    session = lazyrestore.restore(damaged, lazy=True)
    with session, pytest.raises(lazyrestore.RestoreError, match="region"):
        copy.deepcopy(session)


def test_zeros_cost_nothing_in_a_deep_copy(tmp_path):
    with lazyrestore.ImageWriter(tmp_path / "x.lzr") as image:
        image.add_region("a")
        image.zero(64 << 20)
        image.write(b"end")
    with lazyrestore.restore(tmp_path / "x.lzr") as session:
        twin = copy.deepcopy(session["a"])
        assert twin.resident_bytes < 1 << 20
        assert twin[-3:] == b"end"


_FORKS = """
import sys, threading
import lazyrestore
from fork_support import *
path = sys.argv[1]
def check(arrays):
    for name in arrays:
        assert arrays[name][7] == int(name.partition("-")[2])
def work(arrays):
    check(arrays)
    with lazyrestore.load(path, lazy=True) as own:
        check(own)
for number in range(60):
    with lazyrestore.load(path, lazy=True) as arrays:
        begun = threading.Event()
        def maps():
            for name in arrays:
                arrays[name]
                begun.set()
        thread = threading.Thread(target=maps)
        thread.start()
        begun.wait(30)
        run(work, arrays)  # half-way
        thread.join()
        check(arrays)
"""


def test_a_forked_child_maps_what_its_parent_had_not_asked_for(tmp_path):
    path = tmp_path / "x.lzr"
    lazyrestore.dump({f"array-{i}": numpy.full(5000, i) for i in range(40)}, path)
    run_in_child(_FORKS, path, timeout=90)


def test_without_numpy_it_is_asked_for(path):
    run_in_child(
        """
import sys
sys.modules["numpy"] = None
import lazyrestore
for use in (
    lambda: lazyrestore.load(sys.argv[1]),
    lambda: lazyrestore.restore(sys.argv[1])["numbers"].array(),
):
    try:
        use()
    except ModuleNotFoundError as error:
        assert str(error).endswith(
            "() needs numpy, which is not installed: pip install 'lazyrestore[numpy]'"
        ), error
    else:
        raise AssertionError("it did without")
with lazyrestore.restore(sys.argv[1]) as session:
    assert session["bytes"][:3] == b"abc"
""",
        path,
    )


def test_a_signal_handler_that_wants_what_is_being_mapped(path):
    run_in_child(
        """
        import signal, sys
        import lazyrestore
        arrays = lazyrestore.load(sys.argv[1], lazy=True)
        session = arrays.session
        make = session._make
        seen = []

        def handle(*_):
            try:
                seen.append(arrays["numbers"])
            except RuntimeError as error:
                seen.append(str(error))
            seen.append(int(arrays["bytes"][0]))  # of the others it has each

        def interrupted(number):
            if number == 0:
                signal.raise_signal(signal.SIGUSR1)
            region = make(number)
            if number == 0:
                signal.raise_signal(signal.SIGUSR1)
            return region

        signal.signal(signal.SIGUSR1, handle)
        session._make = interrupted
        assert (arrays["numbers"].ravel() == range(200_000)).all()
        assert "just being mapped" in seen[0], seen
        assert "just being mapped" in seen[2], seen
        assert seen[1] == seen[3] == ord("a")
        handle()
        assert seen[-2] is arrays["numbers"]
        """,
        path,
    )


def test_a_region_that_is_closed_while_its_array_is_made(path, monkeypatch):
    session = lazyrestore.restore(path)
    region = session["numbers"]
    to_dtype = _arrays.to_dtype

    def closing(described):
        region.close()
        return to_dtype(described)

    monkeypatch.setattr(_arrays, "to_dtype", closing)
    with pytest.raises(ValueError, match=r"closed: restore the image again"):
        region.array()
