"""Working sets: the file, what is refused of it, and merging."""

from __future__ import annotations

import os
import stat
from array import array

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lazyrestore
from lazyrestore import WorkingSet, WorkingSetError
from lazyrestore._native import ffi, lib

DIGEST = "ab" * 32


def made(clusters, times_us=None, *, count=1000, recordings=1, digest=DIGEST, size=65536):
    times_us = range(0, 10 * len(clusters), 10) if times_us is None else times_us
    return WorkingSet(
        digest, size, count, array("Q", clusters), array("Q", times_us), recordings=recordings
    )


def crc(data):
    return lib.lr_crc32c(0, ffi.from_buffer(data), len(data)).to_bytes(4, "big")


def packed(**changes):
    """A file with right checksum of which some fields are others, or missing (None)."""
    fields = msgpack.unpackb(made([5, 3, 9]).pack())
    fields.update(changes)
    fields["crc32c"] = 0xFFFFFFFF
    data = msgpack.packb({key: value for key, value in fields.items() if value is not None})
    return data[:-4] + crc(data[:-4])


# ---- The file ------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    kept = made([5, 3, 9, 0], [1, 1, 50, 1 << 31], recordings=3)
    kept.save(tmp_path / "run.ws")
    found = WorkingSet.load(tmp_path / "run.ws")
    assert found == kept
    assert list(found) == list(found.clusters) == [5, 3, 9, 0]
    assert list(found.times_us) == [1, 1, 50, 1 << 31]
    assert (found.digest, found.cluster_size, found.cluster_count) == (DIGEST, 65536, 1000)
    assert (len(found), found.nbytes, found.recordings) == (4, 4 * 65536, 3)
    assert found.path == str(tmp_path / "run.ws")
    assert found != made([5, 3, 9])
    assert found != 5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip_of_any(data):
    count = data.draw(st.integers(1, (1 << 33)) | st.just(1 << 50))
    clusters = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=50))
    times = sorted(
        data.draw(
            st.lists(st.integers(0, (1 << 32) - 1), min_size=len(clusters), max_size=len(clusters))
        )
    )
    size = data.draw(st.sampled_from([4096, 65536, 2 << 20]))
    kept = made(clusters, times, count=count, size=size)
    assert WorkingSet.unpack(kept.pack()) == kept


def test_any_msgpack_reader_takes_it():
    """Plain arrays, string keys, and a checksum that is the file's end: docs/working-sets.md"""
    data = made([5, 3, 9], [7, 7, 20]).pack()
    fields = msgpack.unpackb(data)
    assert fields.pop("crc32c") == int.from_bytes(crc(data[:-4]), "big")
    assert fields == {
        "lazyrestore working set": 1,
        "digest": bytes.fromhex(DIGEST),
        "cluster_size": 65536,
        "cluster_count": 1000,
        "recordings": 1,
        "clusters": b"".join(number.to_bytes(4, "little") for number in (5, 3, 9)),
        "gaps_us": b"".join(number.to_bytes(4, "little") for number in (7, 0, 13)),
    }


def test_it_is_small():
    """Eight bytes a cluster"""
    assert len(made(range(1000)).pack()) < 8 * 1000 + 200


def test_long_gaps_saturate():
    """A touch two hours after the one before: the order is kept, the time is not exact"""
    found = WorkingSet.unpack(made([1, 2, 3], [0, 7_200_000_000, 7_200_000_005]).pack())
    assert list(found.times_us) == [0, (1 << 32) - 1, (1 << 32) + 4]


def test_it_replaces_whole_files_only(tmp_path):
    path = tmp_path / "run.ws"
    path.write_bytes(b"before")
    made([1]).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["run.ws"]
    with pytest.raises(FileNotFoundError):
        made([1]).save(tmp_path / "none" / "run.ws")


# ---- What is refused -----------------------------------------------------------------------------

