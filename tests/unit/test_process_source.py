"""ProcessMemory: what it takes, how mappings are told apart, and what reads of them give."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

import pytest
from process_support import (
    ANONYMOUS,
    EXECUTE,
    NONE,
    PAGE,
    PRIVATE,
    READ,
    SHARED,
    WRITE,
    Memory,
    Recorder,
    in_child,
    pattern,
    record,
    target,
)

from lazyrestore.errors import ProcessError
from lazyrestore.sources import ProcessMemory, _smaps

SMAPS = b"""\
55e0c0a00000-55e0c0a02000 r-xp 00001000 fe:01 1234                       /usr/bin/a b
Size:                  8 kB
VmFlags: rd ex mr mw me sd
55e0c1000000-55e0c1021000 rw-p 00000000 00:00 0                          [heap]
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000001000 ---p 00000000 00:00 0
VmFlags: mr mw me sd
7f0000001000-7f0000003000 rw-s 00002000 00:01 77                         /dev/zero (deleted)
VmFlags: rd wr sh mr mw me ms sd
7f0000003000-7f0000004000 rw-s 00000000 00:01 78                         /SYSV0000002a (deleted)
VmFlags: rd wr sh
7f0000004000-7f0000005000 r--s 00000000 00:01 79                         /memfd:x\\012y (deleted)
VmFlags: rd sh
7f0000005000-7f0000006000 rw-s 00000000 fe:01 80                         /var/lib/data
VmFlags: rd wr sh
7f0000006000-7f0000007000 rw-s 00000000 00:05 81                         /dev/card0
VmFlags: rd wr sh io pf de dd
7f0000007000-7f0000008000 rw-p 00000000 00:00 0                          [anon:cache]
VmFlags: rd wr um
7ffc00000000-7ffc00004000 r--p 00000000 00:00 0                          [vvar]
VmFlags: rd mr pf io de dd sd
7ffc00004000-7ffc00006000 r-xp 00000000 00:00 0                          [vdso]
VmFlags: rd ex mr mw me de sd
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
"""


def parsed() -> list[_smaps.Mapping]:
    return list(_smaps.parse(SMAPS.splitlines(keepends=True)))


def test_smaps_is_read_field_by_field() -> None:
    mappings = parsed()
    assert len(mappings) == 12
    first = mappings[0]
    assert (first.start, first.end) == (0x55E0C0A00000, 0x55E0C0A02000)
    assert (first.permissions, first.offset, first.inode) == ("r-xp", 0x1000, 1234)
    assert first.path == "/usr/bin/a b"
    assert first.flags == {"rd", "ex", "mr", "mw", "me", "sd"}
    assert first.protection == 5
    assert mappings[5].path == "/memfd:x\ny (deleted)"
    assert mappings[2].label == "7f0000000000-7f0000001000"


def test_a_line_that_is_not_smaps_is_refused() -> None:
    with pytest.raises(ValueError, match="not a line"):
        list(_smaps.parse([b"deadbeef what is this\n"]))


def test_what_a_dump_of_everything_takes_and_skips() -> None:
    reasons = {mapping.path or "guard": mapping.skip_reason() for mapping in parsed()}
    taken = {name for name, reason in reasons.items() if reason is None}
    assert taken == {
        "/usr/bin/a b",
        "[heap]",
        "/dev/zero (deleted)",
        "/SYSV0000002a (deleted)",
        "/memfd:x\ny (deleted)",
        "[anon:cache]",
        "[vdso]",
    }
    assert "no read permission" in str(reasons["guard"])
    assert "shared file mapping" in str(reasons["/var/lib/data"])
    assert "device memory" in str(reasons["/dev/card0"])
    assert "kernel" in str(reasons["[vvar]"])
    assert "kernel" in str(reasons["[vsyscall]"])


def test_only_anonymous_private_memory_is_zero_where_it_is_absent() -> None:
    anonymous = {mapping.path for mapping in parsed() if mapping.is_private_anonymous}
    assert anonymous == {"[heap]", "", "[anon:cache]"}
    assert [m.path for m in parsed() if m.may_wait_for_pager] == ["[anon:cache]"]


# ---- What cannot be asked for ------------------------------------------------------------------


@pytest.mark.parametrize("pid", [0, -1, 1 << 31, True, "12", 1.0, None])
def test_a_bad_pid_is_refused(pid: object) -> None:
    with pytest.raises(ValueError, match="pid"):
        ProcessMemory(pid)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([], "no range"),
        ([(PAGE, PAGE)], "empty or inverted"),
        ([(2 * PAGE, PAGE)], "2000-1000 is empty or inverted"),
        ([(1, PAGE)], "page boundaries.*0-1000 is"),
        ([(0, PAGE + 1)], "page boundaries.*0-2000 is"),
        ([(-PAGE, PAGE)], "64 bits"),
        ([(0, (1 << 64) + PAGE)], "64 bits"),
        ([(0, PAGE), (PAGE, 2 * PAGE), (0, PAGE)], "twice"),
    ],
)
def test_a_bad_range_is_refused(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessMemory(os.getpid(), ranges)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_bad_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        ProcessMemory(1, timeout=timeout)


def test_it_says_what_it_is() -> None:
    source = ProcessMemory(os.getpid())
    with open("/proc/self/comm", encoding="utf-8") as file:
        assert source.describe() == f"process {os.getpid()} ({file.read().strip()})"
    assert source.total_bytes() is None
    assert source.frozen_us is None
    assert ProcessMemory(1, [(0, PAGE), (PAGE, 4 * PAGE)]).total_bytes() == 4 * PAGE


# ---- What is read ------------------------------------------------------------------------------


@in_child()
def test_absent_pages_are_holes_and_not_read() -> None:
    memory = Memory(8 << 30)
    data = pattern(3 * PAGE)
    memory.write(0, data[:PAGE])
    memory.write(5 << 30, data)
    with target() as process:
        before = process.status_bytes("VmRSS"), process.status_bytes("VmPTE")
        source = ProcessMemory(process.pid, [memory.range])

        class Counter(Recorder):
            def hole(self, nbytes: int) -> None:  # 8 GiB are not kept
                self.holes[memory.name].append((-1, nbytes))

        sink = Counter()
        source.write_to(sink)
        # What the kernel may add while it runs on is little next to 8 GiB and its page tables.
        assert process.status_bytes("VmRSS") < before[0] + (1 << 20)
        assert process.status_bytes("VmPTE") < before[1] + (64 << 10)
    assert bytes(sink.content[memory.name]) == data[:PAGE] + data
    assert [length for _, length in sink.holes[memory.name]] == [
        (5 << 30) - PAGE,
        (3 << 30) - 3 * PAGE,
    ]
    assert source.skipped == []


@in_child()
def test_many_runs_are_read_right() -> None:
    pages = 20000  # more runs than one call gives
    memory = Memory(pages * PAGE)
    for page in range(0, pages, 2):
        memory.write(page * PAGE, page.to_bytes(8, "little"))
    with target() as process:
        sink = record(ProcessMemory(process.pid, [memory.range]))
    content = sink.content[memory.name]
    assert content == memory.read(0, pages * PAGE)
    assert len(sink.holes[memory.name]) == pages // 2
    assert all(end - start == PAGE for start, end in sink.holes[memory.name])


@in_child()
def test_a_range_may_span_mappings_and_have_no_access() -> None:
    memory = Memory(6 * PAGE)
    data = pattern(6 * PAGE)
    memory.write(0, data)
    memory.protect(PAGE, PAGE, NONE)
    memory.protect(3 * PAGE, PAGE, READ | EXECUTE)
    part = memory.start + PAGE, memory.end - PAGE
    with target() as process:
        source = ProcessMemory(process.pid, [part, memory.range])
        sink = record(source)
    first = f"{part[0]:x}-{part[1]:x}"
    assert list(sink.regions) == [first, memory.name]
    assert sink.content[first] == data[PAGE:-PAGE]
    assert sink.content[memory.name] == data
    assert sink.regions[first] == {
        "address": part[0],
        "protection": READ | WRITE | EXECUTE,
        "shared": False,
        "metadata": None,
    }
    assert source.skipped == []


@in_child()
def test_a_gap_in_a_range_is_named() -> None:
    memory = Memory(8 * PAGE)
    gap = memory.start + 5 * PAGE
    memory.unmap(5 * PAGE, PAGE)
    with target() as process:
        with pytest.raises(ProcessError, match=f"nothing mapped at {gap:x},"):
            record(ProcessMemory(process.pid, [memory.range]))
        with pytest.raises(ProcessError, match=f"nothing mapped at {gap:x},"):
            record(ProcessMemory(process.pid, [(gap, gap + 2 * PAGE)]))
        with pytest.raises(ProcessError, match="nothing mapped at 0,"):
            record(ProcessMemory(process.pid, [(0, PAGE)]))
        process.expect_running()


@in_child()
def test_no_access_is_skipped_and_listed_without_ranges() -> None:
    memory = Memory(3 * PAGE)
    memory.write(0, pattern(3 * PAGE))
    memory.protect(PAGE, PAGE, NONE)
    with target() as process:
        source = ProcessMemory(process.pid)
        sink = record(source)
    guard = f"{memory.start + PAGE:x}-{memory.start + 2 * PAGE:x}"
    assert guard not in sink.regions
    [entry] = [skipped for skipped in source.skipped if skipped.start == memory.start + PAGE]
    assert (entry.name, entry.length) == (guard, PAGE)
    assert "no read permission" in entry.reason
    names = " ".join(skipped.name for skipped in source.skipped)
    assert "[vvar]" in names
    assert [s.start for s in source.skipped] == sorted(s.start for s in source.skipped)


@in_child()
def test_unread_pages_of_a_private_file_mapping_have_the_files_content(tmp_path: object) -> None:
    path = f"{tmp_path}/file"
    data = bytearray(pattern(64 * PAGE))
    with open(path, "wb") as file:
        file.write(data)
    fd = os.open(path, os.O_RDWR)
    memory = Memory(32 * PAGE, READ | WRITE, PRIVATE, fd, 16 * PAGE)
    memory.write(3 * PAGE + 5, b"changed")
    expected = data[16 * PAGE : 48 * PAGE]
    expected[3 * PAGE + 5 : 3 * PAGE + 12] = b"changed"
    with target() as process:
        sink = record(ProcessMemory(process.pid, [memory.range]))
        part = memory.start + 8 * PAGE, memory.end
        metadata = record(ProcessMemory(process.pid, [part])).regions.popitem()[1]["metadata"]
    assert sink.content[memory.name] == expected
    assert sink.holes[memory.name] == []
    assert sink.regions[memory.name]["metadata"] == {"path": path, "offset": 16 * PAGE}
    assert metadata == {"path": path, "offset": 24 * PAGE}


@in_child()
def test_pages_behind_the_end_of_a_file_are_listed(tmp_path: object) -> None:
    path = f"{tmp_path}/file"
    with open(path, "wb") as file:
        file.write(pattern(2 * PAGE) + b"end")
    fd = os.open(path, os.O_RDONLY)
    memory = Memory(8 * PAGE, READ, PRIVATE, fd, 0)
    with target() as process:
        source = ProcessMemory(process.pid, [memory.range])
        sink = record(source)
    assert sink.content[memory.name] == (pattern(2 * PAGE) + b"end").ljust(8 * PAGE, b"\0")
    assert sink.holes[memory.name][0][0] == 3 * PAGE
    [skipped] = source.skipped
    assert (skipped.start, skipped.length) == (memory.start + 3 * PAGE, 5 * PAGE)
    assert skipped.name == f"{memory.start + 3 * PAGE:x}-{memory.end:x} {path}"
    assert "end of the mapped file" in skipped.reason


@in_child()
def test_a_guard_page_inside_a_mapping_is_listed() -> None:
    memory = Memory(4 * PAGE)
    memory.write(0, pattern(4 * PAGE))
    try:
        memory.advise(PAGE, PAGE, 102)  # MADV_GUARD_INSTALL
    except OSError:
        pytest.skip("this kernel has no MADV_GUARD_INSTALL (before 6.13)")
    with target() as process:
        source = ProcessMemory(process.pid, [memory.range])
        sink = record(source)
    expected = pattern(4 * PAGE)
    assert sink.content[memory.name] == expected[:PAGE] + bytes(PAGE) + expected[2 * PAGE :]
    [skipped] = source.skipped
    assert (skipped.start, skipped.length) == (memory.start + PAGE, PAGE)


# ---- Shared memory -----------------------------------------------------------------------------


def check_shared(memory: Memory, path: str, uid: int | None = None) -> None:
    """Dump memory of which the target itself has touched the first page only."""
    data = pattern(40 * PAGE)

    def become_ordinary() -> None:
        if uid is not None:
            os.setuid(uid)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which setuid took

    def touch() -> None:
        become_ordinary()
        memory.write(0, data[:PAGE])

    with target(touch) as process:
        if os.fork() == 0:  # written by somebody else
            memory.write(20 * PAGE, data[20 * PAGE : 30 * PAGE])
            os._exit(0)
        os.wait()
        become_ordinary()
        sink = record(ProcessMemory(process.pid))
    expected = bytearray(40 * PAGE)
    expected[:PAGE] = data[:PAGE]
    expected[20 * PAGE : 30 * PAGE] = data[20 * PAGE : 30 * PAGE]
    assert sink.content[memory.name] == expected
    region = sink.regions[memory.name]
    assert region["shared"] is True
    assert region["protection"] == READ | WRITE
    assert str(region["metadata"]["path"]).startswith(path)  # type: ignore[index]


@in_child()
def test_shared_anonymous_memory_is_whole_whoever_wrote_it() -> None:
    check_shared(Memory(40 * PAGE, READ | WRITE, SHARED | ANONYMOUS), "/dev/zero")


@pytest.mark.root
@in_child()
def test_an_ordinary_user_gets_shared_memory_whole_too() -> None:
    check_shared(Memory(40 * PAGE, READ | WRITE, SHARED | ANONYMOUS), "/dev/zero", uid=65534)


@in_child()
def test_a_memfd_is_whole_whoever_wrote_it() -> None:
    fd = os.memfd_create("lazy test")
    os.ftruncate(fd, 40 * PAGE)
    check_shared(Memory(40 * PAGE, READ | WRITE, SHARED, fd, 0), "/memfd:lazy test")


@in_child()
def test_sysv_memory_is_whole_whoever_wrote_it() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0, 40 * PAGE, 0o1600)
    assert segment >= 0, os.strerror(ctypes.get_errno())
    memory = Memory.__new__(Memory)
    memory.start = libc.shmat(segment, None, 0)
    memory.end = memory.start + 40 * PAGE
    libc.shmctl(segment, 0, None)  # gone when the last one lets go of it
    check_shared(memory, "/SYSV00000000")


@pytest.mark.root
@in_child()
def test_shared_memory_that_nobody_touched_is_not_allocated() -> None:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, 64 * PAGE)
    memory = Memory(96 * PAGE, READ | WRITE, SHARED, fd, 8 * PAGE)
    memory.write(10 * PAGE, b"here")
    blocks = os.fstat(fd).st_blocks
    with target() as process:
        # From within a mapping, to behind the end of its file.
        part = memory.start + 2 * PAGE, memory.start + 60 * PAGE
        source = ProcessMemory(process.pid, [part])
        sink = record(source)
    assert os.fstat(fd).st_blocks == blocks
    name = f"{part[0]:x}-{part[1]:x}"
    expected = bytearray(58 * PAGE)
    expected[8 * PAGE : 8 * PAGE + 4] = b"here"
    assert sink.content[name] == expected
    assert sink.holes[name][0] == (0, 8 * PAGE)
    [skipped] = source.skipped
    assert (skipped.start, skipped.length) == (memory.start + 56 * PAGE, 4 * PAGE)


# ---- Always let go -----------------------------------------------------------------------------


class Watcher(Recorder):
    """Does something at the first write."""

    def __init__(self, action: object) -> None:
        super().__init__()
        self.action = action

    def write(self, data: object) -> None:
        if self.action is not None:
            action, self.action = self.action, None
            action()  # type: ignore[operator]
        super().write(data)


@in_child()
def test_it_is_stopped_while_it_is_read_and_runs_after() -> None:
    memory = Memory(PAGE)
    memory.write(0, b"x")
    with target() as process:
        source = ProcessMemory(process.pid, [memory.range])
        source.write_to(Watcher(process.expect_still))
        process.expect_running()
    assert source.frozen_us is not None
    assert source.frozen_us >= 20000


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
@in_child()
def test_it_runs_after_an_error(error: type[BaseException]) -> None:
    memory = Memory(PAGE)
    memory.write(0, b"x")

    def fail() -> None:
        process.expect_still()
        raise error

    with target() as process:
        source = ProcessMemory(process.pid, [memory.range])
        with pytest.raises(error):
            source.write_to(Watcher(fail))
        process.expect_running()
        assert source.frozen_us is not None
        # And once more, with what is left of the first try.
        assert record(source).content[memory.name] == memory.read(0, PAGE)


@in_child()
def test_interrupts_at_any_moment_leave_nothing_frozen() -> None:
    memory = Memory(64 * PAGE)
    memory.write(0, pattern(64 * PAGE))
    interrupts = 0
    with target() as process:
        source = ProcessMemory(process.pid, [memory.range])
        record(source)
        for delay in range(200):
            try:
                try:
                    signal.signal(signal.SIGALRM, signal.default_int_handler)
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + delay * 2e-5)
                    record(source)
                finally:
                    signal.signal(signal.SIGALRM, signal.SIG_IGN)
            except KeyboardInterrupt:
                interrupts += 1
            process.expect_running()
    assert interrupts > 20


@in_child()
def test_an_end_in_the_middle_is_an_error() -> None:
    memory = Memory(64 * PAGE)
    memory.write(0, pattern(8 * PAGE))
    memory.write(32 * PAGE, pattern(8 * PAGE))
    with target() as process:
        source = ProcessMemory(process.pid, [memory.range])
        with pytest.raises(ProcessError, match=f"process {process.pid} ended while"):
            source.write_to(Watcher(process.kill_and_wait_until_gone))


@in_child()
def test_an_end_before_holes_is_an_error_and_no_zeros() -> None:
    """What pagemap says of a process that has ended is that it has no pages."""
    written = Memory(PAGE)
    written.write(0, b"x")
    other = Memory(64 * PAGE)
    other.write(0, pattern(64 * PAGE))
    with target() as process:
        source = ProcessMemory(process.pid, [written.range, other.range])
        with pytest.raises(ProcessError, match=f"process {process.pid} ended while"):
            source.write_to(Watcher(process.kill_and_wait_until_gone))


@in_child()
def test_many_threads_are_stopped_together() -> None:
    memory = Memory(PAGE, READ | WRITE, SHARED | ANONYMOUS)
    cells = (ctypes.c_uint64 * 16).from_address(memory.start)

    def count(number: int) -> None:
        while True:
            cells[number] += 1

    def start() -> None:
        for number in range(16):
            threading.Thread(target=count, args=(number,), daemon=True).start()

    def expect_all_still() -> None:
        seen.extend(cells)
        time.sleep(0.05)
        assert list(cells) == seen

    with target(start) as process:
        while 0 in list(cells):
            time.sleep(0.01)
        seen: list[int] = []
        sink = Watcher(expect_all_still)
        ProcessMemory(process.pid, [memory.range]).write_to(sink)
        assert memoryview(sink.content[memory.name]).cast("Q")[:16].tolist() == seen
        while any(new == old for new, old in zip(list(cells), seen, strict=True)):
            time.sleep(0.01)
