"""Writing an image's regions as files of arrays: .npy, .npz, .safetensors.

Memory does not grow with what is written, and numpy is not needed. The file takes its place when it
is complete.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from lazyrestore._open import Image, Progress
from lazyrestore._outfile import OutputFile
from lazyrestore._output import Tally, is_image

from .described import Described, describe
from .numpy_files import check_npy, check_npz, write_npy, write_npz
from .safetensors_file import check_safetensors, write_safetensors

_Check = Callable[[Image, list[Described]], None]
_Write = Callable[[Image, list[Described], OutputFile, Tally, int | None], None]
_WAYS: dict[str, tuple[_Check, _Write]] = {
    "npy": (check_npy, write_npy),
    "npz": (check_npz, write_npz),
    "safetensors": (check_safetensors, write_safetensors),
}


@dataclasses.dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        path: where it was written to.
        format: of the file: npy, npz or safetensors.
        regions: names of the regions in it.
        logical_bytes: their length.
        data_bytes: bytes that were decoded; the rest are zeros.
        seconds: how long it took.
    """

    path: str
    format: str
    regions: tuple[str, ...]
    logical_bytes: int
    data_bytes: int
    seconds: float


def write_arrays(
    image: Image,
    numbers: Sequence[int],
    path: str,
    format: str,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write regions as arrays into a file. One without a dtype is an array of bytes.

    Args:
        image: the image.
        numbers: of the regions; one only for "npy".
        path: the file; it is replaced when all is written.
        format: "npy", "npz" or "safetensors".
        threads: that decode; None: one a core.
        progress: called with the bytes that are done and their total.

    Raises:
        OSError: it cannot be written.
        ValueError: the format cannot have one of the arrays, or it is the image itself.
        ImageError: the image's metadata does not fit its regions.
        ClusterError: a cluster is damaged.
    """
    if is_image(image, path):
        raise ValueError(f"{path} is the image itself: give the output another name")
    start = time.perf_counter()
    check, write = _WAYS[format]
    arrays = describe(image, numbers)
    check(image, arrays)
    tally = Tally(sum(array.nbytes for array in arrays), progress)
    output = OutputFile(path)
    try:
        write(image, arrays, output, tally, threads)
        output.commit()
    finally:
        output.discard()
    return ExportReport(
        path=path,
        format=format,
        regions=tuple(array.name for array in arrays),
        logical_bytes=sum(array.nbytes for array in arrays),
        data_bytes=tally.data_bytes,
        seconds=time.perf_counter() - start,
    )
