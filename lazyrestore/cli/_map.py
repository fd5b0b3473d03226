"""Maps of regions, as they are drawn in a terminal."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array

    from lazyrestore._map import ImageMap

    Cell = tuple[str, str]  # letter and colour

# Letter, its stand-in where there is only ASCII, colour (SGR), and what it means. The order is that
# of the kinds in lazyrestore._map, then what a cell can be that has several of them.
_CELLS = (
    ("·", ".", "2", "untouched"),
    ("░", "0", "34", "zero"),
    ("█", "#", "32", "data"),
    ("▚", "@", "35", "byte planes"),
    ("▓", "%", "33", "not compressible"),
    ("▒", "=", "36", "repeated, stored once"),
    ("!", "!", "1;31", "unreadable"),
    ("▄", "+", "32", "some data"),
)
SOME = 7
_HOT = ("▔", "^", "1", "working set")
_WIDTH_MAX = 200
_LENGTHS = 14  # columns between the names and the cells
_ALIKE_ROWS = 3  # that are not shown
ROWS = 20
"""At most so many beyond the first of each region."""


class Style:
    """What a stream can show.

    Attributes:
        width: columns.
        is_ascii: True if nothing but ASCII should be written.
        has_colour: True if colours may be.
    """

    def __init__(self, *, width: int, is_ascii: bool, has_colour: bool) -> None:
        self.width = width
        self.is_ascii = is_ascii
        self.has_colour = has_colour

    @classmethod
    def of_stdout(cls) -> Style:
        """What standard output can."""
        from ._show import can_print, has_colour

        letters = "".join(cell[0] for cell in (*_CELLS, _HOT)) + "…"
        is_ascii = _asks_for_ascii() or not can_print(letters, sys.stdout)
        return cls(width=_columns(), is_ascii=is_ascii, has_colour=has_colour(sys.stdout))

    def paint(self, text: str, colour: str) -> str:
        """In an SGR colour, where there are any."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.has_colour and text else text

    def shorten(self, text: str, width: int) -> str:
        """Not wider than that: cut in the middle."""
        from ._show import width_of

        if width_of(text) <= width:
            return text
        dots = "..." if self.is_ascii else "…"
        room = width - len(dots)
        left, right = text, text
        while width_of(left) > room // 2:
            left = left[:-1]
        while width_of(right) > room - room // 2:
            right = right[1:]
        return left + dots + right


