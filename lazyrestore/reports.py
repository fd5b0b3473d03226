"""What commands and functions report: plain data, with the field names of their `--json` output."""

from __future__ import annotations

import dataclasses

from ._region_info import RegionInfo as RegionInfo
from ._session_reports import Latency as Latency
from ._session_reports import LoadError as LoadError
from ._session_reports import SessionStats as SessionStats
from ._session_reports import TraceRecord as TraceRecord


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """Memory that should have been dumped, and is not in the image.

    Attributes:
        name: what it is: START-END in hexadecimal, with the kernel's name for it if it has one.
        start: its address.
        length: bytes.
        reason: why it was left out, in words.
    """

    name: str
    start: int
    length: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process that was dumped whole.

    Attributes:
        pid: in its tree's own pid namespace.
        ppid: of its parent there; 0 for the root of the tree.
        comm: its name.
        threads: how many it has.
        zombie: True if it had ended, and its parent had not yet waited for it.
        bytes: in its own pages that are in the image.
    """

    pid: int
    ppid: int
    comm: str
    threads: int
    zombie: bool
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class DumpReport:
    """What a dump wrote.

    Attributes:
        path: the image.
        logical_bytes: length of all regions.
        stored_bytes: length of the image.
        ratio: logical_bytes / stored_bytes.
        zero_bytes: bytes in pages that were all zero.
        hole_bytes: bytes in pages that were never touched.
        data_bytes: bytes in all other pages.
        duplicate_bytes: those of data_bytes that were already in the image, and not stored again.
        regions: in the order in which they were dumped.
        digest: BLAKE3 of the content in hexadecimal; does not depend on level or threads.
        seconds: from the opening to the closing of the image.
        frozen_us: how long a process was stopped, in microseconds; None where none was.
        skipped: what could not be read.
        processes: that were dumped whole, parents before their children.
    """

    path: str
    logical_bytes: int
    stored_bytes: int
    ratio: float
    zero_bytes: int
    hole_bytes: int
    data_bytes: int
    duplicate_bytes: int
    regions: tuple[RegionInfo, ...]
    digest: str
    seconds: float
    frozen_us: int | None = None
    skipped: tuple[Skipped, ...] = ()
    processes: tuple[ProcessInfo, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What `optimize` wrote.

    Attributes:
        path: the new image.
        working_set: its working set, beside it.
        recordings: how many recordings that was merged from.
        hot_clusters: clusters in it.
        hot_bytes: bytes of memory in them.
        hot_payload_bytes: their length in the file; repeated clusters count once.
        front_bytes: from the file's start to the end of what a replay reads.
        logical_bytes: length of all regions.
        stored_bytes: length of the image.
        digest: BLAKE3 of the content in hexadecimal: that of the old image.
        seconds: how long it took.
    """

    path: str
    working_set: str
    recordings: int
    hot_clusters: int
    hot_bytes: int
    hot_payload_bytes: int
    front_bytes: int
    logical_bytes: int
    stored_bytes: int
    digest: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says of itself, without reading its clusters.

    Attributes:
        path: the image.
        version: of the format.
        created: when it was made, RFC 3339, UTC.
        writer: the program that made it.
        source: what was dumped, in words.
        page_size: bytes.
        cluster_size: bytes.
        logical_bytes: length of all regions.
        stored_bytes: length of the file.
        ratio: logical_bytes / stored_bytes.
        zero_bytes: bytes in pages that were all zero.
        hole_bytes: bytes in pages that were never touched.
        data_bytes: bytes in all other pages.
        duplicate_bytes: those of data_bytes that share another cluster's record.
        clusters: number of clusters.
        stored_clusters: number of cluster records.
        regions: in the order in which they were dumped.
        digest: BLAKE3 of the content in hexadecimal.
        id: random, different in each file.
        processes: that the image was made of, parents before their children; of memory only: none.
        criu_version: what dumped them, as "4.1.1"; "" where that is not known.
    """

    path: str
    version: int
    created: str
    writer: str
    source: str
    page_size: int
    cluster_size: int
    logical_bytes: int
    stored_bytes: int
    ratio: float
    zero_bytes: int
    hole_bytes: int
    data_bytes: int
    duplicate_bytes: int
    clusters: int
    stored_clusters: int
    regions: tuple[RegionInfo, ...]
    digest: str
    id: str
    processes: tuple[ProcessInfo, ...] = ()
    criu_version: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Damage:
    """Something that `verify` found.

    Attributes:
        region: name of the region, or None where it is not about one.
        offset: in the region, in bytes, or None.
        length: bytes of the region that cannot be read.
        cluster: its number, or None.
        reason: what is wrong.
    """

    region: str | None
    offset: int | None
    length: int
    cluster: int | None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        path: the image.
        clusters: clusters looked at.
        logical_bytes: bytes of memory they stand for.
        damage: everything that is wrong; empty if the image is sound.
        seconds: how long it took.
    """

    path: str
    clusters: int
    logical_bytes: int
    damage: tuple[Damage, ...]
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class RegionDiff:
    """Two regions that were compared, one of each image.

    Attributes:
        name: in the first image.
        other_name: in the second; the same, but for regions that belong together by address.
        offset: where in the first one the part that both have begins, in bytes.
        other_offset: the same in the second.
        length: bytes that both have, which were compared.
        changes: what the images say differently of the region: (what, in the first, in the second)
            of "length", "protection", "shared" and "metadata".
        pages: pages of that length.
        different_pages: pages of which some byte differs.
        different_bytes: bytes in these.
        unreadable_pages: pages that cannot be compared, for one of the images is damaged there.
        states: how many of the different pages were what and are what: "data, data",
            "zero, data", "data, hole" and so on.
        zero_pages: pages that read as zeros in both, untouched in only one of them.
        range_count: ranges of pages that differ, without pages between.
        ranges: (offset, length) of the first ones, in the first image's region, in bytes.
    """

    name: str
    other_name: str
    offset: int
    other_offset: int
    length: int
    changes: tuple[tuple[str, object, object], ...]
    pages: int
    different_pages: int
    different_bytes: int
    unreadable_pages: int
    states: dict[str, int]
    zero_pages: int
    range_count: int
    ranges: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class DiffPart:
    """What only one of two images has.

    Attributes:
        name: of the region.
        offset: where in it, in bytes; 0 with all of its length: the whole region.
        length: bytes.
    """

    name: str
    offset: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class FilesDiff:
    """The small files that are kept in images, compared.

    Attributes:
        only_a: names of those that only the first has.
        only_b: names of those that only the second has.
        different: names of those whose contents differ.
    """

    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    different: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class DiffDamage:
    """A part of one of two images that cannot be read.

    Attributes:
        path: the image.
        damage: where in it, and why.
    """

    path: str
    damage: Damage


@dataclasses.dataclass(frozen=True, slots=True)
class DiffReport:
    """What `diff` found.

    Attributes:
        a: the first image.
        b: the second.
        same: True if all could be read, and nothing differs.
        page_size: bytes of a page, as they are counted here: the smaller of the two.
        pages: that were compared.
        different_pages: pages of which some byte differs.
        different_bytes: bytes in these.
        regions: all that were compared.
        only_a: what only the first has.
        only_b: what only the second has.
        files: small files that differ.
        damage: what cannot be read.
        seconds: how long it took.
    """

    a: str
    b: str
    same: bool
    page_size: int
    pages: int
    different_pages: int
    different_bytes: int
    regions: tuple[RegionDiff, ...]
    only_a: tuple[DiffPart, ...]
    only_b: tuple[DiffPart, ...]
    files: FilesDiff
    damage: tuple[DiffDamage, ...]
    seconds: float
