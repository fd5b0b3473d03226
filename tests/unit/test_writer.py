"""ImageWriter: whatever is written in whatever pieces, and arguments that cannot be."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writer_support import GIB, KIB, MIB, PAGE, decode, noise, temporaries, workers

from lazyrestore import ImageWriter


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "image.lzr"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    gc.collect()
    assert temporaries(tmp_path) == []
    assert workers() == []


class Model:
    """What an image must hold, kept a byte at a time."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.kinds = bytearray()  # 1: zero or data, 0: hole

    def add(self, kind: str, length: int, data: bytes = b"") -> None:
        self.content += data or bytes(length)
        self.kinds += bytes([kind != "hole"]) * length

    def states(self, page_size: int) -> str:
        states = []
        for start in range(0, len(self.content), page_size):
            page = slice(start, start + page_size)
            if any(self.content[page]):
                states.append("d")
            else:
                states.append("z" if any(self.kinds[page]) else "h")
        return "".join(states)


# ---- Any mixture of pieces -----------------------------------------------------------------------

lengths = st.one_of(
    st.integers(0, 10),
    st.integers(0, 3 * PAGE),
    st.sampled_from([1, PAGE - 1, PAGE, PAGE + 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1]),
    st.integers(0, 400 * KIB),
    st.sampled_from([MIB - 1, MIB, MIB + PAGE, 3 * MIB + 5]),
)
pieces = st.tuples(
    st.sampled_from(["data", "data", "stable", "zeros written", "zero", "hole"]),
    lengths,
    st.integers(0, 3),
)
regions = st.lists(st.lists(pieces, max_size=12), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    regions=regions,
    cluster_size=st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB, 2 * MIB]),
    page_size=st.sampled_from([4096, 4096, 16384]),
    threads=st.sampled_from([1, 2]),
)
def test_any_mixture_of_pieces_is_kept(regions, cluster_size, page_size, threads):
    cluster_size = max(cluster_size, page_size)
    models: dict[str, Model] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "image.lzr")
        writer = ImageWriter(
            path, page_size=page_size, cluster_size=cluster_size, threads=threads, level=1
        )
        with writer:
            for number, region in enumerate(regions):
                name = f"region {number}"
                model = models[name] = Model()
                writer.add_region(name)
                for kind, length, seed in region:
                    if kind in ("zero", "hole"):
                        getattr(writer, kind)(length)
                        model.add(kind, length)
                        continue
                    data = bytes(length) if kind == "zeros written" else noise(length, seed)
                    if length and seed == 3:  # mostly zero pages
                        data = bytes(length - 1) + b"\1"
                    if kind == "stable":
                        writer.write_stable(data)
                    else:
                        passing = bytearray(data)
                        writer.write(passing)
                        passing[:] = b"\xff" * length  # as a caller may
                    model.add("data", length, data)
        report = writer.close()
        decoded = decode(path)
    assert list(decoded.regions) == list(models)
    for name, model in models.items():
        assert decoded.content(name) == model.content
        assert decoded.states(name) == model.states(page_size)
    assert report.logical_bytes == decoded.logical_bytes
    assert report.zero_bytes == decoded.zero_bytes
    assert report.hole_bytes == decoded.hole_bytes
    assert report.duplicate_bytes == decoded.duplicate_bytes
    assert report.data_bytes + report.zero_bytes + report.hole_bytes == report.logical_bytes
    assert report.digest == decoded.digest.hex()
    assert report.stored_bytes == len(decoded.data)


