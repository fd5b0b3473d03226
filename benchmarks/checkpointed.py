"""A large process that is checkpointed once, and restored in several ways, by us and by CRIU."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from . import peers
from .data import NAMES, ROOT, Data, environment
from .runner import NotMeasuredError

LIMIT_S = 60.0
_MARK = "LAZYRESTORE_BENCH_MARK"
_SUBREAPER = 36
_SETTLED_S = 0.5
# As in checkpointed.c.
_FIELDS = ("order", "count", "seed", "slow_ns", "is_ready", "resumed_ns", "done", "waits", "wrong")
NOTHING, TOUCH, SPOTS, CHECK = range(4)


def find_criu() -> str:
    """The CRIU to measure: CRIU=, the one that `make criu` makes, or PATH's."""
    made = ROOT / "build" / "criu" / "bin" / "criu"
    given = os.environ.get("CRIU")
    found = shutil.which(given or (str(made) if made.exists() else "criu"))
    if found is None:
        raise NotMeasuredError(f"CRIU={given} is not there" if given else "no CRIU: make criu")
    if os.geteuid() != 0:
        raise NotMeasuredError("CRIU needs to be root")
    check = subprocess.run([found, "check"], stdin=subprocess.DEVNULL, capture_output=True)
    if check.returncode:
        raise NotMeasuredError(f"{found} check fails here")
    return found


