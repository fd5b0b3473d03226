"""Measure the first access to a restored image, and what it costs, against the figures to reach.

    python benchmarks/first_access.py [--quick] [--json FILE] [--check] [--folder DIR]

See README.md beside it. Peers of one row are measured in turns, in one run; medians are shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lazyrestore
from lazyrestore._demo.images import write_sparse_image, write_text_image

MIB, GIB = 1 << 20, 1 << 30

# What the `lazyrestore` command is, run by this interpreter.
COMMAND = [sys.executable, "-c", "import sys; from lazyrestore.cli import main; sys.exit(main())"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure. `met` is None where there is no target, or it could not be measured."""

    figure: str
    value: float | None
    unit: str
    target: str = ""
    met: bool | None = None
    note: str = ""


def first_access_us(path: Path, offset: int, *, lazy: bool) -> float:
    """From calling restore() to the first byte."""
    begun = time.perf_counter_ns()
    session = lazyrestore.restore(path, lazy=lazy, prefetch="none")
    session["memory"][offset]
    took_us = (time.perf_counter_ns() - begun) / 1000
    session.close()
    return took_us


def sizes_alike(small: Path, large: Path, large_bytes: int, repeats: int) -> list[Row]:
    """The time to first access does not depend on the image's size."""
    small_us, large_us = [], []
    for turn in range(repeats + 3):
        times = (
            first_access_us(small, 32 * MIB, lazy=True),
            first_access_us(large, large_bytes // 2, lazy=True),
        )
        if turn >= 3:  # the first are to warm up
            small_us.append(times[0])
            large_us.append(times[1])
    medians = statistics.median(small_us), statistics.median(large_us)
    ratio = max(medians) / min(medians)
    gib = large_bytes // GIB
    return [
        Row("first access, 64 MiB image", medians[0] / 1000, "ms", "< 5", medians[0] < 5000),
        Row(f"first access, {gib} GiB image", medians[1] / 1000, "ms", "< 5", medians[1] < 5000),
        Row("  the slower / the faster of the two", ratio, "x", "<= 1.5", ratio <= 1.5),
    ]


def against_eager(image: Path, nbytes: int, repeats: int) -> list[Row]:
    """The first access is sooner than after decoding everything."""
    offset = nbytes // 3
    first_access_us(image, offset, lazy=True)
    lazy_us, eager_us = [], []
    for _ in range(repeats):
        eager_us.append(first_access_us(image, offset, lazy=False))
        lazy_us.extend(first_access_us(image, offset, lazy=True) for _ in range(5))
    lazy, eager = statistics.median(lazy_us), statistics.median(eager_us)
    what = f"first access, {nbytes / GIB:g} GiB of text"
    rate = nbytes / eager / 1000
    return [
        Row(f"{what}, lazy", lazy / 1000, "ms"),
        Row(f"{what}, eager", eager / 1000, "ms", note=f"{rate:.2f} GB/s"),
        Row("  eager / lazy", eager / lazy, "x", ">= 500", eager / lazy >= 500),
    ]


def bytes_read(image: Path, folder: Path) -> list[Row]:
    """What opening, and the first access, read of the image, as strace sees it."""
    steps = {
        "bytes of the image read by open()": "lazyrestore.open(sys.argv[1])",
        "bytes read by restore() and first access": (
            "lazyrestore.restore(sys.argv[1], lazy=True, prefetch='none')['memory'][1 << 20]"
        ),
    }
    rows = []
    for what, code in steps.items():
        found, note = None, ""
        if shutil.which("strace") is None:
            note = "not measured: apt-get install strace"
        else:
            found = _strace(f"import sys, lazyrestore; {code}", image, folder)
            if found is None:
                note = "not measured: strace may not trace here"
        limit = 256 * 1024
        met = None if found is None else found < limit
        kib = None if found is None else found / 1024
        rows.append(Row(what, kib, "KiB", "< 256", met, note))
    return rows


def _strace(code: str, image: Path, folder: Path) -> int | None:
    log = folder / "strace"
    # One log a thread (-ff): lines of one call are not split by those of another.
    tracer = ["strace", "-ff", "-y", "-o", str(log), "-e", "trace=read,pread64,readv,preadv"]
    command = [*tracer, sys.executable, "-c", code, str(image)]
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        return None
    total = 0
    for found in folder.glob("strace.*"):
        for line in found.read_text().splitlines():
            read = re.search(r"= (\d+)$", line)
            if f"<{image}>" in line and read:
                total += int(read.group(1))
        found.unlink()
    return total


MEMORY = """
import sys, lazyrestore
def memory():
    with open("/proc/self/status") as status:
        found = dict(line.split(":", 1) for line in status)
    return [int(found[key].split()[0]) for key in ("VmRSS", "VmPTE")]
path, offset = sys.argv[1], int(sys.argv[2])
lazyrestore.restore, lazyrestore.Session, memory()
before = memory()
session = lazyrestore.restore(path, lazy=True, prefetch="none")
session["memory"][offset]
after = memory()
print(sum(after) - sum(before))
"""


def resident_growth(image: Path, what: str) -> Row:
    """Memory, page tables included, that a process grows by until the first byte."""
    command = [sys.executable, "-c", MEMORY, str(image), str(MIB)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    mib = int(out) / 1024
    return Row(f"memory after first access, {what}", mib, "MiB", "< 8", mib < 8)


def start_up(folder: Path, repeats: int) -> list[Row]:
    """Wall time of whole commands above that of an interpreter that does nothing."""
    small = folder / "small.lzr"
    write_text_image(str(small), MIB)
    commands = {
        "python3 -c pass": [sys.executable, "-c", "pass"],
        "lazyrestore --version": [*COMMAND, "--version"],
        "restore --lazy --json, 1 MiB": [*COMMAND, "restore", "--lazy", "--json", str(small)],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:  # the first compiles modules
                times[name].append((time.perf_counter() - begun) * 1000)
    (base_name, base_ms), *rest = ((name, statistics.median(t)) for name, t in times.items())
    rows = [Row(base_name, base_ms, "ms")]
    for name, took_ms in rest:
        above = took_ms - base_ms
        note = f"{took_ms:.0f} ms in all"
        rows.append(Row(f"{name}: above that", above, "ms", "<= 140", above <= 140, note))
    return rows


def measure(folder: Path, *, is_quick: bool, say: Callable[[str], None]) -> list[Row]:
    """Build the images and measure everything."""
    text_bytes = 256 * MIB if is_quick else 2 * GIB
    large_bytes = 64 * GIB
    small, large, text = folder / "64m.lzr", folder / "64g.lzr", folder / "text.lzr"
    say("building the images ...")
    write_text_image(str(small), 64 * MIB)
    write_sparse_image(str(large), large_bytes)
    write_text_image(str(text), text_bytes)
    say("measuring ...")
    rows = sizes_alike(small, large, large_bytes, 10 if is_quick else 50)
    eager_rows = against_eager(text, text_bytes, 2 if is_quick else 5)
    if is_quick:  # the target is for 2 GiB
        last = eager_rows[-1]
        note = "quick: no target below 2 GiB"
        eager_rows[-1] = dataclasses.replace(last, target="", met=None, note=note)
    rows += eager_rows
    rows += bytes_read(text, folder)
    rows.append(resident_growth(text, f"{text_bytes / GIB:g} GiB of text"))
    rows.append(resident_growth(large, "64 GiB, mostly zeros"))
    return rows + start_up(folder, 5 if is_quick else 20)


def show(rows: list[Row]) -> None:
    """Print the table."""
    width = max(len(row.figure) for row in rows)
    verdicts = {True: "met", False: "MISSED", None: ""}
    print(f"{'figure':<{width}}  {'value':>9}  {'':<3}  {'target':>8}")
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.{0 if row.value >= 1000 else 2}f}"
        line = f"{row.figure:<{width}}  {value:>9}  {row.unit:<3}  {row.target:>8}"
        print(f"{line}  {verdicts[row.met]:<6}  {row.note}".rstrip())


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, few repeats")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--folder", metavar="DIR", help="for the images; needs about 1 GiB")
    options = parser.parse_args()

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(text, file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="lazyrestore-bench-", dir=options.folder) as folder:
        rows = measure(Path(folder).resolve(), is_quick=options.quick, say=say)
    show(rows)
    if options.json:
        machine = {"kernel": platform.release(), "python": platform.python_version()}
        found = {**machine, "quick": options.quick, "rows": [dataclasses.asdict(r) for r in rows]}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return int(options.check and any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
