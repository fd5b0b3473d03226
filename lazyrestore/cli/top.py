"""`lazyrestore top`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from ._errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import Console, Group

    from ._status import Sample, ServiceGone

_SLICE_S = 0.1
_LEAST_S = 0.1
_GONE_S = 5.0


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_S <= seconds <= 86400:
        raise typer.BadParameter(f"{text!r} is not a number of seconds from {_LEAST_S:g} on")
    return seconds


def top(
    socket: Annotated[
        str, typer.Argument(metavar="SOCKET", help="A socket that the service listens at.")
    ],
    interval: Annotated[
        float,
        typer.Option(
            "--interval", "-n", metavar="SECONDS", parser=_parse_seconds, help="How often to look."
        ),
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once.")] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: one object a line, or with --once one object; sizes in bytes, times"
            " in microseconds.",
        ),
    ] = False,
) -> None:
    """Show whom a service serves, and how fast.

    It looks again and again; q ends it. Rates are those since the last look; at the first one,
    since the process connected. Times are from reading a fault's message to the touched page being
    there. Without a terminal it prints plain text.
    """
    if not socket:
        raise UsageError("say which service: the path of a socket that it listens at")
    if once:
        _print_once(socket, json)
    elif json or not sys.stdout.isatty():
        _print_on(socket, interval, json)
    else:
        _show(socket, interval)


def _print_once(path: str, is_json: bool) -> None:
    from ._show import print_json
    from ._status import Sample, ask

    now = Sample(ask(path))
    if is_json:
        print_json(now.to_json())
    else:
        _print_plain(now, _width())


def _print_on(path: str, interval: float, is_json: bool) -> None:
    """Until the service is gone, which is an error, or nobody reads."""
    from json import dumps

    from ._status import Sample, ask

    now: Sample | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            if now is not None:
                time.sleep(interval)
                if not is_json:
                    print()
            now = Sample(ask(path), now)
            if is_json:
                print(dumps(now.to_json()), flush=True)
            else:
                _print_plain(now, None)


def _width() -> int | None:
    """Of the terminal; None: nothing limits it."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _need_rich() -> None:
    """It comes with typer, but need not."""
    from lazyrestore._extras import require

    require("rich", None, "lazyrestore top")


def _print_plain(now: Sample, width: int | None) -> None:
    _need_rich()
    from ._top_text import screen

    print("\n".join(screen(now, width)), flush=True)


# ---- In a terminal -------------------------------------------------------------------------------


def _show(path: str, interval: float) -> None:
    from ._status import Sample, ServiceGone, ask

    now = Sample(ask(path))  # what is wrong at the start is said without a screen
    _need_rich()
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    gone_at, gone = 0.0, None
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as has_key,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            next_s = time.monotonic() + interval
            size = None
            while time.monotonic() < next_s:
                if size != (size := console.size):
                    live.update(_picture(now, console, gone), refresh=True)
                if has_key(min(_SLICE_S, max(0.0, next_s - time.monotonic()))):
                    return
            try:
                now, gone = Sample(ask(path), now), None
            except ServiceGone as error:
                if gone is None:
                    gone_at = time.monotonic()
                gone = error
                if time.monotonic() - gone_at > _GONE_S:
                    break
    if gone is not None and time.monotonic() - gone_at > _GONE_S:
        raise gone


def _picture(now: Sample, console: Console, gone: ServiceGone | None) -> Group:
    from rich.console import Group
    from rich.text import Text

    from ._show import one_line
    from ._top_text import screen

    width, height = console.size
    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in screen(now, width, height)]
    lines[0].stylize("bold")
    for number, line in enumerate(lines):
        if line.plain.startswith("PEER") or line.plain.lstrip().startswith("PEER "):
            lines[number].stylize("reverse")
            break
    last = Text("q ends it", style="dim", no_wrap=True)
    if gone is not None:
        said = f"What stands above is old: {one_line(str(gone))}"
        last = Text(said, style="bold red", no_wrap=True, overflow="ellipsis")
    return Group(*lines, last)


@contextlib.contextmanager
def _keys() -> Iterator[KeyWait]:
    """A function that waits for some seconds, and tells whether q was pressed meanwhile."""
    import select

    if not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp():

        def sleep(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield sleep
        return

    import termios
    import tty

    def wait(seconds: float) -> bool:
        if not select.select([0], [], [], seconds)[0]:
            return False
        pressed = os.read(0, 64)
        return not pressed or b"q" in pressed.lower()

    before = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)
        yield wait
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


if TYPE_CHECKING:
    from collections.abc import Callable

    KeyWait = Callable[[float], bool]
