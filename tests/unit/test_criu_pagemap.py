"""Pagemaps: what CRIU writes is read, and written again byte for byte; the rest is refused."""

from __future__ import annotations

import pytest
from criu_folders import COMMON, PAGEMAP, magic, message, pagemap
from hypothesis import given
from hypothesis import strategies as st

from lazyrestore import ImageError
from lazyrestore._criu.lazyfolder import make_lazy
from lazyrestore._criu.pagemap import Pagemap, parse

HEAD = magic(COMMON, PAGEMAP) + message((1, 3))
FLAGS = st.sampled_from([1, 2, 3, 4, 6])


@st.composite
def entries(draw):
    found, at = [], 0
    for gap, pages, flags in draw(
        st.lists(st.tuples(st.integers(0, 1 << 36), st.integers(1, 1 << 14), FLAGS), max_size=50)
    ):
        at += gap * 4096
        found.append((at, pages, flags))
        at += pages * 4096
    return found


@given(st.integers(0, (1 << 32) - 1), entries())
def test_written_as_criu_does_and_read_again(pages_id, listed):
    data = pagemap(pages_id, listed)
    found = parse(data, "it")
    assert (found.pages_id, found.entries, found.is_wide) == (pages_id, listed, False)
    assert found.build() == data
    assert found.present_bytes == 4096 * sum(pages for _, pages, flags in listed if flags & 4)


@given(entries())
def test_numbers_of_pages_of_64_bits(listed):
    """As CRIU 4.2 writes them"""
    data = HEAD
    for address, pages, flags in listed:
        data += message((1, address), (2, 0), (4, flags), (5, pages))
    found = parse(data, "it")
    assert (found.entries, found.is_wide) == (listed, bool(listed))
    assert found.build() == data


def test_the_wide_number_counts_where_both_stand():
    huge = HEAD + message((1, 0), (2, 7), (4, 4), (5, 1 << 33))
    assert parse(huge, "it").entries == [(0, 1 << 33, 4)]
    assert parse(Pagemap(3, [(0, 1 << 33, 4)]).build(), "it").entries == [(0, 1 << 33, 4)]
    assert parse(HEAD + message((1, 0), (4, 4), (5, 9)), "it").entries == [(0, 9, 4)]


def test_entries_of_old_versions():
    """Without flags the pages are there; `in_parent` was a field of its own"""
    data = HEAD + message((1, 4096), (2, 1)) + message((1, 8192), (2, 2), (3, 1))
    assert parse(data + message((1, 1 << 20), (2, 3), (3, 0)), "it").entries == [
        (4096, 1, 4),
        (8192, 2, 1),
        (1 << 20, 3, 4),
    ]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "does not begin as a pagemap"),
        (magic(COMMON, 0x50273030) + message((1, 3)), "does not begin as a pagemap"),
        (magic(PAGEMAP, COMMON), "does not begin as a pagemap"),
        (magic(COMMON, PAGEMAP), "no head"),
        (magic(COMMON, PAGEMAP) + message((2, 3)), "does not name its pages"),
        (magic(COMMON, PAGEMAP) + message((1, b"3")), "does not name its pages"),
        (HEAD[:-1], "cut short"),
        (HEAD + b"\1", "cut short"),
        (HEAD + message((1, 4096), (2, 1), (4, 4))[:-1], "cut short"),
        (HEAD + b"\xff\xff\xff\xff" + bytes(20), "cut short"),
        (HEAD + message((1, 4096), (2, 1), (4, 8)), "flags 0x8, which are not known"),
        (HEAD + message((1, 4096), (2, 1), (4, 12)), "flags 0xc, which are not known"),
        (HEAD + message((1, 4096), (2, 1), (4, 0)), "flags 0x0, which are not known"),
        (HEAD + message((1, 4096), (2, 1), (4, 5)), "flags 0x5, which are not known"),
        (HEAD + message((1, 4096), (2, 1), (4, 260)), "flags 0x104, which are not known"),
        (HEAD + message((1, 4096), (2, 1), (4, 4), (6, 1)), "has field 6, which no version"),
        (HEAD + message((1, 4096), (2, 1), (4, b"4")), "has field 4, which no version"),
        (HEAD + message((2, 1), (4, 4)), "no address"),
        (HEAD + message(), "no address"),
        (HEAD + message((1, 4096), (2, 0), (4, 8), (5, 1)), "flags 0x8, which are not known"),
        (HEAD + message((1, 4096), (2, 0), (4, 4), (5, 0)), "0x1000 is not in order"),
        (HEAD + message((1, 4096), (2, 0), (4, 4), (5, 1))[:-1], "cut short"),
        (HEAD + message((1, 4096), (2, 0), (4, 4), (5, 1), (6, 0)), "has field 6"),
        (HEAD + message((1, 4096), (4, 4)), "0x1000 is not in order"),
        (HEAD + message((1, 4097), (2, 1), (4, 4)), "0x1001 is not in order"),
        (HEAD + 2 * message((1, 4096), (2, 1), (4, 4)), "0x1000 is not in order"),
        (
            HEAD + message((1, 4096), (2, 2), (4, 4)) + message((1, 8192), (2, 1), (4, 4)),
            "0x2000 is not in order",
        ),
        (HEAD + message((1, (1 << 64) - 4096), (2, 2), (4, 4)), "beyond all addresses"),
    ],
)
def test_what_is_refused(data, why):
    with pytest.raises(ImageError, match=why) as raised:
        parse(data, "/dump/pagemap-9.img")
    assert "/dump/pagemap-9.img" in str(raised.value)
    assert ":" in str(raised.value)  # what to do stands behind it


@given(entries(), st.data())
def test_any_damage_is_refused_or_read(listed, data):
    made = bytearray(pagemap(1, listed))
    at = data.draw(st.integers(0, len(made) - 1))
    made[at] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(made[: data.draw(st.integers(0, len(made)))]), "it")
    except ImageError:
        return
    end = 0
    for address, pages, flags in found.entries:
        assert address >= end
        assert flags in (1, 2, 3, 4, 6)
        end = address + 4096 * pages


@given(entries())
def test_a_lazy_pagemap_has_only_what_cannot_wait(listed):
    listed = [(address, pages, flags) for address, pages, flags in listed if flags & 4]
    found = make_lazy(Pagemap(5, listed))
    assert [(address, pages) for address, pages, _ in found.entries] == [
        (address, pages) for address, pages, _ in listed
    ]
    for (_, _, before), (_, _, after) in zip(listed, found.entries, strict=True):
        assert after == {4: 4, 6: 2}[before]
