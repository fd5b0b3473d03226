"""A picture of an image's regions, as SVG: what `info --map` draws, finer.

A cell is divided by what its pages are, the data at the bottom. Neighbours that look alike are
one shape, and shapes of one colour are one path, so that pictures stay small.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from ._map import DATA_KINDS, HOLE, KINDS, UNKNOWN, ZERO, ImageMap, RegionMap, survey
from ._open import Image

_PACKED = 300  # with more regions than these not each begins a row of its own
_COLUMNS = 256
_ROWS = 32  # at most, beyond the first of each region
_CELL_WIDTH = 3
_CELL_HEIGHT = 12
_ROW_HEIGHT = 18
_HOT_HEIGHT = 2
_MARGIN = 16
_NAMES_WIDTH = 210
_LENGTHS_WIDTH = 86
_LETTER_WIDTH = 6.7  # of 11 pixels, monospace: 0.6 em, and some room
_NAME_LETTERS = int(_NAMES_WIDTH / _LETTER_WIDTH) - 1
_HEAD_HEIGHT = 66

# Class, colour on light and on dark ground, and what it means; by the kinds of _map.
_KINDS = (
    ("hole", "#eceef1", "#2a2d33", "untouched"),
    ("zero", "#c9d3e3", "#3d4a61", "zero"),
    ("data", "#2e7d4f", "#4fb477", "data"),
    ("planes", "#8e44ad", "#c084e0", "byte planes"),
    ("raw", "#d98e04", "#f0b429", "not compressible"),
    ("repeat", "#1f8fa8", "#4cc3dc", "repeated, stored once"),
    ("lost", "#c62828", "#ff6b6b", "unreadable"),
)
_HOT = ("hot", "#d6336c", "#ff7eb0", "working set")
_TEXT = ("#1f2328", "#e6e9ee")
_MUTED = ("#667080", "#9aa4b2")
_GROUND = ("#ffffff", "#16181d")
_FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def write_map(image: Image, working_set: Iterable[int], path: str) -> ImageMap:
    """Draw an image into a file, which is there as a whole or not at all.

    Args:
        image: the image.
        working_set: numbers of clusters, counted through the image.
        path: the file; it is replaced.

    Raises:
        OSError: it cannot be written.
    """
    from ._outfile import OutputFile

    if len(image.regions) > _PACKED:
        drawn = survey(image, 1, _ROWS * _COLUMNS, working_set)
    else:
        drawn = survey(image, _COLUMNS, _ROWS, working_set)
    file = OutputFile(os.fspath(path))
    try:
        for part in draw_map(drawn, os.path.basename(image.path), image.cluster_size):
            file.append(part.encode("utf-8", "xmlcharrefreplace"))
        file.commit()
    finally:
        file.discard()
    return drawn


def draw_map(drawn: ImageMap, name: str, cluster_size: int) -> Iterator[str]:
    """The picture, part after part.

    Args:
        drawn: what is where.
        name: of the image.
        cluster_size: in bytes.
    """
    from .cli._show import count, size

    is_packed = len(drawn.regions) > _PACKED
    strips = _pack(drawn.regions) if is_packed else _stack(drawn.regions)
    rows = strips[-1][-1].row + 1 if strips else 0
    items = list(_legend(drawn, cluster_size))
    legend_rows = list(_wrap(items, _width() - 2 * _MARGIN))
    top = _HEAD_HEIGHT
    height = top + rows * _ROW_HEIGHT + 20 + len(legend_rows) * 20 + _MARGIN
    total = sum(region.region.length for region in drawn.regions)
    cell = size(drawn.cell_clusters * cluster_size)
    title = f"{_clean(name)}: {size(total)} in {count(len(drawn.regions), 'region')}"
    note = (
        f"a cell is {cell} ({count(drawn.cell_clusters, 'cluster')}),"
        f" a row {size(drawn.cell_clusters * cluster_size * _COLUMNS)};"
        " a cell's height: how much of it is what"
    )
    if is_packed:
        note += "; a row's name: its first region's"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_width()}" height="{height}"'
        f' viewBox="0 0 {_width()} {height}" role="img" aria-labelledby="title desc">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(note)}</desc>\n'
        f"<style>\n{_style()}</style>\n"
        f'<rect class="ground" width="{_width()}" height="{height}"/>\n'
        f'<text class="title" x="{_MARGIN}" y="30">{escape(_shorten(title, 84))}</text>\n'
        f'<text class="muted" x="{_MARGIN}" y="50">{escape(note)}</text>\n'
    )
    cell_bytes = drawn.cell_clusters * cluster_size
    for region, places in zip(drawn.regions, strips, strict=True):
        yield from _draw_region(region, places, cell_bytes, top, is_packed=is_packed)
    y = top + rows * _ROW_HEIGHT + 20
    for row in legend_rows:
        for x, css, text in row:
            yield (
                f'<rect class="{css}" x="{_MARGIN + x}" y="{y}" width="10" height="10"/>'
                f'<text x="{_MARGIN + x + 16}" y="{y + 9}">{escape(text)}</text>\n'
            )
        y += 20
    yield "</svg>\n"


def _width() -> int:
    return 2 * _MARGIN + _NAMES_WIDTH + _LENGTHS_WIDTH + _COLUMNS * _CELL_WIDTH


_Look = tuple[tuple[int, int, int], ...]
_NOTHING: _Look = ()


class _Strip(NamedTuple):
    """Cells of a region that are drawn side by side."""

    row: int
    column: int
    first: int
    last: int  # the one behind it
    is_named: bool


def _stack(regions: Sequence[RegionMap]) -> list[list[_Strip]]:
    """Each region begins a row of its own."""
    strips, row = [], 0
    for region in regions:
        starts = range(0, max(1, region.cell_count), _COLUMNS)
        strips.append(
            [
                _Strip(row + number, 0, at, min(at + _COLUMNS, region.cell_count), at == 0)
                for number, at in enumerate(starts)
            ]
        )
        row += len(starts)
    return strips


def _pack(regions: Sequence[RegionMap]) -> list[list[_Strip]]:
    """One behind the other, a cell between them: there are too many for a row each."""
    strips, row, column, is_named = [], 0, 0, False
    for region in regions:
        places: list[_Strip] = []
        at = 0
        while at < region.cell_count or not places:
            if column >= _COLUMNS:
                row, column, is_named = row + 1, 0, False
            end = min(region.cell_count, at + _COLUMNS - column)
            places.append(_Strip(row, column, at, end, not is_named and at == 0))
            is_named = is_named or at == 0
            column += end - at
            at = end
        column += 1
        strips.append(places)
    return strips


def _draw_region(
    region: RegionMap, strips: Sequence[_Strip], cell_bytes: int, top: int, *, is_packed: bool
) -> Iterator[str]:
    from .cli._show import size

    name = _clean(region.region.name)
    data = f"{size(region.data_bytes)} of data"
    tip = f"{name}: {size(region.region.length)}, {data}, {size(region.stored_bytes)} stored"
    yield f"<g><title>{escape(tip)}</title>\n"
    left = _MARGIN + _NAMES_WIDTH + _LENGTHS_WIDTH
    for strip in strips:
        y = top + strip.row * _ROW_HEIGHT
        if strip.is_named:
            shown = escape(_shorten(name, _NAME_LETTERS))
            yield f'<text x="{_MARGIN}" y="{y + 10}">{shown}</text>\n'
        label, css = "", ""
        if strip.first == 0 and (strip.is_named or not is_packed):
            label, css = size(region.region.length), "length"
        elif strip.first and not is_packed:
            label, css = f"+{size(strip.first * cell_bytes)}", "length muted"
        if label:
            yield f'<text class="{css}" x="{left - 10}" y="{y + 10}">{label}</text>\n'
        x = left + strip.column * _CELL_WIDTH
        yield from _draw_cells(region, strip.first, strip.last, x, y)
    yield "</g>\n"


def _draw_cells(region: RegionMap, first: int, last: int, left: int, top: int) -> Iterator[str]:
    """A row: for each colour a path of all that has it."""
    paths: dict[str, list[str]] = {}

    def add(css: str, start: int, end: int, y: int, height: int) -> None:
        x, width = left + (start - first) * _CELL_WIDTH, (end - start) * _CELL_WIDTH
        paths.setdefault(css, []).append(f"M{x} {y}h{width}v{height}h-{width}z")

    start, before = first, _NOTHING
    for at in range(first, last + 1):
        look = _look(region.cell(at)) if at < last else _NOTHING
        if look == before:
            continue
        for kind, bottom, height in before:
            add(_KINDS[kind][0], start, at, top + _CELL_HEIGHT - bottom - height, height)
        start, before = at, look
    if region.hot:
        for start, end in _runs(region.hot[first:last]):
            add(_HOT[0], first + start, first + end, top + _CELL_HEIGHT + 1, _HOT_HEIGHT)
    for css, parts in paths.items():
        yield f'<path class="{css}" d="{"".join(parts)}"/>\n'


def _look(pages: Sequence[int]) -> _Look:
    """What a cell shows, from below: kinds, where each begins, and how high it is."""
    if pages[UNKNOWN]:
        return ((UNKNOWN, 0, _CELL_HEIGHT),)
    total = sum(pages)
    found = []
    counted = level = 0
    for kind in (*DATA_KINDS, ZERO, HOLE):
        counted += pages[kind]
        until = counted * _CELL_HEIGHT // total
        if kind in DATA_KINDS and counted:
            until = max(1, until)  # whatever has any data shows some
        if until > level:
            found.append((kind, level, until - level))
            level = until
    return tuple(found)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where numbers that are not 0 begin and end."""
    start = None
    for at, number in enumerate((*numbers, 0)):
        if number and start is None:
            start = at
        elif not number and start is not None:
            yield start, at
            start = None


