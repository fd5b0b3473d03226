"""Restored contents are what was dumped: every page state, cluster size, order of touches."""

from __future__ import annotations

import os
import random

import numpy
import pytest
from restore_support import CLUSTER_SIZES, PAGE, content_of, run_in_child

import lazyrestore

pytestmark = pytest.mark.uffd

STATES = {
    "data": "d" * 600,
    "noise": "r" * 600,
    "zeros": "z" * 600,
    "holes": "h" * 600,
    "every": "drzh" * 150,
    "runs": "d" * 17 + "z" * 33 + "h" * 65 + "r" * 129 + "z" * 1 + "d" * 255 + "h",
}


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_all_states_in_all_cluster_sizes(make_image, cluster_size, lazy):
    made = make_image(STATES, cluster_size=cluster_size)
    chance = random.Random(cluster_size)
    with lazyrestore.restore(made.path, lazy=lazy) as session:
        for name, expected in made.expected.items():
            region = session[name]
            pages = list(range(len(expected) // PAGE))
            chance.shuffle(pages)
            for page in pages:
                begin = page * PAGE
                assert region[begin : begin + PAGE] == expected[begin : begin + PAGE], (name, page)
            assert region[:] == expected
        stats = session.stats()
        assert stats.errors == 0
        assert stats.resident_bytes <= 6 * 600 * PAGE


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_a_system_call_across_many_missing_pages(make_image, tmp_path, cluster_size):
    made = make_image(STATES, cluster_size=cluster_size)
    with lazyrestore.restore(made.path, lazy=True) as session:
        for name, expected in made.expected.items():
            with (tmp_path / "out").open("wb", buffering=0) as file:
                assert os.write(file.fileno(), session[name]) == len(expected)
            assert (tmp_path / "out").read_bytes() == expected


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_mixed_ways_of_loading_agree(make_image, cluster_size):
    made = make_image({"a": "drzh" * 300}, cluster_size=cluster_size)
    expected = made.expected["a"]
    chance = random.Random(cluster_size)
    with lazyrestore.restore(made.path, lazy=True) as session:
        region = session["a"]
        for _ in range(150):
            offset = chance.randrange(len(expected))
            length = min(chance.choice((1, 100, 5000, 40000)), len(expected) - offset)
            match chance.randrange(3):
                case 0:
                    region.populate(offset, length)
                case 1:
                    assert region[offset : offset + length] == expected[offset : offset + length]
                case _:
                    region.touch(20, order="random", first=chance.randrange(1200), seed=7)
        assert region[:] == expected
        stats = session.stats()
        assert stats.pages_copied == 600
        assert stats.pages_zeroed == 600


@pytest.mark.parametrize("lazy", [True, False])
def test_a_thousand_regions(tmp_path, lazy):
    path = tmp_path / "many.lzr"
    chance = random.Random(1)
    expected = {}
    for number in range(1000):
        length = chance.choice((0, 1, 100, 4096, 5000, 70000))
        expected[f"region {number}"] = number.to_bytes(4, "little") * (length // 4 + 1)
    expected = {name: data[: 4 * (len(data) // 4 - 1) + 1] for name, data in expected.items()}
    expected = {name: data or b"" for name, data in expected.items()}
    lazyrestore.dump(expected, path)
    with lazyrestore.restore(path, lazy=lazy) as session:
        assert list(session) == list(expected)
        order = list(expected)
        chance.shuffle(order)
        for name in order:
            assert bytes(session[name]) == expected[name]
        address = {region.address for region in session.values() if len(region)}
        assert len(address) == sum(bool(data) for data in expected.values())
        for name in order[:500]:
            session[name].close()
        for name in order[500:]:
            assert bytes(session[name]) == expected[name]


def test_names_of_any_script(tmp_path):
    names = ["ü", "名前", "with space", "a/b", "…" * 1000, "new\nline", "🧠", "7f00-7fff"]
    path = tmp_path / "names.lzr"
    lazyrestore.dump({name: name.encode() for name in names}, path)
    with lazyrestore.restore(path, lazy=True) as session:
        assert list(session) == names
        for name in names:
            assert bytes(session[name]) == name.encode()
            assert session[name].name == name
        assert repr(session["ü"])


def test_64_gib_mostly_zero(tmp_path):
    path = tmp_path / "huge.lzr"
    gib = 1 << 30
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("huge")
        image.write(b"begin")
        image.zero(20 * gib - 5)
        image.write(content_of("dr" * 20))
        image.hole(44 * gib - 40 * PAGE - 3)
        image.write(b"end")
    assert path.stat().st_size < 1 << 20
    with lazyrestore.restore(path, lazy=True) as session:
        region = session["huge"]
        assert len(region) == 64 * gib
        assert region[:6] == b"begin\0"
        assert region[-4:] == b"\0end"
        assert region[20 * gib : 20 * gib + 40 * PAGE] == content_of("dr" * 20)
        chance = random.Random(2)
        for _ in range(1000):
            assert region[chance.randrange(PAGE, 20 * gib)] == 0
            assert region[chance.randrange(20 * gib + 40 * PAGE, 64 * gib - PAGE)] == 0
        array = region.array()
        assert not array[12 * gib : 12 * gib + (64 << 20)].any()
        assert session.stats().resident_bytes < 1 << 20
        del array


def test_large_pages_of_the_kernel_do_not_turn_data_into_zeros(tmp_path):
    # Transparent huge pages may fill 2 MiB at once with zeros, where nobody watches.
    path = tmp_path / "large.lzr"
    data = numpy.arange(3 << 20, dtype="u4")
    lazyrestore.dump({"a": data}, path)
    with lazyrestore.restore(path, lazy=True) as session:
        region = session["a"]
        region.madvise(14)  # MADV_HUGEPAGE
        view = region.array()
        view[5] = 5
        assert (view == data).all()
        del view


def test_memory_that_is_locked_as_it_is_mapped(small):
    result = run_in_child(
        """
        import ctypes, os, sys
        import lazyrestore
        from restore_support import content_of
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(2):
            print("skip", os.strerror(ctypes.get_errno()))
            sys.exit()
        expected = lazyrestore.open(sys.argv[1]).read("data")
        with lazyrestore.restore(sys.argv[1], lazy=True, prefetch="none") as session:
            region = session["data"]
            assert session.stats().faults == 0
            assert session.stats().resident_bytes == 0
            assert region[17] == expected[17]
            assert session.stats().faults == 1
            assert region[:] == expected
        print("right")
        """,
        small.path,
    )
    if result.stdout.startswith("skip"):
        pytest.skip(f"mlockall: {result.stdout[5:]}")
    assert result.stdout == "right\n"


def test_another_process_reads_missing_pages(small):
    # process_vm_readv makes the kernel fault here, on behalf of somebody else.
    with lazyrestore.restore(small.path, lazy=True) as session:
        region = session["data"]
        result = run_in_child(
            """
            import ctypes, hashlib, os, sys
            pid, address, length = map(int, sys.argv[1:])
            class iovec(ctypes.Structure):
                _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
            libc = ctypes.CDLL(None, use_errno=True)
            got = ctypes.create_string_buffer(length)
            read = libc.process_vm_readv
            read.restype = ctypes.c_ssize_t
            here = iovec(ctypes.addressof(got), length)
            there = iovec(address, length)
            n = read(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
            if n < 0:
                print("skip", os.strerror(ctypes.get_errno()))
            else:
                print(n, hashlib.sha256(got.raw).hexdigest())
            """,
            os.getpid(),
            region.address,
            len(region),
        )
        if result.stdout.startswith("skip"):
            pytest.skip(f"process_vm_readv: {result.stdout[5:]}")
        import hashlib

        digest = hashlib.sha256(small.expected["data"]).hexdigest()
        assert result.stdout.split() == [str(len(region)), digest]
        assert session.stats().faults > 0


def test_the_kernel_locks_and_populates_it(make_image):
    made = make_image({"a": "drzh" * 100})
    with lazyrestore.restore(made.path, lazy=True) as session:
        region = session["a"]
        try:
            region.madvise(22)  # MADV_POPULATE_READ, Linux 5.14
        except OSError as error:
            pytest.skip(f"MADV_POPULATE_READ: {error}")
        faults = session.stats().faults
        assert faults > 0
        assert region[:] == made.expected["a"]
        assert session.stats().faults == faults


def test_a_dump_of_a_lazy_region_is_the_same_image(small, tmp_path):
    with lazyrestore.restore(small.path, lazy=True) as session:
        lazyrestore.dump(dict(session), tmp_path / "again.lzr", cluster_size=16384)
    with lazyrestore.open(tmp_path / "again.lzr") as image:
        for name, expected in small.expected.items():
            assert image.read(name) == expected
