"""A line on a terminal that says how far a command is."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

from ._show import size

_INTERVAL_S = 0.1
_BAR = 10  # so that all fits into 80 columns


class Progress:
    """Called with the bytes that are done and their total; shows them, with rate and time left.

    Only on a terminal, and nothing of it stays. With `quiet` nothing at all.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what = what
        self._shows = not quiet and _is_terminal()
        self._start = time.monotonic()
        self._next = self._start + 2 * _INTERVAL_S  # what is done sooner needs none
        self._width = 0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if not self._shows or now < self._next:
            return
        self._next = now + _INTERVAL_S
        self._draw(describe(self._what, done, total, now - self._start))

    def _draw(self, text: str) -> None:
        # Some terminals (a serial line, a container's) do not say how wide they are.
        columns = os.get_terminal_size(2).columns or 80
        text = text[: max(20, columns) - 1]
        padding = " " * max(0, self._width - len(text))
        self._width = len(text)
        sys.stderr.write(f"\r{text}{padding}\r")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._width:
            self._draw("")
            self._width = 0


def describe(what: str, done: int, total: int | None, seconds: float) -> str:
    """What is shown: done, rate and time left; without a total done and rate."""
    rate = done / seconds if seconds > 0 else 0.0
    if not total:
        return f"{what}  {size(done)}  {size(rate)}/s"
    share = min(1.0, done / total)
    bar = "█" * round(share * _BAR)
    left = f"{_whole_seconds((total - done) / rate)} left" if rate and done < total else ""
    return (
        f"{what}  {bar:·<{_BAR}}  {share:4.0%}  {size(done)} of {size(total)}"
        f"  {size(rate)}/s  {left}"
    ).rstrip()


def _is_terminal() -> bool:
    try:
        return os.isatty(2) and os.get_terminal_size(2).columns >= 0
    except OSError:
        return False


def _whole_seconds(seconds: float) -> str:
    """As "8 s", "2 min 5 s" or "18 min"; not less than a second, for something is left."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
