"""`lazyrestore verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._arguments import (
    ImageArgument,
    JsonOption,
    ProgressOption,
    QuietOption,
    ThreadsOption,
)
from ._errors import BAD_IMAGE, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyrestore.reports import RegionInfo, VerifyReport


def verify(
    image: ImageArgument,
    threads: ThreadsOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List the regions, and whether each is sound.")
    ] = False,
    quiet: QuietOption = False,
    shows_progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Check everything in an image.

    Each checksum, the records, the index, the tallies and the digest of the content. Lists the
    place of each error. The exit code is 0 if the image is sound, 3 if not.
    """
    from lazyrestore._open import Image

    from ._progress import Progress
    from ._show import count, print_json

    with (
        Image(image) as opened,
        Progress("verify", quiet=quiet, wanted=shows_progress) as progress,
    ):
        regions = opened.regions
        report = opened.verify(threads=threads, progress=progress)
    if json:
        print_json(report)
    elif not quiet:
        _print_report(report)
        if verbose:
            _print_regions(regions, report)
    if report.damage:
        lost = count(len(report.damage), "error")
        fail(BAD_IMAGE, f"{image}: {lost} found: take another copy, or make the dump again")


def _print_report(report: VerifyReport) -> None:
    import sys

    from ._show import count, duration, one_line, paint, print_table, size

    took = duration(report.seconds * 1e6)
    rate = f"{size(report.logical_bytes / report.seconds)}/s" if report.seconds else ""
    state, colour = ("damaged", "red") if report.damage else ("sound", "green")
    state = paint(state, f"bold {colour}", sys.stdout)
    looked = f"{count(report.clusters, 'cluster')}, {size(report.logical_bytes)}, {took}, {rate}"
    print(f"{one_line(report.path)}: {state} ({looked})")
    if report.damage:
        rows = [
            (
                found.region or "-",
                "-" if found.offset is None else f"{found.offset:#x}",
                size(found.length),
                found.reason,
            )
            for found in report.damage
        ]
        print_table(("region", "offset", "lost", "what is wrong"), rows, right="offset lost")


def _print_regions(regions: Sequence[RegionInfo], report: VerifyReport) -> None:
    from collections import Counter

    from ._show import count, print_table, size

    errors = Counter(found.region for found in report.damage)
    rows = [
        (
            region.name,
            size(region.length),
            count(errors[region.name], "error") if errors[region.name] else "sound",
        )
        for region in regions
    ]
    print()
    print_table(("region", "length", "state"), rows, right="length")
