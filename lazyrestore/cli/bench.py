"""`lazyrestore bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._arguments import JsonOption, parse_count
from ._errors import UsageError, stopping_means

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._bench.hello import HelloReport

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
    json: JsonOption = False,
) -> None:
    """Measure what lazy restores cost on this machine.

    'bench hello' is the classic demonstration of userfaultfd, and the least that a fault can cost:
    one thread touches pages, another polls, and answers each with a copy of one page that is
    ready. As started, and confined to one core, in turns.
    """
    with stopping_means("the measurement was given up: nothing is left of it"):
        if image == _HELLO:
            _show_hello(pages, raw, json=json)
        else:
            if pages is not None or raw is not None:
                raise UsageError("--pages and --raw belong to 'lazyrestore bench hello'")
            raise UsageError("IMAGE is not there yet")


# ---- hello -------------------------------------------------------------------------------------


def _show_hello(pages: int | None, raw: str | None, *, json: bool) -> None:
    from lazyrestore._bench import hello

    if raw is None:
        report, _ = hello.run(pages or hello.DEFAULT_PAGES)
    else:
        with open(raw, "w", encoding="ascii") as file:  # first: it may not be allowed
            report, latencies = hello.run(pages or hello.DEFAULT_PAGES)
            file.writelines(f"{latency}\n" for latency in latencies)
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
