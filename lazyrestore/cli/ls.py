"""`lazyrestore ls`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from ._arguments import ImageArgument, JsonOption

_DTYPE = re.compile(r"([<>|=]?)([biufcmMSUV])([0-9]{1,9})(\[[^\]]*\])?")
_NUMBERS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_OTHERS = {"m": "timedelta64", "M": "datetime64", "S": "bytes", "U": "str", "V": "void"}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore.reports import RegionInfo


def ls(
    image: ImageArgument,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the names, one a line.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the regions of an image: name, address, length, what it was."""
    from lazyrestore._open import Image

    with Image(image) as opened:
        regions = opened.regions
        metadata = opened.all_metadata()
        files = {name: len(data) for name, data in opened.files.items()}
        processes = opened.info.processes
    if json:
        from ._show import plain, print_json

        listed = []
        for region, kept in zip(regions, metadata, strict=True):
            fields = plain(region)
            assert isinstance(fields, dict)
            listed.append({**fields, "metadata": kept})
        kept_files = [{"name": name, "bytes": nbytes} for name, nbytes in files.items()]
        print_json({"path": image, "regions": listed, "files": kept_files})
        return
    if quiet:
        from ._show import one_line

        for region in regions:
            print(one_line(region.name))
        return
    names = {str(process.pid): process.comm for process in processes}
    print_regions(regions, metadata, names)
    if files:
        from ._show import count, size

        print(f"and {count(len(files), 'file')}, {size(sum(files.values()))}: --json lists them")


def print_regions(
    regions: Sequence[RegionInfo],
    metadata: Sequence[object] | None,
    processes: Mapping[str, str] | None = None,
) -> None:
    """A table of regions, with a column of what they were if their metadata is given.

    `processes` has the names of those whose pids regions' names begin with.
    """
    from ._show import print_table, protection, size

    # A process's regions are named for their addresses.
    has_addresses = any(
        region.address and f"/{region.address:x}-" not in f"/{region.name}" for region in regions
    )
    heads = ["name", *(["address"] if has_addresses else []), "length", "prot"]
    rows = []
    for region in regions:
        row = [region.name, size(region.length), protection(region.protection, region.shared)]
        if has_addresses:
            row.insert(1, f"{region.address:x}" if region.address else "-")
        rows.append(row)
    if metadata is not None:
        heads.append("what")
        for row, kept in zip(rows, metadata, strict=True):
            owner = row[0].partition("/")[0]
            row.append(describe(kept) or (processes or {}).get(owner, ""))
    print_table(heads, rows, right="address length")


def describe(metadata: object) -> str:
    """Dtype and shape of an array, or path and offset of a file; "" for anything else."""
    if not isinstance(metadata, Mapping):
        return ""
    array = metadata.get("array")
    if isinstance(array, Mapping):
        return f"{describe_dtype(array.get('dtype'))} {_describe_shape(array.get('shape'))}"
    if "path" in metadata:
        offset = metadata.get("offset")
        where = f" at {offset:#x}" if isinstance(offset, int) and offset else ""
        return f"{metadata['path']}{where}"
    return ""


def _describe_shape(shape: object) -> str:
    if not isinstance(shape, list):
        return "?"
    return "×".join(str(length) for length in shape) or "scalar"


def describe_dtype(dtype: object) -> str:
    """As numpy prints it: "float32", "datetime64[D]", "{a: int32, b: float64 2}"; else as it is."""
    if isinstance(dtype, list):
        return "{" + ", ".join(map(_describe_field, dtype)) + "}"
    if not isinstance(dtype, str):
        return str(dtype)
    found = _DTYPE.fullmatch(dtype)
    if found is None:
        return dtype  # "bfloat16"
    order, kind, nbytes, unit = found[1], found[2], int(found[3]), found[4] or ""
    if kind in _NUMBERS:
        text = "bool" if kind == "b" else f"{_NUMBERS[kind]}{8 * nbytes}"
    else:
        text = f"{_OTHERS[kind]}{unit}" if kind in "mM" else f"{_OTHERS[kind]}{nbytes}"
    return f"{text} (big-endian)" if order == ">" else text


def _describe_field(field: object) -> str:
    if not isinstance(field, list) or len(field) < 2:
        return "?"
    name = field[0][-1] if isinstance(field[0], list) and field[0] else field[0]
    shape = f" {_describe_shape(field[2])}" if len(field) > 2 else ""
    return f"{name}: {describe_dtype(field[1])}{shape}"
