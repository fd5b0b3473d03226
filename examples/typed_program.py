"""The whole of the API in one program whose types a checker knows: `mypy --strict` is content.

python typed_program.py [FOLDER]        (default: a folder that is gone afterwards)

Needs numpy: pip install 'lazyrestore[numpy]'. `assert_type` does nothing when it runs: it has the
checker compare what it infers.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np

import lazyrestore
from lazyrestore.sources import Sink

PAGE = 4096


class Countdown(lazyrestore.sources.Source):
    """A source of one's own: numbers that are made while they are dumped."""

    def __init__(self, start: int) -> None:
        self.start = start

    def describe(self) -> str:
        """What `lazyrestore info` says of it."""
        return f"a countdown from {self.start}"

    def total_bytes(self) -> int | None:
        """For progress."""
        return 8 * self.start

    def write_to(self, sink: Sink) -> None:
        """Numbers of 8 bytes, so it may group their bytes."""
        sink.add_region("countdown", metadata={"unit": "s"}, width=8)
        for number in range(self.start, 0, -1):
            sink.write(number.to_bytes(8, "little"))


def state() -> Iterator[tuple[str, bytes]]:
    """Some regions: text, noise, nothing."""
    yield "text", b"the same line again\n" * 20_000
    yield "noise", random.Random(7).randbytes(64 * PAGE)
    yield "zeros", bytes(256 * PAGE)


def dump_and_look(folder: Path) -> Path:
    """Write images of three kinds of things, and say what is in one."""

    def tell(done: int, total: int | None) -> None:
        assert total is None or done <= total

    path = folder / "state.lzr"
    report = lazyrestore.dump(dict(state()), path, level=5, threads=2, progress=tell)
    assert_type(report, lazyrestore.DumpReport)
    assert_type(report.ratio, float)
    assert_type(report.regions, tuple[lazyrestore.RegionInfo, ...])
    print(f"{report.logical_bytes:,} bytes in {report.stored_bytes:,}: {report.ratio:.1f} to 1")

    assert lazyrestore.dump(Countdown(1000), folder / "countdown.lzr").logical_bytes == 8000
    lazyrestore.dump(lazyrestore.RawFile(path), folder / "file.lzr", cluster_size=2 << 20)
    with lazyrestore.ImageWriter(folder / "written.lzr", source="by hand") as writer:
        writer.add_region("memory", protection=1)
        writer.write(b"x" * PAGE)
        writer.hole(PAGE)
    with lazyrestore.open(path) as image:
        assert_type(image, lazyrestore.Image)
        assert_type(image.read("text", 4, 4), bytes)
        assert_type(image.info, lazyrestore.ImageInfo)
        assert_type(image.metadata("text"), dict[str, object])
        assert not image.verify().damage
        for region in image.regions:
            print(f"  {region.name}: {region.length:,} bytes")
    return path


def restore(path: Path) -> None:
    """Lazily where this machine allows it, with a recording and then with what it recorded."""
    with lazyrestore.restore(path, prefetch="none", privilege="auto", trace=64) as session:
        assert_type(session, lazyrestore.Session)
        memory: Mapping[str, lazyrestore.Region | lazyrestore.PlacedRegion] = session
        region = session["noise"]
        assert_type(region, lazyrestore.Region | lazyrestore.PlacedRegion)
        region.populate(0, PAGE, timeout=10)
        assert_type(region.touch(PAGE), int)
        region[0] = 7  # private: the image is not changed
        with memoryview(region) as view:
            assert view[0] == 7
        stats = session.stats()
        assert_type(stats, lazyrestore.SessionStats)
        if stats.service_us is not None:
            assert_type(stats.service_us.p99, float)
        for fault in session.read_trace():
            assert_type(fault.service_us, float)
        assert_type(session.errors, list[lazyrestore.LoadError])
        print(f"{len(memory)} regions, {session.faults} faults, {stats.privilege}")

    recorded = path.with_name("first.ws")
    with lazyrestore.restore(path, privilege="auto", record=recorded) as session:
        assert session["text"][:8] == b"the same"
        lazily = session.lazy
    if not lazily:
        return
    working_set = lazyrestore.WorkingSet.load(recorded)
    assert_type(working_set.merge(working_set), lazyrestore.WorkingSet)
    optimized = lazyrestore.optimize(path, [working_set], path.with_name("quick.lzr"))
    assert_type(optimized, lazyrestore.OptimizeReport)
    with lazyrestore.restore(optimized.path, privilege="auto", replay="beside") as session:
        assert session.wait(timeout=30)
        assert session["text"][:8] == b"the same"


