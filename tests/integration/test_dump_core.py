"""dump(CoreFile(...)): of core files that the kernel, gcore and QEMU have written."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from restore_support import TESTS

import lazyrestore
from lazyrestore import CoreFile, ProcessMemory

PAGE = 4096
PAGES = 2048
PATTERN = Path("/proc/sys/kernel/core_pattern")
LIMIT_S = 60 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CC", "gcc").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"{compiler[0]} is not installed")
    path = tmp_path_factory.mktemp("core") / "target"
    source = TESTS / "core_target.c"
    subprocess.run([*compiler, "-O1", "-pthread", "-o", path, source], check=True)
    return path


class Running:
    """The program, and where its memory is."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.private, self.shared = (int(word, 16) for word in child.stdout.readline().split())

    def mappings(self) -> dict[tuple[int, int], str]:
        """Permissions, by where they hold."""
        found = {}
        for line in Path(f"/proc/{self.child.pid}/maps").read_text().splitlines():
            ends, permissions = line.split()[:2]
            start, end = (int(word, 16) for word in ends.split("-"))
            found[start, end] = permissions
        return found


@contextmanager
def running(program: Path, folder: Path) -> Iterator[Running]:
    def limits() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    with subprocess.Popen(
        [program, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        # The kernel writes into its memory where it runs (rseq), each time that it does; and the
        # loader where a function is, when that is first called.
        env={**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0", "LD_BIND_NOW": "1"},
        preexec_fn=limits,
    ) as child:
        try:
            yield Running(child)
        finally:
            child.kill()


@contextmanager
def core_pattern() -> Iterator[None]:
    """Core files lie in the folder of who dies; where they do not, root has it so for a moment."""
    before = PATTERN.read_text().strip()
    is_set = False
    if before.startswith("|") or "/" in before:
        try:
            PATTERN.write_text("core")
        except OSError as error:
            pytest.skip(f"core files go to {before}, and that cannot be changed: {error.strerror}")
        is_set = True
    try:
        yield
    finally:
        if is_set:
            PATTERN.write_text(before)


def compare(core: Path, live: Path, process: Running, mappings: dict[tuple[int, int], str]) -> None:
    """Every byte of the core's image is the process's; and all that it could change is there."""
    image = core.with_suffix(".lzr")
    report = lazyrestore.dump(CoreFile(core), image)
    with lazyrestore.open(image) as mine, lazyrestore.open(live) as its:
        assert str(process.child.pid) in mine.info.source
        regions = {region.address: region for region in its.regions}
        for region in mine.regions:
            at, end = region.address, region.address + region.length
            if mappings.get((at, end)) == "---p":
                continue  # gcore has guard pages; a dump of the process leaves them out
            whole = next(
                it for it in regions.values() if it.address <= at and end <= it.address + it.length
            )
            same = its.read(whole.name, at - whole.address, region.length)
            assert mine.read(region.name) == same, region.name
        covered = {(region.address, region.address + region.length) for region in mine.regions}
        for (start, end), permissions in mappings.items():
            if permissions == "rw-p":
                assert any(low <= start and end <= high for low, high in covered), hex(start)
        (memory,) = (
            region
            for region in mine.regions
            if region.address <= process.private < region.address + region.length
        )
        offset = process.private - memory.address
        for page in (0, 3, PAGES - 2):
            number = mine.read(memory.name, offset + page * PAGE + 100, 8)
            assert int.from_bytes(number, "little") == (page + 1 if page % 3 == 0 else 0)
    for piece in report.skipped:
        assert "/" in piece.name or piece.reason.startswith(("no read", "provided")), piece
    with lazyrestore.restore(image) as session:
        lazy = session[memory.name]
        assert lazy[offset + 3 * PAGE + 100] == 4
        assert lazy[offset + PAGE + 100] == 0


def test_what_the_kernel_writes_when_a_process_dies(tmp_path: Path, program: Path) -> None:
    """As after a segmentation fault; compared with a dump of it while it lived"""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this user's processes may not leave core files (ulimit -Hc is 0)")
    with core_pattern(), running(program, tmp_path) as process:
        live = tmp_path / "live.lzr"
        lazyrestore.dump(ProcessMemory(process.child.pid), live)
        mappings = process.mappings()
        process.child.send_signal(signal.SIGSEGV)
        status = process.child.wait(LIMIT_S)
        assert status == -signal.SIGSEGV
    cores = list(tmp_path.glob("core*"))
    if not cores and os.environ.get("CI") != "true":
        pytest.skip("the kernel wrote no core file here")
    (core,) = cores
    compare(core, live, process, mappings)


def test_what_gcore_writes_of_a_process_that_lives_on(tmp_path: Path, program: Path) -> None:
    if shutil.which("gcore") is None:
        pytest.skip("gcore (of gdb) is not installed")
    with running(program, tmp_path) as process:
        live = tmp_path / "live.lzr"
        lazyrestore.dump(ProcessMemory(process.child.pid), live)
        result = subprocess.run(
            ["gcore", "-o", tmp_path / "core", str(process.child.pid)],
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        core = tmp_path / f"core.{process.child.pid}"
        assert core.exists(), result
        compare(core, live, process, process.mappings())


def test_what_qemu_writes_of_a_machine(tmp_path: Path) -> None:
    """dump-guest-memory: by physical address, compared with the file that was the memory"""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    memory, core, monitor = tmp_path / "memory", tmp_path / "core", tmp_path / "monitor"
    content = bytearray(16 << 20)
    content[1 << 20 : 8 << 20] = random.Random(1).randbytes(7 << 20)
    content[12 << 20] = 77
    memory.write_bytes(content)
    backend = f"memory-backend-file,id=m,size=16M,share=on,mem-path={memory}"
    command = [qemu, "-S", "-display", "none", "-nodefaults", "-m", "16", "-object", backend]
    command += ["-machine", "pc,accel=tcg,memory-backend=m", "-qmp", f"unix:{monitor},server=on"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            _ask_qemu(child, monitor, core)
        finally:
            child.kill()
    image = tmp_path / "image.lzr"
    report = lazyrestore.dump(CoreFile(core), image)
    assert report.skipped == ()
    with lazyrestore.open(image) as opened:
        assert opened.info.source.endswith("of a virtual machine")
        region = next(it for it in opened.regions if it.address == 1 << 20)
        assert (region.name, region.protection) == ("100000-1000000", 3)
        assert opened.read(region.name) == memory.read_bytes()[1 << 20 :]
        assert opened.read(region.name, 0, 7 << 20) == content[1 << 20 : 8 << 20]


def _ask_qemu(child: subprocess.Popen[bytes], monitor: Path, core: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT_S)
        while True:
            try:
                connection.connect(str(monitor))
                break
            except OSError:
                assert child.poll() is None, child.stderr.read()
                assert time.monotonic() < deadline, "QEMU does not answer"
                time.sleep(0.01)
        with connection.makefile("rw") as lines:
            for command in (
                {"execute": "qmp_capabilities"},
                {
                    "execute": "dump-guest-memory",
                    "arguments": {"paging": False, "protocol": f"file:{core}"},
                },
            ):
                lines.write(json.dumps(command) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    assert "error" not in answer, answer
