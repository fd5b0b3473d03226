"""Byte planes: when the writer takes them, and that what they hold comes back."""

from __future__ import annotations

import array
import itertools
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_decoder import Decoded
from image_surgery import crc32c

import lazyrestore
from lazyrestore._native import ffi, lib
from lazyrestore.sources.buffer import Memory, width_of
from lazyrestore.writer import ImageWriter

KIB, MIB = 1 << 10, 1 << 20
SEED = 20240607


def weights(count: int, dtype: str = "<f4") -> numpy.ndarray:
    """Numbers as the weights of a network are: only sign and exponent are not noise."""
    return (numpy.random.default_rng(SEED).standard_normal(count) * 0.02).astype(dtype)


def decoded(path: Path) -> Decoded:
    return Decoded(path.read_bytes(), crc32c)


def widths(path: Path) -> list[int]:
    """Of all clusters that have a payload."""
    return [entry.planes for entry in decoded(path).entries if entry.payload]


def check(path: Path, name: str, content: bytes) -> None:
    """Four readers give it: two eager ones, a lazy restore, and what is verified is sound."""
    assert decoded(path).content(name) == content
    with lazyrestore.open(path) as image:
        assert image.read(name) == content
        assert image.verify().damage == ()
    with lazyrestore.restore(path, lazy=False) as session:
        assert bytes(session[name]) == content


# ---- The core's functions ------------------------------------------------------------------------


@given(
    numbers=st.binary(max_size=700),
    width=st.sampled_from([2, 4, 8]),
)
@settings(deadline=None)
def test_planes_are_columns(numbers: bytes, width: int) -> None:
    data = numbers[: len(numbers) // width * width]
    split, joined = bytearray(len(data)), bytearray(len(data))
    lib.lr_planes_split(ffi.from_buffer(data), len(data), width, ffi.from_buffer(split))
    assert split == b"".join(data[plane::width] for plane in range(width))
    lib.lr_planes_join(ffi.from_buffer(split), len(data), width, ffi.from_buffer(joined))
    assert joined == data


# ---- Who says the width --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        *(("<f4", 4), (">f4", 4), ("<f8", 8), ("<f2", 2), ("<i8", 8), ("<u2", 2), ("i1", 0)),
        *(("?", 0), ("<c8", 4), ("<c16", 8), ("<M8[ns]", 8), ("<m8[s]", 8), ("<U7", 4)),
        *(("S4", 0), ("<f16", 0), ("<c32", 0)),
        ([("a", "<f4"), ("b", "<i4", (2, 3))], 4),
        ([("a", "<f4"), ("b", [("c", "<u4"), ("d", "<c8")])], 4),
        ([("a", "<f4"), ("b", "<f8")], 0),
        ([("a", "<f4"), ("b", "u1"), ("c", "u1")], 0),
        ({"names": ["a", "b"], "formats": ["<f4", "<f4"], "offsets": [0, 5], "itemsize": 9}, 0),
        ([], 0),
    ],
    ids=str,
)
def test_the_width_of_a_dtype(dtype: object, width: int) -> None:
    assert width_of(numpy.dtype(dtype)) == width


def test_extension_dtypes_have_a_width() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    assert width_of(numpy.dtype(ml_dtypes.bfloat16)) == 2
    assert width_of(numpy.dtype(ml_dtypes.float8_e4m3fn)) == 0


@pytest.mark.parametrize(
    ("data", "width"),
    [
        (array.array("d", [1.0]), 8),
        (array.array("H", [1]), 2),
        (array.array("B", [1]), 0),
        (memoryview(array.array("f", [1.0])), 4),
        (memoryview(numpy.zeros((4, 4), "<f4"))[::2], 4),
        (b"12345678", 0),
        (bytearray(8), 0),
    ],
    ids=str,
)
def test_the_width_of_a_buffer(data: object, width: int) -> None:
    (piece,) = Memory.of(data)._pieces
    assert piece.width == width


# ---- When they are taken -------------------------------------------------------------------------


