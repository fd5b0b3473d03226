"""Running the command line as a user does: a process of its own, with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from restore_support import PACKAGE_HOME

PAGE = 4096
TIMEOUT_S = 60 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))
COMMAND = (sys.executable, "-m", "lazyrestore")


class Image(Protocol):
    """What the fixture `small` gives: an image, and what its regions must read as."""

    path: Path
    expected: dict[str, bytes]


class Result:
    """How a command ended."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.out_bytes = out
        self.out = out.decode(errors="replace")
        self.err = err.decode(errors="replace")

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"

    def ok(self) -> Result:
        assert self.code == 0, self
        assert self.err == "", self
        return self

    def fails(self, code: int, *words: str) -> Result:
        """Exit code, exactly one line that has these words, and no traceback."""
        assert self.code == code, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("lazyrestore: "), self
        assert "Traceback" not in self.err, self
        assert "should not happen" not in self.err, self
        for word in words:
            assert word in self.err, (word, self)
        return self


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE_HOME), "COLUMNS": "80", **(extra or {})}


def start(
    *arguments: object, command: tuple[str, ...] = COMMAND, **options: object
) -> subprocess.Popen[bytes]:
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("env", environment())
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [*command, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def finish(child: subprocess.Popen[bytes], given: bytes | None = None) -> Result:
    try:
        out, err = child.communicate(given, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        pytest.fail(f"still running after {TIMEOUT_S} s: {child.args} {child.communicate()}")
    return Result(child.returncode, out or b"", err or b"")


def run(*arguments: object, given: bytes | None = None, **options: object) -> Result:
    if given is not None:
        options["stdin"] = subprocess.PIPE
    return finish(start(*arguments, **options), given)


def wait_until(what: str, is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.001)


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(".tmp")]


class Old:
    """A target that is there before: whatever fails, it stays, and nothing lies beside it."""

    CONTENT = b"what was there before"

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(self.CONTENT)
        self.beside = sorted(path.parent.iterdir())

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        assert self.path.read_bytes() == self.CONTENT
        assert sorted(self.path.parent.iterdir()) == self.beside


_TARGET = """
import ctypes, mmap, sys
pages = int(sys.argv[1])
memory = mmap.mmap(-1, (pages + 2) * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
if sys.argv[2] == "random":
    import random
    memory[: pages * 4096] = random.Random(1).randbytes(pages * 4096)
else:
    for page in range(0, pages, 2):
        memory[page * 4096 : page * 4096 + 8] = (page + 1).to_bytes(8, "little")
libc = ctypes.CDLL(None)
libc.munmap(ctypes.c_void_p(start + pages * 4096), ctypes.c_size_t(4096))
print(start, flush=True)
sys.stdin.read()
"""


@contextmanager
def target(
    pages: int = 16, content: str = "numbered", **options: object
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process, and the address of memory of `pages` pages behind which one is unmapped.

    Every other page has its number, plus one, in its first 8 bytes; the rest was never touched.
    """
    child = subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "-c", _TARGET, str(pages), content],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def interrupt(child: subprocess.Popen[bytes], number: int = signal.SIGINT) -> Result:
    child.send_signal(number)
    return finish(child)
