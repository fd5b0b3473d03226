"""mremap, munmap and mappings over a region: content moves along, what is gone is never written.

On memory that no object of Python's would unmap: the C functions map it, or the script does.
"""

from __future__ import annotations

import textwrap

import pytest
from owner_support import owner_child

pytestmark = pytest.mark.uffd

FILLS = pytest.mark.parametrize("fill", [False, True], ids=["", "fill"])


def child(made, fill, script, **options):
    body = "fill = sys.argv[2] == 'True'\n" + textwrap.dedent(script)
    owner_child(made.path, body, fill, **options)


@FILLS
@pytest.mark.parametrize("cluster_size", [4096, 65536])
def test_a_region_is_moved(make_image, fill, cluster_size):
    made = make_image({"a": "drzd" * 256}, cluster_size=cluster_size)
    child(
        made,
        fill,
        """
        length, went_back = len(expected), 0
        for loaded in (0, 300, COUNT, 1, 2):
            session = CSession(path, fill=fill)
            base = session.map()
            session.populate(0, loaded * PAGE)
            put(base + 2 * PAGE, b"mine")
            want = bytearray(expected)
            want[2 * PAGE : 2 * PAGE + 4] = b"mine"
            to = mmap(length)
            assert mremap(base, length, length, to) == to
            same(to, want, loaded)
            # And back, and on to where the kernel likes, of which a page was given up.
            madvise(to + 7 * PAGE, PAGE, DONTNEED)
            want = gone(want, [7])
            if mmap_if_free(length, base):
                assert mremap(to, length, length, base) == base
                same(base, want, loaded)
                to, went_back = base, went_back + 1
            grown = mremap(to, length, length + 64 * PAGE, flags=MAYMOVE)
            same(grown, want + bytes(64 * PAGE), loaded)
            if fill:
                session.wait()
            session.close()
        assert went_back >= 2, went_back
        done()
        """,
    )


@FILLS
def test_missing_pages_load_where_they_went(make_image, fill):
    """Parts go elsewhere, more than once: out of the middle, across clusters, a page."""
    made = make_image({"a": "ddrd" * 128}, cluster_size=16384)
    child(
        made,
        fill,
        """
        for first, count in ((0, 1), (5, 1), (6, 10), (100, 300), (510, 2), (0, COUNT)):
            session = CSession(path, fill=fill)
            base = session.map()
            get(base + (first + count // 2) * PAGE)
            to, length = mmap(count * PAGE), count * PAGE
            mremap(base + first * PAGE, length, length, to)
            assert first == 0 or is_mapped(base + first * PAGE - PAGE)
            half = (count + 1) // 2 * PAGE
            again = mmap(half)
            mremap(to, half, half, again)
            same(again, expected[first * PAGE : first * PAGE + half], (first, count, "twice"))
            same(to + half, expected[first * PAGE + half : first * PAGE + length], (first, count))
            same(base, expected[: first * PAGE], (first, count, "before"))
            after = (first + count) * PAGE
            same(base + after, expected[after:], (first, count, "behind"))
            if fill:
                session.wait()
        done()
        """,
    )


def test_pages_trade_places_while_others_touch(make_image):
    made = make_image({"a": "ddrd" * 64}, cluster_size=16384)
    owner_child(
        made.path,
        """
        for fill in (False, True):
            session = CSession(path, fill=fill)
            base, spare = session.map(), mmap(PAGE)
            where = list(range(COUNT))  # which page of the image lies there
            def trade():
                for a, b in zip(shuffled(COUNT // 2, 1), shuffled(COUNT // 2, 2)):
                    if a != b:
                        at, bt = base + a * PAGE, base + b * PAGE
                        mremap(at, PAGE, PAGE, spare)
                        mremap(bt, PAGE, PAGE, at)
                        mremap(spare, PAGE, PAGE, bt)
                        where[a], where[b] = where[b], where[a]
            def read():
                for page in range(COUNT // 2, COUNT):
                    assert get(base + page * PAGE) == expected[page * PAGE :][:PAGE], page
            contents = {expected[page * PAGE :][:PAGE] for page in range(COUNT)}
            def look():
                for page in range(COUNT // 2):  # anything of the image, or no page there just now
                    assert try_get(base + page * PAGE) in contents | {None}, page
            run_all(trade, read, look)
            same(base, b"".join(expected[page * PAGE :][:PAGE] for page in where), fill)
        done()
        """,
    )


