"""The service's side of the protocol of lr_attach: what any bytes may and may not become."""

from __future__ import annotations

import struct
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazyrestore._open import Image
from lazyrestore._serve import attaching
from lazyrestore._serve.attaching import BadMessage, PeerRange, Request
from lazyrestore.reports import RegionInfo

PAGE = 4096
U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
REGIONS = (
    RegionInfo("memory", 0, 96 * PAGE, 3, False),
    RegionInfo("nothing", 0, 0, 3, False),
    RegionInfo("odd", 0, 5 * PAGE + 77, 3, False),
)


def hello(version: int = 1, flags: int = 0, magic: bytes = b"LRATTACH") -> bytes:
    return struct.pack("<8sII", magic, version, flags)


def request(
    ranges: list[tuple[int, int, int, int]],
    *,
    count: int | None = None,
    page_size: int = PAGE,
    reserved: int = 0,
) -> bytes:
    found = len(ranges) if count is None else count
    head = struct.pack("<8sIIII", b"LRRANGES", 1, found, page_size, reserved)
    return head + b"".join(struct.pack("<QQQII", *one, 0) for one in ranges)


def test_a_greeting_says_what_the_client_wants() -> None:
    assert attaching.parse_hello(hello()) == attaching.Hello(False, False)
    assert attaching.parse_hello(hello(flags=1)) == attaching.Hello(True, False)
    assert attaching.parse_hello(hello(flags=3)) == attaching.Hello(True, True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (hello(version=2), "version 2"),
        (hello(flags=4), "flags"),
        (hello(magic=b"LRATTACK"), "LRATTACH"),
        (hello()[:-1], "16 bytes"),
        (hello() + b"x", "16 bytes"),
        (b"", "16 bytes"),
    ],
)
def test_another_greeting_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(BadMessage, match=says) as caught:
        attaching.parse_hello(data)
    assert caught.value.code == "protocol"


@given(st.binary(max_size=64))
@example(hello())
def test_any_bytes_are_a_greeting_or_refused(data: bytes) -> None:
    with suppress(BadMessage):
        found = attaching.parse_hello(data)
        assert data == hello(flags=found.resumes | found.wants_metadata << 1)


@given(st.lists(st.tuples(U64, U64, U64, U32), max_size=20), U32)
def test_ranges_arrive_as_they_were_sent(
    ranges: list[tuple[int, int, int, int]], page_size: int
) -> None:
    data = request(ranges, page_size=page_size)
    assert attaching.request_bytes(data[:24]) == len(data)
    assert attaching.parse_request(data) == Request(
        page_size, tuple(PeerRange(*one) for one in ranges)
    )


@given(st.binary(max_size=200), st.booleans())
@example(request([(PAGE, PAGE, 0, 0)])[8:], True)
def test_any_bytes_are_a_request_or_refused(data: bytes, has_magic: bool) -> None:
    data = b"LRRANGES" * has_magic + data
    with suppress(BadMessage):
        found = attaching.parse_request(data)
        attaching.check_request(found, REGIONS, PAGE)
        assert data == request(list(found.ranges), page_size=found.page_size)


def test_a_request_is_as_long_as_it_says() -> None:
    whole = request([(PAGE, PAGE, 0, 0)])
    for data in (whole[:-1], whole + b"x", request([], count=1), whole[:23]):
        with pytest.raises(BadMessage):
            attaching.parse_request(data)
    with pytest.raises(BadMessage, match="most") as caught:
        attaching.request_bytes(request([], count=1 << 30))
    assert caught.value.code == "limit"
    with pytest.raises(BadMessage, match="zero"):
        attaching.parse_request(request([], reserved=1))
    with pytest.raises(BadMessage, match="zero"):
        attaching.parse_request(whole[:-4] + b"\1\0\0\0")


def check(ranges: list[tuple[int, int, int, int]], page_size: int = PAGE) -> None:
    wanted = Request(page_size, tuple(PeerRange(*one) for one in ranges))
    attaching.check_request(wanted, REGIONS, PAGE)


def test_ranges_within_the_regions_are_served() -> None:
    base = 1 << 40
    check([(base, 96 * PAGE, 0, 0), (base + 96 * PAGE, 6 * PAGE, 0, 2)])
    check([(base, 48 * PAGE, 48 * PAGE, 0), (base + 48 * PAGE, 48 * PAGE, 0, 0)])


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        ([], "no ranges"),
        ([(PAGE, PAGE, 0, 3)], "no number 3"),
        ([(PAGE, 0, 0, 0)], "whole pages"),
        ([(0, PAGE, 0, 0)], "whole pages"),
        ([(PAGE + 1, PAGE, 0, 0)], "whole pages"),
        ([(PAGE, PAGE + 1, 0, 0)], "whole pages"),
        ([(PAGE, PAGE, 1, 0)], "whole pages"),
        ([((1 << 64) - PAGE, PAGE, 0, 0)], "last address"),
        ([(PAGE, (1 << 64) - PAGE, 0, 0)], "last address"),
        ([(PAGE, 97 * PAGE, 0, 0)], "within region 'memory'"),
        ([(PAGE, PAGE, 96 * PAGE, 0)], "within region 'memory'"),
        ([(PAGE, PAGE, 0, 1)], "within region 'nothing'"),
        ([(PAGE, 7 * PAGE, 0, 2)], "within region 'odd'"),
        ([(PAGE, PAGE, (1 << 64) - PAGE, 0)], "within region 'memory'"),
        ([(PAGE, 2 * PAGE, 0, 0), (2 * PAGE, PAGE, 9 * PAGE, 0)], "same addresses"),
        ([(PAGE, 2 * PAGE, 0, 0), (9 * PAGE, PAGE, PAGE, 0)], "same place"),
    ],
)
def test_what_cannot_be_served_is_refused(
    ranges: list[tuple[int, int, int, int]], says: str
) -> None:
    with pytest.raises(BadMessage, match=says) as caught:
        check(ranges)
    assert caught.value.code == "ranges"


def test_other_pages_than_the_machines_are_refused() -> None:
    with pytest.raises(BadMessage, match="65536"):
        check([(1 << 20, 1 << 16, 0, 0)], page_size=1 << 16)


@given(st.text(max_size=2000))
@example("é" * 400)
@example("\ud800")
def test_a_refusal_fits_whatever_is_said(text: str) -> None:
    data = attaching.build_refusal("stopping", text)
    magic, code, length = struct.unpack_from("<8sII", data)
    assert (magic, code, length) == (b"LRREFUSE", 7, len(data) - 16)
    assert length <= attaching.TEXT_BYTES_MAX
    data[16:].decode()


def test_a_word_that_is_not_known_is_a_failure() -> None:
    assert struct.unpack_from("<8sII", attaching.build_refusal("what", ""))[1] == 8


def test_the_table_has_each_region_and_its_name() -> None:
    image = cast(
        Image,
        SimpleNamespace(regions=REGIONS, page_size=PAGE, cluster_size=65536, digest="ab" * 32),
    )
    data = attaching.build_table(image)
    head = struct.unpack_from("<8sIIIIQ32s", data)
    assert head == (b"LRREGION", 1, 3, PAGE, 65536, 16, b"\xab" * 32)
    assert data[64 + 3 * 32 :] == b"memorynothingodd"
    assert struct.unpack_from("<QQIIQ", data, 64 + 64) == (0, 5 * PAGE + 77, 3, 3, 13)
