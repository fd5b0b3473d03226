"""Arrays keep dtype, shape, order and content: the cases that numpy tests its own format with"""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy
import pytest

import lazyrestore
from lazyrestore._arrays import as_array, describe_dtype, to_dtype


def round_trip(array, tmp_path, **options):
    path = tmp_path / "array.lzr"
    lazyrestore.dump({"a": array}, path)
    return lazyrestore.load(path, **options)["a"]


def assert_same(again, array):
    assert type(again) is numpy.ndarray
    assert again.dtype == array.dtype
    assert again.dtype.descr == array.dtype.descr  # titles and gaps too
    assert again.dtype.itemsize == array.dtype.itemsize
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


# ---- What numpy's own tests of .npy files have ---------------------------------------------------

SCALARS = "u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8 c8 c16 g G ?".split()
SHAPES = {
    "empty": lambda basic: basic[:0],
    "0-d": lambda basic: numpy.array(basic[7]),
    "1-d": lambda basic: basic,
    "C": lambda basic: basic.reshape(30, 50),
    "Fortran": lambda basic: basic.reshape(30, 50).T,
    "gaps": lambda basic: basic.reshape(30, 50)[::-1, ::2],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("scalar", SCALARS)
def test_basic_arrays(scalar, endian, shape, tmp_path):
    dtype = numpy.dtype(scalar).newbyteorder(endian)
    array = SHAPES[shape](numpy.arange(1500).astype(dtype))
    again = round_trip(array, tmp_path)
    assert_same(again, array)
    if shape != "gaps":
        assert again.flags.f_contiguous == array.flags.f_contiguous
        assert again.flags.c_contiguous == array.flags.c_contiguous


PLAIN = [("x", "i4", (2,)), ("y", "f8", (2, 2)), ("z", "u1")]
PLAIN_ROWS = [([3, 2], [[6.0, 4.0], [6.0, 4.0]], 8), ([4, 3], [[7.0, 5.0], [7.0, 5.0]], 9)]
INNER = [("name", "S2"), ("value", "c16", (2,)), ("y3", "f8", (2,)), ("z3", "u4", (2,))]
MIDDLE = [("value", "c16"), ("y2", "f8"), ("Info2", INNER), ("name", "S2"), ("z2", "b1")]
NESTED = [
    ("x", "i4", (2,)),
    ("Info", MIDDLE),
    ("color", "S2"),
    ("info", [("Name", "U8"), ("Value", "c16")]),
    ("y", "f8", (2, 2)),
    ("z", "u1"),
]
NESTED_ROWS = [
    (
        [row, 2],
        (6j, 6.0, ("nn", [6j, 4j], [6.0, 4.0], [1, 2]), "NN", True),
        "cc",
        ("NN", 6j),
        [[6.0, 4.0], [6.0, 4.0]],
        8,
    )
    for row in range(40)
]


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize(
    ("fields", "rows"), [(PLAIN, PLAIN_ROWS), (NESTED, NESTED_ROWS)], ids=["plain", "nested"]
)
def test_records(fields, rows, endian, tmp_path):
    array = numpy.array(rows, dtype=numpy.dtype(fields).newbyteorder(endian))
    assert_same(round_trip(array, tmp_path), array)
    records = numpy.rec.array(array)  # a subclass, and a dtype of its own: the fields are kept
    assert round_trip(records, tmp_path).tobytes() == array.tobytes()


GAPPY = numpy.dtype({"names": ["a", "b"], "formats": ["i1", "i1"], "offsets": [0, 4]})
WIDE = numpy.dtype({"names": ["a", "b"], "formats": ["i1", "i1"], "offsets": [0, 4], "itemsize": 8})
LAST = numpy.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [1, 6]})


def within(dtype, *shapes):
    """A field of arrays of arrays of it"""
    for shape in shapes:
        dtype = numpy.dtype((dtype, shape))
    return numpy.dtype([("x", dtype)])


