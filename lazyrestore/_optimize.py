"""An image in another order: `lazyrestore.optimize`.

The new file is header, index nodes of the hot clusters, hot clusters in the order of their first
touch, all other clusters, all other index nodes, and the end. Each length is known before anything
is written, so every record's place is too. Payloads are copied as they are.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from . import format as fmt
from ._assemble import new_identity
from ._content import crc32c, pack
from ._open import Image
from ._outfile import OutputFile
from ._walk import Frame, walk
from ._workingset import WorkingSet, keep_apart, path_beside
from .errors import ImageError
from .reports import OptimizeReport

Progress = Callable[[int, int | None], None]
_Source = str | os.PathLike[str] | WorkingSet

_COPY_BYTES = 1 << 20
_TREE_AT = 72  # the reference to the tree, in the root


def optimize(
    path: str | os.PathLike[str],
    working_sets: str | os.PathLike[str] | WorkingSet | Iterable[_Source],
    output: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> OptimizeReport:
    """Write an image anew, with the clusters of a working set together at its front.

    A replay of that working set, which is written beside the new image, then is one read of the
    file from its start. The content, and so the digest, stays the same.

    Args:
        path: the image.
        working_sets: one or several (merged: `WorkingSet.merge`), or files with them.
        output: the new image; its working set gets the same name with `.ws` appended. What is there
            is replaced.
        progress: called with the bytes copied and their total.

    Raises:
        OSError: a file cannot be read or written.
        ImageError: the image is damaged.
        WorkingSetError: a working set is damaged, or belongs to another image.
        ValueError: no working set was given, or one of these files would replace another.
    """
    start = time.perf_counter()
    given: Iterable[_Source]
    if isinstance(working_sets, (str, os.PathLike, WorkingSet)):
        given = (working_sets,)
    else:
        given = working_sets
    sets = [each if isinstance(each, WorkingSet) else WorkingSet.load(each) for each in given]
    if not sets:
        raise ValueError("there is no working set: give one at least")
    with Image(path) as image:
        for each in sets:
            each.check(image)
        merged = sets[0].merge(*sets[1:])
        target = os.fsdecode(output)
        beside = path_beside(target)
        keep_apart(target, (each.path for each in sets if each.path is not None))
        keep_apart(beside, (image.path,))
        plan = _Plan(image, merged)
        stored_bytes = _write(plan, target, progress)
        merged.save(beside)
        return OptimizeReport(
            path=target,
            working_set=beside,
            recordings=merged.recordings,
            hot_clusters=len(merged),
            hot_bytes=sum(_length_of(image, cluster) for cluster in merged),
            hot_payload_bytes=plan.hot_payload_bytes,
            front_bytes=plan.front_bytes,
            logical_bytes=sum(region.length for region in image.regions),
            stored_bytes=stored_bytes,
            digest=image.digest,
            seconds=time.perf_counter() - start,
        )


def _length_of(image: Image, cluster: int) -> int:
    number, offset = image.place_of_cluster(cluster)
    return min(image.cluster_size, image.regions[number].length - offset)


@dataclasses.dataclass(slots=True)
class _Node:
    """A node of the index: where it is and will be."""

    old: fmt.Reference
    level: int
    first: int  # cluster
    is_hot: bool
    offset: int = 0  # of the new payload


class _Plan:
    """Where everything goes."""

    def __init__(self, image: Image, working_set: WorkingSet) -> None:
        self.image = image
        frame = walk(image)
        _refuse_damaged(image, frame)
        self.frame = frame
        self.id, self.header = _new_header(image)
        self._hot = array("Q", sorted(working_set))
        records = frame.clusters
        self.crcs = array("I", bytes(4 * len(records)))
        self.is_used = bytearray(len(records))
        self.nodes = list(self._find_nodes())
        for node in self.nodes:
            if node.level == 0:
                self._note_entries(node)
        order = self._hot_records(working_set)
        self.hot_payload_bytes = sum(records.lengths[number] for number in order)
        self._place(order)

    # ---- The index -------------------------------------------------------------------------------

    def _find_nodes(self) -> Iterator[_Node]:
        """All nodes, children before their parents."""
        root = self.frame.root
        if root.cluster_count:
            yield from self._nodes_below(root.tree, root.tree_height - 1, 0)

    def _nodes_below(self, reference: fmt.Reference, level: int, first: int) -> Iterator[_Node]:
        if reference.kind != fmt.REFERENCE_NODE:
            return
        span = fmt.NODE_FANOUT ** (level + 1)
        if level:
            node = self.read(reference)
            for number, at in enumerate(range(fmt.NODE_HEAD_BYTES, len(node), fmt.REFERENCE_BYTES)):
                child = fmt.Reference.unpack(node[at : at + fmt.REFERENCE_BYTES])
                below = first + number * (span // fmt.NODE_FANOUT)
                yield from self._nodes_below(child, level - 1, below)
        at = bisect.bisect_left(self._hot, first)
        is_hot = at < len(self._hot) and self._hot[at] < first + span
        yield _Node(reference, level, first, is_hot)

    def read(self, reference: fmt.Reference) -> bytes:
        """A node's payload; `walk` has checked it."""
        return self.image.read_raw(reference.offset, reference.nbytes)

    def entries(self, node: bytes) -> Iterator[tuple[int, fmt.Reference]]:
        """The entries of a leaf that have a payload: where they stand in it, and what they say."""
        pages = self.frame.footer.cluster_size // self.frame.footer.page_size
        for at in range(fmt.NODE_HEAD_BYTES, len(node), fmt.entry_bytes(pages)):
            entry = fmt.Reference.unpack(node[at : at + fmt.REFERENCE_BYTES])
            if entry.kind in (fmt.CLUSTER_ZSTD, fmt.CLUSTER_RAW):
                yield at, entry

    def _note_entries(self, leaf: _Node) -> None:
        for _, entry in self.entries(self.read(leaf.old)):
            number = self.record_of(entry)
            if self.is_used[number] and self.crcs[number] != entry.crc32c:
                self.fail(entry.offset, "two index entries do not agree about a cluster")
            self.is_used[number] = 1
            self.crcs[number] = entry.crc32c

    def record_of(self, entry: fmt.Reference) -> int:
        """The number of the cluster record that a leaf entry points to."""
        number = self.frame.clusters.find(entry.offset, entry.nbytes)
        if number is None:
            self.fail(entry.offset, "an index entry points to what is no cluster record")
        return number

    def fail(self, offset: int, why: str) -> NoReturn:
        """Raise for something that is wrong with the old image."""
        raise ImageError(
            f"{self.image.path}: {why} (at byte {offset} of the file): take another copy"
        )

    # ---- The order -------------------------------------------------------------------------------

    def _hot_records(self, working_set: WorkingSet) -> array[int]:
        """The records of the hot clusters, in the working set's order, each once."""
        order = array("Q")
        seen = bytearray(len(self.frame.clusters))
        with self.image.reader() as reader:
            for cluster in working_set:
                info = reader.cluster(cluster)
                if info.payload_bytes:
                    entry = fmt.Reference(info.kind, info.payload_offset, info.payload_bytes)
                    number = self.record_of(entry)
                    if not seen[number]:
                        order.append(number)
                    seen[number] = 1
        return order

    def _place(self, hot: array[int]) -> None:
        records = self.frame.clusters
        self.offsets = array("Q", bytes(8 * len(records)))  # of the new payloads, by record
        self.order = array("Q", hot)
        is_hot = bytearray(len(records))
        for number in hot:
            is_hot[number] = 1
        self.order.extend(number for number in range(len(records)) if not is_hot[number])
        at = self._place_nodes(len(self.header), is_hot=True)
        for rank, number in enumerate(self.order):
            if rank == len(hot):
                self.front_bytes = at
            at += len(fmt.record_head("cluster", records.lengths[number]))
            self.offsets[number] = at
            at += records.lengths[number]
        if len(hot) == len(self.order):
            self.front_bytes = at
        self.clusters_end = at
        self.nodes_end = self._place_nodes(at, is_hot=False)

    def _place_nodes(self, at: int, *, is_hot: bool) -> int:
        for node in self.nodes:
            if node.is_hot == is_hot:
                at += len(fmt.record_head("index", node.old.nbytes))
                node.offset = at
                at += node.old.nbytes
        return at


