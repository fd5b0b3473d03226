"""Images of known content, and processes that may hang or crash, for the tests of restoring.

Child processes import this module too: it needs nothing but the package.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import lazyrestore

PAGE = 4096
CLUSTER_SIZES = (4096, 16384, 65536, 262144, 2 << 20)
TESTS = Path(__file__).resolve().parent
PACKAGE_HOME = Path(lazyrestore.__file__).resolve().parent.parent


def page_of(number: int, salt: int = 0) -> bytes:
    """A compressible page that no other number has: each 8 bytes of it say which it is."""
    return ((salt << 48) + number + 1).to_bytes(8, "little") * (PAGE // 8)


def noise_of(number: int) -> bytes:
    """A page that does not compress."""
    return random.Random(number).randbytes(PAGE)


def content_of(layout: str, salt: int = 0) -> bytes:
    """What `layout` reads as: d data, r random, z zero, h hole; one letter a page."""
    kinds = {"d": lambda n: page_of(n, salt), "r": noise_of}
    return b"".join(kinds[k](n) if k in kinds else bytes(PAGE) for n, k in enumerate(layout))


def write_image(
    path: str | os.PathLike[str],
    layouts: Mapping[str, str],
    *,
    cluster_size: int = 65536,
    salt: int = 0,
    addresses: Mapping[str, int] | None = None,
) -> dict[str, bytes]:
    """Write an image by layouts (see `content_of`); returns what each region must read as."""
    expected = {name: content_of(layout, salt) for name, layout in layouts.items()}
    with lazyrestore.ImageWriter(path, cluster_size=cluster_size) as image:
        for name, layout in layouts.items():
            image.add_region(name, address=(addresses or {}).get(name, 0))
            for number, kind in enumerate(layout):
                if kind == "h":
                    image.hole(PAGE)
                else:
                    image.write(expected[name][number * PAGE : (number + 1) * PAGE])
    return expected


def payloads(path: str | os.PathLike[str], region: str) -> dict[int, tuple[int, int]]:
    """Where the payload of each cluster of a region lies in the file: number → offset, length."""
    found = {}
    with lazyrestore.open(path) as image, image.reader() as reader:
        number = image.number(region)
        first = image.first_cluster(number)
        count = -(-image.regions[number].length // image.cluster_size)
        for cluster in range(count):
            info = reader.cluster(first + cluster)
            if info.payload_bytes:
                found[cluster] = (int(info.payload_offset), int(info.payload_bytes))
    return found


def flip(path: str | os.PathLike[str], offset: int) -> None:
    """Change one byte of a file in place."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte[0] ^ 0x55]), offset)
    finally:
        os.close(fd)


def run_in_child(
    script: str,
    *arguments: object,
    timeout: float = 30,
    python: str = sys.executable,
    wrap: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    ok: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python of its own; it is killed, and the test fails, after `timeout` s.

    CHECK_TIME_FACTOR multiplies that limit, as it does those of the C tests.
    The script finds `arguments` in sys.argv[1:], and this module by import. With `ok` it must
    exit with 0 and say nothing on stderr.
    """
    timeout *= float(os.environ.get("CHECK_TIME_FACTOR", "1"))
    path = os.pathsep.join((str(TESTS), str(PACKAGE_HOME)))
    home = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
    command = [*wrap, python, "-c", textwrap.dedent(script), *map(str, arguments)]
    child = subprocess.Popen(
        command,
        env=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        raise AssertionError(f"hung for {timeout} s\n--- out\n{out}\n--- err\n{err}") from None
    result = subprocess.CompletedProcess(command, child.returncode, out, err)
    if ok:
        assert result.returncode == 0, f"exit {result.returncode}\n{out}\n{err}"
        assert err == "", err
    return result


def threads_named(name: str = "lazyrestore") -> int:
    """How many threads of this process have that name: pagers, by default."""
    count = 0
    for task in os.listdir("/proc/self/task"):
        try:
            comm = Path(f"/proc/self/task/{task}/comm").read_text().strip()
        except OSError:
            continue
        count += comm == name
    return count


def mapping_at(address: int) -> str | None:
    """The line of /proc/self/maps that holds an address, if any does."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line
    return None


def threads_become(count: int, name: str = "lazyrestore") -> bool:
    """Whether there are so many by and by: one that was joined is in /proc for a moment more."""
    for _ in range(500):
        if threads_named(name) == count:
            return True
        time.sleep(0.01)
    return False
