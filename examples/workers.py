"""Web workers that share one image: restored lazily before they are forked.

    gunicorn --preload --workers 4 workers:app      (in this folder; pip install gunicorn)
    curl localhost:8000/row/1000000                 one row of the table, and who answered
    curl localhost:8000/memory                      what it costs this worker

IMAGE names the image (default: table.lzr in the current folder), which is built the first time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy

import lazyrestore

IMAGE = Path(os.environ.get("IMAGE", "table.lzr"))
ROWS = int(os.environ.get("ROWS", "4_000_000"))
COLUMNS = 16
HOT_ROWS = ROWS // 8  # what most requests are for


def build(image: Path) -> None:
    """Compute the table and dump it: column c of row r is r * (c + 1)."""
    numbers = numpy.arange(ROWS, dtype=numpy.int64)
    table = numbers[:, None] * numpy.arange(1, COLUMNS + 1)
    report = lazyrestore.dump({"table": table}, image)
    print(f"dumped {report.logical_bytes:,} bytes as {report.stored_bytes:,}", file=sys.stderr)


if not IMAGE.exists():
    build(IMAGE)

# With --preload this is done once, and the workers are forked after it. Each has the whole table at
# the same address, and loads for itself what it touches; what is loaded by now, all of them share.
arrays = lazyrestore.load(IMAGE, mode="r")
table = arrays["table"]
region = arrays.session["table"]
region.populate(0, HOT_ROWS * table.strides[0])


def app(
    environ: dict[str, object], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """Answer one request (WSGI)."""
    what, _, number = str(environ["PATH_INFO"]).strip("/").partition("/")
    answer: dict[str, object] = {"worker": os.getpid()}
    status = "200 OK"
    if what == "row" and number.isdigit() and int(number) < len(table):
        answer["row"] = table[int(number)].tolist()
    elif what == "memory":
        answer |= memory()
    else:
        status = "404 Not Found"
        answer["error"] = f"/row/0 to /row/{len(table) - 1}, or /memory"
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode() + b"\n"]


def memory() -> dict[str, int]:
    """Bytes of the table: all, those that are here, and this process's share of them."""
    here = {"Rss": 0, "Pss": 0}
    is_inside = False
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        for line in lines:
            name, *values = line.split()
            if not name.endswith(":"):  # a mapping begins: START-END
                start = int(name.partition("-")[0], 16)
                is_inside = region.address <= start < region.address + region.length
            elif is_inside and name[:-1] in here:
                here[name[:-1]] += int(values[0]) << 10
    return {"bytes": region.length, "resident_bytes": here["Rss"], "share_bytes": here["Pss"]}
