"""A table of Arrow's that is there at once: its buffers are the image's regions, without a copy.

python arrow_table.py [IMAGE]      (default: table.lzr in the current folder)

The first run makes the table and dumps it; the next ones load it. Loading a pickle runs code that
the image names: load only what you, or someone you trust, wrote.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import lazyrestore

ROWS = 1_000_000


def build(image: Path) -> None:
    """Make a table of numbers, text and lists, and dump it."""
    random = np.random.default_rng(1)
    numbers = np.arange(ROWS)
    table = pa.table(
        {
            "id": numbers,
            "price": pa.array(random.gamma(2, 10, ROWS).round(2), mask=numbers % 100 == 0),
            "name": pa.array([f"article {number}" for number in range(ROWS)]),
            "sizes": pa.ListArray.from_arrays(np.arange(0, 2 * ROWS + 1, 2), np.arange(2 * ROWS)),
        }
    )
    report = lazyrestore.dump_pickle(table, image)
    print(f"dumped {report.logical_bytes:,} bytes as {report.stored_bytes:,} in {image}")


def main() -> None:
    """Look at some rows, then at a whole column."""
    image = Path(sys.argv[1] if len(sys.argv) > 1 else "table.lzr")
    if not image.exists():
        build(image)
    started = time.perf_counter()
    table: Any = lazyrestore.load_pickle(image, trusted=True)
    print(f"loaded {table.num_rows:,} rows in {(time.perf_counter() - started) * 1000:.1f} ms")
    for row in table.slice(ROWS // 2, 2).to_pylist():
        print(row)
    print(f"mean price of those that have one: {pc.mean(table['price']).as_py():.3f}")


if __name__ == "__main__":
    main()
