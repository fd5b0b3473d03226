"""Regions at the address they had: placed there, or refused; nothing is ever replaced."""

from __future__ import annotations

import gc
import mmap
import pickle

import pytest
from restore_support import PAGE, mapping_at, page_of, threads_become, threads_named

import lazyrestore
from lazyrestore._native import ffi

pytestmark = pytest.mark.uffd

FREE = 0x2000_0000_0000  # far from what the kernel chooses


def restore(path, **options):
    return lazyrestore.restore(path, at_original_address=True, **options)


@pytest.fixture
def placed(make_image):
    return make_image(
        {"low": "drzh" * 20, "high": "d" * 16},
        addresses={"low": FREE, "high": FREE + 80 * PAGE},
        cluster_size=16384,
    )


@pytest.mark.parametrize("lazy", [True, False])
def test_regions_lie_where_they_lay(placed, lazy):
    with restore(placed.path, lazy=lazy) as session:
        low, high = session["low"], session["high"]
        assert isinstance(low, lazyrestore.PlacedRegion)
        assert (low.address, high.address) == (FREE, FREE + 80 * PAGE)
        # By the address alone, as a pointer in the dumped memory would.
        assert bytes(ffi.buffer(ffi.cast("char *", FREE), 96 * PAGE)) == (
            placed.expected["low"] + placed.expected["high"]
        )
    del low, high
    assert mapping_at(FREE) is None


def test_it_is_a_buffer_with_the_methods_of_a_region(placed, tmp_path):
    with restore(placed.path, lazy=True) as session:
        region, expected = session["low"], placed.expected["low"]
        assert len(region) == region.length == len(expected)
        assert region.name == "low"
        assert region[5] == expected[5]
        assert region[-1] == expected[-1]
        assert region[100:9000] == expected[100:9000]
        assert region[::4096] == expected[::4096]
        assert memoryview(region) == expected
        assert bytes(memoryview(region)) == expected
        assert region.array().tobytes() == expected
        region[3] = 9
        region[PAGE : PAGE + 3] = b"abc"
        assert region[3] == 9
        assert region[PAGE : PAGE + 4] == b"abc" + expected[PAGE + 3 : PAGE + 4]
        (tmp_path / "source").write_bytes(b"x" * 5000)
        with (tmp_path / "source").open("rb", buffering=0) as file:
            assert file.readinto(region) == 5000
        assert region[:5000] == b"x" * 5000
        region.populate()
        assert region.touch() == 80
        assert region.resident_bytes >= 40 * PAGE
        assert bytes(pickle.loads(pickle.dumps(region.array()))) == bytes(region)
        with pytest.raises(ValueError, match="'low'"):
            region.populate(0, 81 * PAGE)
    del region


def test_a_reference_goes_to_the_same_address(placed):
    with restore(placed.path, lazy=True) as session:
        reference = pickle.dumps(session["low"])
        with pytest.raises(lazyrestore.KernelError, match="taken"):
            pickle.loads(reference)  # by this session
    region = pickle.loads(reference)
    assert region.address == FREE
    assert region[:] == placed.expected["low"]
    assert pickle.loads(reference) is region
    del region
    gc.collect()
    assert mapping_at(FREE) is None


@pytest.mark.parametrize("lazy", [True, False])
def test_a_taken_address_is_refused_and_nothing_is_replaced(make_image, lazy):
    taken = mmap.mmap(-1, 4 * PAGE)
    taken[:] = b"mine" * PAGE
    with ffi.from_buffer(taken) as view:
        address = int(ffi.cast("uintptr_t", view))
    for shift in (0, -PAGE, 3 * PAGE):
        made = make_image(
            {"free": "d" * 4, "taken": "d" * 4},
            addresses={"free": FREE, "taken": address + shift},
        )
        before = threads_named()
        with pytest.raises(lazyrestore.KernelError) as caught:
            restore(made.path, lazy=lazy)
        message = str(caught.value)
        assert "'taken'" in message
        assert f"{address + shift:#x}" in message
        line = mapping_at(address)
        # The mapping that is named may be a neighbour where the range reaches into two.
        assert line.split()[0] in message or shift < 0
        del caught
        gc.collect()
        assert taken[:] == b"mine" * PAGE
        assert mapping_at(FREE) is None  # what was placed before it is gone again
        assert threads_become(before)


def test_two_sessions_cannot_have_one_address(placed):
    with restore(placed.path, lazy=True) as session:
        with pytest.raises(lazyrestore.KernelError, match="taken"):
            restore(placed.path, lazy=True)
        assert bytes(session["low"]) == placed.expected["low"]
        assert bytes(session["high"]) == placed.expected["high"]
    with restore(placed.path, lazy=True) as session:
        assert bytes(session["low"]) == placed.expected["low"]


def test_addresses_that_cannot_be(make_image):
    for address, words in ((0, "no original address"), (FREE + 16, "page-aligned")):
        made = make_image({"odd": "d"}, addresses={"odd": address})
        with pytest.raises(ValueError, match=f"'odd'.*{words}"):
            restore(made.path, lazy=True)
    for address in (1 << 63, (1 << 64) - PAGE, 1 << 47):
        made = make_image({"odd": "dd"}, addresses={"odd": address})
        with pytest.raises((lazyrestore.LazyRestoreError, MemoryError, ValueError)):
            restore(made.path, lazy=True)


def test_the_last_page_need_not_be_whole(tmp_path):
    path = tmp_path / "odd.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("odd", address=FREE)
        image.write(page_of(1) + b"tail")
        image.add_region("empty", address=FREE)
    with restore(path, lazy=True) as session:
        assert bytes(session["odd"]) == page_of(1) + b"tail"
        assert len(session["empty"]) == 0


def test_views_keep_it_and_the_last_one_ends_it(placed):
    before = threads_named()
    with restore(placed.path, lazy=True) as session:
        array = session["low"].array()
        view = memoryview(session["high"])
    assert threads_become(before + 1)
    assert array.tobytes() == placed.expected["low"]
    part = view[PAGE : 2 * PAGE]
    del view
    assert part == placed.expected["high"][PAGE : 2 * PAGE]
    del part
    assert mapping_at(FREE + 80 * PAGE) is None
    assert mapping_at(FREE)
    del array
    assert mapping_at(FREE) is None
    assert threads_become(before)


def test_closing_it_lets_go_but_serves_views(placed):
    session = restore(placed.path, lazy=True)
    view = memoryview(session["low"])
    region = session["low"]
    region.close()
    with pytest.raises(ValueError, match="closed"):
        region[0]
    session.close()
    del region
    assert view == placed.expected["low"]
    del view
    assert mapping_at(FREE) is None


def test_in_a_cycle_with_its_views_finalisers_may_use_it(placed):
    seen = []

    class Owner:
        def __del__(self):
            seen.append(self.view.tobytes())

    for _ in range(3):
        owners = [Owner() for _ in range(3)]
        with restore(placed.path, lazy=True) as session:
            for owner in owners:
                owner.view = memoryview(session["low"]).cast("B")
                owner.region = session["low"]
                owner.others = owners
            session["low"].owners = owners
        del owner, owners
        assert mapping_at(FREE)
        gc.collect()
        assert mapping_at(FREE) is None
    assert seen == [placed.expected["low"]] * 9
