"""Dumps of processes with odd memory, or at odd moments, and of memory that is lazily restored."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from process_support import (
    ANONYMOUS,
    HUGETLB,
    NONE,
    NORESERVE,
    PAGE,
    PRIVATE,
    READ,
    SHARED,
    WRITE,
    Memory,
    Target,
    in_child,
    pattern,
    target,
)
from restore_support import PACKAGE_HOME, flip, payloads
from writer_support import KIB, MIB

import lazyrestore
from lazyrestore import ProcessError, ProcessMemory, RestoreError

_libc = ctypes.CDLL(None, use_errno=True)
GUARD_INSTALL, PAGEOUT = 102, 21
TIB = 1 << 40


def dump_of(process: Target, path: Path, *memories: Memory) -> lazyrestore.DumpReport:
    ranges = [memory.range for memory in memories]
    report = lazyrestore.dump(ProcessMemory(process.pid, ranges), path)
    process.expect_running()
    return report


# ---- Odd moments -----------------------------------------------------------------------------


@in_child(120)
def test_a_process_that_execs_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.lzr"
    script = 'printf .; exec sh -c "$0" "$0"'
    with subprocess.Popen(["sh", "-c", script, script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(25):
            lazyrestore.dump(ProcessMemory(process.pid), path)
            with lazyrestore.open(path) as image:
                image.verify()
                assert len(image.regions) > 5
            # It has gone on since: what was in the pipe may be from before.
            os.set_blocking(process.stdout.fileno(), False)
            while process.stdout.read(65536):
                pass
            assert select.select([process.stdout], [], [], 20)[0]
        process.kill()


@in_child(120)
def test_a_process_that_ends_at_any_moment(tmp_path: Path) -> None:
    """With its memory being taken down for a while: it is dumped, or it is said that it ended."""
    memory = Memory(64 * MIB)
    memory.write(0, os.urandom(64 * MIB))
    path = tmp_path / "x.lzr"
    outcomes = {"dumped": 0, "ended": 0}
    for number in range(40):
        pid = os.fork()
        if pid == 0:
            threads = [threading.Thread(target=time.sleep, args=(60,)) for _ in range(3)]
            for thread in threads:
                thread.daemon = True
                thread.start()
            time.sleep(random.Random(number).random() * 0.02)
            os._exit(0)
        time.sleep(random.Random(-number).random() * 0.02)
        small = [(memory.start, memory.start + MIB)]
        said = ""
        try:
            lazyrestore.dump(ProcessMemory(pid, small), path)
        except ProcessError as error:
            said = str(error)
        if said:
            assert "ended" in said
            outcomes["ended"] += 1
        else:
            with lazyrestore.open(path) as image:
                assert image.read(image.regions[0].name) == memory.read(0, MIB)
            outcomes["dumped"] += 1
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        path.unlink(missing_ok=True)
        assert os.listdir(tmp_path) == []
    assert outcomes["ended"] > 0


@in_child()
def test_a_parent_of_zombies(tmp_path: Path) -> None:
    memory = Memory(PAGE)
    memory.write(0, pattern(PAGE))
    pids = mmap.mmap(-1, PAGE)

    def leave_zombies() -> None:
        for number in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            pids[4 * number : 4 * number + 4] = child.to_bytes(4, "little")

    with target(leave_zombies) as process:
        dump_of(process, tmp_path / "x.lzr", memory)
        with lazyrestore.open(tmp_path / "x.lzr") as image:
            assert image.read(memory.name) == pattern(PAGE)
        zombie = int.from_bytes(pids[:4], "little")
        with pytest.raises(ProcessError, match=f"process {zombie} .* has ended"):
            lazyrestore.dump(ProcessMemory(zombie), tmp_path / "y.lzr")
    assert not (tmp_path / "y.lzr").exists()


# ---- Odd memory ------------------------------------------------------------------------------


@in_child()
def test_everything_at_once_and_locked(tmp_path: Path) -> None:
    """Reserved, guarded, read-only, file-backed and shared memory of a process that locks it."""
    file = tmp_path / "file"
    file.write_bytes(pattern(40 * PAGE, 7))
    fd = os.open(file, os.O_RDWR)
    plain, reserved = Memory(40 * PAGE), Memory(40 * PAGE, NONE)
    readonly, guarded = Memory(40 * PAGE), Memory(40 * PAGE)
    private = Memory(40 * PAGE, READ | WRITE, PRIVATE, fd)
    shared = Memory(40 * PAGE, READ | WRITE, SHARED | ANONYMOUS)
    of_file = Memory(40 * PAGE, READ | WRITE, SHARED, fd)
    for salt, memory in enumerate((plain, readonly, guarded, shared)):
        memory.write(0, pattern(20 * PAGE, salt))
    readonly.protect(0, 40 * PAGE, READ)
    private.write(3 * PAGE, pattern(PAGE, 99))
    whole = [plain, readonly, private, shared]
    expected = {memory.name: memory.read(0, 40 * PAGE) for memory in (plain, readonly, shared)}
    # Most of it was never read: not in any page table, and not zero.
    content = bytearray(pattern(40 * PAGE, 7))
    content[3 * PAGE : 4 * PAGE] = pattern(PAGE, 99)
    expected[private.name] = bytes(content)
    with suppress(OSError):  # before Linux 6.13
        guarded.advise(5 * PAGE, 2 * PAGE, GUARD_INSTALL)

    def lock() -> None:
        for memory in (plain, readonly, shared):
            if _libc.mlock(ctypes.c_void_p(memory.start), ctypes.c_size_t(40 * PAGE)):
                raise OSError(ctypes.get_errno(), "mlock")

    path = tmp_path / "x.lzr"
    with target(lock) as process:
        report = lazyrestore.dump(ProcessMemory(process.pid), path)
        process.expect_running()
    with lazyrestore.open(path) as image:
        regions = {region.address: region for region in image.regions}

        def read(memory: Memory) -> bytes:
            (region,) = (
                region
                for region in image.regions
                if region.address <= memory.start < region.address + region.length
            )
            return image.read(region.name, memory.start - region.address, 40 * PAGE)

        for memory in whole:
            assert read(memory) == expected[memory.name]
        assert read(guarded)[: 5 * PAGE] == pattern(5 * PAGE, 2)
        assert read(guarded)[7 * PAGE : 20 * PAGE] == pattern(20 * PAGE, 2)[7 * PAGE :]
        assert image.metadata(regions[private.start].name)["path"] == str(file)
    reasons = {skipped.start: skipped.reason for skipped in report.skipped}
    assert "no read permission" in reasons[reserved.start]
    assert "content is in the file" in reasons[of_file.start]
    assert of_file.start not in regions


@in_child()
def test_a_tebibyte_with_a_few_pages(tmp_path: Path) -> None:
    try:
        memory = Memory(TIB)
    except OSError as error:
        pytest.skip(f"1 TiB of address space is refused here (vm.overcommit_memory): {error}")
    places = [0, 12345 * PAGE, TIB // 3 // PAGE * PAGE, TIB - PAGE]
    for salt, place in enumerate(places):
        memory.write(place, pattern(PAGE, salt))
    path = tmp_path / "x.lzr"
    with target() as process:
        before = process.status_bytes("VmRSS"), process.status_bytes("VmPTE")
        report = dump_of(process, path, memory)
        assert process.status_bytes("VmRSS") < before[0] + MIB
        assert process.status_bytes("VmPTE") < before[1] + MIB
    assert report.stored_bytes < 64 * KIB
    assert report.hole_bytes == TIB - len(places) * PAGE
    with lazyrestore.open(path) as image:
        for salt, place in enumerate(places):
            assert image.read(memory.name, place, PAGE) == pattern(PAGE, salt)
        assert image.read(memory.name, PAGE, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("count", [1000, 10000])
@in_child(120)
def test_many_mappings(tmp_path: Path, count: int) -> None:
    """Every second page has another protection: neighbours of one kind would be one mapping."""
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        if int(file.read()) < count + 1000:
            pytest.skip("vm.max_map_count is too small")
    memory = Memory(count * PAGE)
    expected = b"".join(number.to_bytes(8, "little") * (PAGE // 8) for number in range(count))
    memory.write(0, expected)
    for number in range(0, count, 2):
        memory.protect(number * PAGE, PAGE, READ)
    path = tmp_path / "x.lzr"
    with target() as process:
        # As they are, each a region, and as one region.
        report = lazyrestore.dump(ProcessMemory(process.pid), path)
        process.expect_running()
        assert len(report.regions) > count
        with lazyrestore.open(path) as image:
            for number in range(count):
                start = memory.start + number * PAGE
                name = f"{start:x}-{start + PAGE:x}"
                if number % 97 == 0:
                    assert image.read(name) == expected[number * PAGE : (number + 1) * PAGE]
        if count > 1000:  # takes a while
            return
        dump_of(process, path, memory)
    with lazyrestore.open(path) as image:
        assert image.read(memory.name) == expected


@contextmanager
def huge_pages(count: int) -> Iterator[int]:
    """Have the kernel set aside huge pages of 2 MiB; gives their length."""
    setting = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    try:
        before = int(setting.read_text())
        setting.write_text(str(before + count))
    except OSError as error:
        pytest.skip(f"no huge pages can be set aside: {error}")
    try:
        if int(setting.read_text()) < before + count:
            pytest.skip("the kernel finds no memory for huge pages")
        yield 2 * MIB
    finally:
        setting.write_text(str(before))


@pytest.mark.root
@in_child()
def test_huge_pages(tmp_path: Path) -> None:
    with huge_pages(6) as size:
        flags = ANONYMOUS | HUGETLB | NORESERVE
        private = Memory(4 * size, READ | WRITE, PRIVATE | flags)
        shared = Memory(2 * size, READ | WRITE, SHARED | flags)
        private.write(size, pattern(size))
        shared.write(0, pattern(2 * size, 1))
        path = tmp_path / "x.lzr"
        with target() as process:
            report = lazyrestore.dump(ProcessMemory(process.pid), path)
            process.expect_running()
            again = dump_of(process, tmp_path / "y.lzr", private, shared)
        private.unmap(0, 4 * size)
        shared.unmap(0, 2 * size)
    assert again.hole_bytes == 3 * size
    names = {region.name for region in report.regions}
    assert {private.name, shared.name} <= names
    for file in (path, tmp_path / "y.lzr"):
        with lazyrestore.open(file) as image:
            expected = bytes(size) + pattern(size) + bytes(2 * size)
            assert image.read(private.name) == expected
            assert image.read(shared.name) == pattern(2 * size, 1)


@contextmanager
def swap_in_memory(size: int) -> Iterator[None]:
    """A compressed block device in memory, for pages to be swapped out to."""
    control = Path("/sys/class/zram-control")
    try:
        number = int((control / "hot_add").read_text())
    except OSError as error:
        pytest.skip(f"this kernel has no zram: {error}")
    device = f"/dev/zram{number}"
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
        done = subprocess.run(["mkswap", device], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mkswap: {done.stderr.strip()}")
        if _libc.swapon(device.encode(), 0):
            pytest.skip(f"swapon: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            assert _libc.swapoff(device.encode()) == 0
    finally:
        (control / "hot_remove").write_text(str(number))


def swapped_pages(pid: int, memory: Memory) -> int:
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(memory.start // PAGE * 8)
        entries = memoryview(file.read((memory.end - memory.start) // PAGE * 8)).cast("Q")
    return sum(entry >> 62 & 1 for entry in entries)


@pytest.mark.root
@in_child()
def test_pages_in_swap(tmp_path: Path) -> None:
    memory = Memory(1000 * PAGE)

    def swap_out() -> None:
        memory.write(0, pattern(600 * PAGE))
        memory.advise(0, 600 * PAGE, PAGEOUT)

    with swap_in_memory(64 * MIB), target(swap_out) as process:
        swapped = swapped_pages(process.pid, memory)
        if not swapped:
            pytest.skip("nothing was swapped out: MADV_PAGEOUT is from Linux 5.4")
        report = dump_of(process, tmp_path / "x.lzr", memory)
    assert report.hole_bytes == 400 * PAGE
    with lazyrestore.open(tmp_path / "x.lzr") as image:
        assert image.read(memory.name) == pattern(600 * PAGE) + bytes(400 * PAGE)


# ---- Another process's memory that is lazily restored --------------------------------------

RESTORING = """
import json, sys, lazyrestore
path, prefetch = sys.argv[1:]
with lazyrestore.restore(path, lazy=True, prefetch=prefetch) as session:
    region = session["memory"]
    print(json.dumps([region.address, len(region)]), flush=True)
    for line in sys.stdin:
        answer = None
        try:
            answer = eval(line)
        except lazyrestore.RestoreError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
