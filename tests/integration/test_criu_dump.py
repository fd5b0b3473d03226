"""Whole processes are dumped into an image; neither they nor the image are ever lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from criu_support import criu
from process_support import in_child
from tree_support import LIMIT_S, Tree, descendants, restore, running_tree

import lazyrestore
from lazyrestore import CriuError, ProcessError, ProcessTree

ROOT = Path(__file__).parents[2]


@pytest.fixture
def criu_path(tmp_path, monkeypatch) -> str:
    """CRIU; the logs of dumps that fail are kept where the test's files are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return criu()


@pytest.fixture
def tree(tmp_path, criu_path):
    with running_tree(tmp_path) as tree:
        yield tree


def left_in(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if ".tmp" in name]


# ---- What is dumped runs again -------------------------------------------------------------------


def test_what_was_dumped_ends_and_runs_again(tree, tmp_path, criu_path):
    image = tmp_path / "tree.lzr"
    report = lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), image)
    tree.has_ended()
    assert damage(image) == ()

    by_pid = {one.pid: one for one in report.processes}
    assert set(by_pid) == set(tree.pids)
    assert by_pid[tree.pid].threads == 2
    assert [one.ppid for one in report.processes] == [0, tree.pid, tree.pid]
    zombie, child = sorted(report.processes[1:], key=lambda one: one.bytes)
    assert (zombie.zombie, zombie.bytes, child.zombie) == (True, 0, False)
    assert report.frozen_us is not None
    assert 0 < report.frozen_us < report.seconds * 1e6
    # What parent and child have in common is stored once: half of 4 MiB is random.
    assert report.duplicate_bytes > 2 << 20

    folder = tmp_path / "criu"
    checkpoint_of(image).write_folder(str(folder))
    before = tree.counters()
    assert restore(criu_path, folder) == tree.pid
    tree.goes_on()
    assert all(now > then for now, then in zip(tree.counters()[:3], before, strict=False))
    assert sorted(descendants(tree.pid)) == sorted(tree.pids)


def test_leave_running(tree, tmp_path, criu_path):
    image = tmp_path / "tree.lzr"
    first = lazyrestore.dump(ProcessTree(tree.pid, leave_running=True, criu=criu_path), image)
    tree.goes_on()
    again = lazyrestore.dump(ProcessTree(tree.pid, leave_running=True, criu=criu_path), image)
    tree.goes_on()
    assert {one.pid for one in first.processes} == {one.pid for one in again.processes}
    assert checkpoint_of(image).root == tree.pid


