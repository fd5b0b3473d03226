"""An image of which a cluster breaks and mends, and scripts that meet it: for tests of fences."""

from __future__ import annotations

import subprocess
import textwrap

import pytest
from restore_support import payloads, run_in_child

CLUSTER = 16384
BAD = 2
KINDS = ("flipped", "shrunk", "rewritten", "EIO")
HEALABLE = ("flipped", "shrunk", "rewritten")

# `break_it` makes cluster 2 of region "weights" unreadable, in one of four ways; `mend` undoes it.
PREAMBLE = """
import ctypes, gc, os, signal, struct, platform, sys, threading, time
import lazyrestore
from fork_support import *
path, kind, at, length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
CLUSTER, BAD = 16384, 2
expected = contents(path)["weights"]
more = contents(path)["more"]
pages = len(expected) // PAGE
broken = range(BAD * 4, BAD * 4 + 4)
whole = open(path, "rb").read()

def overwrite(data):
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, len(data))
    os.pwrite(fd, data, 0)
    os.close(fd)

def fail_reads():
    '''pread(2) of that cluster gives EIO from now on, in every thread: by a filter of calls.'''
    number = {"x86_64": 17, "aarch64": 67}[platform.machine()]
    code = [
        (0x20, 0, 0, 0),                  # load the number
        (0x15, 0, 4, number),             # not pread64: allow
        (0x20, 0, 0, 16 + 8 * 3),         # load the lower half of the offset
        (0x35, 0, 2, at),                 # before the cluster: allow
        (0x25, 1, 0, at + length - 1),    # behind it: allow
        (0x06, 0, 0, 0x00050000 | 5),     # EIO
        (0x06, 0, 0, 0x7FFF0000),
    ]
    filters = b"".join(struct.pack("HBBI", *line) for line in code)
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.c_char_p)]
    program = Program(len(code), filters)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    seccomp = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    if libc.syscall(seccomp, 1, 1, ctypes.byref(program)):  # TSYNC: the pager too
        print("skip", os.strerror(ctypes.get_errno()))
        sys.stdout.flush()
        os._exit(0)

def break_it():
    match kind:
        case "flipped":
            middle = at + length // 2
            overwrite(whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :])
        case "shrunk":
            overwrite(whole[: at + 5])
        case "rewritten":
            overwrite(bytes(byte ^ 0x33 for byte in whole))
        case "EIO":
            fail_reads()

def mend():
    overwrite(whole)

def fails(call, *arguments):
    try:
        got = call(*arguments)
    except OSError as error:
        assert error.errno == 14, error
    else:
        raise AssertionError(f"the system call read what is not there: {got}")

def populate_fails(region, page=BAD * 4):
    try:
        region.populate(page * PAGE, PAGE)
    except lazyrestore.RestoreError as error:
        assert (error.region, error.offset) == ("weights", BAD * CLUSTER), error
        assert error.cluster == BAD and "weights" in str(error), error
        assert "\\n" not in str(error)
        return error
    raise AssertionError("populated what cannot be read")
"""


def make(make_image):
    """Region "weights", 6 clusters of which the last has zero pages too; and "more", 4 clusters."""
    return make_image({"weights": "d" * 20 + "dzdz", "more": "r" * 16}, cluster_size=CLUSTER)


def child(image, kind, script, ok=True, **options) -> subprocess.CompletedProcess[str]:
    """Run a script after PREAMBLE, for one of KINDS."""
    offset, length = payloads(image.path, "weights")[BAD]
    result = run_in_child(
        PREAMBLE + textwrap.dedent(script), image.path, kind, offset, length, ok=ok, **options
    )
    if result.stdout.startswith("skip"):
        pytest.skip(f"seccomp: {result.stdout[5:]}")
    return result
