"""What lazy restores of an image cost on this machine, beside what there is instead; in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lazyrestore
from lazyrestore import _latency, _wakeup
from lazyrestore._native import ffi, lib
from lazyrestore.reports import Latency

from . import hello
from .sample import Sample, generate, take

_MIB = 1 << 20
_PAGE = 4096
# No system call meets a missing page here: an ordinary user's kind does.
_PRIVILEGE = "auto"
_ORDERS = {"sequential": 0, "random": 1}

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        sample_bytes: of the image, at most.
        pages: touched to see single faults, at most.
        repeats: turns.
    """

    sample_bytes: int = 256 * _MIB
    pages: int = 5000
    repeats: int = 5


QUICK = Plan(sample_bytes=32 * _MIB, pages=1000, repeats=3)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One line: medians over all turns, in microseconds.

    Attributes:
        what: is measured.
        name, us: ours.
        other_name, other_us: beside what.
        ratio: us / other_us.
    """

    what: str
    name: str
    us: float
    other_name: str
    other_us: float
    ratio: float


@dataclasses.dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured.

    Attributes:
        image: path that was given; None: a live program was dumped for this.
        measured: what of it was measured, in words.
        measured_bytes: how much that was.
        cluster_size: its.
        repeats: turns.
        rows: one line each.
        faults: single demand faults, by what answered them; in microseconds.
        wakeup: what waking a thread costs.
        explanation: what that means, in sentences.
        settings: what makes it faster.
        notes: what was not measured, and why.
    """

    image: str | None
    measured: str
    measured_bytes: int
    cluster_size: int
    repeats: int
    rows: tuple[Comparison, ...]
    faults: Mapping[str, Latency]
    wakeup: _wakeup.Wakeup
    explanation: tuple[str, ...]
    settings: tuple[_wakeup.Setting, ...]
    notes: tuple[str, ...]


def run(path: str | None, plan: Plan, say: Say) -> BenchReport:
    """Measure it. Leaves nothing behind.

    Args:
        path: the image; None: a live program is dumped.
        plan: how much.
        say: told what is going on.

    Raises:
        KernelError: no userfaultfd can be had.
        OSError, LazyRestoreError: the image cannot be read, or has no data.
    """
    with tempfile.TemporaryDirectory(prefix="lazyrestore-bench-") as folder:
        source = path
        if source is None:
            say("dumping a live program ...")
            source = generate(folder, plan.sample_bytes)
        say("taking a part of the image ...")
        sample = take(source, folder, plan.sample_bytes)
        return _Bench(path, source, sample, plan, say).run()