"""


class Restoring:
    """A process in which an image is lazily restored."""

    def __init__(self, image: Path, prefetch: str = "none") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RESTORING, str(image), prefetch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME)},
        )
        start, length = self._answer()
        self.range = start, start + -(-length // PAGE) * PAGE

    def _answer(self) -> object:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, expression: str) -> object:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self._answer()

    def dump(self, path: Path, *, everything: bool = False) -> lazyrestore.DumpReport:
        ranges = None if everything else [self.range]
        return lazyrestore.dump(ProcessMemory(self.process.pid, ranges), path)


@contextmanager
def restoring(image: Path, prefetch: str = "none") -> Iterator[Restoring]:
    process = Restoring(image, prefetch)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.communicate()


def content_with_gaps(clusters: int) -> bytes:
    """Data, and every fourth cluster of 64 KiB zeros."""
    data = bytearray(pattern(clusters * 65536))
    for number in range(3, clusters, 4):
        data[number * 65536 : (number + 1) * 65536] = bytes(65536)
    return bytes(data)


def content(path: Path, start: int, length: int) -> bytes:
    with lazyrestore.open(path) as image:
        for region in image.regions:
            if region.address <= start < region.address + region.length:
                return image.read(region.name, start - region.address, length)
    raise AssertionError(f"nothing has {start:x}")


@pytest.mark.uffd
@pytest.mark.parametrize("everything", [False, True])
@in_child()
def test_a_tenth_of_it_is_loaded(tmp_path: Path, everything: bool) -> None:
    """Its pager stands still like all its threads, so a read would wait for good: refused."""
    data = content_with_gaps(40)
    inner, outer = tmp_path / "inner.lzr", tmp_path / "outer.lzr"
    lazyrestore.dump(data, inner)
    with restoring(inner) as process:
        for number in range(0, 40, 10):
            assert process.ask(f"region[{number} * 65536 + 5]") == data[number * 65536 + 5]
        for _ in range(2):
            with pytest.raises(ProcessError, match=r"itself being lazily restored.*wait until"):
                process.dump(outer, everything=everything)
            assert os.listdir(tmp_path) == ["inner.lzr"]
            # Its pager runs on, too.
            assert process.ask("region[15 * 65536 + 9]") == data[15 * 65536 + 9]
        process.ask("region.populate()")
        process.dump(outer, everything=everything)
        assert content(outer, process.range[0], len(data)) == data
        assert process.ask("region[:1 << 20] == bytes(1 << 20)") is False


BUSY = """
import mmap, os, sys, threading, lazyrestore
with lazyrestore.restore(sys.argv[1], lazy=True, prefetch="none") as session:
    region = session["memory"]
    file = os.memfd_create("copy")
    def copy():
        view = memoryview(region)
        for start in range(0, len(region) // 2, 4096):
            os.pwrite(file, view[start : start + 4096], 0)
    def give_up():
        for start in range(len(region) // 2, len(region), 4096):
            region.madvise(mmap.MADV_DONTNEED, start, 4096)
    for work in (copy, give_up):
        threading.Thread(target=work).start()
    print(0, flush=True)
print(1, flush=True)
"""


@pytest.mark.uffd
@in_child(120)
def test_while_its_threads_wait_in_the_kernel_for_its_pager(tmp_path: Path) -> None:
    """They cannot be stopped there, and their pager must not be: it is let run for a moment."""
    inner = tmp_path / "inner.lzr"
    lazyrestore.dump(os.urandom(128 * MIB), inner, level=1)
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(inner)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        for _ in range(6):
            with pytest.raises(ProcessError, match="itself being lazily restored"):
                lazyrestore.dump(ProcessMemory(process.pid), tmp_path / "outer.lzr")
        assert process.stdout.readline() == b"1\n", "it did not run on"


@pytest.mark.uffd
@in_child(120)
def test_while_it_is_being_filled(tmp_path: Path) -> None:
    """Dumped again and again until it is allowed: then every byte is right."""
    data = os.urandom(3 * MIB) + content_with_gaps(400)
    inner, outer = tmp_path / "inner.lzr", tmp_path / "outer.lzr"
    lazyrestore.dump(data, inner, level=1)
    with restoring(inner) as process:
        assert process.process.stdin is not None
        # Without waiting for the answer.
        process.process.stdin.write("region.populate()\n")
        process.process.stdin.flush()
        refused = 0
        while True:
            try:
                process.dump(outer)
                break
            except ProcessError as error:
                if "itself being lazily restored" not in str(error):
                    raise
                refused += 1
        assert content(outer, process.range[0], len(data)) == data
        assert process._answer() is None


@pytest.mark.uffd
@in_child()
def test_what_could_not_be_loaded_there_is_listed(tmp_path: Path) -> None:
    data = content_with_gaps(20)
    inner, outer = tmp_path / "inner.lzr", tmp_path / "outer.lzr"
    lazyrestore.dump(data, inner)
    flip(inner, payloads(inner, "memory")[5][0])
    with restoring(inner) as process:
        answer = None
        for number in range(20):
            answer = process.ask(f"region.populate({number} * 65536, 65536)") or answer
        assert "cluster 5" in str(answer)
        report = process.dump(outer)
        start = process.range[0]
        read = content(outer, start, len(data))
    (skipped,) = report.skipped
    assert (skipped.start, skipped.length) == (start + 5 * 65536, 65536)
    assert read[: 5 * 65536] == data[: 5 * 65536]
    assert read[6 * 65536 :] == data[6 * 65536 :]


# ---- This process's memory that is lazily restored -----------------------------------------


def restored(tmp_path: Path, data: object, prefetch: str = "none") -> lazyrestore.Session:
    lazyrestore.dump(data, tmp_path / "inner.lzr")  # type: ignore[arg-type]
    return lazyrestore.restore(tmp_path / "inner.lzr", lazy=True, prefetch=prefetch)


def as_region(region: lazyrestore.Region) -> object:
    return region


def as_view(region: lazyrestore.Region) -> object:
    return memoryview(region)[:].toreadonly()


def as_array(region: lazyrestore.Region) -> object:
    return region.array()


def as_array_with_gaps(region: lazyrestore.Region) -> object:
    return region.array().reshape(-1, 8)[:, ::2]


def as_view_with_gaps(region: lazyrestore.Region) -> object:
    return memoryview(region)[::2]


KINDS = [as_region, as_view, as_array, as_array_with_gaps, as_view_with_gaps]


@pytest.mark.uffd
@pytest.mark.parametrize("kind", KINDS)
@in_child()
def test_a_region_of_this_process(tmp_path: Path, kind: object) -> None:
    """A tenth is loaded, something was written, and another thread goes on loading meanwhile."""
    pytest.importorskip("numpy")
    data = content_with_gaps(200)
    outer = tmp_path / "outer.lzr"
    with restored(tmp_path, data) as session:
        region = session["memory"]
        for number in range(0, 200, 10):
            assert region[number * 65536] == data[number * 65536]
        region[30 * 65536] = 77
        expected = bytearray(data)
        expected[30 * 65536] = 77
        loading = threading.Thread(target=lambda: region.touch(order="random"))
        loading.start()
        lazyrestore.dump(kind(region), outer)  # type: ignore[operator]
        loading.join()
    step = {as_array_with_gaps: 2, as_view_with_gaps: 2}.get(kind, 1)  # type: ignore[call-overload]
    with lazyrestore.open(outer) as image:
        image.verify()
        assert image.read("memory") == expected[::step]


@pytest.mark.uffd
@pytest.mark.parametrize("kind", KINDS)
@in_child()
def test_a_region_of_this_process_that_cannot_be_loaded(tmp_path: Path, kind: object) -> None:
    """An exception, where a touch would be a signal; the old image stays."""
    pytest.importorskip("numpy")
    inner, outer = tmp_path / "inner.lzr", tmp_path / "outer.lzr"
    lazyrestore.dump(content_with_gaps(20), inner)
    lazyrestore.dump(b"old", outer)
    flip(inner, payloads(inner, "memory")[5][0])
    with lazyrestore.restore(inner, lazy=True, prefetch="none") as session:
        region = session["memory"]
        for _ in range(2):
            with pytest.raises(RestoreError, match=r"cluster 5\b"):
                lazyrestore.dump(kind(region), outer)  # type: ignore[operator]
        good = memoryview(region)[6 * 65536 :]
        lazyrestore.dump({"good": good}, tmp_path / "good.lzr")
        del good
    with lazyrestore.open(outer) as image:
        assert image.read("memory") == b"old"
    with lazyrestore.open(tmp_path / "good.lzr") as image:
        assert image.read("good") == content_with_gaps(20)[6 * 65536 :]
    assert sorted(os.listdir(tmp_path)) == ["good.lzr", "inner.lzr", "outer.lzr"]
