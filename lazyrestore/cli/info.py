"""`lazyrestore info`."""

from __future__ import annotations

import dataclasses

from ._arguments import ImageArgument, JsonOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._open import Image
    from lazyrestore.reports import ImageInfo


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


def info(image: ImageArgument, json: JsonOption = False) -> None:
    """Say what an image is: made when, of what, its sizes and digest.

    Reads the same few KiB whatever the size of the image. 'lazyrestore verify' reads all of it.
    """
    from lazyrestore._open import Image

    with Image(image) as opened:
        found = opened.info
        working_set, refusal = _look_beside(opened)
    from ._show import count, one_line, plain, print_fields, print_json, size

    if json:
        fields = plain(found)
        assert isinstance(fields, dict)
        print_json({**fields, "working_set": working_set})
        return
    data = size(found.data_bytes)
    if found.duplicate_bytes:
        data += f", of which {size(found.duplicate_bytes)} are repeats, stored once"
    clusters = f"{found.clusters} of {size(found.cluster_size)}, {found.stored_clusters} stored"
    if working_set is None:
        beside = refusal or "none beside it"
    else:
        beside = f"{count(working_set.clusters, 'cluster')}, {size(working_set.bytes)}"
        if working_set.recordings > 1:
            beside += f", merged from {working_set.recordings} recordings"
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
            ("working set", beside),
            ("digest", found.digest),
            ("id", found.id),
        ]
    )
    if found.processes:
        from ._show import print_tree

        print()
        print_tree(found.processes)


def _count_processes(found: ImageInfo) -> str:
    from ._show import count

    number = len(found.processes)
    text = f"{number} process{'es' if number > 1 else ''}, "
    text += count(sum(process.threads for process in found.processes), "thread")
    return text + (f"; dumped by CRIU {found.criu_version}" if found.criu_version else "")


def _look_beside(image: Image) -> tuple[Beside | None, str]:
    """The working set that a restore would find, or why there is one that it cannot use."""
    from lazyrestore._workingset import load_beside, path_beside
    from lazyrestore.errors import WorkingSetError

    try:
        found = load_beside(image)
    except (OSError, WorkingSetError) as error:
        return None, f"cannot be used: {error}"
    if found is None:
        return None, ""
    path = path_beside(image.path)
    return Beside(path, len(found), found.nbytes, found.recordings), ""