@FILLS
def test_moved_onto_another_place(make_image, fill):
    """Onto a plain mapping, another region of the session, and another session's."""
    made = make_image({"a": "drdd" * 64, "b": "rrdd" * 64}, cluster_size=16384)
    child(
        made,
        fill,
        """
        with lazyrestore.open(path) as image:
            second = image.read("b")
        for onto in ("plain", "region", "session"):
            session, other = CSession(path, fill=fill), CSession(path, fill=fill)
            a, b, away = session.map(0, more=True), session.map(1), other.map(1)
            plain = mmap(len(second))
            put(plain, b"plain" * 1000)
            target = {"plain": plain, "region": b, "session": away}[onto]
            assert mremap(a, 64 * PAGE, 64 * PAGE, target + 16 * PAGE) == target + 16 * PAGE
            want = b"plain" * 1000 + bytes(len(second) - 5000)
            if onto != "plain":
                want = second
            want = want[: 16 * PAGE] + expected[: 64 * PAGE] + want[80 * PAGE :]
            same(target, want, onto)
            same(a + 64 * PAGE, expected[64 * PAGE :], onto)
            if onto != "session":
                same(away, second, onto)
            if onto != "region":
                same(b, second, onto)
            if fill:
                session.wait()
                other.wait()
            same(target, want, onto)
        done()
        """,
    )


@FILLS
def test_dontunmap_leaves_zeros(make_image, fill):
    made = make_image({"a": "ddrd" * 128}, cluster_size=16384)
    child(
        made,
        fill,
        """
        session, length = CSession(path, fill=fill), len(expected)
        base, to = session.map(), mmap(len(expected))
        session.populate(0, 40 * PAGE)
        try:
            mremap(base, length, length, to, DONTUNMAP)
        except OSError as error:
            print("skip MREMAP_DONTUNMAP:", error)
            done()
        assert get(base + 200 * PAGE) == ZERO
        same(to, expected)
        same(base, bytes(length))
        put(base, b"new")
        if fill:
            session.wait()
        same(base, b"new" + bytes(length - 3))
        done()
        """,
    )


@FILLS
def test_grown_and_shrunk_in_place(make_image, fill):
    """What is added is zeros, also where the region was before it shrank."""
    made = make_image({"a": "ddrd" * 128}, cluster_size=65536)
    child(
        made,
        fill,
        """
        length, more = len(expected), 256 * PAGE
        cut = 333 * PAGE
        def grow(base, old, new):
            try:
                return mremap(base, old, new) == base
            except OSError as error:  # others map memory too: here, by chance
                assert error.errno == errno.ENOMEM, error
                return False
        def first(loaded):
            room = mmap(length + more)
            session = CSession(path, fill=fill)
            base = session.attach(room)
            session.populate(0, loaded * PAGE)
            munmap(room + length, more)  # not earlier, so that hardly anybody gets it
            if not grow(base, length, length + more):
                return False
            same(base + length, bytes(more), "added")
            same(base, expected)
            mremap(base, length + more, cut)
            if not grow(base, cut, length):
                return False
            same(base, expected[:cut] + bytes(length - cut), "shrunk and grown")
            if fill:
                session.wait()
            same(base, expected[:cut] + bytes(length - cut))
            return True
        def shrunk_before_anything_is_loaded():
            session = CSession(path, fill=fill)
            base = session.attach()
            mremap(base, length, cut)
            if not grow(base, cut, length):
                return False
            same(base + cut, bytes(length - cut), "not loaded, shrunk and grown")
            same(base, expected[:cut])
            return True
        for loaded in (0, 100):
            assert any(first(loaded) for _ in range(10)), "somebody had the place each time"
            assert any(shrunk_before_anything_is_loaded() for _ in range(10)), "each time"
        done()
        """,
    )


