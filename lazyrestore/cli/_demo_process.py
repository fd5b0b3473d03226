"""`lazyrestore demo --process`: how it looks."""

from __future__ import annotations

from lazyrestore._demo import processes
from lazyrestore._demo.processes import ProcessDemoReport

from ._show import duration, one_line, print_fields, print_json, print_table, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def show(
    nbytes: int | None,
    folder: str,
    criu_bin: str | None,
    *,
    is_kept: bool,
    json: bool,
    say: Callable[[str], None],
) -> None:
    """Run it, and print what it saw."""
    report = processes.run(
        nbytes or processes.DEFAULT_BYTES, folder, criu_bin=criu_bin, is_kept=is_kept, say=say
    )
    if json:
        print_json(report)
    else:
        _print(report)


def _print(report: ProcessDemoReport) -> None:
    print("A running program was dumped, had ended, and runs again")
    filled = f"filled in {report.fill_seconds:.1f} s"
    stood = "" if report.frozen_us is None else f", {duration(report.frozen_us)} of it frozen"
    print_fields(
        [
            ("program", f"{report.program}, pid {report.pid}"),
            ("memory", f"{size(report.resident_bytes)}, {report.keys} keys, {filled}"),
            ("dump", f"{duration(report.dump_seconds * 1e6)}{stood}; then it had ended"),
            ("image", f"{size(report.stored_bytes)}, {report.ratio:.2f} of CRIU's"),
            ("CRIU's", f"{size(report.criu_bytes)}, by CRIU {report.criu_version}"),
            ("contents", f"the same after each restore: {report.compared} values compared,"),
            ("", f"and {report.keys} keys counted"),
        ]
    )
    print()
    print_table(("  restore", "criu restore", "lazy", ""), _rows(report), right="criu restore lazy")
    if report.image is not None:
        print(one_line(f"the image is kept: {report.image}"))


def _rows(report: ProcessDemoReport) -> list[tuple[str, str, str, str]]:
    eager, lazy = report.eager, report.lazy
    sooner = (
        f"{report.speedup:.1f} times sooner"
        if report.speedup >= 1
        else "no sooner: try a larger --size"
    )
    times = [
        ("  first answer after", eager.first_us, lazy.first_us, sooner),
        ("  answer, p50", eager.p50_us, lazy.p50_us, "of random keys, right after that"),
        ("  answer, p99", eager.p99_us, lazy.p99_us, ""),
    ]
    sizes = [
        ("  memory used at first", eager.resident_bytes, lazy.resident_bytes, ""),
        ("  memory used then", eager.end_resident_bytes, lazy.end_resident_bytes, ""),
    ]
    shown = [(name, duration(one), duration(two), text) for name, one, two, text in times]
    kept = [(name, size(one), size(two), text) for name, one, two, text in sizes]
    return [shown[0], *kept, *shown[1:]]
