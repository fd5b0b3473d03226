"""The classic demonstration of userfaultfd, as started and on one core, in turns."""

from __future__ import annotations

import dataclasses
from array import array

from lazyrestore import _latency, _wakeup
from lazyrestore._native import check, ffi, lib, new_problem
from lazyrestore.reports import Latency

DEFAULT_PAGES = 100_000
# A quarter of an hour, at 50 µs a page.
PAGES_MAX = 1 << 24
_TURNS = 10
_MOST_PAGES_AT_ONCE = 20_000  # each needs memory of its own until its turn is over


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """One way to run it.

    Attributes:
        latency: of single pages, in microseconds.
        p99_9: one of a thousand pages took longer.
    """

    latency: Latency
    p99_9: float


@dataclasses.dataclass(frozen=True, slots=True)
class HelloReport:
    """What was measured.

    Attributes:
        pages: touched each way.
        as_started: threads run where the kernel puts them.
        one_core: both threads on one core.
        wakeup: what waking a thread costs.
        explanation: what follows, in sentences.
        settings: what makes it faster.
    """

    pages: int
    as_started: Distribution
    one_core: Distribution
    wakeup: _wakeup.Wakeup
    explanation: tuple[str, ...]
    settings: tuple[_wakeup.Setting, ...]


def touch(pages: int, *, one_core: bool = False) -> array[int]:
    """Touch fresh pages, each answered by a COPY of one ready page.

    Returns:
        What each touch took, in ns.

    Raises:
        KernelError: no userfaultfd can be had.
    """
    options = ffi.new("struct lr_hello_options *")
    options.pages = pages
    options.privilege = lib.LR_PRIVILEGE_AUTO
    options.one_core = one_core
    latencies = array("I", bytes(4 * pages))
    problem = new_problem()
    code = lib.lr_hello(options, ffi.from_buffer("uint32_t[]", latencies), problem)
    check(code, problem, what="cannot touch pages that a userfaultfd serves")
    return latencies


def run(pages: int = DEFAULT_PAGES) -> tuple[HelloReport, array[int]]:
    """Measure both ways in turns.

    Returns:
        The report; and one latency a page, as started, in ns.

    Raises:
        KernelError: no userfaultfd can be had.
    """
    turns = max(_TURNS, -(-pages // _MOST_PAGES_AT_ONCE))
    as_started, one_core = array("I"), array("I")
    for turn in range(turns):
        share = pages * (turn + 1) // turns - pages * turn // turns
        if share:
            as_started += touch(share)
            one_core += touch(share, one_core=True)
    wakeup = _wakeup.measure()
    shown = _distribution(as_started), _distribution(one_core)
    report = HelloReport(
        pages=pages,
        as_started=shown[0],
        one_core=shown[1],
        wakeup=wakeup,
        explanation=tuple(explain(shown[0].latency.p50, shown[1].latency.p50, wakeup)),
        settings=_wakeup.settings(wakeup),
    )
    return report, as_started


def _distribution(values: array[int]) -> Distribution:
    latency = _latency.from_nanoseconds(values)
    assert latency is not None
    ordered = sorted(values)
    return Distribution(latency, ordered[min(len(ordered) - 1, len(ordered) * 999 // 1000)] / 1000)


def explain(as_started_us: float, one_core_us: float, wakeup: _wakeup.Wakeup) -> list[str]:
    """What dominates, in sentences."""
    if wakeup.idle_core_us is None:
        return ["There is one core only: nothing has to wake another."]
    more = 2 * (wakeup.idle_core_us - wakeup.one_core_us)
    if not wakeup.dominates:
        return [
            f"Waking a thread on another core takes {wakeup.idle_core_us:.1f} µs, and a fault"
            " wakes two: that is not most of it here.",
        ]
    sentences = [
        f"A fault wakes two threads. On one core a wake-up takes {wakeup.one_core_us:.1f} µs; on"
        f" a core that is idle, and halts, {wakeup.idle_core_us:.1f} µs: {more:.0f} µs more for a"
        f" fault, which takes {one_core_us:.1f} µs in all on one core and {as_started_us:.1f} µs as"
        " started.",
        "So waking halted cores is most of it; what is copied, or decoded, is not."
        if as_started_us - one_core_us > more / 2
        else "As started, these two threads had no halted core to wake, most of the time. Where a"
        " fault has to, that is most of it.",
    ]
    if wakeup.is_virtual:
        sentences.append(
            "This is a virtual machine: halting a core, and waking it, goes through its host. Who"
            " has the host can let that one poll (kvm's parameter halt_poll_ns there)."
        )
    return sentences