def test_the_files_are_those_of_criu_s_own_dump(tmp_path, criu_path):
    """The pagemaps too, which it does not write when it sends its pages."""
    image, ours, theirs = tmp_path / "x.lzr", tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    process = subprocess.Popen(
        ["/bin/sleep", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        comm = Path(f"/proc/{process.pid}/comm")
        wait_for(lambda: comm.read_text() == "sleep\n" and state_of(process.pid) == "S")
        lazyrestore.dump(ProcessTree(process.pid, leave_running=True, criu=criu_path), image)
        checkpoint_of(image).write_folder(str(ours))
        command = [criu_path, "dump", "-t", str(process.pid), "-D", theirs, "-R", "-o", "dump.log"]
        subprocess.run(command, check=True, timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    not_kept = {"dump.log", "stats-dump"}
    assert set(os.listdir(ours)) == set(os.listdir(theirs)) - not_kept
    # What changes from one dump to the next: registers, times, the stack.
    changing = ("core-", "inventory", "timens", "pages-")
    same = [name for name in os.listdir(ours) if not name.startswith(changing)]
    assert f"pagemap-{process.pid}.img" in same
    assert [
        name for name in same if (ours / name).read_bytes() != (theirs / name).read_bytes()
    ] == []


def damage(image: Path) -> tuple[object, ...]:
    with lazyrestore.open(image) as opened:
        return opened.verify().damage


def checkpoint_of(image):
    from lazyrestore._criu.checkpoint import Checkpoint

    checkpoint = Checkpoint.of(lazyrestore.open(image))
    assert checkpoint is not None
    return checkpoint


# ---- Never lost ----------------------------------------------------------------------------------

# In a process of its own: what happens to it happens at an exact place.
_DUMP = """
import os, signal, sys
import lazyrestore
from lazyrestore import _outfile
from lazyrestore._criu import dumping, rpc, treeimage

pid, image, place, what = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

def before(module, name, number):
    real, calls = getattr(module, name), 0
    def wrapped(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == number and what == signal.SIGINT:
            os.killpg(0, what)  # as a terminal does
        elif calls == number:
            os.kill(os.getpid(), what)
        return real(*arguments, **named)
    setattr(module, name, wrapped)

match place:
    case "frozen":
        before(dumping.processes, "refuse_incomplete", 2)
    case "pages":
        before(treeimage.TreeImage, "add_pages", 10)
    case "files":
        before(treeimage.TreeImage, "add_rest", 1)
    case "rename":
        before(_outfile.OutputFile, "_rename", 1)
    case "renamed":
        before(_outfile, "_sync_folder", 1)

# As in a program that is no Python: CRIU must not inherit the end by a closed socket.
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
lazyrestore.dump(lazyrestore.ProcessTree(pid), image)
"""

PLACES = ["frozen", "pages", "files", "rename", "renamed"]


def run_dump(tree: Tree, image: Path, place: str, number: int, criu_path: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _DUMP, str(tree.pid), str(image), place, str(int(number))],
        env={**os.environ, "CRIU": criu_path, "PYTHONPATH": str(ROOT), "TMPDIR": str(image.parent)},
        capture_output=True,
        timeout=LIMIT_S,
        start_new_session=True,
    )
    return done.returncode


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_dump_loses_nothing(tree, tmp_path, criu_path, place):
    image = tmp_path / "tree.lzr"
    assert run_dump(tree, image, place, signal.SIGKILL, criu_path) == -signal.SIGKILL
    tree.goes_on()
    assert image.exists() == (place == "renamed")
    if image.exists():
        assert damage(image) == ()
    # The next one takes what the killed one left away, and is as if that had not been.
    image.unlink(missing_ok=True)
    lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), image)
    tree.runs_no_more()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_is_heard_until_the_last_step_begins(tree, tmp_path, criu_path, place):
    image = tmp_path / "tree.lzr"
    code = run_dump(tree, image, place, signal.SIGINT, criu_path)
    assert left_in(tmp_path) == []
    if place in ("frozen", "pages"):
        assert code == -signal.SIGINT
        tree.goes_on()
        assert not image.exists()
    else:
        assert code == 0
        tree.runs_no_more()
        assert damage(image) == ()


def test_the_processes_run_on_when_the_disk_is_full(tree, tmp_path, criu_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), disk / "tree.lzr")
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    tree.goes_on()


def test_the_processes_run_on_when_the_image_cannot_be_made(tree, tmp_path, criu_path):
    with pytest.raises(FileNotFoundError):
        lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "none" / "tree.lzr")
    tree.goes_on()


def test_the_processes_run_on_when_the_small_files_have_no_room(
    tree, tmp_path, criu_path, monkeypatch
):
    from lazyrestore._criu import dumping, smallfiles

    monkeypatch.setattr(dumping, "SmallFiles", lambda: smallfiles.SmallFiles(limit_bytes=2 * 4096))
    with pytest.raises(CriuError, match="No space left"):
        lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "tree.lzr")
    tree.goes_on()
    assert left_in(tmp_path) == []
    assert not (tmp_path / "tree.lzr").exists()


@in_child(LIMIT_S)
def test_the_processes_run_on_when_the_sockets_are_in_a_forked_child_too(tmp_path, criu_path):
    from lazyrestore._criu import treeimage

    forked = []

    def fail(*_: object) -> None:
        forked.append(os.fork())
        if not forked[-1]:
            signal.pause()
        raise MemoryError("for a test")

    treeimage.TreeImage.add_pages = fail  # in this child only
    with running_tree(tmp_path) as tree:
        try:
            with pytest.raises(MemoryError, match="for a test"):
                lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "tree.lzr")
            tree.goes_on()
        finally:
            os.kill(forked[0], signal.SIGKILL)
            os.waitpid(forked[0], 0)


def test_a_killed_criu_leaves_no_image(tree, tmp_path, criu_path, monkeypatch):
    """What it leaves of the processes is not in our hands: so it is no victim of the OOM killer."""
    from lazyrestore._criu import treeimage

    real, killed = treeimage.TreeImage.add_pages, []

    def add_pages(*arguments):
        if not killed:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            (pid,) = (int(one) for one in children if int(one) != tree.pid)
            killed.append(Path(f"/proc/{pid}/oom_score_adj").read_text())
            os.kill(pid, signal.SIGKILL)
        return real(*arguments)

    monkeypatch.setattr(treeimage.TreeImage, "add_pages", add_pages)
    with pytest.raises(CriuError, match=f"signal 9.*process {tree.pid}"):
        lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "tree.lzr")
    shell = "echo -1000 2>/dev/null >/proc/self/oom_score_adj; cat /proc/self/oom_score_adj"
    allowed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert killed == [allowed.stdout]
    assert left_in(tmp_path) == []
    assert not (tmp_path / "tree.lzr").exists()