@settings(max_examples=40, deadline=None)
@given(runs=st.lists(st.tuples(st.sampled_from("zhd"), st.integers(1, 70000)), max_size=8))
def test_index_of_long_runs(runs):
    """Runs across many nodes of the index: states and tallies by counting, not by content."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "image.lzr")
        with ImageWriter(path, cluster_size=4 * KIB, threads=1) as writer:
            writer.add_region("memory")
            for kind, clusters in runs:
                if kind == "z":
                    writer.zero(clusters * PAGE)
                elif kind == "h":
                    writer.hole(clusters * PAGE)
                else:
                    writer.write(b"\1" * PAGE * min(clusters, 300))
        decoded = decode(path)
    expected = "".join(k * (min(n, 300) if k == "d" else n) for k, n in runs)
    assert decoded.states("memory") == expected


@pytest.mark.parametrize("gap", ["zero", "hole"])
def test_huge_gaps_cost_nothing(path, gap):
    start = time.process_time()
    with ImageWriter(path) as writer:
        writer.add_region("a")
        writer.write(b"x")
        getattr(writer, gap)(64 * GIB)
        writer.write(b"y")
        writer.add_region("b")
        getattr(writer, gap)((1 << 61) + 12345)
    # Milliseconds; the limit only tells them from what a loop over 64 GiB would take.
    assert time.process_time() - start < 2
    assert os.path.getsize(path) < 64 * KIB
    decoded = decode(path)
    assert decoded.logical_bytes == 64 * GIB + 2 + (1 << 61) + 12345


def test_a_page_of_zeros_and_holes_is_zero_and_one_of_holes_only_a_hole(path):
    with ImageWriter(path) as writer:
        writer.add_region("memory")
        for _ in range(8):
            writer.hole(PAGE // 8)
        writer.hole(PAGE - 1)
        writer.zero(1)
        writer.zero(PAGE - 1)
        writer.hole(1 + PAGE + 1)
        writer.write(b"\0")
        writer.hole(PAGE - 2)
        writer.hole(100)  # the last page ends here
    assert decode(path).states("memory") == "hzzhzh"


def test_equal_clusters_are_stored_once(path):
    cluster = noise(64 * KIB)
    text = b"compresses well " * 4096
    with ImageWriter(path) as writer:
        writer.add_region("a")
        for _ in range(20):
            writer.write(cluster)
        for _ in range(10):
            writer.write(text)
        writer.add_region("b")
        writer.write(cluster)
        # The same data pages with a hole between them.
        writer.write(text[: 60 * KIB])
        writer.add_region("c")
        writer.write(cluster[: 8 * KIB])
        writer.hole(8 * KIB)
        writer.add_region("d")
        writer.hole(8 * KIB)
        writer.write(cluster[: 8 * KIB])
    decoded = decode(path)
    assert decoded.stored_clusters == 4
    assert decoded.duplicate_bytes == 19 * 64 * KIB + 9 * 64 * KIB + 64 * KIB + 8 * KIB
    assert decoded.content("b") == cluster + text[: 60 * KIB]


def test_digest_does_not_depend_on_level_threads_or_pieces(tmp_path):
    data = noise(3 * MIB) + bytes(MIB) + b"text " * 400000 + noise(MIB)
    digests = set()
    for number, (level, threads, step) in enumerate(
        [(1, 1, 5 * MIB), (3, 2, 100_003), (-5, 4, MIB), (19, 2, 64 * KIB), (0, 3, 4096)]
    ):
        with ImageWriter(tmp_path / f"{number}.lzr", level=level, threads=threads) as writer:
            writer.add_region("memory", address=number * PAGE, protection=number)
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
        digests.add(writer.close().digest)
        assert decode(tmp_path / f"{number}.lzr").content("memory") == data
    assert len(digests) == 1


def test_digest_depends_on_everything_else(tmp_path):
    def digest_of(data=b"\1" * 9000, name="a", metadata=None, cluster_size=64 * KIB, hole=0):
        with ImageWriter(tmp_path / "x.lzr", cluster_size=cluster_size) as writer:
            writer.add_region(name, metadata=metadata)
            writer.write(data)
            writer.hole(hole) if hole > 0 else writer.zero(-hole)
        return writer.close().digest

    digests = [
        digest_of(),
        digest_of(data=b"\1" * 8999 + b"\2"),
        digest_of(data=b"\1" * 9001),
        digest_of(name="b"),
        digest_of(metadata={"a": 1}),
        digest_of(cluster_size=4096),
        digest_of(hole=8192),
        digest_of(hole=-8192),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_of() == digests[0]


def test_two_images_of_the_same_have_different_ids(tmp_path):
    for name in ("1", "2"):
        with ImageWriter(tmp_path / name) as writer:
            writer.add_region("memory")
    assert decode(tmp_path / "1").id != decode(tmp_path / "2").id


def test_a_payload_is_what_the_zstd_command_decodes(path):
    text = b"a frame like any other\n" * 3000
    with ImageWriter(path) as writer:
        writer.add_region("memory")
        writer.write(text)
    decoded = decode(path)
    frames = [record.payload for record in decoded.records if record.key == "cluster"]
    out = b""
    for frame in frames:
        try:
            done = subprocess.run(
                ["zstd", "-dc"], input=frame, capture_output=True, check=True, timeout=60
            )
        except FileNotFoundError:
            pytest.skip("there is no zstd command here")
        out += done.stdout
    assert out[: len(text)] == text


def test_header_says_what_and_when(path):
    with ImageWriter(path, source="a test \udcff" + "x" * 10000) as writer:
        writer.add_region("memory")
    header = decode(path).header
    assert header["source"].startswith(r"a test \udcffxxx")
    assert len(header["source"]) == 4096
    assert header["writer"].startswith("lazyrestore ")
    assert header["created"].endswith("Z")


def test_regions_keep_what_they_were_given(path):
    metadata = {"array": {"dtype": [["a", "<i4"]], "shape": [1, 2], "order": "C"}, "é": None}
    with ImageWriter(path) as writer:
        writer.add_region("内存 " * 100, address=(1 << 64) - PAGE, protection=7, metadata=metadata)
        writer.add_region("s", shared=True, protection=0)
        writer.zero(5)
    report = writer.close()
    decoded = decode(path)
    first, second = decoded.regions.values()
    assert first.name == "内存 " * 100
    assert (first.address, first.protection, first.flags) == ((1 << 64) - PAGE, 7, 0)
    assert first.metadata == metadata
    assert (second.length, second.protection, second.flags) == (5, 0, 1)
    assert [(r.name, r.length, r.shared) for r in report.regions] == [
        ("内存 " * 100, 0, False),
        ("s", 5, True),
    ]


def test_progress_is_told_now_and_then_and_at_the_end(path):
    told = []
    begin = time.monotonic()
    with ImageWriter(path, progress=lambda *now: told.append(now), total_bytes=99) as writer:
        writer.add_region("memory")
        for _ in range(300):
            writer.write(bytes(64 * KIB))
    passed = time.monotonic() - begin
    assert told[-1] == (300 * 64 * KIB, 99)
    assert told == sorted(told)
    # Each 50 ms, and at both ends. (Not from one to the next: this thread may be put aside.)
    assert len(told) <= passed / 0.05 + 2


# ---- Arguments that cannot be --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cluster_size": 0}, "cluster"),
        ({"cluster_size": 2048}, "cluster"),
        ({"cluster_size": 65535}, "cluster"),
        ({"cluster_size": 4 * MIB}, "cluster"),
        ({"page_size": 2048}, "page"),
        ({"page_size": 128 * KIB, "cluster_size": MIB}, "page"),
        ({"page_size": 12288}, "page"),
        ({"page_size": 16384, "cluster_size": 4096}, "cluster"),
        ({"level": 23}, "level"),
        ({"level": -8}, "level"),
        ({"threads": 0}, "threads"),
        ({"threads": 257}, "threads"),
    ],
)
def test_settings_that_cannot_be_make_no_file(tmp_path, options, word):
    with pytest.raises(ValueError, match=word):
        ImageWriter(tmp_path / "no.lzr", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("", {}, ValueError),
        ("n" * 4097, {}, ValueError),
        ("é" * 2049, {}, ValueError),
        ("taken", {}, ValueError),
        ("\udc80", {}, ValueError),
        (b"bytes", {}, TypeError),
        ("a", {"address": -1}, ValueError),
        ("a", {"address": 1 << 64}, ValueError),
        ("a", {"protection": 8}, ValueError),
        ("a", {"metadata": {"x": object()}}, TypeError),
        ("a", {"metadata": {1: 2}}, TypeError),
        ("a", {"metadata": {"x": {b"y": [{3: 4}]}}}, TypeError),
        ("a", {"metadata": {"x": 1 << 64}}, TypeError),
    ],
)
def test_a_region_that_cannot_be_is_refused_and_the_writer_goes_on(path, name, options, error):
    with ImageWriter(path) as writer:
        writer.add_region("taken")
        writer.write(b"before")
        with pytest.raises(error):
            writer.add_region(name, **options)
        writer.write(b" and after")
    assert decode(path).content("taken") == b"before and after"


def test_misuse_is_told(path):
    with ImageWriter(path) as writer:
        with pytest.raises(ValueError, match="add_region"):
            writer.write(b"x")
        writer.add_region("memory")
        with pytest.raises(ValueError, match="-1"):
            writer.zero(-1)
        with pytest.raises(TypeError):
            writer.write("text")
        with pytest.raises(ValueError, match="2\\^62"):
            writer.hole((1 << 62) + 1)
        writer.hole(1 << 62)
        with pytest.raises(ValueError, match="2\\^62"):
            writer.write(b"x")
    report = writer.close()
    assert writer.close() is report
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        writer.add_region("more")
    writer.abort()
    assert path.exists()


def test_after_abort_there_is_nothing_to_close(path):
    writer = ImageWriter(path)
    writer.abort()
    with pytest.raises(ValueError, match="closed"):
        writer.close()
    assert not path.exists()


def test_gaps_are_whole_numbers(path):
    with ImageWriter(path) as writer:
        writer.add_region("memory")
        with pytest.raises(TypeError):
            writer.zero(5.0)
        with pytest.raises(TypeError):
            writer.hole("5")
        writer.zero(5)
    assert writer.close().regions[0].length == 5


@pytest.mark.parametrize("before", [0, 1, 4096, 65536 + 5])
def test_what_is_fetched_is_kept_up_to_where_it_ends(path, before):
    content = noise(3 * MIB + 77)
    views = []

    def fetch_all(source):
        def fetch(view):
            views.append(len(view))
            return source.readinto(view)

        return fetch

    with ImageWriter(path) as writer:
        writer.add_region("memory")
        writer.write(noise(before, 1))
        assert writer.fill(fetch_all(io.BytesIO(content)), len(content)) == len(content)
        assert writer.fill(fetch_all(io.BytesIO(content[:5000])), 9 * MIB) == 5000
        assert writer.fill(fetch_all(io.BytesIO()), 10) == 0
        writer.zero(10)  # over bytes that an earlier fetch may have left there
        writer.hole(5 * PAGE)
    expected = noise(before, 1) + content + content[:5000] + bytes(10 + 5 * PAGE)
    assert decode(path).content("memory") == expected
    assert max(views) <= MIB


def test_gaps_in_used_buffers_are_zero(path):
    """Buffers are used again: what an earlier piece left there must not show."""
    with ImageWriter(path, threads=1) as writer:
        writer.add_region("memory")
        writer.write(b"\xff" * 40 * MIB)
        for _ in range(20):
            writer.write(b"x")
            writer.zero(MIB - 1001)
            writer.hole(1000)
    content = decode(path).content("memory")
    assert content[40 * MIB :] == (b"x" + bytes(MIB - 1)) * 20


def test_an_error_of_a_fetch_reaches_the_caller(tmp_path, path):
    def fetch(view):
        raise RuntimeError("no more")

    writer = ImageWriter(path)
    writer.add_region("memory")
    with pytest.raises(RuntimeError, match="no more"):
        writer.fill(fetch, 10)
    assert os.listdir(tmp_path) == []