def _refuse_damaged(image: Image, frame: Frame) -> None:
    reasons = [*frame.problems, *(reason for _, _, reason in frame.lost)]
    if reasons:
        raise ImageError(
            f"{image.path}: {reasons[0]}: `lazyrestore verify` lists all, take another copy"
        )


def _new_header(image: Image) -> tuple[bytes, bytes]:
    """The old header with an id of its own: when it was made, and of what, is the old image's."""
    identity, _, writer = new_identity()
    record = pack({"lazyrestore": {**image.header(), "id": identity, "writer": writer}})
    if len(record) > fmt.HEADER_MAX_BYTES:
        raise ImageError(f"{image.path}: its header has no room for another writer's name")
    return identity, record


def _write(plan: _Plan, target: str, progress: Progress | None) -> int:
    """Write the new image; its length."""
    file = OutputFile(target)
    try:
        file.write_at(plan.header, 0)
        tree = _write_nodes(plan, file)
        _write_clusters(plan, file, progress)
        end = _write_end(plan, file, tree)
        file.commit()
        return end
    finally:
        file.discard()


def _write_nodes(plan: _Plan, file: OutputFile) -> fmt.Reference:
    """All nodes of the index; the reference to the topmost one."""
    written: dict[int, fmt.Reference] = {}  # by their old offsets
    reference = plan.frame.root.tree
    for node in plan.nodes:  # children first
        data = bytearray(plan.read(node.old))
        if node.level == 0:
            for at, entry in plan.entries(bytes(data)):
                number = plan.record_of(entry)
                data[at : at + 8] = plan.offsets[number].to_bytes(8, "little")
        else:
            for at in range(fmt.NODE_HEAD_BYTES, len(data), fmt.REFERENCE_BYTES):
                child = fmt.Reference.unpack(bytes(data[at : at + fmt.REFERENCE_BYTES]))
                if child.kind == fmt.REFERENCE_NODE:
                    packed = written[child.offset].pack()
                    data[at : at + fmt.REFERENCE_BYTES] = packed
        reference = dataclasses.replace(node.old, offset=node.offset, crc32c=crc32c(data))
        written[node.old.offset] = reference
        head = fmt.record_head("index", len(data))
        file.write_at(head + data, node.offset - len(head))
    return reference


