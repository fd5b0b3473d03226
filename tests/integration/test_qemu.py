"""A Linux guest goes on in another QEMU, whose memory is loaded from an image when it is touched.

The flow is that of docs/qemu.md, with Debian's QEMU and kernel, all emulated. The guest keeps
computing sums over its memory and writing it anew; what it says is compared with what another
process computes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import struct
from pathlib import Path

import pytest
from guest_support import (
    FILL_MIB,
    LIMIT_S,
    MIB,
    PAGE,
    QEMU,
    RAM_MIB,
    GuestFiles,
    Qemu,
    cannot,
    compile_c,
    lazyrestore,
    wait_until,
)
from keeper_support import Kept
from restore_support import TESTS, flip, payloads

pytestmark = [pytest.mark.slow, pytest.mark.uffd]

ROUNDS = 5
GUEST_PAGES = RAM_MIB * MIB // PAGE


class Snapshot:
    """A guest that was stopped: an image of its memory, and the rest of its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = GuestFiles(folder, ("virtio_pci", "virtio_balloon"))
        self.preload = compile_c(
            TESTS.parent / "examples/qemu/lazyrestore_preload.c",
            folder / "lazyrestore_preload.so",
            *("-shared", "-fPIC"),
        )
        self.image = folder / "ram.lzr"
        self.state = folder / "dev.state"
        memory = folder / "ram"
        with Qemu(self.files, folder, f"memory-backend-file,mem-path={memory}") as source:
            source.wait_for("the first rounds", lambda: source.console.new_rounds() >= ROUNDS)
            source.command("stop")
            source.ignore_shared()
            source.command("migrate", uri=f"exec:cat > {self.state}")
            source.wait_for("the state is written", source.migration_is_done)
            source.kill()
            self.console = source.console.text
        report = json.loads(lazyrestore("dump", "--json", "--file", memory, self.image))
        self.data_bytes = report["data_bytes"]
        memory.unlink()

    def start(self, folder: Path, path: Path, pages: str = "") -> Qemu:
        """A new QEMU, as yet without the guest's state."""
        folder.mkdir(exist_ok=True)
        return Qemu(
            self.files,
            folder,
            f"memory-backend-memfd{pages}",
            *("-incoming", "defer"),
            before=self.console,
            extra_environment={"LD_PRELOAD": str(self.preload), "LAZYRESTORE_SOCKET": str(path)},
        )

    def give_state(self, qemu: Qemu) -> None:
        """Give it the state; the guest is paused then."""
        qemu.ignore_shared()
        qemu.command("migrate-incoming", uri=f"exec:cat {self.state}")
        qemu.wait_for("the state is read", qemu.migration_is_done)

    def go_on(self, qemu: Qemu) -> int:
        """Give it the state, and let the guest run: returns how many pages were there by then.

        How many it touches before the next look depends on how busy this machine is.
        """
        self.give_state(qemu)
        loaded = qemu.loaded_pages()
        qemu.command("cont")
        return loaded


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    if shutil.which(QEMU) is None:
        cannot(f"{QEMU} is not installed: apt-get install qemu-system-x86")
    return Snapshot(tmp_path_factory.mktemp("qemu"))


def some_rounds(qemu):
    seen = qemu.console.new_rounds()
    qemu.wait_for("more rounds", lambda: qemu.console.new_rounds() >= seen + ROUNDS)


