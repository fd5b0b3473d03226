"""Firecracker's handshake, from text to ranges."""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyrestore._serve.handshake import (
    HUGE_PAGE,
    MESSAGE_BYTES_MAX,
    REGIONS_MAX,
    GuestRegion,
    MessageScanner,
    Range,
    Refusal,
    page_size_of,
    parse_json,
    parse_regions,
    place,
)
from lazyrestore.reports import RegionInfo

PAGE = 4096
CAPTURED = (
    b'[{"base_host_virt_addr":140621941571584,"size":3489660928,"offset":0,"page_size":4096,'
    b'"page_size_kib":4096},\n {"base_host_virt_addr":140621866074112,"size":75497472,'
    b'"offset":3489660928,"page_size":4096,"page_size_kib":4096}]'
)


def region(**fields: object) -> dict[str, object]:
    return {"base_host_virt_addr": 0x7F00_0000_0000, "size": 4 * PAGE, "offset": 0, **fields}


def of(*lengths: int) -> list[RegionInfo]:
    return [RegionInfo(f"r{n}", 0, length, 3) for n, length in enumerate(lengths)]


def guest(address: int, pages: int, offset: int, page_size: int = PAGE) -> GuestRegion:
    return GuestRegion(address * PAGE, pages * PAGE, offset * PAGE, page_size)


def test_what_firecracker_sends() -> None:
    regions = parse_regions(parse_json(CAPTURED))
    assert regions == (
        GuestRegion(140621941571584, 3489660928, 0, 4096),
        GuestRegion(140621866074112, 75497472, 3489660928, 4096),
    )
    assert page_size_of(regions) == 4096
    # By address, as the second is lower; `offset` is into the file.
    assert place(regions, of(3400 << 20)) == (
        Range(140621866074112, 75497472, 3489660928, 0),
        Range(140621941571584, 3489660928, 0, 0),
    )


def test_what_nydus_sends() -> None:
    wrapped = {"type": 0, "regions": json.loads(CAPTURED), "version": "x"}
    assert parse_regions(wrapped) == parse_regions(parse_json(CAPTURED))


@pytest.mark.parametrize(
    ("fields", "page_size"),
    [
        ({}, 4096),
        ({"page_size": 4096}, 4096),
        ({"page_size": HUGE_PAGE}, HUGE_PAGE),
        ({"page_size_kib": 4096}, 4096),  # bytes, whatever its name
        ({"page_size_kib": HUGE_PAGE}, HUGE_PAGE),
        ({"page_size_kib": 4}, 4096),  # KiB
        ({"page_size_kib": 2048}, HUGE_PAGE),
        ({"page_size": 4096, "page_size_kib": HUGE_PAGE}, 4096),
        ({"page_size": HUGE_PAGE, "page_size_kib": 2048}, HUGE_PAGE),
    ],
)
def test_page_sizes(fields: dict[str, object], page_size: int) -> None:
    (found,) = parse_regions([region(size=2 * HUGE_PAGE, base_host_virt_addr=HUGE_PAGE, **fields)])
    assert found.page_size == page_size


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ([], "no list"),
        ({}, "no handshake"),
        ({"type": 0}, "no handshake"),
        ({"type": 1, "regions": [region()]}, "no handshake"),
        ({"type": False, "regions": [region()]}, "no handshake"),
        ({"type": 0, "regions": {}}, "no list"),
        ({"type": 0, "regions": []}, "no list"),
        ([1], "not an object"),
        ([[]], "not an object"),
        ([{}], "base_host_virt_addr"),
        ([region(size=None)], "size"),
        ([region(size=True)], "size"),
        ([region(size="4096")], "size"),
        ([region(size=4096.0)], "size"),
        ([region(size=-4096)], "size"),
        ([region(size=1 << 64)], "size"),
        ([region(size=0)], "empty"),
        ([region(offset=-1)], "offset"),
        ([region(offset=1)], "whole pages"),
        ([region(size=4095)], "whole pages"),
        ([region(base_host_virt_addr=1)], "whole pages"),
        ([region(page_size=HUGE_PAGE)], "whole pages"),
        ([region(page_size=0)], "pages of 0"),
        ([region(page_size=8192)], "pages of 8192"),
        ([region(page_size_kib=0)], "pages of 0"),
        ([region(page_size_kib=8)], "pages of 8192"),
        ([region(page_size_kib="4")], "page_size_kib"),
        ([region(base_host_virt_addr=(1 << 64) - PAGE)], "last address"),
        ([region(offset=(1 << 64) - PAGE)], "last address"),
        ([region()] * (REGIONS_MAX + 1), "the most"),
    ],
)
def test_refused_regions(message: object, word: str) -> None:
    with pytest.raises(Refusal, match=word) as caught:
        parse_regions(message)
    assert caught.value.code == "ranges"


