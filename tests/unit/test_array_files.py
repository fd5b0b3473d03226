"""Files of arrays as sources, and regions as such files: .npy, .npz, .safetensors."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from restore_support import run_in_child

import lazyrestore
from lazyrestore import LazyRestoreError, NpyFile, NpzFile, SafetensorsFile
from lazyrestore._dtypes import parse
from lazyrestore._export import ExportReport, write_arrays
from lazyrestore.sources.buffer import width_of

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOT_A_FIXTURE_AT_FAULT = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "arrays.lzr"


def export(image: Path, to: Path, *names: str, format: str | None = None) -> ExportReport:
    with lazyrestore.open(image) as opened:
        numbers = [opened.number(name) for name in names] or range(len(opened.regions))
        return write_arrays(opened, list(numbers), str(to), format or to.suffix[1:])


def metadata(image: Path) -> dict[str, Any]:
    with lazyrestore.open(image) as opened:
        return {region.name: opened.metadata(region.name) for region in opened.regions}


def content(image: Path) -> dict[str, bytes]:
    with lazyrestore.open(image) as opened:
        return {region.name: opened.read(region.name) for region in opened.regions}


def refused(source: Any, image: Path, *words: str) -> None:
    """One line that says why and names the file; nothing is left."""
    image.write_bytes(b"old")
    with pytest.raises(LazyRestoreError) as caught:
        lazyrestore.dump(source, image)
    assert type(caught.value) is LazyRestoreError
    for word in (*words, source._path):
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)
    assert image.read_bytes() == b"old"
    assert not [name for name in os.listdir(image.parent) if name.endswith(".tmp")]


def dumped(source: Any, image: Path) -> bool:
    """Whether it was dumped; if not, it was refused as it should be."""
    image.unlink(missing_ok=True)
    try:
        lazyrestore.dump(source, image)
    except LazyRestoreError:
        refused(source, image)
        return False
    return True


# ---- .npy ----------------------------------------------------------------------------------------

_DTYPES = st.one_of(
    st_numpy.scalar_dtypes(),
    st_numpy.byte_string_dtypes(max_len=9),
    st_numpy.unicode_string_dtypes(max_len=9),
    st_numpy.nested_dtypes(max_itemsize=300),
)
_ARRAYS = st_numpy.arrays(
    _DTYPES.filter(lambda dtype: not dtype.hasobject),
    st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


def saved(array: numpy.ndarray, path: Path) -> bool:
    """Whether numpy saved it; of some dtypes it forgets what they are."""
    try:
        with warnings.catch_warnings(action="ignore"):
            numpy.save(path, array, allow_pickle=False)
    except ValueError:
        return False
    return numpy.load(path).dtype == array.dtype


@settings(max_examples=60, deadline=None, suppress_health_check=NOT_A_FIXTURE_AT_FAULT)
@given(array=_ARRAYS, is_turned=st.booleans())
def test_npy_there_and_back(array: Any, is_turned: bool, image: Path) -> None:
    """What numpy.save wrote is read, and written again byte for byte"""
    path, again = image.with_name("x.npy"), image.with_name("again.npy")
    array = array.T if is_turned else array
    if not saved(array, path):
        return
    lazyrestore.dump(NpyFile(path), image)
    with lazyrestore.load(image) as loaded:
        made = loaded["memory"]
        assert (made.dtype, made.shape) == (array.dtype, array.shape)
        assert made.tobytes() == array.tobytes()
    export(image, again)
    assert again.read_bytes() == path.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=NOT_A_FIXTURE_AT_FAULT)
@given(array=_ARRAYS)
def test_an_array_is_written_as_numpy_writes_it(array: Any, image: Path) -> None:
    path, ours = image.with_name("x.npy"), image.with_name("ours.npy")
    if not saved(array, path):
        return
    lazyrestore.dump({"x": array}, image)
    export(image, ours)
    assert ours.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_npy(version: tuple[int, int], image: Path) -> None:
    path = image.with_name("x.npy")
    with open(path, "wb") as file:
        numpy.lib.format.write_array(file, numpy.arange(5.0), version)
    lazyrestore.dump(NpyFile(path, name="numbers"), image)
    assert numpy.array_equal(lazyrestore.load(image)["numbers"], numpy.arange(5.0))


def test_fields_with_names_of_all_kinds(image: Path) -> None:
    path = image.with_name("x.npy")
    fields: Any = [(("title", "a'b"), "<f4"), ('q"\\', ">i2", (2, 3)), ("ä€", [("n", "S3")])]
    array = numpy.zeros(3, fields)
    array["a'b"] = 1, 2, 3
    numpy.lib.format.write_array(open(path, "wb"), array, (3, 0))  # noqa: SIM115
    lazyrestore.dump(NpyFile(path), image)
    made = lazyrestore.load(image)["memory"]
    assert made.dtype == array.dtype
    assert made.dtype.fields.keys() == array.dtype.fields.keys()
    assert made.tobytes() == array.tobytes()
    export(image, image.with_name("y.npy"))
    assert image.with_name("y.npy").read_bytes() == path.read_bytes()


def test_what_python_2_wrote(image: Path) -> None:
    header = b"{'descr': [(u'a', '<f4')], 'fortran_order': False, 'shape': (2L, 1L)}\n"
    path = image.with_name("x.npy")
    path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(8))
    lazyrestore.dump(NpyFile(path), image)
    assert lazyrestore.load(image)["memory"].shape == (2, 1)


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\0") -> bytes:
    size = struct.pack("<H" if version == b"\x01\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


def said(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


_BAD_NPY: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not in numpy's"),
    "text": (b"some text that is no array", "not in numpy's"),
    "magic only": (b"\x93NUMPY", "cut short"),
    "no size": (b"\x93NUMPY\x01\0\x05", "cut short"),
    "no header": (b"\x93NUMPY\x01\0\x46\0", "cut short"),
    "version": (npy(said(), bytes(8), b"\x09\0"), "version 9.0"),
    "huge header": (b"\x93NUMPY\x02\0" + struct.pack("<I", 4 << 20) + bytes(50), "4194304"),
    "cut data": (npy(said(), bytes(7)), "cut short"),
    "more data": (npy(said(), bytes(9)), "goes on"),
    "objects": (npy(said("'|O'"), bytes(16)), "objects"),
    "objects inside": (npy(said("[('a', [('b', '|O')])]"), bytes(16)), "objects"),
    "not a dict": (npy(b"[1, 2]"), "header"),
    "no shape": (npy(b"{'descr': '<f4', 'fortran_order': False}"), "header"),
    "another key": (npy(said()[:-3] + b"'x': 5}"), "header"),
    "key twice": (npy(b"{'descr': '<f4', 'descr': '<f4', 'shape': ()}"), "header"),
    "code": (npy(said(shape="(__import__('os').getpid(),)")), "header"),
    "arithmetic": (npy(said(shape="(9**9,)")), "header"),
    "order": (npy(said(order="5"), bytes(8)), "fortran_order"),
    "shape": (npy(said(shape="5"), bytes(20)), "tuple"),
    "negative": (npy(said(shape="(-5,)")), "header"),
    "true": (npy(said(shape="(True,)"), bytes(4)), "shape"),
    "overflow": (npy(said(shape="(4294967296, 4294967296, 4294967296)")), "memory"),
    "overflow to 0": (npy(said(shape="(9223372036854775808, 2)")), "shape"),
    "digits": (npy(said(shape="(" + "9" * 5000 + ",)")), "header"),
    "dimensions": (npy(said(shape="(" + "1," * 65 + ")"), bytes(4)), "shape"),
    "unknown dtype": (npy(said("'<q9'"), bytes(18)), "dtype"),
    "itemsize": (npy(said("'<f5'"), bytes(10)), "dtype"),
    "huge text": (npy(said("'<U99999999999999999'")), "dtype"),
    "huge structure": (npy(said("[('a', '|V1099511627775', (9999999, 99999999))]")), "memory"),
    "field names": (npy(said("[('a', '<f4'), ('a', '<f4')]"), bytes(16)), "two fields"),
    "fields": (npy(said("[5]"), bytes(16)), "field"),
    "nested": (npy(said("[('a', " * 500 + "'<f4'" + ")]" * 500), bytes(8)), "nested"),
    "brackets": (npy(b"(" * 60000), "nested"),
    "unclosed": (npy(b"{'descr': '<f4'"), "header"),
    "quote": (npy(b"{'" + b"\\" * 60001), "header"),
    "escape": (npy(said(r"'\xzz'"), bytes(8)), "header"),
    "bytes": (npy(said("b'<f4'"), bytes(8)), "header"),
    "not utf-8": (npy(b"{'\xff'", b"", b"\x03\0"), "header"),
    "two values": (npy(said() + b"5", bytes(8)), "header"),
}


@pytest.mark.parametrize("name", _BAD_NPY)
def test_what_is_no_npy_file(name: str, image: Path) -> None:
    path = image.with_name("bad.npy")
    raw, word = _BAD_NPY[name]
    path.write_bytes(raw)
    refused(NpyFile(path), image, word)
    (archive := image.with_name("bad.npz")).unlink(missing_ok=True)
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.npy", raw)
    refused(NpzFile(archive), image, "a.npy")


@settings(max_examples=150, deadline=None, suppress_health_check=NOT_A_FIXTURE_AT_FAULT)
@given(data=st.data())
def test_damaged_headers(data: Any, image: Path) -> None:
    """Whatever a header says: what is dumped is what numpy would read, or it is refused"""
    path = image.with_name("x.npy")
    raw = bytearray(npy(said("[('a', '<f4'), ('b', '>i2', (2,))]", shape="(3, 2)"), bytes(48)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 49))
        raw[at] = data.draw(st.integers(0, 255) | st.sampled_from(list(b"'()[]{},:0129")))
    path.write_bytes(raw)
    if not dumped(NpyFile(path), image):
        return
    made = lazyrestore.load(image)["memory"]
    expected = numpy.load(path)
    assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
    assert made.tobytes() == expected.tobytes()


# ---- .npz ----------------------------------------------------------------------------------------

_NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\\"), min_size=1, max_size=9
)


@settings(max_examples=40, deadline=None, suppress_health_check=NOT_A_FIXTURE_AT_FAULT)
@given(arrays=st.dictionaries(_NAMES, _ARRAYS, max_size=4), compressed=st.booleans())
def test_npz_there_and_back(arrays: dict[str, Any], compressed: bool, image: Path) -> None:
    path, again, third = (image.with_name(name) for name in ("x.npz", "again.npz", "third.npz"))
    arrays = {
        name: array for name, array in arrays.items() if saved(array, image.with_name("x.npy"))
    }
    save(path, arrays, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    lazyrestore.dump(NpzFile(path), image)
    with lazyrestore.load(image) as loaded:
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
            assert loaded[name].tobytes() == array.tobytes()
    export(image, again)
    with numpy.load(again) as written:
        assert written.files == list(arrays)
        for name, array in arrays.items():
            assert written[name].dtype == array.dtype
            assert written[name].tobytes() == array.tobytes()
    save(third, arrays, zipfile.ZIP_STORED)
    assert again.read_bytes() == third.read_bytes()


def save(path: Path, arrays: dict[str, Any], method: int) -> None:
    """As numpy.savez, whose keyword arguments cannot have every name."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                numpy.lib.format.write_array(member, array, allow_pickle=False)


