"""What a restore of processes begins with, before the command line is even read.

Its daemon has as much to import as the command itself, and there is another core: so it is forked
first, where the arguments look as if there will be need of it. Whoever reads them in earnest uses
it, or discards it.
"""

from __future__ import annotations

import os

from .peek import may_have_processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .pager import Daemon


def begin(arguments: Sequence[str]) -> Daemon | None:
    """Fork it for `restore --lazy IMAGE`; None for everything else."""
    if arguments[:1] != ["restore"] or "--lazy" not in arguments:
        return None
    if not any(may_have_processes(text) for text in arguments[1:] if not text.startswith("-")):
        return None
    try:
        for fd in range(3):  # the daemon's descriptors must not have these numbers
            os.fstat(fd)
    except OSError:
        return None
    from .pager import Daemon

    return Daemon.fork()
