"""Buffers and arrays as sources of a dump."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import lazyrestore

_ABORTED = """
import array, gc, os, resource, sys
import lazyrestore

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
sources = {
    "bytes": lambda: os.urandom(16 << 20),
    "view": lambda: memoryview(bytearray(os.urandom(16 << 20)))[5:],
    "table": lambda: memoryview(array.array("d", os.urandom(16 << 20))).cast("B").cast("q"),
}
make = sources[sys.argv[1]]
for _ in range(10):
    try:
        lazyrestore.dump(make(), sys.argv[2])
    except OSError:
        pass
    else:
        raise AssertionError("that was not aborted")
    gc.collect()
"""


@pytest.mark.parametrize("kind", ["bytes", "view", "table"])
def test_what_an_aborted_dump_leaves_can_be_collected(kind: str, tmp_path: Path) -> None:
    """Exceptions and frames are a cycle; CPython crashed where it held views of views"""
    command = [sys.executable, "-X", "faulthandler", "-c", _ABORTED, kind, str(tmp_path / "x.lzr")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abcdef")[1:],
        memoryview(b"abcdef")[::2],
        memoryview(b"abcdef").cast("B", (2, 3)),
        memoryview(numpy.arange(6, dtype=">i4")),
        memoryview(numpy.arange(6.0).reshape(2, 3)),
        memoryview(numpy.zeros((0, 3))),
        memoryview(numpy.float64(3.5)),
        memoryview(b""),
    ],
    ids=["slice", "gaps", "table", "foreign", "numbers", "no rows", "scalar", "nothing"],
)
def test_views(view: memoryview, tmp_path: Path) -> None:
    """Of any format and shape: the elements' bytes"""
    lazyrestore.dump(view, tmp_path / "x.lzr")
    with lazyrestore.open(tmp_path / "x.lzr") as image:
        assert image.read("memory", 0) == view.tobytes()


def test_an_array_whose_dtype_cannot_be_described(tmp_path: Path) -> None:
    overlapping = {"names": ["a", "b"], "formats": ["i4", "i8"], "offsets": [0, 0]}
    array = numpy.zeros(50, numpy.dtype(overlapping))
    with pytest.raises(TypeError, match=r"region 'table'.*overlap.*view\('u1'\)"):
        lazyrestore.dump({"table": array}, tmp_path / "x.lzr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["level", "cluster_size", "threads"])
@pytest.mark.parametrize("value", ["3", 4096.0])
def test_settings_that_are_no_numbers(setting: str, value: object, tmp_path: Path) -> None:
    """Named, and before anything is made"""
    with pytest.raises(TypeError, match=f"{setting} is a whole number, not {value!r}"):
        lazyrestore.dump(b"x", tmp_path / "x.lzr", **{setting: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.uffd
@pytest.mark.parametrize("way", ["restore", "load", "unpickled"])
def test_what_is_closed_takes_no_image_s_place(way: str, tmp_path: Path) -> None:
    """It has no regions any more: what was dumped would be an image of nothing"""
    path = tmp_path / "x.lzr"
    lazyrestore.dump({"numbers": numpy.arange(5000)}, path)
    made: lazyrestore.Session | lazyrestore.Arrays
    made = lazyrestore.load(path) if way == "load" else lazyrestore.restore(path)
    if way == "unpickled":
        made = pickle.loads(pickle.dumps(made))
    with made:
        lazyrestore.dump(made, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"the session of .*x\.lzr is closed"):
        lazyrestore.dump(made, path)
    assert path.read_bytes() == before
