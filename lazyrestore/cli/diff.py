"""`lazyrestore diff`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ._arguments import JsonOption, ProgressOption, QuietOption, ThreadsOption
from ._errors import BAD_IMAGE, FAILED, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._diff import Comparison, Drawn
    from lazyrestore.reports import DiffPart, DiffReport, RegionDiff

    from ._map import Cell, Frame, Style

_LIMIT = 20
_NAMES_SHOWN = 8  # of files
_WHAT_LEAST = 12  # columns for what a region is
_PLACES = 36  # that those of ranges do
# Letter, its stand-in where there is only ASCII, colour (SGR), and what it means.
_CELLS = (
    ("·", ".", "2", "alike"),
    ("▁", "-", "33", "some pages differ"),
    ("▄", "+", "33", "a half or more"),
    ("█", "#", "31", "all pages differ"),
    ("!", "!", "1;31", "unreadable"),
)


def _parse_limit(text: str | int) -> int:
    if isinstance(text, int):  # the default
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is not a number from 0 on")
    return int(text)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="An image.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare only this region (may be given again).",
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            metavar="N", parser=_parse_limit, help="List at most N ranges of pages that differ."
        ),
    ] = _LIMIT,
    threads: ThreadsOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the regions that are alike too.")
    ] = False,
    quiet: QuietOption = False,
    shows_progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Say which pages differ between two images.

    By region, with counts, a map and where they are. Compares what the images restore to: a page
    that was never touched is like one of zeros, and page size, cluster size and level do not
    matter. Regions belong together by their names; those of processes, which are named for their
    addresses, also where these overlap.

    The exit code is 0 if all is alike, 1 if something differs, 2 or more if that cannot be said: 3
    for an image that is damaged.
    """
    from lazyrestore._diff import Comparison
    from lazyrestore._open import Image

    from ._map import ROWS, Frame, Style
    from ._progress import Progress
    from .ls import describe

    with (
        Image(a) as one,
        Image(b) as other,
        Progress("diff", quiet=quiet, wanted=shows_progress) as progress,
    ):
        frame = Frame(Style.of_stdout(), [each.name for each in one.regions])
        comparison = Comparison(one, other, region, limit=limit, columns=frame.columns, rows=ROWS)
        report = comparison.run(threads, progress)
        kept = one.all_metadata()
        whats = [describe(kept[pair.numbers[0]]) for pair in comparison.pairs]
    if json:
        from ._show import print_json

        print_json(report)
    elif not quiet:
        _print_report(report, comparison, whats, frame, verbose=verbose)
    if report.damage:
        first = report.damage[0]
        more = f", and {len(report.damage) - 1} more" if len(report.damage) > 1 else ""
        fail(
            BAD_IMAGE,
            f"{first.path}: {first.damage.reason} (region {first.damage.region!r} at offset"
            f" {first.damage.offset}){more}: take another copy, or make the dump again",
        )
    if not report.same:
        raise typer.Exit(FAILED)


def _print_report(
    report: DiffReport,
    comparison: Comparison,
    whats: Sequence[str],
    frame: Frame,
    *,
    verbose: bool,
) -> None:
    from ._show import count, one_line, size

    total = sum(region.length for region in report.regions)
    compared = f"{size(total)} in {count(len(report.regions), 'region')}"
    if report.same:
        print(one_line(f"{report.a} and {report.b} hold the same: {compared}"))
    else:
        what = "are alike as far as they can be read"
        if _has_differences(report):
            what = "differ, and cannot be read throughout" if report.damage else "differ"
        print(one_line(f"{report.a} and {report.b} {what}"))
        pages = f"{report.different_pages} of {count(report.pages, 'page')} differ"
        if report.regions:
            print(
                f"{pages}, {size(report.different_bytes)} of {compared};"
                f" pages of {size(report.page_size)}"
            )
        else:
            print("no region is in both: nothing was compared")
    _note_zero_pages(report)
    numbers = [number for number, each in enumerate(report.regions) if verbose or _is_drawn(each)]
    listed = [n for n in numbers if verbose or report.regions[n].different_pages]
    _print_table([report.regions[n] for n in listed], [whats[n] for n in listed], frame)
    _print_changes(report)
    drawn = comparison.drawn or []
    if numbers:
        _print_map(report, [(report.regions[n], drawn[n]) for n in numbers], comparison, frame)
    _print_ranges(report, frame)
    if report.damage:
        _print_damage(report)


def _has_differences(report: DiffReport) -> bool:
    files = report.files
    return bool(
        any(region.different_pages or region.changes for region in report.regions)
        or (report.only_a or report.only_b)
        or (files.only_a or files.only_b or files.different)
    )


def _is_drawn(region: RegionDiff) -> bool:
    return bool(region.different_pages or region.unreadable_pages)


def _note_zero_pages(report: DiffReport) -> None:
    from ._show import count

    pages = sum(region.zero_pages for region in report.regions)
    if pages:
        print(f"({count(pages, 'page')} zero in one and untouched in the other: read alike)")


