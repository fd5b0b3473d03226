"""Options of `criu dump` that a user may add, and why not the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["DumpOptions"]

_INCREMENTAL = (
    "an image is complete in itself: what is the same as in another dump costs little time, and"
    " equal memory is stored once"
)
_OURS = "lazyrestore sets that itself"
_PAGES = "the pages go into the image itself"
_ORDER = "CRIU ends the processes only after this process has said that the image is complete"

_REFUSED = {
    "track-mem": _INCREMENTAL,
    "prev-images-dir": _INCREMENTAL,
    "auto-dedup": _INCREMENTAL,
    "images-dir": _OURS,
    "work-dir": _OURS,
    "log-file": "where a dump fails, the log is kept, and the message says where",
    "tree": _OURS,
    "pidfile": _OURS,
    "status-fd": _OURS,
    "page-server": _PAGES,
    "ps-socket": _PAGES,
    "address": _PAGES,
    "port": _PAGES,
    "tls": _PAGES,
    "stream": _PAGES,
    "lazy-pages": f"{_PAGES}; it is `restore --lazy` that is lazy",
    "action-script": f"{_ORDER}, and asks only one",
    "leave-running": "write --leave-running without --criu-opt",
    "unprivileged": "CRIU needs to be root to read the pages that way: use sudo",
    "daemon": _OURS,
    "exec-cmd": "that is for restoring",
    "help": "see `criu dump --help`",
    "version": "see `criu --version`",
}
_SHORT = {
    "D": "images-dir",
    "W": "work-dir",
    "o": "log-file",
    "t": "tree",
    "R": "leave-running",
    "d": "daemon",
    "h": "help",
    "V": "version",
}
_LEVEL_DEFAULT, _LEVEL_MAX = 2, 4  # errors and warnings: more takes time while all is frozen
_LEVEL = re.compile(r"-v(v*|[0-9])|--verbosity(?:=([0-9]))?")


class DumpOptions(NamedTuple):
    """What is given to CRIU.

    Attributes:
        arguments: of its command line.
        log_level: how much it logs, from 0 to 4.
    """

    arguments: tuple[str, ...]
    log_level: int

    @classmethod
    def of(cls, options: Sequence[str]) -> DumpOptions:
        """Look at what the user gave, as "--shell-job" or "--external=dev[5/2]:tty".

        Raises:
            ValueError: CRIU must not be given one of these for a dump.
        """
        if isinstance(options, str):
            raise ValueError(f"CRIU's options are several strings, not one: {options!r}")
        arguments, level = [], _LEVEL_DEFAULT
        for option in options:
            found = _LEVEL.fullmatch(option)
            if found:
                given = found[1] or found[2] or "1"
                level = int(given) if given.isdigit() else 1 + len(given)
                continue
            _check(option)
            arguments.append(option)
        return cls(tuple(arguments), min(level, _LEVEL_MAX))


def _check(option: str) -> None:
    if not option.startswith("-") or option.strip("-") == "" or "\0" in option:
        raise ValueError(
            f"{option!r} is not an option of CRIU's: write each as one word, with = before its"
            " value: --criu-opt=--ghost-limit=1G"
        )
    if option.startswith("--"):
        name = option[2:].partition("=")[0]
        # An abbreviation is as good as the name itself, where it is of one option only.
        refused = next((one for one in _REFUSED if one.startswith(name)), None)
    else:
        refused = _SHORT.get(option[1])
    if refused is not None:
        raise ValueError(f"CRIU cannot be given {option} for a dump: {_REFUSED[refused]}")
