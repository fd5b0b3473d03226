"""A microVM of a real Firecracker goes on from a snapshot whose memory is loaded when touched.

Runs where there is a Firecracker; the flow is that of docs/firecracker.md. The guest is that of
test_qemu.py: Debian's kernel, and one program that keeps checking its memory.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from firecracker_support import Firecracker, find_firecracker, uncompressed_kernel
from guest_support import FILL_MIB, LIMIT_S, RAM_MIB, GuestFiles, lazyrestore
from keeper_support import Kept

pytestmark = [pytest.mark.slow, pytest.mark.uffd]

ROUNDS = 5


class Snapshot:
    """A microVM that was paused and written out: an image of its memory, and its state."""

    def __init__(self, program, folder):
        self.program = program
        self.files = GuestFiles(folder)
        self.image = folder / "memory.lzr"
        self.state = folder / "state"
        kernel = folder / "vmlinux"
        kernel.write_bytes(uncompressed_kernel(self.files.kernel))
        with Firecracker(program, self.files, folder / "source") as source:
            source.boot(kernel)
            source.wait_for("the first rounds", lambda: source.console.new_rounds() >= ROUNDS)
            source.call("PATCH", "/vm", state="Paused")
            source.call(
                "PUT",
                "/snapshot/create",
                snapshot_type="Full",
                snapshot_path=str(self.state),
                mem_file_path=str(folder / "memory"),
            )
            source.kill()
            self.console = source.console.text
        lazyrestore("dump", "--quiet", "--file", folder / "memory", self.image)
        (folder / "memory").unlink()

    def go_on(self, folder, socket):
        one = Firecracker(self.program, self.files, folder, before=self.console)
        try:
            one.call(
                "PUT",
                "/snapshot/load",
                snapshot_path=str(self.state),
                mem_backend={"backend_type": "Uffd", "backend_path": str(socket)},
                resume_vm=True,
            )
        except BaseException:
            one.kill()
            raise
        return one


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return Snapshot(find_firecracker(), tmp_path_factory.mktemp("firecracker"))


def some_rounds(one):
    seen = one.console.new_rounds()
    one.wait_for("more rounds", lambda: one.console.new_rounds() >= seen + ROUNDS)


def check_all(one):
    count = len(one.console.all_checks())
    one.say(b"a")
    one.wait_for("a check of all memory", lambda: len(one.console.all_checks()) > count)
    one.console.expect_all_right()


def resident_mib(one):
    status = Path(f"/proc/{one.process.pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)[1]) // 1024


def test_a_microvm_goes_on_and_needs_no_service_in_the_end(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    with (
        Kept(path, snapshot.image, "--grace", LIMIT_S) as service,
        snapshot.go_on(tmp_path / "one", path) as one,
    ):
        some_rounds(one)
        assert resident_mib(one) < RAM_MIB // 3
        assert service.stop() == 0
        service.wait_until_all_ended()
        assert resident_mib(one) > FILL_MIB
        check_all(one)
        one.console.expect_right()


def test_the_microvm_goes_on_when_the_service_is_killed(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    with Kept(path, snapshot.image) as service:
        with snapshot.go_on(tmp_path / "one", path) as one:
            some_rounds(one)
            service.wait_for_keeper()
            service.kill_server()
            check_all(one)
            one.console.expect_right()
        service.wait_until_all_ended()


def test_two_microvms_of_one_image(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    with (
        Kept(path, snapshot.image) as service,
        snapshot.go_on(tmp_path / "one", path) as one,
        snapshot.go_on(tmp_path / "two", path) as two,
    ):
        for each in (one, two):
            check_all(each)
            each.console.expect_right()
        one.kill()
        service.wait("gone")
        some_rounds(two)