def test_arrays_are_smaller_by_themselves(tmp_path: Path) -> None:
    data = weights(MIB // 2)
    plain = lazyrestore.dump({"w": data}, tmp_path / "plain.lzr", byte_planes="none")
    report = lazyrestore.dump({"w": data}, tmp_path / "image.lzr")
    assert report.stored_bytes < 0.95 * plain.stored_bytes
    assert report.digest == plain.digest
    assert report.regions[0].planes == 4
    assert plain.regions[0].planes == 0
    assert set(widths(tmp_path / "plain.lzr")) == {0}
    assert set(widths(tmp_path / "image.lzr")) == {4}
    check(tmp_path / "image.lzr", "w", data.tobytes())
    with lazyrestore.restore(tmp_path / "image.lzr") as session:
        assert (session["w"].array() == data).all()


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", ">f4", "<c8", "<i8"])
def test_dtypes_come_back(tmp_path: Path, dtype: str) -> None:
    data = weights(50_000, "<f8") * 1e5
    if numpy.dtype(dtype).kind == "c":
        data = data + 1j * data[::-1]
    data = data.astype(dtype)
    report = lazyrestore.dump({"x": data}, tmp_path / "image.lzr")
    assert report.regions[0].planes == width_of(data.dtype)
    check(tmp_path / "image.lzr", "x", data.tobytes())


def test_they_are_not_taken_where_they_do_not_pay(tmp_path: Path) -> None:
    words = " ".join(f"word{number * number % 1009}" for number in range(40_000)).encode()
    regions = {
        "text": memoryview(words[: len(words) // 4 * 4]).cast("i"),
        "noise": numpy.random.default_rng(SEED).integers(0, 256, MIB, "u1").view("<f4"),
        "zeros": numpy.zeros(MIB, "<f4"),
    }
    report = lazyrestore.dump(regions, tmp_path / "image.lzr")
    assert [region.planes for region in report.regions] == [0, 0, 0]
    assert decoded(tmp_path / "image.lzr").critical == 0
    plain = lazyrestore.dump(regions, tmp_path / "plain.lzr", byte_planes="none")
    assert plain.stored_bytes == report.stored_bytes


def test_they_are_taken_where_most_of_them_need_no_decoding(tmp_path: Path) -> None:
    """Sorted ids: three planes are noise, three are alike; a little larger, and sooner decoded"""
    ids = numpy.sort(numpy.random.default_rng(SEED).integers(0, 1 << 40, 1 << 23))[: MIB // 2]
    plain = lazyrestore.dump({"ids": ids}, tmp_path / "plain.lzr", byte_planes="none")
    report = lazyrestore.dump({"ids": ids}, tmp_path / "image.lzr")
    assert plain.stored_bytes < report.stored_bytes < 17 / 16 * plain.stored_bytes
    assert report.regions[0].planes == 8
    check(tmp_path / "image.lzr", "ids", ids.tobytes())


def test_they_are_chosen_anew_along_a_region(tmp_path: Path) -> None:
    """A file of parts: each MiB is looked at by itself."""
    text = (b"some text that repeats itself; " * 40_000)[:MIB]
    content = weights(MIB // 4).tobytes() + text + weights(MIB // 4).tobytes()[::-1]
    (tmp_path / "file").write_bytes(content)
    path = tmp_path / "image.lzr"
    lazyrestore.dump(lazyrestore.RawFile(tmp_path / "file"), path, byte_planes=4)
    found = widths(path)
    clusters = MIB // (64 * KIB)
    assert set(found[:clusters]) == {4}
    assert set(found[clusters:-clusters]) == {0}
    assert set(found[-clusters:]) == {4}
    check(path, decoded(path).regions.popitem()[0], content)


def test_noise_among_numbers_is_stored_as_it_is(tmp_path: Path) -> None:
    """A cluster that cannot be compressed is in no planes, though its neighbours are"""
    content = bytearray(weights(MIB // 4).tobytes())
    noise = slice(3 * 64 * KIB, 4 * 64 * KIB)
    content[noise] = numpy.random.default_rng(SEED).bytes(64 * KIB)
    path = tmp_path / "image.lzr"
    lazyrestore.dump({"x": numpy.frombuffer(content, "<f4")}, path)
    kinds = [(entry.kind, entry.planes) for entry in decoded(path).entries]
    assert kinds == [(2, 4)] * 3 + [(3, 0)] + [(2, 4)] * 12
    check(path, "x", bytes(content))


@pytest.mark.parametrize(
    ("byte_planes", "expected"), [("none", 0), ("auto", 0), (2, 2), (4, 4), (8, 8)]
)
def test_byte_planes_of_what_has_no_width(
    tmp_path: Path, byte_planes: object, expected: int
) -> None:
    data = weights(100_000, {2: "<f2", 8: "<f8"}.get(byte_planes, "<f4")).tobytes()
    (tmp_path / "file").write_bytes(data)
    source = lazyrestore.RawFile(tmp_path / "file")
    report = lazyrestore.dump(source, tmp_path / "image.lzr", byte_planes=byte_planes)
    assert report.regions[0].planes == expected
    check(tmp_path / "image.lzr", report.regions[0].name, data)


@pytest.mark.parametrize("wrong", [0, 1, 3, 16, True, 4.0, "4", "yes", None])
def test_byte_planes_that_cannot_be(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ValueError, match='"auto", "none", 2, 4 or 8'):
        lazyrestore.dump(b"1234", tmp_path / "image.lzr", byte_planes=wrong)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [1, 3, 16, -4])
def test_widths_that_cannot_be(tmp_path: Path, wrong: int) -> None:
    with (
        pytest.raises(ValueError, match="region 'x' is 0, 2, 4 or 8, not"),
        ImageWriter(tmp_path / "image.lzr") as writer,
    ):
        writer.add_region("x", width=wrong)


# ---- Together with all else that clusters are ----------------------------------------------------


@pytest.mark.parametrize("cluster_size", [4 * KIB, 8 * KIB, 64 * KIB, 2 * MIB])
@pytest.mark.parametrize("page_size", [4 * KIB, 64 * KIB])
def test_every_size_of_cluster(tmp_path: Path, cluster_size: int, page_size: int) -> None:
    if cluster_size < page_size:
        pytest.skip("no cluster is smaller than a page")
    data = weights(700_000).tobytes()[:-3]
    path = tmp_path / "image.lzr"
    with ImageWriter(path, cluster_size=cluster_size, page_size=page_size) as writer:
        writer.add_region("x", width=4)
        writer.write(data[:100_000])
        writer.zero(3 * page_size)
        writer.hole(5 * page_size)
        writer.write(data[100_000:])
    content = data[:100_000] + bytes(8 * page_size) + data[100_000:]
    assert set(widths(path)) == {4}
    check(path, "x", content)


def test_a_repeat_in_another_region_is_as_the_first_was_stored(tmp_path: Path) -> None:
    data = weights(200_000)
    path = tmp_path / "image.lzr"
    report = lazyrestore.dump(
        {"floats": data, "bytes": data.view("u1"), "wider": data.view("<f8")}, path
    )
    assert report.duplicate_bytes == 2 * data.nbytes
    assert [region.planes for region in report.regions] == [4, 4, 4]
    for name in ("floats", "bytes", "wider"):
        check(path, name, data.tobytes())


def test_a_repeat_of_what_is_plain_is_plain(tmp_path: Path) -> None:
    data = weights(200_000)
    path = tmp_path / "image.lzr"
    report = lazyrestore.dump({"bytes": data.view("u1"), "floats": data}, path)
    assert [region.planes for region in report.regions] == [0, 0]
    assert decoded(path).critical == 0
    check(path, "floats", data.tobytes())


def test_many_threads_agree(tmp_path: Path) -> None:
    """The same content under way in two jobs at once, of two widths: the first one is kept."""
    data = weights(MIB // 4)
    regions = {f"{number}": data.view(["<f4", "u1", "<f8"][number % 3]) for number in range(12)}
    for turn in range(4):
        path = tmp_path / f"{turn}.lzr"
        lazyrestore.dump(regions, path, threads=8)
        with lazyrestore.open(path) as image:
            assert image.verify().damage == ()
            assert all(image.read(name) == data.tobytes() for name in regions)


def test_optimize_keeps_them(tmp_path: Path) -> None:
    data = weights(300_000)
    path = tmp_path / "image.lzr"
    lazyrestore.dump({"w": data}, path)
    with lazyrestore.restore(path, record=tmp_path / "w.ws") as session:
        session["w"][900_000]
    report = lazyrestore.optimize(path, tmp_path / "w.ws", tmp_path / "new.lzr")
    with lazyrestore.open(tmp_path / "new.lzr") as image:
        assert image.read("w") == data.tobytes()
        assert image.verify().damage == ()
        assert image.regions[0].planes == 4
        assert image.digest == report.digest


@st.composite
def pieces(draw: st.DrawFn) -> list[tuple[str, int]]:
    kinds = st.sampled_from(["floats", "ints", "noise", "text", "zero", "hole"])
    lengths = st.one_of(st.integers(0, 40_000), st.sampled_from([4096, 8192, 16384, 65536, 131072]))
    return draw(st.lists(st.tuples(kinds, lengths), max_size=8))


def content_of(kind: str, length: int) -> bytes:
    if kind in ("zero", "hole"):
        return bytes(length)
    if kind == "text":
        return (b"text, which repeats itself, " * (length // 28 + 1))[:length]
    generator = numpy.random.default_rng(length)
    if kind == "noise":
        return generator.bytes(length)
    count = length // 4 + 1
    made = generator.standard_normal(count, "f4") if kind == "floats" else numpy.arange(count)
    return made.tobytes()[:length]


@given(
    regions=st.lists(st.tuples(st.sampled_from([0, 2, 4, 8]), pieces()), max_size=3),
    cluster_size=st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB]),
    byte_planes=st.sampled_from(["auto", "auto", "none", 2, 4, 8]),
)
@settings(deadline=None, max_examples=40)
def test_anything_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    regions: list[tuple[int, list[tuple[str, int]]]],
    cluster_size: int,
    byte_planes: object,
) -> None:
    path = tmp_path_factory.mktemp("planes") / "image.lzr"
    contents = []
    with ImageWriter(
        path,
        cluster_size=cluster_size,
        byte_planes=byte_planes,  # type: ignore[arg-type]
    ) as writer:
        for number, (width, parts) in enumerate(regions):
            writer.add_region(str(number), width=width)
            for kind, length in parts:
                if kind == "hole":
                    writer.hole(length)
                else:
                    writer.write(content_of(kind, length))
            contents.append(b"".join(itertools.starmap(content_of, parts)))
    found = decoded(path)
    with lazyrestore.open(path) as image:
        assert image.verify().damage == ()
        for number, content in enumerate(contents):
            assert image.read(str(number)) == content
            assert found.content(str(number)) == content
    if byte_planes == "none":
        assert found.critical == 0
