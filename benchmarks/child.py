"""One measurement in a fresh process: `python -m benchmarks.child TASK '{"argument": ...}'`.

Prints one JSON object. With "confine": true the process is bound to one core before it starts
anything. A task that needs what is not there prints {"missing": "what"}.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import json
import mmap
import os
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lazyrestore
from lazyrestore._native import ffi, lib

PAGE = 4096
SHARES = (50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 100)
ORDERS = {"sequential": 0, "random": 1}


class MissingError(Exception):
    """This version, or this machine, has not got it."""


def now() -> int:
    return time.perf_counter_ns()


def distribution(latencies_ns: array[int]) -> dict[str, Any]:
    """In microseconds."""
    ordered = sorted(latencies_ns)
    if not ordered:
        raise MissingError("not one touch faulted")

    def percentile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share / 100 * len(ordered)))] / 1000

    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered) / 1000,
        "quantiles": [[share, percentile(share)] for share in SHARES],
        **{name: percentile(share) for name, share in (("p50", 50), ("p90", 90), ("p99", 99))},
        "max": ordered[-1] / 1000,
    }


def restored(image: str, **options: Any) -> lazyrestore.Session:
    """A lazy restore; options that this version does not know are missing."""
    known = inspect.signature(lazyrestore.restore).parameters
    for name in options:
        if name not in known:
            raise MissingError(f"restore() has no {name}=")
    return lazyrestore.restore(image, lazy=True, **options)


def import_all(image: str) -> None:
    """What restore() imports and loads when it is first called is not what is measured."""
    restored(image, prefetch="none")["memory"][0]
    gc.collect()


def drop(path: str) -> None:
    """Out of the page cache, or say that it would not go."""
    with open(path, "rb") as file:
        with contextlib.suppress(OSError):  # of a file system that is never written
            os.fsync(file.fileno())
        for _ in range(20):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not cached_pages(file.fileno()):
                return
            time.sleep(0.01)
        raise MissingError(f"{path} does not leave the page cache")


def warm(path: str) -> None:
    """Into the page cache."""
    with open(path, "rb", buffering=0) as file:
        room = bytearray(1 << 20)
        while file.readinto(room):
            pass


def cached_pages(fd: int) -> int:
    import ctypes

    length = os.fstat(fd).st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        states = (ctypes.c_ubyte * -(-length // PAGE))()
        libc.mmap.restype = ctypes.c_void_p
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(mapping)))
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), states):
            raise OSError(ctypes.get_errno(), "mincore")
        gc.collect()
        return bytes(states).count(1)


def touch_all(address: int, nbytes: int, order: str, seed: int = 1) -> int:
    """A byte of every page, and nothing but that: how many."""
    memory = ffi.cast("void *", address)
    pages = -(-nbytes // PAGE)
    return lib.lr_touch(memory, nbytes, PAGE, ORDERS[order], seed, 0, pages, ffi.NULL)


# ---- The least there is --------------------------------------------------------------------------


def hello(pages: int, *, write: bool = False, zeropage: bool = False) -> dict[str, Any]:
    """The classic demonstration."""
    options = ffi.new("struct lr_hello_options *")
    options.pages = pages
    options.privilege = lib.LR_PRIVILEGE_AUTO
    options.is_write, options.zeropage = write, zeropage
    latencies = array("I", bytes(4 * pages))
    code = lib.lr_hello(options, ffi.from_buffer("uint32_t[]", latencies), ffi.NULL)
    if code:
        raise MissingError(f"no userfaultfd: {lazyrestore._native.strerror(code)}")
    return distribution(latencies)


def wakeup() -> dict[str, Any]:
    cost = ffi.new("struct lr_wakeup_cost *")
    lib.lr_wakeup_cost(150_000_000, cost)
    return {
        "one_core_us": cost.one_core_ns / 1000,
        "two_cores_us": cost.two_cores_ns / 1000,
        "kept_awake_us": cost.kept_awake_ns / 1000,
    }


# ---- Ours ----------------------------------------------------------------------------------------


def touch(
    image: str, pages: int, order: str = "random", seed: int = 1, **options: Any
) -> dict[str, Any]:
    """The latency of single touches that faulted."""
    options.setdefault("prefetch", "none")
    with restored(image, **options) as session:
        region = session["memory"]
        found = region.touch(pages, order=order, seed=seed)
        stats = session.stats()
        assert stats.touch_us is not None
        waited = array("I", session._waited)
        if stats.errors or found < pages:
            raise RuntimeError(f"{pages - found} pages were not served: {session.errors[:1]}")
        return {**distribution(waited), "resident_bytes": stats.resident_bytes}


def touch_while_filling(image: str, seed: int = 1, **options: Any) -> dict[str, Any]:
    """The latency of random touches that faulted while the fill ran."""
    with restored(image, prefetch="all", **options) as session:
        region = session["memory"]
        pages, at = -(-region.length // PAGE), 0
        while at < pages and session.stats().fill == "running":
            region.touch(64, order="random", first=at, seed=seed)
            at += 64
        waited = array("I", session._waited)
        return {**distribution(waited), "touched": at}


def sweep(image: str, order: str, **options: Any) -> dict[str, Any]:
    """Every page, from the call of restore() to the last byte, in a warm process."""
    options.setdefault("prefetch", "all")
    import_all(image)
    begin = now()
    session = restored(image, **options)
    region = session["memory"]
    pages = touch_all(region.address, region.length, order)
    took = (now() - begin) / 1000
    stats = session.stats()
    if stats.errors:
        raise RuntimeError(str(session.errors[:1]))
    session.close()
    return {"us": took, "us_per_page": took / pages, "faults": stats.faults}


def resident(image: str, **options: Any) -> dict[str, Any]:
    """From the call of restore() until all is there, and what one more sweep takes then."""
    import_all(image)
    begin = now()
    session = restored(image, prefetch="all", **options)
    if not session.wait(60):
        raise RuntimeError(f"the fill is {session.stats().fill}")
    took = (now() - begin) / 1000
    region = session["memory"]
    begin = now()
    pages = touch_all(region.address, region.length, "sequential")
    after = (now() - begin) / 1000
    session.close()
    return {"us": took, "sweep_after_us_per_page": after / pages}


def eager(image: str, threads: int | None = None) -> dict[str, Any]:
    """Decode everything, and read a byte."""
    import_all(image)
    _ = importlib.import_module("lazyrestore._decode")
    begin = now()
    session = lazyrestore.restore(image, lazy=False, threads=threads)
    session["memory"][0]
    took = (now() - begin) / 1000
    session.close()
    return {"us": took}


def first_access(image: str, offset: int, repeats: int = 5, **options: Any) -> dict[str, Any]:
    """From the call of restore() to the first byte, in a warm process: the median of some."""
    options.setdefault("prefetch", "none")
    times = []
    for turn in range(repeats + 2):
        begin = now()
        session = restored(image, **options)
        session["memory"][offset]
        if turn >= 2:
            times.append((now() - begin) / 1000)
        session.close()
    return {"us": sorted(times)[len(times) // 2]}


def memory_after_first_access(image: str, offset: int) -> dict[str, Any]:
    """What a process grows by from after the import to after the first byte."""

    def kib() -> int:
        with open("/proc/self/status", encoding="utf-8") as status:
            found = dict(line.split(":", 1) for line in status)
        return sum(int(found[key].split()[0]) for key in ("VmRSS", "VmPTE"))

    _ = lazyrestore.restore, lazyrestore.Session, kib()
    before = kib()
    session = restored(image, prefetch="none")
    session["memory"][offset]
    return {"kib": kib() - before}


def private_frames(image: str) -> dict[str, Any]:
    """Read every page: page frames of its own that the region has then."""
    with restored(image, prefetch="none") as session:
        region = session["memory"]
        touch_all(region.address, region.length, "sequential")
        return {"bytes": region.resident_bytes, "faults": session.stats().faults}


def resident_over_time(image: str, way: str) -> dict[str, Any]:
    """Bytes that are there, from the call of restore() on: of random touches, a fill, or eager."""
    import threading

    points: list[tuple[float, int]] = []
    statm = os.open("/proc/self/statm", os.O_RDONLY)

    def rss() -> int:
        return int(os.pread(statm, 200, 0).split()[1]) * PAGE

    import_all(image)
    gc.disable()
    base, over = rss(), threading.Event()
    begin = now()

    def watch() -> None:
        while not over.wait(0.002):
            points.append(((now() - begin) / 1000, rss() - base))

    watcher = threading.Thread(target=watch)
    watcher.start()
    if way == "eager":
        session = lazyrestore.restore(image, lazy=False)
    else:
        session = restored(image, prefetch="all" if way == "fill" else "none")
        region = session["memory"]
        if way == "fill":
            session.wait(60)
        else:
            touch_all(region.address, region.length, "random")
    took = (now() - begin) / 1000
    points.append((took, rss() - base))
    over.set()
    watcher.join()
    session.close()
    return {"points": points, "us": took}


# ---- Others --------------------------------------------------------------------------------------


def mapped(path: str, order: str, how: str = "cached", write: bool = False) -> dict[str, Any]:
    """A sweep over a mapped file: of its own bytes, or of what a file system decompresses.

    Args:
        path: the file.
        order: of the touches.
        how: "cached", "cold" (out of the page cache first), or "as it is".
        write: privately writable, and a byte of every page is written.
    """
    if how == "cold":
        drop(path)
    elif how == "cached":
        warm(path)
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        begin = now()
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        mapping = mmap.mmap(file.fileno(), length, mmap.MAP_PRIVATE, prot)
        if write:
            import numpy as np

            view = np.frombuffer(mapping, dtype=np.uint8)[::PAGE]
            view += 1
            pages = len(view)
        else:
            address = int(ffi.cast("uintptr_t", ffi.from_buffer(mapping)))
            first = now()
            lib.lr_touch(ffi.cast("void *", address), PAGE, PAGE, 0, 0, 0, 1, ffi.NULL)
            first = now() - first
            pages = touch_all(address, length, order)
        took = (now() - begin) / 1000
    return {"us": took, "us_per_page": took / pages}


def mapped_first(path: str, offset: int, how: str = "cached") -> dict[str, Any]:
    """From opening a file to the first byte of its mapping; "cold" as in `mapped`."""
    if how == "cold":
        drop(path)
    begin = now()
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        mapping[offset]
    return {"us": (now() - begin) / 1000}


def npz(path: str) -> dict[str, Any]:
    import numpy as np

    begin = now()
    array = np.load(path)["memory"]
    int(array[-1])
    return {"us": (now() - begin) / 1000}


# ---- Working sets --------------------------------------------------------------------------------


def chosen_pages(length: int, cluster_size: int, seed: int) -> list[int]:
    """Offsets of half of the pages of a tenth of the clusters, in random order."""
    import random

    chance = random.Random(seed)
    clusters, in_cluster = length // cluster_size, cluster_size // PAGE
    offsets = []
    for cluster in chance.sample(range(clusters), max(1, clusters // 10)):
        pages = chance.sample(range(in_cluster), max(1, in_cluster // 2))
        offsets += [cluster * cluster_size + page * PAGE for page in pages]
    chance.shuffle(offsets)
    return offsets


def record_working_set(image: str, record: str, cluster_size: int, seed: int) -> dict[str, Any]:
    with restored(image, prefetch="none", record=record) as session:
        region = session["memory"]
        for offset in chosen_pages(region.length, cluster_size, seed):
            region[offset]
    return {"bytes": os.path.getsize(record)}


def use_working_set(
    image: str, cluster_size: int, seed: int, is_cold: bool, **options: Any
) -> dict[str, Any]:
    """Touch the chosen pages: from the call of restore() to the last of them, in a warm process."""
    import numpy as np

    with restored(image, **options) as session:
        session["memory"][0]

    length = lazyrestore.open(image).regions[0].length
    order = np.array(chosen_pages(length, cluster_size, seed))
    if is_cold:
        drop(image)
    else:
        warm(image)
    begin = now()
    with restored(image, **options) as session:
        region = session["memory"]
        total = int(np.frombuffer(cast(mmap.mmap, region), dtype=np.uint8)[order].sum())
        took = (now() - begin) / 1000
        faults = session.stats().faults
    return {"us": took, "faults": faults, "pages": len(order), "sum": total}


# ---- Dumps ---------------------------------------------------------------------------------------


def dump(raw: str, image: str, **options: Any) -> dict[str, Any]:
    """A buffer in memory to an image, after a small one: modules are imported then."""
    data = Path(raw).read_bytes()
    lazyrestore.dump(data[: 1 << 20], image, **options)
    os.unlink(image)
    begin = now()
    report = lazyrestore.dump(data, image, **options)
    took = (now() - begin) / 1000
    os.unlink(image)
    return {"us": took, "stored_bytes": report.stored_bytes}


# ---- What a fault is made of ---------------------------------------------------------------------


def decode(image: str, clusters: int) -> dict[str, Any]:
    """Reading, checking and decoding clusters in random order, by one thread, into a buffer."""
    import random

    opened = lazyrestore.open(image)
    numbers = list(range(opened.cluster_count))
    random.Random(1).shuffle(numbers)
    room = bytearray(opened.cluster_size)
    target = ffi.from_buffer(room)
    took = array("I")
    with opened.reader() as reader:
        for number in numbers[:clusters]:
            begin = now()
            lib.lr_reader_get_data(reader.handle, number, target, ffi.NULL)
            took.append(now() - begin)
    return distribution(took)


def anonymous(pages: int) -> dict[str, Any]:
    """First touches of ordinary memory."""
    memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
    took = array("I", bytes(4 * pages))
    target = ffi.from_buffer("uint32_t[]", took)
    lib.lr_touch(ffi.cast("void *", address), pages * PAGE, PAGE, 0, 0, 0, pages, target)
    return distribution(took)


def service(image: str, pages: int, **options: Any) -> dict[str, Any]:
    """Random touches: what they waited, and how much of that the pager had the message."""
    with restored(image, prefetch="none", **options) as session:
        region = session["memory"]
        region.touch(pages, order="random", seed=1)
        stats = session.stats()
        assert stats.touch_us is not None
        assert stats.service_us is not None
        return {
            "touch": stats.touch_us.p50,
            "service": stats.service_us.p50,
            "faults": stats.faults,
        }


# ---- Scale ---------------------------------------------------------------------------------------


def touch_spread(image: str, step: int, pages: int) -> dict[str, Any]:
    """Single touches of pages that are `step` apart, in random order."""
    import random

    with restored(image, prefetch="none") as session:
        region = session["memory"]
        offsets = [number * step for number in range(region.length // step)]
        random.Random(1).shuffle(offsets)
        waits, room = array("I"), array("I", bytes(4))
        target = ffi.from_buffer("uint32_t[]", room)
        for offset in offsets[:pages]:
            memory = ffi.cast("void *", region.address + offset)
            lib.lr_touch(memory, PAGE, PAGE, 0, 0, 0, 1, target)
            waits.append(room[0])
        return distribution(waits)


def faulting_threads(image: str, threads: int, pages: int) -> dict[str, Any]:
    """So many threads touch random pages at once, each in a part of its own."""
    import threading

    with restored(image, prefetch="none") as session:
        region = session["memory"]
        share = region.length // threads // PAGE * PAGE
        each = pages // threads
        room = [array("I", bytes(4 * each)) for _ in range(threads)]
        barrier = threading.Barrier(threads + 1)

        def run(number: int) -> None:
            memory = ffi.cast("void *", region.address + number * share)
            target = ffi.from_buffer("uint32_t[]", room[number])
            barrier.wait()
            lib.lr_touch(memory, share, PAGE, 1, number + 1, 0, each, target)

        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        barrier.wait()
        begin = now()
        for worker in workers:
            worker.join()
        took = (now() - begin) / 1000
        waited = array("I", (wait for part in room for wait in part if wait))
        return {**distribution(waited), "us": took, "us_per_fault": took / len(waited)}


def many_sessions(image: str, sessions: int, pages: int) -> dict[str, Any]:
    """So many sessions in one process: what one more takes to open, and a fault in any of them."""
    import random

    import_all(image)
    opened, held = [], []
    for _ in range(sessions):
        begin = now()
        held.append(restored(image, prefetch="none"))
        opened.append((now() - begin) / 1000)
    chance = random.Random(1)
    waits = array("I")
    room = array("I", bytes(4))
    target = ffi.from_buffer("uint32_t[]", room)
    for number in range(pages):
        region = held[chance.randrange(sessions)]["memory"]
        memory = ffi.cast("void *", region.address)
        lib.lr_touch(memory, region.length, PAGE, 1, 7, number, 1, target)
        if room[0]:
            waits.append(room[0])
    found = distribution(waits)
    for session in held:
        session.close()
    return {**found, "open_us": sorted(opened)[len(opened) // 2]}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task
    for task in (
        *(hello, wakeup, touch, touch_while_filling, sweep, resident, eager, first_access),
        *(memory_after_first_access, private_frames, resident_over_time, mapped, mapped_first),
        *(npz, record_working_set, use_working_set, dump, faulting_threads, many_sessions),
        *(touch_spread, decode, anonymous, service),
    )
}


def main() -> None:
    task, arguments = sys.argv[1], json.loads(sys.argv[2])
    if arguments.pop("confine", False):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        found = TASKS[task](**arguments)
    except MissingError as missing:
        found = {"missing": str(missing)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
