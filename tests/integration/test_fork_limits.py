"""Children that may do less than their parents, or that run no handlers: right, or a signal."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from restore_support import run_in_child, write_image
from seccomp_support import DENY

pytestmark = pytest.mark.uffd

PREAMBLE = """
import ctypes, os, resource, signal, subprocess, sys, threading, time
import lazyrestore
from fork_support import *
path = sys.argv[1]
expected = contents(path)["a"]
pages = len(expected) // PAGE
"""


def child(image, script, *arguments, **options):
    return run_in_child(PREAMBLE + textwrap.dedent(script), image, *arguments, **options)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """240 pages of data, zeros and holes, readable by its owner only."""
    path = tmp_path_factory.mktemp("fork") / "image.lzr"
    write_image(path, {"a": "drzh" * 60}, cluster_size=16384)
    return path


# ---- Fewer rights --------------------------------------------------------------------------------


@pytest.mark.root
def test_a_child_that_becomes_nobody_before_it_touches(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        same(region, expected, [0])
        def work():
            become_nobody()
            same(region, expected)
            fd = os.memfd_create("out")
            assert os.write(fd, region) == len(expected)
            assert os.pread(fd, len(expected), 0) == expected
        run(work)
        same(region, expected)
        """,
    )


@pytest.mark.root
@pytest.mark.skipif(
    not os.path.exists("/dev/userfaultfd"),
    reason="no /dev/userfaultfd to keep open: the next test is for such kernels",
)
def test_the_children_of_one_that_became_nobody(image):
    """The system call is refused to them; the device that was opened before is not."""
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        become_nobody()
        run(same, region, expected)
        def work():
            run(same, region, expected)
            same(region, expected)
        run(run, work)
        same(region, expected)
        """,
    )


@pytest.mark.root
def test_user_mode_only_needs_no_right_in_a_child(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True, privilege="user-mode-only")
        region = session["a"]
        become_nobody()
        def work():
            assert session.stats().privilege == "user-mode-only"
            same(region, expected, range(0, pages, 2))
            run(same, region, expected)
            region.populate()
            fd = os.memfd_create("out")
            assert os.write(fd, region) == len(expected)
        run(work)
        same(region, expected)
        """,
    )


# ---- Children that cannot be served --------------------------------------------------------------

# How to start a child that will not be served, by what it lacks.
LIMITS = {
    "files": """
def start(work):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    pid = fork(work)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return pid
""",
    "threads": """
become_nobody(61234)  # a user that nobody else is: its threads are counted
def start(work):
    for limit in range(1, 500):
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, 500))
        try:
            pid = fork(work)
        except BlockingIOError:
            continue
        break
    resource.setrlimit(resource.RLIMIT_NPROC, (500, 500))
    return pid
""",
    "seccomp": DENY
    + """
deny_userfaultfd(1)
start = fork
""",
}

# Without a pager of its own, a child's touch is a signal; what else it does is not harmed.
UNSERVED = """
spare = os.memfd_create("out")
lazy = sys.argv[3] == "none"  # else the fill may have loaded what the child looks at
def touch(page):
    same(region, expected, [page])
for page in (0, 5, 100, pages - 3):
    code = end_of(start(lambda: touch(page)))
    assert -code in FENCES or not lazy and code == 0, (page, code)
def write():
    try:
        written = os.write(spare, memoryview(region)[40 * PAGE :])
    except OSError as error:
        assert error.errno == 14, error
    else:
        assert not lazy, written
        assert os.pread(spare, written, 0) == expected[40 * PAGE :][:written]
def populate():
    try:
        region.populate(40 * PAGE, PAGE, timeout=10)
    except (lazyrestore.LazyRestoreError, OSError, ValueError) as error:
        assert str(error)
    else:
        assert not lazy, "populated without a userfaultfd"
def look_and_close():
    for error in session.errors:
        assert error.reason and error.region == "a", error
    try:
        session.stats()
    except lazyrestore.KernelError:
        assert sys.argv[2] == "files"  # it opens a file to see what is resident
    session.close()
def grandchild():
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard, hard))
    code = end_of(fork(touch, 5))
    assert code == 0 or -code in FENCES, code
for work in (write, populate, look_and_close, grandchild):
    code = end_of(start(work))
    assert code == 0, (work, code)
same(region, expected)
session.close()
"""


@pytest.mark.root
@pytest.mark.parametrize("prefetch", ["none", "all"])
@pytest.mark.parametrize("limit", sorted(LIMITS))
def test_a_child_that_cannot_be_served_gets_a_signal(image, limit, prefetch):
    restore = """
session = lazyrestore.restore(path, lazy=True, prefetch=sys.argv[3])
region = session["a"]
"""
    result = child(image, restore + LIMITS[limit] + UNSERVED, limit, prefetch)
    if result.stdout.startswith("skip"):
        pytest.skip(f"seccomp: {result.stdout[5:]}")


