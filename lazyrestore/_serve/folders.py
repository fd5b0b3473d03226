"""Folders of sockets: one for each image, made and removed as images come and go."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from lazyrestore._paths import absolute
from lazyrestore.errors import LazyRestoreError

from .listen import bind

if TYPE_CHECKING:
    from .images import Images
    from .running import Running

_AGAIN_S = 2.0


def paths_of(images: Images, given: str) -> list[str]:
    """The sockets that are meant: one, or those of a folder.

    Raises:
        ValueError: it is a folder, and there is one image only.
    """
    if not os.path.isdir(given):
        return [given]
    if images.folder is None:
        raise ValueError(f"{given} is a folder: give the path of a socket, or --image-dir")
    return images.sockets_in(given)


async def follow_folders(running: Running, folders: list[str]) -> None:
    """Make sockets for images that come, and remove those of images that went."""
    while True:
        await asyncio.sleep(_AGAIN_S)
        for folder in folders:
            try:
                wanted = {absolute(path) for path in running.images.sockets_in(folder)}
            except OSError as error:
                running.emit("error", reason=f"{error.filename}: {error.strerror}")
                continue
            _follow(running, folder, wanted)


def _follow(running: Running, folder: str, wanted: set[str]) -> None:
    mine = {
        each.path: each
        for each in running.listeners
        if os.path.dirname(each.path) == absolute(folder)
    }
    for path in sorted(wanted - mine.keys()):
        try:
            listener = bind(path, running.options.socket_mode)
        except (LazyRestoreError, ValueError, OSError) as error:
            running.emit("error", reason=str(error))
            continue
        running.listen(listener)
    for path in sorted(mine.keys() - wanted):
        running.unlisten(mine[path])
