"""`lazyrestore bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._arguments import JsonOption, ProgressOption, StepsQuietOption, parse_count
from ._errors import UsageError, stopping_means

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyrestore._bench.hello import HelloReport
    from lazyrestore._bench.image import BenchReport

_HELLO = "hello"


def bench(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="[IMAGE|hello]",
            help="The image; 'hello': only the least that a fault costs.  [default: one is made]",
        ),
    ] = None,
    pages: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=parse_count,
            help="With hello: touch N pages.  [default: 100000]",
        ),
    ] = None,
    raw: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With hello: write what each page took as started, in nanoseconds, a line each.",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw it, as PNG or SVG: FILE ends with .png or .svg."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller part of the image, and fewer turns.")
    ] = False,
    repeat: Annotated[
        int | None,
        typer.Option(metavar="N", parser=parse_count, help="Turns.  [default: 5, with --quick 3]"),
    ] = None,
    quiet: StepsQuietOption = False,
    shows_progress: ProgressOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what lazy restores cost on this machine.

    Ours and what there is instead in turns, on up to 256M of IMAGE's data, or of a program that is
    dumped for this: the first access, single faults, and touching everything while a fill runs.
    Takes about half a minute.

    'bench hello' is the classic demonstration of userfaultfd, and the least that a fault can cost:
    one thread touches pages, another polls, and answers each with a copy of one page that is
    ready. As started, and confined to one core, in turns.
    """
    with stopping_means("the measurement was given up: nothing is left of it"):
        if image == _HELLO:
            if quick or repeat is not None:
                raise UsageError("--quick and --repeat do not belong to 'lazyrestore bench hello'")
            _show_hello(pages, raw, plot, json=json)
            return
        if pages is not None or raw is not None:
            raise UsageError("--pages and --raw belong to 'lazyrestore bench hello'")
        from ._progress import steps

        say = steps(quiet=quiet, wanted=shows_progress)
        _show_image(image, plot, is_quick=quick, repeats=repeat, json=json, say=say)


# ---- IMAGE ---------------------------------------------------------------------------------------


def _show_image(
    path: str | None,
    plot: str | None,
    *,
    is_quick: bool,
    repeats: int | None,
    json: bool,
    say: Callable[[str], None],
) -> None:
    import dataclasses

    if plot is not None:
        _check_plot(plot)
    from lazyrestore._bench import image

    plan = image.QUICK if is_quick else image.Plan()
    if repeats is not None:
        plan = dataclasses.replace(plan, repeats=repeats)
    report = image.run(path, plan, say)
    if plot is not None:
        from lazyrestore._bench.plot import draw_image

        draw_image(report, plot)
    if json:
        from ._show import print_json

        print_json(report)
        return
    _print_image(report)


def _print_image(report: BenchReport) -> None:
    from ._show import count, duration, one_line, print_histogram, print_table, size
    from ._wakeup_text import print_settings, print_wakeup, print_wrapped

    print(one_line(f"measured: {report.measured}"))
    print(
        f"  {size(report.measured_bytes)} in clusters of {size(report.cluster_size)};"
        f" medians of {count(report.repeats, 'turn')}"
    )
    rows: list[tuple[str, ...]] = []
    what = ""
    for row in report.rows:
        if row.what != what:
            what = row.what
            rows.append((f"  {what}", "", "", "", ""))
        ratio = f"{row.ratio:.3f}" if row.ratio < 0.1 else f"{row.ratio:.2f}"
        times = (duration(row.us), row.other_name, duration(row.other_us))
        rows.append((f"    {row.name}", *times, ratio))
    print_table(("  ours", "time", "beside", "theirs", "ratio"), rows, right="time theirs ratio")
    pages = report.cluster_size // 4096
    print(
        f"  (a fault of ours brings a cluster, of up to {count(pages, 'page')}; hello's, one page)"
    )
    for name, latency in report.faults.items():
        print_histogram(f"faults: {name}", latency.histogram)
    print_wakeup(report.wakeup)
    for sentence in report.explanation:
        print_wrapped(sentence, "  ")
    if report.settings:
        print("what to do about it (any one of these, the narrowest first):")
        print_settings(report.settings)
    for note in report.notes:
        print(one_line(f"note: {note}"))


def _check_plot(path: str) -> None:
    """Before anything is measured: the end of the name, and what draws."""
    if not path.endswith((".png", ".svg")):
        raise UsageError(f"--plot {path!r}: the name of a picture ends with .png or .svg")
    from lazyrestore._bench.plot import check_available

    check_available()


# ---- hello -------------------------------------------------------------------------------------


def _show_hello(pages: int | None, raw: str | None, plot: str | None, *, json: bool) -> None:
    if plot is not None:
        _check_plot(plot)
    from lazyrestore._bench import hello

    if pages is not None and pages > hello.PAGES_MAX:
        raise UsageError(f"--pages is {pages}: it can be up to {hello.PAGES_MAX}")
    if raw is None:
        report, _ = hello.run(pages or hello.DEFAULT_PAGES)
    else:
        with open(raw, "w", encoding="ascii") as file:  # first: it may not be allowed
            report, latencies = hello.run(pages or hello.DEFAULT_PAGES)
            file.writelines(f"{latency}\n" for latency in latencies)
    if plot is not None:
        from lazyrestore._bench.plot import draw_hello

        draw_hello(report, plot)
    if json:
        from ._show import print_json

        print_json(report)
        return
    _print_hello(report)
    if raw is not None:
        from ._show import one_line

        print(one_line(f"what each page took as started, in nanoseconds: {raw}"))


def _print_hello(report: HelloReport) -> None:
    from ._show import duration, print_histogram, print_table
    from ._wakeup_text import print_settings, print_wakeup, print_wrapped

    print(f"hello: {report.pages} pages touched, each answered with a copy of one that is ready")
    ways = (report.as_started, report.one_core)
    rows = [("mean", *(duration(way.latency.mean) for way in ways))]
    rows += [
        (name, *(duration(getattr(way.latency, name)) for way in ways))
        for name in ("p50", "p90", "p99")
    ]
    rows.append(("p99.9", *(duration(way.p99_9) for way in ways)))
    rows.append(("max", *(duration(way.latency.max) for way in ways)))
    heads = ("  a page", "started", "confined")
    print_table(heads, [(f"  {name}", *values) for name, *values in rows], right="started confined")
    print("  (started: as started; confined: both threads on one core; in turns)")
    print_histogram("as started", report.as_started.latency.histogram)
    print_histogram("confined to one core", report.one_core.latency.histogram)
    print_wakeup(report.wakeup)
    for sentence in report.explanation:
        print_wrapped(sentence, "  ")
    if report.settings:
        print("what to do about it (any one of these, the narrowest first):")
        print_settings(report.settings)
