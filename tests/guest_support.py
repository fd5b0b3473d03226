"""Guests for the tests of serving virtual machines: programs, a kernel, QEMU, and the service.

What a machine lacks skips a test with the reason; with CI=true it fails it, but for a processor
without virtualisation and Firecracker, which no package installs.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

import pytest
from restore_support import PACKAGE_HOME, TESTS

QEMU = "qemu-system-x86_64"
MIB = 1 << 20
RAM_MIB = 256
FILL_MIB = 96
FREE_MIB = 80  # of what is free, so much had been used
PAGE = 4096
# Of anything that is waited for: the machine may be busy, and all is emulated.
LIMIT_S = 90 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))
# No mitigations and few messages: emulated, both take their time.
BOOT = f"console=ttyS0 panic=-1 quiet mitigations=off fill_mib={FILL_MIB} free_mib={FREE_MIB}"
_ROUND = re.compile(
    rb"^guest: round (\d+) window (\d+) version (\d+) sum ([0-9a-f]{16}) (\w+)\r?$", re.M
)
_ALL = re.compile(rb"^guest: all (\d+) windows, sum ([0-9a-f]{16}), wrong (\d+)\r?$", re.M)


def cannot(reason: str) -> NoReturn:
    """Skip the test; in CI, where all must be there that packages install, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"this must run in CI: {reason}")
    pytest.skip(reason)


