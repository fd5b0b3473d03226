"""The demo's steps for whole processes: dump a server, have it run again both ways, and compare."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import lazyrestore
from lazyrestore._criu.checkpoint import Checkpoint
from lazyrestore._criu.family import Family
from lazyrestore._criu.find import Criu, find_criu, may_use_criu
from lazyrestore._criu.folders import PrivateFolder
from lazyrestore._criu.run import start
from lazyrestore._sudo import sudo
from lazyrestore.errors import KernelError, LazyRestoreError

from .client import VALUE_BYTES, Server, key, sample

if TYPE_CHECKING:
    from .client import Connection

Say = Callable[[str], None]

DEFAULT_BYTES = 512 << 20
_RUNS = 3
_COMPARED = 2000
_LIMIT_S = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What one way to restore gave.

    Attributes:
        first_us: from starting its command to the first right answer; median of several runs.
        runs_us: from there until it said that the process runs; median.
        resident_bytes: memory of the process at the first answer.
        p50_us, p99_us: what answers took then, for random keys.
        end_resident_bytes: memory of the process after those.
    """

    first_us: float
    runs_us: float
    resident_bytes: int
    p50_us: float
    p99_us: float
    end_resident_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessDemoReport:
    """What the demo saw. Sizes in bytes, times in microseconds unless the name says seconds.

    Attributes:
        image: path, or None where it was not kept.
        program: what was dumped.
        pid: its number.
        keys: how many it has.
        resident_bytes: its memory when it was dumped.
        fill_seconds: in which it was filled.
        dump_seconds: for the dump, from the command to the process's end.
        frozen_us: how long it stood still for that, before it ended.
        stored_bytes: length of the image.
        criu_bytes: length of CRIU's own images.
        ratio: stored_bytes / criu_bytes.
        criu_version: as "4.1.1".
        eager: `criu restore` of CRIU's folder.
        lazy: `lazyrestore restore --lazy` of the image.
        speedup: how many times sooner the first answer came.
        compared: values that were compared, each way.
        total_seconds: for everything.
    """

    image: str | None
    program: str
    pid: int
    keys: int
    resident_bytes: int
    fill_seconds: float
    dump_seconds: float
    frozen_us: int | None
    stored_bytes: int
    criu_bytes: int
    ratio: float
    criu_version: str
    eager: Answers
    lazy: Answers
    speedup: float
    compared: int
    total_seconds: float


class Differs(LazyRestoreError):
    """A restored program answers otherwise than before."""


class _Restoring(Protocol):
    """A command that restores the program."""

    def poll(self) -> int | None: ...
    def finish(self) -> None: ...


def run(
    nbytes: int, folder: str, *, criu_bin: str | None, is_kept: bool, say: Say
) -> ProcessDemoReport:
    """Run the demo.

    Args:
        nbytes: of memory that the program has, about.
        folder: for everything; all but the image is removed.
        criu_bin: CRIU's path; None: it is looked for.
        is_kept: the image stays.
        say: gets one line of progress for each step.

    Raises:
        CriuError: CRIU is missing, or failed.
        KernelError: this user may not use it.
        Differs: a restored program answers otherwise.
        LazyRestoreError, OSError: a step failed.
    """
    begun = time.perf_counter()
    criu = find_criu(criu_bin)
    if not may_use_criu():
        raise KernelError(f"CRIU needs to be root: {sudo('demo --process')}")
    too_old = criu.too_old()
    if too_old is not None:
        raise KernelError(too_old)
    return _Demo(nbytes, folder, criu, say).run(begun, is_kept)