@pytest.mark.parametrize(
    ("regions", "lengths", "word"),
    [
        ([guest(16, 4, 0), guest(18, 4, 4)], (8 * PAGE,), "same addresses"),
        ([guest(16, 4, 0), guest(32, 4, 3)], (8 * PAGE,), "same offsets"),
        ([guest(16, 4, 0), guest(16, 4, 0)], (8 * PAGE,), "same addresses"),
        ([guest(16, 9, 0)], (8 * PAGE,), "another snapshot"),
        ([guest(16, 4, 8)], (8 * PAGE,), "another snapshot"),
        ([guest(16, 1, 0)], (), "another snapshot"),
        ([guest(16, 1, 0)], (0,), "another snapshot"),
        ([guest(16, 1 << 40, 0)], (8 * PAGE,), "another snapshot"),
        ([guest(16, 4, 0)], (PAGE + 1, 8 * PAGE), "within a page"),
        ([guest(512, 512, 0, HUGE_PAGE)], (PAGE, 4 << 20), "within a page"),
        ([guest(512, 512, 0, HUGE_PAGE), guest(8, 4, 512)], (4 << 20,), "different sizes"),
    ],
)
def test_refused_places(regions: list[GuestRegion], lengths: tuple[int, ...], word: str) -> None:
    with pytest.raises(Refusal, match=word) as caught:
        place(regions, of(*lengths))
    assert caught.value.code == "ranges"


def test_a_partial_last_page() -> None:
    """The image may end within the peer's last page, which then is its as a whole"""
    assert place([guest(16, 2, 0)], of(PAGE + 1)) == (Range(16 * PAGE, 2 * PAGE, 0, 0),)
    huge = [guest(512, 1024, 0, HUGE_PAGE)]
    assert place(huge, of(HUGE_PAGE + 1)) == (Range(HUGE_PAGE, 2 * HUGE_PAGE, 0, 0),)


