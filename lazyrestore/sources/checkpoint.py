"""Whole processes: a tree of them, as CRIU checkpoints it."""

from __future__ import annotations

from collections.abc import Sequence

from lazyrestore._content import PROCESS_CLUSTER_SIZE
from lazyrestore._criu.dumping import TreeDump
from lazyrestore.reports import ProcessInfo, Skipped

from ._refusal import process_name
from .base import Sink

__all__ = ["ProcessTree"]


class ProcessTree:
    """A process with all its threads and descendants, as a source of `dump`: needs CRIU, and root.

    All of it is frozen, its memory goes into the image as CRIU reads it, and everything else of
    which CRIU makes it again. It ends when the image is complete, durable and in its place, or runs
    on. If anything fails before that, it runs on. `restore` makes it run again, there or elsewhere.

    One in which a lazy restore is not complete is refused: what is missing could not be read.

    Args:
        pid: of the root of the tree.
        leave_running: True: the processes run on after the dump; False: they end.
        criu: path of the program; None: CRIU= of the environment, else the one in PATH.
        criu_options: of `criu dump`, as ("--shell-job", "--ghost-limit=1G").

    Raises:
        ValueError: the pid or an option cannot be. Nothing else is looked at before `dump`, which
            raises ProcessError where the process is not there or must not be dumped now, and
            CriuError where CRIU is missing or cannot do it.
    """

    default_cluster_size = PROCESS_CLUSTER_SIZE

    def __init__(
        self,
        pid: int,
        leave_running: bool = False,
        criu: str | None = None,
        criu_options: Sequence[str] = (),
    ) -> None:
        if isinstance(pid, bool) or not isinstance(pid, int):
            raise ValueError(f"a pid is a number, not {pid!r}")
        if not 0 < pid < 1 << 31:
            raise ValueError(f"a pid is from 1 to 2147483647, not {pid}")
        self.pid = pid
        self.leave_running = leave_running
        self._dump = TreeDump(
            pid, leave_running=leave_running, criu=criu, criu_options=criu_options
        )

    @property
    def skipped(self) -> list[Skipped]:
        """Nothing: what CRIU cannot dump, it refuses."""
        return []

    @property
    def frozen_us(self) -> int | None:
        """How long the processes stood still, in µs; None: they did not (yet)."""
        return self._dump.frozen_us

    @property
    def processes(self) -> tuple[ProcessInfo, ...]:
        """What is in the image, parents before their children; complete when the dump is done."""
        return self._dump.processes

    def describe(self) -> str:
        """Its pid and its name, as `process tree 12 (cat)`."""
        return f"process tree {self.pid}{process_name(self.pid)}"

    def total_bytes(self) -> int | None:
        """None: that is known when it is frozen."""
        return None

    def check(self, target: str) -> None:
        """Nothing: what can be wrong with processes shows when they are dumped."""

    def write_to(self, sink: Sink) -> None:
        """Dump the tree to the sink, and close that; only then may the processes end."""
        self._dump.run(sink)