class _Bench:
    def __init__(
        self, given: str | None, source: str, sample: Sample, plan: Plan, say: Say
    ) -> None:
        self._given = given
        self._source = source
        self._sample = sample
        self._plan = plan
        self._say = say
        self._rows: list[Comparison] = []
        self._faults: dict[str, array[int]] = {}
        self._notes: list[str] = []

    def run(self) -> BenchReport:
        self._say("first accesses ...")
        self._first_access()
        self._say("single faults ...")
        p50 = self._single_faults()
        self._say("sweeps ...")
        self._sweeps()
        wakeup = _wakeup.measure()
        faults = {name: _latency.from_nanoseconds(found) for name, found in self._faults.items()}
        sample = self._sample
        taken_from = sample.taken_from
        if self._given is None:
            taken_from = "memory of a program that was dumped for this"
        return BenchReport(
            image=self._given,
            measured=taken_from,
            measured_bytes=sample.nbytes,
            cluster_size=sample.cluster_size,
            repeats=self._plan.repeats,
            rows=tuple(self._rows),
            faults={name: found for name, found in faults.items() if found is not None},
            wakeup=wakeup,
            explanation=tuple(hello.explain(*p50, wakeup)),
            settings=_wakeup.settings(wakeup),
            notes=tuple(self._notes),
        )

    def _compare(self, what: str, name: str, other: str, found: Mapping[str, list[float]]) -> None:
        us, other_us = statistics.median(found[name]), statistics.median(found[other])
        self._rows.append(Comparison(what, name, us, other, other_us, us / other_us))

    def _first_access(self) -> None:
        sample = self._sample
        found = self._in_turns(
            {
                "lazy": lambda: _first_access_us(self._source, lazy=True),
                "lazy, part": lambda: _first_access_us(sample.path, lazy=True),
                "eager, part": lambda: _first_access_us(sample.path, lazy=False),
            }
        )
        self._compare("first access", "lazy, part", "eager, part", found)
        self._compare("first access, whole image", "lazy", "eager, part", found)

    def _single_faults(self) -> tuple[float, float]:
        """Faults without a fill, and hello's; hello's p50 as started and on one core, in µs."""
        pages = min(self._plan.pages, self._sample.nbytes // _PAGE)
        ways: dict[str, Callable[[], array[int]]] = {
            "lazyrestore": lambda: _touched(self._sample.path, pages),
            "hello": lambda: hello.touch(pages),
            "lazyrestore, one core": lambda: _on_one_core(
                lambda: _touched(self._sample.path, pages)
            ),
            "hello, one core": lambda: hello.touch(pages, one_core=True),
        }
        if "fault_mode" in inspect.signature(lazyrestore.restore).parameters:
            ways["lazyrestore inline"] = lambda: _touched(
                self._sample.path, pages, fault_mode="inline"
            )
        p50: dict[str, list[float]] = {name: [] for name in ways}
        p99: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self._plan.repeats):
            for name, way in ways.items():
                waited = way()
                latency = _latency.from_nanoseconds(waited)
                assert latency is not None
                p50[name].append(latency.p50)
                p99[name].append(latency.p99)
                self._faults.setdefault(name, array("I")).extend(waited)
        for what, found in (("fault, p50", p50), ("fault, p99", p99)):
            self._compare(what, "lazyrestore", "hello", found)
            self._compare(what, "lazyrestore, one core", "hello, one core", found)
            if "lazyrestore inline" in ways:
                self._compare(what, "lazyrestore inline", "hello", found)
        return statistics.median(p50["hello"]), statistics.median(p50["hello, one core"])

    def _sweeps(self) -> None:
        sample = self._sample
        found = self._in_turns(
            {
                "sequential, fill": lambda: _sweep_us(sample.path, "sequential"),
                "random, fill": lambda: _sweep_us(sample.path, "random"),
                "eager": lambda: _eager_sweep_us(sample.path),
                "zstd -d": lambda: _decoded_us(sample),
            }
        )
        for order in ("sequential, fill", "random, fill"):
            for other in ("eager", "zstd -d"):
                self._compare("all of it touched", order, other, found)

    def _in_turns(self, ways: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(self._plan.repeats + 1):
            for name, way in ways.items():
                value = way()
                if turn:  # the first is to warm up
                    found[name].append(value)
        return found


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    """Microseconds that the block took, when it is over."""
    took: list[float] = []
    begin = time.perf_counter_ns()
    yield took
    took.append((time.perf_counter_ns() - begin) / 1000)


def _first_access_us(path: str, *, lazy: bool) -> float:
    with _timed() as took:
        session = lazyrestore.restore(
            path, lazy=lazy, prefetch="none", working_set=False, privilege=_PRIVILEGE
        )
        region = next(region for region in session.values() if region.length)
        region[region.length // 3]
    session.close()
    return took[0]


def _touched(path: str, pages: int, **options: Any) -> array[int]:
    """What touches of random pages that faulted waited, in ns."""
    with lazyrestore.restore(
        path, lazy=True, prefetch="none", working_set=False, privilege=_PRIVILEGE, **options
    ) as session:
        session["memory"].touch(pages, order="random", seed=1)
        return array("I", session._waited)


def _on_one_core(way: Callable[[], array[int]]) -> array[int]:
    """The same while this thread, and what it starts, is confined to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        return way()
    finally:
        os.sched_setaffinity(0, before)


def _read_all(session: lazyrestore.Session, order: str) -> None:
    region = session["memory"]
    memory = ffi.cast("void *", region.address)
    pages = -(-region.length // _PAGE)
    lib.lr_touch(memory, region.length, _PAGE, _ORDERS[order], 1, 0, pages, ffi.NULL)


def _sweep_us(path: str, order: str) -> float:
    with _timed() as took:
        session = lazyrestore.restore(
            path, lazy=True, prefetch="all", working_set=False, privilege=_PRIVILEGE
        )
        _read_all(session, order)
    session.close()
    return took[0]


def _eager_sweep_us(path: str) -> float:
    with _timed() as took:
        session = lazyrestore.restore(path, lazy=False)
        _read_all(session, "sequential")
    session.close()
    return took[0]


def _decoded_us(sample: Sample) -> float:
    """One zstd stream, decoded from front to back into memory, as `zstd -d` does."""
    import zstandard

    room = bytearray(1 << 20)
    with _timed() as took, open(sample.zst, "rb") as file:
        memory = bytearray(sample.nbytes)
        at = 0
        with zstandard.ZstdDecompressor().stream_reader(file) as reader:
            while got := reader.readinto(room):
                memory[at : at + got] = memoryview(room)[:got]
                at += got
    return took[0]
