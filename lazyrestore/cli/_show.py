"""How results look: sizes, times, tables and JSON."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from lazyrestore.reports import ProcessInfo

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def one_line(text: str) -> str:
    """Text with what would leave the line, or change the terminal, written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def width_of(text: str) -> int:
    """Columns of a terminal that it takes: East Asian letters take two, accents none."""
    if not text or max(text) < "\u0300":  # nothing of either is among those
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def pad(text: str, width: int, is_right: bool = False) -> str:
    """With blanks to so many columns; at its left, if it is to stand at the right."""
    blank = " " * (width - width_of(text))
    return blank + text if is_right else text + blank


def has_colour(stream: TextIO | None) -> bool:
    """Whether to write colours there: to a terminal, but that NO_COLOR says no, FORCE_COLOR yes.

    Both count where they are set and not empty, and NO_COLOR counts more.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if forced := os.environ.get("FORCE_COLOR"):
        return forced != "0"
    if stream is None or os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def paint(text: str, colours: str, stream: TextIO | None) -> str:
    """The text in colours ("bold red"), or as it is where `stream` shall have none."""
    if not has_colour(stream):
        return text
    codes = ";".join(_COLOURS[colour] for colour in colours.split())
    return f"\x1b[{codes}m{text}\x1b[0m"


def can_print(text: str, stream: TextIO | None) -> bool:
    """Whether the stream's encoding has all of the letters (bars and boxes: UTF-8 only)."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def size(nbytes: float) -> str:
    """Bytes in IEC units, as "64.0 KiB"."""
    if nbytes < 1024:
        return f"{nbytes:.0f} B"
    for unit in _UNITS[1:]:
        nbytes /= 1024
        if nbytes < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{nbytes:.1f} {unit}"


def duration(microseconds: float) -> str:
    """A time in three figures or so, as "1.25 ms"."""
    if microseconds < 999.5:
        return f"{_figures(microseconds)} µs"
    if microseconds < 999.5e3:
        return f"{_figures(microseconds / 1e3)} ms"
    if microseconds < 120e6:
        return f"{_figures(microseconds / 1e6)} s"
    minutes, seconds = divmod(round(microseconds / 1e6), 60)
    return f"{minutes} min {seconds} s"


def _figures(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def count(number: int, noun: str) -> str:
    """As "1 page" or "2 pages"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def protection(bits: int, shared: bool) -> str:
    """As in /proc/PID/maps: "rw-p"."""
    letters = "".join(
        letter if bits & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x"))
    )
    return letters + ("s" if shared else "p")


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Lines of a name and what belongs to it, in two columns; broken to fit a terminal."""
    width = max((width_of(name) for name, _ in fields), default=0)
    room = columns(sys.stdout) - width - 4
    for name, value in fields:
        lines = _break(one_line(value), room)
        print(f"  {pad(name, width)}  {lines[0]}".rstrip())
        for line in lines[1:]:
            print(f"  {'':<{width}}  {line}")


def columns(stream: TextIO) -> int:
    """How wide the terminal is that it goes to; 0: it goes to none, or nobody knows."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _break(text: str, room: int) -> list[str]:
    if len(text) <= room or room < 20:
        return [text]
    import textwrap

    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """A table; `right` names the columns that are aligned right. The last column is not padded."""
    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(width_of, column)) for column in zip(heads, *shown, strict=True)]
    for row in (list(heads), *shown):
        cells = [
            pad(cell, width, head in right.split())
            for head, cell, width in zip(heads, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def print_tree(processes: Sequence[ProcessInfo]) -> None:
    """A table of processes, children below their parents and further in."""
    children: dict[int, list[ProcessInfo]] = {}
    known = {process.pid for process in processes}
    for process in processes:
        parent = process.ppid if process.ppid in known and process.ppid != process.pid else 0
        children.setdefault(parent, []).append(process)
    rows = []
    waiting = [(0, process) for process in reversed(children.pop(0, []))]
    while waiting:
        depth, process = waiting.pop()
        what = "ended" if process.zombie else size(process.bytes)
        pid = f"{'  ' * depth}{process.pid}"
        rows.append((pid, str(process.threads), what, process.comm))
        below = children.pop(process.pid, [])
        waiting += [(depth + 1, child) for child in reversed(below)]
    print_table(("process", "threads", "pages", "name"), rows, right="threads pages")


def print_histogram(title: str, rows: Sequence[tuple[float, float, int]]) -> None:
    """Counts for each power of two of microseconds, as bars."""
    most = max(number for _, _, number in rows)
    # The empty ones between are shown: a gap in the times shall be seen.
    counts = {start: (end, number) for start, end, number in rows}
    start, last = min(counts), max(counts)
    whole, little = ("█", "▏") if can_print("█▏", sys.stdout) else ("#", ".")
    print(f"  {title}")
    while start <= last:
        end, number = counts.get(start, (max(1.0, start * 2), 0))
        bar = whole * (number * 40 // most) or (little if number else "")
        times = f"{duration_bound(start)} to {duration_bound(end)}"
        print(f"    {times:<18} {number:>9}  {bar}".rstrip())
        start = end


def duration_bound(microseconds: float) -> str:
    """A whole power of two of microseconds, short."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1e6:
        return f"{microseconds / 1e3:.0f} ms"
    return f"{microseconds / 1e6:.0f} s"


def print_json(value: object) -> None:
    """One object; dataclasses become maps of their fields, bytes hexadecimal."""
    import json

    print(json.dumps(plain(value), indent=2, ensure_ascii=False, default=_other))


def plain(value: object) -> object:
    """The same with maps in the place of dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6)
    return value


def _other(value: object) -> object:
    return value.hex() if isinstance(value, (bytes, bytearray)) else str(value)
