"""Firecracker, where there is one: its API over a unix socket, and a kernel that it can boot."""

from __future__ import annotations

import http.client
import json
import lzma
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import zlib
from pathlib import Path
from types import TracebackType

import pytest
from guest_support import BOOT, LIMIT_S, RAM_MIB, Console, GuestFiles, wait_until

ELF = b"\x7fELF"


def find_firecracker() -> str:
    """The program that FIRECRACKER= names or that is on PATH; skips the test without one."""
    named = os.environ.get("FIRECRACKER")
    program = named or shutil.which("firecracker")
    if program is None:
        pytest.skip("no Firecracker: set FIRECRACKER=/path/to/firecracker, or put it on PATH")
    assert os.access(program, os.X_OK), f"FIRECRACKER={named} is not a program"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("Firecracker needs /dev/kvm, which is not there or not for this user")
    return program


def uncompressed_kernel(kernel: Path) -> bytes:
    """The ELF file in a bzImage: Firecracker boots no other. Of Debian's kinds of compression."""
    content = kernel.read_bytes()
    for magic, decompress in (
        (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor().decompress(data)),
        (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(31).decompress(data)),
        (b"\x28\xb5\x2f\xfd", _decompress_zstd),
    ):
        for found in re.finditer(re.escape(magic), content):
            try:
                data = decompress(content[found.start() :])
            except (lzma.LZMAError, zlib.error, ValueError):
                continue  # these bytes were something else
            if data.startswith(ELF):
                return data
    raise AssertionError(f"{kernel} has no kernel that this knows how to decompress")


def _decompress_zstd(data: bytes) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Firecracker:
    """One Firecracker, its API and its guest's serial line."""

    def __init__(
        self, program: str, files: GuestFiles, folder: Path, *, before: bytes = b""
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.files = files
        self.console = Console(files.program, before)
        self.errors = folder / "firecracker.log"
        self._api = folder / "api.sock"
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "--id", folder.name.replace("_", "-"), "--api-sock", str(self._api)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("Firecracker's API", self._api.exists)

    def __enter__(self) -> Firecracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it."""
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

    def wait_for(self, what: str, is_so: object) -> None:
        """Wait for something; that Firecracker ends is a failure."""
        assert callable(is_so)

        def look() -> object:
            ended = self.process.poll()
            assert ended is None, f"Firecracker ended with {ended}: {self.errors.read_text()}"
            return is_so()

        wait_until(what, look)

    def call(self, method: str, path: str, **body: object) -> None:
        """One request, which must succeed."""
        connection = _Connection(self._api)
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request(method, path, json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read().decode()
        finally:
            connection.close()
        assert answer.status in (200, 204), f"{method} {path}: {answer.status} {said}"

    def boot(self, kernel: Path) -> None:
        """Start the guest from nothing."""
        self.call(
            "PUT",
            "/boot-source",
            kernel_image_path=str(kernel),
            initrd_path=str(self.files.initramfs),
            boot_args=f"{BOOT} reboot=k pci=off",
        )
        self.call("PUT", "/machine-config", vcpu_count=1, mem_size_mib=RAM_MIB)
        self.call("PUT", "/actions", action_type="InstanceStart")

    def say(self, letter: bytes) -> None:
        """Type something on the guest's serial line."""
        assert self.process.stdin is not None
        self.process.stdin.write(letter)
        self.process.stdin.flush()