def test_through_several_regions_of_the_image() -> None:
    """`offset` counts through them, and a region of the peer's may lie in several"""
    image = of(2 * PAGE, 0, 3 * PAGE, 2 * PAGE)
    assert place([guest(64, 3, 4), guest(16, 4, 0)], image) == (
        Range(16 * PAGE, 2 * PAGE, 0, 0),
        Range(18 * PAGE, 2 * PAGE, 0, 2),
        Range(64 * PAGE, PAGE, 2 * PAGE, 2),
        Range(65 * PAGE, 2 * PAGE, 0, 3),
    )
    assert place([guest(64, 1, 5)], image) == (Range(64 * PAGE, PAGE, 0, 3),)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_each_page_comes_from_its_place(pages: list[int], data: st.DataObject) -> None:
    """Page by page: what `place` says against counting through the image's regions"""
    total = sum(pages)
    if not total:
        return
    cuts = sorted(data.draw(st.sets(st.integers(0, total), min_size=2, max_size=6), label="cuts"))
    if len(cuts) < 2:
        return
    spans = list(itertools.pairwise(cuts))
    data.draw(st.randoms()).shuffle(spans)
    regions, expected, address = [], {}, 100
    flat = [(number, page) for number, count in enumerate(pages) for page in range(count)]
    for low, high in spans:
        regions.append(guest(address, high - low, low))
        expected.update({address + n: flat[low + n] for n in range(high - low)})
        address += high - low + data.draw(st.integers(0, 2))
    placed = place(regions, of(*(count * PAGE for count in pages)))
    found = {
        one.address // PAGE + n: (one.region, one.offset // PAGE + n)
        for one in placed
        for n in range(one.bytes // PAGE)
    }
    assert found == expected
    assert [one.address for one in placed] == sorted(one.address for one in placed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(json_values, st.binary(max_size=20), st.data())
def test_where_a_message_ends(value: object, rest: bytes, data: st.DataObject) -> None:
    """In whatever pieces it comes, and whatever is behind it"""
    if not isinstance(value, (list, dict)) or depth(value) > 12:
        return
    ascii_only = data.draw(st.booleans())
    text = b" \n" + json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    whole = text + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    scanner = MessageScanner()
    found = None
    for low, high in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        assert found is None
        if (found := scanner.feed(whole[low:high])) is not None:
            assert found == len(text)
            break
    assert found == len(text)


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    """Or is not whole yet; nothing else comes of it"""
    with contextlib.suppress(Refusal):
        end = MessageScanner().feed(data)
        if end is not None:
            parse_regions(parse_json(data[:end]))


messages = st.lists(
    st.dictionaries(
        st.sampled_from(["base_host_virt_addr", "size", "offset", "page_size", "page_size_kib"]),
        st.integers(0, 20).map(lambda n: n * PAGE) | st.integers() | st.text() | st.none(),
    ),
    max_size=4,
)


@settings(max_examples=300)
@given(messages | json_values, st.lists(st.integers(0, 40 * PAGE), max_size=4))
def test_what_is_accepted_can_be_served(message: object, lengths: list[int]) -> None:
    """Whatever comes through lies within the image, in whole pages, without overlaps"""
    try:
        regions = parse_regions(message)
        ranges = place(regions, of(*lengths))
    except Refusal:
        return
    assert sum(one.bytes for one in ranges) == sum(one.size for one in regions)
    for one in ranges:
        assert one.offset >= 0
        assert one.offset + one.bytes <= -(-lengths[one.region] // PAGE) * PAGE
        assert (one.address | one.offset | one.bytes) % PAGE == 0
        assert one.bytes > 0
    for key in ("address", "place"):
        spans = sorted(
            (one.address, one.address + one.bytes)
            if key == "address"
            else ((one.region << 64) + one.offset, (one.region << 64) + one.offset + one.bytes)
            for one in ranges
        )
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"\0\0", b"x", b"]", b'"', b"  7", b"[" * 17, b'[{"a":[' * 9],
    ids=repr,
)
def test_no_message_can_come_of_it(data: bytes) -> None:
    with pytest.raises(Refusal):
        MessageScanner().feed(data)


@pytest.mark.parametrize(
    "text",
    [b"[1,]", b"[NaN", b'{"a":1,"a":2}', b"[\xff]", b"[" + b"9" * 5000 + b"]", b"[1}", b"['']"],
    ids=lambda text: repr(text[:20]),
)
def test_no_json(text: bytes) -> None:
    with pytest.raises(Refusal):
        parse_json(text)


def test_endless_json_costs_its_length() -> None:
    """And is refused at the limit, in however small pieces it comes"""
    scanner = MessageScanner()
    assert scanner.feed(b'["') is None
    for _ in range(MESSAGE_BYTES_MAX - 2):
        assert scanner.feed(b"x") is None
    with pytest.raises(Refusal, match="longer"):
        scanner.feed(b"x")
