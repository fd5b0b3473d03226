"""The demo's steps: build a state, dump it while it lives, restore it both ways, and compare."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import lazyrestore
from lazyrestore.errors import KernelError, LazyRestoreError
from lazyrestore.region import PlacedRegion, Region
from lazyrestore.reports import DumpReport, Latency
from lazyrestore.session import Session

from .target import Target

Say = Callable[[str], None]

DEFAULT_BYTES = 320 << 20

_LAZY_RUNS = 5
_RANDOM_TOUCHES = 4096


class Differs(LazyRestoreError):
    """What was restored is not what was dumped."""


@dataclasses.dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo saw. Sizes in bytes, times in microseconds unless the name says seconds.

    Attributes:
        image: path, or None where it was not kept.
        pid: of the program.
        build_seconds: in which the program built its state.
        logical_bytes, stored_bytes, ratio, zero_bytes, hole_bytes, duplicate_bytes: of the image.
        regions: how many were dumped.
        dump_seconds: opening to closing of the image.
        frozen_us: how long the program was stopped.
        beats_before, beats_after: what the program had counted before and after the dump.
        eager_first_access_us: from calling restore(lazy=False) to the first byte.
        eager_resident_bytes: memory that it then costs.
        lazy: True if pages came when they were touched; else what follows is None.
        lazy_first_access_us: from calling restore(lazy=True) to the first byte; median.
        speedup: eager_first_access_us / lazy_first_access_us.
        first_access_faults: that the first access took.
        first_access_resident_bytes: memory after the first access.
        touch_us: what a touch that faulted waited, over random pages of the log text.
        all_faults: that reading everything took.
        all_resident_bytes: memory after everything was read.
        privilege: "full", "user-mode-only", or "none" (eager).
        compared_bytes: that were compared between the two, and with what the program told.
        objects: single objects that were looked up at their addresses.
        notes: what the kernel did not allow, and what to do about it.
        total_seconds: for everything.
    """

    image: str | None
    pid: int
    build_seconds: float
    logical_bytes: int
    stored_bytes: int
    ratio: float
    zero_bytes: int
    hole_bytes: int
    duplicate_bytes: int
    regions: int
    dump_seconds: float
    frozen_us: int | None
    beats_before: int
    beats_after: int
    eager_first_access_us: float
    eager_resident_bytes: int
    lazy: bool
    lazy_first_access_us: float | None
    speedup: float | None
    first_access_faults: int | None
    first_access_resident_bytes: int | None
    touch_us: Latency | None
    all_faults: int | None
    all_resident_bytes: int | None
    privilege: str
    compared_bytes: int
    objects: int
    notes: tuple[str, ...]
    total_seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Lazy:
    first_access_us: float
    first_access_faults: int
    first_access_resident_bytes: int
    touch_us: Latency | None
    all_faults: int
    all_resident_bytes: int
    privilege: str


def run(nbytes: int, image: str, *, is_kept: bool, say: Say) -> DemoReport:
    """Run the demo.

    Args:
        nbytes: of state, about.
        image: path of the image to make.
        is_kept: the image stays: mention it.
        say: gets one line of progress for each step.

    Raises:
        Differs: the restored contents are not what was dumped.
        LazyRestoreError, OSError: a step failed.
    """
    begun = time.perf_counter()
    say(f"starting a program that builds {nbytes >> 20} MiB of state ...")
    with Target(nbytes) as target:
        target.wait_ready()
        before = target.describe()
        say(f"dumping it (pid {target.pid}) while it lives ...")
        report = lazyrestore.dump(lazyrestore.ProcessMemory(target.pid), image)
        beats_after = _check_alive(target, before)
        pid, build_seconds = target.pid, target.build_seconds

    log = next(found for found in before["buffers"] if found["name"] == "log text")
    say("restoring it eagerly ...")
    eager_us, eager_bytes, eager_digests = _restore_eagerly(image, log["address"], before)
    say("restoring it lazily ...")
    notes: list[str] = []
    lazy = _restore_lazily(image, log["address"], before, eager_digests, notes)
    return DemoReport(
        image=image if is_kept else None,
        pid=pid,
        build_seconds=build_seconds,
        logical_bytes=report.logical_bytes,
        stored_bytes=report.stored_bytes,
        ratio=report.ratio,
        zero_bytes=report.zero_bytes,
        hole_bytes=report.hole_bytes,
        duplicate_bytes=report.duplicate_bytes,
        regions=len(report.regions),
        dump_seconds=report.seconds,
        frozen_us=report.frozen_us,
        beats_before=before["beats"],
        beats_after=beats_after,
        eager_first_access_us=eager_us,
        eager_resident_bytes=eager_bytes,
        lazy=lazy is not None,
        lazy_first_access_us=lazy.first_access_us if lazy else None,
        speedup=eager_us / lazy.first_access_us if lazy else None,
        first_access_faults=lazy.first_access_faults if lazy else None,
        first_access_resident_bytes=lazy.first_access_resident_bytes if lazy else None,
        touch_us=lazy.touch_us if lazy else None,
        all_faults=lazy.all_faults if lazy else None,
        all_resident_bytes=lazy.all_resident_bytes if lazy else None,
        privilege=lazy.privilege if lazy else "none",
        compared_bytes=_compared_bytes(report),
        objects=len(before["objects"]["places"]),
        notes=tuple(notes),
        total_seconds=time.perf_counter() - begun,
    )


