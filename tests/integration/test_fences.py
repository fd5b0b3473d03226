"""What can no longer be loaded is an error wherever it is met, names itself, and can be healed."""

from __future__ import annotations

import signal
import textwrap

import pytest
from fence_support import CLUSTER, HEALABLE, KINDS, PREAMBLE, child, make
from restore_support import payloads, run_in_child

pytestmark = pytest.mark.uffd


@pytest.fixture
def image(make_image):
    return make(make_image)


# ---- What it is to meet one ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("privilege", ["full", "user-mode-only"])
def test_every_way_of_meeting_what_cannot_be_loaded(image, kind, privilege):
    """System calls, populate, and in the end a touch, which this process does not survive."""
    result = child(
        image,
        kind,
        f"""
        session = lazyrestore.restore(path, lazy=True, privilege={privilege!r})
        region, other = session["weights"], session["more"]
        same(region, expected, [0, 4])
        same(other, more, [0])
        break_it()
        fd = os.memfd_create("file")
        os.ftruncate(fd, 1 << 20)
        bad = memoryview(region)[BAD * CLUSTER : (BAD + 1) * CLUSTER]
        before = memoryview(region)[: (BAD + 1) * CLUSTER]
        fails(os.write, fd, bad)
        fails(os.write, fd, bad[5000:5001])
        fails(os.preadv, fd, [bad], 0)
        fails(os.preadv, fd, [bad[9000:9010]], 0)
        try:
            written = os.pwrite(fd, before, 0)
        except OSError as error:
            assert error.errno == 14, error
        else:
            assert 0 < written <= BAD * CLUSTER
            assert os.pread(fd, written, 0) == expected[:written]
        if {privilege!r} == "full":
            # Both populate and those calls go to one cluster: it is one error.
            (error,) = session.errors
        for page in broken:
            reason = str(populate_fails(region, page))
        (error,) = session.errors
        assert (error.region, error.offset, error.length) == ("weights", BAD * CLUSTER, CLUSTER)
        assert error.cluster == BAD, error
        # Who looks anew into a file that is all garbage finds its index broken first.
        assert kind == "rewritten" or error.reason in reason, (error, reason)
        assert session.stats().errors == 1
        # What was there is there, and what is whole still comes.
        same(region, expected, [0, 1, 4, 7])
        same(other, more, [0, 1, 2, 3])
        if kind in ("flipped", "EIO"):
            same(region, expected, [n for n in range(pages) if n not in broken])
            same(other, more)
        for work in (
            lambda: region[BAD * CLUSTER],
            lambda: region.__setitem__(BAD * CLUSTER + 9000, 1),
            lambda: bytes(bad),
            lambda: ctypes.memset(region.address + BAD * CLUSTER + 16000, 0, 8),
        ):
            assert dies_by_fence(work).name == error.fence
        print(error.fence, flush=True)
        print(region[BAD * CLUSTER + 100])
        """,
        ok=False,
    )
    assert result.stdout in ("SIGBUS\n", "SIGSEGV\n"), result
    assert result.returncode == -signal.Signals[result.stdout.strip()], result
    assert result.stderr == ""


@pytest.mark.parametrize("privilege", ["full", "user-mode-only"])
def test_the_first_touch_of_all_is_of_what_cannot_be_loaded(image, privilege):
    """No page, and no node of the index, was read yet: and the file is empty by then."""
    result = child(
        image,
        "shrunk",
        f"""
        session = lazyrestore.restore(path, lazy=True, privilege={privilege!r})
        overwrite(b"")
        print("before", flush=True)
        print(session["more"][5])
        """,
        ok=False,
    )
    assert result.stdout == "before\n", result
    assert -result.returncode in (signal.SIGBUS, signal.SIGSEGV), result