@pytest.mark.parametrize("how", ["clone", "_Fork"])
def test_a_clone_without_handlers_gets_a_signal(image, how):
    child(
        image,
        """
        if sys.argv[2] == "_Fork" and not hasattr(libc, "_Fork"):
            os._exit(77)
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        same(region, expected, [0])
        def clone(work, *arguments):
            if sys.argv[2] == "clone":
                return raw_clone(work, *arguments)
            return libc._Fork() or end(work, *arguments)
        for page in (0, 1, 77, pages - 1):  # loaded, and not
            code = end_of(clone(ctypes.string_at, region.address + page * PAGE, 1))
            assert code == -signal.SIGSEGV, code
        def work():
            '''And its own children by fork: the handlers find nothing that they could serve.'''
            code = end_of(fork(ctypes.string_at, region.address, 1))
            assert code == -signal.SIGSEGV, code
            session.stats()
            session.close()
            with lazyrestore.restore(path, lazy=True) as own:
                same(own["a"], expected, [0, 50])
                run(same, own["a"], expected)
        code = end_of(clone(work))
        assert code == 0, code
        run(same, region, expected)
        code = end_of(clone(ctypes.string_at, region.address + 77 * PAGE, 1))
        assert code == -signal.SIGSEGV, f"after a fork: {code}"
        same(region, expected)
        """,
        how,
    )


def test_a_clones_own_memory_at_a_regions_address_is_let_alone(image):
    """In a child of that clone too: its handlers know the region, but not whose memory it is."""
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        address, length = session["a"].address, len(expected)
        def check(depth):
            own = ctypes.string_at(address, length)
            assert own == bytes([7]) * PAGE + bytes(length - PAGE), "not what was written there"
            if depth:
                run(check, depth - 1)
        def work():
            assert libc.mmap(address, length, 3, 0x32, -1, 0) == address
            ctypes.memset(address, 7, PAGE)
            run(check, 1)
            check(1)
            os._exit(0)
        code = end_of(raw_clone(work))
        assert code == 0, code
        same(session["a"], expected)
        """,
    )


# ---- What starts programs ------------------------------------------------------------------------


def test_a_program_that_a_child_becomes_inherits_nothing(image):
    child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        region = session["a"]
        script = (
            "import os, sys; home = '/proc/self/fd/'; numbers = os.listdir(home);"
            " names = [os.readlink(home + n) for n in numbers if os.path.lexists(home + n)];"
            " sys.exit(any('userfaultfd' in n or n == sys.argv[1] for n in names))"
        )
        def work():
            same(region, expected, [5])
            os.execv(sys.executable, [sys.executable, "-c", script, path])
        run(work)
        # And one by subprocess, with a line of Python between fork and exec.
        done = subprocess.run(["/bin/true"], preexec_fn=lambda: same(region, expected, [6, 99]))
        assert done.returncode == 0
        same(region, expected)
        """,
    )


SPAWN = """
import os, subprocess, sys
import lazyrestore
session = lazyrestore.restore(sys.argv[1], lazy=True, prefetch="none")
session["a"].populate(0, 65536)
os.access("/begin", 0)
subprocess.run(["/bin/true"], check=True)
subprocess.run(["/bin/true"], check=True, close_fds=False)
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
assert os.system("exit 0") == 0
os.access("/end", 0)
os.waitpid(os.fork() or os._exit(0), 0)
"""


def test_subprocess_and_posix_spawn_cost_nothing_more(image, tmp_path):
    """No system call of ours is made for them, in the parent or in the child."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "log"
    calls = "trace=access,faccessat,faccessat2,userfaultfd,ioctl,madvise,clone,clone3,fork,vfork"
    if platform.machine() == "aarch64":
        calls = calls.replace("access,", "", 1).replace(",fork,vfork", "")
    traced = subprocess.run(
        [strace, "-qq", "-o", log, "-e", "signal=none", "-e", calls, "-f", "true"],
        capture_output=True,
        text=True,
    )
    if traced.returncode:
        pytest.skip(f"strace cannot trace here: {traced.stderr.strip()}")
    wrap = (strace, "-qq", "-f", "-o", str(log), "-e", "signal=none", "-e", calls)
    run_in_child(SPAWN, image, wrap=wrap, timeout=60)
    text = log.read_text()
    begin, end = (re.search(rf'access\w*\(.*"/{word}"', text) for word in ("begin", "end"))
    assert begin
    assert end
    between = text[begin.end() : end.start()].splitlines()[1:]
    started = [s for s in between if re.search(r"\b(vfork|v?fork|clone3?)\(", s)]
    assert len(started) >= 4, between
    ours = [s for s in between if re.search(r"userfaultfd|UFFD|CLONE_THREAD|DOFORK|DONTFORK", s)]
    assert ours == []
    # It would have shown: a fork does all of this.
    after = text[end.end() :]
    assert "DOFORK" in after
    assert re.search(r"userfaultfd|USERFAULTFD|UFFD", after)
    assert "CLONE_THREAD" in after


def test_a_childs_signal_is_not_ours(image):
    """A SIGSEGV of the program's own, in a child of a session, is what it would be without."""
    result = child(
        image,
        """
        session = lazyrestore.restore(path, lazy=True)
        code = end_of(fork(ctypes.string_at, 16, 1))
        assert code == -signal.SIGSEGV, code
        same(session["a"], expected)
        print(sys.version_info >= (3, 11))
        """,
    )
    assert result.stdout == "True\n"
    assert signal.SIGSEGV in signal.Signals
    assert sys.platform == "linux"


def test_a_daemon_that_closes_all_descriptors(image):
    """The pager has a table of its own: what the program closes, it keeps."""
    child(
        image,
        """
        with lazyrestore.restore(path, lazy=True) as session:
            region = session["a"]
            same(region, expected, [0])
            def daemon():
                os.closerange(3, 500)
                same(region, expected)
                try:
                    region.populate()
                except lazyrestore.RestoreError as error:
                    assert "descriptor" in str(error), error
            run(daemon)
            os.closerange(3, 500)
            same(region, expected)
        """,
    )
