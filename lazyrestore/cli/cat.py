"""`lazyrestore cat`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._arguments import ImageArgument, JsonOption, RegionOption, choose_region, parse_size
from ._errors import UsageError, usage_errors

_JSON_BYTES_MAX = 64 << 20


def cat(
    image: ImageArgument,
    region: RegionOption = None,
    offset: Annotated[
        int,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Where to begin, from the region's start."
        ),
    ] = 0,
    length: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="How many bytes; to the end if not said."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write to a terminal too.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a part of a region to standard output.

    Decodes the clusters that it lies in and no others, and needs no userfaultfd. With --json the
    bytes are one string in base64.
    """
    import os

    from lazyrestore._open import Image, check_range
    from lazyrestore._output import write_stream

    with Image(image) as opened:
        number = choose_region(opened, region)
        info = opened.regions[number]
        if length is None:
            length = max(0, info.length - offset)
        with usage_errors():
            check_range(info.name, offset, length, info.length)
        if json:
            if length > _JSON_BYTES_MAX:
                raise UsageError("with --json at most 64 MiB can be had at once: give a --length")
            _print_json(opened.read(info.name, offset, length), info.name, offset)
            return
        if os.isatty(1) and not force:
            raise UsageError(
                "memory is not fit for a terminal: send it to a file or to `xxd`, or give --force"
            )
        write_stream(opened, number, 1, "standard output", offset=offset, length=length)


def _print_json(data: bytes, region: str, offset: int) -> None:
    import base64

    from ._show import print_json

    encoded = base64.b64encode(data).decode()
    print_json({"region": region, "offset": offset, "length": len(data), "base64": encoded})
