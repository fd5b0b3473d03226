"""Programs that are checkpointed and restored, as a user does it, by the command line.

A program of tests/processes answers lines at a socket in its home. What a restore starts (CRIU, the
daemon that serves its memory, and whoever keeps that) is known by a variable in its environment, so
that tests can wait for its end, kill some of it, and leave nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_support import COMMAND, Result, environment
from criu_support import criu
from guest_support import compile_c
from restore_support import TESTS

PAGE = 4096
BLOCK_PAGES = 256
PROGRAMS = TESTS / "processes"
LIMIT_S = 60.0 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))
_MARK = "LAZYRESTORE_TEST_MARK"
_SUBREAPER = 36


def until(what: str, is_so: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


# ---- Processes -----------------------------------------------------------------------------------


def is_gone(pid: int) -> bool:
    """Whether it has ended; if it was a child of this process, its PID is free then."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            return False
    except (FileNotFoundError, ProcessLookupError):
        return True
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid  # not as long as threads of it are there
    except ChildProcessError:
        return True


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{one}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found += map(int, (task / "children").read_text().split())
    return found


def children_of_this() -> set[int]:
    """This process's, inherited ones among them."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return found


def marked(mark: str) -> list[int]:
    """The processes that were started with this mark in their environment, the oldest first."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            # A restored program's stack may be missing: then there is nothing to read.
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return sorted(found)


def resident_bytes(pid: int) -> int:
    """What a process has of memory."""
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return int(fields[fields.index("Rss:") + 1]) * 1024


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# ---- Programs ------------------------------------------------------------------------------------