def test_a_criu_that_is_killed_when_the_image_is_complete(tree, tmp_path, criu_path, monkeypatch):
    from lazyrestore._criu import dumping

    image = tmp_path / "tree.lzr"
    real = dumping.rpc.send_answer

    def send_answer(connection, success):
        if image.exists():
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            (pid,) = (int(one) for one in children if int(one) != tree.pid)
            os.kill(pid, signal.SIGKILL)
        real(connection, success)

    monkeypatch.setattr(dumping.rpc, "send_answer", send_answer)
    with pytest.raises(CriuError, match=f"image is complete, but .* process {tree.pid}"):
        lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), image)
    assert damage(image) == ()
    tree.goes_on()


def test_a_criu_that_does_not_ask(tree, tmp_path, criu_path, monkeypatch):
    """Nobody says that an image is there which has no processes in it."""
    from lazyrestore._criu import dumping

    monkeypatch.setattr(dumping, "_POST_DUMP", "something else")
    with pytest.raises(CriuError, match="did not ask"):
        lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "tree.lzr")
    assert left_in(tmp_path) == []
    assert not (tmp_path / "tree.lzr").exists()


def test_where_no_tmpfs_can_be_made(tree, tmp_path, criu_path, monkeypatch):
    from lazyrestore._criu import dumping, smallfiles

    monkeypatch.setattr(smallfiles, "_PLACES", ())  # so: where temporary files are
    monkeypatch.setattr(dumping, "SmallFiles", lambda: smallfiles.SmallFiles(detached=False))
    before = os.listdir(tmp_path)
    report = lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "tree.lzr")
    assert len(report.processes) == 3
    assert sorted([*before, "tree.lzr"]) == sorted(os.listdir(tmp_path))


# ---- Never zeros ---------------------------------------------------------------------------------

# A process whose memory somebody else fills: it has given its userfaultfd away, as those do that
# CRIU restores lazily. The 4 pages that are there have content, the others would come by a fault.
_SERVED = """
import ctypes, mmap, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
number = {'x86_64': 323}.get(os.uname().machine, 282)  # arm64 and whatever came after it
uffd = libc.syscall(number, os.O_CLOEXEC)
assert uffd >= 0, ctypes.get_errno()
def ioctl(number, data):
    assert libc.ioctl(uffd, ctypes.c_ulong(number), data) == 0, ctypes.get_errno()
ioctl(0xc018aa3f, struct.pack("QQQ", 0xaa, 0, 0))
memory = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[: 4 * 4096] = b"x" * 4 * 4096
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
ioctl(0xc020aa00, struct.pack("QQQQ", address, 64 * 4096, 1, 0))
end = socket.socket(fileno=int(sys.argv[1]))
socket.send_fds(end, [str(address).encode()], [uffd])
if len(sys.argv) < 3:
    os.close(uffd)
end.close()
while True:
    time.sleep(0.01)
"""


