"""What must not come later: memory that children find empty."""

from __future__ import annotations

import pytest
from criu_folders import message

from lazyrestore import ImageError
from lazyrestore._criu.mappings import not_lazy_in, wiped_on_fork
from lazyrestore._criu.pagemap import LAZY, PRESENT

PAGE = 4096
BOTH = LAZY | PRESENT
HEAD = bytes(8)


def mapping(start: int, end: int, advice: int | None) -> bytes:
    fields = [(1, start), (2, end), (8, 1)]
    return message(*fields, *([] if advice is None else [(9, advice)]))[4:]


def test_only_mappings_with_that_advice_are_wiped():
    found = message(
        (1, 5),
        (14, mapping(0x9000, 0xB000, 1 << 18 | 1 << 14)),
        (14, mapping(0x1000, 0x3000, None)),
        (14, mapping(0x4000, 0x5000, 1 << 10)),
        (14, mapping(0x6000, 0x7000, 1 << 18)),
    )
    assert wiped_on_fork(HEAD + found, "mm") == [(0x6000, 0x7000), (0x9000, 0xB000)]
    assert wiped_on_fork(HEAD, "mm") == []
    with pytest.raises(ImageError, match="mm-7 is damaged"):
        wiped_on_fork(HEAD + found[:-3], "mm-7")


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], [(16, 8, BOTH), (30, 2, PRESENT)]),
        ([(16, 24)], [(16, 8, PRESENT), (30, 2, PRESENT)]),
        ([(18, 20)], [(16, 2, BOTH), (18, 2, PRESENT), (20, 4, BOTH), (30, 2, PRESENT)]),
        ([(10, 17), (23, 31)], [(16, 1, PRESENT), (17, 6, BOTH), (23, 1, PRESENT), (30, 2, 4)]),
        ([(24, 30)], [(16, 8, BOTH), (30, 2, PRESENT)]),
    ],
)
def test_entries_are_cut_where_they_have_to_be(spans, expected):
    entries = [(16 * PAGE, 8, BOTH), (30 * PAGE, 2, PRESENT)]
    bounds = [(start * PAGE, end * PAGE) for start, end in spans]
    found = [(at // PAGE, pages, flags) for at, pages, flags in not_lazy_in(entries, bounds)]
    assert found == expected
