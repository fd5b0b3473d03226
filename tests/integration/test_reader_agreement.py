"""The C reader, `verify` and the second decoder say the same of every image in fixtures/."""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

import pytest
import zstandard
from agreement import PINNED, judge
from image_files import EXPECTED, FIXTURES
from image_surgery import Surgery, settle

sys.path.insert(0, str(FIXTURES))
import make_fixtures

FUZZ = sorted(path.stem for path in (FIXTURES / "fuzz").glob("*.lzr"))


@pytest.mark.parametrize("name", EXPECTED["golden"])
def test_all_accept_every_golden_image(name: str) -> None:
    verdicts = judge(FIXTURES / f"{name}.lzr")
    assert (verdicts.core, verdicts.verify, verdicts.decoder) == (None, None, None)


@pytest.mark.parametrize("name", EXPECTED["broken"])
def test_broken_images_are_refused_where_they_must_be(name: str) -> None:
    """The decoder and verify refuse all; the core those that cannot be read, by their codes"""
    expected = EXPECTED["broken"][name]
    verdicts = judge(FIXTURES / "broken" / f"{name}.lzr")
    assert verdicts.decoder is not None
    assert verdicts.verify is not None
    assert verdicts.core == (expected["code"] or None)


@pytest.mark.parametrize("name", FUZZ)
def test_images_that_fuzzing_left(name: str, tmp_path: Path) -> None:
    """As they are; and with tallies and digest that fit them, so that more of them are sound"""
    path = FIXTURES / "fuzz" / f"{name}.lzr"
    judge(path)
    copy = tmp_path / "settled.lzr"
    shutil.copyfile(path, copy)
    if settle(copy):
        judge(copy)


def changed(tmp_path: Path, image: str, **values: int) -> Path:
    """A golden image with one field or more changed, all checksums, tallies and digest right"""
    surgery = Surgery((FIXTURES / f"{image}.lzr").read_bytes())
    for name, value in values.items():
        field = next(f for f in surgery.fields() if f.name == name.replace("__", "."))
        assert field.get(surgery.data) != value
        field.put(surgery.data, value)
    path = tmp_path / "changed.lzr"
    path.write_bytes(surgery.reseal())
    settle(path)
    return path


def test_compatible_features_are_for_readers_to_ignore(tmp_path: Path) -> None:
    """Pinned: where the decoder is the stricter one on purpose"""
    verdicts = judge(changed(tmp_path, "mixed", footer__compatible=4))
    assert (verdicts.core, verdicts.verify) == (None, None)
    assert verdicts.decoder == "features"
    assert verdicts.decoder in PINNED


def draft(tmp_path: Path, changes: dict[str, object], cells: dict[int, dict[str, object]]) -> Path:
    """The small sound image of make_fixtures.py with something else in it, made right again"""
    made = make_fixtures.Draft()
    for name, value in changes.items():
        setattr(made, name, value)
    for number, cell in cells.items():
        for name, value in cell.items():
            setattr(made.cells[number], name, value)
    path = tmp_path / "draft.lzr"
    path.write_bytes(made.build())
    assert settle(path)
    return path


def with_checksum() -> bytes:
    compress = zstandard.ZstdCompressor(level=3, write_checksum=True).compress
    return compress(make_fixtures.Draft().cells[0].data)


@pytest.mark.parametrize(
    ("reason", "changes", "cells"),
    [
        ("header's features", {"header_changes": {"compatible": 1}}, {}),
        ("every cluster record is used", {"before_node": b"\x81\xa7cluster\xc4\1x"}, {}),
        ("every index record is used", {"before_node": b"\x81\xa5index\xc4\1x"}, {}),
        ("a plain frame", {}, {n: {"payload": with_checksum()} for n in (0, 6)}),
    ],
)
def test_what_only_writers_must_do(
    tmp_path: Path, reason: str, changes: dict[str, object], cells: dict[int, dict[str, object]]
) -> None:
    """Pinned: the decoder alone asks for it, and what is read is right all the same"""
    assert reason in PINNED
    verdicts = judge(draft(tmp_path, changes, cells))
    assert (verdicts.core, verdicts.verify, verdicts.decoder) == (None, None, reason)


def test_an_address_is_not_part_of_what_is_checked(tmp_path: Path) -> None:
    """An image that was changed and is sound again is accepted by all"""
    verdicts = judge(changed(tmp_path, "mixed", region__address=0x1000))
    assert (verdicts.core, verdicts.verify, verdicts.decoder) == (None, None, None)


def test_all_refuse_a_reference_that_contradicts_itself(tmp_path: Path) -> None:
    """Once `verify` did not, and would have asked the core for each of 2^24 clusters below it"""
    surgery = Surgery((FIXTURES / "tall_tree.lzr").read_bytes())
    field = next(
        f for f in surgery.fields() if f.name == "entry.reserved" and surgery.data[f.offset - 1] < 2
    )
    field.put(surgery.data, 1)
    path = tmp_path / "changed.lzr"
    path.write_bytes(surgery.reseal())
    verdicts = judge(path)
    assert verdicts.core == "LR_ERR_NODE"
    assert verdicts.verify == "an index entry contradicts itself"
    assert verdicts.decoder == "reference reserved"


def test_all_refuse_a_footer_within_a_footer(tmp_path: Path) -> None:
    """Once `verify` followed the records to the file's end, whatever the last of them was"""
    data = (FIXTURES / "one_byte.lzr").read_bytes()
    head = b"\x81\xa6footer\xc5\x00\xca"  # a bin of 202 bytes: the true footer's whole record
    surgery = Surgery(data[:-202] + head + data[-202:])
    struct.pack_into("<Q", surgery.data, surgery.footer + 80, len(surgery.data))
    path = tmp_path / "changed.lzr"
    path.write_bytes(surgery.reseal())
    verdicts = judge(path)
    assert verdicts.core is None
    assert "not the footer at the file's end" in str(verdicts.verify)
    assert verdicts.decoder == "footer has 192 bytes"


def test_all_refuse_an_index_of_no_clusters(tmp_path: Path) -> None:
    """Once `verify` did not look at it"""
    surgery = Surgery((FIXTURES / "empty_region.lzr").read_bytes())
    surgery.data[surgery.root + 72 + 16] = 1
    path = tmp_path / "changed.lzr"
    path.write_bytes(surgery.reseal())
    verdicts = judge(path)
    assert verdicts.core is None
    assert "no clusters, and yet an index" in str(verdicts.verify)
    assert verdicts.decoder == "the tree of an empty image"