@contextlib.contextmanager
def served_process(*arguments: str):
    """(pid, userfaultfd) of a process of which pages are missing."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVED, str(theirs.fileno()), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    fds: list[int] = []
    try:
        ours.settimeout(LIMIT_S)
        _, fds, _, _ = socket.recv_fds(ours, 64, 1)
        assert ours.recv(1) == b""  # it has closed what it had to
        yield process, fds[0]
    finally:
        process.kill()
        process.wait()
        for fd in fds:
            os.close(fd)
        ours.close()


@pytest.mark.uffd
def test_one_that_is_being_lazily_restored_is_refused(tmp_path, criu_path):
    image = tmp_path / "served.lzr"
    with served_process() as (process, _):
        source = ProcessTree(process.pid, leave_running=True, criu=criu_path)
        with pytest.raises(ProcessError, match="being lazily restored") as caught:
            lazyrestore.dump(source, image)
        assert "wait until" in str(caught.value)
        assert process.poll() is None
        assert not image.exists()


@pytest.mark.uffd
def test_one_that_begins_to_be_lazily_restored_is_refused_when_it_is_frozen(
    tmp_path, criu_path, monkeypatch
):
    from lazyrestore._criu import dumping

    image = tmp_path / "served.lzr"
    real, states = dumping.processes.refuse_incomplete, []

    def refuse(pid: int) -> None:
        states.append(state_of(pid))
        if len(states) > 1:
            real(pid)

    monkeypatch.setattr(dumping.processes, "refuse_incomplete", refuse)
    with served_process() as (process, _):
        source = ProcessTree(process.pid, leave_running=True, criu=criu_path)
        with pytest.raises(ProcessError, match="being lazily restored"):
            lazyrestore.dump(source, image)
        assert states[1:] == ["t"]  # stopped by a tracer
        assert process.poll() is None
        assert not image.exists()
        assert state_of(process.pid) in "RS"


@pytest.mark.uffd
def test_one_that_was_lazily_restored_is_dumped(tmp_path, criu_path):
    with served_process() as (process, uffd):
        start, nbytes = registered(process.pid)
        unregister(uffd, start, nbytes)
        image = tmp_path / "served.lzr"
        source = ProcessTree(process.pid, leave_running=True, criu=criu_path)
        lazyrestore.dump(source, image)
        with lazyrestore.open(image) as opened:
            (region,) = (
                one for one in opened.regions if one.address <= start < one.address + one.length
            )
            offset = start - region.address
            assert opened.read(region.name, offset, 4 * 4096) == b"x" * 4 * 4096


@pytest.mark.uffd
def test_one_that_holds_a_userfaultfd_is_refused(tmp_path, criu_path):
    # What CRIU says, where the mappings are no longer registered.
    with served_process("keep") as (process, uffd):
        unregister(uffd, *registered(process.pid))
        source = ProcessTree(process.pid, leave_running=True, criu=criu_path)
        with pytest.raises(CriuError, match="userfaultfd"):
            lazyrestore.dump(source, tmp_path / "served.lzr")
        assert process.poll() is None


@pytest.mark.uffd
def test_one_that_is_restored_lazily_is_refused_until_all_is_there(tree, tmp_path, criu_path):
    image, folder = tmp_path / "tree.lzr", tmp_path / "criu"
    lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), image)
    tree.has_ended()
    checkpoint_of(image).write_lazy_folder(str(folder))
    with lazy_pages(folder, image) as pager:
        restore(criu_path, folder, "--lazy-pages")
        tree.goes_on()  # which it can, with some of its pages
        with pytest.raises(ProcessError, match="being lazily restored"):
            lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "again.lzr")
        assert not (tmp_path / "again.lzr").exists()
        pager.terminate()  # it brings the rest before it ends
        assert pager.wait(LIMIT_S) == 0
    tree.goes_on()
    lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "again.lzr")
    tree.has_ended()
    shutil.rmtree(folder)
    checkpoint_of(tmp_path / "again.lzr").write_folder(str(folder))
    restore(criu_path, folder)
    tree.goes_on()


@contextlib.contextmanager
def lazy_pages(folder: Path, image: Path):
    """A pager that brings what is touched, and nothing else until it ends."""
    arguments = ["--images-dir", folder, "--image", image, "--prefetch", "none"]
    pager = subprocess.Popen(
        [sys.executable, "-m", "lazyrestore", "lazy-pages", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for((folder / "lazy-pages.socket").exists)
        yield pager
    finally:
        pager.kill()
        pager.wait()


def wait_for(condition) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.uffd
def test_one_with_pages_that_could_not_be_loaded_is_refused(tmp_path, criu_path):
    with served_process() as (process, uffd):
        start, nbytes = registered(process.pid)
        try:
            fcntl.ioctl(uffd, 0xC020AA08, struct.pack("QQQq", start + 8 * 4096, 4096, 0, 0))
        except OSError:
            pytest.skip("UFFDIO_POISON needs Linux 6.6")
        unregister(uffd, start, nbytes)
        source = ProcessTree(process.pid, leave_running=True, criu=criu_path)
        with pytest.raises(CriuError, match="cannot be read"):
            lazyrestore.dump(source, tmp_path / "served.lzr")
        assert process.poll() is None
        assert not (tmp_path / "served.lzr").exists()


def registered(pid: int) -> tuple[int, int]:
    from lazyrestore.sources import _smaps

    with open(f"/proc/{pid}/smaps", "rb") as file:
        (found,) = (one for one in _smaps.parse(file) if one.may_wait_for_pager)
    return found.start, found.length


def unregister(uffd: int, start: int, nbytes: int) -> None:
    fcntl.ioctl(uffd, 0x8010AA01, struct.pack("QQ", start, nbytes))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# ---- Refused -------------------------------------------------------------------------------------


def test_a_terminal_needs_an_option(tmp_path, criu_path):
    pid, terminal = pty.fork()
    if pid == 0:
        os.closerange(3, 1024)  # a file that is locked would need an option too
        os.execv("/bin/sleep", ["sleep", "1000"])
    try:
        source = ProcessTree(pid, leave_running=True, criu=criu_path)
        with pytest.raises(CriuError, match="--criu-opt=--shell-job"):
            lazyrestore.dump(source, tmp_path / "sleep.lzr")
        source = ProcessTree(
            pid, leave_running=True, criu=criu_path, criu_options=["--shell-job", "-v4"]
        )
        report = lazyrestore.dump(source, tmp_path / "sleep.lzr")
        assert [one.comm for one in report.processes] == ["sleep"]
        assert state_of(pid) in "RS"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_what_cannot_be_the_root_of_a_tree(tmp_path, criu_path, tree):
    def refused(pid: int, match: str) -> None:
        with pytest.raises(ProcessError, match=match):
            lazyrestore.dump(ProcessTree(pid, criu=criu_path), tmp_path / "x.lzr")

    refused(os.getpid(), "is this one")
    refused(os.getppid(), "above this one")
    refused(2, "kernel thread")
    refused((1 << 22) + 1, "there is no process")
    (thread,) = (int(one) for one in os.listdir(f"/proc/{tree.pid}/task") if int(one) != tree.pid)
    refused(thread, f"thread of process {tree.pid}")
    zombie = min(pid for pid in tree.pids if state_of(pid) == "Z")
    refused(zombie, "has ended")
    tree.goes_on()


def test_one_that_is_traced(tmp_path, criu_path, tree):
    libc = ctypes.CDLL(None, use_errno=True)
    PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
    assert libc.ptrace(PTRACE_SEIZE, tree.pid, None, None) == 0
    try:
        with pytest.raises(ProcessError, match=f"{os.getpid()}.* traces"):
            lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "x.lzr")
    finally:
        libc.ptrace(PTRACE_DETACH, tree.pid, None, None)
    tree.goes_on()


@pytest.mark.parametrize("setting", ["lazy-pages", "prev-images-dir /tmp"])
def test_a_setting_that_keeps_pages_away_is_noticed(
    tree, tmp_path, criu_path, monkeypatch, setting
):
    (tmp_path / "criu.conf").write_text(f"{setting}\n")
    monkeypatch.setenv("CRIU_CONFIG_FILE", str(tmp_path / "criu.conf"))
    with pytest.raises(CriuError, match="CRIU_CONFIG_FILE"):
        lazyrestore.dump(ProcessTree(tree.pid, criu=criu_path), tmp_path / "tree.lzr")
    tree.goes_on()
    assert not (tmp_path / "tree.lzr").exists()


# ---- Large files ---------------------------------------------------------------------------------

_REMOVED = """
import hashlib, os, sys, time
file = open(sys.argv[1] + ".removed", "w+b")
file.write(os.urandom(6 << 20))
file.flush()
os.unlink(file.name)
while True:
    file.seek(0)
    found = hashlib.blake2b(file.read()).hexdigest()
    with open(sys.argv[1] + ".new", "w") as out:
        out.write(found)
    os.rename(out.name, sys.argv[1])
    time.sleep(0.01)
"""


def test_a_large_removed_file_is_a_region(tmp_path, criu_path):
    status, image, folder = tmp_path / "status", tmp_path / "removed.lzr", tmp_path / "criu"
    process = subprocess.Popen(
        [sys.executable, "-c", _REMOVED, str(status)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(status.exists)
        before = status.read_text()
        source = ProcessTree(process.pid, criu=criu_path, criu_options=["--ghost-limit=16M"])
        report = lazyrestore.dump(source, image)
        process.wait(LIMIT_S)
        (name,) = (one.name for one in report.regions if one.name.startswith("file/"))
        assert name.startswith("file/ghost-file-")
        checkpoint_of(image).write_folder(str(folder))
        status.unlink()
        restore(criu_path, folder)
        wait_for(status.exists)
        assert status.read_text() == before
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