def _write_clusters(plan: _Plan, file: OutputFile, progress: Progress | None) -> None:
    records = plan.frame.clusters
    total = sum(records.lengths)
    done = 0
    buffer = bytearray()
    begin = -1  # where the buffer goes
    for number in plan.order:
        nbytes = records.lengths[number]
        payload = plan.image.read_raw(records.offsets[number], nbytes)
        if plan.is_used[number] and crc32c(payload) != plan.crcs[number]:
            plan.fail(records.offsets[number], "a cluster's checksum is wrong")
        head = fmt.record_head("cluster", nbytes)
        at = plan.offsets[number] - len(head)
        if len(buffer) >= _COPY_BYTES or at != begin + len(buffer):
            file.write_at(memoryview(buffer), begin)
            buffer, begin = bytearray(), at
        buffer += head + payload
        done += nbytes
        if progress is not None:
            progress(done, total)
    file.write_at(memoryview(buffer), begin)


def _copy_files(plan: _Plan) -> bytes:
    """The record of files as it is; b"" where there is none."""
    old = plan.frame.footer
    if not old.files_bytes:
        return b""
    data = plan.image.read_raw(old.files_offset, old.files_bytes)
    if crc32c(data) != old.files_crc32c:
        plan.fail(old.files_offset, "the image was changed while it was read")
    return fmt.record_head("files", len(data)) + data


def _write_end(plan: _Plan, file: OutputFile, tree: fmt.Reference) -> int:
    """Metadata, files, root and footer; the file's length."""
    old = plan.frame.footer
    metadata = plan.image.read_raw(old.metadata_offset, old.metadata_bytes)
    root = bytearray(plan.image.read_raw(old.root_offset, old.root_bytes))
    if crc32c(metadata) != old.metadata_crc32c or crc32c(root) != old.root_crc32c:
        plan.fail(old.metadata_offset, "the image was changed while it was read")
    root[_TREE_AT : _TREE_AT + fmt.REFERENCE_BYTES] = tree.pack()
    metadata_offset = plan.nodes_end + len(fmt.METADATA_HEAD)
    files = _copy_files(plan)
    files_end = metadata_offset + len(metadata) + len(files)
    root_head = fmt.record_head("root", len(root))
    root_offset = files_end + len(root_head)
    footer = dataclasses.replace(
        old,
        header_bytes=len(plan.header),
        header_crc32c=crc32c(plan.header),
        id=plan.id,
        metadata_offset=metadata_offset,
        files_offset=files_end - old.files_bytes if files else 0,
        root_offset=root_offset,
        root_crc32c=crc32c(root),
        file_bytes=root_offset + len(root) + fmt.FOOTER_RECORD_BYTES,
    )
    end = (
        fmt.METADATA_HEAD,
        metadata,
        files,
        root_head,
        root,
        footer.record(crc32c(footer.pack())),
    )
    file.write_at(b"".join(end), plan.nodes_end)
    return footer.file_bytes