def _asks_for_ascii() -> bool:
    """Whether the locale is C by name: Python takes that for UTF-8, who sets it does not."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        if value := os.environ.get(name):
            return value in ("C", "POSIX")
    return False


def _columns() -> int:
    """Of the terminal; 80 where there is none. COLUMNS overrides both."""
    given = os.environ.get("COLUMNS", "")
    columns = int(given) if given.isdecimal() else 0
    if not columns:
        try:
            columns = os.get_terminal_size(1).columns
        except OSError:
            columns = 0
    return min(columns or 80, _WIDTH_MAX)


class Frame:
    """Names and lengths at the left, cells at the right.

    Attributes:
        columns: cells in a row.
    """

    def __init__(self, style: Style, names: Sequence[str]) -> None:
        self.style = style
        from ._show import one_line, width_of

        longest = max((width_of(one_line(name)) for name in names), default=0)
        room = style.width - _LENGTHS
        self._names = min(max(longest, 6), max(12, room - (64 if room >= 96 else 32)))
        # Whole eights: rows then begin at round places.
        self.columns = max(8, min(128, (room - self._names) // 8 * 8))

    def shorten(self, name: str) -> str:
        """A name that fits into the first column."""
        from ._show import one_line

        return self.style.shorten(one_line(name), self._names)

    def print_region(
        self, name: str, length: int, cell_bytes: int, cells: Sequence[Cell], below: str = ""
    ) -> None:
        """As many rows as it takes; each but the first says where it begins.

        Args:
            name: of the region.
            length: in bytes.
            cell_bytes: that a cell stands for.
            cells: letter and colour of each.
            below: marks for a line below each row, as long as `cells`.
        """
        from ._show import pad, size

        shown = self.shorten(name)
        place = size(length)
        starts = range(0, max(1, len(cells)), self.columns)
        rows = [(cells[at : at + self.columns], below[at : at + self.columns]) for at in starts]
        number = 0
        while number < len(rows):
            row, marks = rows[number]
            print(f"{pad(shown, self._names)}{place:>12}  {self.paint(row)}".rstrip())
            if marks.strip():
                print(" " * (self._names + _LENGTHS) + self.style.paint(marks.rstrip(), _HOT[2]))
            number += 1
            alike = 0
            while number + alike < len(rows) and rows[number + alike] == (row, marks):
                alike += 1
            if alike >= _ALIKE_ROWS:
                number += alike
                dots = "..." if self.style.is_ascii else "…"
                print(f"{'':<{self._names}}{dots:>12}  {alike} more rows like this")
            shown, place = "", f"+{size(number * self.columns * cell_bytes)}"

    def paint(self, cells: Sequence[Cell]) -> str:
        """Letters; runs of one colour are coloured as a whole."""
        if not self.style.has_colour:
            return "".join(letter for letter, _ in cells)
        runs = itertools.groupby(cells, key=lambda cell: cell[1])
        return "".join(
            self.style.paint("".join(letter for letter, _ in run), colour) for colour, run in runs
        )

    def print_legend(self, items: Sequence[tuple[Cell, str]]) -> None:
        """Each letter with what it means, in as many lines as it takes."""
        line, used = "", 0
        for cell, text in items:
            nbytes = len(text) + 2  # the letter and a space
            if used and used + 3 + nbytes > self.style.width:
                print(line)
                line, used = "", 0
            line += ("   " if used else "") + f"{self.paint([cell])} {text}"
            used += (3 if used else 0) + nbytes
        if line:
            print(line)


def print_image_map(drawn: ImageMap, frame: Frame, cluster_size: int) -> None:
    """Each region, and what the letters mean."""
    from lazyrestore._map import KINDS

    from ._show import count, size

    style = frame.style
    cell_bytes = drawn.cell_clusters * cluster_size
    totals, is_some, hot = [0] * KINDS, False, 0
    for region in drawn.regions:
        kinds = [kind_of_cell(region.cell(number)) for number in range(region.cell_count)]
        is_some = is_some or SOME in kinds
        totals = [total + nbytes for total, nbytes in zip(totals, region.bytes, strict=True)]
        hot += region.hot_clusters
        marks = "".join(_HOT[style.is_ascii] if touched else " " for touched in region.hot)
        cells = [_cell(style, kind) for kind in kinds]
        frame.print_region(region.region.name, region.region.length, cell_bytes, cells, marks)
    print()
    items = [
        (_cell(style, kind), f"{_CELLS[kind][3]} {size(totals[kind])}")
        for kind in (2, 3, 4, 5, 1, 0, 6)
        if totals[kind]
    ]
    if is_some:
        items.insert(1, (_cell(style, SOME), f"{_CELLS[SOME][3]} (less than half)"))
    if hot:
        hot_bytes = size(hot * cluster_size)
        items.append(((_HOT[style.is_ascii], _HOT[2]), f"working set {hot_bytes}"))
    frame.print_legend(items)
    print(f"a cell is {size(cell_bytes)}, {count(drawn.cell_clusters, 'cluster')}")


def kind_of_cell(pages: array[int] | Sequence[int]) -> int:
    """What a cell is shown as: what most of its pages are; data also where it is less."""
    from lazyrestore._map import DATA_KINDS, HOLE, UNKNOWN, ZERO

    if pages[UNKNOWN]:
        return UNKNOWN
    data = sum(pages[kind] for kind in DATA_KINDS)
    if not data:
        return ZERO if pages[ZERO] >= pages[HOLE] else HOLE
    if 2 * data < sum(pages):
        return SOME
    return max(DATA_KINDS, key=pages.__getitem__)


def _cell(style: Style, kind: int) -> Cell:
    letter, plain, colour, _ = _CELLS[kind]
    return (plain if style.is_ascii else letter, colour)


def map_as_json(drawn: ImageMap, cluster_size: int) -> dict[str, object]:
    """The same for programs: cells as letters of ASCII."""
    from lazyrestore._map import NAMES

    from ._show import plain

    return {
        "cell_clusters": drawn.cell_clusters,
        "cell_bytes": drawn.cell_clusters * cluster_size,
        "letters": {cell[1]: cell[3] for cell in _CELLS},
        "regions": [
            {
                "name": region.region.name,
                "length": region.region.length,
                **{
                    f"{name}_bytes": nbytes
                    for name, nbytes in zip(NAMES, region.bytes, strict=True)
                },
                "stored_bytes": region.stored_bytes,
                "working_set_clusters": region.hot_clusters,
                "cells": "".join(
                    _CELLS[kind_of_cell(region.cell(number))][1]
                    for number in range(region.cell_count)
                ),
                "working_set": "".join("^" if touched else " " for touched in region.hot),
            }
            for region in drawn.regions
        ],
        "damage": plain(drawn.damage),
    }