def test_as_numpy_writes_it(image: Path) -> None:
    arrays = {"x": numpy.arange(300_000), "f": numpy.asfortranarray(numpy.ones((300, 3)))}
    path, again = image.with_name("x.npz"), image.with_name("again.npz")
    for write in (numpy.savez, numpy.savez_compressed):
        write(path, **arrays)
        lazyrestore.dump(NpzFile(path), image)
        report = export(image, again)
        assert report.regions == ("x", "f")
        numpy.savez(path, **arrays)
        assert again.read_bytes() == path.read_bytes()
    assert report.logical_bytes == report.data_bytes == 2_407_200


def test_a_part_of_an_image(image: Path) -> None:
    lazyrestore.dump({"a": numpy.arange(3), "b": b"bytes", "c": numpy.ones(2)}, image)
    export(image, image.with_name("x.npz"), "c", "b")
    with numpy.load(image.with_name("x.npz")) as written:
        assert written.files == ["c", "b"]
        assert written["b"].dtype == numpy.uint8
        assert bytes(written["b"]) == b"bytes"


def test_members_that_are_no_arrays(image: Path) -> None:
    path = image.with_name("x.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "some text")
        archive.writestr("folder/a.npy", npy(said(), bytes(8)))
    lazyrestore.dump(NpzFile(path), image)
    assert content(image) == {"readme.txt": b"some text", "folder/a": bytes(8)}
    assert metadata(image)["readme.txt"] == {}


def broken(change: Callable[[bytearray], None], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of two members that was changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.npy", npy(said(shape="(50,)"), bytes(range(200))))
        archive.writestr("b.npy", npy(said(shape="(50,)"), bytes(range(200))))
    raw = bytearray(file.getvalue())
    change(raw)
    return bytes(raw)


def put(at: int, new: bytes) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        start = at % len(raw)
        raw[start : start + len(new)] = new

    return change


def in_directory(offset: int, new: bytes) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        start = raw.index(b"PK\x01\x02") + offset
        raw[start : start + len(new)] = new

    return change


def cut(raw: bytearray) -> None:
    del raw[150:400]


_BAD_NPZ: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a .npz"),
    "an .npy file": (npy(said(), bytes(8)), "not a .npz"),
    "cut off": (broken(lambda raw: raw.__delitem__(slice(300, None))), "not a .npz"),
    "a piece is missing": (broken(cut), ".npz"),
    "data": (broken(put(200, b"\xaa\xbb")), "a.npy"),
    "data, deflated": (broken(put(60, b"\xaa\xbb\xcc"), zipfile.ZIP_DEFLATED), "a.npy"),
    "checksum": (broken(in_directory(16, b"\1\2\3\4")), "a.npy"),
    "encrypted": (broken(in_directory(8, b"\1")), "decrypt it first"),
    "method": (broken(in_directory(10, b"\x0e")), "method 14"),
    "length": (broken(in_directory(24, b"\xff\xff\xff")), "a.npy"),
    "stored length": (broken(in_directory(20, b"\x90\0\0")), "a.npy"),
    "place": (broken(in_directory(42, b"\xff\xff\xff\x7f")), "a.npy"),
    "name": (broken(in_directory(46, b"b.npy")), ".npy"),
    "size of the directory": (broken(put(-10, b"\xff\xff\xff\xff")), ".npz"),
    "place of the directory": (broken(put(-6, b"\xff\xff\xff\x0f")), ".npz"),
}


@pytest.mark.parametrize("name", _BAD_NPZ)
def test_what_is_no_npz_file(name: str, image: Path) -> None:
    path = image.with_name("bad.npz")
    raw, word = _BAD_NPZ[name]
    path.write_bytes(raw)
    refused(NpzFile(path), image, word)


def test_arrays_of_objects_are_named(image: Path) -> None:
    path = image.with_name("x.npz")
    numpy.savez(path, fine=numpy.arange(3), wrong=numpy.array([1, None]))
    refused(NpzFile(path), image, "wrong.npy", "objects", "dump_pickle")


def test_names_that_cannot_be(image: Path) -> None:
    path = image.with_name("x.npz")
    for name, word in ((".npy", "empty"), ("x" * 5000 + ".npy", "4096"), ("a", "two members")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", npy(said(), bytes(8)))
            archive.writestr(name, npy(said(), bytes(8)))
        refused(NpzFile(path), image, word)


@settings(max_examples=150, deadline=None, suppress_health_check=NOT_A_FIXTURE_AT_FAULT)
@given(data=st.data(), method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_damaged_archives(data: Any, method: int, image: Path) -> None:
    """Whatever an archive says: it is refused, or its bytes are right, which its CRCs say"""
    path = image.with_name("x.npz")
    raw = bytearray(broken(lambda raw: None, method))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(raw)))
        del raw[start : data.draw(st.integers(start, len(raw)))]
    path.write_bytes(raw)
    if not dumped(NpzFile(path), image):
        return
    assert all(read[-20:] == bytes(range(200))[-20:] for read in content(image).values())


def test_a_directory_that_is_too_long(image: Path) -> None:
    """Its length is not taken for how much memory there may be"""
    path = image.with_name("x.npz")
    with open(path, "wb") as file:
        file.truncate(100 * MIB)
        file.seek(0, os.SEEK_END)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 100 * MIB, 0, 0)
        file.write(end)
    refused(NpzFile(path), image, "64 MiB")