def wait_until(what: str, is_so: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Return when `is_so`; fail after the limit."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.01)


def run(*command: object, limit_s: float = LIMIT_S) -> str:
    """Run a program that must end with 0, and return what it printed."""
    result = subprocess.run(
        [str(word) for word in command],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert result.returncode == 0, f"{command}: exit {result.returncode}\n{result.stderr}"
    return result.stdout


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """As users have it, with this tree's package."""
    path = os.pathsep.join(filter(None, (str(PACKAGE_HOME), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


def lazyrestore(*arguments: object) -> str:
    """Run a command of lazyrestore's that must succeed."""
    return run(sys.executable, "-m", "lazyrestore", *arguments)


def compile_c(source: Path, output: Path, *options: str) -> Path:
    """Compile one C file, as strictly as the core."""
    compiler = os.environ.get("CC", "gcc").split()
    if shutil.which(compiler[0]) is None:
        cannot(f"no C compiler: {compiler[0]}")
    command = [*compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    run(*command, "-o", output, source, *options)
    return output


def _kernel_matrix() -> ModuleType:
    """tests/kernel_matrix/run.py, which knows how to get Debian's kernels."""
    path = TESTS / "kernel_matrix" / "run.py"
    spec = importlib.util.spec_from_file_location("kernel_matrix_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def debian_kernel(matrix: ModuleType) -> Path:
    """The files of a kernel of Debian's, from what `make kernel-matrix` keeps, or from apt."""
    try:
        matrix.check_machine()
        package, version = matrix.find_package(matrix.DEFAULT_KERNEL)
        folder = matrix.unpack(package, version, matrix.KERNEL_FILES)
    except (matrix.CannotRunError, matrix.FailedError) as error:
        cannot(f"no Linux kernel for a guest: {error}")
    return Path(folder)


class GuestFiles:
    """A kernel and an initramfs whose only program is tests/guests/memory_guest.c.

    Args:
        folder: where they are put.
        modules: of the kernel, that the program loads; with what they need.
    """

    def __init__(self, folder: Path, modules: tuple[str, ...] = ()) -> None:
        matrix = _kernel_matrix()
        kernel = debian_kernel(matrix)
        (self.kernel,) = kernel.glob("vmlinuz-*")
        self.program = compile_c(TESTS / "guests/memory_guest.c", folder / "init", "-static")
        self.initramfs = folder / "initramfs.gz"
        out = io.BytesIO()
        matrix.write_entry(out, "dev", 0o040755)
        matrix.write_entry(out, "init", 0o100755, self.program.read_bytes())
        matrix.write_entry(out, "modules", 0o040755)
        matrix.MODULES, matrix.MODULES_WANTED = modules, ()
        for number, (name, content) in enumerate(matrix.modules(kernel)):
            matrix.write_entry(out, f"modules/{number:02}-{name}.ko", 0o100644, content)
        matrix.write_entry(out, "TRAILER!!!", 0)
        self.initramfs.write_bytes(gzip.compress(out.getvalue(), 1))


class Console:
    """What the guest wrote on its serial line, before and after it was moved."""

    def __init__(self, program: Path, before: bytes = b"") -> None:
        self.program = program  # which also tells what sums are right
        self.text = before
        self._taken = len(before)

    def rounds(self) -> list[tuple[int, int, int, str, str]]:
        """(round, window, version, sum, the guest's verdict) of each whole line."""
        return [
            (int(a), int(b), int(c), d.decode(), e.decode())
            for a, b, c, d, e in _ROUND.findall(self.text)
        ]

    def new_rounds(self) -> int:
        """How many rounds were said since it was moved."""
        return len(_ROUND.findall(self.text)) - len(_ROUND.findall(self.text[: self._taken]))

    def all_checks(self) -> list[tuple[int, str, int]]:
        """(windows, sum, how many are wrong) of each check of all memory."""
        return [(int(a), b.decode(), int(c)) for a, b, c in _ALL.findall(self.text)]

    def expect_right(self) -> None:
        """Each round follows the one before, and each sum is what another process computes."""
        rounds = self.rounds()
        assert [number for number, *_ in rounds] == list(range(len(rounds))), self.text.decode()
        for number, window, version, total, verdict in rounds:
            assert verdict == "right", (number, window, version)
            assert total == run(self.program, "expect", window, version).strip(), number

    def expect_all_right(self) -> None:
        """The last check of all memory found what another process computes."""
        windows, total, wrong = self.all_checks()[-1]
        last_round = _ROUND.findall(self.text[: self.text.rindex(b"guest: all")])[-1][0].decode()
        assert wrong == 0
        assert total == run(self.program, "expect-all", windows, last_round).strip()


class Qemu:
    """A QEMU with a guest of GuestFiles, its serial line, and its monitor (QMP).

    Args:
        files: the kernel and the program.
        folder: where its sockets and logs are put; it runs there.
        backend: the memory backend object, without id and size.
        before: what the guest had said when it was moved.
    """

    def __init__(
        self,
        files: GuestFiles,
        folder: Path,
        backend: str,
        *options: str,
        before: bytes = b"",
        extra_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.console = Console(files.program, before)
        self._monitor_path = folder / "qmp.sock"
        self._monitor_path.unlink(missing_ok=True)
        self.errors = folder / "qemu.log"
        command = [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc,memory-backend=ram", "-m", str(RAM_MIB)),
            *("-object", f"{backend},id=ram,size={RAM_MIB}M,share=on"),
            *("-accel", "tcg,tb-size=64", "-cpu", "Nehalem"),
            *("-kernel", str(files.kernel), "-initrd", str(files.initramfs)),
            *("-append", BOOT, "-device", "virtio-balloon-pci"),
            *("-serial", "stdio", "-qmp", "unix:qmp.sock,server=on,wait=off"),
            *options,
        ]
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(extra_environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Qemu:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it, and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := os.read(self.process.stdout.fileno(), 65536):
            self.console.text += chunk

    def say(self, letter: bytes) -> None:
        """Type something on the guest's serial line."""
        assert self.process.stdin is not None
        self.process.stdin.write(letter)
        self.process.stdin.flush()

    def wait_for(self, what: str, is_so: Callable[[], object]) -> None:
        """Wait for something; that QEMU ends is a failure."""

        def look() -> object:
            ended = self.process.poll()
            assert ended is None, f"QEMU ended with {ended}: {self.errors.read_text()}"
            return is_so()

        wait_until(f"{what}; the guest said: {self.console.text[-300:]!r}", look)

    def check_all(self) -> None:
        """Have the guest check all its memory, and look whether it is right."""
        count = len(self.console.all_checks())
        self.say(b"a")
        self.wait_for("a check of all memory", lambda: len(self.console.all_checks()) > count)
        self.console.expect_all_right()

    def command(self, name: str, **arguments: object) -> Any:
        """Give QEMU's monitor a command, and return its answer."""
        self.wait_for("QEMU's monitor", self._monitor_path.exists)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(LIMIT_S)
            self.wait_for("QEMU's monitor", lambda: _connects(monitor, self._monitor_path))
            stream = monitor.makefile("rw")
            stream.readline()
            answer: dict[str, Any] = {}
            for each, given in (("qmp_capabilities", {}), (name, arguments)):
                stream.write(json.dumps({"execute": each, "arguments": given}) + "\n")
                stream.flush()
                answer = {}
                while not answer.keys() & {"return", "error"}:  # events come between
                    answer = json.loads(stream.readline())
            assert "return" in answer, (name, answer)
            return answer["return"]

    def migration_is_done(self) -> bool:
        """Whether the migration is complete; that it failed is a failure."""
        status = self.command("query-migrate").get("status")
        assert status != "failed", self.errors.read_text()
        return bool(status == "completed")

    def ignore_shared(self) -> None:
        """Leave the memory out of the migration's stream: it is elsewhere."""
        capability = {"capability": "x-ignore-shared", "state": True}
        self.command("migrate-set-capabilities", capabilities=[capability])

    def set_balloon(self, size_bytes: int) -> None:
        """Have the guest's balloon leave it so much, and wait until it does."""
        self.command("balloon", value=size_bytes)
        self.wait_for("the balloon", lambda: self.command("query-balloon")["actual"] == size_bytes)

    def loaded_pages(self) -> int:
        """How many pages its memfd has: those that were loaded, or that it wrote itself."""
        fds = Path(f"/proc/{self.process.pid}/fd")
        for fd in fds.iterdir():
            if os.readlink(fd).startswith("/memfd:memory-backend-memfd"):
                return fd.stat().st_blocks * 512 // PAGE
        raise AssertionError("QEMU has no memfd for its memory")


def _connects(client: socket.socket, path: Path) -> bool:
    try:
        client.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True