def _compared_bytes(report: DumpReport) -> int:
    return sum(region.length for region in report.regions)


def _check_alive(target: Target, before: Mapping[str, Any]) -> int:
    """The program still answers from its index, and its counting goes on."""
    first = target.ask("")["beats"]
    deadline = time.monotonic() + 10
    while (answer := target.ask(""))["beats"] <= first:
        if time.monotonic() > deadline:
            raise LazyRestoreError(
                f"pid {target.pid} does not run any more after the dump: it was left stopped"
            )
        time.sleep(0.005)
    if answer["users"] != before["users"]:
        raise LazyRestoreError(f"pid {target.pid} answers otherwise than before the dump")
    return int(answer["beats"])


def _restore_eagerly(
    image: str, address: int, before: Mapping[str, Any]
) -> tuple[float, int, dict[str, bytes]]:
    # Imports are not what is measured; the lazy restores find them done.
    for module in ("_restore", "_decode"):
        import_module(f"lazyrestore.{module}")
    begun = time.perf_counter_ns()
    with lazyrestore.restore(image, lazy=False) as session:
        region, offset = _find(session, address)
        region[offset]
        first_us = (time.perf_counter_ns() - begun) / 1000
        resident = session.stats().resident_bytes
        digests = _digests(session)
        _compare_with_program(session, before)
    return first_us, resident, digests


def _restore_lazily(
    image: str,
    address: int,
    before: Mapping[str, Any],
    expected: Mapping[str, bytes],
    notes: list[str],
) -> _Lazy | None:
    """None, and a note, where the kernel allows no lazy restore at all."""
    times: list[float] = []
    try:
        for _ in range(_LAZY_RUNS):
            session, first_us = _access_lazily(image, address)
            times.append(first_us)
            if len(times) < _LAZY_RUNS:
                session.close()
    except KernelError as error:
        notes.append(f"no lazy restore here: {error}")
        return None
    with session:
        first = session.stats()
        if first.privilege == "user-mode-only":
            notes.append(
                "userfaultfd is allowed for user-mode faults only: loads and stores are served, but"
                " system calls on missing pages are not; run `lazyrestore doctor`"
            )
        region, _ = _find(session, address)
        region.touch(_RANDOM_TOUCHES, order="random", seed=1)
        touched = session.stats()
        _compare_with_program(session, before)
        found = _digests(session)
        for name, digest in expected.items():
            if found[name] != digest:
                raise Differs(f"region {name} differs between eager and lazy restore")
        if session.errors:
            raise Differs(f"not everything could be loaded: {session.errors[0]}")
        last = session.stats()
    return _Lazy(
        first_access_us=statistics.median(times),
        first_access_faults=first.faults,
        first_access_resident_bytes=first.resident_bytes,
        touch_us=touched.touch_us,
        all_faults=last.faults,
        all_resident_bytes=last.resident_bytes,
        privilege=last.privilege,
    )


def _access_lazily(image: str, address: int) -> tuple[Session, float]:
    begun = time.perf_counter_ns()
    session = lazyrestore.restore(image, lazy=True, prefetch="none", privilege="auto")
    region, offset = _find(session, address)
    region[offset]
    return session, (time.perf_counter_ns() - begun) / 1000


def _find(session: Session, address: int) -> tuple[Region | PlacedRegion, int]:
    """The region in which an address of the program is, and where in it."""
    for name, region in session.items():
        start, _, end = name.partition("-")
        if int(start, 16) <= address < int(end, 16):
            return region, address - int(start, 16)
    raise Differs(f"address {address:#x} of the program is in no region of the image")


def _digests(session: Session) -> dict[str, bytes]:
    """Digest of every region: reads all of its memory."""
    from lazyrestore._blake3 import blake3_digest

    digests = {}
    for name, region in session.items():
        with memoryview(region) as view:
            digests[name] = blake3_digest(view)
    return digests


def _compare_with_program(session: Session, before: Mapping[str, Any]) -> None:
    """Compare what is at the program's addresses with what the program said is there."""
    for buffer in before["buffers"]:
        region, offset = _find(session, buffer["address"])
        with memoryview(region) as view:
            part = view[offset : offset + buffer["length"]]
            digest = hashlib.blake2b(part).hexdigest()
            part.release()
        if digest != buffer["digest"]:
            raise Differs(f"the program's {buffer['name']} is not what was restored")
    objects = before["objects"]
    contents = hashlib.blake2b()
    for address, length in objects["places"]:
        region, offset = _find(session, address)
        contents.update(region[offset : offset + length])
    if contents.hexdigest() != objects["digest"]:
        raise Differs("the program's objects are not what was restored")


def image_path(folder: str) -> str:
    """Where in a folder the demo writes its image."""
    return os.path.join(folder, "demo.lzr")
