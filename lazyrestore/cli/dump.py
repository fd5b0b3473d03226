"""`lazyrestore dump`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from ._arguments import (
    JsonOption,
    QuietOption,
    ThreadsOption,
    parse_range,
    parse_size,
)
from ._errors import UsageError, stopping_means, usage_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore.reports import DumpReport
    from lazyrestore.sources import CoreFile, ProcessMemory, RawFile


def dump(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="The image to write; by custom, *.lzr.")
    ],
    pid: Annotated[
        int | None, typer.Option(metavar="PID", help="Dump the memory of a running process.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Dump the bytes of a file, as a virtual machine's memory; - is standard input.",
        ),
    ] = None,
    core: Annotated[
        str | None,
        typer.Option(metavar="ELF", help="Dump the memory in a core file, by its addresses."),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="START-END",
            help="With --pid: dump these addresses only (hexadecimal; may be given again).",
        ),
    ] = None,
    level: Annotated[
        int, typer.Option(metavar="N", help="Compression level of zstd, -7 to 22.")
    ] = 3,
    cluster_size: Annotated[
        int,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            show_default=False,
            help="How much is compressed together, and loaded by one touch: 4K to 2M."
            "  [default: 64K]",
        ),
    ] = 65536,
    threads: ThreadsOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every region, and all that was skipped.")
    ] = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Write memory into an image.

    A process is stopped while it is read, and always runs on: also if the dump fails or is killed.
    One in which a lazy restore is not yet complete is refused: what is missing could not be read.
    What a core file leaves out, or was cut off, is not in the image either: the report says what.
    The image takes its place when it is complete; until then, what was there stays. What a killed
    dump left beside it is removed by the next.
    """
    source = _source(pid, file, core, ranges)
    if image == "-":
        raise UsageError("an image is not written to standard output: give a file's name")

    from lazyrestore import dump as dump_to
    from lazyrestore.cli._progress import Progress

    with (
        Progress("dump", quiet=quiet) as progress,
        stopping_means(f"the dump was given up: {image} is as it was"),
        usage_errors(),
    ):
        report = dump_to(
            source,
            image,
            level=level,
            cluster_size=cluster_size,
            threads=threads,
            progress=progress,
        )
    if json:
        from ._show import print_json

        print_json(report)
    elif not quiet:
        _print(report, verbose)


def _source(
    pid: int | None, file: str | None, core: str | None, ranges: list[str] | None
) -> ProcessMemory | RawFile | CoreFile:
    if (pid, file, core).count(None) != 2:
        raise UsageError("say what to dump: one of --pid PID, --file PATH and --core ELF")
    if ranges and pid is None:
        raise UsageError("--range is for --pid: a file is dumped as a whole")
    from lazyrestore import sources

    if file is not None:
        return sources.RawFile(file)
    if core is not None:
        if core == "-":
            raise UsageError(
                "a core file is read at many places, so not from standard input: give its name"
            )
        return sources.CoreFile(core)
    pieces = [parse_range(text) for text in ranges] if ranges else None
    assert pid is not None
    with usage_errors():
        return sources.ProcessMemory(pid, pieces)


def _print(report: DumpReport, verbose: bool) -> None:
    from ._show import count, duration, one_line, print_fields, size

    rate = report.logical_bytes / report.seconds if report.seconds else 0.0
    took = f"{duration(report.seconds * 1e6)}, {size(rate)}/s"
    if report.frozen_us is not None:
        took += f"; the process stood still for {duration(report.frozen_us)}"
    data = size(report.data_bytes)
    if report.duplicate_bytes:
        data += f", of which {size(report.duplicate_bytes)} are repeats, stored once"
    regions = f"{size(report.logical_bytes)} in {count(len(report.regions), 'region')}"
    fields = [
        ("memory", regions),
        ("data", data),
        ("zero pages", size(report.zero_bytes)),
        ("untouched", size(report.hole_bytes)),
        ("image", f"{size(report.stored_bytes)}, ratio {report.ratio:.2f}"),
        ("time", took),
        ("digest", report.digest),
    ]
    print(one_line(f"{report.path}: dumped"))
    print_fields(fields)
    if report.skipped:
        _print_skipped(report, verbose)
    if verbose:
        from .ls import print_regions

        print()
        print_regions(report.regions, None)


def _print_skipped(report: DumpReport, verbose: bool) -> None:
    from ._show import count, one_line, size

    total = sum(piece.length for piece in report.skipped)
    where = "" if verbose else " (-v or --json lists them)"
    print(f"  not in the image: {size(total)} in {count(len(report.skipped), 'piece')}{where}")
    reasons = Counter(piece.reason for piece in report.skipped)
    for reason, number in reasons.most_common():
        print(f"    {number:>4}  {one_line(reason)}")
        if not verbose:
            continue
        for piece in report.skipped:
            if piece.reason == reason:
                print(f"          {size(piece.length):>9}  {one_line(piece.name)}")
