"""`lazyrestore restore --lazy`: map an image, touch pages, and say what that cost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import warnings

from lazyrestore._core import Serving
from lazyrestore._open import Image
from lazyrestore._restore import map_image
from lazyrestore._session_reports import Latency, LoadError, TraceRecord
from lazyrestore.errors import KernelError
from lazyrestore.region import PlacedRegion, Region
from lazyrestore.session import Session

from ._errors import BAD_IMAGE, complain, fail, usage_errors

_TRACE_RECORDS = 1 << 13
_TRACED_PAGES_AT_ONCE = 1 << 12  # so few that the trace has room for all, and can be read between
_PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was asked for; see the options of `lazyrestore restore`."""

    image: str
    region: str | None
    touch: str
    count: int | None
    seed: int
    prefetch: str
    record: str | None
    working_set: str | None
    replay: str
    privilege: str
    granularity: str
    fault_mode: str
    or_eager: bool
    at_original_address: bool
    trace: bool
    threads: int | None


@dataclasses.dataclass(frozen=True)
class LazyReport:
    """What a lazy restore cost; times in microseconds.

    Attributes:
        path: the image.
        lazy: False if everything was decoded at once (--or-eager).
        privilege: of the userfaultfd: "full", "user-mode-only", or "none" where there was none.
        regions: number of regions that were mapped.
        logical_bytes: their length.
        open_us: opening and checking the image.
        map_us: mapping the regions and starting the pager; with lazy False, decoding everything.
        first_access_us: from the start of opening to the first byte; None if none was touched.
        touch: "first", "sequential" or "random".
        touched_pages: pages of which a byte was read.
        faults: faults that were answered.
        pages_copied, pages_zeroed: pages that they installed.
        clusters_decoded: clusters that were read for them.
        payload_bytes_read: their compressed length.
        resident_bytes: private page frames of the regions.
        replayed_clusters: clusters of the working set that was replayed; None: none was.
        recorded_clusters: clusters in the working set that was recorded; None: none was.
        touch_us: what the touching thread waited for pages that faulted; None: none did.
        service_us: from reading a fault's message to the page being there; None: no faults.
        errors: what could not be loaded.
        trace_lost: faults that --trace could not show.
    """

    path: str
    lazy: bool
    privilege: str
    regions: int
    logical_bytes: int
    open_us: float
    map_us: float
    first_access_us: float | None
    touch: str
    touched_pages: int
    faults: int
    pages_copied: int
    pages_zeroed: int
    clusters_decoded: int
    payload_bytes_read: int
    resident_bytes: int
    replayed_clusters: int | None
    recorded_clusters: int | None
    touch_us: Latency | None
    service_us: Latency | None
    errors: tuple[LoadError, ...]
    trace_lost: int


def run(plan: Plan, *, json: bool, quiet: bool) -> None:
    """Do it, print the report, and fail if something could not be loaded."""
    report = restore_and_touch(plan, json=json)
    if json:
        from ._show import print_json

        print_json(report)
    elif not quiet:
        from ._lazy_text import print_report

        print_report(report)
    if report.errors:
        first = report.errors[0]
        more = f", and {len(report.errors) - 1} more" if len(report.errors) > 1 else ""
        where = f"region {first.region!r} at offset {first.offset}"
        fail(
            BAD_IMAGE,
            f"{plan.image}: cannot load {where}: {first.reason}{more}:"
            " `lazyrestore verify` lists all, take another copy",
        )


def restore_and_touch(plan: Plan, *, json: bool = False) -> LazyReport:
    """Open, map, touch and measure."""
    begin = time.perf_counter_ns()
    image = Image(plan.image)
    opened = time.perf_counter_ns()
    with usage_errors():
        session = _map(image, plan)
    mapped = time.perf_counter_ns()
    with session:
        trace = _Trace(session, json) if plan.trace and session.lazy else None
        touched, first_access = _touch(session, plan, trace)
        if trace is not None:
            trace.stop()
        stats = session.stats()
        recorded = None
        if plan.record is not None and session.lazy:
            recorded = len(session.save_working_set())
        replayed = session.working_set
        return LazyReport(
            path=plan.image,
            lazy=session.lazy,
            privilege=stats.privilege,
            regions=len(session),
            logical_bytes=sum(region.length for region in session.values()),
            open_us=(opened - begin) / 1000,
            map_us=(mapped - opened) / 1000,
            first_access_us=None if first_access is None else (first_access - begin) / 1000,
            touch=plan.touch,
            touched_pages=touched,
            faults=stats.faults,
            pages_copied=stats.pages_copied,
            pages_zeroed=stats.pages_zeroed,
            clusters_decoded=stats.clusters_decoded,
            payload_bytes_read=stats.payload_bytes_read,
            resident_bytes=stats.resident_bytes,
            replayed_clusters=None if replayed is None else len(replayed),
            recorded_clusters=recorded,
            touch_us=stats.touch_us,
            service_us=stats.service_us,
            errors=tuple(session.errors),
            trace_lost=session.trace_lost,
        )