STRUCTURES = {
    "aligned": numpy.dtype("i1, i4, i1", align=True),
    "offsets": LAST,
    "structure in structure": numpy.dtype({"names": ["c", "d"], "formats": ["i4", LAST]}),
    "unnamed field": numpy.dtype({"names": ["a", "", "b"], "formats": ["i4"] * 3}),
    "titles": numpy.dtype(
        {"names": ["a", "b"], "formats": ["i4"] * 2, "offsets": [1, 6], "titles": ["aa", "bb"]}
    ),
    "title that is a number": numpy.dtype({"names": ["a"], "formats": ["i4"], "titles": [3]}),
    "no fields": numpy.dtype({"names": [], "formats": [], "itemsize": 8}),
    "no fields, no bytes": numpy.dtype([]),
    "aligned numbers": numpy.dtype([("a", "i1"), ("b", "i2"), ("c", "i4")], align=True),
    "gaps within": within(GAPPY, (2,)),
    "rows of rows with gaps": within(WIDE, (3,), (4,)),
    "rows of rows": numpy.dtype([("x", ("<f8", (5,)), (2,))]),
    "rows of rows of rows": within(numpy.dtype([("a", int), ("b", WIDE)]), (3,), (4,), (5,)),
    "names in Chinese": numpy.dtype([("int", int), ("整形", int)]),
    "500 long names": numpy.dtype([(str(i) * 100, float) for i in range(500)]),
    "text": numpy.dtype([("a", "U7"), ("b", "S3"), ("c", "V5"), ("d", "M8[25s]"), ("e", "m8[us]")]),
    "text of no length": numpy.dtype([("a", "S0"), ("b", "U0"), ("c", "i2")]),
    "both byte orders": numpy.dtype([("a", ">i4"), ("b", "<i4"), ("c", ">U3")]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name, tmp_path):
    dtype = STRUCTURES[name]
    array = numpy.zeros(3, dtype)
    if dtype.itemsize:
        view = array.view("u1")
        view[:] = numpy.arange(len(view)) % 100 + 1
    assert_same(round_trip(array, tmp_path), array)


@pytest.mark.parametrize(
    "array",
    [
        numpy.array(["a", "läng", "漢字"] * 500),
        numpy.array([b"a", b"bcd"] * 500),
        numpy.ones(1, dtype=(numpy.bytes_, 2**16)),  # a long string
        numpy.frombuffer(bytes(range(240)), "V24"),
        numpy.arange("2020-01", "2024-01", dtype="M8[D]"),
        numpy.array(["2020-01-01T00:00:00.123456789", "NaT"], dtype=">M8[ns]"),
        numpy.arange(900, dtype="m8[ns]"),
        numpy.array([1, 2], "m8"),  # of no unit
        numpy.array(["NaT"], "M8"),
        numpy.array(["", ""]),
        numpy.array([b"", b""]),
        numpy.array([float("nan"), -0.0, float("inf")]).view("u8").view("f8"),
        numpy.empty((7, 0, 3), "i8"),
        numpy.empty((0, 1 << 40), "f8"),
        numpy.zeros((1,) * 32, "i2"),
        numpy.broadcast_to(numpy.arange(5, dtype="i2"), (4, 5)),
        numpy.asfortranarray(numpy.arange(24, dtype="u1").reshape(2, 3, 4)),
        numpy.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        numpy.zeros(3, "V0"),
    ],
    ids=lambda array: f"{array.dtype.str}-{array.shape}"[:40],
)
@pytest.mark.parametrize("lazy", ["auto", False])
def test_other_arrays(array, lazy, tmp_path):
    assert_same(round_trip(array, tmp_path, lazy=lazy), array)


@pytest.mark.parametrize(
    "scalar",
    [
        numpy.float64(3.5),
        numpy.bool_(True),
        numpy.datetime64("2020-01-01"),
        numpy.str_("läng"),
        numpy.bytes_(b"abc"),
        numpy.complex64(1 + 2j),
        numpy.array([(1, 2.5)], "i4,f8")[0],
        ml_dtypes.bfloat16(1.5),
    ],
    ids=lambda scalar: type(scalar).__name__,
)
def test_scalars_are_arrays_of_no_dimension(scalar, tmp_path):
    again = round_trip(scalar, tmp_path)
    assert again.shape == ()
    assert again.dtype == scalar.dtype
    assert again[()] == scalar


METADATA = {
    "of a number": numpy.dtype(int, metadata={"some": "stuff"}),
    "of a field": numpy.dtype(
        {"names": ["a"], "formats": [numpy.dtype("S3", metadata={"some": "stuff"})]}
    ),
    "of rows": numpy.dtype([("rows", (int, (2,)))], metadata={"some": "stuff"}),
    "of what is in rows": numpy.dtype(
        [("rows", (numpy.dtype("i2", metadata={"some": "stuff"}), (2,)))]
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_dtype_is_dropped_with_a_warning(name, tmp_path):
    array = numpy.ones(10, METADATA[name])
    with pytest.warns(UserWarning, match="'a': the metadata of its dtype is not kept") as warned:
        again = round_trip(array, tmp_path)
    assert [one.filename for one in warned if one.category is UserWarning] == [__file__]
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()
    assert again.dtype.metadata is None


# ---- ml_dtypes -----------------------------------------------------------------------------------

EXTENSIONS = [
    name
    for name in dir(ml_dtypes)
    if isinstance(getattr(ml_dtypes, name), type) and name not in ("finfo", "iinfo")
]


def test_there_are_extensions_to_test():
    assert {"bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"} <= set(EXTENSIONS)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_extensions_by_their_names(name, tmp_path):
    array = numpy.array([[0, 1], [1, 0], [1, 1]]).astype(getattr(ml_dtypes, name))
    assert describe_dtype(array.dtype) == name
    again = round_trip(array, tmp_path)
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()
    assert round_trip(array.T, tmp_path).T.tobytes() == array.tobytes()


def test_extensions_in_structures(tmp_path):
    dtype = numpy.dtype([("w", ml_dtypes.bfloat16), ("n", "i8"), ("m", "f4", 2)], align=True)
    array = numpy.zeros(5, dtype)
    array["w"] = [1, 2, 3, 4, 5]
    again = round_trip(array, tmp_path)
    assert again.dtype == dtype
    assert again["w"].tolist() == [1, 2, 3, 4, 5]


_WITHOUT = """
import sys
sys.modules["ml_dtypes"] = None
import lazyrestore
arrays = lazyrestore.load(sys.argv[1])
assert arrays["plain"].sum() == 3
try:
    arrays["weights"]
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_the_package_it_is_asked_for(tmp_path):
    """The other arrays are there all the same"""
    path = tmp_path / "x.lzr"
    lazyrestore.dump({"weights": numpy.zeros(3, ml_dtypes.bfloat16), "plain": numpy.ones(3)}, path)
    command = [sys.executable, "-c", _WITHOUT, path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == (
        "an array of bfloat16 needs ml_dtypes, which is not installed:"
        " pip install 'lazyrestore[ml]'\n"
    )


def test_an_extension_that_this_release_lacks():
    with pytest.raises(ImportError, match=r"has no float8_e9m9: pip install -U 'lazyrestore\[ml\]"):
        to_dtype("float8_e9m9")


# ---- What cannot be dumped -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (numpy.array([None, 1]), "objects are only references"),
        (numpy.zeros(2, [("a", "O"), ("b", "i4")]), "objects are only references"),
        (numpy.zeros(2, [("a", [("b", "O", (2,))])]), "objects are only references"),
        (numpy.ma.masked_array([1, 2], [0, 1]), "masked array: dump its .data"),
        (
            numpy.zeros(3, numpy.dtype({"names": "ab", "formats": ["i4"] * 2, "offsets": [4, 0]})),
            "out of order",
        ),
        (
            numpy.zeros(2, numpy.dtype(ml_dtypes.bfloat16).newbyteorder(">")),
            "only its package knows",
        ),
    ],
    ids=["objects", "object field", "object rows", "mask", "order", "byte order"],
)
def test_what_cannot_be_kept_is_refused(array, why, tmp_path):
    with pytest.raises(TypeError, match=rf"region 'weights' .*{why}"):
        lazyrestore.dump({"weights": array}, tmp_path / "x.lzr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not hasattr(getattr(numpy, "dtypes", None), "StringDType"),
    reason="this numpy has no StringDType",
)
def test_strings_of_any_length_are_refused(tmp_path):
    array = numpy.array(["a", "long" * 100], dtype=numpy.dtypes.StringDType())
    with pytest.raises(TypeError, match="fixed-length strings"):
        lazyrestore.dump({"weights": array}, tmp_path / "x.lzr")


# ---- Read-only -----------------------------------------------------------------------------------


@pytest.mark.parametrize("placed", [False, True])
def test_an_array_that_cannot_be_written_to(placed, tmp_path):
    path = tmp_path / "x.lzr"
    with lazyrestore.ImageWriter(path) as writer:
        metadata = {"array": {"dtype": "<f8", "shape": [100, 20], "order": "C"}}
        writer.add_region("a", address=0x3000_0000_0000, metadata=metadata)
        writer.write(numpy.arange(2000.0).tobytes())
    with lazyrestore.restore(path, at_original_address=placed) as session:
        region = session["a"]
        array = region.array(writable=False)
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[3] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            array[3:5].view("u1").setflags(write=True)
        assert array[99, 19] == 1999
        # The memory itself is as before.
        region.array()[0] = 7
        assert array[0, 0] == 7
        if not placed:
            with pytest.raises(BufferError):
                region.close()
        del array


@pytest.mark.parametrize("writable", [True, False])
def test_an_array_without_bytes(writable, tmp_path):
    lazyrestore.dump({"a": numpy.empty((7, 0, 3), "i8")}, tmp_path / "x.lzr")
    with lazyrestore.restore(tmp_path / "x.lzr") as session:
        array = session["a"].array(writable=writable)
        assert array.shape == (7, 0, 3)
        assert array.flags.writeable == writable


# ---- What an image may say -----------------------------------------------------------------------

HOSTILE = {
    "no map": ["<f4", [10]],
    "nothing": {},
    "other length": {"dtype": "<f4", "shape": [11], "order": "C"},
    "negative": {"dtype": "<f4", "shape": [-10, -1], "order": "C"},
    "no numbers": {"dtype": "<f4", "shape": [10.0], "order": "C"},
    "too many": {"dtype": "<f4", "shape": [10] + [1] * 100, "order": "C"},
    "huge": {"dtype": "<f4", "shape": [1 << 62, 1 << 62], "order": "C"},
    "objects": {"dtype": "O", "shape": [5], "order": "C"},
    "objects within": {"dtype": [["a", "O"]], "shape": [5], "order": "C"},
    "no dtype": {"dtype": "no such", "shape": [10], "order": "C"},
    "a number": {"dtype": 4, "shape": [10], "order": "C"},
    "fields of nothing": {"dtype": [[]], "shape": [10], "order": "C"},
    "twice": {"dtype": [["a", "<i2"], ["a", "<i2"]], "shape": [10], "order": "C"},
    "too wide": {"dtype": [["a", "<i4", [1 << 60]]], "shape": [10], "order": "C"},
    "no bytes": {"dtype": [["a", "S0"]], "shape": [1 << 62, 8], "order": "C"},
    "text": {"dtype": "<f4", "shape": "10", "order": "C"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_description_that_does_not_fit_is_an_image_error(name):
    with pytest.raises(lazyrestore.ImageError, match="does not describe an array of 40 bytes"):
        as_array(bytearray(40), 40, {"array": HOSTILE[name]})


def test_a_description_that_is_nested_too_deeply():
    described: object = "<i4"
    for _ in range(5000):
        described = [["a", described]]
    with pytest.raises(lazyrestore.ImageError, match="does not describe"):
        as_array(bytearray(40), 40, {"array": {"dtype": described, "shape": [10], "order": "C"}})


def test_dtypes_as_others_may_write_them():
    """Numpy's names are taken too"""
    assert to_dtype("float32") == numpy.dtype("f4")
    assert to_dtype("u1") == numpy.dtype("u1")
    assert to_dtype([("a", "<i4")]) == numpy.dtype([("a", "<i4")])


def test_a_plain_restore_and_its_arrays_need_no_more_imports(tmp_path):
    """They would be part of the time to the first element"""
    lazyrestore.dump({"a": numpy.arange(10)}, tmp_path / "x.lzr")
    code = (
        "import sys, numpy; before = set(sys.modules); import lazyrestore\n"
        "lazyrestore.load(sys.argv[1])['a'][0]\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code, tmp_path / "x.lzr"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    modules = set(output.split())
    assert "lazyrestore._load" in modules
    assert not {"ml_dtypes", "zstandard", "typer", "rich"} & modules, output
    assert not {"lazyrestore._references", "lazyrestore.writer", "lazyrestore._dump"} & modules
