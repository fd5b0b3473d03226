"""`lazyrestore dump`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, cast

import typer

from ._arguments import (
    CriuBinOption,
    CriuOptOption,
    JsonOption,
    ProgressOption,
    QuietOption,
    ThreadsOption,
    parse_range,
    parse_size,
)
from ._errors import UsageError, stopping_means, usage_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazyrestore._content import BytePlanes
    from lazyrestore.reports import DumpReport
    from lazyrestore.sources import ProcessTree, Source


def dump(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="The image to write; by custom, *.lzr.")
    ],
    pid: Annotated[
        int | None, typer.Option(metavar="PID", help="Dump the memory of a running process.")
    ] = None,
    process: Annotated[
        int | None,
        typer.Option(
            metavar="PID",
            help="Dump a process and all its descendants, to be run again; they end. Needs CRIU.",
        ),
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
    criu: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Dump the processes in a folder of CRIU's images."),
    ] = None,
    npz: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Dump the arrays in a .npz file of numpy's, by name."),
    ] = None,
    npy: Annotated[
        str | None, typer.Option(metavar="FILE", help="Dump the array in a .npy file of numpy's.")
    ] = None,
    safetensors: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Dump the tensors in a .safetensors file, by name."),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="START-END",
            help="With --pid: dump these addresses only (hexadecimal; may be given again).",
        ),
    ] = None,
    leave_running: Annotated[
        bool, typer.Option("--leave-running", help="With --process: they do not end, but run on.")
    ] = False,
    criu_opt: CriuOptOption = None,
    criu_bin: CriuBinOption = None,
    level: Annotated[
        int, typer.Option(metavar="N", help="Compression level of zstd, -7 to 22.")
    ] = 3,
    cluster_size: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            show_default=False,
            help="How much is compressed together, and loaded by one touch: 4K to 2M."
            "  [default: 64K; of processes: 8K]",
        ),
    ] = None,
    threads: ThreadsOption = None,
    byte_planes: Annotated[
        str,
        typer.Option(
            metavar="auto|none|2|4|8",
            help="Group the bytes of numbers before they are compressed, where that pays: as the"
            " source says what it holds, never, or of everything as numbers of 2, 4 or 8 bytes.",
        ),
    ] = "auto",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every region, and all that was skipped.")
    ] = False,
    quiet: QuietOption = False,
    shows_progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Write memory into an image.

    With --pid, only the memory of a process: it is stopped while that is read, and always runs on.

    With --process, everything that makes it run, by CRIU: it and its descendants end, as with
    CRIU, but not before the image is complete and in its place; if anything fails, they run on. So
    they do with --leave-running.

    A process in which a lazy restore is not yet complete is refused: what is missing could not be
    read. What a core file leaves out, or was cut off, is not in the image either: the report says
    what. Arrays and tensors keep their names, dtypes and shapes; those of Python's objects are
    refused.

    The image takes its place when it is complete; until then, what was there stays. What a killed
    dump left beside it is removed by the next.
    """
    files = {
        "RawFile": file,
        "CoreFile": core,
        "CriuFolder": criu,
        "NpzFile": npz,
        "NpyFile": npy,
        "SafetensorsFile": safetensors,
    }
    if (pid, process, *files.values()).count(None) != len(files) + 1:
        raise UsageError(
            "say what to dump: one of --pid PID, --process PID, --file PATH, --core ELF,"
            " --criu DIR, --npz FILE, --npy FILE and --safetensors FILE"
        )
    if process is None and (leave_running or criu_opt or criu_bin is not None):
        raise UsageError(
            "--leave-running, --criu-opt and --criu-bin are for --process: add that, or leave them"
            " out"
        )
    if ranges and pid is None:
        raise UsageError("--range is for --pid: all else is dumped as a whole")
    if process is not None:
        source: Source = _process_tree(process, leave_running, criu_bin, criu_opt)
    else:
        source = _source(pid, ranges, files)
    if image == "-":
        raise UsageError("an image is not written to standard output: give a file's name")

    runs_on = "" if process is None else f", and process {process} runs on"

    from lazyrestore import dump as dump_to
    from lazyrestore.cli._progress import Progress

    with (
        Progress("dump", quiet=quiet, wanted=shows_progress) as progress,
        stopping_means(f"the dump was given up: {image} is as it was{runs_on}"),
        usage_errors(),
    ):
        report = dump_to(
            source,
            image,
            level=level,
            cluster_size=cluster_size,
            threads=threads,
            byte_planes=_byte_planes(byte_planes),
            progress=progress,
        )
    if json:
        from ._show import print_json

        print_json(report)
    elif not quiet:
        _print(report, verbose)


def _process_tree(
    pid: int, leave_running: bool, criu: str | None, options: list[str] | None
) -> ProcessTree:
    from lazyrestore.sources import ProcessTree

    with usage_errors():
        return ProcessTree(pid, leave_running, criu, options or ())


def _source(pid: int | None, ranges: list[str] | None, files: Mapping[str, str | None]) -> Source:
    """Memory of a process, or the one of these that is given, by the name of its class."""
    from lazyrestore import sources

    for kind, path in files.items():
        if path is None:
            continue
        if path == "-" and kind not in ("RawFile", "CriuFolder"):
            raise UsageError(
                "such a file is read at many places, so not from standard input: give its name"
            )
        source: Source = getattr(sources, kind)(path)
        return source
    pieces = [parse_range(text) for text in ranges] if ranges else None
    assert pid is not None
    with usage_errors():
        return sources.ProcessMemory(pid, pieces)


def _byte_planes(text: str) -> BytePlanes:
    if text in ("auto", "none", "2", "4", "8"):
        return cast("BytePlanes", int(text) if text.isdecimal() else text)
    raise UsageError(f"--byte-planes is auto, none, 2, 4 or 8, not {text!r}")


def _print(report: DumpReport, verbose: bool) -> None:
    from ._show import count, duration, one_line, print_fields, size

    rate = report.logical_bytes / report.seconds if report.seconds else 0.0
    took = f"{duration(report.seconds * 1e6)}, {size(rate)}/s"
    if report.frozen_us is not None:
        what = "processes" if len(report.processes) > 1 else "process"
        took += f"; the {what} stood still for {duration(report.frozen_us)}"
    data = size(report.data_bytes)
    if report.duplicate_bytes:
        data += f", of which {size(report.duplicate_bytes)} are repeats, stored once"
    planes = ", with byte planes" if any(region.planes for region in report.regions) else ""
    fields = []
    if report.processes:
        fields.append(("processes", _processes(report)))
    regions = f"{size(report.logical_bytes)} in {count(len(report.regions), 'region')}"
    fields += [
        ("memory", regions),
        ("data", data),
        ("zero pages", size(report.zero_bytes)),
        ("untouched", size(report.hole_bytes)),
        ("image", f"{size(report.stored_bytes)}, ratio {report.ratio:.2f}{planes}"),
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


def _processes(report: DumpReport) -> str:
    """How many, and the first of them by name."""
    from ._show import count

    shown = ", ".join(f"{one.comm} {one.pid}" for one in report.processes[:4])
    more = f" and {len(report.processes) - 4} more" if len(report.processes) > 4 else ""
    threads = count(sum(one.threads for one in report.processes), "thread")
    return f"{len(report.processes)}: {shown}{more}; {threads}"


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