def test_memory_does_not_grow(image: Path) -> None:
    """A deflated member of 600 MiB, and back: in a child that may have 300"""
    path = image.with_name("x.npz")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(said("'|u1'", shape=f"({600 * MIB},)")))
        block = random.Random(1).randbytes(4096) + bytes(MIB - 4096)
        for _ in range(600):
            member.write(block)
    script = """
    import sys
    import lazyrestore
    from lazyrestore._export import write_arrays
    from resident import resident_peak

    lazyrestore.dump(lazyrestore.NpzFile(sys.argv[1]), sys.argv[2], level=1)
    with lazyrestore.open(sys.argv[2]) as image:
        assert image.regions[0].length == 600 << 20
        for format in ("npz", "npy", "safetensors"):
            write_arrays(image, [0], sys.argv[3] + format, format)
    assert resident_peak() < 300 << 20
    assert "numpy" not in sys.modules
    """
    run_in_child(script, path, image, image.with_name("out."), timeout=120)
    for ending in ("npz", "npy", "safetensors"):
        out = image.with_name(f"out.{ending}")
        assert out.stat().st_size > 600 * MIB
        if ending != "npz":
            assert out.stat().st_blocks * 512 < 500 * MIB  # zeros are holes


def test_members_of_more_than_4_gib(image: Path) -> None:
    """Whose lengths take 64 bits in the archive; almost all of it is a hole"""
    out = image.with_name("x.npz")
    with lazyrestore.ImageWriter(image) as writer:
        writer.add_region("large")
        writer.zero(5 * GIB)
        writer.write(b"end")
        writer.add_region("small", metadata={"array": {"dtype": "<i2", "shape": [2]}})
        writer.write(b"\1\0\2\0")
    report = export(image, out)
    assert report.logical_bytes == 5 * GIB + 7
    assert report.data_bytes < MIB
    assert out.stat().st_blocks * 512 < 64 * MIB
    with zipfile.ZipFile(out) as archive:
        large, _ = archive.infolist()
        assert large.file_size == large.compress_size == 128 + 5 * GIB + 3
        with open(out, "rb") as file:
            file.seek(archive.start_dir)
            assert file.read(4) == b"PK\x01\x02"
    with numpy.load(out) as written:
        assert written["small"].tolist() == [1, 2]


