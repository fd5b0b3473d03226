"""Files of the safetensors format as sources: a region for each tensor."""

from __future__ import annotations

import json
import os

from lazyrestore import _dtypes
from lazyrestore import _safetensors as fmt
from lazyrestore._content import check_name

from ._arrayfile import ArrayFile, array_metadata
from ._files import copy_piece
from .base import Sink

_METADATA_BYTES_MAX = 48 << 20  # of an image's files, which have 64 MiB in all


class SafetensorsFile(ArrayFile):
    """A source: the tensors in a .safetensors file.

    Each tensor is a region with its name, dtype and shape. Types that numpy lacks have the names of
    ml_dtypes ("bfloat16", "float8_e4m3fn"); those of less than a byte are regions of bytes. What
    stands under `__metadata__` is kept as the image's file "safetensors.json". Neither numpy nor
    safetensors is needed.

    Args:
        path: of the file.
    """

    format_name = ".safetensors"

    def _measure(self, fd: int) -> int:
        _, tensors, _ = self._read_header(fd)
        return sum(tensor.end - tensor.start for tensor in tensors)

    def _write(self, fd: int, sink: Sink) -> None:
        header_bytes, tensors, metadata = self._read_header(fd)
        if metadata is not None:
            sink.add_file(fmt.FILE, json.dumps(metadata, ensure_ascii=False).encode())
        for tensor in tensors:
            dtype = fmt.DTYPES.get(tensor.dtype)
            if dtype is None:
                said = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
                sink.add_region(tensor.name, metadata={fmt.KEY: said})
            else:
                described = array_metadata(dtype, tensor.shape, "C")
                width = _dtypes.parse(dtype).width
                sink.add_region(tensor.name, metadata=described, width=width)
            start, end = header_bytes + tensor.start, header_bytes + tensor.end
            copy_piece(sink, fd, start, end, self.describe(), self._path)

    def _read_header(self, fd: int) -> tuple[int, list[fmt.Tensor], dict[str, str] | None]:
        """Where the header ends, and what it says."""
        size = os.fstat(fd).st_size
        start = os.pread(fd, 8, 0)
        nbytes = int.from_bytes(start, "little")
        if len(start) < 8 or os.pread(fd, 1, 8) != b"{" or nbytes < 2:
            raise self._refuse(
                "is not in the safetensors format, or is cut short: take another copy, or what"
                " save_file wrote"
            )
        if nbytes > fmt.HEADER_BYTES_MAX:
            raise self._refuse(
                f"is not in the safetensors format, or damaged: its header would have {nbytes}"
                f" bytes, and has at most {fmt.HEADER_BYTES_MAX}: take"
                " another copy"
            )
        raw = os.pread(fd, nbytes, 8)
        if len(raw) < nbytes:
            raise self._refuse(
                f"is cut short: it has {size} bytes, and a header of {nbytes}: take another copy"
            )
        try:
            tensors, metadata = fmt.parse_header(raw)
            for tensor in tensors:
                check_name(tensor.name)
        except ValueError as error:
            raise self._refuse(
                f"is damaged: its header cannot be read ({error}): take another copy"
            ) from None
        if (
            sum(len(key) + len(value) for key, value in (metadata or {}).items())
            > _METADATA_BYTES_MAX / 4
        ):
            raise self._refuse(f"has more under {fmt.METADATA} than an image can keep")
        end = 8 + nbytes + (tensors[-1].end if tensors else 0)
        if size != end:
            raise self._refuse(
                f"is {'cut short' if size < end else 'damaged'}: it has {size} bytes, and its last"
                f" tensor ends at {end}: take another copy"
            )
        return 8 + nbytes, tensors, metadata
