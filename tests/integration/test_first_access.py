"""The first access to a restored image: sooner than decoding it, by one fault, from few bytes.

The times are printed. Asserted is only what noise cannot turn over.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from restore_support import run_in_child

import lazyrestore
from lazyrestore._demo.images import write_text_image

pytestmark = [pytest.mark.uffd, pytest.mark.slow]

SIZE = 512 << 20
OFFSET = 300_000_007  # of the first access: far from both ends, and not at a page's start
LEAST_SPEEDUP = 20
MOST_READ = 1 << 20

# What the `lazyrestore` command is.
COMMAND = "import sys; from lazyrestore.cli import main; sys.exit(main())"

RESTORE = """
import json, sys, time
import lazyrestore

def first_access(path, offset, **options):
    begun = time.perf_counter_ns()
    session = lazyrestore.restore(path, prefetch="none", **options)
    value = session["memory"][offset]
    return session, value, (time.perf_counter_ns() - begun) / 1000

def bytes_read():
    with open("/proc/self/io") as io:
        return next(int(line.split()[1]) for line in io if line.startswith("rchar:"))

path, offset = sys.argv[1], int(sys.argv[2])
"""

LAZY = """
runs = []
lazyrestore.restore, lazyrestore.open(path)  # Python's imports are not what is measured
bytes_read()
for _ in range(7):
    before = bytes_read()
    session, value, us = first_access(path, offset, lazy=True)
    with session:
        read = bytes_read() - before
        stats = session.stats()
    runs.append({"value": value, "us": us, "read": read, "faults": stats.faults,
                 "copied": stats.pages_copied, "zeroed": stats.pages_zeroed})
print(json.dumps(runs))
"""

EAGER = """
session, value, us = first_access(path, offset, lazy=False)
print(json.dumps({"value": value, "us": us}))
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """512 MiB of log text."""
    folder = tmp_path_factory.mktemp("first_access")
    path = folder / "state.lzr"
    write_text_image(str(path), SIZE)
    yield path
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def right_byte(image: Path) -> int:
    """What has to be at OFFSET, read without userfaultfd."""
    with lazyrestore.open(image) as opened:
        return opened.read("memory", OFFSET, 1)[0]


@pytest.fixture(scope="module")
def eager(image: Path) -> dict[str, float]:
    """The first access with lazy=False."""
    out = run_in_child(RESTORE + EAGER, image, OFFSET, timeout=120).stdout
    found: dict[str, float] = json.loads(out)
    return found


def show(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n    {text}", end="")


def test_through_the_api(
    image: Path, right_byte: int, eager: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """At least 20 times sooner than eager, one fault, under 1 MiB read, the right byte"""
    runs = json.loads(run_in_child(RESTORE + LAZY, image, OFFSET, timeout=60).stdout)
    median_us = sorted(run["us"] for run in runs)[len(runs) // 2]
    show(
        capsys,
        f"first access, 512 MiB, API: lazy {median_us / 1000:.2f} ms"
        f" (first run {runs[0]['us'] / 1000:.2f} ms), eager {eager['us'] / 1000:.0f} ms:"
        f" {eager['us'] / median_us:.0f} times sooner; {runs[0]['read'] / 1024:.0f} KiB read",
    )
    assert eager["value"] == right_byte
    for run in runs:
        assert run["value"] == right_byte
        assert run["faults"] == 1
        assert (run["copied"], run["zeroed"]) == (16, 0)  # one cluster of data
        assert 0 < run["read"] < MOST_READ
    assert eager["us"] >= LEAST_SPEEDUP * median_us


def test_through_the_command(
    image: Path, eager: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """`restore --lazy --json`: the same, by its own first_access_us"""
    runs = []
    for _ in range(5):
        # What a child's stderr says is an error, so nothing may be there.
        out = run_in_child(
            COMMAND, "restore", "--lazy", "--prefetch", "none", "--json", image, timeout=60
        ).stdout
        runs.append(json.loads(out))
    median_us = sorted(run["first_access_us"] for run in runs)[len(runs) // 2]
    show(
        capsys,
        f"first access, 512 MiB, restore --lazy --json: {median_us / 1000:.2f} ms,"
        f" eager (API) {eager['us'] / 1000:.0f} ms: {eager['us'] / median_us:.0f} times sooner",
    )
    for run in runs:
        assert run["logical_bytes"] == SIZE
        assert run["faults"] == 1
        assert run["errors"] == []
        assert 0 < run["open_us"] <= run["first_access_us"]
    assert eager["us"] >= LEAST_SPEEDUP * median_us


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_bytes_that_the_command_reads(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted by strace: under 1 MiB of the image is read, and none of it is mapped"""
    # One log a thread (-ff): lines of one call are not split by those of another.
    log = str(tmp_path / "strace")
    tracer = ["strace", "-ff", "-y", "-o", log, "-e", "trace=read,pread64,readv,mmap"]
    if subprocess.run([*tracer, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    run_in_child(COMMAND, "restore", "--lazy", "--json", image, timeout=120, wrap=tuple(tracer))
    logs = [found.read_text() for found in tmp_path.glob("strace.*")]
    ours = [line for text in logs for line in text.splitlines() if f"<{image}>" in line]
    reads = [line for line in ours if not line.startswith("mmap(")]
    assert reads, "strace saw no read of the image"
    assert reads == ours, "the image was mapped"
    sizes = [re.search(r"= (\d+)$", line) for line in reads]
    assert all(sizes), "a read of the image failed"
    read_bytes = sum(int(size.group(1)) for size in sizes if size)
    show(capsys, f"bytes of the image read, by strace: {read_bytes / 1024:.0f} KiB")
    assert 0 < read_bytes < MOST_READ
