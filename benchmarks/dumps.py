"""R10: making images."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator

from . import peers
from .bench import Bench, pick
from .runner import Row, in_turns


def against_zstd(bench: Bench) -> Iterator[Row]:
    """R10: throughput and size, against `zstd -3 -T2` on the same bytes."""
    all_sizes: list[float] = []
    size_rows = []
    for number, name in enumerate(bench.names):
        raw = bench.data.raw(name)
        bench.data.zst(name)  # says so where there is no zstd
        image = peers.in_memory("dump.lzr")
        found = in_turns(
            {
                "ours": bench.task("dump", raw=raw, image=image),
                "zstd": functools.partial(peers.pack, raw),
            },
            bench.repeats,
        )
        mb = bench.data.nbytes / 1e6
        yield Row(
            "R10",
            "dump, into tmpfs",
            data=name,
            unit="MB/s",
            ours=[mb / (us / 1e6) for us in pick(found["ours"], "us")],
            peer_name="zstd -3 -T2",
            peer=[mb / (us / 1e6) for us in pick(found["zstd"], "us")],
            limit=1.0 if number == 0 else None,
            is_more=True,
        )
        ours, theirs = (found[key][0]["stored_bytes"] for key in ("ours", "zstd"))
        all_sizes.append(ours / theirs)
        size_rows.append(
            Row(
                "R10",
                "image size",
                data=name,
                unit="MB",
                ours=[ours / 1e6],
                peer_name="zstd -3",
                peer=[theirs / 1e6],
            )
        )
    yield from size_rows
    yield Row(
        "R10",
        "image size over zstd -3's, the median of the data sets",
        data="all three" if len(bench.names) == 3 else "",
        unit="×",
        ours=[statistics.median(all_sizes)],
        limit=1.2,
    )
