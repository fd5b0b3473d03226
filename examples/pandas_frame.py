"""A table that is there at once: a pandas DataFrame, of which only what is looked at is loaded.

python pandas_frame.py [IMAGE]      (default: frame.lzr in the current folder)

The first run makes the table and dumps it; the next ones load it. Loading a pickle runs code that
the image names: load only what you, or someone you trust, wrote.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

import lazyrestore

ROWS = 1_000_000


def build(image: Path) -> None:
    """Make a table of a million rows, and dump it."""
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "time": pd.date_range("2026-01-01", periods=ROWS, freq="s"),
            "sensor": pd.Categorical(random.choice(["north", "south", "roof"], ROWS)),
            "reading": random.normal(20, 5, ROWS).round(2),
            "count": np.arange(ROWS),
            "note": [f"reading {number}" for number in range(ROWS)],
        }
    )
    report = lazyrestore.dump_pickle(frame, image)
    print(f"dumped {report.logical_bytes:,} bytes as {report.stored_bytes:,} in {image}")


def main() -> None:
    """Look at some rows, then at a whole column."""
    image = Path(sys.argv[1] if len(sys.argv) > 1 else "frame.lzr")
    if not image.exists():
        build(image)
    started = time.perf_counter()
    frame: pd.DataFrame = lazyrestore.load_pickle(image, trusted=True)
    print(f"loaded {len(frame):,} rows in {(time.perf_counter() - started) * 1000:.1f} ms")
    print(frame.iloc[[5, 500_000, -1]].to_string())
    print(f"mean reading: {frame['reading'].mean():.3f}")
    frame["count"] += 1  # private: the image stays as it is
    print(f"last count, after one was added: {frame['count'].iloc[-1]:,}")


if __name__ == "__main__":
    main()
