"""What a demand fault is made of: system calls, wake-ups, reading and decoding, and the copy."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import peers
from .bench import Bench, pick
from .data import ROOT, environment
from .runner import Row, in_turns

_FEW, _MANY = 500, 2500

_CALLS = {
    "poll": "poll() that finds nothing",
    "read": "read() that finds nothing",
    "zeropage_4k": "UFFDIO_ZEROPAGE of a page, nobody waiting",
    "copy_4k": "UFFDIO_COPY of a page, nobody waiting",
    "copy_64k": "UFFDIO_COPY of 64K, nobody waiting",
}


def parts(bench: Bench) -> Iterator[Row]:
    """The parts of a fault, each measured by itself."""
    name = bench.names[0]
    single, cluster = bench.data.image(name, 4096), bench.data.image(name)
    pages = min(3000, bench.data.pages // 16)
    candidates: dict[str, Callable[[], dict[str, Any]]] = {
        "first touch of ordinary memory": bench.task("anonymous", pages=20_000),
        "hello, one core": bench.task("hello", pages=5000, confine=True),
        "hello, as started": bench.task("hello", pages=5000),
        "waking": bench.task("wakeup"),
        "calls": peers.fault_calls,
        "reading, checking, decoding 4K": bench.task("decode", image=single, clusters=pages),
        "reading, checking, decoding 64K": bench.task("decode", image=cluster, clusters=pages),
        "4K, one core": bench.task("service", image=single, pages=pages, confine=True),
        "4K, as started": bench.task("service", image=single, pages=pages),
        "64K, one core": bench.task("service", image=cluster, pages=pages, confine=True),
        "64K, as started": bench.task("service", image=cluster, pages=pages),
    }
    found = in_turns(candidates, bench.few)
    lines: list[tuple[str, list[float]]] = [
        ("first touch of ordinary memory", pick(found["first touch of ordinary memory"], "p50")),
        ("waking a thread on the same core", pick(found["waking"], "one_core_us")),
        ("waking a thread on an idle core", pick(found["waking"], "two_cores_us")),
    ]
    for key, what in _CALLS.items():
        lines.append((what, pick(found["calls"], key)))
    single_steps = ("reading, checking, decoding 4K", "reading, checking, decoding 64K")
    lines += [(key, pick(found[key], "p50")) for key in single_steps]
    hellos = ("hello, one core", "hello, as started")
    lines += [(f"fault, {key}", pick(found[key], "p50")) for key in hellos]
    for key in ("4K, one core", "4K, as started", "64K, one core", "64K, as started"):
        lines.append((f"fault, {key}", pick(found[key], "touch")))
        lines.append(("  of that in the pager, message to page", pick(found[key], "service")))
    bench.series["anatomy"] = [[what, statistics.median(values)] for what, values in lines]
    for what, values in lines:
        yield Row("anatomy", what, data=name, ours=values)


def system_calls(bench: Bench) -> Iterator[Row]:
    """System calls a fault, by strace: those of many faults less those of few."""
    name = bench.names[0]
    for label, size in (("4K", 4096), ("64K", 65536)):
        image = bench.data.image(name, size)
        if shutil.which("strace") is None:
            note = "not measured: apt-get install strace"
            yield Row("anatomy", f"system calls a fault, {label}", data=name, note=note)
            continue
        few, many = (_count(image, pages) for pages in (_FEW, _MANY))
        faults = many.pop("faults") - few.pop("faults")
        calls = {call: (many[call] - few.get(call, 0)) / faults for call in many}
        shown = {call: round(number, 2) for call, number in calls.items() if number >= 0.05}
        bench.series.setdefault("calls", {})[label] = shown
        text = ", ".join(f"{call} {number:.2f}" for call, number in sorted(shown.items()))
        yield Row(
            "anatomy",
            f"system calls a fault, {label}",
            data=name,
            unit="calls",
            ours=[sum(shown.values())],
            note=text,
        )


def _count(image: Path, pages: int) -> dict[str, int]:
    """How often each system call was made by all threads, and the number of faults."""
    program = (
        "import sys, lazyrestore\n"
        "session = lazyrestore.restore(sys.argv[1], lazy=True, prefetch='none')\n"
        "session['memory'].touch(int(sys.argv[2]), order='random', seed=1)\n"
        "print(session.faults)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "strace"
        tracer = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(log)]
        done = subprocess.run(
            [*tracer, sys.executable, "-c", program, str(image), str(pages)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"strace ended with {done.returncode}: {done.stderr.strip()}")
        found = {"faults": int(done.stdout)}
        for line in log.read_text().splitlines():
            match = re.match(r"\s*(\d+)\s+(\w+)$", line)
            # getrusage is the measurement's own.
            if match and match[2] not in ("total", "getrusage"):
                found[match[2]] = int(match[1])
    return found
