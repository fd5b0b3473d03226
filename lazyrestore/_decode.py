"""Decoding all of an image at once, on all cores: eager restores and files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ._open import Image

CHUNK_BYTES = 8 << 20
"""What one thread decodes at a time: a multiple of every cluster size."""


def default_threads() -> int:
    """One a core that this process may use."""
    return len(os.sched_getaffinity(0))


def decode_regions(image: Image, buffers: Mapping[int, Any], *, threads: int | None = None) -> None:
    """Decode regions, each into a fresh buffer of its own.

    Args:
        image: the image.
        buffers: by the number of the region; all zero, as fresh anonymous memory is.
        threads: how many decode at once; None: one a core.

    Raises:
        ClusterError: a cluster is damaged.
    """
    chunks = [
        (number, offset)
        for number in buffers
        for offset in range(0, image.regions[number].length, CHUNK_BYTES)
    ]
    views = {number: memoryview(buffer).cast("B") for number, buffer in buffers.items()}

    def work(take: Callable[[], int | None]) -> None:
        with image.reader() as reader:
            while (at := take()) is not None:
                number, offset = chunks[at]
                view = views[number][offset : offset + CHUNK_BYTES]
                reader.read_into(number, offset, view, is_zeroed=True)
                view.release()

    try:
        run_threads(work, len(chunks), threads)
    finally:
        for view in views.values():
            view.release()


def run_threads(
    work: Callable[[Callable[[], int | None]], None], count: int, threads: int | None = None
) -> None:
    """Run `work` on several threads; each takes numbers from 0 to count - 1 until there are none.

    Where there may be no more threads, on as many as there can be, and if need be on this one.
    The first exception of any of them is raised here, when all have stopped. After it, and after a
    KeyboardInterrupt here, no further numbers are given out.
    """
    numbers = iter(range(count))
    lock = threading.Lock()
    failures: list[BaseException] = []

    def take() -> int | None:
        with lock:
            return None if failures else next(numbers, None)

    def guarded() -> None:
        try:
            work(take)
        except BaseException as error:
            failures.append(error)

    wanted = max(1, min(threads or default_threads(), count))
    if wanted == 1:
        work(take)
        return
    started = [threading.Thread(target=guarded, daemon=True) for _ in range(wanted)]
    try:
        for count_started, thread in enumerate(started):
            try:
                thread.start()
            except RuntimeError:  # a limit of threads (ulimit -u, pids.max) is reached
                del started[count_started:]
                break
        if not started:
            guarded()
        for thread in started:
            thread.join()
    except BaseException as error:
        failures.insert(0, error)
        for thread in started:
            if thread.ident is not None:
                thread.join()
        raise
    if failures:
        raise failures[0]
