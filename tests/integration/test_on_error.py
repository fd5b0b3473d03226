"""on_error="abort": the process ends, with a message, where a fence would have been."""

from __future__ import annotations

import re
import signal

import pytest
from fence_support import KINDS, child, make

import lazyrestore

pytestmark = pytest.mark.uffd


@pytest.fixture
def image(make_image):
    return make(make_image)


@pytest.mark.parametrize(
    ("kind", "touch"),
    [(kind, "a load") for kind in KINDS]
    + [(kind, touch) for kind in ("flipped", "EIO") for touch in ("a store", "a system call")],
)
def test_on_error_abort_ends_the_process_and_says_why(image, kind, touch):
    result = child(
        image,
        kind,
        f"""
        session = lazyrestore.restore(path, lazy=True, on_error="abort")
        region = session["weights"]
        same(region, expected, [0, 4])
        break_it()
        print("before", flush=True)
        match {touch!r}:
            case "a load":
                region[BAD * CLUSTER + 100]
            case "a store":
                region[BAD * CLUSTER + 100] = 1
            case _:
                os.write(os.memfd_create("out"), memoryview(region)[BAD * CLUSTER :])
        print("after", flush=True)
        """,
        ok=False,
    )
    assert result.stdout == "before\n", result
    assert result.returncode == -signal.SIGABRT, result
    (line,) = result.stderr.splitlines()
    assert str(image.path) in line
    assert "weights" in line
    assert re.search(r"cluster\D{0,10}\b2\b", line), line
    reason = {"flipped": "checksum", "rewritten": "checksum", "shrunk": "ended|shrank|short"}
    assert re.search(reason.get(kind, "read|I/O|Input/output"), line), line


def test_abort_cannot_be_ignored_blocked_or_silenced(image):
    whole = image.path.read_bytes()
    for prepare in (
        "signal.signal(signal.SIGABRT, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "os.close(2)",
    ):
        result = child(
            image,
            "flipped",
            f"""
            session = lazyrestore.restore(path, lazy=True, on_error="abort")
            {prepare}
            break_it()
            session["weights"][BAD * CLUSTER]
            print("after")
            """,
            ok=False,
        )
        image.path.write_bytes(whole)
        assert result.returncode == -signal.SIGABRT, (prepare, result)
        assert result.stdout == ""


def test_abort_in_a_child_ends_the_child_alone(image):
    result = child(
        image,
        "flipped",
        """
        session = lazyrestore.restore(path, lazy=True, on_error="abort")
        region = session["weights"]
        break_it()
        code = end_of(fork(same, region, expected, broken))
        assert code == -signal.SIGABRT, code
        mend()
        same(region, expected)
        same(session["more"], more)
        assert session.errors == []
        session.close()
        """,
        ok=False,
    )
    assert result.returncode == 0, result
    (line,) = result.stderr.splitlines()
    assert "weights" in line


def test_abort_changes_nothing_where_nothing_is_wrong(image):
    with lazyrestore.restore(image.path, lazy=True, on_error="abort", prefetch="all") as session:
        assert session.wait() is True
        assert session["weights"][:] == image.expected["weights"]
        assert bytes(session["more"]) == image.expected["more"]
        assert session.errors == []


@pytest.mark.parametrize("lazy", [True, False, "auto"])
@pytest.mark.parametrize("on_error", ["", "Abort", "raise", None, 1])
def test_an_unknown_on_error_is_refused(image, lazy, on_error):
    with pytest.raises(ValueError, match="on_error") as caught:
        lazyrestore.restore(image.path, lazy=lazy, on_error=on_error)
    assert repr(on_error) in str(caught.value)
    assert "'fence'" in str(caught.value)
    assert "'abort'" in str(caught.value)


@pytest.mark.parametrize("lazy", [True, False, "auto"])
@pytest.mark.parametrize("on_error", ["fence", "abort"])
def test_a_known_on_error_is_taken(image, lazy, on_error):
    with lazyrestore.restore(image.path, lazy=lazy, on_error=on_error) as session:
        assert bytes(session["weights"]) == image.expected["weights"]
