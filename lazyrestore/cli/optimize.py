"""`lazyrestore optimize`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._arguments import ImageArgument, JsonOption, ProgressOption, QuietOption
from ._errors import stopping_means, usage_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore.reports import OptimizeReport


def optimize(
    image: ImageArgument,
    working_set: Annotated[
        list[str],
        typer.Option(
            "--working-set",
            metavar="FILE",
            help="A working set ('restore --lazy --record' writes one). May be given several times:"
            " they are merged.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="NEW", help="The new image.")],
    quiet: QuietOption = False,
    shows_progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Write an image anew, with what a working set names at its front.

    A replay of the working set is then one read of the file from its start. Nothing is compressed
    again, and the content and its digest stay the same. The working set is written beside the new
    image, as NEW.ws, where a restore finds it.
    """
    from lazyrestore._optimize import optimize

    from ._progress import Progress

    with (
        Progress("optimize", quiet=quiet, wanted=shows_progress) as progress,
        stopping_means(f"it was given up: {output} is as it was"),
        usage_errors(),
    ):
        report = optimize(image, working_set, output, progress=progress)
    if json:
        from ._show import print_json

        print_json(report)
    elif not quiet:
        _print(report)


def _print(report: OptimizeReport) -> None:
    from ._show import count, duration, one_line, print_fields, size

    print(one_line(f"{report.path}: written in {duration(report.seconds * 1e6)}"))
    merged = "" if report.recordings == 1 else f", merged from {report.recordings} recordings"
    hot = f"{count(report.hot_clusters, 'cluster')}, {size(report.hot_bytes)} of memory{merged}"
    print_fields(
        [
            ("working set", hot),
            ("kept in", report.working_set),
            ("at the front", f"{size(report.front_bytes)} of {size(report.stored_bytes)}"),
            ("digest", report.digest),
        ]
    )
