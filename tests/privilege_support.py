"""What the tests of privileges share."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from restore_support import run_in_child
from seccomp_support import DENY

needs_refusal = pytest.mark.skipif(
    Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0"
    if Path("/proc/sys/vm/unprivileged_userfaultfd").exists()
    else True,
    reason="vm.unprivileged_userfaultfd allows everybody everything here",
)


def without_userfaultfd(script, *arguments, error=1, device=True):
    script = f"{DENY}\ndeny_userfaultfd({error}, {device})\n" + textwrap.dedent(script)
    result = run_in_child(script, *arguments)
    if result.stdout.startswith("skip"):
        pytest.skip(f"seccomp: {result.stdout[5:]}")
    return result


USER_MODE = """
import hashlib, os, sys
import lazyrestore
path, privilege = sys.argv[1:3]
with lazyrestore.open(path) as image:
    expected = image.read("data")
def restore():
    return lazyrestore.restore(path, lazy=True, privilege=privilege)
with restore() as session:
    assert session.stats().privilege == "user-mode-only"
    assert session["data"][:] == expected
with restore() as session:
    region = session["data"]
    region[5] = 7
    assert region[:10] == expected[:5] + bytes([7]) + expected[6:10]
with restore() as session:
    # A system call on missing pages fails or stops short; it never sees zeros.
    fd = os.memfd_create("out")
    region = session["data"]
    region[0]
    try:
        written = os.write(fd, region)
    except OSError as error:
        assert error.errno == 14, error
        written = 0
    assert written < len(expected)
    assert os.pread(fd, len(expected), 0) == expected[:written]
    os.ftruncate(fd, 0)
    # And populate makes it safe.
    region.populate()
    assert os.pwrite(fd, region, 0) == len(expected)
    assert os.pread(fd, len(expected), 0) == expected
with restore() as session:
    fd = os.memfd_create("in")
    os.write(fd, b"x" * 20000)
    view = memoryview(session["data"])[:20000]
    try:
        got = os.preadv(fd, [view], 0)
    except OSError as error:
        assert error.errno == 14, error
        got = 0
    view.release()
    assert got < 20000
    session["data"].populate(0, 20000)
    view = memoryview(session["data"])[:20000]
    assert os.preadv(fd, [view], 0) == 20000
    view.release()
    assert session["data"][:] == b"x" * 20000 + expected[20000:]
print("right")
"""