def keep_arrays(folder: Path) -> None:
    """Named arrays, and objects with arrays in them."""
    path = folder / "arrays.lzr"
    lazyrestore.dump({"squares": np.arange(100_000) ** 2, "names": np.array(["a", "b"])}, path)
    with lazyrestore.load(path, mode="r", names=["squares"], prefetch="none") as arrays:
        assert_type(arrays, lazyrestore.Arrays)
        squares = arrays["squares"]  # is there as long as it is used
        assert_type(squares, np.ndarray[Any, Any])
        assert_type(arrays.session, lazyrestore.Session)
        print(f"the last of {len(squares):,} squares is {squares[-1]:,}")

    np.savez(folder / "arrays.npz", squares=squares[:1000])
    np.save(folder / "squares.npy", squares[:1000])
    for source in (
        lazyrestore.NpzFile(folder / "arrays.npz"),
        lazyrestore.NpyFile(folder / "squares.npy", name="squares"),
    ):
        lazyrestore.dump(source, folder / "converted.lzr", byte_planes="none")
    found = lazyrestore.diff(path, folder / "converted.lzr", regions=["squares"])
    assert_type(found, lazyrestore.DiffReport)
    assert not found.same
    print(f"the file has their beginning: {found.different_pages} of {found.pages} pages differ")

    lazyrestore.dump_pickle({"step": 7, "weights": np.ones(50_000)}, folder / "object.lzr")
    # Loading a pickle runs what is in it: say so only of your own.
    state = lazyrestore.load_pickle(folder / "object.lzr", trusted=True)
    assert state["step"] == 7


def dump_others(folder: Path, pid: int) -> None:
    """What other programs are or left behind (not run here: it needs some)."""
    with_ranges = lazyrestore.ProcessMemory(pid, [(0x7F0000000000, 0x7F0000100000)], timeout=5)
    report = lazyrestore.dump(with_ranges, folder / "memory.lzr")
    assert_type(report.frozen_us, int | None)
    lazyrestore.dump(lazyrestore.ProcessTree(pid, leave_running=True), folder / "tree.lzr")
    lazyrestore.dump(lazyrestore.CoreFile(folder / "core"), folder / "core.lzr")
    lazyrestore.dump(lazyrestore.CriuFolder(folder / "criu"), folder / "criu.lzr")
    tensors = lazyrestore.SafetensorsFile(folder / "model.safetensors")
    lazyrestore.dump(tensors, folder / "model.lzr")


def meet_errors(path: Path) -> None:
    """One tree of exceptions, with what a program may want to know of them."""
    try:
        lazyrestore.restore(path.with_name("nothing.lzr"))
    except OSError as error:
        print(f"as open() would: {error}")
    with lazyrestore.open(path) as image:
        try:
            image.read("txet")
        except lazyrestore.RegionNotFound as error:
            print(error)
    damaged = path.with_name("damaged.lzr")
    damaged.write_bytes(path.read_bytes()[:-1])
    try:
        lazyrestore.open(damaged)
    except lazyrestore.ClusterError as error:  # of a restore: a RestoreError
        assert_type(error.offset, int | None)
        raise
    except lazyrestore.ImageError as error:
        assert_type(error.exit_code, int)
        print(f"{type(error).__name__}: {error}")


# By these a program can tell whose fault it was; all are LazyRestoreErrors.
WHOSE: dict[type[lazyrestore.LazyRestoreError], str] = {
    lazyrestore.KernelError: "the kernel's, or a permission",
    lazyrestore.ProcessError: "the process's that was dumped",
    lazyrestore.RemoteError: "the service's",
    lazyrestore.CriuError: "CRIU's",
    lazyrestore.WorkingSetError: "the working set's",
    lazyrestore.RestoreError: "the image's: a page could not be loaded",
}


def attach(socket: str) -> bytes:
    """Memory that a `lazyrestore serve` serves (not run here: it needs one)."""
    with lazyrestore.attach(socket, deadline=2.0) as attachment:
        assert_type(attachment, lazyrestore.Attachment)
        assert_type(attachment.state, str)
        return bytes(memoryview(next(iter(attachment.values()))))


def main() -> None:
    """All of it, in a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        path = dump_and_look(folder)
        restore(path)
        keep_arrays(folder)
        meet_errors(path)


if __name__ == "__main__":
    main()
