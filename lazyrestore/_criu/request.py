"""What a restore of processes was asked for, and the short way to read it from the command line.

Reading arguments in full takes longer than all else that a restore does before CRIU is started. The
usual ones are read here; where there is any other, or anything is wrong, the full way is taken, and
says so (tests see to it that both understand the same). No dataclass, which takes long to import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class ProcessOptions:
    """What was asked for; see the options of `lazyrestore restore`."""

    def __init__(self) -> None:
        self.image = ""
        self.begun_ns = 0
        self.detach = False
        self.pidfile: str | None = None
        self.criu_bin: str | None = None
        self.criu_options: tuple[str, ...] = ()
        self.prefetch: str | None = None
        self.record: str | None = None
        self.working_set: str | None = None
        self.granularity: str | None = None
        self.on_error: str | None = None
        self.keeper = True
        self.log: str | None = None
        self.json = False
        self.quiet = False


_FLAGS = {
    "--lazy": None,
    "-d": ("detach", True),
    "--restore-detached": ("detach", True),
    "--no-keeper": ("keeper", False),
    "--json": ("json", True),
    "-q": ("quiet", True),
    "--quiet": ("quiet", True),
}
_VALUES = {
    "--pidfile": "pidfile",
    "--criu-bin": "criu_bin",
    "--record": "record",
    "--working-set": "working_set",
    "--log": "log",
    "--prefetch": "prefetch",
    "--granularity": "granularity",
    "--on-error": "on_error",
}
_CHOICES = {
    "prefetch": ("none", "auto", "all"),
    "granularity": ("cluster", "page"),
    "on_error": ("kill", "poison", "log"),
}
_CRIU_OPTION = "--criu-opt"


def read(arguments: Sequence[str]) -> ProcessOptions | None:
    """Read what follows `restore`; None: it is not that simple."""
    found = ProcessOptions()
    images = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument in _FLAGS:
            if (flag := _FLAGS[argument]) is not None:
                setattr(found, *flag)
            continue
        if not argument.startswith("-"):
            images.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in _VALUES and name != _CRIU_OPTION:
            return None
        if not equals:
            if not waiting or waiting[0].startswith("-"):
                return None
            value = waiting.pop(0)
        if name == _CRIU_OPTION:
            found.criu_options += (value,)
            continue
        field = _VALUES[name]
        if value not in _CHOICES.get(field, (value,)):
            return None
        setattr(found, field, value)
    if len(images) != 1 or not images[0] or "--lazy" not in arguments:
        return None
    found.image = images[0]
    return found
