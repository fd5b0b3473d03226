"""From options to a service that runs: what `lazyrestore serve` does."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from lazyrestore.errors import LazyRestoreError

from .events import Events
from .images import Images
from .listen import Listener, bind, close_all
from .service import Service

if TYPE_CHECKING:
    from .options import ServeOptions

_FOLDER_AGAIN_S = 2.0


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ValueError: the options do not go together, or a path cannot be.
        OSError, ImageError, WorkingSetError: the image or the working set cannot be used.
        LazyRestoreError: a socket cannot be listened on.
    """
    images = Images(options.image, options.image_dir)
    images.check()
    _check_plan(options, images)
    listeners = [
        bind(path, options.socket_mode)
        for given in options.sockets
        for path in _paths_of(images, given)
    ]
    try:
        asyncio.run(_run(options, images, listeners))
    finally:
        close_all(listeners)


def _check_plan(options: ServeOptions, images: Images) -> None:
    from lazyrestore._workingset import WorkingSet

    from .recordings import Recordings

    image = images.for_socket("") if images.single is not None else None
    Recordings(options.record).check(image)
    if options.working_set is not None and image is not None:
        WorkingSet.load(options.working_set).check(image)


def _paths_of(images: Images, given: str) -> list[str]:
    """The sockets that are meant: one, or those of a folder."""
    if not os.path.isdir(given):
        return [given]
    if images.folder is None:
        raise ValueError(f"{given} is a folder: give the path of a socket, or --image-dir")
    return images.sockets_in(given)


async def _run(options: ServeOptions, images: Images, listeners: list[Listener]) -> None:
    events = Events(is_json=options.log_json)
    service = Service(options, images, emit=events.emit)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.ended.set)
    service.start()
    for listener in listeners:
        service.add_listener(listener)
    folders = [path for path in options.sockets if os.path.isdir(path)]
    if folders:
        service.spawn(_follow_folder(service, folders, listeners))
    await service.ended.wait()
    service.stop_admitting()
    await service.close()
    events.emit("stopped")


async def _follow_folder(service: Service, folders: list[str], listeners: list[Listener]) -> None:
    """Make sockets for images that come, and remove those of images that went."""
    while True:
        await asyncio.sleep(_FOLDER_AGAIN_S)
        for folder in folders:
            try:
                wanted = {os.path.abspath(path) for path in service.images.sockets_in(folder)}
            except OSError as error:
                service.emit("error", reason=f"{error.filename}: {error.strerror}")
                continue
            mine = {
                each.path: each
                for each in listeners
                if os.path.dirname(each.path) == os.path.abspath(folder)
            }
            for path in sorted(wanted - mine.keys()):
                try:
                    listener = bind(path, service.options.socket_mode)
                except (LazyRestoreError, ValueError, OSError) as error:
                    service.emit("error", reason=str(error))
                    continue
                listeners.append(listener)
                service.add_listener(listener)
            for path in sorted(mine.keys() - wanted):
                listeners.remove(mine[path])
                service.remove_listener(path)
                mine[path].close()
