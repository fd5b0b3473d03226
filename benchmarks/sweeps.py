"""R5, R6, R7 and what belongs to them: everything, one page after another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from . import peers
from .bench import Bench, pick
from .runner import Row, in_turns


def against_hello(bench: Bench) -> Iterator[Row]:
    """R5: mean of a page in a full sweep with the fill on, against hello on one core."""
    pages = 5_000 if bench.is_quick else 20_000
    for number, name in enumerate(bench.names):
        image = bench.data.image(name)
        found = in_turns(
            {
                "sequential": bench.task("sweep", image=image, order="sequential"),
                "hello": bench.task("hello", pages=pages, confine=True),
                "random": bench.task("sweep", image=image, order="random"),
            },
            bench.repeats,
        )
        for order, limit in (("sequential", 0.4), ("random", 0.5)):
            yield Row(
                "R5",
                f"mean a page, {order} sweep, fill",
                data=name,
                ours=pick(found[order], "us_per_page"),
                peer_name="hello's mean on one core",
                peer=pick(found["hello"], "mean"),
                limit=limit if number == 0 else None,
            )


def against_squashfs(bench: Bench) -> Iterator[Row]:
    """R6: the same against a compressed file system and mmap, its image cached."""
    for number, name in enumerate(bench.names):
        image, squashfs = bench.data.image(name), bench.data.squashfs(name)
        with peers.mounted(squashfs) as folder:
            inside = folder / f"{name}.raw"
            for order in ("sequential", "random"):
                candidates: dict[str, Callable[[], dict[str, Any]]] = {
                    "ours": bench.task("sweep", image=image, order=order),
                    "squashfs": bench.task("mapped", path=inside, order=order, how="cold"),
                }
                found = in_turns(candidates, bench.repeats)
                yield Row(
                    "R6",
                    f"{order} sweep, fill",
                    data=name,
                    unit="ms",
                    ours=[us / 1000 for us in pick(found["ours"], "us")],
                    peer_name="squashfs-zstd 128K + mmap",
                    peer=[us / 1000 for us in pick(found["squashfs"], "us")],
                    is_faster=True,
                    limit=2.0 if number == 0 else None,
                )


def fully_resident(bench: Bench) -> Iterator[Row]:
    """R7: all of it in memory, against `zstd -d` into tmpfs."""
    for number, name in enumerate(bench.names):
        image, zst = bench.data.image(name), bench.data.zst(name)
        found = in_turns(
            {
                "ours": bench.task("resident", image=image),
                "zstd": functools.partial(peers.unpack, zst),
                "eager": bench.task("eager", image=image),
            },
            bench.repeats,
        )
        ours = [us / 1000 for us in pick(found["ours"], "us")]
        yield Row(
            "R7",
            "restore until all is resident",
            data=name,
            unit="ms",
            ours=ours,
            peer_name="zstd -d into tmpfs",
            peer=[us / 1000 for us in pick(found["zstd"], "us")],
            is_faster=True,
            limit=1.5 if number == 0 else None,
            note=f"{bench.data.nbytes / min(ours) / 1e6:.2f} GB/s at best",
        )
        yield Row(
            "R7",
            "restore until all is resident",
            data=name,
            unit="ms",
            ours=ours,
            peer_name="eager restore",
            peer=[us / 1000 for us in pick(found["eager"], "us")],
            is_faster=True,
        )


def no_fill(bench: Bench) -> Iterator[Row]:
    """On demand only: what touching everything costs then, by the size of clusters."""
    name = bench.names[0]
    sizes = (4096, 16384, 65536, 262144, 1 << 20)
    bench.series["clusters"] = points = []
    for size in sizes:
        image = bench.data.image(name, size)
        found = in_turns(
            {
                "fill": bench.task("sweep", image=image, order="sequential"),
                "none": bench.task("sweep", image=image, order="sequential", prefetch="none"),
                "random": bench.task("sweep", image=image, order="random", prefetch="none"),
            },
            bench.few,
        )
        per_page = {key: sorted(pick(found[key], "us_per_page")) for key in found}
        middle = {key: values[len(values) // 2] for key, values in per_page.items()}
        points.append({"cluster_size": size, "file_bytes": image.stat().st_size, **middle})
        for key, label in (("none", "sequential"), ("random", "random")):
            yield Row(
                "clusters",
                f"mean a page, {label}, no fill, clusters of {size // 1024}K",
                data=name,
                ours=per_page[key],
                peer_name="sequential with the fill",
                peer=per_page["fill"],
            )


def raw_mmap(bench: Bench) -> Iterator[Row]:
    """A file that is not compressed, mapped: in the page cache, out of it, and written to."""
    name = bench.names[0]
    image, raw = bench.data.image(name), bench.data.raw(name)
    ways: dict[str, dict[str, Any]] = {
        "cached": {"how": "cached"},
        "cached, privately written": {"how": "cached", "write": True},
        "cold": {"how": "cold"},
    }
    for order in ("sequential", "random"):
        for way, options in ways.items():
            if order == "random" and "write" in options:
                continue
            found = in_turns(
                {
                    "ours": bench.task("sweep", image=image, order=order),
                    "raw": bench.task("mapped", path=raw, order=order, **options),
                },
                bench.few,
            )
            yield Row(
                "raw",
                f"mean a page, {order}, fill",
                data=name,
                ours=pick(found["ours"], "us_per_page"),
                peer_name=f"raw file + mmap, {way}",
                peer=pick(found["raw"], "us_per_page"),
            )


def npz(bench: Bench) -> Iterator[Row]:
    """numpy's own compressed file."""
    for name in bench.names[-1:]:
        image, packed = bench.data.image(name), bench.data.npz(name)
        found = in_turns(
            {
                "ours": bench.task("resident", image=image),
                "npz": bench.task("npz", path=packed),
            },
            bench.few,
        )
        yield Row(
            "npz",
            "restore until all is resident",
            data=name,
            unit="ms",
            ours=[us / 1000 for us in pick(found["ours"], "us")],
            peer_name="numpy.load of an npz",
            peer=[us / 1000 for us in pick(found["npz"], "us")],
            is_faster=True,
        )
