"""Objects in images: `dump_pickle` and `load_pickle`, with nothing but numpy."""

from __future__ import annotations

import array
import gc
import io
import os
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pickle_support import region_of
from restore_support import flip, mapping_at, payloads, run_in_child

import lazyrestore
from lazyrestore import _pickling

KIB, MIB = 1 << 10, 1 << 20
BIG = 16 * KIB  # bytes of the smallest buffer that is a region


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "object.lzr"


def names(path: Path) -> list[str]:
    with lazyrestore.open(path) as opened:
        return [region.name for region in opened.regions]


def again(obj: Any, path: Path, **options: Any) -> Any:
    lazyrestore.dump_pickle(obj, path)
    return lazyrestore.load_pickle(path, trusted=True, **options)


def noise(nbytes: int) -> numpy.ndarray:
    return numpy.frombuffer(os.urandom(nbytes), numpy.uint8)


def collected(obj: Any) -> _pickling.Pickled:
    """What would be dumped."""
    collector = _pickling.Collector()
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5, buffer_callback=collector.take)
    pickler.dispatch_table = collector.reducers()
    pickler.dump(obj)
    return _pickling.Pickled(stream.getbuffer(), collector.pieces, type(obj))


# ---- Trust ---------------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("said", [{}, {"trusted": False}, {"trusted": 1}, {"trusted": "yes"}])
def test_trust_has_to_be_said(said: dict[str, Any], image: Path, tmp_path: Path) -> None:
    lazyrestore.dump_pickle(Evil(tmp_path / "ran"), image)
    with pytest.raises(ValueError, match=r"runs code .* trusted=True .* restore\(\)"):
        lazyrestore.load_pickle(image, **said)
    assert not (tmp_path / "ran").exists()
    lazyrestore.load_pickle(image, trusted=True)
    assert (tmp_path / "ran").exists()  # so it is needed


def test_the_danger_is_documented() -> None:
    for function in (lazyrestore.load_pickle, lazyrestore.dump_pickle):
        assert "runs code that the image names" in (function.__doc__ or "")


def test_nothing_else_runs_it(image: Path, tmp_path: Path) -> None:
    lazyrestore.dump_pickle([Evil(tmp_path / "ran"), numpy.arange(BIG)], image)
    with lazyrestore.restore(image) as session:
        assert bytes(session["pickle"])
        assert session["buffer-0"].array()[5] == 5
    assert not (tmp_path / "ran").exists()


# ---- What is out of band -------------------------------------------------------------------------


