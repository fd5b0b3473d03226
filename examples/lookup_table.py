"""A large table that is there at once: built and dumped the first time, restored lazily after that.

python lookup_table.py [IMAGE]      (default: squares.lzr in the current folder)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lazyrestore

ENTRIES = 16_000_000
WIDTH = 8  # bytes


def build(image: Path) -> None:
    """Compute the squares of 0 to ENTRIES - 1, slowly, and dump them."""
    table = bytearray(ENTRIES * WIDTH)
    entries = memoryview(table).cast("Q")
    for number in range(ENTRIES):
        entries[number] = number * number
    report = lazyrestore.dump({"squares": table}, image)
    print(f"dumped {report.logical_bytes:,} bytes as {report.stored_bytes:,} in {image}")


def main() -> None:
    """Look three entries up, and say what that cost."""
    image = Path(sys.argv[1] if len(sys.argv) > 1 else "squares.lzr")
    if not image.exists():
        build(image)
    started = time.perf_counter()
    with lazyrestore.restore(image, prefetch="none") as session:
        # The region is ordinary memory: anything that takes a buffer can have it, without a copy.
        with memoryview(session["squares"]) as region, region.cast("Q") as squares:
            for number in (3, 1_000_003, ENTRIES - 1):
                print(f"{number:,} squared is {squares[number]:,}")
        took = time.perf_counter() - started
        stats = session.stats()
    loaded = stats.resident_bytes
    print(f"took {took * 1000:.1f} ms: {stats.faults} faults, {loaded:,} bytes loaded")


if __name__ == "__main__":
    main()
