"""dump(ProcessMemory(...)): a living process into an image, and every way in which that fails."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from process_support import (
    NOBODY,
    NONE,
    PAGE,
    Memory,
    in_child,
    pattern,
    target,
)
from restore_support import PACKAGE_HOME

import lazyrestore
from lazyrestore import ProcessError, ProcessMemory

STATE_PROGRAM = """
import hashlib, json, mmap, ctypes, sys
private = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 24 << 20, 8192):
    private[page:page + 24] = b"page %19d" % page
untouched = mmap.mmap(-1, 48 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, 4 << 20)
shared[1 << 20:2 << 20] = bytes(range(256)) * 4096
objects = [str(number) * 3 for number in range(50000)]
def place(m):
    start = ctypes.addressof(ctypes.c_char.from_buffer(m))
    return [start, start + len(m), hashlib.sha256(m).hexdigest()]
def state():
    return {"private": place(private), "shared": place(shared),
            "objects": hashlib.sha256("".join(objects).encode()).hexdigest()}
print(json.dumps(state()), flush=True)
for line in sys.stdin:
    print(json.dumps(state()), flush=True)
"""


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_HOME)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], text: str = "") -> dict[str, object]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()
    answer: dict[str, object] = json.loads(process.stdout.readline())
    return answer


def content(path: Path, start: int, end: int) -> bytes:
    """What an image has of a range of addresses: a mapping may be part of a larger one."""
    with lazyrestore.open(path) as image:
        for region in image.regions:
            if region.address <= start and end <= region.address + region.length:
                return image.read(region.name, start - region.address, end - start)
    raise AssertionError(f"no region has {start:x}-{end:x}")


# ---- A dump ------------------------------------------------------------------------------------


@in_child()
def test_a_program_is_dumped_and_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "state.lzr"
    with program(STATE_PROGRAM) as process:
        assert process.stdout is not None
        before = json.loads(process.stdout.readline())
        report = lazyrestore.dump(ProcessMemory(process.pid), path)
        assert ask(process) == before, "its memory changed"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    for name in ("private", "shared"):
        start, end, digest = before[name]
        assert hashlib.sha256(content(path, start, end)).hexdigest() == digest
    assert report.frozen_us is not None
    assert 0 < report.frozen_us < report.seconds * 1e6
    for region in report.regions:
        assert region.name == f"{region.address:x}-{region.address + region.length:x}"
    shared = [region for region in report.regions if region.shared]
    assert any(region.length == 4 << 20 for region in shared)
    assert report.hole_bytes >= 48 << 20
    assert "[vvar]" in " ".join(skipped.name for skipped in report.skipped)
    assert report.logical_bytes == sum(region.length for region in report.regions)
    with lazyrestore.open(path) as image:
        assert image.info.source.startswith(f"process {process.pid} (")
    assert list(tmp_path.iterdir()) == [path]


@in_child()
def test_ranges_become_regions_in_the_order_given(tmp_path: Path) -> None:
    first, second = Memory(40 * PAGE), Memory(200 * PAGE)
    first.write(0, pattern(40 * PAGE))
    second.write(100 * PAGE, pattern(50 * PAGE, 1))
    second.protect(110 * PAGE, 4 * PAGE, NONE)
    path = tmp_path / "state.lzr"
    with target() as process:
        report = lazyrestore.dump(ProcessMemory(process.pid, [second.range, first.range]), path)
        process.expect_running()
    assert [region.name for region in report.regions] == [second.name, first.name]
    assert report.hole_bytes == 150 * PAGE
    assert report.skipped == ()
    with lazyrestore.open(path) as image:
        assert image.read(first.name) == pattern(40 * PAGE)
        expected = bytes(100 * PAGE) + pattern(50 * PAGE, 1) + bytes(50 * PAGE)
        assert image.read(second.name) == expected


@in_child()
def test_two_dumps_of_a_stopped_process_are_the_same(tmp_path: Path) -> None:
    with target() as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        source = ProcessMemory(process.pid)
        first = lazyrestore.dump(source, tmp_path / "1.lzr")
        assert process.status()["State"].startswith("T")
        second = lazyrestore.dump(source, tmp_path / "2.lzr", threads=1, level=1)
        process.expect_still()
        os.kill(process.pid, signal.SIGCONT)
        process.expect_running()
    assert first.digest == second.digest
    assert first.skipped == second.skipped


@in_child()
def test_64_gib_that_were_never_touched_cost_nothing(tmp_path: Path) -> None:
    memory = Memory(64 << 30)
    memory.write(63 << 30, b"there")
    path = tmp_path / "state.lzr"
    with target() as process:
        before = process.status_bytes("VmRSS")
        report = lazyrestore.dump(ProcessMemory(process.pid, [memory.range]), path)
        assert process.status_bytes("VmRSS") < before + (1 << 20)
    assert report.hole_bytes == (64 << 30) - PAGE
    assert report.stored_bytes < 16384
    with lazyrestore.open(path) as image:
        assert image.read(memory.name, 63 << 30, 6) == b"there\0"


# ---- Failures on the way -----------------------------------------------------------------------


def big_memory() -> Memory:
    """More than the writer takes before it has to write."""
    memory = Memory(256 << 20)
    block = os.urandom(1 << 20)
    for offset in range(0, 256 << 20, 1 << 20):
        memory.write(offset, block)
        memory.write(offset, offset.to_bytes(8, "little"))
    return memory


@in_child()
def test_a_target_that_ends_leaves_the_old_image(tmp_path: Path) -> None:
    memory = big_memory()
    path = tmp_path / "state.lzr"
    path.write_bytes(b"old")
    with target() as process:

        def kill(done: int, total: int | None) -> None:
            with suppress(ProcessLookupError):
                process.kill_and_wait_until_gone()

        with pytest.raises(ProcessError, match=f"process {process.pid} ended while") as caught:
            lazyrestore.dump(ProcessMemory(process.pid, [memory.range]), path, progress=kill)
    assert caught.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@in_child()
def test_a_dump_that_fails_lets_go_and_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    memory = big_memory()
    with target() as process:

        def fail(done: int, total: int | None) -> None:
            process.expect_still()
            raise error

        with pytest.raises(error):
            lazyrestore.dump(
                ProcessMemory(process.pid, [memory.range]), tmp_path / "x.lzr", progress=fail
            )
        process.expect_running()
    assert list(tmp_path.iterdir()) == []


@in_child()
def test_an_image_that_grows_too_large_lets_go(tmp_path: Path) -> None:
    memory = big_memory()
    with target() as process:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, 256 << 10))
        with pytest.raises(OSError, match="File too large"):
            lazyrestore.dump(ProcessMemory(process.pid), tmp_path / "x.lzr")
        process.expect_running()
    assert memory.start
    assert list(tmp_path.iterdir()) == []


@in_child()
def test_a_killed_dumper_lets_go(tmp_path: Path) -> None:
    memory = big_memory()
    path = tmp_path / "state.lzr"
    path.write_bytes(b"old")
    with target() as process:
        for _ in range(3):
            read_fd, write_fd = os.pipe()
            dumper = os.fork()
            if dumper == 0:

                def hang(done: int, total: int | None, write_fd: int = write_fd) -> None:
                    os.write(write_fd, b"x")
                    time.sleep(1000)

                lazyrestore.dump(ProcessMemory(process.pid, [memory.range]), path, progress=hang)
                os._exit(1)
            assert os.read(read_fd, 1) == b"x"
            process.expect_still()
            os.kill(dumper, signal.SIGKILL)
            os.waitpid(dumper, 0)
            process.expect_running()
    assert path.read_bytes() == b"old"


# ---- What cannot be dumped ---------------------------------------------------------------------


def refusal(pid: int, tmp_path: Path) -> str:
    with pytest.raises(ProcessError) as caught:
        lazyrestore.dump(ProcessMemory(pid, timeout=0.5), tmp_path / "none.lzr")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
    message = str(caught.value)
    assert "\n" not in message
    return message


@in_child()
def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    message = refusal(pid, tmp_path)
    assert message.startswith(f"process {pid} (")
    assert "has ended" in message
    os.waitpid(pid, 0)
    assert refusal(pid, tmp_path).startswith(f"there is no process {pid}: ")


@in_child()
def test_this_process(tmp_path: Path) -> None:
    message = refusal(os.getpid(), tmp_path)
    assert message.startswith(f"process {os.getpid()} is this one")
    assert "dump a buffer" in message


@in_child()
def test_a_thread(tmp_path: Path) -> None:
    with program(
        "import threading, time\n"
        "threading.Thread(target=lambda: print(threading.get_native_id(), flush=True)"
        " or time.sleep(100)).start()"
    ) as process:
        assert process.stdout is not None
        tid = int(process.stdout.readline())
        message = refusal(tid, tmp_path)
        assert message == f"{tid} is a thread of process {process.pid}: give that number"


@in_child()
def test_a_kernel_thread(tmp_path: Path) -> None:
    with suppress(OSError):
        status = Path("/proc/2/status").read_text()
        if "Kthread:\t1" in status or "kthreadd" in status:
            assert "is a kernel thread" in refusal(2, tmp_path)
            return
    pytest.skip("no kernel thread is to be seen here")


@in_child()
def test_a_traced_process_names_its_tracer(tmp_path: Path) -> None:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    with target() as process:
        read_fd, write_fd = os.pipe()
        tracer = os.fork()
        if tracer == 0:
            assert ptrace(0x4206, process.pid, None, None) == 0  # PTRACE_SEIZE
            os.write(write_fd, b"x")
            time.sleep(1000)
        os.read(read_fd, 1)
        message = refusal(process.pid, tmp_path)
        assert message.startswith(f"not allowed to read process {process.pid} (")
        assert f"process {tracer} (" in message
        assert "traces it already" in message
        process.expect_running()
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)
        lazyrestore.dump(ProcessMemory(process.pid), tmp_path / "now.lzr")


@pytest.mark.root
@in_child()
def test_a_process_of_somebody_else(tmp_path: Path) -> None:
    own = Memory(4 * PAGE)
    own.write(0, pattern(2 * PAGE))
    # All that is imported when it is used has to be there before root's home cannot be read.
    with target() as process:
        lazyrestore.dump(ProcessMemory(process.pid, [own.range]), tmp_path / "x.lzr")
    with lazyrestore.open(tmp_path / "x.lzr") as image:
        image.read(own.name)
    (tmp_path / "x.lzr").unlink()
    folder = Path(tempfile.mkdtemp())  # tmp_path is for its owner alone
    os.chown(folder, NOBODY, NOBODY)

    def become_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which setuid took

    with target() as roots, target(become_nobody) as nobodys:
        child = os.fork()
        if child == 0:
            try:
                become_nobody()
                message = refusal(roots.pid, folder)
                assert f"belongs to user 0, this is user {NOBODY}" in message
                assert "be that user or root" in message
                path = folder / "own.lzr"
                report = lazyrestore.dump(ProcessMemory(nobodys.pid, [own.range]), path)
                assert report.hole_bytes == 2 * PAGE
                with lazyrestore.open(path) as image:
                    assert image.read(own.name) == pattern(2 * PAGE) + bytes(2 * PAGE)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        roots.expect_running()
        nobodys.expect_running()
    (folder / "own.lzr").unlink(missing_ok=True)
    folder.rmdir()
    assert status == 0


@in_child()
def test_a_thread_that_cannot_be_stopped_is_named(tmp_path: Path) -> None:
    fifo = tmp_path.parent / "fifo"
    os.mkfifo(fifo)
    # The child is made by vfork, and waits to open the fifo.
    with program(
        "import os\n"
        f"opens = (os.POSIX_SPAWN_OPEN, 0, {str(fifo)!r}, os.O_RDONLY, 0)\n"
        "os.posix_spawn('/bin/true', ['true'], {}, file_actions=[opens])\n"
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        # Without a child it may be in that state for a moment, to read a page of its program.
        while not children.read_text() or "State:\tD" not in status.read_text():
            time.sleep(0.001)
        message = refusal(process.pid, tmp_path)
        assert "could not be stopped within 0.5 s" in message
        assert f"thread {process.pid} (" in message
        assert "vfork" in message
        fifo.write_text("")  # the child goes on, and so does its parent
        assert process.wait(60) == 0


RESTORING_PROGRAM = """
import sys, lazyrestore
with lazyrestore.restore(sys.argv[1], lazy=True, prefetch="none") as session:
    region = session["memory"]
    region[5 * 65536]
    print(0, flush=True)
    for line in sys.stdin:
        region.populate()
        print(0, flush=True)
"""


@pytest.mark.uffd
@in_child()
def test_a_process_that_is_being_restored_itself(tmp_path: Path) -> None:
    data = pattern(1 << 20)
    inner, outer = tmp_path / "inner.lzr", tmp_path / "outer.lzr"
    lazyrestore.dump(data, inner)
    code = RESTORING_PROGRAM.replace("sys.argv[1]", repr(str(inner)))
    with program(code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        with pytest.raises(ProcessError, match=r"itself being lazily restored.*wait until"):
            lazyrestore.dump(ProcessMemory(process.pid), outer)
        assert not outer.exists()
        ask(process)
        report = lazyrestore.dump(ProcessMemory(process.pid), outer)
        process.kill()
    with lazyrestore.open(outer) as image:
        assert any(
            data in image.read(region.name)
            for region in report.regions
            if region.length >= len(data) and region.length < 2 * len(data)
        )