def test_large_buffers_are_regions(image: Path) -> None:
    obj = {
        "large": numpy.arange(BIG // 8),
        "small": numpy.arange(BIG // 8 - 1),
        "nested": [{"deep": (noise(MIB),)}],
        "bytes": b"x" * MIB,
        "raw": pickle.PickleBuffer(bytearray(b"y" * BIG)),
    }
    report = lazyrestore.dump_pickle(obj, image)
    lengths = {region.name: region.length for region in report.regions}
    assert list(lengths) == ["pickle", "buffer-0", "buffer-1", "buffer-2"]
    assert [lengths[f"buffer-{n}"] for n in range(3)] == [BIG, MIB, BIG]
    assert MIB + BIG <= lengths["pickle"] < MIB + BIG + 2000
    loaded = lazyrestore.load_pickle(image, trusted=True)
    assert loaded["bytes"] == obj["bytes"]
    assert bytes(loaded["raw"]) == b"y" * BIG
    for key in ("large", "small"):
        assert numpy.array_equal(loaded[key], obj[key])
    assert numpy.array_equal(loaded["nested"][0]["deep"][0], obj["nested"][0]["deep"][0])


def test_buffers_come_when_they_are_touched(image: Path) -> None:
    first, second = numpy.arange(MIB), numpy.arange(MIB) * 3
    a, b = again([first, second], image, prefetch="none")
    assert region_of(a).resident_bytes == region_of(b).resident_bytes == 0
    assert a[MIB // 2] == MIB // 2
    assert 0 < region_of(a).resident_bytes <= 64 * KIB  # of a cluster, which may still be coming
    assert region_of(b).resident_bytes == 0
    assert numpy.array_equal(a, first)
    assert numpy.array_equal(b, second)


def test_what_is_used_by_nothing_is_let_go(image: Path) -> None:
    lazyrestore.dump_pickle({"kept": noise(MIB), "other": noise(MIB)}, image)
    loaded = lazyrestore.load_pickle(image, trusted=True)
    kept, other = (region_of(loaded[key]).address for key in ("kept", "other"))
    assert mapping_at(kept)
    assert mapping_at(other)
    del loaded["other"]
    assert mapping_at(other) is None
    part = loaded.pop("kept")[5:6]
    del loaded
    assert mapping_at(kept)
    del part
    assert mapping_at(kept) is None
    gc.collect()
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is(fd)]
    assert str(image) not in held


def _is(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_writes_are_private(image: Path) -> None:
    data = numpy.arange(MIB)
    lazyrestore.dump_pickle(data, image)
    a, b = (lazyrestore.load_pickle(image, trusted=True) for _ in range(2))
    a[:] = 0
    assert numpy.array_equal(b, data)
    assert numpy.array_equal(lazyrestore.load_pickle(image, trusted=True), data)


def test_eagerly(image: Path) -> None:
    data = noise(MIB)
    assert numpy.array_equal(again(data, image, lazy=False), data)


def test_with_fewer_rights(image: Path) -> None:
    data = noise(MIB)
    loaded = again(data, image, lazy=True, prefetch="none", privilege="user-mode-only")
    assert region_of(loaded).resident_bytes == 0
    assert numpy.array_equal(loaded, data)
    for wrong in ({"privilege": "root"}, {"prefetch": "some"}, {"lazy": "maybe"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            lazyrestore.load_pickle(image, trusted=True, **wrong)  # type: ignore[arg-type]


def test_an_object_of_nothing_but_a_pickle(image: Path) -> None:
    obj = {"a": [1, 2, None], "b": "ä" * 10, ("c",): {1.5}}
    assert again(obj, image) == obj
    assert names(image) == ["pickle"]


def test_one_object_is_one_again(image: Path) -> None:
    shared, buffer = noise(MIB), bytearray(b"z" * BIG)
    a, b, (c,) = again([shared, shared, [shared]], image)
    assert a is b is c
    assert names(image) == ["pickle", "buffer-0"]
    loaded = again([pickle.PickleBuffer(buffer)] * 2, image)
    assert bytes(loaded[0]) == bytes(loaded[1]) == bytes(buffer)


def test_a_cycle(image: Path) -> None:
    obj: dict[str, Any] = {"data": noise(BIG)}
    obj["self"] = obj
    loaded = again(obj, image)
    assert loaded["self"] is loaded
    assert numpy.array_equal(loaded["data"], obj["data"])


# ---- numpy ---------------------------------------------------------------------------------------


def same(a: numpy.ndarray, b: numpy.ndarray) -> None:
    assert type(a) is type(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.flags.writeable == b.flags.writeable
    if b.flags.contiguous:
        assert a.flags.f_contiguous == b.flags.f_contiguous
    assert a.tobytes() == b.tobytes()


_SCALARS = st.one_of(
    st_numpy.scalar_dtypes(),
    st_numpy.byte_string_dtypes(max_len=9),
    st_numpy.unicode_string_dtypes(max_len=9),
    st_numpy.nested_dtypes(max_itemsize=64),
)
_ARRAYS = st_numpy.arrays(_SCALARS, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=5))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arrays=st.lists(_ARRAYS, max_size=3), turn=st.sampled_from(["", "T", "gaps", "read-only"]))
def test_any_arrays(arrays: list[Any], turn: str, image: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_pickling, "OUT_OF_BAND_BYTES", 8)
    for n, given_array in enumerate(arrays):
        if turn == "T":
            arrays[n] = given_array.T
        elif turn == "gaps" and given_array.ndim:
            arrays[n] = given_array[::2]
        elif turn == "read-only":
            given_array.flags.writeable = False
    loaded = again(arrays, image)
    for a, b in zip(loaded, arrays, strict=True):
        if b.nbytes >= 8:
            same(a, b)
        else:  # numpy's own pickle makes some native
            assert (a.shape, a.tolist().__repr__()) == (b.shape, b.tolist().__repr__())
    large = sum(b.nbytes >= 8 and not b.dtype.hasobject for b in arrays)
    assert len(names(image)) == 1 + large


@pytest.mark.parametrize(
    "made",
    [
        numpy.arange(10_000).astype("M8[ns]"),
        numpy.arange(10_000).astype(">f8"),
        numpy.zeros(5000, [("x", "<f4"), ("y", ">i2", (3,))]),
        numpy.zeros(5000, numpy.dtype([("x", "u1"), ("y", "<f8")], align=True)),
        numpy.array([f"row {n}" for n in range(3000)]),
        numpy.broadcast_to(numpy.float32(3), (100, 100)),
        numpy.arange(90_000).reshape(300, 300)[::3, ::-1],
        numpy.arange(90_000).reshape(30, 100, 30).transpose(1, 0, 2),
        numpy.asfortranarray(numpy.arange(90_000).reshape(300, 300)),
        numpy.zeros(5000, [("x", "<f4"), ("y", "<f4")]).view(numpy.recarray),
        numpy.arange(10_000).reshape(1, -1).view(numpy.matrix),
    ],
    ids=lambda made: f"{type(made).__name__}-{made.dtype.name[:12]}-{made.flags.contiguous}",
)
def test_kinds_of_arrays(made: numpy.ndarray, image: Path) -> None:
    same(again(made, image), made)
    assert names(image) == ["pickle", "buffer-0"]
    with lazyrestore.open(image) as opened:
        assert opened.regions[0].length < 1000
        assert opened.metadata("buffer-0")["array"]


def test_fields_that_overlap(image: Path) -> None:
    """They have no description, but are bytes like others"""
    kind = numpy.dtype({"names": ["a", "b"], "formats": ["<u4", "<u2"], "offsets": [0, 2]})
    made = numpy.zeros(BIG, kind)
    made["a"] = numpy.arange(BIG)
    same(again(made, image), made)
    assert names(image) == ["pickle", "buffer-0"]


def test_metadata_of_a_dtype(image: Path) -> None:
    """The pickle keeps them: so nothing is said of a loss"""
    made = numpy.arange(BIG).view(numpy.dtype("i8", metadata={"unit": "m"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again(made, image).dtype.metadata == {"unit": "m"}


def test_masked_arrays(image: Path) -> None:
    made = numpy.ma.masked_less(numpy.arange(20_000), 7)
    made.fill_value = 5
    made.harden_mask()
    loaded = again(made, image)
    assert type(loaded) is type(made)
    assert numpy.array_equal(loaded.mask, made.mask)
    assert numpy.array_equal(loaded.data, made.data)
    assert (loaded.fill_value, loaded.hardmask) == (5, True)
    assert len(names(image)) == 3
    assert again(numpy.ma.masked_less(numpy.arange(9), 3), image).sum() == sum(range(3, 9))


def test_a_memory_map_of_a_file(image: Path, tmp_path: Path) -> None:
    numpy.save(tmp_path / "x.npy", numpy.arange(BIG))
    loaded = again(numpy.load(tmp_path / "x.npy", mmap_mode="r"), image)
    assert type(loaded) is numpy.ndarray
    assert numpy.array_equal(loaded, numpy.arange(BIG))


def test_arrays_of_objects(image: Path) -> None:
    """Which are pickled one by one, each with its own buffers"""
    made = numpy.empty(3000, object)
    made[5] = numpy.arange(BIG)
    loaded = again(made, image)
    assert loaded.dtype == object
    assert numpy.array_equal(loaded[5], made[5])
    assert names(image) == ["pickle", "buffer-0"]


@pytest.mark.parametrize(
    ("made", "width"),
    [
        (numpy.zeros(BIG, "<f4"), 4),
        (numpy.zeros(BIG, "<c16"), 8),
        (numpy.zeros(BIG, "M8[s]"), 8),
        (numpy.zeros(BIG, "u1"), 0),
        (pickle.PickleBuffer(array.array("H", bytes(BIG))), 2),
        (pickle.PickleBuffer(bytearray(BIG)), 0),
    ],
    ids=["f4", "c16", "M8", "u1", "array.array", "bytearray"],
)
def test_the_width_of_the_numbers(made: Any, width: int) -> None:
    assert [piece.width for piece in collected(made)._singles] == [width]


# ---- Very many buffers ---------------------------------------------------------------------------


def test_many_buffers_share_regions(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pickling, "SINGLE_MAX", 10)
    monkeypatch.setattr(_pickling, "_PACK_BYTES", 500_000)
    kinds = ("<f8", "<f4", "u1")
    made = [noise(16_408 + 8 * n).view(kinds[n % 3]) for n in range(120)]
    made[50] = noise(2 * MIB)
    loaded = again(made, image)
    for a, b in zip(loaded, made, strict=True):
        same(a, b)
        assert a.ctypes.data % 64 == 0
    assert names(image)[:3] == ["pickle", "buffer-50", "shared-0"]
    assert 3 <= len([name for name in names(image) if name.startswith("shared")]) <= 8
    for pack in collected(made)._packs:
        assert {piece.width for _, piece in pack._buffers} == {pack.width}


def test_no_more_mappings_than_a_process_can_have(image: Path) -> None:
    """Linux allows 65,530. Of 3,000 buffers most share some. In a child, which has few others"""
    script = """
    import sys, numpy, lazyrestore
    from pathlib import Path
    made = numpy.zeros((3000, 2048))
    made[:, 7] = numpy.arange(3000)
    lazyrestore.dump_pickle([row.view() for row in made], sys.argv[1], level=1)
    before = len(Path("/proc/self/maps").read_text().splitlines())
    loaded = lazyrestore.load_pickle(sys.argv[1], trusted=True)
    assert [made[7] for made in loaded] == list(range(3000))
    more = len(Path("/proc/self/maps").read_text().splitlines()) - before
    assert more < 700, more
    """
    run_in_child(script, image, timeout=120)


# ---- What is not right ---------------------------------------------------------------------------


class Unwilling:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("no")


@pytest.mark.parametrize(
    "obj", [Unwilling(), lambda: 0, pickle.PickleBuffer(memoryview(bytes(MIB))[::2])]
)
def test_what_cannot_be_pickled(obj: Any, image: Path) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        lazyrestore.dump_pickle([numpy.arange(BIG), obj], image)
    assert list(image.parent.iterdir()) == []


def test_settings_that_cannot_be(image: Path) -> None:
    for wrong in ({"level": 50}, {"cluster_size": 5}, {"threads": 0}):
        with pytest.raises(ValueError, match="not"):
            lazyrestore.dump_pickle([], image, **wrong)  # type: ignore[arg-type]
    assert list(image.parent.iterdir()) == []


def test_images_of_something_else(image: Path) -> None:
    lazyrestore.dump({"a": b"x"}, image)
    with pytest.raises(lazyrestore.ImageError, match=r"holds no pickle.*load\(\)"):
        lazyrestore.load_pickle(image, trusted=True)
    lazyrestore.dump({"pickle": pickle.dumps(5)}, image)
    with pytest.raises(lazyrestore.ImageError, match="holds no pickle"):
        lazyrestore.load_pickle(image, trusted=True)
    image.write_bytes(b"something else")
    with pytest.raises(lazyrestore.ImageError):
        lazyrestore.load_pickle(image, trusted=True)
    with pytest.raises(FileNotFoundError):
        lazyrestore.load_pickle(image.with_name("nothing"), trusted=True)


@pytest.mark.parametrize(
    "said",
    [
        5,
        None,
        [],
        {},
        {"protocol": 5},
        {"protocol": 5, "buffers": -1},
        {"protocol": 5, "buffers": 3},
        {"protocol": 5, "buffers": 1},
        {"protocol": 5, "buffers": True},
        {"protocol": 5, "buffers": 10**18},
        {"protocol": 5, "buffers": "2"},
        {"protocol": 99, "buffers": 2},
        {"protocol": [[]], "buffers": 2},
        {"protocol": 5, "buffers": 2, "shared": 7},
        {"protocol": 5, "buffers": 2, "shared": [7]},
        {"protocol": 5, "buffers": 2, "shared": [{"buffers": [2], "bytes": [5]}]},
        {"protocol": 5, "buffers": 3, "shared": [{"buffers": [2], "bytes": [64, 5]}]},
        {"protocol": 5, "buffers": 3, "shared": [{"buffers": [2], "bytes": [129]}]},
        {"protocol": 5, "buffers": 3, "shared": [{"buffers": [2], "bytes": [-64]}]},
        {"protocol": 5, "buffers": 3, "shared": [{"buffers": [{}], "bytes": [128]}]},
        {"protocol": 5, "buffers": 4, "shared": [{"buffers": [2, 2], "bytes": [64, 64]}]},
    ],
    ids=repr,
)
def test_metadata_that_does_not_fit(said: Any, image: Path) -> None:
    with lazyrestore.ImageWriter(image) as writer:
        writer.add_region("pickle", metadata={"pickle": said})
        writer.write(pickle.dumps(5))
        for name, length in (("buffer-0", 5), ("buffer-1", 6), ("shared-0", 128)):
            writer.add_region(name)
            writer.write(bytes(length))
    with pytest.raises(lazyrestore.ImageError, match="pickle"):
        lazyrestore.load_pickle(image, trusted=True)


def test_a_damaged_pickle(image: Path) -> None:
    """An exception, and not a signal"""
    lazyrestore.dump_pickle([os.urandom(MIB)], image)
    flip(image, payloads(image, "pickle")[3][0])
    with pytest.raises(lazyrestore.RestoreError, match="pickle"):
        lazyrestore.load_pickle(image, trusted=True)
    with pytest.raises(lazyrestore.ClusterError, match="pickle"):
        lazyrestore.load_pickle(image, trusted=True, lazy=False)


def test_what_was_loaded_can_be_dumped(image: Path) -> None:
    """And what of it is damaged is an exception, not a signal"""
    data = noise(MIB)
    other = image.with_name("other.lzr")
    loaded = again({"a": data}, image)
    assert numpy.array_equal(again(loaded, other)["a"], data)
    flip(image, payloads(image, "buffer-0")[3][0])
    loaded = lazyrestore.load_pickle(image, trusted=True)
    with pytest.raises(lazyrestore.RestoreError, match="buffer-0"):
        lazyrestore.dump_pickle(loaded, other)


def test_without_numpy(image: Path) -> None:
    script = """
    import pickle, sys
    sys.modules["numpy"] = None
    import lazyrestore
    made = {"a": pickle.PickleBuffer(bytearray(b"x" * 100_000)), "b": 5}
    lazyrestore.dump_pickle(made, sys.argv[1])
    loaded = lazyrestore.load_pickle(sys.argv[1], trusted=True)
    assert bytes(loaded["a"]) == b"x" * 100_000 and loaded["b"] == 5
    try:
        lazyrestore.load_pickle(sys.argv[2], trusted=True)
    except ModuleNotFoundError as error:
        assert "pip install 'lazyrestore[numpy]'" in str(error), error
    else:
        raise AssertionError("there was numpy")
    """
    arrays = image.with_name("arrays.lzr")
    lazyrestore.dump_pickle(numpy.zeros(BIG, "u1"), arrays)
    run_in_child(script, image, arrays)


def test_progress_and_report(image: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    report = lazyrestore.dump_pickle(
        noise(MIB), image, progress=lambda *done: seen.append(done), level=1, cluster_size=4096
    )
    assert seen[-1] == (report.logical_bytes, report.logical_bytes)
    with lazyrestore.open(image) as opened:
        assert opened.cluster_size == 4096
        assert opened.info.source == "pickle of a numpy.ndarray"
        assert opened.verify().damage == ()


def test_a_large_object_loads_at_once(image: Path) -> None:
    """However large: nothing of the buffers is decoded to load it. A limit for what hangs only"""
    lazyrestore.dump_pickle([numpy.zeros(MIB) for _ in range(200)], image)
    begun = time.monotonic()
    loaded = lazyrestore.load_pickle(image, trusted=True, prefetch="none")
    assert time.monotonic() - begun < 60
    assert sum(region_of(made).resident_bytes for made in loaded) == 0


def test_the_privilege_is_that_of_restore(image: Path) -> None:
    data = noise(MIB)
    loaded = again(data, image, privilege="user-mode-only")
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="Bad address"):
            os.write(writer, loaded)
    finally:
        os.close(reader)
        os.close(writer)
    assert (loaded == data).all()
    with pytest.raises(ValueError, match="privilege"):
        lazyrestore.load_pickle(image, trusted=True, privilege="root")
