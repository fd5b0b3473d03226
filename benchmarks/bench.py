"""What the groups of rows share: the data, how often to measure, and children that do it."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .data import NAMES, ROOT, Data, environment
from .runner import NotMeasuredError, Row

_TIMEOUT_S = 120


@dataclasses.dataclass
class Bench:
    """One run.

    Attributes:
        data: the data sets.
        repeats: turns of rows that have a target.
        is_quick: smaller and fewer.
        names: of the data sets to measure; the first is the one of rows that take only one.
        say: told what is going on.
        series: what the pictures are drawn from, by the name of the picture.
    """

    data: Data
    repeats: int
    is_quick: bool
    say: Callable[[str], None]
    names: tuple[str, ...] = NAMES
    series: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def few(self) -> int:
        """Turns of rows that are only shown."""
        return min(3, self.repeats)

    def child(self, task: str, *, module: str = "child", **arguments: Any) -> dict[str, Any]:
        """Run a task of `child.py`, or of another module, in a fresh process."""
        given = {name: _plain(value) for name, value in arguments.items()}
        command = [sys.executable, "-m", f"benchmarks.{module}", task, json.dumps(given)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{task} {given} was still running after {_TIMEOUT_S} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            raise RuntimeError(f"{task} {given} ended with {done.returncode}: {last}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "missing" in found:
            raise NotMeasuredError(found["missing"])
        return found

    def task(self, name: str, **arguments: Any) -> functools.partial[dict[str, Any]]:
        """A call of `child`, for `in_turns`."""
        return functools.partial(self.child, name, **arguments)


def _plain(value: object) -> object:
    return (
        value if isinstance(value, (int, float, str, bool, list, dict, type(None))) else str(value)
    )


Group = Callable[[Bench], Iterator[Row]]


def pick(found: list[dict[str, Any]], key: str) -> list[float]:
    """One figure of each turn."""
    return [float(one[key]) for one in found]