def _map(image: Image, plan: Plan) -> Session:
    def attempt(lazy: bool) -> Session:
        return map_image(
            image,
            lazy=lazy,
            prefetch=plan.prefetch,
            record=plan.record if lazy else None,
            working_set=plan.working_set,
            replay=plan.replay,
            serving=Serving(
                privilege=plan.privilege,
                granularity=plan.granularity,
                fault_mode=plan.fault_mode,
                trace=_TRACE_RECORDS if plan.trace else 0,
                record=plan.record is not None and lazy,
            ),
            at_original_address=plan.at_original_address,
            threads=plan.threads,
            only=plan.region,
        )

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            session = attempt(lazy=True)
        for warning in caught:  # of a working set that cannot be used
            complain(str(warning.message))
        return session
    except KernelError as error:
        if not plan.or_eager:
            raise
        refusal = str(error)
    session = attempt(lazy=False)
    complain(f"{refusal}; decoded everything at once instead, as --or-eager asks")
    return session


def _touch(session: Session, plan: Plan, trace: _Trace | None) -> tuple[int, int | None]:
    """Touch what the plan says: the number of pages, and the time when the first one was there."""
    regions = [region for region in session.values() if region.length]
    pages = [-(-region.length // _PAGE) for region in regions]
    total = sum(pages)
    wanted = plan.count or (1 if plan.touch == "first" else total)
    shares = _share(min(wanted, total), pages, evenly=plan.touch == "random")
    order = "random" if plan.touch == "random" else "sequential"
    first_access = None
    touched = 0
    for region, share in zip(regions, shares, strict=True):
        at = 0
        while at < share:
            # The very first by itself, to know when it was there.
            step = 1 if first_access is None else share - at
            if trace is not None:
                step = min(step, _TRACED_PAGES_AT_ONCE)
            touched += _touch_pages(region, step, order, at, plan.seed)
            if first_access is None:
                first_access = time.perf_counter_ns()
            at += step
            if trace is not None:
                trace.catch_up()
    return touched, first_access


def _touch_pages(
    region: Region | PlacedRegion, number: int, order: str, first: int, seed: int
) -> int:
    return region.touch(number, order=order, first=first, seed=seed)


def _share(wanted: int, pages: list[int], *, evenly: bool) -> list[int]:
    """How many pages of each region: the first so many, or from all in proportion."""
    shares = []
    left, total = wanted, sum(pages)
    for number in pages:
        share = round(left * number / total) if evenly and total else min(left, number)
        shares.append(share)
        left -= share
        total -= number
    return shares


class _Trace:
    """Prints faults on standard error as they are served, from a thread of its own.

    The thread ends by itself when the session is closed, so after an error nobody waits for it.
    """

    def __init__(self, session: Session, json: bool) -> None:
        self._session = session
        self._json = json
        self._seen = 0
        self._progress = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lazyrestore-trace", daemon=True)
        self._thread.start()

    def catch_up(self) -> None:
        """Wait until all faults that were served are printed."""
        with self._progress:
            self._progress.wait_for(self._is_level, timeout=10)

    def stop(self) -> None:
        """Print what is left, and end the thread."""
        self._stopping = True
        self._thread.join()

    def _is_level(self) -> bool:
        return self._seen + self._session.trace_lost >= self._session.faults

    def _run(self) -> None:
        while True:
            is_last = self._stopping
            records = self._session.read_trace(0 if is_last else 0.05)
            if records:
                show = _as_json if self._json else _as_text
                _write("".join(show(record) for record in records))
            with self._progress:
                self._seen += len(records)
                self._progress.notify_all()
            if is_last and not records:
                return


def _write(text: str) -> None:
    """To standard error, past Python's buffer: its lock would be held where a pipe is full."""
    data = text.encode(errors="backslashreplace")
    with contextlib.suppress(OSError):  # nobody reads it any more
        while data:
            data = data[os.write(2, data) :]


def _as_text(record: TraceRecord) -> str:
    done = {
        "COPY": f"COPY {record.bytes} bytes",
        "ZEROPAGE": f"ZEROPAGE {record.bytes} bytes",
        "FENCE": "FENCE: cannot be loaded",
        "WAKE": "WAKE: was there already",
    }[record.action]
    thread = "" if record.thread is None else f"thread {record.thread} "
    way = "write" if record.write else "read"
    return (
        f"{record.address:#x} {thread}{way} {_name(record.region)}+{record.offset:#x}"
        f" {done}, {record.service_us:.1f} µs\n"
    )


def _name(region: str) -> str:
    from ._show import one_line

    return one_line(region)


def _as_json(record: TraceRecord) -> str:
    import json

    from ._show import plain

    return json.dumps(plain(record), ensure_ascii=False) + "\n"
