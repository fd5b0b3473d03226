"""What is measured: a part of the user's image, taken evenly from it, as an image of its own.

So that it takes a minute, whatever the size of the image; and one region of nothing but data.
"""

from __future__ import annotations

import dataclasses
import os

import lazyrestore
from lazyrestore._demo.target import Target
from lazyrestore._native import lib
from lazyrestore._open import Image
from lazyrestore.errors import LazyRestoreError
from lazyrestore.writer import ImageWriter

_STRETCH = 64  # clusters that are taken one after another
_LEVEL = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """An image to measure.

    Attributes:
        path: of it.
        nbytes: of its one region, "memory".
        cluster_size: in bytes.
        zst: the same bytes as one zstd stream, for who decodes that.
        taken_from: what it is a part of, in words.
    """

    path: str
    nbytes: int
    cluster_size: int
    zst: str
    taken_from: str


def generate(folder: str, nbytes: int) -> str:
    """An image of a live program: dumped while it runs.

    Raises:
        LazyRestoreError: the program ended early, or may not be dumped.
    """
    path = os.path.join(folder, "program.lzr")
    with Target(nbytes) as target:
        target.wait_ready()
        lazyrestore.dump(lazyrestore.ProcessMemory(target.pid), path)
    return path


def take(path: str, folder: str, limit: int) -> Sample:
    """Up to `limit` bytes of an image's data, evenly from all of it.

    Raises:
        OSError: the image is not there, or there is no room.
        LazyRestoreError: it is damaged, or has no data.
    """
    image = Image(path)
    places = _data_clusters(image)
    size, page = image.cluster_size, image.info.page_size
    if len(places) < 16:
        raise LazyRestoreError(f"{path} has {len(places)} clusters with data: too few to measure")
    wanted = max(16, limit // size)
    chosen = _evenly(places, wanted)
    sample = os.path.join(folder, "sample.lzr")
    zst = os.path.join(folder, "sample.zst")
    total = 0
    import zstandard

    packer = zstandard.ZstdCompressor(level=_LEVEL)
    with (
        open(zst, "wb") as packed,
        packer.stream_writer(packed) as stream,
        ImageWriter(sample, level=_LEVEL, cluster_size=size, page_size=page) as writer,
    ):
        writer.add_region("memory")
        for name, offset, length in chosen:
            data = image.read(name, offset, length)
            data += bytes(-len(data) % size)  # the next begins at a cluster
            writer.write_stable(data)
            stream.write(data)
            total += len(data)
    part = "all data" if len(chosen) == len(places) else "a part, evenly taken,"
    return Sample(sample, total, size, zst, f"{part} of {path}")


def _data_clusters(image: Image) -> list[tuple[str, int, int]]:
    """Region, offset and length of every cluster that has data."""
    found = []
    with image.reader() as reader:
        for number, region in enumerate(image.regions):
            first, offset = image.first_cluster(number), 0
            while offset < region.length:
                info = reader.cluster(first + offset // image.cluster_size)
                if info.kind in (lib.LR_CLUSTER_ZSTD, lib.LR_CLUSTER_RAW):
                    length = min(image.cluster_size, region.length - offset)
                    found.append((region.name, offset, length))
                offset += max(1, info.run) * image.cluster_size
    return found


def _evenly(places: list[tuple[str, int, int]], wanted: int) -> list[tuple[str, int, int]]:
    """`wanted` of them, in stretches, with the same distance between any two of these."""
    if len(places) <= wanted:
        return places
    stretches = max(1, wanted // _STRETCH)
    length = wanted // stretches
    chosen = []
    for stretch in range(stretches):
        start = stretch * (len(places) - length) // max(1, stretches - 1) if stretches > 1 else 0
        chosen += places[start : start + length]
    return chosen
