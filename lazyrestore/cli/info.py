"""`lazyrestore info`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ._arguments import ImageArgument, JsonOption
from ._errors import BAD_IMAGE, UsageError, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._map import ImageMap
    from lazyrestore._open import Image
    from lazyrestore._workingset import WorkingSet
    from lazyrestore.reports import ImageInfo

    from ._map import Frame


@dataclasses.dataclass(frozen=True)
class Beside:
    """The working set beside an image.

    Attributes:
        path: the file.
        clusters: how many.
        bytes: of memory in them, a region's last one counted as whole.
        recordings: how many it was merged from.
    """

    path: str
    clusters: int
    bytes: int
    recordings: int


def info(
    image: ImageArgument,
    map: Annotated[
        bool,
        typer.Option("--map", help="Draw what is where in the regions; reads the whole index."),
    ] = False,
    svg: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw that as a picture: FILE ends with .svg."),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Say what each region takes in the file; reads the whole index."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say what an image is: made when, of what, its sizes and digest.

    Reads the same few KiB whatever the size of the image; with --map, --svg or --verbose the index,
    never what is stored of the memory itself: 'lazyrestore verify' reads that.
    """
    from lazyrestore._open import Image

    if svg is not None and not svg.endswith(".svg"):
        raise UsageError(f"--svg {svg!r}: the name of such a picture ends with .svg")
    with Image(image) as opened:
        found = opened.info
        working_set, refusal = _look_beside(opened)
        beside = None if working_set is None else _describe_beside(opened, working_set)
        metadata = opened.all_metadata() if verbose else []
        frame, drawn = _survey(opened, working_set) if map or verbose or svg else (None, None)
        if svg is not None:
            from lazyrestore._svg import write_map

            write_map(opened, working_set or (), svg)
    if json:
        from ._show import plain, print_json

        fields = plain(found)
        assert isinstance(fields, dict)
        fields["working_set"] = beside
        if drawn is not None:
            from ._map import map_as_json

            fields["map"] = map_as_json(drawn, found.cluster_size)
        print_json(fields)
    else:
        _print_info(found, beside, refusal)
        if drawn is not None and frame is not None and verbose:
            print()
            _print_regions(drawn, metadata, frame)
        if drawn is not None and frame is not None and map:
            from ._map import print_image_map

            print()
            print_image_map(drawn, frame, found.cluster_size)
    if drawn is not None and drawn.damage:
        first = drawn.damage[0]
        more = f", and {len(drawn.damage) - 1} more" if len(drawn.damage) > 1 else ""
        fail(
            BAD_IMAGE,
            f"{image}: {first.reason} (region {first.region!r} at offset {first.offset}){more}:"
            " take another copy; 'lazyrestore verify' lists all that is lost",
        )


def _survey(image: Image, working_set: WorkingSet | None) -> tuple[Frame, ImageMap]:
    """What is where, in as many cells as this terminal has room for."""
    from lazyrestore._map import survey

    from ._map import ROWS, Frame, Style

    frame = Frame(Style.of_stdout(), [region.name for region in image.regions])
    return frame, survey(image, frame.columns, ROWS, working_set or ())


def _print_info(found: ImageInfo, beside: Beside | None, refusal: str) -> None:
    from ._show import count, one_line, print_fields, size

    data = size(found.data_bytes)
    if found.duplicate_bytes:
        data += f", of which {size(found.duplicate_bytes)} are repeats, stored once"
    clusters = f"{found.clusters} of {size(found.cluster_size)}, {found.stored_clusters} stored"
    if beside is None:
        near = refusal or "none beside it"
    else:
        near = f"{count(beside.clusters, 'cluster')}, {size(beside.bytes)}"
        if beside.recordings > 1:
            near += f", merged from {beside.recordings} recordings"
    print(one_line(f"{found.path}: a lazyrestore image, version {found.version}"))
    print_fields(
        [
            *([("processes", _count_processes(found))] if found.processes else []),
            ("made", f"{found.created} by {found.writer}"),
            ("of", found.source or "(not said)"),
            ("memory", f"{size(found.logical_bytes)} in {count(len(found.regions), 'region')}"),
            ("data", data),
            ("zero pages", size(found.zero_bytes)),
            ("untouched", size(found.hole_bytes)),
            ("image", f"{size(found.stored_bytes)}, ratio {found.ratio:.2f}"),
            ("clusters", f"{clusters}; pages of {size(found.page_size)}"),
            ("working set", near),
            ("digest", found.digest),
            ("id", found.id),
        ]
    )
    if found.processes:
        from ._show import print_tree

        print()
        print_tree(found.processes)


def _print_regions(drawn: ImageMap, metadata: list[object], frame: Frame) -> None:
    """What each region is, and what it takes in the file."""
    from lazyrestore._map import REPEAT

    from ._show import print_table, size
    from .ls import describe

    heads = ("region", "length", "data", "repeats", "stored", "ratio", "what")
    rows = []
    for region, kept in zip(drawn.regions, metadata, strict=True):
        what = [describe(kept)]
        if region.widths:
            widths = " and ".join(str(width) for width in sorted(region.widths))
            what.append(f"byte planes of {widths}")
        stored = region.stored_bytes
        rows.append(
            (
                frame.shorten(region.region.name),
                size(region.region.length),
                size(region.data_bytes),
                size(region.bytes[REPEAT]) if region.bytes[REPEAT] else "-",
                size(stored) if stored else "-",
                f"{region.region.length / stored:.2f}" if stored else "-",
                ", ".join(filter(None, what)),
            )
        )
    print_table(heads, rows, right="length data repeats stored ratio")


def _count_processes(found: ImageInfo) -> str:
    from ._show import count

    number = len(found.processes)
    text = f"{number} process{'es' if number > 1 else ''}, "
    text += count(sum(process.threads for process in found.processes), "thread")
    return text + (f"; dumped by CRIU {found.criu_version}" if found.criu_version else "")


def _describe_beside(image: Image, found: WorkingSet) -> Beside:
    from lazyrestore._workingset import path_beside

    return Beside(path_beside(image.path), len(found), found.nbytes, found.recordings)


def _look_beside(image: Image) -> tuple[WorkingSet | None, str]:
    """The working set that a restore would find, or why there is one that it cannot use."""
    from lazyrestore._workingset import load_beside
    from lazyrestore.errors import WorkingSetError

    try:
        return load_beside(image), ""
    except (OSError, WorkingSetError) as error:
        return None, f"cannot be used: {error}"
