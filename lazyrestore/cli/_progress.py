"""A line on standard error that says how far a command is."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from ._show import can_print, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

_INTERVAL_S = 0.1
_LINE_INTERVAL_S = 2.0  # where each is a line of its own
_SMOOTH_S = 3.0  # the rate is that of about so long: zeros go by much faster than data
_LEAST_BAR, _MOST_BAR = 4, 40
_EIGHTHS = " ▏▎▍▌▋▊▉·█"


class Progress:
    """Called with the bytes that are done and their total; shows them, with rate and time left.

    On a terminal it is one line, which does not stay; elsewhere nothing. SIGUSR1 has it say a line
    at any time, as dd does.

    Args:
        what: the word that begins the line, as "dump".
        quiet: nothing is shown that was not asked for.
        wanted: --progress (True: also where there is no terminal, as lines) or --no-progress
            (False); None: neither was given.
    """

    def __init__(self, what: str, *, quiet: bool = False, wanted: bool | None = None) -> None:
        self._what = what
        self._is_line = _is_terminal()
        self._shows = (self._is_line and not quiet) if wanted is None else wanted
        self._start = self._seen_at = time.monotonic()
        self._interval = _INTERVAL_S if self._is_line else _LINE_INTERVAL_S
        self._next = self._start + 2 * _INTERVAL_S  # what is done sooner needs none
        self._seen, self._rate = 0, 0.0
        self._last: tuple[int, int | None] | None = None
        self._width = 0
        self._is_asked = False
        self._before: object = None

    def __call__(self, done: int, total: int | None) -> None:
        self._last = done, total
        if self._is_asked:
            self._is_asked = False
            self._print_line()
        now = time.monotonic()
        if not self._shows or now < self._next:
            return
        self._next = now + self._interval
        self._measure(done, now)
        if self._is_line:
            self._draw(done, total)
        else:
            self._print_line()

    def _measure(self, done: int, now: float) -> None:
        """Take the rate since the last time into the mean."""
        passed = now - self._seen_at
        if passed <= 0:
            return
        rate = max(0, done - self._seen) / passed
        # A mean over less than _SMOOTH_S is one over all that has been.
        share = passed / min(now - self._start, _SMOOTH_S + passed)
        self._rate += (rate - self._rate) * min(1.0, share)
        self._seen, self._seen_at = done, now

    def _draw(self, done: int, total: int | None) -> None:
        # Some terminals (a serial line, a container's) do not say how wide they are.
        columns = max(20, _columns() or 80)
        self._write(describe(self._what, done, total, self._rate, columns=columns)[: columns - 1])

    def _write(self, text: str) -> None:
        padding = " " * max(0, self._width - len(text))
        self._width = len(text)
        sys.stderr.write(f"\r{text}{padding}\r")
        sys.stderr.flush()

    def _print_line(self) -> None:
        """How far it is, as a line that stays."""
        if self._last is None:
            return
        done, total = self._last
        passed = time.monotonic() - self._start
        rate = 0.0 if done == total else self._rate  # at the end that of all of it
        rate = rate or (done / passed if passed > 0 else 0.0)
        text = describe(self._what, done, total, rate, has_bar=False)
        if self._width:
            self._write("")
        print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and (
            signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        ):
            self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_asked = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        if self._width:
            self._write("")
            self._width = 0
        elif self._shows and not self._is_line and kind is None:
            self._print_line()  # who reads it afterwards sees that it came to its end


def steps(*, quiet: bool = False, wanted: bool | None = None) -> Callable[[str], None]:
    """What says what a command does next: a line on standard error, where progress is shown."""
    is_shown = (_is_terminal() and not quiet) if wanted is None else wanted

    def say(text: str) -> None:
        if is_shown:
            print(text, file=sys.stderr, flush=True)

    return say


def describe(
    what: str,
    done: int,
    total: int | None,
    rate: float,
    *,
    columns: int = 80,
    has_bar: bool = True,
) -> str:
    """What is shown: done, rate (bytes a second) and time left; without a total done and rate."""
    if not total:
        return f"{what}  {size(done)}  {size(rate)}/s"
    share = min(1.0, done / total)
    left = f"{_whole_seconds((total - done) / rate)} left" if rate and done < total else ""
    told = f"{share:4.0%}  {size(done)} of {size(total)}  {size(rate)}/s  {left}".rstrip()
    if not has_bar:
        return f"{what}  {told.lstrip()}"
    # What is beside it at its longest: the bar shall not change its length.
    beside = f"{what}    100%  1023.9 KiB of {size(total)}  1023.9 KiB/s  59 min 59 s left"
    room = columns - 1 - len(beside)
    if room < _LEAST_BAR:
        return f"{what}  {told.lstrip()}"
    return f"{what}  {_bar(share, min(_MOST_BAR, room))}  {told}"


def _bar(share: float, width: int) -> str:
    if not can_print(_EIGHTHS, sys.stderr):
        return ("#" * int(share * width)).ljust(width, ".")
    full, eighths = divmod(int(share * width * 8), 8)
    return ("█" * full + _EIGHTHS[eighths].strip()).ljust(width, "·")


def _columns() -> int:
    """Of the terminal; 0: it does not say, or there is none."""
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return 0


def _is_terminal() -> bool:
    try:
        return os.isatty(2) and os.environ.get("TERM") != "dumb"
    except OSError:
        return False


def _whole_seconds(seconds: float) -> str:
    """As "8 s", "2 min 5 s" or "18 min"; not less than a second, for something is left."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    if minutes >= 600:
        return f"{minutes // 60} h"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
