"""What an image says of the arrays in it, checked: it may say anything."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import NamedTuple

from lazyrestore import _dtypes
from lazyrestore._open import Image
from lazyrestore.errors import ImageError


class Described(NamedTuple):
    """A region as an array.

    Attributes:
        number: of the region.
        name: of the region.
        dtype: as in metadata.
        kind: what that is.
        shape: of the array.
        order: "C" or "F".
        nbytes: its length.
        metadata: all that is kept with the region.
    """

    number: int
    name: str
    dtype: object
    kind: _dtypes.Kind
    shape: tuple[int, ...]
    order: str
    nbytes: int
    metadata: dict[str, object]

    @property
    def is_ordered(self) -> bool:
        """True if its elements lie in C order."""
        return self.order == "C" or sum(size != 1 for size in self.shape) < 2 or 0 in self.shape


def describe(image: Image, numbers: Sequence[int]) -> list[Described]:
    """Regions as arrays; those without a dtype as arrays of bytes.

    Raises:
        ImageError: the metadata of one does not describe an array of its length.
    """
    everything = image.all_metadata()
    return [_describe(image, number, everything[number]) for number in numbers]


def _describe(image: Image, number: int, metadata: object) -> Described:
    info = image.regions[number]
    if not isinstance(metadata, dict):
        raise ImageError(f"{image.path}: the metadata of region {info.name!r} is not a map")
    said = metadata.get("array")
    if said is None:
        said = {"dtype": "|u1", "shape": [info.length]}
    try:
        if not isinstance(said, dict):
            raise ValueError("it is not a map")
        kind = _dtypes.parse(said.get("dtype"))
        shape = _dtypes.check_shape(said.get("shape"))
        if kind.has_objects or said.get("order", "C") not in ("C", "F"):
            raise ValueError("no array in an image can be so")
        if _dtypes.count_of(shape) * kind.itemsize != info.length:
            raise ValueError("it would have another length")
    except ValueError as error:
        raise ImageError(
            f"{image.path}: the metadata of region {info.name!r} does not describe an array of"
            f" {info.length} bytes ({error}): {reprlib.repr(said)}"
        ) from None
    order = str(said.get("order", "C"))
    return Described(number, info.name, said["dtype"], kind, shape, order, info.length, metadata)
