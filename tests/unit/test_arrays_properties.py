"""Any array that numpy can make comes back as it was, by hypothesis"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import lazyrestore
from lazyrestore._arrays import describe_dtype, to_dtype


def plain_dtypes():
    return st.one_of(
        arrays_of.boolean_dtypes(),
        arrays_of.integer_dtypes(endianness="?"),
        arrays_of.unsigned_integer_dtypes(endianness="?"),
        arrays_of.floating_dtypes(endianness="?", sizes=(16, 32, 64, 128)),
        arrays_of.complex_number_dtypes(endianness="?", sizes=(64, 128, 256)),
        arrays_of.datetime64_dtypes(endianness="?"),
        arrays_of.timedelta64_dtypes(endianness="?"),
        arrays_of.byte_string_dtypes(min_len=1, max_len=20),
        arrays_of.unicode_string_dtypes(endianness="?", min_len=1, max_len=10),
    )


def dtypes():
    """Plain and structured ones, with fields of rows and of structures"""
    nested = arrays_of.nested_dtypes(plain_dtypes(), max_leaves=6, max_itemsize=2000)
    return st.one_of(plain_dtypes(), nested.map(without_rows))


def without_rows(dtype):
    """Numpy makes rows at the top a part of the array's shape"""
    return dtype.base


SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True, max_examples=60
)


@SETTINGS
@given(dtypes())
def test_any_dtype_is_described_and_found_again(dtype):
    assert to_dtype(describe_dtype(dtype)) == dtype


@st.composite
def any_arrays(draw):
    dtype = draw(dtypes())
    shape = draw(arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12))
    count = int(numpy.prod(shape)) * dtype.itemsize
    seed = draw(st.integers(0, 2**32 - 1))
    content = numpy.random.default_rng(seed).bytes(count)
    array = numpy.ndarray(shape, dtype, bytearray(content))
    # Transposed, turned round, thinned out, or one part of it.
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    if array.ndim and draw(st.booleans()):
        index = draw(arrays_of.basic_indices(array.shape, allow_ellipsis=False))
        array = array[(*index, ...) if isinstance(index, tuple) else (index, ...)]
    return array


@SETTINGS
@given(
    st.dictionaries(st.text(min_size=1, max_size=8), any_arrays(), max_size=3),
    st.sampled_from(["auto", False]),
)
def test_any_arrays_come_back(arrays, lazy):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.lzr"
        lazyrestore.dump(arrays, path, cluster_size=4096, threads=1)
        with lazyrestore.load(path, lazy=lazy) as again:
            assert list(again) == list(arrays)
            for name, array in arrays.items():
                assert again[name].dtype == array.dtype
                assert again[name].shape == array.shape
                assert again[name].tobytes() == array.tobytes()
