"""What people would use instead: mounting, decompressing, paging by signals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .data import ROOT
from .runner import NotMeasuredError

SHM = Path("/dev/shm")


@contextlib.contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """The folder where a squashfs is mounted, by a loop device, while this lasts."""
    if os.geteuid() != 0:
        raise NotMeasuredError("only root can mount a squashfs")
    folder = tempfile.mkdtemp(prefix="lazyrestore-bench-")
    try:
        _call("mount", "-t", "squashfs", "-o", "loop,ro", image, folder)
        try:
            yield Path(folder)
        finally:
            _call("umount", folder)
    finally:
        os.rmdir(folder)


def _call(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotMeasuredError(f"{command[0]}: {done.stderr.strip() or done.returncode}")


def in_memory(name: str) -> Path:
    """A name for a file in tmpfs."""
    if not SHM.is_dir():
        raise NotMeasuredError(f"there is no {SHM}")
    return SHM / f"lazyrestore-bench-{os.getpid()}-{name}"


def timed(*command: str | Path, environment: dict[str, str] | None = None) -> float:
    """Wall time of a command, in microseconds."""
    begin = time.perf_counter_ns()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return (time.perf_counter_ns() - begin) / 1000


def unpack(zst: Path) -> dict[str, Any]:
    """`zstd -d` into a fresh file of tmpfs; microseconds."""
    path = in_memory("unpacked")
    try:
        return {"us": timed("zstd", "-d", "-q", "-f", "-o", path, zst)}
    finally:
        path.unlink(missing_ok=True)


def pack(raw: Path) -> dict[str, Any]:
    """`zstd -3 -T2` into tmpfs: microseconds, and bytes."""
    path = in_memory("packed")
    try:
        took = timed("zstd", "-3", "-T2", "-q", "-f", "-o", path, raw)
        return {"us": took, "stored_bytes": path.stat().st_size}
    finally:
        path.unlink(missing_ok=True)


def segv_touch(pages: int, order: str) -> dict[str, Any]:
    """Run segv_pager.c."""
    return _run_built("segv_pager", str(pages), order)


def fault_calls() -> dict[str, Any]:
    """Run fault_calls.c."""
    return _run_built("fault_calls")


def _run_built(name: str, *arguments: str) -> dict[str, Any]:
    """Build a C program of this folder, run it, and read what it prints."""
    program = built(name)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        raise NotMeasuredError("there is no userfaultfd here")
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def built(name: str) -> Path:
    """A C program of this folder."""
    source = ROOT / "benchmarks" / f"{name}.c"
    program = ROOT / "build" / "bench" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "gcc")
        if shutil.which(compiler) is None:
            raise NotMeasuredError(f"{compiler} is missing: apt-get install gcc libc6-dev")
        _call(compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-o", program, source)
    return program