class Program:
    """One that runs.

    Attributes:
        pid: of its first process.
        home: where its socket is, as the test sees it.
        mark: of what was started to restore it; of the program itself, where it was not restored.
    """

    def __init__(self, owner: Programs, pid: int, home: Path, mark: str) -> None:
        self._owner = owner
        self.pid = pid
        self.home = home
        self.mark = mark

    def ask(self, line: str) -> str:
        """Its answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect(str(self.home / "socket"))
            sock.sendall(line.encode() + b"\n")
            answer = b""
            # It has closed its side when this ends, and can be checkpointed.
            while piece := sock.recv(1 << 16):
                answer += piece
        return answer.decode()

    def numbers(self, line: str) -> list[int]:
        """An answer of numbers."""
        answer = self.ask(line)
        assert answer != "failed", line
        return list(map(int, answer.split()))

    def does(self, *lines: str) -> None:
        """What is done must be answered with so much."""
        for line in lines:
            assert self.ask(line) == "done", line

    @property
    def is_gone(self) -> bool:
        return is_gone(self.pid)

    def helpers(self) -> list[int]:
        """Who still serves it, the oldest first."""
        return [pid for pid in marked(self.mark) if not is_gone(pid)]

    def wait_until_filled(self) -> None:
        """Until nobody serves it any more: then all of its memory is there."""
        until("the daemon ends", lambda: not self.helpers())
        assert not self.is_gone, "it has ended while it was filled"

    def wait_until_kept(self) -> None:
        """Until there is more than one who serves it, or nobody has to."""
        until("two serve again", lambda: len(self.helpers()) != 1)

    def wait_for_end(self) -> None:
        """It ends by itself, and who serves it then."""
        until("the program ends", lambda: self.is_gone)
        until("the daemon ends with it", lambda: not self.helpers())

    def dump(self, image: Path, *options: object) -> Path:
        """Checkpoint it, which ends it."""
        pids, others = tree(self.pid), children_of_this()
        self._owner.run("dump", "--process", self.pid, *options, image)
        if "--leave-running" not in options:
            until("what was checkpointed ends", lambda: all(is_gone(pid) for pid in pids))
            # What it has started since then was inherited.
            left = children_of_this() - others
            until("the rest of it ends", lambda: all(is_gone(pid) for pid in left))
        return image

    def end(self) -> None:
        """Kill its processes; who served them must end by themselves."""
        pids = tree(self.pid)
        _kill(pids)
        until("what was killed ends", lambda: all(is_gone(pid) for pid in pids))
        until("the daemon ends with it", lambda: not self.helpers())


class Programs:
    """Starts and restores programs, and ends all of them."""

    def __init__(self, build: Path) -> None:
        self.criu = criu()
        self.folder = Path(tempfile.mkdtemp(prefix="lr-programs-"))  # short: for sockets
        self._build = build
        self._marks: list[str] = []
        self._roots: list[int] = []
        self._numbers = itertools.count()
        self._libc = ctypes.CDLL(None)
        # What a restore leaves behind becomes a child of this process, which reaps it: a PID is to
        # be free when it is to be restored again.
        self._libc.prctl(_SUBREAPER, 1, 0, 0, 0)

    def image(self, name: str = "image") -> Path:
        """A path for one."""
        return self.folder / f"{name}-{next(self._numbers)}.lzr"

    def new_mark(self) -> tuple[str, dict[str, str]]:
        """A mark, and an environment that has it."""
        mark = uuid.uuid4().hex
        self._marks.append(mark)
        return mark, environment({_MARK: mark, "CRIU": self.criu})

    def start(self, name: str, *arguments: object, command: Sequence[str] = ()) -> Program:
        """A program of tests/processes, in a session of its own; returns when it answers."""
        home = Path(tempfile.mkdtemp(prefix="home-", dir=self.folder))
        if not command:
            is_c = name.endswith(".c")
            command = [str(self._compiled(name) if is_c else PROGRAMS / name)]
            command = command if is_c else [sys.executable, *command]
        return self.start_command([*command, str(home / "socket"), *map(str, arguments)], home)

    def start_command(self, command: Sequence[str], home: Path) -> Program:
        mark, env = self.new_mark()
        child = self._spawn(command, env)
        program = Program(self, child.pid, home, mark)
        self._roots.append(child.pid)
        until("the program listens", lambda: child.poll() is not None or _listens(program))
        assert child.poll() is None, f"{command} ended with {child.returncode}"
        return program

    def spawn(self, command: Sequence[str]) -> int:
        """Any command, in a session of its own and without a terminal; its PID."""
        pid = self._spawn(command, self.new_mark()[1]).pid
        self._roots.append(pid)
        return pid

    def _spawn(self, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd="/",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _compiled(self, name: str) -> Path:
        output = self._build / Path(name).stem
        if not output.exists():
            compile_c(PROGRAMS / name, output, "-pthread")
        return output

    def restore(
        self, image: Path, home: Path, *options: object, lazy: Sequence[object] = ("--lazy",)
    ) -> Program:
        """`lazyrestore restore --lazy -d`: the program, when the command has ended."""
        mark, env = self.new_mark()
        pidfile = self.folder / f"pid-{mark}"
        self.run("restore", *lazy, "-d", "--pidfile", pidfile, *options, image, env=env)
        return self.adopt(pidfile, home, mark)

    def adopt(self, pidfile: Path, home: Path, mark: str) -> Program:
        """What has been restored in the background."""
        pid = int(pidfile.read_text())
        self._roots.append(pid)
        program = Program(self, pid, home, mark)
        assert not program.is_gone
        return program

    def run(self, *arguments: object, env: dict[str, str] | None = None) -> Result:
        """A command that must succeed. Its output goes to a file: what it leaves may have it."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(
                [*COMMAND, *map(str, arguments)],
                env=env or self.new_mark()[1],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=2 * LIMIT_S,
                check=False,
            )
            out.seek(0)
            err.seek(0)
            result = Result(done.returncode, out.read(), err.read())
        assert result.code == 0, (arguments, result)
        return result

    def run_criu(self, *arguments: object) -> None:
        """CRIU itself, which must succeed."""
        subprocess.run(
            [self.criu, *map(str, arguments)],
            env=self.new_mark()[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT_S,
            check=True,
        )

    def close(self) -> None:
        pids = [pid for root in self._roots for pid in tree(root) if pid != os.getpid()]
        _kill(pids)
        for mark in self._marks:
            pids += marked(mark)
        _kill(pids)
        for pid in pids:
            with contextlib.suppress(AssertionError):
                until("it is gone", functools.partial(is_gone, pid), 10)
        self._libc.prctl(_SUBREAPER, 0, 0, 0, 0)
        for pid in children_of_this():
            is_gone(pid)  # reaped
        subprocess.run(["rm", "-rf", self.folder], check=False)


def _listens(program: Program) -> bool:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.connect(str(program.home / "socket"))
        return True
    return False


@contextlib.contextmanager
def running_programs(build: Path) -> Iterator[Programs]:
    programs = Programs(build)
    try:
        yield programs
    finally:
        programs.close()


def needs(tool: str, package: str) -> str:
    """The path of a program of a package; without it the test is skipped, or in CI fails."""
    import shutil

    found = shutil.which(tool)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"this must run in CI: {tool} is missing: apt-get install {package}")
        pytest.skip(f"{tool} is missing: apt-get install {package}")
    return found


