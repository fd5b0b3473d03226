"""What tests of pickled objects share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lazyrestore import Region


def region_of(array: Any) -> Region:
    """The region that a numpy array lies in."""
    base = array
    while not isinstance(base, Region):
        base = base.obj if isinstance(base, memoryview) else base.base
        assert base is not None, "the array has memory of its own"
    return base


def resident_at(address: int) -> int:
    """Bytes of the mapping at an address that are in memory."""
    maps = Path("/proc/self/smaps").read_text()
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps):
        start, end = (int(part, 16) for part in entry.split(maxsplit=1)[0].split("-"))
        if start <= address < end:
            found = re.search(r"Rss:\s+(\d+) kB", entry)
            assert found is not None
            return int(found[1]) << 10
    raise AssertionError(f"nothing is mapped at {address:#x}")
