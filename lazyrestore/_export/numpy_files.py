"""numpy's formats: .npy for one array, .npz for several."""

from __future__ import annotations

import zipfile
from contextlib import closing

from lazyrestore._npy import make_header
from lazyrestore._open import Image
from lazyrestore._outfile import OutputFile
from lazyrestore._output import ZEROS, Tally, decode_in_order, decode_to_file

from .described import Described


def check_npy(image: Image, arrays: list[Described]) -> None:
    """ValueError for what .npy cannot have."""
    assert len(arrays) == 1
    _check(arrays)


def check_npz(image: Image, arrays: list[Described]) -> None:
    """ValueError for what .npz cannot have."""
    _check(arrays)
    for array in arrays:
        if "\0" in array.name:
            raise ValueError(
                f"region {array.name!r} has a null character in its name, where names end in .npz"
                " files: write others with --region, or .safetensors"
            )


def _check(arrays: list[Described]) -> None:
    for array in arrays:
        if array.kind.has_extension:
            raise ValueError(
                f"region {array.name!r} is of dtype {array.dtype}, which numpy's files have no name"
                " for: write .safetensors, or other regions with --region"
            )


def write_npy(
    image: Image, arrays: list[Described], output: OutputFile, tally: Tally, threads: int | None
) -> None:
    """Write one array, as numpy.save does."""
    (array,) = arrays
    header = make_header(array.dtype, array.shape, array.order)
    output.write_at(header, 0)
    output.set_length(len(header) + array.nbytes)
    decode_to_file(image, [(array.number, len(header), None)], output, tally, threads)


def write_npz(
    image: Image, arrays: list[Described], output: OutputFile, tally: Tally, threads: int | None
) -> None:
    """Write an archive of arrays, as numpy.savez does."""
    numbers = [array.number for array in arrays]
    with (
        closing(decode_in_order(image, numbers, threads)) as pieces,
        zipfile.ZipFile(_Tape(output), "w", zipfile.ZIP_STORED) as archive,
    ):
        for array in arrays:
            # numpy forces 64 bits too, whatever the length.
            with archive.open(f"{array.name}.npy", "w", force_zip64=True) as member:
                member.write(make_header(array.dtype, array.shape, array.order))
                left = array.nbytes
                while left:
                    data, is_data = next(pieces)
                    member.write(data)
                    left -= len(data)
                    tally.add(len(data), len(data) if is_data else 0)


class _Tape:
    """An OutputFile as zipfile wants its file; where zeros are written it has holes."""

    def __init__(self, output: OutputFile) -> None:
        self._output = output
        self._at = 0

    def write(self, data: bytes | memoryview) -> int:
        if not (isinstance(data, memoryview) and data.obj is ZEROS):
            self._output.write_at(data, self._at)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """It is closed by whoever opened it."""