# ---- What tests/processes/content.c has ----------------------------------------------------------


def _mix(x: int) -> int:
    mask = (1 << 64) - 1
    x = x + 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def page_bytes(number: int, version: int) -> bytes:
    """What tests/processes/pages.h writes."""
    if version == 0:
        return bytes(PAGE)
    seed, words = number << 24 | version, []
    for line in range(64):
        words += [_mix(seed + (line << 56)), *[seed + line] * 7]
    return b"".join(word.to_bytes(8, "little") for word in words)


class Content:
    """What the program must have by what it was told: a version a page; None: not mapped."""

    def __init__(self, mib: int) -> None:
        pages = mib * BLOCK_PAGES
        self.versions: list[int | None] = [
            0 if number % 16 in (7, 15) else 1 for number in range(pages)
        ]

    def __len__(self) -> int:
        return len(self.versions)

    def check(self, program: Program, first: int = 0, count: int | None = None) -> None:
        """Each page of a range, by the program."""
        count = len(self) - first if count is None else count
        known = [v for v in self.versions[first : first + count] if v is not None]
        found = program.numbers(f"check {first} {count}")
        assert found == [len(known), 0, sum(known)], (first, count)

    def check_bytes(self, program: Program, *numbers: int) -> None:
        """Pages, byte by byte."""
        for number in numbers:
            version = self.versions[number]
            assert version is not None
            found = bytes.fromhex(program.ask(f"page {number}"))
            assert found == page_bytes(number, version), f"page {number}"

    def check_saved(self, program: Program, path: Path, first: int, count: int) -> None:
        """Pages that the program writes to a file, from memory that it has not touched."""
        program.does(f"save {path} {first} {count}")
        wanted = (page_bytes(n, self.versions[n] or 0) for n in range(first, first + count))
        assert path.read_bytes() == b"".join(wanted)

    def write(self, program: Program, first: int, count: int, version: int) -> None:
        program.does(f"write {first} {count} {version}")
        self.versions[first : first + count] = [version] * count

    def move(self, program: Program, block: int, count: int = 1) -> None:
        program.does(f"move {block} {count}")

    def drop(self, program: Program, block: int, count: int = 1) -> None:
        program.does(f"drop {block} {count}")
        self._fill(block, count, 0)

    def unmap(self, program: Program, block: int, count: int = 1) -> None:
        program.does(f"unmap {block} {count}")
        self._fill(block, count, None)

    def map(self, program: Program, block: int, count: int = 1) -> None:
        program.does(f"map {block} {count}")
        self._fill(block, count, 0)

    def _fill(self, block: int, count: int, value: Any) -> None:
        first, end = block * BLOCK_PAGES, (block + count) * BLOCK_PAGES
        self.versions[first:end] = [value] * (end - first)