def _legend(drawn: ImageMap, cluster_size: int) -> Iterator[tuple[str, str]]:
    """Class and text."""
    from .cli._show import size

    for kind in (*DATA_KINDS, ZERO, HOLE, UNKNOWN):
        nbytes = sum(region.bytes[kind] for region in drawn.regions)
        if nbytes:
            yield _KINDS[kind][0], f"{_KINDS[kind][3]} {size(nbytes)}"
    hot = sum(region.hot_clusters for region in drawn.regions)
    if hot:
        yield _HOT[0], f"{_HOT[3]} {size(hot * cluster_size)}"


def _wrap(items: Iterable[tuple[str, str]], width: int) -> Iterator[list[tuple[int, str, str]]]:
    """Rows of (x, class, text)."""
    row: list[tuple[int, str, str]] = []
    x = 0
    for css, text in items:
        needs = 16 + int(len(text) * _LETTER_WIDTH) + 22
        if row and x + needs > width:
            yield row
            row, x = [], 0
        row.append((x, css, text))
        x += needs
    if row:
        yield row


def _style() -> str:
    def rules(number: int) -> str:
        colours = [f".{kind[0]}{{fill:{kind[1 + number]}}}" for kind in (*_KINDS, _HOT)]
        colours.append(f".ground{{fill:{_GROUND[number]}}}")
        colours.append(f"text{{fill:{_TEXT[number]}}}")
        colours.append(f"text.muted{{fill:{_MUTED[number]}}}")
        return "".join(colours)

    return (
        f"text{{font:11px {_FONT}}}\n"
        "text.title{font-size:16px;font-weight:600}\ntext.length{text-anchor:end}\n"
        f"{rules(0)}\n@media (prefers-color-scheme: dark){{{rules(1)}}}\n"
    )


def _shorten(text: str, letters: int) -> str:
    if len(text) <= letters:
        return text
    left = (letters - 1) // 2
    return f"{text[:left]}…{text[len(text) - (letters - 1 - left) :]}"


def _clean(text: str) -> str:
    """XML has no place for control characters, nor for half of a surrogate pair."""
    from .cli._show import one_line

    return one_line(text)


assert len(_KINDS) == KINDS
