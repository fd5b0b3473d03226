"""What `lazyrestore restore --lazy` says to people."""

from __future__ import annotations

from lazyrestore._session_reports import Latency

from ._lazy import LazyReport
from ._show import count, duration, one_line, print_fields, print_histogram, print_table, size


def print_report(report: LazyReport) -> None:
    """The report as text."""
    how = f"lazily ({report.privilege} userfaultfd)" if report.lazy else "eagerly"
    regions = f"{size(report.logical_bytes)} in {count(report.regions, 'region')}"
    print(one_line(f"{report.path}: restored {how}"))
    fields = [
        ("memory", regions),
        ("open", duration(report.open_us)),
        ("map" if report.lazy else "decode", duration(report.map_us)),
    ]
    if report.first_access_us is not None:
        took = f"{duration(report.first_access_us)} from opening the image to the first byte"
        fields.append(("first access", took))
    fields.append(("touched", f"{count(report.touched_pages, 'page')} ({report.touch})"))
    if report.lazy:
        copied = f"{count(report.pages_copied, 'page')} copied, {report.pages_zeroed} zeroed"
        fields.append(("faults", f"{report.faults}: {copied}"))
        read = f"{count(report.clusters_decoded, 'cluster')}, {size(report.payload_bytes_read)}"
        fields.append(("read", read))
    fields.append(("resident", size(report.resident_bytes)))
    if report.replayed_clusters is not None:
        fields.append(("working set", f"{count(report.replayed_clusters, 'cluster')} replayed"))
    if report.recorded_clusters is not None:
        fields.append(("working set", f"{count(report.recorded_clusters, 'cluster')} recorded"))
    if report.trace_lost:
        fields.append(("not traced", count(report.trace_lost, "fault")))
    print_fields(fields)
    _print_latencies(report)
    if report.errors:
        print()
        rows = [
            (error.region, f"{error.offset:#x}", size(error.length), error.reason)
            for error in report.errors
        ]
        print_table(("region", "offset", "lost", "why"), rows, right="offset lost")


def _print_latencies(report: LazyReport) -> None:
    rows = [
        (name, *(duration(value) for value in (times.p50, times.p90, times.p99, times.max)))
        for name, times in (("touch", report.touch_us), ("service", report.service_us))
        if times is not None
    ]
    if not rows:
        return
    print()
    print_table(("  latency", "p50", "p90", "p99", "max"), _indent(rows), right="p50 p90 p99 max")
    if report.touch_us is not None and report.touch_us.count > 1:
        _print_histogram(report.touch_us)


def _indent(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(f"  {row[0]}", *row[1:]) for row in rows]


def _print_histogram(times: Latency) -> None:
    print()
    print_histogram("touches by what they waited", times.histogram)
