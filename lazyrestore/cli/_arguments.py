"""Arguments that several commands have, and how what is written is read."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lazyrestore.errors import LazyRestoreError

from ._errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._open import Image

_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_RANGE = re.compile(r"(?:0x)?([0-9a-f]{1,16})-(?:0x)?([0-9a-f]{1,16})", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """A number of bytes: 4096, 0x1000, 4K, 4KiB, 2M; K, M, G and T are powers of 1024."""
    if isinstance(text, int):  # an option's default
        return text
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a size: write 4096, 0x1000, 4K, 64KiB, 2M or 1G")
    number, unit = found.groups()
    return int(number, 0 if number[:2] in ("0x", "0X") else 10) << _POWERS[(unit or "").lower()]


def parse_count(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a number from 1 on")
    return int(text)


def parse_seconds(text: str | float) -> float:
    """A time from 0 to 1e6 seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e6:
        raise typer.BadParameter(f"{text!r} is not a number of seconds from 0 to 1000000")
    return seconds


def parse_range(text: str) -> tuple[int, int]:
    """START-END, hexadecimal, as in /proc/PID/maps."""
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"--range {text!r} is not START-END in hexadecimal, as 7f0000000000-7f0000200000"
        )
    return int(found[1], 16), int(found[2], 16)


ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="The image.")]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="NAME",
        help="The region; needed where there are several ('lazyrestore ls' has their names).",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        parser=parse_count,
        help="Use N threads.  [default: one a core]",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object: sizes in bytes, times in microseconds."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, and no report unless --json.")
]
StepsQuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Do not say what is being done: only the report.")
]
ServiceQuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say only what goes wrong.")
]
ServiceVerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say also who connects, before it is served.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
ProgressOption = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="Say on standard error how far it is; a line now and then, where that is no terminal."
        "  [default: on a terminal]",
        show_default=False,
    ),
]
CriuBinOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        show_default=False,
        help="The CRIU to use.  [default: CRIU= of the environment, else the one in PATH]",
    ),
]
CriuOptOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OPT",
        help="Give CRIU an option, as --criu-opt=--tcp-established (may be given again).",
    ),
]


def choose_region(image: Image, name: str | None) -> int:
    """The number of the region that is meant.

    Raises:
        RegionNotFound: there is none of that name.
        UsageError: none was named, and there are several.
    """
    if name is not None:
        return image.number(name)
    if len(image.regions) == 1:
        return 0
    if not image.regions:
        raise LazyRestoreError(f"{image.path} has no regions: there is nothing in it to decode")
    names = ", ".join(region.name for region in image.regions[:6])
    more = f" and {len(image.regions) - 6} more" if len(image.regions) > 6 else ""
    raise UsageError(f"{image.path} has several regions: say which with --region: {names}{more}")