def test_a_guest_goes_on_and_needs_no_service_in_the_end(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    with (
        Kept(path, snapshot.image, "--grace", LIMIT_S) as service,
        snapshot.start(tmp_path, path) as qemu,
    ):
        loaded = snapshot.go_on(qemu)
        assert loaded < GUEST_PAGES // 4
        some_rounds(qemu)
        assert qemu.loaded_pages() > loaded

        # Told to end, the service loads what is missing first.
        assert service.stop() == 0
        service.wait_until_all_ended()
        assert qemu.loaded_pages() > FILL_MIB * MIB // PAGE
        qemu.check_all()
        some_rounds(qemu)
        qemu.console.expect_right()


def test_all_memory_by_faults_for_two_guests_of_one_image(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    with (
        Kept(path, snapshot.image),
        snapshot.start(tmp_path / "one", path) as one,
        snapshot.start(tmp_path / "two", path) as two,
    ):
        for qemu in (one, two):
            snapshot.go_on(qemu)
        for qemu in (one, two):
            some_rounds(qemu)
            qemu.check_all()
            assert qemu.loaded_pages() >= FILL_MIB * MIB // PAGE
            qemu.console.expect_right()


def test_the_guest_goes_on_when_the_service_is_killed(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    with Kept(path, snapshot.image) as service:
        with snapshot.start(tmp_path, path) as qemu:
            snapshot.go_on(qemu)
            some_rounds(qemu)
            service.wait_for_keeper()
            service.kill_server()
            qemu.check_all()
            qemu.console.expect_right()
        # Who has taken over ends with the last guest.
        service.wait_until_all_ended()


def test_what_the_guest_gives_back_stays_away(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    taken = 64 * MIB
    with (
        Kept(path, snapshot.image, "--grace", LIMIT_S) as service,
        snapshot.start(tmp_path, path) as qemu,
    ):
        snapshot.go_on(qemu)
        some_rounds(qemu)
        qemu.set_balloon(RAM_MIB * MIB - taken)
        assert service.stop() == 0
        service.wait_until_all_ended()
        # All that was not empty has come, but for what the balloon took: of that most was not
        # empty. (A page may come between QEMU's two system calls that give it back.)
        assert qemu.loaded_pages() < (snapshot.data_bytes - taken // 2) // PAGE
        qemu.check_all()
        qemu.set_balloon(RAM_MIB * MIB)
        some_rounds(qemu)
        qemu.check_all()
        qemu.console.expect_right()


def test_system_calls_of_qemu_get_the_pages(snapshot, tmp_path):
    path, core, memory = tmp_path / "vm.sock", tmp_path / "core", tmp_path / "memory"
    lazyrestore("restore", "--quiet", snapshot.image, "--region", "memory", "-o", memory)
    with Kept(path, snapshot.image), snapshot.start(tmp_path, path) as qemu:
        snapshot.give_state(qemu)
        # It writes a core file straight from the guest's memory.
        qemu.command("dump-guest-memory", paging=False, protocol=f"file:{core}")
    compared = 0
    with core.open("rb") as one, memory.open("rb") as other:
        for address, length, offset in loads_above_1_mib(core):
            one.seek(offset)
            other.seek(address)
            for _ in range(length // PAGE):
                assert one.read(PAGE) == other.read(PAGE), hex(other.tell() - PAGE)
            compared += length
    assert compared == (RAM_MIB - 1) * MIB


def loads_above_1_mib(core):
    """(physical address, length, offset in the file) of what a core file has: RAM, in its order."""
    found = []
    with core.open("rb") as file:
        header = struct.unpack("<16sHHIQQQIHHHHHH", file.read(64))
        file.seek(header[5])
        for _ in range(header[10]):
            kind, _, offset, _, address, length, _, _ = struct.unpack("<IIQQQQQQ", file.read(56))
            below = max(0, MIB - address)
            if kind == 1 and below < length and address + length <= RAM_MIB * MIB:
                found.append((address + below, length - below, offset + below))
    return found


@pytest.fixture
def huge_pages():
    """As many free pages of 2 MiB as a guest needs."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    try:
        setting.write_text(str(int(before) + RAM_MIB // 2))
    except OSError as error:
        pytest.skip(f"huge pages cannot be reserved: {error}")
    try:
        free = re.search(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())
        if int(free[1]) < RAM_MIB // 2:
            pytest.skip(f"only {free[1]} huge pages are free, of {RAM_MIB // 2}")
        yield
    finally:
        setting.write_text(before)


def test_memory_of_huge_pages(snapshot, tmp_path, huge_pages):
    path = tmp_path / "vm.sock"
    with (
        Kept(path, snapshot.image, "--grace", LIMIT_S) as service,
        snapshot.start(tmp_path, path, ",hugetlb=on,hugetlbsize=2M") as qemu,
    ):
        loaded = snapshot.go_on(qemu)
        assert loaded < GUEST_PAGES // 2
        some_rounds(qemu)
        assert qemu.loaded_pages() > loaded
        assert service.stop() == 0
        service.wait_until_all_ended()
        qemu.check_all()
        qemu.console.expect_right()


def test_a_guest_whose_memory_cannot_be_loaded_is_ended(snapshot, tmp_path):
    path = tmp_path / "vm.sock"
    image = tmp_path / "damaged.lzr"
    shutil.copy(snapshot.image, image)
    with Kept(path, image) as service, snapshot.start(tmp_path, path) as qemu:
        snapshot.go_on(qemu)
        some_rounds(qemu)
        for offset, _ in payloads(image, "memory").values():
            flip(image, offset)
        qemu.say(b"a")
        wait_until("QEMU is ended", lambda: qemu.process.poll() is not None)
        assert qemu.process.returncode == -signal.SIGKILL
        assert not qemu.console.all_checks()
        service.wait("gone")
        assert service.process.poll() is None, "it goes on for others"


def test_without_a_service_qemu_does_not_start(snapshot, tmp_path):
    path = tmp_path / "nobody.sock"
    with snapshot.start(tmp_path, path) as qemu:
        assert qemu.process.wait(LIMIT_S) == 1
        said = qemu.errors.read_text()
    assert f"lazyrestore_preload: {path}: {os.strerror(errno.ENOENT)}" in said
