"""`restore --lazy` of processes: they run again, and where they do not, nothing is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cli_support
import pytest
from criu_support import criu
from tree_support import LIMIT_S, Tree, running_tree, wait_gone

import lazyrestore
from lazyrestore import ProcessTree

COMMAND = [sys.executable, "-m", "lazyrestore"]


class Dumped:
    """An image of a tree that has ended, and a folder for all that its restores leave.

    Attributes:
        image: path.
        tree: what it was.
        temporary: TMPDIR of the commands.
        criu: path.
    """

    def __init__(self, image: Path, tree: Tree, temporary: Path, path: str) -> None:
        self.image, self.tree, self.temporary, self.criu = image, tree, temporary, path

    @property
    def environment(self) -> dict[str, str]:
        return cli_support.environment({"TMPDIR": str(self.temporary), "CRIU": self.criu})

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """`restore --lazy`, in a process group of its own."""
        return subprocess.Popen(
            [*COMMAND, "restore", "--lazy", str(self.image), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            process_group=0,
        )

    def run(self, *arguments: object) -> cli_support.Result:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=LIMIT_S)
        return cli_support.Result(process.returncode, out, err)

    def forget(self) -> None:
        """Nothing of it runs; its counters are zero, and it has complained of nothing."""
        self.kill()
        for pid in self.tree.pids:
            wait_gone(pid)
        (self.tree.status.parent / "errors").write_bytes(b"")
        self.tree.status.write_bytes(bytes(self.tree.status.stat().st_size))

    def nothing_left(self, logs: int = 0) -> None:
        """No process of the tree, no daemon, no folder; but logs of CRIU's that say so."""
        for pid in self.tree.pids:
            wait_gone(pid)
        until = time.monotonic() + LIMIT_S
        while found := [*self.of_restores(), *self.folders()]:
            assert time.monotonic() < until, found
            time.sleep(0.01)
        assert len(os.listdir(self.temporary)) == logs, os.listdir(self.temporary)

    def folders(self) -> list[str]:
        return [name for name in os.listdir(self.temporary) if not name.endswith(".log")]

    def of_restores(self) -> list[str]:
        """Processes that have the image, or the folder for temporary files, in their arguments."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if os.fsencode(self.image) in line or os.fsencode(self.temporary) in line:
                    found.append(f"{pid}: {line!r}")
        return found

    def kill_tree(self) -> None:
        for pid in self.tree.pids:
            with contextlib.suppress(OSError):
                if os.getsid(pid) in self.tree.pids:  # what it is, is in memory that may be missing
                    os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        self.kill_tree()
        for line in self.of_restores():
            with contextlib.suppress(OSError):
                os.kill(int(line.partition(":")[0]), signal.SIGKILL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    path, folder = criu(), tmp_path_factory.mktemp("tree")
    temporary = folder / "tmp"
    temporary.mkdir()
    with running_tree(folder) as tree:
        lazyrestore.dump(ProcessTree(tree.pid, criu=path), folder / "tree.lzr")
        tree.has_ended()
        yield Dumped(folder / "tree.lzr", tree, temporary, path)


@pytest.fixture
def dumped(made: Dumped) -> Iterator[Dumped]:
    """The image; nothing of its tree runs before and after."""
    made.forget()
    for name in os.listdir(made.temporary):
        if name.endswith(".log"):
            (made.temporary / name).unlink()
    try:
        yield made
    finally:
        made.forget()


class Stopping:
    """A script that CRIU runs when all tasks are there and none runs, and that waits to be told.

    Attributes:
        option: for the command line.
    """

    def __init__(self, folder: Path) -> None:
        self._reached, self._go = folder / "reached", folder / "go"
        script = folder / "action"
        script.write_text(
            "#!/bin/sh\n"
            '[ "$CRTOOLS_SCRIPT_ACTION" = post-restore ] || exit 0\n'
            f": > {self._reached}\n"
            f"while [ ! -e {self._go} ]; do sleep 0.05; done\n"
            f"exit $(cat {self._go})\n"
        )
        script.chmod(0o755)
        self.option = f"--criu-opt=--action-script={script}"

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + LIMIT_S
        while not self._reached.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)

    def go(self, code: int) -> None:
        temporary = self._go.with_suffix(".new")
        temporary.write_text(str(code))
        temporary.rename(self._go)


@pytest.fixture
def stopping(tmp_path: Path) -> Stopping:
    return Stopping(tmp_path)


# ---- They run again ------------------------------------------------------------------------------


def test_detached(dumped: Dumped, tmp_path: Path) -> None:
    """The command ends when they run, and says what does; they go on where they were"""
    pidfile = tmp_path / "pid"
    report = json.loads(dumped.run("-d", "--json", "--pidfile", pidfile).ok().out)
    assert report["pid"] == int(pidfile.read_text()) == dumped.tree.pid
    assert {task["pid"] for task in report["tasks"]} == set(dumped.tree.pids)
    assert report["lazy_bytes"] > 4 << 20
    assert 0 < report["ready_us"] < report["run_us"]
    assert os.listdir(dumped.temporary) == []  # while they run
    dumped.tree.goes_on()
    stat = Path(f"/proc/{dumped.tree.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[1]) != os.getpid()
    assert os.getsid(report["daemon_pid"]) == report["daemon_pid"]
    dumped.kill_tree()
    dumped.nothing_left()


def test_what_is_said_of_it(dumped: Dumped) -> None:
    out = dumped.run("-d").ok().out
    assert f"runs as process {dumped.tree.pid}, with 2 below it, after" in out
    assert "of memory come as they are touched" in out
    dumped.tree.goes_on()
    dumped.forget()
    assert dumped.run("-d", "-q").ok().out == ""
    dumped.tree.goes_on()


def test_nobody_waits_for_the_daemon(dumped: Dumped) -> None:
    """Output that is read to its end, as a shell's $(...) does, ends with the command"""
    process = dumped.start("-d", "--prefetch", "none")
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (0, b""), (out, err)
    assert dumped.of_restores(), "the daemon has all that is missing"
    dumped.tree.goes_on()