@FILLS
def test_moved_again_and_again_while_pages_come(make_image, fill):
    made = make_image({"a": "ddrd" * 1024})
    child(
        made,
        fill,
        """
        length = len(expected)
        session = CSession(path, fill=fill)
        base = session.map()
        for turn in range(30):
            to = mmap(length)
            base = mremap(base, length, length, to)
            for page in shuffled(COUNT, turn)[:20]:
                assert get(base + page * PAGE) == expected[page * PAGE :][:PAGE], (turn, page)
        if fill:
            session.wait()
        same(base, expected)
        session.close()
        done()
        """,
    )


def test_moved_just_when_a_page_is_put(make_image):
    """The kernel may look for a page's mapping while it moves, and say that there is none: that is
    not to be taken for an unmapping. Clusters of a page make for the most such moments."""
    made = make_image({"a": "drdd" * 1024}, cluster_size=4096)
    owner_child(
        made.path,
        """
        length = len(expected)
        for turn in range(60):
            session = CSession(path, fill=True)
            base, spare = session.map(), mmap(length)
            for _ in range(30):
                base, spare = mremap(base, length, length, spare), base
                if not mmap_if_free(length, spare):
                    spare = mmap(length)
            session.wait()
            same(base, expected, turn)
            session.close()  # unmaps what it mapped, wherever that lies
            munmap(spare, length)
        done()
        """,
        timeout=90,
    )


@FILLS
def test_unmapped_parts_are_not_written_when_used_again(make_image, fill):
    made = make_image({"a": "ddrd" * 1024})
    child(
        made,
        fill,
        """
        whole = 0
        for turn in range(12):
            session, lost, is_ours = CSession(path, fill=fill), {}, True
            base, chance = session.map(), random.Random(turn)
            for number in range(40):
                first = chance.randrange(COUNT)
                count = min(chance.choice((1, 5, 100)), COUNT - first)
                start = base + first * PAGE
                if number % 3:
                    munmap(start, count * PAGE)
                    is_ours = mmap_if_free(count * PAGE, start)
                else:
                    mmap(count * PAGE, start)  # over it, in one call
                if not is_ours:
                    break
                if number % 2:
                    put(start, bytes([number + 1]) * (count * PAGE))
                lost.update((page, number + 1 if number % 2 else 0)
                            for page in range(first, first + count))
            if not is_ours:
                continue  # and left as it is: somebody lives in it
            if fill:
                session.wait()
            want = bytearray(expected)
            for page, byte in lost.items():
                want[page * PAGE : (page + 1) * PAGE] = bytes([byte]) * PAGE
            session.populate(0, len(expected))
            same(base, want, turn)
            session.close()
            whole += 1
            if whole == 6:
                break
        assert whole >= 4, whole
        done()
        """,
        timeout=60,
    )


def test_all_of_it_unmapped_under_a_running_fill(make_image):
    """What has the place next is somebody else's, and is not written to: again and again."""
    made = make_image({"a": "ddrd" * 2048})
    owner_child(
        made.path,
        """
        import time
        ours = 0
        for turn in range(16):
            session = CSession(path, fill=True)
            base = session.map()
            time.sleep(turn % 12 * 0.002)
            munmap(base, len(expected))
            is_ours = mmap_if_free(len(expected), base)
            session.populate(0, len(expected))
            if turn % 2:
                session.close()
            if is_ours:
                assert present(base, COUNT) == 0, f"turn {turn}: somebody wrote"
                same(base, bytes(len(expected)), turn)
                munmap(base, len(expected))
                ours += 1
        assert ours >= 8, ours
        done()
        """,
        timeout=60,
    )


@pytest.mark.parametrize("how", ["munmap", "close", "over"])
def test_a_second_session_at_the_same_address(make_image, how):
    """While the first one's fill runs. A page of the first in the second is as wrong as can be."""
    first = make_image({"a": "ddrd" * 1024}, salt=1)
    second = make_image({"a": "ddzd" * 1024}, salt=2, cluster_size=16384)
    owner_child(
        first.path,
        """
        import time
        second, how = sys.argv[2:4]
        with lazyrestore.open(second) as image:
            right = image.read("a")
        room, ours = mmap(len(expected)), 0
        for turn in range(8):
            one, two = CSession(path, fill=True), CSession(second, fill=turn % 2 == 1)
            base = one.attach(room)
            time.sleep(turn * 0.002)
            if how == "munmap":
                munmap(base, len(expected))
                if not mmap_if_free(len(expected), base):
                    room = mmap(len(expected))
                    continue
            elif how == "close":
                one.close()
            assert two.attach(base) == base
            ours += 1
            same(base, right, turn)
            if how != "close":
                one.populate(0, len(expected))
            same(base, right, turn)
            two.close()
            if how != "close":
                one.close()
        assert ours >= 4, ours
        done()
        """,
        second.path,
        how,
        timeout=60,
    )


