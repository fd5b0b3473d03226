"""A virtual machine without a VMM: its processors' faults in memory that is restored lazily.

tests/guests/kvm_guest.c has two processors in long mode add up the guest's memory, one upwards, one
downwards, and mark each place. Code and page tables are lazily restored too, so KVM itself meets
missing pages.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from guest_support import LIMIT_S, compile_c, lazyrestore, run
from keeper_support import Kept
from restore_support import PACKAGE_HOME, TESTS, flip, payloads

pytestmark = pytest.mark.uffd

MIB = 32
SKIP = 77


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    # The core that the package uses, also where another one is being tested.
    built = os.environ.get("LAZYRESTORE_LIBRARY")
    library = Path(built) if built else PACKAGE_HOME / "lazyrestore" / "liblazyrestore.so"
    folder = tmp_path_factory.mktemp("kvm")
    # By the name that programs look for.
    (folder / "liblazyrestore.so.0").symlink_to(library)
    path = compile_c(
        TESTS / "guests" / "kvm_guest.c",
        folder / "kvm_guest",
        *("-pthread", f"-I{PACKAGE_HOME / 'csrc'}", str(library), f"-Wl,-rpath,{folder}"),
    )
    # The same guest in ordinary memory: what fails there is not ours.
    result = subprocess.run([path, "probe"], capture_output=True, text=True, timeout=LIMIT_S)
    if result.returncode == SKIP:
        pytest.skip(f"KVM does not run a guest here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def image(program, tmp_path_factory):
    """The image of a guest's memory, and the sum of it."""
    folder = tmp_path_factory.mktemp("kvm-image")
    (total,) = re.findall(r"^sum (\w{16})$", run(program, "write", folder / "memory", MIB), re.M)
    lazyrestore("dump", "--quiet", "--file", folder / "memory", folder / "memory.lzr")
    return folder / "memory.lzr", total


def expect_right(said, total):
    lines = said.splitlines()
    assert lines.count(f"sum {total}") == 2, said
    assert "marks right" in lines, said


def test_memory_of_a_session(program, image):
    path, total = image
    said = run(program, "map", path)
    expect_right(said, total)
    (faults,) = re.findall(r"^faults (\d+)$", said, re.M)
    assert int(faults) >= (MIB - 1) * 16, "each cluster of 64 KiB was loaded when it was touched"
    assert "errors 0" in said.splitlines()


def test_memory_that_a_service_loads(program, image, tmp_path):
    path, total = image
    with Kept(tmp_path / "vm.sock", path) as service:
        said = run(program, "serve", service.path, MIB)
        expect_right(said, total)
        assert len(service.find("serving")) == 1


def test_what_cannot_be_loaded_stops_the_processor(program, image, tmp_path):
    path, _ = image
    damaged = tmp_path / "damaged.lzr"
    damaged.write_bytes(path.read_bytes())
    found = payloads(damaged, "memory")
    flip(damaged, found[max(found)][0])
    result = subprocess.run(
        [program, "map", damaged], capture_output=True, text=True, timeout=LIMIT_S
    )
    # KVM sends SIGBUS for poisoned memory, or fails with EFAULT; where it interprets the code, it
    # takes the place for a device's, and asks its VMM. Never does the guest read anything.
    assert "sum" not in result.stdout
    if result.returncode != -signal.SIGBUS:
        assert result.returncode == 1, result
        assert re.search(r"KVM_RUN: Bad address|reason 6\b", result.stderr), result
        assert "errors 1" in result.stdout.splitlines()
