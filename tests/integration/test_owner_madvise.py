"""madvise on a region: what its owner gave up is zeros from then on; all else keeps its bytes.

By ctypes: a region does not hear of these calls, as it would not of a C library's.
"""

from __future__ import annotations

import textwrap

import pytest
from owner_support import DONTNEED, FREE, owner_child
from restore_support import CLUSTER_SIZES, PAGE, flip, payloads, run_in_child

import lazyrestore

pytestmark = pytest.mark.uffd

GIVE_UP = pytest.mark.parametrize("advice", [DONTNEED, FREE], ids=["dontneed", "free"])
# MADV_FREE takes effect when the kernel wants the memory: MADV_PAGEOUT makes it want it at once.
# But for those that are on their way between the kernel's lists.
GIVING = """
import time
advice = int(sys.argv[2])
def give_up(address, first, count):
    '''When it returns they are zeros.'''
    start, length = address + first * PAGE, count * PAGE
    before = {}
    if advice == FREE:  # look at no page that is missing or fenced
        pages = range(start, start + length, PAGE)
        before = {page: get(page) for page in pages if present(page, 1)}
    madvise(start, length, advice)
    if advice == DONTNEED:
        return
    for tries in range(10):
        madvise(start, length, PAGEOUT)
        if not present(start, count):
            break
        time.sleep(0.002)
    for page in pages:
        if present(page, 1):  # a fill may have brought it since `before`
            at = page - address
            assert get(page) in (before.get(page, expected[at : at + PAGE]), ZERO), at // PAGE
            madvise(page, PAGE, DONTNEED)
"""


def giving(made, advice, script, *arguments, **options):
    body = GIVING + textwrap.dedent(script)
    return owner_child(made.path, body, int(advice), *arguments, **options)


@GIVE_UP
@pytest.mark.parametrize(
    ("before", "cluster_size"),
    [
        *((before, size) for before in ("missing", "mixed") for size in CLUSTER_SIZES),
        ("loaded", 65536),
        ("written", 65536),
    ],
)
def test_what_was_given_up_is_zeros(make_image, advice, before, cluster_size):
    """A page, half a cluster, across clusters, and over pages that were zero anyway."""
    made = make_image({"a": "drzddhdd" * 160}, cluster_size=cluster_size)
    giving(
        made,
        advice,
        """
        before = sys.argv[3]
        for first, count in ((5, 1), (8, 2), (13, 7), (30, 70), (2, 1), (0, COUNT - 1), (0, COUNT)):
            with restore() as session:
                region, want = session["a"], bytearray(expected)
                if before != "missing":
                    region.populate(0, len(expected) // (2 if before == "mixed" else 1))
                if before in ("written", "mixed"):
                    for page in range(0, COUNT, 3):
                        want[page * PAGE : page * PAGE + 4] = b"mine"
                        region[page * PAGE : page * PAGE + 4] = b"mine"
                give_up(region.address, first, count)
                want = gone(want, range(first, first + count))
                same(region.address, want, (first, count))
                # It stays so, whatever else is loaded, and is memory like any other.
                region.populate()
                same(region.address, want, (first, count, "populated"))
                put(region.address + first * PAGE, b"again")
                assert get(region.address + first * PAGE, 6) == b"again\\0"
                assert not session.errors, session.errors
        """,
        before,
    )


def test_freed_pages_are_old_or_zeros_until_the_kernel_takes_them(make_image):
    made = make_image({"a": "d" * 64}, cluster_size=16384)
    owner_child(
        made.path,
        """
        with restore() as session:
            region = session["a"]
            region.populate()
            madvise(region.address, len(expected), FREE)
            for page in range(COUNT):
                at = region.address + page * PAGE
                assert get(at) in (expected[page * PAGE : (page + 1) * PAGE], ZERO)
            # A write makes a page the owner's again, with whatever it held then.
            put(region.address, b"kept")
            for _ in range(10):
                madvise(region.address, len(expected), PAGEOUT)
            assert get(region.address, 4) == b"kept"
            assert get(region.address + 4, PAGE - 4) in (expected[4:PAGE], ZERO[4:])
            zeros = 0
            for page in range(1, COUNT):
                at = region.address + page * PAGE
                assert get(at) in (expected[page * PAGE : (page + 1) * PAGE], ZERO)
                zeros += get(at) == ZERO
            assert zeros > 0, "the kernel took nothing"
        """,
    )