# ---- .safetensors --------------------------------------------------------------------------------


def tensors(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def one(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


@settings(max_examples=50, deadline=None, suppress_health_check=NOT_A_FIXTURE_AT_FAULT)
@given(data=st.data())
def test_safetensors_there_and_back(data: Any, image: Path) -> None:
    """What the safetensors package wrote is read, and written again byte for byte"""
    safetensors = pytest.importorskip("safetensors.numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    simple = ["bool", "u1", "i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"]
    kinds = [*map(numpy.dtype, [*simple, "<c8"])]
    kinds += [numpy.dtype(ml_dtypes.bfloat16)]
    made: dict[str, Any] = {}
    for name in data.draw(st.lists(_NAMES, unique=True, max_size=5)):
        kind = data.draw(st.sampled_from(kinds))
        shape = data.draw(st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4))
        raw = random.Random(name).randbytes(kind.itemsize * int(numpy.prod(shape, dtype=int)))
        if kind.kind == "b":
            raw = bytes(byte & 1 for byte in raw)
        made[name] = numpy.frombuffer(bytearray(raw), numpy.uint8).view(kind).reshape(shape)
    # Of several keys the package has its own order; without any it may write what is no JSON.
    one_key = st.dictionaries(_NAMES, st.text(max_size=5), min_size=1, max_size=1)
    about = data.draw(st.none() | one_key)
    path, again = image.with_name("x.safetensors"), image.with_name("again.safetensors")
    try:
        safetensors.save_file(made, path, metadata=about)
    except Exception:  # surrogates, names of its own
        return
    lazyrestore.dump(SafetensorsFile(path), image)
    with lazyrestore.load(image) as loaded:
        assert set(loaded) == set(made)
        for name, array in made.items():
            assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
            assert loaded[name].tobytes() == array.tobytes()
    export(image, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"])
def test_small_types(dtype: str, image: Path) -> None:
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(dtype, 8)
    nbytes = 64 * bits // 8
    header = f'{{"a":{one(dtype, "[4,16]", f"[0,{nbytes}]")}}}'
    path, again = image.with_name("x.safetensors"), image.with_name("again.safetensors")
    path.write_bytes(tensors(header + " " * (-len(header) % 8), os.urandom(nbytes)))
    lazyrestore.dump(SafetensorsFile(path), image)
    export(image, again)
    assert again.read_bytes() == path.read_bytes()
    if bits == 8:
        pytest.importorskip("ml_dtypes")
        assert lazyrestore.load(image)["a"].shape == (4, 16)
    else:
        assert lazyrestore.load(image)["a"].shape == (nbytes,)


def test_metadata_is_kept(image: Path) -> None:
    path, again = image.with_name("x.safetensors"), image.with_name("again.safetensors")
    about = '{"__metadata__":{"format":"pt","ä":"\\u0001 \\"quoted\\""},"a":' + one() + "}"
    path.write_bytes(tensors(about + " " * (-len(about.encode()) % 8), bytes(8)))
    lazyrestore.dump(SafetensorsFile(path), image)
    with lazyrestore.open(image) as opened:
        assert list(opened.files) == ["safetensors.json"]
    export(image, again)
    assert again.read_bytes() == path.read_bytes()


def test_tensors_in_any_order(image: Path) -> None:
    """The header's order need not be that of the bytes, and blanks may stand anywhere"""
    path = image.with_name("x.safetensors")
    third = one("U8", "[0]", "[8,8]")
    header = f'{{ "b" : {one("U8", "[3]", "[ 8 , 11 ]")} ,\n "a":{one()},"e":{third}}}'
    path.write_bytes(tensors(header, b"12345678abc"))
    lazyrestore.dump(SafetensorsFile(path), image)
    assert content(image) == {"a": b"12345678", "e": b"", "b": b"abc"}


_BAD_TENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not in the safetensors format"),
    "short": (b"12345678", "not in the safetensors format"),
    "text": (b"some text that is no tensor", "not in the safetensors format"),
    "array": (tensors("[1]"), "not in the safetensors format"),
    "length": (struct.pack("<Q", 1 << 62) + b"{}", "4611686018427387904"),
    "cut header": (struct.pack("<Q", 50) + b"{}", "cut short"),
    "cut data": (tensors(f'{{"a":{one()}}}', bytes(7)), "cut short"),
    "more data": (tensors(f'{{"a":{one()}}}', bytes(9)), "is damaged"),
    "not utf-8": (tensors(b'{"\xff":5}'), "UTF-8"),
    "surrogate": (tensors(f'{{"\\ud800":{one()}}}', bytes(8)), "Unicode"),
    "no name": (tensors(f'{{"":{one()}}}', bytes(8)), "empty"),
    "long name": (tensors(f'{{"{"x" * 5000}":{one()}}}', bytes(8)), "4096"),
    "name twice": (tensors(f'{{"a":{one()},"a":{one()}}}', bytes(8)), "twice"),
    "key twice": (tensors('{"a":{"dtype":"U8","dtype":"U8"}}'), "twice"),
    "metadata twice": (tensors('{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "metadata": (tensors('{"__metadata__":{"a":5}}'), "missing"),
    "another key": (tensors(f'{{"a":{one()[:-1]},"x":5}}}}', bytes(8)), "'x'"),
    "no shape": (tensors('{"a":{"dtype":"U8","data_offsets":[0,0]}}'), "shape"),
    "number": (tensors('{"a":5}'), "missing"),
    "dtype": (tensors(f'{{"a":{one("X9")}}}', bytes(8)), "'X9'"),
    "bits": (tensors(f'{{"a":{one("F4", "[3]", "[0,2]")}}}', bytes(2)), "not whole"),
    "negative": (tensors(f'{{"a":{one(shape="[-2]")}}}', bytes(8)), "whole numbers"),
    "fraction": (tensors(f'{{"a":{one(shape="[2.0]")}}}', bytes(8)), "whole numbers"),
    "exponent": (tensors(f'{{"a":{one(shape="[2e0]")}}}', bytes(8)), "whole numbers"),
    "leading zero": (tensors(f'{{"a":{one(shape="[02]")}}}', bytes(8)), "character"),
    "digits": (tensors(f'{{"a":{one(shape="[" + "9" * 9999 + "]")}}}', bytes(8)), "character"),
    "overflow": (tensors(f'{{"a":{one(shape="[4294967296,4294967296,2]")}}}', bytes(8)), "memory"),
    "dimensions": (tensors(f'{{"a":{one(shape="[" + "1," * 80 + "2]")}}}', bytes(8)), "whole"),
    "length of one": (tensors(f'{{"a":{one(shape="[3]")}}}', bytes(8)), "12 would be right"),
    "turned offsets": (tensors(f'{{"a":{one(offsets="[8,0]")}}}', bytes(8)), "data_offsets"),
    "three offsets": (tensors(f'{{"a":{one(offsets="[0,8,9]")}}}', bytes(8)), "data_offsets"),
    "gap": (tensors(f'{{"a":{one(offsets="[1,9]")}}}', bytes(9)), "does not begin"),
    "overlap": (
        tensors(f'{{"a":{one()},"b":{one(offsets="[4,12]")}}}', bytes(12)),
        "does not begin",
    ),
    "same place": (tensors(f'{{"a":{one()},"b":{one()}}}', bytes(8)), "does not begin"),
    "nested": (tensors('{"a":' + "[" * 100_000), "missing"),
    "nested objects": (tensors('{"a":' * 100_000), "has"),
    "comma": (tensors(f'{{"a":{one()},}}', bytes(8)), "missing"),
    "behind": (tensors(f'{{"a":{one()}}}x', bytes(8)), "follows"),
    "control character": (tensors(f'{{"a\n":{one()}}}', bytes(8)), "character"),
}


@pytest.mark.parametrize("name", _BAD_TENSORS)
def test_what_is_no_safetensors_file(name: str, image: Path) -> None:
    path = image.with_name("bad.safetensors")
    raw, word = _BAD_TENSORS[name]
    path.write_bytes(raw)
    refused(SafetensorsFile(path), image, word)


@settings(max_examples=150, deadline=None, suppress_health_check=NOT_A_FIXTURE_AT_FAULT)
@given(data=st.data())
def test_damaged_tensors(data: Any, image: Path) -> None:
    """Whatever a header says: what is dumped is what the package reads, or it is refused"""
    safetensors = pytest.importorskip("safetensors.numpy")
    path = image.with_name("x.safetensors")
    header = f'{{"a":{one()},"b":{one("U16", "[2,2]", "[8,16]")}}}'
    raw = bytearray(tensors(header, bytes(range(16))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 17))
        raw[at] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'"[]{},:0129')))
    path.write_bytes(raw)
    if not dumped(SafetensorsFile(path), image):
        return
    expected = safetensors.load(bytes(raw))
    with lazyrestore.load(image) as loaded:
        assert set(loaded) == set(expected)
        for name, array in expected.items():
            assert loaded[name].tobytes() == array.tobytes()


def test_a_header_costs_no_more_than_it_is_long(image: Path) -> None:
    """90 MB of what is no tensor are refused at the first of it, not built up"""
    path = image.with_name("x.safetensors")
    path.write_bytes(tensors(b'{"a":[' + b"[]," * (30 << 20)))
    script = """
    import sys
    import lazyrestore
    from resident import resident_peak
    try:
        lazyrestore.dump(lazyrestore.SafetensorsFile(sys.argv[1]), sys.argv[2])
    except lazyrestore.LazyRestoreError:
        pass
    else:
        raise AssertionError("it was dumped")
    assert resident_peak() < 400 << 20
    """
    run_in_child(script, path, image)


def test_big_endian_numbers_are_turned(image: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    out = image.with_name("x.safetensors")
    made = {
        kind: numpy.arange(1, 5000).astype(kind) for kind in (">f4", ">i2", ">u8", ">c8", ">f8")
    }
    lazyrestore.dump(made, image)
    export(image, out)
    loaded = safetensors.load_file(out)
    for name, array in made.items():
        assert loaded[name].dtype == array.dtype.newbyteorder("<")
        assert numpy.array_equal(loaded[name], array)


def test_tensors_are_aligned(image: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    out = image.with_name("x.safetensors")
    made = {"a": numpy.ones(3, "u1"), "b": numpy.ones(3, "<f8"), "c": numpy.ones(5, "<f4")}
    lazyrestore.dump(made, image)
    export(image, out)
    raw = out.read_bytes()
    assert raw.index(b'"b"') < raw.index(b'"c"') < raw.index(b'"a"')
    loaded = safetensors.load_file(out)
    assert all(numpy.array_equal(loaded[name], made[name]) for name in made)


# ---- What a format cannot have -------------------------------------------------------------------


def test_arrays_that_a_format_does_not_have(image: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    made = {
        "text": numpy.array(["ä"]),
        "date": numpy.array(["2026"], "M8[D]"),
        "fields": numpy.zeros(2, [("a", "<f4")]),
        "complex": numpy.zeros(2, "<c16"),
        "turned": numpy.asfortranarray(numpy.ones((3, 2))),
        "brain": numpy.zeros(3, ml_dtypes.bfloat16),
        "__metadata__": numpy.zeros(3),
        "a\0b": numpy.zeros(3),
    }
    lazyrestore.dump(made, image)
    for ending, names in (
        ("safetensors", ["text", "date", "fields", "complex", "turned", "__metadata__"]),
        ("npz", ["brain", "a\0b"]),
    ):
        out = image.with_name(f"x.{ending}")
        for name in made:
            if name in names:
                with pytest.raises(ValueError, match="region") as caught:
                    export(image, out, name)
                assert repr(name) in str(caught.value)
                assert "write" in str(caught.value)
                assert not out.exists()
            else:
                export(image, out, name)
                out.unlink()
    with pytest.raises(ValueError, match="image itself"):
        export(image, image, "text", format="npy")


def test_fortran_order_of_one_row(image: Path) -> None:
    """Is C order too"""
    made = numpy.arange(5, dtype="<i4").reshape(1, 5, 1)
    with lazyrestore.ImageWriter(image) as writer:
        said = {"dtype": "<i4", "shape": [1, 5, 1], "order": "F"}
        writer.add_region("a", metadata={"array": said})
        writer.write(made.tobytes())
    out = image.with_name("x.safetensors")
    export(image, out)
    assert out.read_bytes()[-20:] == made.tobytes()


@pytest.mark.parametrize(
    "described",
    [
        5,
        {},
        {"dtype": "<f4"},
        {"dtype": "<f4", "shape": [3]},
        {"dtype": "<f4", "shape": 2},
        {"dtype": "<f4", "shape": [-2]},
        {"dtype": "<f4", "shape": [2], "order": "X"},
        {"dtype": "|O", "shape": [1]},
        {"dtype": "nonsense", "shape": [8]},
        {"dtype": [["a"]], "shape": [8]},
        {"dtype": "<f4", "shape": [1 << 40] * 20},
    ],
    ids=repr,
)
def test_images_that_say_what_cannot_be(described: Any, image: Path) -> None:
    with lazyrestore.ImageWriter(image) as writer:
        writer.add_region("a", metadata={"array": described})
        writer.write(bytes(8))
    for ending in ("npy", "npz", "safetensors"):
        with pytest.raises(lazyrestore.ImageError, match="region 'a'"):
            export(image, image.with_name(f"x.{ending}"))
    assert [path.name for path in image.parent.iterdir()] == [image.name]


@pytest.mark.parametrize("raw", [b"", b"5", b"[" * 100_000, b'{"a": 5}', b"\xff"], ids=len)
def test_images_with_other_metadata(raw: bytes, image: Path) -> None:
    with lazyrestore.ImageWriter(image) as writer:
        writer.add_file("safetensors.json", raw)
        writer.add_region("a")
        writer.write(bytes(8))
    with pytest.raises(lazyrestore.ImageError, match=r"safetensors\.json"):
        export(image, image.with_name("x.safetensors"))


def test_packed_types_that_do_not_fit_are_bytes(image: Path) -> None:
    with lazyrestore.ImageWriter(image) as writer:
        for n, said in enumerate([{"dtype": "F4", "shape": [99]}, {"dtype": [], "shape": {}}, 5]):
            writer.add_region(str(n), metadata={"safetensors": said})
            writer.write(bytes(8))
    export(image, image.with_name("x.safetensors"))
    raw = image.with_name("x.safetensors").read_bytes()
    assert raw.count(b'"dtype":"U8","shape":[8]') == 3


def test_damage_leaves_the_old_file(image: Path) -> None:
    from restore_support import flip, payloads

    lazyrestore.dump({"a": numpy.frombuffer(os.urandom(MIB), numpy.uint8)}, image)
    flip(image, payloads(image, "a")[7][0])
    for ending in ("npy", "npz", "safetensors"):
        out = image.with_name(f"x.{ending}")
        out.write_bytes(b"old")
        with pytest.raises(lazyrestore.ClusterError, match="'a'"):
            export(image, out)
        assert out.read_bytes() == b"old"
    assert not [name for name in os.listdir(image.parent) if name.endswith(".tmp")]


# ---- Files that are in the way -------------------------------------------------------------------

_KINDS = {"npy": NpyFile, "npz": NpzFile, "safetensors": SafetensorsFile}


@pytest.mark.parametrize("ending", _KINDS)
def test_files_that_cannot_be_read(ending: str, image: Path) -> None:
    make = _KINDS[ending]
    path = image.with_name(f"x.{ending}")
    with pytest.raises(FileNotFoundError):
        lazyrestore.dump(make(path), image)
    with pytest.raises(IsADirectoryError):
        lazyrestore.dump(make(image.parent), image)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        lazyrestore.dump(make(path), image)
    path.unlink()
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="another name"):
        lazyrestore.dump(make(path), path)
    assert path.read_bytes() == b"x"


def test_without_numpy(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", a=numpy.arange(5.0), b=numpy.ones((2, 3), ">i2"))
    script = """
    import sys
    sys.modules["numpy"] = sys.modules["safetensors"] = None
    import lazyrestore
    from lazyrestore._export import write_arrays
    lazyrestore.dump(lazyrestore.NpzFile("x.npz"), "x.lzr")
    with lazyrestore.open("x.lzr") as image:
        write_arrays(image, [0, 1], "y.npz", "npz")
        write_arrays(image, [0, 1], "y.safetensors", "safetensors")
    lazyrestore.dump(lazyrestore.SafetensorsFile("y.safetensors"), "y.lzr")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(lazyrestore.__file__).parent.parent)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    assert (tmp_path / "y.npz").read_bytes() == (tmp_path / "x.npz").read_bytes()
    assert content(tmp_path / "y.lzr")["b"] == numpy.ones((2, 3), "<i2").tobytes()


def test_the_width_of_the_numbers(image: Path) -> None:
    assert [parse(said).width for said in ("<f4", ">i2", "<c16", "|u1", "<U3", "|V8", "|S4")] == [
        4, 2, 8, 0, 4, 8, 0
    ]  # fmt: skip
    assert parse("bfloat16").width == 2
    assert parse([["a", "<f4"], ["b", "<i4", [2]]]).width == 4
    assert parse([["a", "<f4"], ["", "|V4"]]).width == 0
    for kind in ("<f4", ">i2", "<c16", "|u1", "<U3", "|S4", "M8[s]", "|V8"):
        assert parse(numpy.dtype(kind).str).width == width_of(numpy.dtype(kind)), kind
