"""Pictures of what was measured. matplotlib is imported only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lazyrestore._extras import require
from lazyrestore.cli._show import duration, duration_bound, one_line, size
from lazyrestore.reports import Latency

if TYPE_CHECKING:
    from .hello import HelloReport
    from .image import BenchReport, Comparison

_OURS = "#2e7d4f"
_THEIRS = "#b8c0cc"
_INK = "#1f2328"
_MUTED = "#667080"


def check_available() -> None:
    """Say what to install where nothing can be drawn.

    Raises:
        ImportError: matplotlib is not installed, or broken.
    """
    _pyplot()


def _pyplot() -> Any:
    require("matplotlib", "bench", "--plot")
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "lazyrestore"
    import matplotlib.pyplot as pyplot

    return pyplot


def draw_hello(report: HelloReport, path: str) -> None:
    """The latencies of both ways."""
    pyplot = _pyplot()
    ways = {"as started": report.as_started.latency, "one core": report.one_core.latency}
    figure = pyplot.figure(figsize=(7.5, 0.9 + 0.95 * len(ways)), layout="constrained")
    figure.suptitle(f"{report.pages} faults, each answered with a copy of a page that is ready")
    _draw_latencies(figure, ways)
    _save(pyplot, figure, path)


def draw_image(report: BenchReport, path: str) -> None:
    """Single faults, and times beside those of what there is instead."""
    pyplot = _pyplot()
    groups = _group(report.rows)
    bars = sum(1 + len(others) for _, _, others in groups)
    height = 0.9 + max(0.8 * len(report.faults), 0.3 * bars + 0.25 * len(groups))
    figure = pyplot.figure(figsize=(13, height), layout="constrained")
    title = f"{report.measured}: {size(report.measured_bytes)}, medians of {report.repeats} turns"
    figure.suptitle(one_line(title).replace("$", "\\$"))
    left, right = figure.subfigures(1, 2, wspace=0.04)
    _draw_latencies(left, report.faults)
    _draw_times(right.subplots(), groups)
    _save(pyplot, figure, path)


def _draw_latencies(figure: Any, ways: Mapping[str, Latency]) -> None:
    """How many faults fall into each power of two of microseconds: a row for each way."""
    rows = figure.subplots(len(ways), 1, sharex=True, squeeze=False)[:, 0]
    starts = [max(0.5, start) for way in ways.values() for start, _, _ in way.histogram]
    ends = [end for way in ways.values() for _, end, _ in way.histogram]
    for axes, (name, latency) in zip(rows, ways.items(), strict=True):
        most = max(count for _, _, count in latency.histogram)
        for start, end, count in latency.histogram:
            at = max(0.5, start)
            share = max(0.02, count / most)  # what is rare shall be seen
            colour = _THEIRS if name.startswith("hello") else _OURS
            axes.bar(at, share, end - at, align="edge", color=colour)
        axes.axvline(latency.p50, color=_INK, linewidth=1.2)
        axes.set_ylim(0, 1.08)
        axes.set_yticks([])
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold", pad=3)
        figures = f"p50 {duration(latency.p50)},  p99 {duration(latency.p99)}"
        axes.set_title(figures, loc="right", fontsize=9, color=_MUTED, pad=3)
    low, high = min(starts), max(ends)
    rows[-1].set_xscale("log", base=2)
    rows[-1].set_xlim(low, high)
    powers = [2.0**power for power in range(-1, 40) if low <= 2**power <= high]
    ticks = powers[:: -(-len(powers) // 9)]
    rows[-1].set_xticks(ticks, [duration_bound(tick) if tick >= 1 else "0" for tick in ticks])
    rows[-1].set_xlabel("what a fault took; the line is at half of them", fontsize=9, color=_MUTED)


def _group(rows: Sequence[Comparison]) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """Ours, and all that it was measured beside; single faults are drawn by themselves."""
    groups: dict[str, tuple[float, list[tuple[str, float]]]] = {}
    for row in rows:
        if not row.what.startswith("fault"):
            _, others = groups.setdefault(f"{row.what}: {row.name}", (row.us, []))
            others.append((row.other_name, row.other_us))
    return [(name, us, others) for name, (us, others) in groups.items()]


def _draw_times(axes: Any, groups: Sequence[tuple[str, float, list[tuple[str, float]]]]) -> None:
    """Bars, a group for each of ours with what stands beside it."""
    at = 0.0
    names: list[tuple[float, str, str]] = []  # where, what, in which colour
    least = min(min(us, *(other for _, other in others)) for _, us, others in groups)
    most = max(max(us, *(other for _, other in others)) for _, us, others in groups)
    for name, us, others in groups:
        bars = [(name, us, _OURS, _INK)]
        bars += [(other, value, _THEIRS, _MUTED) for other, value in others]
        for label, value, colour, ink in bars:
            axes.barh(at, value, 0.82, color=colour)
            axes.text(value * 1.06, at, duration(value), va="center", fontsize=9)
            names.append((at, label, ink))
            at += 1
        at += 0.8
    axes.set_yticks([place for place, _, _ in names], [label for _, label, _ in names], fontsize=9)
    for tick, (_, _, ink) in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(ink)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(least / 2, most * 4)  # room for the numbers
    axes.xaxis.set_major_formatter(lambda value, _: duration_bound(value))
    axes.tick_params(axis="y", length=0)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("logarithmic: ten times from one number to the next", fontsize=9, color=_MUTED)
    axes.set_title("ours, and what there is instead", loc="left", fontsize=9, fontweight="bold")


def _save(pyplot: Any, figure: Any, path: str) -> None:
    # Without the date: the same figures make the same file.
    metadata = {"Date": None} if path.endswith(".svg") else {"Software": None}
    figure.savefig(path, metadata=metadata, dpi=110)
    pyplot.close(figure)