@GIVE_UP
def test_a_whole_region_of_more_than_a_gigabyte(tmp_path, advice):
    path, step, count = tmp_path / "large.lzr", 1 << 20, 1280
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("a")
        for number in range(count):
            image.write((number + 1).to_bytes(4, "little") * (PAGE // 4))
            image.zero(step - PAGE)
    # Without owner_child's expected bytes: they would be 1.25 GiB.
    script = """
    import sys
    import lazyrestore
    from owner_support import *
    for loaded in (0, 640):
        with lazyrestore.restore(sys.argv[1], lazy=True) as session:
            region = session["a"]
            for number in range(loaded):
                assert get(region.address + (number << 20), 4) != bytes(4)
            madvise(region.address, len(region), int(sys.argv[2]))
            if int(sys.argv[2]) == FREE:
                madvise(region.address, len(region), PAGEOUT)
            for number in range(1280):
                got = get(region.address + (number << 20))
                freed = int(sys.argv[2]) == FREE and number < loaded and got[0]
                assert got == ZERO or freed, (loaded, number, got[:4])
    """
    run_in_child(script, path, int(advice), timeout=60)


@GIVE_UP
def test_while_the_fill_runs(make_image, advice):
    """Whether the fill was there before or comes after: what was given up stays so."""
    made = make_image({"a": "drdd" * 1500})
    giving(
        made,
        advice,
        """
        for seed in range(4):
            chance = random.Random(seed)
            with restore(prefetch="all") as session:
                region, lost = session["a"], set()
                for _ in range(60):
                    first = chance.randrange(COUNT)
                    count = min(chance.choice((1, 3, 16, 300)), COUNT - first)
                    give_up(region.address, first, count)
                    lost.update(range(first, first + count))
                    page = chance.choice(list(lost))
                    assert get(region.address + page * PAGE) == ZERO, page
                assert session.wait()
                same(region.address, gone(expected, lost), seed)
                assert session.stats().fill == "complete"
                # Also once all is there and nobody serves any more.
                madvise(region.address, len(expected), DONTNEED)
                same(region.address, bytes(len(expected)), "after the fill")
        """,
        timeout=60,
    )


def test_from_many_threads_while_others_touch(make_image):
    """Readers see a page's bytes or zeros, and never bytes again where they saw zeros."""
    made = make_image({"a": "ddrd" * 256}, cluster_size=16384)
    owner_child(
        made.path,
        """
        pages = [expected[page * PAGE : (page + 1) * PAGE] for page in range(COUNT)]
        for seed in range(6):
            with restore(prefetch="all" if seed % 2 else "none") as session:
                base, lost = session["a"].address, [set() for _ in range(3)]
                def remove(own):
                    # Neighbours in a cluster are other threads' business, or nobody's.
                    for page in shuffled(COUNT, seed):
                        if page % 4 == own and page % 8 < 6:
                            madvise(base + page * PAGE, PAGE, DONTNEED)
                            lost[own].add(page)
                            assert get(base + page * PAGE) == ZERO, page
                def read(order, reader):
                    zeros = set()
                    for page in shuffled(COUNT, order) * 2:
                        got = reader(base + page * PAGE)
                        if got == pages[page]:
                            assert page not in zeros, f"page {page} came back"
                            continue
                        zeros.add(page)
                        # It may be given up while it is being read.
                        words = ((got[at : at + 8], pages[page][at : at + 8])
                                 for at in range(0, PAGE, 8))
                        assert all(seen in (bytes(8), was) for seen, was in words), page
                run_all(
                    *(lambda own=own: remove(own) for own in range(3)),
                    *(lambda order=order: read(order, get) for order in range(3)),
                    lambda: read(7, try_get),
                )
                same(base, gone(expected, set().union(*lost)), seed)
        """,
        timeout=60,
    )


def test_one_page_is_given_up_again_and_again(make_image):
    """Threads fault, write and remove the same few pages: nobody hangs, no byte comes back."""
    made = make_image({"a": "dddd"}, cluster_size=16384)
    owner_child(
        made.path,
        """
        for _ in range(40):
            with restore() as session:
                base = session["a"].address
                allowed = [{expected[p * PAGE : (p + 1) * PAGE][:8], bytes(8), b"written!"}
                           for p in range(COUNT)]
                def remove():
                    for _ in range(30):
                        madvise(base, COUNT * PAGE, DONTNEED)
                def read():
                    for _ in range(60):
                        for page in range(COUNT):
                            got = get(base + page * PAGE, 8)
                            assert got in allowed[page], (page, got)
                def write():
                    for _ in range(30):
                        put(base + PAGE, b"written!")
                run_all(remove, read, remove, write, read)
                madvise(base, COUNT * PAGE, DONTNEED)
                same(base, bytes(COUNT * PAGE))
        """,
    )


def test_by_process_madvise(make_image):
    made = make_image({"a": "d" * 64}, cluster_size=16384)
    owner_child(
        made.path,
        """
        import errno, subprocess
        pidfd = os.pidfd_open(os.getpid())
        with restore() as session:
            base = session["a"].address
            ranges = [(base, PAGE), (base + 5 * PAGE, 6 * PAGE), (base + 40 * PAGE, PAGE)]
            get(base)
            lost = [0, *range(5, 11), 40]
            try:
                assert process_madvise(pidfd, ranges, DONTNEED) == 8 * PAGE
            except OSError as error:  # before Linux 6.13
                assert error.errno in (errno.EINVAL, errno.ENOSYS), error
                for start, length in ranges:
                    madvise(start, length, DONTNEED)
            same(base, gone(expected, lost))
            # Another process may ask for less; whatever it is granted must be right.
            script = '''
        import os, sys
        from owner_support import *
        pid, base = map(int, sys.argv[1:3])
        for advice in (COLD, PAGEOUT, COLLAPSE, DONTNEED):
            try:
                process_madvise(os.pidfd_open(pid), [(base + 16 * PAGE, 16 * PAGE)], advice)
                print(advice)
            except OSError:
                pass
            '''
            import textwrap
            command = [sys.executable, "-c", textwrap.dedent(script), str(os.getpid()), str(base)]
            out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            if str(DONTNEED) in out.stdout.split():
                lost += range(16, 32)
            same(base, gone(expected, lost), out.stdout)
        """,
    )


@GIVE_UP
def test_a_fence_is_lifted_by_giving_it_up(make_image, advice):
    """Before or after the bad cluster was found out: zeros, and no error where nobody wanted it."""
    made = make_image({"a": "d" * 16}, cluster_size=16384)
    offset, length = payloads(made.path, "a")[1]
    flip(made.path, offset + length // 2)
    giving(
        made,
        advice,
        """
        expected = b"".join((page + 1).to_bytes(8, "little") * 512 for page in range(16))
        with restore() as session:
            region = session["a"]
            give_up(region.address, 4, 4)
            same(region.address, gone(expected, range(4, 8)))
            assert not session.errors
        with restore() as session:
            region = session["a"]
            assert try_get(region.address + 4 * PAGE) is None
            give_up(region.address, 5, 1)
            assert try_get(region.address + 4 * PAGE) is None
            lifts = session.errors[0].fence == "SIGBUS"
            if not lifts:  # memory without access is its owner's to change, and stays so
                assert try_get(region.address + 5 * PAGE) is None
                mprotect(region.address + 5 * PAGE, PAGE, READ | WRITE)
            same(region.address + 5 * PAGE, ZERO)
            assert try_get(region.address + 6 * PAGE) is None
            give_up(region.address, 4, 4)
            if not lifts:
                mprotect(region.address + 4 * PAGE, 4 * PAGE, READ | WRITE)
            same(region.address, gone(expected, range(4, 8)))
            region.populate()
            same(region.address, gone(expected, range(4, 8)))
            assert len(session.errors) == 1, session.errors
        """,
    )


def test_guard_pages_over_loaded_pages(make_image):
    made = make_image({"a": "d" * 32}, cluster_size=16384)
    owner_child(
        made.path,
        """
        with restore() as session:
            base = session["a"].address
            session["a"].populate(0, 16 * PAGE)
            if error := try_madvise(base + 6 * PAGE, 4 * PAGE, GUARD_INSTALL):
                print("skip MADV_GUARD_INSTALL:", os.strerror(error))
                done()
            assert try_get(base + 6 * PAGE) is None
            session["a"].populate()
            assert try_get(base + 9 * PAGE) is None
            same(base + 16 * PAGE, expected[16 * PAGE :])
            madvise(base + 6 * PAGE, 4 * PAGE, GUARD_REMOVE)
            same(base, gone(expected, range(6, 10)))
        """,
    )


def test_huge_pages_and_back(make_image):
    made = make_image({"a": "drzd" * 768}, cluster_size=65536)
    owner_child(
        made.path,
        """
        for hint in (HUGEPAGE, NOHUGEPAGE):
            for fill in ("none", "all"):
                with restore(prefetch=fill) as session:
                    region = session["a"]
                    madvise(region.address, len(region), hint)
                    for page in shuffled(COUNT, 1)[:50]:
                        at = page * PAGE
                        assert get(region.address + at) == expected[at : at + PAGE], page
                    madvise(region.address + 512 * PAGE, 1024 * PAGE, HUGEPAGE + NOHUGEPAGE - hint)
                    same(region.address, expected, (hint, fill))
                    madvise(region.address + 700 * PAGE, 9 * PAGE, DONTNEED)
                    same(region.address, gone(expected, range(700, 709)), (hint, fill))
        """,
    )


def test_collapse(make_image):
    """Refused while pages are missing or harmless; when all is there it may work."""
    made = make_image({"a": "drdd" * 512}, cluster_size=16384)
    owner_child(
        made.path,
        """
        import errno
        for loaded in (0, 1, 300, COUNT):
            with restore() as session:
                region = session["a"]
                region.populate(0, loaded * PAGE)
                first = -(-region.address // HUGE) * HUGE
                error = try_madvise(first, HUGE, COLLAPSE)
                if error == errno.EINVAL and loaded == COUNT:
                    print("no MADV_COLLAPSE here")
                allowed = (0, errno.EINVAL, errno.EAGAIN, errno.EBUSY, errno.ENOMEM)
                assert error in allowed, os.strerror(error)
                copied = session.stats().pages_copied
                same(region.address, expected, (loaded, error))
                assert loaded < COUNT or session.stats().pages_copied == copied
                error = try_madvise(first, HUGE, COLLAPSE)
                same(region.address, expected, "collapsed again")
                if error == 0:
                    assert smaps(first, "AnonHugePages") > 0
                # A hole in the huge page, if it is one.
                start = (first - region.address) // PAGE
                madvise(first + 7 * PAGE, 3 * PAGE, DONTNEED)
                same(region.address, gone(expected, range(start + 7, start + 10)))
                try_madvise(first, HUGE, COLLAPSE)
                same(region.address, gone(expected, range(start + 7, start + 10)))
        """,
    )


def test_collapse_while_others_touch_and_the_fill_runs(make_image):
    made = make_image({"a": "drdd" * 1024})
    owner_child(
        made.path,
        """
        for seed in range(5):
            with restore(prefetch="all" if seed % 2 else "none") as session:
                base = session["a"].address
                def collapse():
                    for _ in range(40):
                        for at in range(-(-base // HUGE) * HUGE, base + len(expected) - HUGE, HUGE):
                            try_madvise(at, HUGE, COLLAPSE)
                def read(seed):
                    for page in shuffled(COUNT, seed)[:1500]:
                        at = page * PAGE
                        assert get(base + at) == expected[at : at + PAGE], page
                run_all(collapse, lambda: read(1), lambda: read(2))
                same(base, expected)
        """,
        timeout=60,
    )


@pytest.mark.parametrize("how", ["POPULATE_READ", "POPULATE_WRITE"])
def test_populate_by_madvise(make_image, how):
    made = make_image({"a": "drzh" * 32}, cluster_size=16384)
    owner_child(
        made.path,
        """
        with restore() as session:
            base, how = session["a"].address, globals()[sys.argv[2]]
            madvise(base + 8 * PAGE, 50 * PAGE, how)
            assert present(base + 8 * PAGE, 50) == 50
            faults = session.stats().faults
            same(base + 8 * PAGE, expected[8 * PAGE : 58 * PAGE])
            assert session.stats().faults == faults
            madvise(base + 20 * PAGE, 30 * PAGE, DONTNEED)
            madvise(base, len(expected), how)
            same(base, gone(expected, range(20, 50)))
        """,
        how,
    )


def test_what_gives_nothing_up_loses_nothing(make_image):
    """COLD, PAGEOUT and the like on missing and loaded pages: right bytes, no second load."""
    made = make_image({"a": "drzd" * 64}, cluster_size=16384)
    owner_child(
        made.path,
        """
        NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTDUMP, DODUMP = 0, 1, 2, 3, 16, 17
        with restore() as session:
            region = session["a"]
            for advice in (COLD, PAGEOUT, RANDOM, SEQUENTIAL, WILLNEED, NORMAL, DONTDUMP, DODUMP):
                try_madvise(region.address, len(region), advice)
                try_madvise(region.address + 3 * PAGE, 2 * PAGE, advice)
                region.populate(0, (advice + 1) * PAGE)
                same(region.address, expected[: (advice + 9) * PAGE], advice)
            same(region.address, expected)
            copied = session.stats().pages_copied
            assert copied == expected.count(ZERO) * 0 + 3 * COUNT // 4, copied
            madvise(region.address, len(region), PAGEOUT)
            same(region.address, expected)
            assert session.stats().pages_copied == copied
        """,
    )
