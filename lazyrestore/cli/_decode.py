"""What `lazyrestore restore --output` does."""

from __future__ import annotations

import os

from ._arguments import choose_region
from ._errors import UsageError, stopping_means, usage_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._export import ExportReport
    from lazyrestore._output import OutputReport

_STDOUT = "-"
_OF_SEVERAL = ("npz", "safetensors")
_OF_ARRAYS = ("npy", *_OF_SEVERAL)


def decode(
    image: str,
    output: str,
    format: str | None,
    region: str | None,
    threads: int | None,
    quiet: bool,
    json: bool,
    shows_progress: bool | None,
) -> None:
    """Decode an image into a file, or onto standard output, as it is or as arrays."""
    format = format or _format_of(output)
    if output == _STDOUT and format != "raw":
        raise UsageError(f"--format {format} is not for standard output: give a file's name")
    if output == _STDOUT and json:
        raise UsageError("--json and --output - would both write to standard output: give a file")
    if output == _STDOUT and os.isatty(1):
        raise UsageError("memory is not fit for a terminal: give --output a file, or pipe it on")

    from lazyrestore._open import Image
    from lazyrestore._output import write_file, write_stream

    from ._progress import Progress

    where = "standard output" if output == _STDOUT else output
    given_up = "the restore was given up" + (
        "" if output == _STDOUT else f": {output} is as it was"
    )
    with (
        Image(image) as opened,
        Progress("restore", quiet=quiet, wanted=shows_progress) as progress,
        stopping_means(given_up),
    ):
        if format in _OF_SEVERAL and region is None:
            numbers = list(range(len(opened.regions)))
        else:
            numbers = [choose_region(opened, region)]
        if output == _STDOUT:
            write_stream(opened, numbers[0], 1, where, threads=threads, progress=progress)
            return
        report: OutputReport | ExportReport
        with usage_errors():
            if format == "raw":
                report = write_file(opened, numbers[0], output, threads=threads, progress=progress)
            else:
                from lazyrestore._export import write_arrays

                report = write_arrays(
                    opened, numbers, output, format, threads=threads, progress=progress
                )
    if json:
        from ._show import print_json

        print_json(report)
    elif not quiet:
        _print(report)


def _format_of(path: str) -> str:
    """The format that a file's name asks for."""
    _, dot, ending = path.rpartition(".")
    return ending.lower() if dot and ending.lower() in _OF_ARRAYS else "raw"


def _print(report: OutputReport | ExportReport) -> None:
    from lazyrestore._output import OutputReport

    from ._show import count, duration, one_line, size

    rate = f", {size(report.logical_bytes / report.seconds)}/s" if report.seconds else ""
    if isinstance(report, OutputReport):
        what = f"region {report.region!r}"
    elif len(report.regions) == 1:
        what = f"array {report.regions[0]!r}"
    else:
        what = count(len(report.regions), "array")
    print(
        one_line(
            f"{report.path}: {size(report.logical_bytes)} of {what},"
            f" {size(report.data_bytes)} of it data, in {duration(report.seconds * 1e6)}{rate}"
        )
    )