class _Demo:
    def __init__(self, nbytes: int, folder: str, criu: Criu, say: Say) -> None:
        self._keys = max(1, nbytes // VALUE_BYTES)
        self._folder = folder
        self._criu = criu
        self._say = say
        self._image = os.path.join(folder, "process.lzr")
        self._criu_folder = os.path.join(folder, "criu")
        self._work = ""
        self._expected: dict[int, bytes | None] = {}

    def run(self, begun: float, is_kept: bool) -> ProcessDemoReport:
        Family().adopt_orphans()  # whoever that is when the program's number shall be free again
        work = PrivateFolder.make()  # whose path is short enough for a socket
        self._work = work.path
        try:
            server = Server(self._work)
            try:
                return self._run(server, begun, is_kept)
            finally:
                server.end()
        finally:
            work.remove()
            shutil.rmtree(self._criu_folder, ignore_errors=True)

    def _run(self, server: Server, begun: float, is_kept: bool) -> ProcessDemoReport:
        size = self._keys * VALUE_BYTES >> 20
        self._say(f"starting {server.name}, and putting {size} MiB into it ...")
        started = time.perf_counter()
        server.fill(self._keys)
        fill_seconds = time.perf_counter() - started
        with server.connect() as client:
            self._expected = {
                number: client.ask(b"GET", key(number)) for number in sample(self._keys, _COMPARED)
            }
        resident = server.resident_bytes()
        self._say(f"dumping it (pid {server.pid}), after which it has ended ...")
        started = time.perf_counter()
        report = lazyrestore.dump(
            lazyrestore.ProcessTree(server.pid, criu=self._criu.path), self._image
        )
        server.has_ended()
        dump_seconds = time.perf_counter() - started
        with lazyrestore.open(self._image) as image:
            checkpoint = Checkpoint.of(image)
            assert checkpoint is not None
            checkpoint.write_folder(self._criu_folder)
        criu_bytes = sum(entry.stat().st_size for entry in os.scandir(self._criu_folder))
        self._say("having it run again both ways, three times each ...")
        found: dict[str, list[Answers]] = {"eager": [], "lazy": []}
        for _ in range(_RUNS):
            for way, restore in (("eager", self._restore_eagerly), ("lazy", self._restore_lazily)):
                found[way].append(self._measure(server, restore))
                server.end()
        eager, lazy = _median(found["eager"]), _median(found["lazy"])
        return ProcessDemoReport(
            image=self._image if is_kept else None,
            program=server.name,
            pid=server.pid,
            keys=self._keys,
            resident_bytes=resident,
            fill_seconds=fill_seconds,
            dump_seconds=dump_seconds,
            frozen_us=report.frozen_us,
            stored_bytes=report.stored_bytes,
            criu_bytes=criu_bytes,
            ratio=report.stored_bytes / criu_bytes,
            criu_version=self._criu.version_text,
            eager=eager,
            lazy=lazy,
            speedup=eager.first_us / lazy.first_us,
            compared=len(self._expected),
            total_seconds=time.perf_counter() - begun,
        )

    def _measure(self, server: Server, restore: Callable[[], _Restoring]) -> Answers:
        """Restore it, ask it, and compare all answers."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(server.path)
        order = list(self._expected)
        begun = time.perf_counter_ns()
        restoring = restore()

        def check() -> None:
            if restoring.poll() not in (None, 0):
                restoring.finish()

        try:
            with server.connect(check) as client:
                self._compare(client, order[0])
                first = time.perf_counter_ns()
                resident = server.resident_bytes()
                restoring.finish()
                runs = time.perf_counter_ns()
                times = []
                for number in order[1:]:
                    asked = time.perf_counter_ns()
                    self._compare(client, number)
                    times.append((time.perf_counter_ns() - asked) / 1e3)
                if int(client.ask(b"DBSIZE") or b"0") != self._keys:
                    raise Differs("the restored program does not have as many keys as before")
        except BaseException:
            with contextlib.suppress(Exception):
                restoring.finish()
            raise
        times.sort()
        return Answers(
            first_us=(first - begun) / 1e3,
            runs_us=(runs - begun) / 1e3,
            resident_bytes=resident,
            p50_us=times[len(times) // 2],
            p99_us=times[len(times) * 99 // 100],
            end_resident_bytes=server.resident_bytes(),
        )

    def _compare(self, client: Connection, number: int) -> None:
        if client.ask(b"GET", key(number)) != self._expected[number]:
            raise Differs(f"the restored program answers otherwise for {key(number).decode()}")

    def _restore_eagerly(self) -> _Restoring:
        return start(self._criu, "restore", ["-D", self._criu_folder, "-d"], folder=self._work)

    def _restore_lazily(self) -> _Restoring:
        return _Command([self._image, "-d", "-q", "--criu-bin", self._criu.path])


class _Command:
    """`lazyrestore restore --lazy`."""

    def __init__(self, arguments: list[str]) -> None:
        home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lazyrestore", "restore", "--lazy", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def poll(self) -> int | None:
        """Its exit code if it has ended, else None."""
        return self._process.poll()

    def finish(self) -> None:
        """Wait until it ends.

        Raises:
            LazyRestoreError: it failed.
        """
        _, errors = self._process.communicate(timeout=_LIMIT_S)
        if self._process.returncode:
            lines = errors.decode(errors="replace").splitlines() or ["it says nothing"]
            raise LazyRestoreError(lines[-1].removeprefix("lazyrestore: "))


def _median(found: list[Answers]) -> Answers:
    fields = [field.name for field in dataclasses.fields(Answers)]
    values = {name: statistics.median(getattr(one, name) for one in found) for name in fields}
    return Answers(**values)
