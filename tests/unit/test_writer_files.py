"""What an image keeps besides memory: files; and regions that are named when they are known."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writer_support import decode

import lazyrestore
from lazyrestore import ImageWriter
from lazyrestore._filemap import check_file_name, pack_files, unpack_files

NAMES = st.text(min_size=1, max_size=80).filter(
    lambda name: not set(name) & set("/\0") and name not in (".", "..") and is_utf8(name)
)


def is_utf8(name: str) -> bool:
    try:
        return len(name.encode()) < 256
    except UnicodeEncodeError:
        return False


@given(st.dictionaries(NAMES, st.binary(max_size=500), min_size=1))
def test_files_are_a_msgpack_map_in_order(files):
    packed = pack_files(files)
    in_order = sorted(files, key=str.encode)
    assert packed == msgpack.packb({name: files[name] for name in in_order})
    assert unpack_files(packed) == files
    assert list(unpack_files(bytearray(packed))) == in_order


@pytest.mark.parametrize("count", [15, 16, 65535, 65536])
def test_maps_of_any_length(count):
    files = {f"{number:05}": b"" for number in range(count)}
    assert pack_files(files) == msgpack.packb(files)
    assert unpack_files(pack_files(files)) == files


@given(st.dictionaries(NAMES, st.binary(max_size=50), min_size=1), st.data())
def test_any_damage_is_refused_or_read(files, data):
    packed = bytearray(pack_files(files))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    try:
        found = unpack_files(packed[: data.draw(st.integers(0, len(packed)))])
    except ValueError:
        return
    for name in found:
        check_file_name(name)


@settings(max_examples=20, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=5000)))
def test_an_image_keeps_files(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "image.lzr"
    with ImageWriter(path) as writer:
        for name, content in files.items():
            writer.add_file(name, bytearray(content))
        writer.add_region("memory")
        writer.write(b"x")
    assert decode(path).files == files
    with lazyrestore.open(path) as image:
        assert image.files == files
        assert image.has_files == bool(files)
        assert image.verify().damage == ()


def test_files_are_part_of_the_digest(tmp_path):
    digests = set()
    for files in ({}, {"a": b""}, {"b": b""}, {"a": b"1"}, {"a": b"", "b": b""}):
        with ImageWriter(tmp_path / "image.lzr", level=len(digests)) as writer:
            for name, content in files.items():
                writer.add_file(name, content)
            digests.add(writer.close().digest)
    assert len(digests) == 5


def test_files_in_another_order_are_the_same_image(tmp_path):
    digests = set()
    for names in ("abc", "cab"):
        with ImageWriter(tmp_path / "image.lzr") as writer:
            for name in names:
                writer.add_file(name, name.encode())
            digests.add(writer.close().digest)
    assert len(digests) == 1


def test_files_that_cannot_be(tmp_path):
    with ImageWriter(tmp_path / "image.lzr") as writer:
        writer.add_file("a", b"1")
        with pytest.raises(ValueError, match="has a file 'a' already"):
            writer.add_file("a", b"2")
        for name in ("", ".", "..", "a/b", "/a", "a\0b", "n" * 256, "ä" * 128, "\ud800"):
            with pytest.raises(ValueError, match=r"name|not the name of a file"):
                writer.add_file(name, b"")
        with pytest.raises(TypeError, match="is a str"):
            writer.add_file(b"a", b"")
        writer.add_file("half", bytes(33 << 20))
        with pytest.raises(ValueError, match="at most 64 MiB: make a region of it"):
            writer.add_file("other half", bytes(33 << 20))
        writer.add_file("n" * 255, b"1")
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        assert {name: len(data) for name, data in image.files.items()} == {
            "a": 1,
            "half": 33 << 20,
            "n" * 255: 1,
        }
    with pytest.raises(ValueError, match="is closed"):
        writer.add_file("late", b"")


def test_a_region_is_renamed_while_it_is_the_last(tmp_path):
    path = tmp_path / "image.lzr"
    with ImageWriter(path) as writer:
        with pytest.raises(ValueError, match="no region to rename"):
            writer.rename_region("x")
        writer.add_region("a")
        writer.write(b"1")
        writer.add_region("b-")
        writer.rename_region("b-1")
        writer.rename_region("b-1")
        writer.write(b"22")
        with pytest.raises(ValueError, match="has a region 'a' already"):
            writer.rename_region("a")
        with pytest.raises(ValueError, match="cannot be empty"):
            writer.rename_region("")
        writer.rename_region("b-2")
        writer.add_region("b-1")  # which is free again
        writer.add_region("b-")
        report = writer.close()
    assert [region.name for region in report.regions] == ["a", "b-2", "b-1", "b-"]
    decoded = decode(path)
    assert list(decoded.regions) == ["a", "b-2", "b-1", "b-"]
    assert decoded.content("b-2") == b"22"
    with lazyrestore.open(path) as image:
        assert image.verify().damage == ()
    with pytest.raises(ValueError, match="is closed"):
        writer.rename_region("late")
