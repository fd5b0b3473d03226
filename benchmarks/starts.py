"""What is read of an image, and how long commands take to start."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .bench import Bench
from .data import GIB, MIB, ROOT, environment
from .runner import NotMeasuredError, Row, in_turns

_KIB_LIMIT, _START_LIMIT_MS = 256, 140

_STEPS = {
    "read of the image by open()": "lazyrestore.open(sys.argv[1])",
    "read of it by restore() and first access": (
        "lazyrestore.restore(sys.argv[1], lazy=True, prefetch='none')['memory'][1 << 20]"
    ),
}


def bytes_read(bench: Bench) -> Iterator[Row]:
    """Bytes of the image that opening and the first access read, by strace."""
    nbytes = 256 * MIB if bench.is_quick else 2 * GIB
    image = bench.data.large(nbytes)
    if shutil.which("strace") is None:
        raise NotMeasuredError("strace is missing: apt-get install strace")
    for what, code in _STEPS.items():
        kib = _read_of(image, f"import sys, lazyrestore; {code}") / 1024
        yield Row(
            "bytes",
            f"{what}, {nbytes / GIB:g} GiB",
            data="all three",
            unit="KiB",
            ours=[kib],
            limit=_KIB_LIMIT,
        )


def _read_of(image: Path, code: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        # One log a thread (-ff): lines of one call are not split by those of another.
        log = Path(folder) / "log"
        tracer = ["strace", "-ff", "-y", "-o", str(log), "-e", "trace=read,pread64,readv,preadv"]
        done = subprocess.run(
            [*tracer, sys.executable, "-c", code, str(image)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise NotMeasuredError("strace may not trace here")
        return sum(
            int(read[1])
            for file in Path(folder).iterdir()
            for line in file.read_text().splitlines()
            if f"<{image}>" in line and (read := re.search(r"= (\d+)$", line))
        )


def commands(bench: Bench) -> Iterator[Row]:
    """Whole commands, beside an interpreter that does nothing."""
    image = bench.data.zeros(64)
    line = "import sys; from lazyrestore.cli import main; sys.exit(main())"
    ways = {
        "nothing": ["-c", "pass"],
        "lazyrestore --version": ["-c", line, "--version"],
        "restore --lazy --json": ["-c", line, "restore", "--lazy", "--json", str(image)],
    }
    found = in_turns({name: _timer(given) for name, given in ways.items()}, 3 * bench.few)
    nothing = found.pop("nothing")
    for name, times in found.items():
        above = [took - base for took, base in zip(times, nothing, strict=True)]
        yield Row(
            "start",
            f"{name}: time above that of `python -c pass`",
            unit="ms",
            ours=above,
            limit=_START_LIMIT_MS,
        )


def _timer(given: list[str]) -> Callable[[], float]:
    def measure() -> float:
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, *given],
            cwd=ROOT,
            env=environment(),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return (time.perf_counter() - begin) * 1000

    return measure
