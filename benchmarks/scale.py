"""Costs per fault and per open: by size of the image, number of threads, number of sessions."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .bench import Bench, pick
from .data import GIB, MIB
from .runner import Row, in_turns


def _in_turns(
    bench: Bench, values: Sequence[int], measure: Callable[[int], dict[str, Any]]
) -> dict[int, list[dict[str, Any]]]:
    found = in_turns({str(value): functools.partial(measure, value) for value in values}, bench.few)
    return {value: found[str(value)] for value in values}


def _points(found: dict[int, list[dict[str, Any]]], key: str) -> list[list[float]]:
    return [[value, statistics.median(pick(turns, key))] for value, turns in found.items()]


def sizes(bench: Bench) -> Iterator[Row]:
    """Single faults in images of 64 MiB to 64 GiB, of as many clusters with data."""
    values = [64 * MIB, 64 * GIB] if bench.is_quick else [64 * MIB, GIB, 8 * GIB, 64 * GIB]
    name = bench.names[0]
    found = _in_turns(
        bench,
        values,
        lambda size: bench.child(
            "touch_spread", image=bench.data.spread(size, name), step=size // 1024, pages=1000
        ),
    )
    bench.series["scale_size"] = _points(found, "p50")
    yield Row(
        "scale",
        "fault p50, 64 GiB image",
        data=name,
        ours=pick(found[values[-1]], "p50"),
        peer_name="64 MiB image",
        peer=pick(found[values[0]], "p50"),
    )


def threads(bench: Bench) -> Iterator[Row]:
    """1 to 64 threads that fault at once: time for each of all faults."""
    values = [1, 64] if bench.is_quick else [1, 2, 4, 8, 16, 32, 64]
    name = bench.names[0]
    image = bench.data.image(name, 4096)
    pages = min(8192, bench.data.pages)
    found = _in_turns(
        bench,
        values,
        lambda number: bench.child("faulting_threads", image=image, threads=number, pages=pages),
    )
    bench.series["scale_threads"] = _points(found, "us_per_fault")
    yield Row(
        "scale",
        "time of all faults / their number, 4K, 64 threads",
        data=name,
        ours=pick(found[64], "us_per_fault"),
        peer_name="one thread",
        peer=pick(found[1], "us_per_fault"),
    )


def sessions(bench: Bench) -> Iterator[Row]:
    """1 to 100 sessions in a process: opening one more, and a fault in any of them."""
    values = [1, 100] if bench.is_quick else [1, 3, 10, 30, 100]
    name = bench.names[0]
    image = bench.data.image(name)
    found = _in_turns(
        bench,
        values,
        lambda number: bench.child("many_sessions", image=image, sessions=number, pages=1000),
    )
    bench.series["scale_sessions"] = _points(found, "p50")
    bench.series["scale_sessions_open"] = _points(found, "open_us")
    for key, what in (("p50", "fault p50, one of 100 sessions"), ("open_us", "opening one of 100")):
        yield Row(
            "scale",
            what,
            data=name,
            ours=pick(found[100], key),
            peer_name="of one session",
            peer=pick(found[1], key),
        )
