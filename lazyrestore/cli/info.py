"""`lazyrestore info`."""

from __future__ import annotations

from ._arguments import ImageArgument, JsonOption


def info(image: ImageArgument, json: JsonOption = False) -> None:
    """Say what an image is: made when, of what, its sizes and digest.

    Reads the same few KiB whatever the size of the image. 'lazyrestore verify' reads all of it.
    """
    from lazyrestore._open import Image

    with Image(image) as opened:
        found = opened.info
    from ._show import count, one_line, print_fields, print_json, size

    if json:
        print_json(found)
        return
    data = size(found.data_bytes)
    if found.duplicate_bytes:
        data += f", of which {size(found.duplicate_bytes)} are repeats, stored once"
    clusters = f"{found.clusters} of {size(found.cluster_size)}, {found.stored_clusters} stored"
    print(one_line(f"{found.path}: a lazyrestore image, version {found.version}"))
    print_fields(
        [
            ("made", f"{found.created} by {found.writer}"),
            ("of", found.source or "(not said)"),
            ("memory", f"{size(found.logical_bytes)} in {count(len(found.regions), 'region')}"),
            ("data", data),
            ("zero pages", size(found.zero_bytes)),
            ("untouched", size(found.hole_bytes)),
            ("image", f"{size(found.stored_bytes)}, ratio {found.ratio:.2f}"),
            ("clusters", f"{clusters}; pages of {size(found.page_size)}"),
            ("digest", found.digest),
            ("id", found.id),
        ]
    )