BAD = {
    "version": ({"lazyrestore working set": 2}, "upgrade"),
    "version of another kind": ({"lazyrestore working set": [1]}, "number"),
    "no digest": ({"digest": None}, "digest"),
    "short digest": ({"digest": bytes(31)}, "digest"),
    "text digest": ({"digest": "ab" * 16}, "digest"),
    "cluster size": ({"cluster_size": 65537}, "power of two"),
    "cluster size of 0": ({"cluster_size": 0}, "cluster_size"),
    "boolean": ({"cluster_count": True}, "cluster_count"),
    "float": ({"cluster_count": 1000.0}, "cluster_count"),
    "negative": ({"cluster_count": -1}, "cluster_count"),
    "too many": ({"cluster_count": (1 << 50) + 1}, "cluster_count"),
    "recordings": ({"recordings": 0}, "recordings"),
    "no clusters": ({"clusters": None}, "clusters"),
    "clusters as a list": ({"clusters": [5, 3, 9]}, "clusters"),
    "half a cluster": ({"clusters": bytes(10)}, "clusters"),
    "more times": ({"gaps_us": bytes(16)}, "one time a cluster"),
    "fewer times": ({"gaps_us": bytes(8)}, "one time a cluster"),
    "outside of the image": ({"cluster_count": 9}, "no such image"),
    "in no image at all": ({"cluster_count": 0}, "no such image"),
    "twice": ({"clusters": bytes(12)}, "twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_fields(name):
    changes, word = BAD[name]
    assert WorkingSet.unpack(packed())  # or it would be refused for something else
    with pytest.raises(WorkingSetError, match=word):
        WorkingSet.unpack(packed(**changes))


def test_every_byte_counts():
    """Whichever is changed, and wherever it is cut"""
    data = made([5, 3, 9]).pack()
    for at in range(len(data)):
        with pytest.raises(WorkingSetError):
            WorkingSet.unpack(data[:at])
        for bit in (1, 0x80):
            changed = bytearray(data)
            changed[at] ^= bit
            with pytest.raises(WorkingSetError):
                WorkingSet.unpack(bytes(changed))
    with pytest.raises(WorkingSetError):
        WorkingSet.unpack(data + b"\0")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_hostile_bytes_behind_a_right_checksum(junk, is_map):
    """Whoever writes the file can make the checksum too: still an error that says so"""
    start = b"\x88\xb7lazyrestore working set" + (b"\x01" if is_map else b"")
    body = start + junk + b"\xa6crc32c\xce"
    with pytest.raises(WorkingSetError):
        WorkingSet.unpack(body + crc(body))


def test_depth_and_lengths_that_lie():
    """Arrays in arrays, and an array of four billion that is not there"""
    for junk in (b"\x91" * 60000, b"\xdd\xff\xff\xff\xff", b"\xa1a\x01\xa1a\x01"):
        body = b"\x88\xb7lazyrestore working set\x01" + junk + b"\xa6crc32c\xce"
        with pytest.raises(WorkingSetError, match="damaged"):
            WorkingSet.unpack(body + crc(body))


@pytest.mark.parametrize("data", [b"", b"\x80", b"lazyrestore working set", os.urandom(5000)])
def test_other_files(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(WorkingSetError, match="not a working set") as caught:
        WorkingSet.load(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


def test_what_is_no_regular_file(tmp_path):
    """Nobody waits for a FIFO"""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WorkingSetError, match="regular file"):
        WorkingSet.load(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError):
        WorkingSet.load(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        WorkingSet.load(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")


def test_an_image_is_none(make_image):
    with pytest.raises(WorkingSetError, match="not a working set"):
        WorkingSet.load(make_image({"a": "d"}).path)


def test_it_belongs_to_the_content(make_image):
    """Not to the file: one that was written again has the same clusters"""
    one, same, other = (make_image({"a": kinds}) for kinds in ("dz", "dz", "zd"))
    with lazyrestore.open(one.path) as image:
        mine = WorkingSet(
            image.digest, image.cluster_size, image.cluster_count, array("Q", [0]), array("Q", [1])
        )
    with lazyrestore.open(same.path) as image:
        assert mine.belongs_to(image)
        assert mine.check(image) is mine
    with lazyrestore.open(other.path) as image:
        assert not mine.belongs_to(image)
        with pytest.raises(WorkingSetError, match="record one of this image"):
            mine.check(image)


# ---- Merging -------------------------------------------------------------------------------------


def test_merging_goes_by_the_best_rank():
    """By hand: ranks 5:0, 3:1, 9:2 and 8:0, 9:1, 3:2, 1:3"""
    first, second = made([5, 3, 9], [10, 20, 900]), made([8, 9, 3, 1], [5, 30, 40, 50])
    merged = first.merge(second)
    assert list(merged) == [5, 8, 3, 9, 1]
    assert list(merged.times_us) == [10, 10, 20, 30, 50]
    assert merged.recordings == 2
    assert merged.merge(made([])).recordings == 3
    assert list(first) == [5, 3, 9]
    assert first.merge() == first


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), unique=True, max_size=30), min_size=1, max_size=4))
def test_merging_any(runs):
    sets = [made(run, count=61) for run in runs]
    merged = sets[0].merge(*sets[1:])
    assert sorted(merged) == sorted(set().union(*map(set, runs)))
    best = {each: min(run.index(each) for run in runs if each in run) for each in merged}
    assert [best[each] for each in merged] == sorted(best.values())
    assert list(merged.times_us) == sorted(merged.times_us)
    assert merged.recordings == len(runs)
    assert WorkingSet.unpack(merged.pack()) == merged


@pytest.mark.parametrize("other", [{"digest": "cd" * 32}, {"size": 4096}, {"count": 999}], ids=str)
def test_merging_those_of_different_images(other):
    with pytest.raises(WorkingSetError, match="different images"):
        made([1]).merge(made([2]), made([3], **other))