def _print_table(regions: Sequence[RegionDiff], whats: Sequence[str], frame: Frame) -> None:
    """Counts of each; what it is where there is room for that."""
    from ._show import one_line, print_table, size

    if not regions:
        return
    rows = []
    for region in regions:
        share = region.different_pages / region.pages if region.pages else 0.0
        kinds = {"changed": 0, "filled": 0, "emptied": 0}
        for states, number in region.states.items():
            before, _, after = states.partition(", ")
            kind = "emptied" if after != "data" else "changed" if before == "data" else "filled"
            kinds[kind] += number
        numbers = (str(region.different_pages), _percent(share), *map(str, kinds.values()))
        rows.append((size(region.length), *numbers))
    heads = ("compared", "pages", "share", "changed", "filled", "emptied")
    used = sum(2 + max(map(len, column)) for column in zip(heads, *rows, strict=True))
    style = frame.style
    names = [style.shorten(one_line(each.name), max(12, style.width - used)) for each in regions]
    left = style.width - used - max(map(len, names)) - 2
    has_whats = any(whats) and left >= _WHAT_LEAST
    shown = [
        (name, *row, *((style.shorten(one_line(what), left),) if has_whats else ()))
        for name, row, what in zip(names, rows, whats, strict=True)
    ]
    print()
    print_table(("region", *heads, *(("what",) if has_whats else ())), shown, right=" ".join(heads))


def _percent(share: float) -> str:
    """Neither 0 % nor 100 % of what is a little more than none or less than all."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if share < 0.001:
        return "<0.1%"
    return ">99.9%" if share > 0.999 else f"{share:.1%}"


def _print_changes(report: DiffReport) -> None:
    """What else differs, a line each."""
    from ._show import count, one_line, protection
    from ._wakeup_text import print_wrapped
    from .ls import describe

    lines = []
    for region in report.regions:
        for what, before, after in region.changes:
            if what == "length" and isinstance(before, int) and isinstance(after, int):
                text = f"length {before} and {after} bytes"
            elif what == "protection" and isinstance(before, int) and isinstance(after, int):
                letters = [protection(bits, False)[:3] for bits in (before, after)]
                text = f"protection {letters[0]} and {letters[1]}"
            elif what == "shared":
                text = f"{'shared' if before else 'private'} and {'shared' if after else 'private'}"
            else:
                texts = [describe(each) or str(each) for each in (before, after)]
                if texts[0] == texts[1]:
                    texts = [str(before), str(after)]
                text = f"{what} {texts[0]} and {texts[1]}"
            lines.append(f"{region.name}: {text}")
    for path, parts in ((report.a, report.only_a), (report.b, report.only_b)):
        lines += [f"only in {path}: {_describe_part(part)}" for part in parts]
    files = report.files
    if lines:
        print()
    for line in lines:
        print(one_line(line))
    texts = []
    for path, names in ((report.a, files.only_a), (report.b, files.only_b)):
        if names:
            texts.append(f"only in {path}: {count(len(names), 'file')}: {_some(names)}")
    if files.different:
        texts.append(f"{count(len(files.different), 'file')} differ: {_some(files.different)}")
    if texts and not lines:
        print()
    for text in texts:
        print_wrapped(one_line(text), "")


def _describe_part(part: DiffPart) -> str:
    from ._show import size

    where = f" from {part.offset:#x}" if part.offset else ""
    return f"{part.name}{where}, {size(part.length)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _print_map(
    report: DiffReport,
    shown: Sequence[tuple[RegionDiff, Drawn]],
    comparison: Comparison,
    frame: Frame,
) -> None:
    from ._show import size

    print()
    met: set[int] = set()
    for region, drawn in shown:
        kinds = list(_kinds(region, drawn, comparison.cell_bytes, report.page_size))
        met.update(kinds)
        cells = [_cell(frame.style, kind) for kind in kinds]
        frame.print_region(region.name, region.length, comparison.cell_bytes, cells)
    print()
    frame.print_legend(
        [(_cell(frame.style, kind), _CELLS[kind][3]) for kind in (3, 2, 1, 0, 4) if kind in met]
    )
    print(f"a cell is {size(comparison.cell_bytes)}")


def _kinds(region: RegionDiff, drawn: Drawn, cell_bytes: int, page_size: int) -> Sequence[int]:
    kinds = []
    for number, (different, unreadable) in enumerate(
        zip(drawn.different, drawn.unreadable, strict=True)
    ):
        pages = -(-min(cell_bytes, region.length - number * cell_bytes) // page_size)
        if unreadable:
            kinds.append(4)
        elif not different:
            kinds.append(0)
        else:
            kinds.append(3 if different == pages else 2 if 2 * different >= pages else 1)
    return kinds


def _cell(style: Style, kind: int) -> Cell:
    letter, plain, colour, _ = _CELLS[kind]
    return (plain if style.is_ascii else letter, colour)


def _print_ranges(report: DiffReport, frame: Frame) -> None:
    from ._show import count, print_table

    rows, left = [], 0
    for region in report.regions:
        name = frame.style.shorten(region.name, max(12, frame.style.width - _PLACES))
        for offset, length in region.ranges:
            pages = -(-length // report.page_size)
            rows.append((name, f"{offset:#x}", f"{offset + length:#x}", str(pages)))
        left += region.range_count - len(region.ranges)
    if rows:
        print()
        print_table(("where", "from", "to", "pages"), rows, right="from to pages")
    if left:
        print(f"{'and ' if rows else ''}{count(left, 'more range')}: --limit N lists more")


def _print_damage(report: DiffReport) -> None:
    from ._show import print_table, size

    rows = [
        (
            each.path,
            each.damage.region or "-",
            "-" if each.damage.offset is None else f"{each.damage.offset:#x}",
            size(each.damage.length),
            each.damage.reason,
        )
        for each in report.damage
    ]
    print()
    print_table(("unreadable", "region", "offset", "lost", "why"), rows, right="offset lost")
