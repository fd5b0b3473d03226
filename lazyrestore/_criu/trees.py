"""What is told of processes that run again, and of CRIU's folder that was written."""

from __future__ import annotations

from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .inventory import Task


@dataclass(frozen=True)
class RunningTree:
    """Processes that run again. Times in microseconds.

    Attributes:
        path: the image.
        pid: the first process's number here.
        tasks: all processes, with their numbers in the image.
        daemon_pid: of the process that has their memory.
        lazy_bytes: memory that comes when it is touched.
        ready_us: from the beginning until CRIU was started.
        criu_us: what CRIU took from there.
        run_us: from the beginning until CRIU said that they run.
    """

    path: str
    pid: int
    tasks: tuple[Task, ...]
    daemon_pid: int
    lazy_bytes: int
    ready_us: float
    criu_us: float
    run_us: float


@dataclass(frozen=True)
class ExportReport:
    """CRIU's folder, written.

    Attributes:
        path: the image.
        folder: where it was written to.
        lazy: it is without the pages that can come later.
        files: how many there are in it.
        bytes: their length.
        criu_version: of the CRIU that dumped the processes.
        seconds: for everything.
    """

    path: str
    folder: str
    lazy: bool
    files: int
    bytes: int
    criu_version: str
    seconds: float
