"""`reports.RegionInfo`, apart from the others: all that opens an image needs it, at once."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class RegionInfo:
    """One region of an image.

    Attributes:
        name: its name, unique in the image.
        address: where it was when it was dumped; 0 where that is not known.
        length: bytes.
        protection: 1 read, 2 write, 4 execute, added up.
        shared: True if the mapping was shared.
        planes: bytes of the numbers (2, 4 or 8) that some of its clusters have as byte planes; 0:
            none has.
    """

    name: str
    address: int
    length: int
    protection: int
    shared: bool = False
    planes: int = 0