@pytest.mark.parametrize("placed", [False, True])
def test_a_second_python_session_after_the_first(make_image, placed):
    address = {"a": 0x2000_0000_0000}
    first = make_image({"a": "ddrd" * 1024}, salt=1, addresses=address)
    second = make_image({"a": "ddzd" * 1024}, salt=2, addresses=address, cluster_size=16384)
    owner_child(
        first.path,
        """
        second, placed = sys.argv[2], sys.argv[3] == "True"
        with lazyrestore.open(second) as image:
            right = image.read("a")
        places = set()
        for turn in range(8):
            one = restore(prefetch="all", at_original_address=placed)
            places.add(one["a"].address)
            one.close()
            with lazyrestore.restore(second, lazy=True, at_original_address=placed) as two:
                places.add(two["a"].address)
                same(two["a"].address, right, turn)
        assert len(places) < 16
        """,
        second.path,
        placed,
    )


def test_mapped_over_while_others_fault_there(make_image):
    """Who waits for a page that is gone by then must not wait for ever, nor read old bytes."""
    made = make_image({"a": "d" * 512}, cluster_size=16384)
    owner_child(
        made.path,
        """
        for turn in range(8):
            session = CSession(path)
            base = session.map()
            over = [False] * COUNT
            def replace():
                for page in shuffled(COUNT, turn)[:300]:
                    if turn % 2:
                        munmap(base + page * PAGE, PAGE)
                        assert mmap_if_free(PAGE, base + page * PAGE), "a hole of one page"
                    else:
                        mmap(PAGE, base + page * PAGE)
                    over[page] = True
            def read(seed):
                for page in shuffled(COUNT, seed):
                    was_over, got = over[page], try_get(base + page * PAGE)
                    page_of = expected[page * PAGE :][:PAGE]
                    assert got in ((ZERO, None) if was_over else (ZERO, None, page_of)), page
            run_all(replace, *(lambda seed=seed: read(seed) for seed in (turn, 1, 2)))
            same(base, gone(expected, [page for page in range(COUNT) if over[page]]))
            session.close()
        done()
        """,
        timeout=60,
    )


@FILLS
def test_closing_a_session_whose_memory_was_moved(make_image, fill):
    """Attached memory stays: what it has is right, and what it misses is a signal, never zeros."""
    made = make_image({"a": "ddrd" * 128, "b": "dd"}, cluster_size=16384)
    child(
        made,
        fill,
        """
        session = CSession(path)
        base, length = session.attach(), len(expected)
        session.populate(100 * PAGE, 40 * PAGE)
        to = mmap(128 * PAGE)
        mremap(base + 120 * PAGE, 128 * PAGE, 128 * PAGE, to)
        plain = mmap(8 * PAGE, base + 300 * PAGE)  # over it
        madvise(base + 4 * PAGE, PAGE, DONTNEED)
        get(base + 4 * PAGE)
        session.close()
        same(base + 100 * PAGE, expected[100 * PAGE : 120 * PAGE])
        same(to, expected[120 * PAGE : 140 * PAGE])
        same(plain, bytes(8 * PAGE))
        same(base + 4 * PAGE, ZERO)
        for page in range(128):
            right = expected[(120 + page) * PAGE :][:PAGE]
            assert try_get(to + page * PAGE) in (right, None), page
        for page in (0, 50, 99, 250, 310, COUNT - 1):
            assert try_get(base + page * PAGE) in (expected[page * PAGE :][:PAGE], None), page
        assert try_get(base + (COUNT - 1) * PAGE) is None
        assert try_get(to + 127 * PAGE) is None
        done()
        """,
    )
