"""R1, R2, R11, R12 and what belongs to them: the first access, and what it costs in memory."""

from __future__ import annotations

from collections.abc import Iterator

from . import peers
from .bench import Bench, pick
from .data import GIB, MIB
from .runner import Row, in_turns


def _large_bytes(bench: Bench) -> int:
    return 2 * GIB if not bench.is_quick else 256 * MIB


def against_eager(bench: Bench) -> Iterator[Row]:
    """R1: lazy against eager, 2 GiB."""
    nbytes = _large_bytes(bench)
    image = bench.data.large(nbytes)
    offset = nbytes // 3
    found = in_turns(
        {
            "lazy": bench.task("first_access", image=image, offset=offset),
            "eager": bench.task("eager", image=image),
        },
        bench.repeats,
    )
    yield Row(
        "R1",
        f"first access, {nbytes / GIB:g} GiB",
        data="all three",
        ours=pick(found["lazy"], "us"),
        peer_name="eager restore",
        peer=pick(found["eager"], "us"),
        is_faster=True,
        limit=1000 if not bench.is_quick else None,
    )


def sizes_alike(bench: Bench) -> Iterator[Row]:
    """R2: a 64 GiB image against one of 64 MiB; more sizes for the picture."""
    sizes = [64 * MIB, 64 * GIB]
    if not bench.is_quick:
        sizes[1:1] = [256 * MIB, GIB, 4 * GIB, 16 * GIB]
    # Data in each of them: it lies at the start of every GiB.
    offsets = {size: size // 2 // GIB * GIB + MIB // 2 for size in sizes}
    found = in_turns(
        {
            str(size): bench.task(
                "first_access", image=bench.data.sparse(size), offset=offsets[size], repeats=15
            )
            for size in sizes
        },
        bench.repeats + 2,
    )
    us = {size: pick(found[str(size)], "us") for size in sizes}
    bench.series["first_access"] = {
        "lazy": [[size, sorted(values)[len(values) // 2]] for size, values in us.items()]
    }
    yield Row(
        "R2",
        "first access, 64 GiB image",
        data="text and zeros",
        ours=us[64 * GIB],
        peer_name="64 MiB image",
        peer=us[64 * MIB],
        limit=1.2,
    )


def against_others(bench: Bench) -> Iterator[Row]:
    """First access by the others, for the picture and the table."""
    name = bench.names[0]
    image, raw, squashfs = bench.data.image(name), bench.data.raw(name), bench.data.squashfs(name)
    offset = bench.data.nbytes // 3
    with peers.mounted(squashfs) as folder:
        inside = folder / f"{name}.raw"
        found = in_turns(
            {
                "ours": bench.task("first_access", image=image, offset=offset),
                "eager": bench.task("eager", image=image),
                "squashfs + mmap, mounted": bench.task(
                    "mapped_first", path=inside, offset=offset, how="cold"
                ),
                "raw file + mmap, cached": bench.task("mapped_first", path=raw, offset=offset),
            },
            bench.few,
        )
    ours = pick(found.pop("ours"), "us")
    for peer, values in found.items():
        yield Row(
            "first",
            "first access, warm process",
            data=name,
            ours=ours,
            peer_name=peer,
            peer=pick(values, "us"),
        )
    if not bench.is_quick:
        points = []
        for nbytes in (256 * MIB, GIB, 2 * GIB):
            large = bench.data.large(nbytes)
            us = sorted(bench.child("eager", image=large)["us"] for _ in range(3))[1]
            points.append([nbytes, us])
        bench.series["first_access_eager"] = points


def memory(bench: Bench) -> Iterator[Row]:
    """R11: resident memory after the first access, against just after the import."""
    nbytes = _large_bytes(bench)
    image = bench.data.large(nbytes)
    grown = [
        bench.child("memory_after_first_access", image=image, offset=nbytes // 3)["kib"] / 1024
        for _ in range(bench.repeats)
    ]
    yield Row(
        "R11",
        f"memory grown by at the first access, {nbytes / GIB:g} GiB",
        data="all three",
        unit="MiB",
        ours=grown,
        limit=2,
        note="resident and page tables",
    )


def zeros(bench: Bench) -> Iterator[Row]:
    """R12: 64 zero pages read cost no page frames."""
    found = [bench.child("private_frames", image=bench.data.zeros(64)) for _ in range(2)]
    yield Row(
        "R12",
        "private page frames after reading 64 zero pages",
        data="zeros",
        unit="B",
        ours=pick(found, "bytes"),
        limit=0,
        note=f"{found[0]['faults']} faults",
    )


def over_time(bench: Bench) -> Iterator[Row]:
    """Bytes resident over time: for the picture."""
    name = bench.names[0]
    image = bench.data.image(name)
    ways = ("touched at random", "fill", "eager")
    bench.series["resident"] = {
        way: bench.child("resident_over_time", image=image, way=way)["points"] for way in ways
    }
    yield from ()