def test_in_front_it_ends_as_they_do(dumped: Dumped, tmp_path: Path) -> None:
    """Signals are passed on, and the exit code is the first process's"""
    pidfile = tmp_path / "pid"
    process = dumped.start("--pidfile", pidfile)
    try:
        assert process.stdout is not None
        assert b"runs as process" in process.stdout.readline()
        dumped.tree.goes_on()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    dumped.kill_tree()  # those below it
    dumped.nothing_left()


def test_a_working_set_is_recorded_and_used(dumped: Dumped, tmp_path: Path) -> None:
    working_set = tmp_path / "tree.ws"
    dumped.run("-d", "-q", "--prefetch", "none", "--record", working_set).ok()
    dumped.tree.goes_on()
    dumped.kill_tree()
    dumped.nothing_left()
    assert lazyrestore.WorkingSet.load(working_set).clusters
    dumped.run("-d", "-q", "--working-set", working_set).ok()
    dumped.tree.goes_on()


def test_several_times_at_once(dumped: Dumped, tmp_path: Path) -> None:
    """In namespaces of their own, where each has the numbers that it was dumped with"""
    own = ["unshare", "-p", "-f", "--mount-proc"]
    for _ in range(2):
        process = subprocess.run(
            [*own, *COMMAND, "restore", "--lazy", str(dumped.image), "-d", "-q"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dumped.environment,
            timeout=LIMIT_S,
        )
        # The command was the namespace's first process: all else in it ends with it.
        assert (process.returncode, process.stderr) == (0, b"")
    dumped.nothing_left()


# ---- They do not ---------------------------------------------------------------------------------


def test_a_number_is_taken(dumped: Dumped) -> None:
    """What has the number is left alone"""
    dumped.run("-d", "-q").ok()
    dumped.tree.goes_on()
    result = dumped.run("-d")
    result.fails(5, "its number is taken", "unshare -p -f --mount-proc")
    dumped.tree.goes_on()
    (log,) = os.listdir(dumped.temporary)
    assert str(dumped.temporary / log) in result.err
    dumped.kill_tree()
    dumped.nothing_left(logs=1)


def test_criu_fails_in_the_middle(dumped: Dumped, stopping: Stopping, tmp_path: Path) -> None:
    process = dumped.start(stopping.option, "-d", "--pidfile", tmp_path / "pid")
    stopping.wait(process)
    stopping.go(3)
    _, err = process.communicate(timeout=LIMIT_S)
    cli_support.Result(process.returncode, b"", err).fails(5, "CRIU's restore failed", "its log is")
    dumped.nothing_left(logs=1)
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_command_is_ended_in_the_middle(
    dumped: Dumped, stopping: Stopping, tmp_path: Path, number: int
) -> None:
    process = dumped.start(stopping.option, "--pidfile", tmp_path / "pid")
    stopping.wait(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT_S)
    if number == signal.SIGKILL:
        assert (process.returncode, err) == (-signal.SIGKILL, b"")
    else:
        result = cli_support.Result(process.returncode, b"", err)
        result.fails(128 + number, "was given up: nothing is left of it")
        assert sorted(os.listdir(tmp_path)) == ["action", "reached"]  # and no pidfile
    dumped.nothing_left()


def test_the_whole_group_is_killed_in_the_middle(dumped: Dumped, stopping: Stopping) -> None:
    """The command and CRIU at once: the daemon ends what they leave"""
    process = dumped.start(stopping.option)
    stopping.wait(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    dumped.nothing_left()


def test_criu_is_killed_in_the_middle(dumped: Dumped, stopping: Stopping) -> None:
    process = dumped.start(stopping.option)
    stopping.wait(process)
    os.kill(child_with(process.pid, b"--lazy-pages"), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)
    cli_support.Result(process.returncode, b"", err).fails(5, "signal 9 ended it")
    dumped.nothing_left(logs=1)


def test_the_daemon_is_killed_in_the_middle(dumped: Dumped, stopping: Stopping) -> None:
    process = dumped.start(stopping.option)
    stopping.wait(process)
    os.kill(child_with(process.pid, b"lazyrestore"), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)
    cli_support.Result(process.returncode, b"", err).fails(5, "the daemon", "signal 9")
    dumped.nothing_left()


def child_with(pid: int, text: bytes) -> int:
    """The child of a process that has something in its arguments, and no folder in them else"""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        line = Path(f"/proc/{child}/cmdline").read_bytes()
        if text in line and (b"--lazy-pages" in line) == (text == b"--lazy-pages"):
            return child
    raise AssertionError("there is no such child")


def test_the_image_is_damaged(dumped: Dumped, tmp_path: Path) -> None:
    """In what it says of the processes: that is seen before anything is started"""
    data = bytearray(dumped.image.read_bytes())
    footer = len(data) - 192
    offset = int.from_bytes(data[footer + 160 : footer + 168], "little")
    data[offset + 20] ^= 1
    broken = tmp_path / "broken.lzr"
    broken.write_bytes(data)
    result = cli_support.run("restore", "--lazy", broken, "-d", env=dumped.environment)
    result.fails(3, "broken.lzr")
    dumped.nothing_left()


def test_criu_is_missing_or_too_old(dumped: Dumped, tmp_path: Path) -> None:
    dumped.run("--criu-bin", tmp_path / "gone").fails(5, "--criu-bin", "is not there")
    old = tmp_path / "old"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Version: 3.16" && exit\n'
        'echo "Error (criu/vdso.c:1): vdso: Unexpected rt vDSO area bounds" > "$4/$6"; exit 1\n'
    )
    old.chmod(0o755)
    dumped.run("--criu-bin", old).fails(5, "vDSO area bounds", "need CRIU 4.1", "fetch-criu.sh")
    dumped.nothing_left(logs=1)


def test_a_pidfile_that_cannot_be_written(dumped: Dumped, tmp_path: Path) -> None:
    dumped.run("-d", "--pidfile", tmp_path / "no" / "pid").fails(1, "No such file or directory")
    dumped.nothing_left()


def test_children_that_were_there_before_are_left_alone(dumped: Dumped) -> None:
    """A shell that becomes the command by exec leaves it its jobs"""
    script = (
        f"sleep 600 & exec {' '.join(COMMAND)} restore --lazy {dumped.image} --criu-opt=--bogus"
    )
    process = subprocess.Popen(
        ["sh", "-c", script + "; echo $!"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dumped.environment,
        start_new_session=True,
    )
    try:
        process.wait(LIMIT_S)
        assert process.returncode == 5
        sleeper = [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if os.path.exists(f"/proc/{pid}") and _session(pid) == process.pid
        ]
        assert len(sleeper) == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    dumped.nothing_left(logs=1)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
