"""The data: memory of live programs and numeric arrays, and what ours and the peers make of it.

Everything is made once, and kept in build/bench-data.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lazyrestore
from lazyrestore._demo.images import write_sparse_image
from lazyrestore.writer import ImageWriter

from .runner import NotMeasuredError

ROOT = Path(__file__).resolve().parents[1]
MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096

NAMES = ("python", "database", "numeric")
"""A heap of Python objects, an SQLite database in memory, numeric arrays."""


class Data:
    """Makes files when they are first asked for.

    Args:
        folder: where they are kept.
        nbytes: of each data set.
        say: told what is being made.
    """

    def __init__(self, folder: Path, nbytes: int, say: Callable[[str], None]) -> None:
        self.folder = folder / f"{nbytes // MIB}m"
        self.nbytes = nbytes
        self._say = say
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def pages(self) -> int:
        return self.nbytes // PAGE

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name
        if not path.exists():
            self._say(f"making {name} ...")
            new = path.with_name("new-" + name)
            make(new)
            os.replace(new, path)
        return path

    def raw(self, name: str) -> Path:
        """The bytes themselves."""
        makers = {"python": _process_maker("objects"), "database": _process_maker("database")}
        make = makers.get(name, write_numeric)
        return self.made(f"{name}.raw", lambda path: make(path, self.nbytes))

    def image(self, name: str, cluster_size: int = 65536, level: int = 3) -> Path:
        """One region "memory"."""
        kib, suffix = cluster_size // 1024, "" if level == 3 else f"-level{level}"

        def make(path: Path) -> None:
            source = lazyrestore.RawFile(self.raw(name))
            lazyrestore.dump(source, path, cluster_size=cluster_size, level=level)

        return self.made(f"{name}-{kib}k{suffix}.lzr", make)

    def zst(self, name: str) -> Path:
        """As `zstd -3 -T2` makes it."""
        if shutil.which("zstd") is None:
            raise NotMeasuredError("zstd is missing: apt-get install zstd")
        return self.made(
            f"{name}.zst",
            lambda path: _run(["zstd", "-3", "-T2", "-q", "-f", "-o", path, self.raw(name)]),
        )

    def squashfs(self, name: str) -> Path:
        """One file in blocks of 128 KiB, of the same zstd level as ours."""
        if shutil.which("mksquashfs") is None:
            raise NotMeasuredError("mksquashfs is missing: apt-get install squashfs-tools")
        options = ["-comp", "zstd", "-Xcompression-level", "3", "-b", "131072", "-noappend"]
        return self.made(
            f"{name}.squashfs",
            lambda path: _run(["mksquashfs", self.raw(name), path, *options, "-quiet"]),
        )

    def npz(self, name: str) -> Path:
        """As numpy.savez_compressed makes it."""

        def make(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez_compressed(file, memory=np.fromfile(self.raw(name), dtype=np.uint8))

        return self.made(f"{name}.npz", make)

    def large(self, nbytes: int) -> Path:
        """All data sets, over and over until there is enough, no two clusters of which are alike.

        Each time it begins elsewhere, so that the same bytes never meet a cluster's borders alike.
        """

        def make(path: Path) -> None:
            with ImageWriter(path, source="all data sets") as image:
                image.add_region("memory")
                left, turn = nbytes, 0
                while left:
                    for name in NAMES:
                        start = turn * 1040
                        with open(self.raw(name), "rb") as file:
                            file.seek(start)
                            piece = file.read(min(left, self.nbytes - start))
                        image.write_stable(piece)
                        left -= len(piece)
                    turn += 1

        return self.made(f"large-{nbytes // MIB}m.lzr", make)

    def sparse(self, nbytes: int) -> Path:
        """1 MiB of text at each GiB, and zeros between."""
        return self.made(
            f"sparse-{nbytes // MIB}m.lzr", lambda path: write_sparse_image(str(path), nbytes)
        )

    def spread(self, nbytes: int, name: str, clusters: int = 1024) -> Path:
        """So many clusters of data, evenly over an image of any size, and zeros between."""
        step = nbytes // clusters

        def make(path: Path) -> None:
            data = self.raw(name).read_bytes()[: clusters << 16]
            with ImageWriter(path, source="data between zeros") as image:
                image.add_region("memory")
                for number in range(clusters):
                    image.write(data[number << 16 : (number + 1) << 16])
                    image.zero(step - 65536)

        return self.made(f"spread-{nbytes // MIB}m.lzr", make)

    def zeros(self, pages: int) -> Path:
        """Nothing but pages of zeros."""

        def make(path: Path) -> None:
            with ImageWriter(path) as image:
                image.add_region("memory")
                image.zero(pages * PAGE)

        return self.made(f"zeros-{pages}.lzr", make)


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _process_maker(kind: str) -> Callable[[Path, int], None]:
    def make(path: Path, nbytes: int) -> None:
        """Dump a live program by its pid, and keep what it had in memory of its own."""
        command = [sys.executable, "-m", "benchmarks.heaps", kind, str(nbytes + 24 * MIB)]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment()
        )
        image = path.with_suffix(".lzr")
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if child.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{command} failed")
            lazyrestore.dump(lazyrestore.ProcessMemory(child.pid), image, level=1)
            _write_data_pages(image, path, nbytes)
        finally:
            child.stdin.close()
            child.wait()
            image.unlink(missing_ok=True)

    return make


def _write_data_pages(image_path: Path, raw: Path, nbytes: int) -> None:
    """The writable memory of a dumped program, the largest regions first, without what is a hole.

    Pages of zeros between data stay: every heap has some.
    """
    image = lazyrestore.open(image_path)
    regions = [region for region in image.regions if region.protection & 2 and not region.shared]
    # Arenas lie in many mappings; in order of address, as they are in the program.
    left = nbytes
    with open(raw, "wb") as file:
        for region in sorted(regions, key=lambda region: region.address):
            for offset in range(0, region.length, 1 << 18):
                piece = image.read(region.name, offset, min(1 << 18, region.length - offset))
                if not left or not any(piece):
                    continue
                piece = piece[:left]
                file.write(piece)
                left -= len(piece)
        if left:
            raise RuntimeError(f"{image_path} is {left} bytes short")


def numeric_arrays(nbytes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays as programs have them, about `nbytes` in all."""
    chance = np.random.default_rng(1)
    share = nbytes // 8
    rows = share // 8
    walk = chance.standard_normal(2 * rows).astype(np.float32).cumsum(dtype=np.float32)
    sensors = np.round(walk * np.float32(0.05), 2).astype(np.float32)  # as instruments give them
    times = 1_700_000_000_000_000 + np.cumsum(chance.poisson(1000, rows)).astype(np.int64)
    labels = chance.choice(40, share // 4, p=_zipf(40)).astype(np.int32)
    counts = chance.poisson(3, share // 2).astype(np.uint16)
    ids = np.sort(chance.integers(0, 1 << 40, rows)).astype(np.int64)
    basis = chance.standard_normal((16, 256)).astype(np.float32)
    embeddings = chance.standard_normal((share // 1024, 16)).astype(np.float32) @ basis
    prices = (np.round(np.exp(chance.standard_normal(rows)) * 100) / 100).astype(np.float64)
    sparse = np.zeros(rows, dtype=np.float64)
    places = chance.integers(0, rows, rows // 20)
    sparse[places] = chance.standard_normal(len(places))
    return {
        "sensors": sensors,
        "times": times,
        "labels": labels,
        "counts": counts,
        "ids": ids,
        "embeddings": embeddings,
        "prices": prices,
        "sparse": sparse,
    }


def write_numeric(path: Path, nbytes: int) -> None:
    """These one after another."""
    share = nbytes // 8
    with open(path, "wb") as file:
        left = nbytes
        for array in numeric_arrays(nbytes).values():
            data = array.tobytes()[: min(share, left)]
            file.write(data)
            left -= len(data)
        file.write(bytes(left))


def _zipf(count: int) -> list[float]:
    weights = [1 / rank for rank in range(1, count + 1)]
    return [weight / sum(weights) for weight in weights]


def environment() -> dict[str, str]:
    """For a child that imports the package of this tree."""
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{known}" if known else str(ROOT)}
