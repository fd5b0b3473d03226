"""Digests: the same as those of the `blake3` package, however the bytes come."""

from __future__ import annotations

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from lazyrestore._blake3 import Blake3, blake3_digest

SEED = blake3(b"bytes for tests").digest(length=300_000)


@given(st.integers(0, 5), st.integers(0, 200_000))
def test_at_once(start: int, length: int) -> None:
    """Any length, at any alignment"""
    data = memoryview(SEED)[start : start + length]
    assert blake3_digest(data) == blake3(data).digest()


@given(st.lists(st.integers(0, 3000), max_size=40))
def test_in_pieces(lengths: list[int]) -> None:
    """Pieces of any lengths; each digest on the way, too"""
    ours, theirs, at = Blake3(), blake3(), 0
    for length in lengths:
        ours.update(SEED[at : at + length])
        theirs.update(SEED[at : at + length])
        at += length
        assert ours.digest() == theirs.digest()
    assert ours.hexdigest() == theirs.hexdigest()


def test_tree_of_many_groups() -> None:
    """Inputs far longer than what is hashed at once: all shapes of the tree's right edge"""
    data = SEED * 8
    for groups in range(1, 36):
        for more in (-1, 0, 1, 1024, 1025):
            piece = memoryview(data)[: groups * 65536 + more]
            assert blake3_digest(piece) == blake3(piece).digest()
    hash_ = Blake3(data)
    assert hash_.digest() == blake3(data).digest()
