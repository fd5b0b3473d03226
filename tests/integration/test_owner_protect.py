"""mprotect, mlock, mlockall and transparent huge pages: whatever is set, the bytes are right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from owner_support import owner_child

pytestmark = pytest.mark.uffd


def test_protections_of_parts_before_loading(make_image):
    """Each splits the mapping: what crosses a split is loaded nevertheless, wherever it may be."""
    made = make_image({"a": "drzd" * 64}, cluster_size=65536)
    owner_child(
        made.path,
        """
        for seed in range(4):
            chance = random.Random(seed)
            with restore(prefetch="all" if seed % 2 else "none") as session:
                region, base = session["a"], session["a"].address
                closed = set()
                for page in shuffled(COUNT, seed)[: COUNT // 2]:
                    kind = chance.choice((NONE, READ, READ))
                    mprotect(base + page * PAGE, PAGE, kind)
                    if kind == NONE:
                        closed.add(page)
                if seed < 2:
                    for page in closed:
                        assert try_get(base + page * PAGE) is None
                    region.populate()
                for page in range(COUNT):
                    if page not in closed:
                        assert get(base + page * PAGE) == expected[page * PAGE :][:PAGE], page
                mprotect(base, len(expected), READ | WRITE)
                same(base, expected, seed)
                put(base + 5, b"written")
                assert get(base, 12) == expected[:5] + b"written"
                assert not session.errors
        """,
    )


def test_protections_change_while_pages_come(make_image):
    made = make_image({"a": "ddrd" * 256}, cluster_size=16384)
    owner_child(
        made.path,
        """
        for fill in ("none", "all"):
            with restore(prefetch=fill) as session:
                region, base = session["a"], session["a"].address
                def protect(seed):
                    for page in shuffled(COUNT, seed)[:600]:
                        if page % 2 == seed:
                            mprotect(base + page * PAGE, PAGE, READ if page % 4 < 2 else NONE)
                            mprotect(base + page * PAGE, PAGE, READ | WRITE)
                def read(seed):
                    for page in shuffled(COUNT, seed):
                        got = try_get(base + page * PAGE)  # None: no access at that moment
                        assert got in (None, expected[page * PAGE :][:PAGE]), page
                run_all(lambda: protect(0), lambda: protect(1), lambda: read(3), lambda: read(4),
                        region.populate)
                assert not session.errors, session.errors
                same(base, expected)
        """,
        timeout=60,
    )


def test_giving_up_across_splits(make_image):
    made = make_image({"a": "dddd" * 16}, cluster_size=65536)
    owner_child(
        made.path,
        """
        with restore() as session:
            base = session["a"].address
            for page in (3, 9, 10, 20):
                mprotect(base + page * PAGE, PAGE, READ)
            madvise(base + 2 * PAGE, 20 * PAGE, DONTNEED)
            same(base, gone(expected, range(2, 22)))
        """,
    )


def test_mlock_of_a_part_loads_it(make_image):
    made = make_image({"a": "drzd" * 64}, cluster_size=16384)
    owner_child(
        made.path,
        """
        import errno
        with restore() as session:
            base = session["a"].address
            try:
                mlock(base + 10 * PAGE, 50 * PAGE)
            except OSError as error:
                print("skip", error)
                done()
            assert present(base + 10 * PAGE, 50) == 50
            same(base + 10 * PAGE, expected[10 * PAGE : 60 * PAGE])
            assert try_madvise(base + 12 * PAGE, PAGE, DONTNEED) == errno.EINVAL
            same(base + 12 * PAGE, expected[12 * PAGE : 13 * PAGE])
            lost = []
            if try_madvise(base + 15 * PAGE, 2 * PAGE, DONTNEED_LOCKED) == 0:
                lost = [15, 16]
            same(base, gone(expected, lost))
            munlock(base + 10 * PAGE, 50 * PAGE)
            madvise(base + 20 * PAGE, PAGE, DONTNEED)
            session["a"].populate()
            same(base, gone(expected, [*lost, 20]))
        """,
    )


@pytest.mark.parametrize("how", ["region", "placed", "map", "attach"])
@pytest.mark.parametrize("flags", [2, 3, 7], ids=["future", "current-future", "onfault"])
def test_mlockall_before_the_restore(make_image, flags, how):
    """Memory that is mapped then has its pages at once: zeros, which must not stay."""
    made = make_image({"a": "drzd" * 128}, addresses={"a": 0x2000_0000_0000}, cluster_size=16384)
    owner_child(
        made.path,
        """
        flags, how = int(sys.argv[2]), sys.argv[3]
        try:
            mlockall(flags)
        except OSError as error:
            print("skip", error)
            done()
        for fill in (False, True):
            if how in ("map", "attach"):
                session = CSession(path, fill=fill)
                base = session.map() if how == "map" else session.attach()
                if fill:
                    session.wait()
            else:
                session = restore(at_original_address=how == "placed",
                                  prefetch="all" if fill else "none")
                region = session["a"]
                base = region.address
                if fill:
                    assert session.wait()
            same(base, expected, (flags, how, fill))
            mlockall(CURRENT | FUTURE)
            same(base, expected)
            try_madvise(base + PAGE, PAGE, DONTNEED_LOCKED)
            assert get(base + PAGE) in (ZERO, expected[PAGE : 2 * PAGE])
            same(base + 2 * PAGE, expected[2 * PAGE :])
            munlockall()
            mlockall(flags)
            if how == "placed":
                del region
            session.close()
        """,
        flags,
        how,
    )


def test_mlockall_after_the_restore_loads_everything(make_image):
    made = make_image({"a": "drzd" * 128}, cluster_size=16384)
    owner_child(
        made.path,
        """
        with restore() as session:
            base = session["a"].address
            madvise(base + 8 * PAGE, PAGE, DONTNEED)
            try:
                mlockall(CURRENT)
            except OSError as error:
                print("skip", error)
                done()
            assert present(base, COUNT) == COUNT
            same(base, gone(expected, [8]))
            munlockall()
        """,
    )


@pytest.fixture
def always_huge() -> Iterator[None]:
    """Transparent huge pages for everything that is mapped, until the test is over."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists():
        pytest.skip("this kernel has no transparent huge pages")
    before = switch.read_text().split("[")[1].split("]")[0]
    switch.write_text("always")
    try:
        yield
    finally:
        switch.write_text(before)


@pytest.mark.root
@pytest.mark.usefixtures("always_huge")
@pytest.mark.parametrize("locked", [False, True], ids=["", "mlockall"])
def test_transparent_huge_pages_set_to_always(make_image, locked):
    made = make_image(
        {"a": "drzd" * 640, "b": "d"}, addresses={"a": 0x2000_0000_0000, "b": 0x3000_0000_0000}
    )
    owner_child(
        made.path,
        """
        if sys.argv[2] == "True":
            mlockall(FUTURE)
        for how in ("region", "placed", "map", "attach", "filled"):
            session = None
            if how in ("map", "attach"):
                c = CSession(path)
                base = c.map() if how == "map" else c.attach()
            else:
                session = restore(at_original_address=how == "placed",
                                  prefetch="all" if how == "filled" else "none")
                base = session["a"].address
            for page in shuffled(COUNT, 1)[:20]:
                assert get(base + page * PAGE) == expected[page * PAGE :][:PAGE], page
            same(base, expected, how)
            if sys.argv[2] != "True":
                first = -(-base // HUGE) * HUGE
                madvise(first + PAGE, PAGE, DONTNEED)
                try_madvise(first, HUGE, COLLAPSE)
                page = (first - base) // PAGE + 1
                same(base, gone(expected, [page]), how)
                madvise(base, len(expected), DONTNEED)
                put(base + 3 * PAGE, b"x")  # may bring a huge page now: of zeros
                assert get(base + 3 * PAGE, 2) == b"x\\0"
                same(base + 4 * PAGE, bytes(len(expected) - 4 * PAGE), how)
        done()
        """,
        locked,
        timeout=60,
    )
