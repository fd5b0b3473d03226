"""R3, R3b, R4, R8 and what belongs to them: single demand faults."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from . import peers
from .bench import Bench, pick
from .runner import Row, in_turns

_PAGES, _QUICK_PAGES = 20_000, 5_000


def _against_hello(
    bench: Bench,
    row: str,
    what: str,
    limit: float | None,
    *,
    name: str,
    confine: bool,
    level: int = 3,
    **options: str,
) -> Row:
    """p50 of faults at clusters of 4 KiB, without a fill, against hello's."""
    pages = _QUICK_PAGES if bench.is_quick else _PAGES
    pages = min(pages, bench.data.pages)
    image = bench.data.image(name, 4096, level)
    found = in_turns(
        {
            "ours": bench.task("touch", image=image, pages=pages, confine=confine, **options),
            "hello": bench.task("hello", pages=pages, confine=confine),
        },
        bench.repeats,
    )
    mode = options.get("fault_mode", "thread") + (", one core" if confine else "")
    if options.get("order") == "sequential":
        mode += f", in order, level {level}"
    for key, label in (("ours", f"lazyrestore {mode}"), ("hello", f"hello{mode[6:]}")):
        if name == bench.names[0] and (key == "ours" or "inline" not in mode):
            middle = sorted(found[key], key=lambda one: one["p50"])[len(found[key]) // 2]
            bench.series.setdefault("latency", {})[label] = middle["quantiles"]
    return Row(
        row,
        what,
        data=name,
        ours=pick(found["ours"], "p50"),
        peer_name="hello",
        peer=pick(found["hello"], "p50"),
        limit=limit,
    )


def demand(bench: Bench) -> Iterator[Row]:
    """R3: as started, on idle cores."""
    for number, name in enumerate(bench.names):
        limit = 0.4 if number == 0 else None
        yield _against_hello(bench, "R3", "fault p50, 4K", limit, name=name, confine=False)


def demand_confined(bench: Bench) -> Iterator[Row]:
    """R3b: each confined to one core."""
    for number, name in enumerate(bench.names):
        limit = 2.2 if number == 0 else None
        what = "fault p50, 4K, one core"
        yield _against_hello(bench, "R3b", what, limit, name=name, confine=True)


def inline(bench: Bench) -> Iterator[Row]:
    """R4: answered in the faulting thread; in order, as hello's touches are, and at random."""
    ways = (
        ("in order", {"order": "sequential"}, 3),
        ("at random", {"order": "random"}, 3),
        ("in order, --level -1", {"order": "sequential"}, -1),
    )
    for said, options, level in ways:
        for confine, limit in ((False, 0.2), (True, 1.6)):
            yield _against_hello(
                bench,
                "R4",
                f"inline fault p50, 4K, {said}" + (", one core" if confine else ""),
                limit,
                name=bench.names[0],
                confine=confine,
                level=level,
                fault_mode="inline",
                **options,
            )


def with_fill(bench: Bench) -> Iterator[Row]:
    """R8: p99 of demand faults with the fill running, and without."""
    for number, name in enumerate(bench.names):
        image = bench.data.image(name)
        pages = min(2_000 if bench.is_quick else 4_000, bench.data.pages // 16)
        found = in_turns(
            {
                "with": bench.task("touch_while_filling", image=image),
                "without": bench.task("touch", image=image, pages=pages),
            },
            bench.repeats + 2,
        )
        faults = sum(one["count"] for one in found["with"]) // len(found["with"])
        yield Row(
            "R8",
            "fault p99, fill running",
            data=name,
            ours=pick(found["with"], "p99"),
            peer_name="without the fill",
            peer=pick(found["without"], "p99"),
            limit=2.0 if number == 0 else None,
            note=f"{faults} faults while it ran",
        )


def zero_pages(bench: Bench) -> Iterator[Row]:
    """A write to a page of zeros: ZEROPAGE, then a fault of its own, or a COPY of zeros."""
    pages = _QUICK_PAGES if bench.is_quick else _PAGES
    for confine in (False, True):
        found = in_turns(
            {
                "zeropage": bench.task(
                    "hello", pages=pages, confine=confine, write=True, zeropage=True
                ),
                "copy": bench.task("hello", pages=pages, confine=confine, write=True),
            },
            bench.few,
        )
        yield Row(
            "zero",
            "write to a zero page, p50" + (", one core" if confine else ""),
            ours_name="ZEROPAGE",
            ours=pick(found["zeropage"], "p50"),
            peer_name="COPY of zeros",
            peer=pick(found["copy"], "p50"),
        )


def against_signals(bench: Bench) -> Iterator[Row]:
    """A pager by SIGSEGV and mprotect, which copies ready bytes: µs, mappings, where it ends."""
    name = bench.names[0]
    image = bench.data.image(name, 4096)
    pages = min(_QUICK_PAGES if bench.is_quick else _PAGES, bench.data.pages)
    many = 300_000
    for order in ("sequential", "random"):
        found = in_turns(
            {
                "ours": bench.task("touch", image=image, pages=pages, order=order, confine=True),
                "segv": functools.partial(peers.segv_touch, pages, order),
            },
            bench.few,
        )
        end = peers.segv_touch(many, order)
        ends = f"ENOMEM at page {end['enomem_at']}" if end["enomem_at"] else "no end"
        yield Row(
            "segv",
            f"fault p50, 4K, one core, {order}",
            data=name,
            ours=pick(found["ours"], "p50"),
            peer_name="SIGSEGV + mprotect",
            peer=pick(found["segv"], "p50"),
            note=f"it: {found['segv'][0]['mappings']:.0f} mappings; of {many} pages: {ends}",
        )


def granularity(bench: Bench) -> Iterator[Row]:
    """Only the touched page of a cluster, or all of it: time and memory."""
    name = bench.names[0]
    image = bench.data.image(name)
    pages = min(4_000, bench.data.pages)
    found = in_turns(
        {
            "page": bench.task("touch", image=image, pages=pages, granularity="page"),
            "cluster": bench.task("touch", image=image, pages=pages),
        },
        bench.few,
    )
    what = f'{pages} random pages, granularity="page"'
    total = {key: [one["mean"] * one["count"] / 1000 for one in found[key]] for key in found}
    yield Row(
        "page",
        f"{what}: time",
        data=name,
        unit="ms",
        ours=total["page"],
        peer_name="whole clusters",
        peer=total["cluster"],
    )
    mib = {key: [one["resident_bytes"] / (1 << 20) for one in found[key]] for key in found}
    yield Row(
        "page",
        f"{what}: resident",
        data=name,
        unit="MiB",
        ours=mib["page"],
        peer_name="whole clusters",
        peer=mib["cluster"],
    )
