"""Dumping: any source into one image."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from ._content import (
    DEFAULT_CLUSTER_SIZE,
    DEFAULT_LEVEL,
    BytePlanes,
    check_byte_planes,
    check_options,
)
from .format import PAGE_SIZE_MIN
from .reports import DumpReport
from .sources.base import Source
from .writer import ImageWriter, Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .sources.base import MemoryLike

__all__ = ["dump"]


def dump(
    source: MemoryLike | Mapping[str, MemoryLike] | Source,
    path: str | os.PathLike[str],
    *,
    level: int = DEFAULT_LEVEL,
    cluster_size: int | None = None,
    threads: int | None = None,
    byte_planes: BytePlanes = "auto",
    progress: Progress | None = None,
) -> DumpReport:
    """Write memory into an image.

    The image appears at `path` when it is complete; until then, and if anything fails, what was
    there stays.

    Args:
        source: a buffer or numpy array, which makes a region "memory"; a mapping from names to
            such; ProcessMemory(pid), ProcessTree(pid), RawFile(path), CoreFile(path), or
            CriuFolder(path). Memory must not change meanwhile (other processes are stopped).
        path: the image.
        level: of zstd, -7 to 22.
        cluster_size: bytes that are compressed together, and loaded at one touch: a power of two
            from 4 KiB to 2 MiB; None: 64 KiB, and 8 KiB of processes (ProcessTree, CriuFolder).
        threads: that compress; None: one for each core that this process may use.
        byte_planes: group the bytes of numbers before they are compressed, where a sample shows
            that it pays. "auto": of arrays, by their dtype, and of other sources that know what
            they hold; "none"; 2, 4 or 8: of everything, as numbers of so many bytes.
        progress: called at most 20 times a second with the bytes that are done and their total,
            None where that is not known.

    Raises:
        TypeError: the source is not memory (an array of objects has none of its own).
        ValueError: a setting or a region's name cannot be, source and image are the same file, or
            the source is a session that is closed.
        ProcessError: the process is not there, ended, or cannot be read.
        CriuError: CRIU is missing, or failed.
        LazyRestoreError: a core file or a folder of CRIU's images is none, or damaged.
        OSError: a file cannot be read or written.
    """
    target = os.fsdecode(path)
    origin = _as_source(source)
    if cluster_size is None:
        cluster_size = getattr(origin, "default_cluster_size", DEFAULT_CLUSTER_SIZE)
    check_options(PAGE_SIZE_MIN, cluster_size, level, threads)
    check_byte_planes(byte_planes)
    origin.check(target)
    with ImageWriter(
        target,
        level=level,
        cluster_size=cluster_size,
        threads=threads,
        byte_planes=byte_planes,
        source=origin.describe(),
        progress=progress,
        total_bytes=origin.total_bytes(),
    ) as writer:
        origin.write_to(writer)
        report = writer.close()
    return dataclasses.replace(
        report,
        frozen_us=origin.frozen_us,
        skipped=tuple(origin.skipped),
        processes=tuple(getattr(origin, "processes", ())),
    )


def _as_source(source: object) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "a path is not memory: use RawFile(path) for the content of a file, or encode a str"
        )
    from .sources.buffer import Memory

    return Memory.of(source)
