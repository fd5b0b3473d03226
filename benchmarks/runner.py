"""Measuring in turns, and what comes of it: rows of a table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class NotMeasuredError(Exception):
    """Something that a row needs is not here; the text says what."""


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
        row: its number, as "R3"; what is shown for comparison has the number of a group.
        what: what is measured.
        data: which data set.
        unit: of the values.
        ours_name, ours: what was measured of us, one value a turn.
        peer_name, peer: the same of the peer, in the same turns; "" and empty where there is none.
        is_faster: the ratio is peer / ours ("so many times faster"), else ours / peer.
        is_more: more of it is better, as of a throughput; the ratio is ours / peer.
        limit: the ratio (without a peer: the value) to reach; None: it is only shown.
        note: why there are no values, or what is to be known of them.
    """

    row: str
    what: str
    data: str = ""
    unit: str = "µs"
    ours_name: str = "lazyrestore"
    ours: Sequence[float] = ()
    peer_name: str = ""
    peer: Sequence[float] = ()
    is_faster: bool = False
    is_more: bool = False
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if not self.ours or not self.peer:
            return None
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        above, below = (peer, ours) if self.is_faster else (ours, peer)
        return above / below if below else None

    @property
    def met(self) -> bool | None:
        """If the target is reached; None where there is none, or nothing was measured."""
        value = self.ratio if self.peer_name else statistics.median(self.ours or [float("nan")])
        if self.limit is None or value is None or value != value:
            return None
        return value >= self.limit if self._is_at_least else value <= self.limit

    @property
    def _is_at_least(self) -> bool:
        return self.is_faster or self.is_more

    @property
    def target(self) -> str:
        if self.limit is None:
            return ""
        sign = "≥" if self._is_at_least else "≤"
        if self.peer_name or self.unit == "×":
            return f"{sign} {self.limit:g}×"
        return f"{sign} {self.limit:g} {self.unit}"

    def plain(self) -> dict[str, object]:
        """For JSON."""
        more = {"ratio": self.ratio, "target": self.target, "met": self.met}
        medians = {
            "ours_median": statistics.median(self.ours) if self.ours else None,
            "peer_median": statistics.median(self.peer) if self.peer else None,
        }
        return {**dataclasses.asdict(self), **medians, **more}


def in_turns(
    candidates: Mapping[str, Callable[[], T]], repeats: int, warm_up: int = 1
) -> dict[str, list[T]]:
    """Measure each, in turns: the second time in the opposite order, and so on.

    The first `warm_up` turns are left out of the result.
    """
    found: dict[str, list[T]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        names = list(candidates)
        for name in names if turn % 2 == 0 else reversed(names):
            value = candidates[name]()
            if turn >= warm_up:
                found[name].append(value)
    return found


def table(rows: Sequence[Row]) -> str:
    """For people, with the spread of what was measured."""
    heads = ("", "what", "data", "ours", "peer", "ratio", "target", "")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    shown = []
    for line in lines:
        cells = [
            cell.rjust(width) if 3 <= column <= 6 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    ratio = "" if row.ratio is None else f"{figure(row.ratio)}×"
    note = "  ".join(filter(None, (verdict, row.note, *_spreads(row))))
    what = f"{row.what}, against {row.peer_name}" if row.peer_name else row.what
    values = [f"{figure(statistics.median(v))} {row.unit}" if v else "-" for v in _values(row)]
    return (row.row, what, row.data, values[0], values[1], ratio, row.target, note)


def _spreads(row: Row) -> list[str]:
    """Where turns differ by more than twice: the least and the most."""
    names = (row.ours_name, row.peer_name)
    return [
        f"{name}: {figure(min(values))} to {figure(max(values))}"
        for name, values in zip(names, _values(row), strict=True)
        if len(values) > 1 and max(values) > 2 * min(values)
    ]


def _values(row: Row) -> tuple[Sequence[float], Sequence[float]]:
    return row.ours, row.peer


def figure(value: float) -> str:
    """Three figures or so."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
