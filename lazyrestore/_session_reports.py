"""What sessions report. Without the other reports, whose classes take long to make at start-up."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of times, in microseconds.

    Attributes:
        count: how many were measured.
        mean: their mean.
        p50, p90, p99: percentiles (a histogram's: true to 1/16 of the value).
        max: the longest.
        histogram: (from, to, count) for each power of two of microseconds in which any fell.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    histogram: tuple[tuple[float, float, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class LoadError:
    """A cluster that could not be loaded; its pages are fenced.

    Attributes:
        region: name of the region.
        offset: where the cluster begins in it, in bytes.
        length: bytes that are lost.
        cluster: its number in the image.
        reason: what was wrong.
        fence: what a touch of it gives: "SIGBUS", "SIGSEGV", or "" where it could not be fenced.
    """

    region: str
    offset: int
    length: int
    cluster: int
    reason: str
    fence: str


@dataclasses.dataclass(frozen=True, slots=True)
class SessionStats:
    """What a session has done so far.

    Attributes:
        faults: faults answered.
        pages_copied: pages installed by UFFDIO_COPY or UFFDIO_MOVE, by a fault or ahead of one.
        pages_zeroed: pages installed by UFFDIO_ZEROPAGE.
        clusters_decoded: clusters read and decoded.
        payload_bytes_read: bytes of the image read for them.
        resident_bytes: private page frames of all regions; pages that are still the kernel's own
            zero page cost none.
        touch_us: what touching threads waited, for touches made by `Region.touch`; None where
            none of them faulted.
        service_us: from reading a fault's message to the touched page being there; None where
            nothing faulted.
        errors: clusters that could not be loaded.
        privilege: "full" or "user-mode-only": what the session's userfaultfd is; "none" where the
            image was restored eagerly.
        fill: of the background fill: "none" (none was asked for), "running", "complete" (all was
            loaded that could be), "stopped" (short of a memory limit; the rest comes when touched).
    """

    faults: int
    pages_copied: int
    pages_zeroed: int
    clusters_decoded: int
    payload_bytes_read: int
    resident_bytes: int
    touch_us: Latency | None
    service_us: Latency | None
    errors: int
    privilege: str
    fill: str


@dataclasses.dataclass(frozen=True, slots=True)
class TraceRecord:
    """One fault, as it was served.

    Attributes:
        time_us: when its message was read, on CLOCK_MONOTONIC.
        region: name of the region.
        offset: of the page, in the region.
        address: that was touched; of the page where the kernel does not tell more (before 5.18).
        thread: id of the thread that touched it; None where the kernel does not tell.
        write: True if it was a write.
        action: "COPY", "ZEROPAGE", "FENCE" (it cannot be loaded), or "WAKE" (it was there already).
        bytes: installed.
        service_us: from reading the message to the touched page being there.
    """

    time_us: float
    region: str
    offset: int
    address: int
    thread: int | None
    write: bool
    action: str
    bytes: int
    service_us: float
