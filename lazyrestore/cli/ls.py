"""`lazyrestore ls`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from ._arguments import ImageArgument, JsonOption

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
        shape = array.get("shape")
        lengths = "×".join(str(length) for length in shape) if isinstance(shape, list) else "?"
        return f"{array.get('dtype')} {lengths or 'scalar'}"
    if "path" in metadata:
        offset = metadata.get("offset")
        where = f" at {offset:#x}" if isinstance(offset, int) and offset else ""
        return f"{metadata['path']}{where}"
    return ""
