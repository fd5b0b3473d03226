"""A program that is dumped and restored, and answers questions: the tests' `Talkative` starts it.

    python talkative.py FOLDER

Whoever wants something of a process writes an expression into FOLDER/NS.NAME.ask, NS being the
inode of its pid namespace: so several restores of one image are told apart. The first process is
"root", and has a child "kid" from the start. Needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import sys
import time
from typing import NoReturn

PAGE = 4096
PAGES = 1024
FOLDER = sys.argv[1]
KIND = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_FIXED_NOREPLACE = 0x100000
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def fill(name: str, pages: int) -> mmap.mmap:
    """Memory with content that depends on the name: every seventh page is left empty."""
    made = mmap.mmap(-1, pages * PAGE, flags=KIND)
    for number in range(pages):
        if number % 7 != 3:
            digest = hashlib.sha256(f"{name} {number}".encode()).digest()
            made[number * PAGE : (number + 1) * PAGE] = digest * (PAGE // len(digest))
    return made


memory = fill("memory", PAGES)
other = fill("other", 64)
untouched = mmap.mmap(-1, 64 * PAGE, flags=KIND)


def digest(what: mmap.mmap = memory, first: int = 0, count: int | None = None) -> str:
    """Of some pages."""
    end = None if count is None else (first + count) * PAGE
    return hashlib.sha256(what[first * PAGE : end]).hexdigest()


def expected(name: str, pages: int) -> str:
    """What `digest` is of what `fill` made, by other memory."""
    return digest(fill(name, pages))


def move(what: mmap.mmap, pages: int) -> None:
    """Have the kernel find another place for a mapping, by making it longer than fits."""
    at = address(what)
    beyond = libc.mmap(at + pages * PAGE, PAGE, 0, KIND | MAP_FIXED_NOREPLACE, -1, 0)
    what.resize((pages + 1) * PAGE)
    assert address(what) != at, hex(beyond)


def address(what: mmap.mmap) -> int:
    """Where a mapping is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(what))


def fork(name: str, pages: int = 1) -> int:
    """Have a child that answers by another name, and has memory `mine` that nobody else has."""
    pid = os.fork()
    if pid == 0:
        globals()["mine"] = fill(name, pages)
        obey(name)
    return pid


def obey(name: str) -> NoReturn:
    """Answer for good."""
    while True:
        start = f"{FOLDER}/{os.stat('/proc/self/ns/pid').st_ino}.{name}."
        try:
            with open(start + "ask") as file:
                question = file.read()
        except FileNotFoundError:
            time.sleep(0.005)
            continue
        os.unlink(start + "ask")
        try:
            answer = repr(eval(question, globals()))
        except Exception as error:  # whatever it is, it is the test's
            answer = f"{error!r} of {question}"
        with open(start + "new", "w") as file:
            file.write(answer)
        os.rename(start + "new", start + "answer")


if __name__ == "__main__":
    fork("kid", 64)
    obey("root")
