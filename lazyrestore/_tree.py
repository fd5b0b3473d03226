"""The index of an image, built front to back: a radix tree with 256 entries a node.

A node is written when it is full. One whose clusters are all holes or all zero is never written: it
is an entry of its parent, and so on upwards. That is also how a run of any length is added in a few
steps a level.
"""

from __future__ import annotations

from collections.abc import Callable

from .format import (
    NODE_FANOUT,
    PAGE_HOLE,
    PAGE_ZERO,
    REFERENCE_HOLE,
    REFERENCE_ZERO,
    LeafEntry,
    NodeHead,
    Reference,
    pack_states,
    state_words,
    tree_height,
)

_UNIFORM = (REFERENCE_HOLE, REFERENCE_ZERO)
_MIXED = -1

WriteNode = Callable[[bytes], Reference]
"""Writes an index record with that payload, and says where it is."""


class _Level:
    """The node of one level that is being filled."""

    def __init__(self) -> None:
        self.entries = bytearray()
        self.count = 0  # in this node
        self.before = 0  # entries in the nodes before it, on this level
        self.kind: int | None = None  # of all its entries if uniform, else _MIXED; None: empty


class TreeBuilder:
    """Takes the leaf entries in the order of the clusters, and writes nodes as they are full."""

    def __init__(self, pages_per_cluster: int, write_node: WriteNode) -> None:
        self._write_node = write_node
        self._levels = [_Level()]
        words = state_words(pages_per_cluster)
        self._uniform_entries = {
            REFERENCE_HOLE: self._uniform(PAGE_HOLE, pages_per_cluster, words),
            REFERENCE_ZERO: self._uniform(PAGE_ZERO, pages_per_cluster, words),
        }
        self.cluster_count = 0

    @staticmethod
    def _uniform(state: int, pages: int, words: int) -> bytes:
        return LeafEntry(state, pack_states(bytes([state]) * pages, words)).pack()

    def append(self, kind: int, entry: bytes) -> None:
        """Add one cluster by its packed leaf entry."""
        self.cluster_count += 1
        self._push(0, kind, entry, 1)

    def append_entries(self, entries: bytearray, kinds: bytearray) -> None:
        """Add clusters by their packed leaf entries. They must fit into the node."""
        self.cluster_count += len(kinds)
        kind = kinds[0] if kinds.count(kinds[0]) == len(kinds) else _MIXED
        self._push(0, kind, entries, len(kinds))

    def append_run(self, kind: int, count: int) -> None:
        """Add `count` whole clusters that are all holes or all zero."""
        assert kind in _UNIFORM
        self.cluster_count += count
        self._push_run(0, kind, count)

    def _push_run(self, number: int, kind: int, count: int) -> None:
        level = self._level(number)
        entry = self._uniform_entries[kind] if number == 0 else Reference(kind).pack()
        if level.count:
            first = min(count, NODE_FANOUT - level.count)
            self._push(number, kind, entry * first, first)
            count -= first
        nodes, rest = divmod(count, NODE_FANOUT)
        if nodes:
            level.before += nodes * NODE_FANOUT
            self._push_run(number + 1, kind, nodes)
        if rest:
            self._push(number, kind, entry * rest, rest)

    def _push(self, number: int, kind: int, entries: bytes | bytearray, count: int) -> None:
        """Add entries, all of one kind or _MIXED, that fit into the node."""
        level = self._level(number)
        level.entries += entries
        level.count += count
        assert level.count <= NODE_FANOUT
        if kind not in _UNIFORM or level.kind not in (None, kind):
            level.kind = _MIXED
        else:
            level.kind = kind
        if level.count == NODE_FANOUT:
            self._flush(number)

    def _level(self, number: int) -> _Level:
        while len(self._levels) <= number:
            self._levels.append(_Level())
        return self._levels[number]

    def _flush(self, number: int) -> None:
        level = self._levels[number]
        if level.kind == _MIXED:
            first_cluster = level.before * NODE_FANOUT**number
            head = NodeHead(number, level.count, first_cluster).pack()
            reference = self._write_node(head + level.entries)
        else:
            assert level.kind is not None
            reference = Reference(level.kind)
        level.before += level.count
        level.entries, level.count, level.kind = bytearray(), 0, None
        self._push(number + 1, reference.kind, reference.pack(), 1)

    def finish(self) -> tuple[int, Reference]:
        """Write what is left; the tree's height and its root."""
        height = tree_height(self.cluster_count)
        if self.cluster_count == 0:
            return height, Reference(REFERENCE_HOLE)
        for number in range(height):
            if self._level(number).count:
                self._flush(number)
        return height, Reference.unpack(bytes(self._level(height).entries))
