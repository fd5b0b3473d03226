"""How `lazyrestore top` looks: some lines of text, as wide as there is room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from ._show import count, duration, one_line, pad, size
from ._status import PeerStatus, Sample

_TEXT_MAX = 60


class Column(NamedTuple):
    """A column: its head, what it shows, its least width, and whether it is aligned right.

    The least width is what most values need: so columns do not come and go with them.
    """

    head: str
    show: Callable[[PeerStatus, Sample], str]
    least: int = 0
    is_right: bool = True


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}"


def _time(microseconds: float | None) -> str:
    return "-" if microseconds is None else duration(microseconds)


def age(seconds: float) -> str:
    """How long something has been there, in few letters: "5s", "12m", "3h", "4d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _loaded(peer: PeerStatus) -> str:
    share = peer.loaded * 100
    # Neither is said before it is so.
    return f"{share:.0f}%" if share in (0, 100) else f"{min(99.9, max(0.1, share)):.1f}%"


_COLUMNS = (
    Column("PEER", lambda peer, _: str(peer.peer)),
    Column("PID", lambda peer, _: str(peer.pid or "?"), 6),
    Column("COMMAND", lambda peer, _: peer.command or "?", 11, is_right=False),
    Column("UID", lambda peer, _: str(peer.uid)),
    Column("PROTOCOL", lambda peer, _: peer.protocol, 11, is_right=False),
    Column("FAULTS/s", lambda peer, now: _rate(now.rates[peer.peer].faults_s), 8),
    Column("FAULTS", lambda peer, _: str(peer.faults), 8),
    Column("P50", lambda peer, _: _time(peer.p50_us), 7),
    Column("P99", lambda peer, _: _time(peer.p99_us), 7),
    Column("MAX", lambda peer, _: _time(peer.max_us), 7),
    Column("FILLED/s", lambda peer, now: size(now.rates[peer.peer].filled_bytes_s), 10),
    Column("DATA", lambda peer, _: size(peer.copied_bytes), 9),
    Column("ZEROS", lambda peer, _: size(peer.zeroed_bytes), 9),
    Column("LOADED", lambda peer, _: _loaded(peer), 6),
    Column("MISSING", lambda peer, _: size(peer.missing_bytes), 9),
    Column("FILL", lambda peer, _: peer.fill, 8, is_right=False),
    Column("ERR", lambda peer, _: str(peer.errors), 3),
    Column("AGE", lambda peer, _: age(peer.seconds), 4),
    Column("IMAGE", lambda peer, _: peer.image, is_right=False),
    Column("SOCKET", lambda peer, _: peer.socket, is_right=False),
)
_FIRST = (
    *("PEER", "PID", "FAULTS/s", "LOADED", "P50", "P99", "ERR", "MISSING", "COMMAND", "AGE"),
    *("FILL", "FILLED/s", "UID", "FAULTS", "MAX", "DATA", "ZEROS", "IMAGE", "PROTOCOL", "SOCKET"),
)
"""What is shown first where there is little room."""
_PATHS = frozenset({"IMAGE", "SOCKET"})
_PATH_LEAST = 12
"""A path of which so much can be shown is shown: its end."""


def heading(now: Sample) -> list[str]:
    """Of the service: what it is, whom it has served, and what it does now."""
    up = age(now.number("seconds"))
    keeper = now.number("keeper_pid")
    image = now.text("image") or now.text("image_dir")
    refused = now.service.get("refused")
    codes = refused if isinstance(refused, Mapping) else {}
    number = sum(int(value) for value in codes.values() if isinstance(value, int))
    total = sum(peer.total_bytes for peer in now.peers)
    missing = sum(peer.missing_bytes for peer in now.peers)
    faults = sum(rate.faults_s for rate in now.rates.values())
    filled = sum(rate.filled_bytes_s for rate in now.rates.values())
    what = " (took over)" if now.service.get("is_promoted") else ""
    refusals = f"{number} refused" + (
        f" ({', '.join(f'{key} {value}' for key, value in sorted(codes.items()))})" if codes else ""
    )
    return [
        f"lazyrestore {now.text('version')}: process {now.number('pid'):.0f}{what}, up {up};"
        f" {f'keeper {keeper:.0f}' if keeper else 'no keeper'};"
        f" {size(now.number('resident_bytes'))} resident",
        f"{count(len(now.peers), 'peer')} of {now.number('admitted'):.0f} admitted so far;"
        f" {refusals}; {count(int(now.number('errors')), 'error')}"
        + ("" if now.service.get("is_admitting", True) else "; ending: nobody is admitted"),
        f"{_rate(faults)} faults/s, {size(filled)}/s filled; {size(missing)} missing of"
        f" {size(total)}; {image}",
    ]


def table(now: Sample, width: int | None, room: int | None = None) -> list[str]:
    """A head and a line for each peer, no wider than `width` cells; `room` lines at most."""
    peers = now.by_activity()
    if not peers:
        return ["no peers"]
    more = 0
    if room is not None and len(peers) > room - 1:
        more = len(peers) - max(1, room - 2)
        peers = peers[: len(peers) - more]
    columns = {
        column.head: [column.head]
        + [
            _cut(one_line(column.show(peer, now)), _TEXT_MAX, column.head in _PATHS)
            for peer in peers
        ]
        for column in _COLUMNS
    }
    widths = {
        column.head: max(column.least, *map(cell_len, columns[column.head])) for column in _COLUMNS
    }
    gap, heads = _choose(widths, width)
    chosen = [column for column in _COLUMNS if column.head in heads]
    lines = []
    for row in range(len(peers) + 1):
        cells = [
            pad(
                _cut(columns[column.head][row], widths[column.head], column.head in _PATHS),
                widths[column.head],
                column.is_right,
            )
            for column in chosen
        ]
        lines.append((" " * gap).join(cells).rstrip())
    if more:
        last = f"and {more} more with fewer faults"
        lines.append(last if width is None else _cut(last, width))
    return lines


def _choose(widths: dict[str, int], width: int | None) -> tuple[int, set[str]]:
    """How far columns are apart, and which there is room for; paths become as wide as there is."""
    if width is None:
        return 2, set(_FIRST)
    gap = 2 if width >= 100 else 1
    heads, used = set(), -gap
    for head in _FIRST:
        room = width - used - gap
        if head in _PATHS and room >= _PATH_LEAST:
            widths[head] = min(widths[head], room)
        if widths[head] <= room:
            heads.add(head)
            used += gap + widths[head]
    return gap, heads


def _cut(text: str, width: int, is_path: bool = False) -> str:
    if cell_len(text) <= width:
        return text
    if not is_path:
        return set_cell_size(text, width - 1).rstrip() + "…"
    while cell_len(text) >= width:
        text = text[1:]
    return "…" + text


def screen(now: Sample, width: int | None, height: int | None = None) -> Sequence[str]:
    """All of it."""
    lines = [one_line(line) for line in heading(now)]
    if width is not None:
        lines = [_cut(line, width) for line in lines]
    room = None if height is None else max(3, height - len(lines) - 2)
    return [*lines, "", *table(now, width, room)]
