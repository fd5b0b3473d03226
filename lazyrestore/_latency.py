"""From measured times to `reports.Latency`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._session_reports import Latency


def from_nanoseconds(values: array[int]) -> Latency | None:
    """The distribution of single values, in ns; None if there are none."""
    from ._session_reports import Latency

    if not values:
        return None
    ordered = sorted(values)
    counts: dict[int, int] = {}
    for value in ordered:
        octave = _octave(value)
        counts[octave] = counts.get(octave, 0) + 1

    def percentile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000

    return Latency(
        count=len(ordered),
        mean=sum(ordered) / len(ordered) / 1000,
        p50=percentile(0.50),
        p90=percentile(0.90),
        p99=percentile(0.99),
        max=ordered[-1] / 1000,
        histogram=_histogram(counts),
    )


def from_histogram(count: int, sum_ns: int, max_ns: int, buckets: Sequence[int]) -> Latency | None:
    """The distribution that a `struct lr_histogram` holds; None if it is empty."""
    from ._session_reports import Latency

    if not count:
        return None
    counts: dict[int, int] = {}
    for bucket, number in enumerate(buckets):
        if number:
            octave = _octave(bucket_start(bucket))
            counts[octave] = counts.get(octave, 0) + number

    def percentile(share: float) -> float:
        left = share * count
        for bucket, number in enumerate(buckets):
            if number and left < number:
                middle = (bucket_start(bucket) + bucket_start(bucket + 1)) / 2
                return min(middle, max_ns) / 1000
            left -= number
        return max_ns / 1000

    return Latency(
        count=count,
        mean=sum_ns / count / 1000,
        p50=percentile(0.50),
        p90=percentile(0.90),
        p99=percentile(0.99),
        max=max_ns / 1000,
        histogram=_histogram(counts),
    )


def bucket_start(bucket: int) -> int:
    """The least number of ns that `lr_histogram_add` puts into a bucket."""
    if bucket < 8:
        return bucket
    exponent = bucket // 8 + 2
    return (1 << exponent) + ((bucket % 8) << (exponent - 3))


def _octave(value_ns: int) -> int:
    """Number of the power of two of microseconds that a time falls in; 0 for those below one."""
    return (value_ns // 1000).bit_length()


def _histogram(counts: dict[int, int]) -> tuple[tuple[float, float, int], ...]:
    def rows() -> Iterable[tuple[float, float, int]]:
        for octave in sorted(counts):
            yield (
                (0.0 if octave == 0 else float(1 << (octave - 1))),
                float(1 << octave),
                counts[octave],
            )

    return tuple(rows())
