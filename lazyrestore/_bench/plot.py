"""Pictures of what was measured. matplotlib is imported only here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lazyrestore._extras import require
from lazyrestore.reports import Latency

if TYPE_CHECKING:
    from .hello import HelloReport
    from .image import BenchReport


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
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    ways = {"as started": report.as_started.latency, "one core": report.one_core.latency}
    _draw_latencies(axes, ways)
    axes.set_title(f"{report.pages} faults, each answered with a copy of a ready page")
    _save(pyplot, figure, path)


def draw_image(report: BenchReport, path: str) -> None:
    """Single faults, and times beside those of others."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    _draw_latencies(left, report.faults)
    left.set_title("single faults")
    rows = [row for row in report.rows if not row.what.startswith("fault")]
    labels = [f"{row.what}, {row.name}\nbeside {row.other_name}" for row in rows]
    places = range(len(rows))
    right.barh([at - 0.2 for at in places], [row.us / 1000 for row in rows], 0.4, label="ours")
    right.barh([at + 0.2 for at in places], [row.other_us / 1000 for row in rows], 0.4, label="it")
    right.set_yticks(list(places), labels, fontsize=7)
    right.invert_yaxis()
    right.set_xscale("log")
    right.set_xlabel("ms")
    right.legend()
    _save(pyplot, figure, path)


def _draw_latencies(axes: Any, ways: Mapping[str, Latency]) -> None:
    """How many faults fall into each power of two of microseconds."""
    for name, latency in ways.items():
        edges = [max(0.5, start) for start, _, _ in latency.histogram]
        shares = [100 * count / latency.count for _, _, count in latency.histogram]
        axes.plot(edges, shares, drawstyle="steps-post", marker="|", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("µs, from this power of two to the next")
    axes.set_ylabel("% of the faults")
    axes.legend()


def _save(pyplot: Any, figure: Any, path: str) -> None:
    # Without the date: the same figures make the same file.
    metadata = {"Date": None} if path.endswith(".svg") else {"Software": None}
    figure.savefig(path, metadata=metadata)
    pyplot.close(figure)