def wait_until(what: str, is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it never happened that {what}")
        time.sleep(0.001)


# ---- Processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def heir() -> Iterator[None]:
    """Orphans come to this process, which reaps them: their PIDs are to be free again."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)
        for task in Path("/proc/self/task").iterdir():
            for pid in map(int, (task / "children").read_text().split()):
                is_gone(pid)


def is_gone(pid: int) -> bool:
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            return False
    except (FileNotFoundError, ProcessLookupError):
        return True
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid  # not as long as threads of it are there
    except ChildProcessError:
        return True


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until("a killed process ends", lambda: is_gone(pid))


class Mark:
    """Of what a command starts, and what that starts: a variable in the environment."""

    def __init__(self, criu: str) -> None:
        self._value = uuid.uuid4().hex
        self.environment = {**with_criu(criu), _MARK: self._value}

    def processes(self) -> list[int]:
        """Those that are there; the oldest first."""
        wanted, found = f"{_MARK}={self._value}".encode(), []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and wanted in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return sorted(pid for pid in found if not is_gone(pid))

    def wait_for_end(self) -> None:
        wait_until("who serves ends", lambda: not self.processes())

    def kill(self) -> None:
        for pid in self.processes():
            kill(pid)


def memory_kib(pid: int, field: str) -> int:
    """Of /proc/PID/smaps_rollup."""
    words = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").split()
    return int(words[words.index(f"{field}:") + 1])


class Board:
    """What the program is told, and what it says."""

    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self._memory).cast("Q")

    def __getitem__(self, name: str) -> int:
        return self._words[_FIELDS.index(name)]

    def set(self, **values: int) -> None:
        """For the next restore."""
        for index, name in enumerate(_FIELDS):
            if name != "is_ready":
                self._words[index] = values.get(name, 0)

    def waits_us(self) -> list[float]:
        """How long the touches took that took long, from the least on."""
        first = len(_FIELDS)
        return sorted(ns / 1000 for ns in self._words[first : first + self["waits"]])

    def wait_for(self, name: str) -> int:
        wait_until(f"the program is {name}", lambda: self[name])
        return self[name]


# ---- The checkpoint ------------------------------------------------------------------------------


class Checkpoint:
    """A process of so many MiB of real memory, which was checkpointed by CRIU and by us.

    Attributes:
        home: where its board is; a restore in a mount namespace may have another there.
        folder: of CRIU's image.
        image: ours.
        pid: of the process.
    """

    def __init__(self, data: Data, mib: int, criu: str) -> None:
        base = data.folder / f"process-{mib}m"
        self.criu = criu
        self.home, self.folder, self.image = base / "home", base / "criu", base / "process.lzr"
        program = peers.built("checkpointed")
        stamp = " ".join(
            [
                Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
                f"{program.stat().st_mtime_ns} {criu}",
            ]
        )
        if not (base / "stamp").exists() or (base / "stamp").read_text() != stamp:
            shutil.rmtree(base, ignore_errors=True)
            for path in (self.home, self.folder):
                path.mkdir(parents=True)
            self._make([str(program), str(self.board_path), str(mib)], data)
            (base / "stamp").write_text(stamp)
        self.pid = int(next(self.folder.glob("core-*.img")).stem.rpartition("-")[2])
        self.board = Board(self.board_path)

    @property
    def board_path(self) -> Path:
        return self.home / "board"

    def _make(self, command: list[str], data: Data) -> None:
        files = [str(data.raw(name)) for name in NAMES]
        process = subprocess.Popen(
            [*command, *files],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until("there is a board", lambda: self.board_path.exists())
            wait_until("it has its size", lambda: self.board_path.stat().st_size > 4096)
            Board(self.board_path).wait_for("is_ready")
            folder = str(self.folder)
            dump = [self.criu, "dump", "--leave-running", "-D", folder, "-o", "dump.log"]
            run([*dump, "-t", str(process.pid)])
            run(lazyrestore("dump", "--process", process.pid, self.image), with_criu(self.criu))
        finally:
            process.kill()
            process.wait()


def lazyrestore(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lazyrestore", *map(str, arguments)]


def with_criu(criu: str) -> dict[str, str]:
    """An environment in which commands of ours use this CRIU."""
    return {**environment(), "CRIU": criu}


def run(command: Sequence[str], env: dict[str, str] | None = None, **options: Any) -> None:
    """A command that must succeed; what it says is shown if it does not."""
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=env or environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=LIMIT_S,
            check=False,
            **options,
        )
        if done.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace").strip().replace("\n", " / ")
            raise RuntimeError(f"{' '.join(command[:5])} ... ended with {done.returncode}: {text}")


# ---- Restores ------------------------------------------------------------------------------------


class Restore:
    """One restore of a checkpoint, by a function below; its processes are ended with the block.

    Attributes:
        mark: of who serves it.
        first_ms: from the command to the program's first progress.
    """

    def __init__(
        self, checkpoint: Checkpoint, how: Callable[..., None], *options: object, **order: int
    ) -> None:
        self.checkpoint = checkpoint
        self.board = checkpoint.board
        self.mark = Mark(checkpoint.criu)
        self.folder = Path(tempfile.mkdtemp(prefix="lazyrestore-bench-"))
        self.board.set(**order)
        self._begin_ns = time.time_ns()
        try:
            how(self, *options)
            self.first_ms = (self.board.wait_for("resumed_ns") - self._begin_ns) / 1e6
        except BaseException:
            self.close()
            raise

    def begin_now(self) -> None:
        """What was before is not measured, and what a daemon does once it is ready neither."""
        time.sleep(_SETTLED_S)
        self._begin_ns = time.time_ns()

    def start_daemon(self, command: list[str]) -> None:
        """Returns when it says that it is ready."""
        ready, write = os.pipe()
        subprocess.Popen(
            [*command, "--status-fd", str(write)],
            cwd=ROOT,
            env=self.mark.environment,
            pass_fds=[write],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with open(ready, "rb", buffering=0) as file:
            if not file.read(1):
                raise RuntimeError(f"{command[0]} lazy-pages did not start")

    def criu(self, verb: str, folder: Path, *options: str) -> list[str]:
        return [self.checkpoint.criu, verb, "-D", str(folder), "-W", str(self.folder), *options]

    def close(self) -> None:
        kill(self.checkpoint.pid)
        self.mark.wait_for_end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ours(restore: Restore, *options: object) -> None:
    """`lazyrestore restore --lazy`."""
    command = lazyrestore("restore", "--lazy", "-d", *options, restore.checkpoint.image)
    run(command, restore.mark.environment)


def ours_with_daemon_up(restore: Restore) -> None:
    """`criu restore --lazy-pages`, with `lazyrestore lazy-pages` that was started before."""
    folder, image = restore.folder / "lazy", restore.checkpoint.image
    run(lazyrestore("restore", image, "--criu", folder, "--lazy"), restore.mark.environment)
    options = ("--images-dir", folder, "-W", restore.folder, "--image", image)
    restore.start_daemon(lazyrestore("lazy-pages", *options))
    restore.begin_now()
    run(restore.criu("restore", folder, "-d", "--lazy-pages", "-o", "restore.log"))


def eager(restore: Restore) -> None:
    """`criu restore`."""
    run(restore.criu("restore", restore.checkpoint.folder, "-d", "-o", "restore.log"))


def theirs(restore: Restore, is_daemon_up: bool = False) -> None:
    """`criu lazy-pages`, and `criu restore --lazy-pages`."""
    folder = restore.checkpoint.folder
    restore.start_daemon(restore.criu("lazy-pages", folder, "-o", "lazy.log"))
    if is_daemon_up:
        restore.begin_now()
    run(restore.criu("restore", folder, "-d", "--lazy-pages", "-o", "restore.log"))


class Contained:
    """A restore of ours in a PID namespace of its own, with a board of its own."""

    def __init__(self, checkpoint: Checkpoint, **order: int) -> None:
        self._own = Path(tempfile.mkdtemp(prefix="lazyrestore-bench-"))
        shutil.copy(checkpoint.board_path, self._own)
        self.board = Board(self._own / "board")
        self.board.set(**order)
        script = f'mount --bind "{self._own}" "{checkpoint.home}" && exec "$@"'
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        self._begin_ns = time.time_ns()
        self._process = subprocess.Popen(
            [*unshare, "sh", *lazyrestore("restore", "--lazy", checkpoint.image)],
            cwd=ROOT,
            env=with_criu(checkpoint.criu),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def first_ms(self) -> float:
        def is_there() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"a restore of several ended with {self._process.returncode}")
            return bool(self.board["resumed_ns"])

        wait_until("it is restored", is_there)
        return (self.board["resumed_ns"] - self._begin_ns) / 1e6

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._own, ignore_errors=True)


def at_once(checkpoint: Checkpoint, copies: int, **order: int) -> tuple[list[float], int]:
    """Restore so many at once: after how long each ran, in order, and wrong pages of all."""
    found = []
    try:
        found = [Contained(checkpoint, **order) for _ in range(copies)]
        first = sorted(one.first_ms() for one in found)
        for one in found:
            one.board.wait_for("done")
        return first, sum(one.board["wrong"] for one in found)
    finally:
        for one in found:
            one.close()


def setting(data: Data, is_quick: bool) -> Checkpoint:
    """The checkpoint that all rows have; made when it is first asked for."""
    return Checkpoint(data, 256 if is_quick else 2048, find_criu())


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
