"""The pictures, PNG and SVG, from what a run wrote: `python -m benchmarks.plots [RESULTS.json]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .data import GIB, MIB, ROOT

Series = dict[str, Any]


def draw_all(found: dict[str, Any], folder: Path) -> list[str]:
    """Draw what there are figures for; the names of the pictures."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "lazyrestore"
    matplotlib.rcParams["font.size"] = 9
    import matplotlib.pyplot as pyplot

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, draw in PICTURES.items():
        try:
            figure = draw(pyplot, found["series"])
        except KeyError:
            continue  # not measured
        for end in ("png", "svg"):
            metadata = {"Date": None} if end == "svg" else {"Software": None}
            figure.savefig(folder / f"{name}.{end}", metadata=metadata, dpi=110)
        pyplot.close(figure)
        made.append(name)
    return made


def latency(pyplot: Any, series: Series) -> Any:
    """Single faults, p50 to max."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, quantiles in series["latency"].items():
        # 50 % is 1/2, 99 % is 1/100: the tail gets as much room as the middle.
        places = [min(1 / (1 - share / 100), 1e5) if share < 100 else 1e5 for share, _ in quantiles]
        style = "--" if "hello" in name else "-"
        axes.plot(places, [us for _, us in quantiles], style, marker=".", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = {2: "p50", 10: "p90", 100: "p99", 1000: "p99.9", 10_000: "p99.99", 100_000: "max"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_ylabel("µs")
    axes.set_title("One demand fault: clusters of 4 KiB, nothing loaded ahead")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def first_access(pyplot: Any, series: Series) -> Any:
    """Time to the first access by the image's size."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    _line(axes, series["first_access"]["lazy"], "lazy", scale=(GIB, 1000))
    if "first_access_eager" in series:
        _line(axes, series["first_access_eager"], "eager", scale=(GIB, 1000))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("size of the image, GiB")
    axes.set_ylabel("ms")
    axes.set_title("From the call of restore() to the first byte")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def resident(pyplot: Any, series: Series) -> Any:
    """Bytes resident over time."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, points in series["resident"].items():
        axes.plot([us / 1000 for us, _ in points], [size / MIB for _, size in points], label=name)
    axes.set_xlabel("ms from the call of restore()")
    axes.set_ylabel("MiB resident")
    axes.set_title("Bytes resident over time")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def clusters(pyplot: Any, series: Series) -> Any:
    """Throughput and size by cluster size."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    points = series["clusters"]
    sizes = [point["cluster_size"] // 1024 for point in points]
    names = {
        "fill": "with the fill",
        "none": "on demand, sequential",
        "random": "on demand, random",
    }
    for key, label in names.items():
        # A page of 4096 bytes in so many µs.
        left.plot(sizes, [4.096 / point[key] for point in points], marker="o", label=label)
    left.set_ylabel("GB/s of all pages touched")
    left.set_ylim(bottom=0)
    left.legend()
    right.plot(sizes, [point["file_bytes"] / MIB for point in points], marker="o")
    right.set_ylabel("image, MiB")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size}K" for size in sizes])
        axes.set_xlabel("cluster")
        axes.grid(alpha=0.3)
    return figure


def scale(pyplot: Any, series: Series) -> Any:
    """Costs by size, threads and sessions."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    _line(left, series["scale_size"], "fault, p50", scale=(GIB, 1))
    left.set_xlabel("size of the image, GiB")
    _line(middle, series["scale_threads"], "time of all faults / their number", scale=(1, 1))
    middle.set_xlabel("threads that fault")
    _line(right, series["scale_sessions"], "fault, p50", scale=(1, 1))
    _line(right, series["scale_sessions_open"], "opening one more", scale=(1, 1))
    right.set_xlabel("sessions in the process")
    for axes in (left, middle, right):
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("µs")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _line(axes: Any, points: list[list[float]], label: str, *, scale: tuple[int, int]) -> None:
    across, up = scale
    axes.plot([x / across for x, _ in points], [y / up for _, y in points], marker="o", label=label)


PICTURES: dict[str, Callable[[Any, Series], Any]] = {
    "latency": latency,
    "first-access": first_access,
    "resident": resident,
    "clusters": clusters,
    "scale": scale,
}


def main() -> None:
    path = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "bench" / "results.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    print(*draw_all(found, path.parent), sep="\n")


if __name__ == "__main__":
    main()
