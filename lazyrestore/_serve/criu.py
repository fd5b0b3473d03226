"""A daemon for CRIU: what `criu lazy-pages` is for it, from an image, in the place of a folder.

    listener = bind(folder)                 # before CRIU is started: it connects at once
    prepare()                               # in a process of its own: what takes time
    run_daemon(options, listener, ready)

Light to import, for those who start CRIU first: what serves is imported when it runs.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import TYPE_CHECKING

from lazyrestore.errors import LazyRestoreError

from . import listen
from .criu_wire import SOCKET_NAME, want_senders

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyrestore._criu.pagemap import Pagemap

    from .listen import Listener
    from .options import ServeOptions

PROTOCOL = "criu"


def bind(folder: str) -> Listener:
    """Listen where `criu restore --lazy-pages` with that working folder connects.

    Raises:
        SocketError: somebody listens there, or it cannot be made.
        ValueError: the path is too long.
    """
    listener = listen.bind(os.path.join(folder, SOCKET_NAME))
    listener.kind = PROTOCOL
    want_senders(listener.sock)
    return listener


def prepare() -> None:
    """Import what `run_daemon` needs; it does so itself where this was not called."""
    names = ("asyncio", "ssl")
    if not any(name in sys.modules for name in names):
        # Without TLS, which nobody speaks here: that is much to map, and a part of the start.
        sys.modules["ssl"] = None  # type: ignore[assignment]
        import asyncio  # noqa: F401

        del sys.modules["ssl"]
    from . import run  # noqa: F401


def run_daemon(options: ServeOptions, listener: Listener | None, ready: Callable[[], None]) -> None:
    """Serve whoever connects, in this process, until nobody needs it any more.

    Args:
        options: what is asked for; `image` is one of processes.
        listener: by `bind`; None: at `options.sockets`.
        ready: is called once all is prepared; connections wait in the socket until then.

    Raises:
        OSError, LazyRestoreError, ValueError: it cannot be served.
    """
    prepare()
    from .run import serve_criu

    serve_criu(options, [] if listener is None else [listener], ready)


def check_folder(path: str, folder: str) -> None:
    """See whether a folder of CRIU's is of an image: else the pages would be others'.

    Raises:
        OSError, ImageError: one of the two cannot be read.
        LazyRestoreError: it is not, or the image is none of processes.
    """
    from lazyrestore._criu.checkpoint import Checkpoint
    from lazyrestore._criu.pagemap import LAZY, parse
    from lazyrestore._open import Image

    os.stat(folder)  # one that is not there says so, and not that it is another's
    image = Image(path)
    checkpoint = Checkpoint.of(image)
    if checkpoint is None:
        raise LazyRestoreError(
            f"{path} is an image of memory alone, and not of processes: dump one with `lazyrestore"
            " dump --process`"
        )
    for task in checkpoint.tasks:
        name = os.path.join(folder, f"pagemap-{task.pid}.img")
        known = checkpoint.lazy_pagemap(str(task.pid))
        try:
            with open(name, "rb") as file:
                found = parse(file.read(), name)
        except FileNotFoundError:
            found = None
        if found is None and known is None:
            continue
        if found is None or known is None or _lazy(found, LAZY) != _lazy(known, LAZY):
            raise LazyRestoreError(
                f"{folder} is not of {path}: task {task.pid} has other pages there; make the folder"
                f" by `lazyrestore restore {path} --criu DIR --lazy`"
            )


def _lazy(pagemap: Pagemap, flag: int) -> list[list[int]]:
    """Where pages are that may come later, what lies together in one."""
    found: list[list[int]] = []
    for address, pages, flags in pagemap.entries:
        end = address + pages * mmap.PAGESIZE
        if flags & flag and found and found[-1][1] == address:
            found[-1][1] = end
        elif flags & flag:
            found.append([address, end])
    return found
