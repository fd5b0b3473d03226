"""`lazyrestore demo`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from ._arguments import JsonOption, ProgressOption, StepsQuietOption, parse_count, parse_size
from ._errors import UsageError, stopping_means
from ._show import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._demo.steps import DemoReport

_LEAST_BYTES = 16 << 20
_MOST_BYTES = 64 << 30
_MOST_PAGES = 10_000


def _parse_pages(text: str) -> int:
    number = parse_count(text)
    if number > _MOST_PAGES:
        raise typer.BadParameter(f"{number} is too many: give up to {_MOST_PAGES}")
    return number


def demo(
    size: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="About how much state the program builds, from 16M.  [default: 320M; with"
            " --process 512M]",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Keep the image in this folder, to try commands on."),
    ] = None,
    walk: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=_parse_pages,
            help="Instead: read a region of N pages, up to 10000, every 1024 bytes, and show each"
            " fault.",
        ),
    ] = None,
    process: Annotated[
        bool,
        typer.Option(
            "--process",
            help="Instead: dump a whole program (redis-server, where it is installed), and have it"
            " run again by criu restore and by restore --lazy. Needs CRIU, and root.",
        ),
    ] = False,
    criu_bin: Annotated[
        str | None,
        typer.Option("--criu-bin", metavar="PATH", help="With --process: the CRIU to use."),
    ] = None,
    quiet: StepsQuietOption = False,
    shows_progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Dump a live program and restore its memory, with figures.

    Starts a program that builds a state, dumps it by its pid while it lives, restores the image
    both ways, and compares every byte. Needs about twice SIZE of memory, and no rights: what the
    kernel does not allow is said. Leaves nothing behind but what --keep asks for.
    """
    if criu_bin is not None and not process:
        raise UsageError("--criu-bin is for --process: leave it out, or add that")
    if process and walk is not None:
        raise UsageError("--walk and --process do not go together: give one of them")
    if walk is not None and size is not None:
        raise UsageError("--size has no meaning with --walk: N says how much")
    if size is not None and not _LEAST_BYTES <= size <= _MOST_BYTES:
        raise UsageError(f"--size {size}: it can be 16M to 64G")
    from ._progress import steps

    say = steps(quiet=quiet, wanted=shows_progress)
    with stopping_means("the demo was given up: nothing is left of it"), _folder(keep) as folder:
        if process:
            from ._demo_process import show

            show(size, folder, criu_bin, is_kept=keep is not None, json=json, say=say)
        elif walk is None:
            _show_demo(size, folder, is_kept=keep is not None, json=json, say=say)
        else:
            _show_walk(walk, folder, json=json)


@contextlib.contextmanager
def _folder(keep: str | None) -> Iterator[str]:
    if keep is not None:
        os.makedirs(keep, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="lazyrestore-demo-") as folder:
        yield folder


def _show_demo(
    nbytes: int | None, folder: str, *, is_kept: bool, json: bool, say: Callable[[str], None]
) -> None:
    from lazyrestore._demo import steps

    report = steps.run(
        nbytes or steps.DEFAULT_BYTES, steps.image_path(folder), is_kept=is_kept, say=say
    )
    if json:
        from ._show import print_json

        print_json(report)
        return
    _print(report)


def _print(report: DemoReport) -> None:
    from ._show import count, duration, print_fields, print_table, size

    stood = ""
    if report.frozen_us is not None:
        stood = f"; the program stood still for {duration(report.frozen_us)}"
    ways = "eager, lazy" if report.lazy else "eager"
    print("A program was dumped while it lived, and its memory restored")
    print_fields(
        [
            ("program", f"pid {report.pid}, built its state in {report.build_seconds:.1f} s"),
            ("", "(log text, an index, records, numbers, a sparse table, zeros)"),
            ("memory", f"{size(report.logical_bytes)} in {count(report.regions, 'region')}"),
            ("zero pages", f"{size(report.zero_bytes)}, cost nothing"),
            ("untouched", f"{size(report.hole_bytes)}, cost nothing"),
            ("image", f"{size(report.stored_bytes)}, ratio {report.ratio:.2f}"),
            ("dump", f"{duration(report.dump_seconds * 1e6)}{stood}"),
            ("lives on", f"it had counted to {report.beats_before}, now {report.beats_after}"),
            ("contents", f"the same in the program, {ways}: all regions by their hashes,"),
            ("", f"and {report.objects} single objects by their addresses"),
        ]
    )
    print()
    print_table(("  restore", "eager", "lazy", ""), _rows(report), right="eager lazy")
    for note in report.notes:
        print(one_line(f"note: {note}"))
    if report.image is not None:
        print(one_line(f"the image is kept: {report.image}"))


def _rows(report: DemoReport) -> list[tuple[str, str, str, str]]:
    from ._show import count, duration, size

    eager, resident = duration(report.eager_first_access_us), size(report.eager_resident_bytes)
    if (
        report.lazy_first_access_us is None
        or report.speedup is None
        or report.first_access_faults is None
        or report.first_access_resident_bytes is None
        or report.all_faults is None
        or report.all_resident_bytes is None
    ):
        return [("  first access", eager, "-", ""), ("  memory", resident, "-", "")]
    first = duration(report.lazy_first_access_us)
    rows = [
        ("  first access after", eager, first, f"{report.speedup:.0f} times sooner"),
        (
            "  memory used then",
            resident,
            size(report.first_access_resident_bytes),
            count(report.first_access_faults, "fault"),
        ),
        (
            "  memory, all read",
            resident,
            size(report.all_resident_bytes),
            count(report.all_faults, "fault"),
        ),
    ]
    if report.touch_us is not None:
        touch = report.touch_us
        seen = f"of {touch.count} touches that faulted"
        rows.append(("  fault, p50", "-", duration(touch.p50), seen))
        rows.append(("  fault, p99", "-", duration(touch.p99), ""))
    return rows


def _show_walk(pages: int, folder: str, *, json: bool) -> None:
    from lazyrestore._demo import walk

    events = walk.walk(pages, walk.image_path(folder))
    if not json:
        for event in events:
            print(walk.describe(event))
        return
    from ._show import print_json

    print_json(walk.summary(events))