@pytest.mark.parametrize("kind", ["flipped", "EIO"])
def test_the_fill_goes_round_what_cannot_be_loaded(image, kind):
    child(
        image,
        kind,
        """
        break_it()  # opening reads no cluster
        session = lazyrestore.restore(path, lazy=True, prefetch="all")
        region = session["weights"]
        assert session.wait() in (True, False)
        assert session.stats().fill in ("complete", "stopped"), session.stats().fill
        (error,) = session.errors
        assert (error.region, error.cluster) == ("weights", BAD), error
        assert session.stats().errors == 1
        assert missing(session["more"]) == 0
        same(region, expected, [n for n in range(pages) if n not in broken])
        assert dies_by_fence(same, region, expected, [BAD * 4 + 1]).name == error.fence
        populate_fails(region)
        fails(os.write, os.memfd_create("out"), memoryview(region)[BAD * CLUSTER :])
        """,
    )


def test_many_threads_that_wait_for_it_all_go_on(image):
    """Each with an error; and it is recorded once."""
    child(
        image,
        "flipped",
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["weights"]
        break_it()
        view, errors = memoryview(region), []
        start = threading.Barrier(12)
        def meet(number):
            fd = os.memfd_create("out")
            start.wait()
            try:
                if number % 3 == 2:
                    populate_fails(region, BAD * 4 + number % 4)
                    errors.append(14)
                else:
                    os.write(fd, view[(BAD * 4 + number % 4) * PAGE + number :])
            except OSError as error:
                errors.append(error.errno)
        workers = [threading.Thread(target=meet, args=(number,)) for number in range(12)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        assert errors == [14] * 12, errors
        assert len(session.errors) == 1 and session.stats().errors == 1
        same(region, expected, [n for n in range(pages) if n not in broken])
        """,
    )


# ---- For how long it stands ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_fence_outlives_its_session(image, kind):
    """For views, and for children: of the session, and of its end."""
    result = child(
        image,
        kind,
        """
        with lazyrestore.restore(path, lazy=True) as session:
            view = memoryview(session["weights"])
            same(view, expected, [1, 4])
            break_it()
            populate_fails(session["weights"])
            dies_by_fence(same, view, expected, broken)
        del session
        gc.collect()
        if kind == "flipped":
            same(view, expected, [n for n in range(pages) if n not in broken])
        def work():
            for page in broken:
                dies_by_fence(same, view, expected, [page])
            same(view, expected, [1, 4])
            fails(os.write, os.memfd_create("out"), view[BAD * CLUSTER :])
        run(work)
        run(run, work)
        work()
        print("before", flush=True)
        same(view, expected, broken)
        """,
        ok=False,
    )
    assert result.stdout == "before\n", result
    assert -result.returncode in (signal.SIGBUS, signal.SIGSEGV), result
    assert result.stderr == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_breaks_after_the_fork(image, kind):
    """The child's pager fences in the child, and says so there; the parent's memory is its own."""
    child(
        image,
        kind,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["weights"]
        same(region, expected, [0])
        def work():
            break_it()
            dies_by_fence(same, region, expected, broken)
            fails(os.write, os.memfd_create("out"), memoryview(region)[BAD * CLUSTER :])
            (error,) = session.errors
            assert (error.region, error.cluster) == ("weights", BAD), error
            assert error.fence and error.reason
            populate_fails(region)
            same(region, expected, [0])
        run(work)
        assert session.errors == [] and session.stats().errors == 0
        mend()
        same(region, expected)
        """,
    )


# ---- Healing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEALABLE)
def test_populate_heals_when_the_file_is_whole_again(image, kind):
    child(
        image,
        kind,
        """
        session = lazyrestore.restore(path, lazy=True)
        region, other = session["weights"], session["more"]
        same(region, expected, [0, 4])
        break_it()
        populate_fails(region)
        fence = session.errors[0].fence
        def grandchild():
            '''Inherits the fence, and heals its own copy.'''
            dies_by_fence(same, region, expected, broken)
            mend()
            region.populate(BAD * CLUSTER, CLUSTER)
            same(region, expected)
        def work():
            dies_by_fence(same, region, expected, broken)
            run(grandchild)
            dies_by_fence(same, region, expected, broken)
        if fence == "SIGBUS":
            run(work)
        mend()
        dies_by_fence(same, region, expected, broken)  # it stands until somebody asks
        if fence == "SIGSEGV":
            sys.exit()  # memory without access stays so
        region.populate(BAD * CLUSTER + 5000, 1)
        region.populate(BAD * CLUSTER, CLUSTER)
        same(region, expected)
        region.populate()
        other.populate()
        same(other, more)
        run(same, region, expected)
        assert len(session.errors) == 1  # what happened stays on record
        # And memory like any other again: written, given up, zero.
        region[BAD * CLUSTER] = 77
        give_up(region, BAD * 4, 1)
        assert region[BAD * CLUSTER : BAD * CLUSTER + PAGE] == bytes(PAGE)
        """,
    )


def test_healing_keeps_what_the_owner_wrote(image):
    """Zero pages of a broken cluster are there, and may be written; healing brings the others."""
    offset, length = payloads(image.path, "weights")[5]  # dzdz
    run_in_child(
        PREAMBLE
        + textwrap.dedent("""
        BAD = 5
        session = lazyrestore.restore(path, lazy=True)
        region = session["weights"]
        break_it()
        model = bytearray(expected)
        region[21 * PAGE + 7] = model[21 * PAGE + 7] = 7
        populate_fails(region, 20)
        region[23 * PAGE + 9] = model[23 * PAGE + 9] = 9
        dies_by_fence(same, region, expected, [20])
        dies_by_fence(same, region, expected, [22])
        mend()
        if session.errors[0].fence == "SIGBUS":
            region.populate()
            same(region, bytes(model))
        """),
        image.path,
        "flipped",
        offset,
        length,
    )


def test_a_file_that_breaks_and_mends_all_the_time(make_image):
    """Whatever is read meanwhile is right or refused, and in the end all can be healed."""
    made = make_image({"weights": "dr" * 64, "more": "d"}, cluster_size=CLUSTER)
    child(
        made,
        "flipped",
        """
        import random
        over, failures, count = threading.Event(), [], [0, 0]
        def break_and_mend():
            chance = random.Random(1)
            while not over.is_set():
                match chance.randrange(3):
                    case 0:
                        overwrite(whole[: chance.randrange(len(whole))])
                    case 1:
                        start = chance.randrange(len(whole))
                        overwrite(whole[:start] + bytes(len(whole) - start))
                    case 2:
                        overwrite(bytes([byte ^ 1 for byte in whole[:5000]]) + whole[5000:])
                time.sleep(0.001)
                mend()
                time.sleep(0.001)
        def read(number, session):
            fd = os.memfd_create("out")
            region = session["weights"]
            view = memoryview(region)
            chance = random.Random(number)
            try:
                for page in chance.sample(range(pages), pages):
                    time.sleep(0.0005)
                    here = slice(page * PAGE, (page + 1) * PAGE)
                    try:
                        if chance.random() < 0.3:
                            region.populate(page * PAGE, PAGE)
                        written = os.pwrite(fd, view[here], 0)
                    except (OSError, lazyrestore.RestoreError):
                        count[0] += 1
                        continue
                    count[1] += 1
                    got = os.pread(fd, written, 0)
                    assert got == expected[here][:written], page
            except BaseException as error:
                failures.append(error)
                raise
        sessions = [lazyrestore.restore(path, lazy=True) for _ in range(6)]
        breaker = threading.Thread(target=break_and_mend)
        breaker.start()
        for session in sessions:
            workers = [threading.Thread(target=read, args=(n, session)) for n in range(3)]
            for worker in workers: worker.start()
            for worker in workers: worker.join()
        over.set()
        breaker.join()
        assert not failures, failures
        assert min(count) > 0, count
        mend()
        for session in sessions:
            if all(error.fence == "SIGBUS" for error in session.errors):
                session["weights"].populate()
                same(session["weights"], expected)
        """,
        timeout=60,
    )
