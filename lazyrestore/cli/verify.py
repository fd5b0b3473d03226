"""`lazyrestore verify`."""

from __future__ import annotations

from ._arguments import ImageArgument, JsonOption, ProgressOption, QuietOption, ThreadsOption
from ._errors import BAD_IMAGE, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore.reports import VerifyReport


def verify(
    image: ImageArgument,
    threads: ThreadsOption = None,
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
        report = opened.verify(threads=threads, progress=progress)
    if json:
        print_json(report)
    elif not quiet:
        _print_report(report)
    if report.damage:
        lost = count(len(report.damage), "error")
        fail(BAD_IMAGE, f"{image}: {lost} found: take another copy, or make the dump again")


def _print_report(report: VerifyReport) -> None:
    from ._show import count, duration, one_line, print_table, size

    took = duration(report.seconds * 1e6)
    rate = f"{size(report.logical_bytes / report.seconds)}/s" if report.seconds else ""
    state = "damaged" if report.damage else "sound"
    looked = f"{count(report.clusters, 'cluster')}, {size(report.logical_bytes)}, {took}, {rate}"
    print(one_line(f"{report.path}: {state} ({looked})"))
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
