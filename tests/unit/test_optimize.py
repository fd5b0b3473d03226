"""`optimize`: another order in the file, and nothing else."""

from __future__ import annotations

import itertools
import os
import random
from array import array

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import SOUND, sound
from restore_support import PAGE, flip, payloads, write_image

import lazyrestore
from lazyrestore import ImageError, WorkingSet, WorkingSetError
from lazyrestore import format as fmt


def set_of(path, clusters):
    """A working set of an image, by hand."""
    with lazyrestore.open(path) as image:
        return WorkingSet(
            image.digest,
            image.cluster_size,
            image.cluster_count,
            array("Q", clusters),
            array("Q", range(len(clusters))),
        )


def places(path):
    """Where each cluster's payload lies: number → offset, length; None where it has none."""
    found = {}
    with lazyrestore.open(path) as image, image.reader() as reader:
        for cluster in range(image.cluster_count):
            info = reader.cluster(cluster)
            stored = (int(info.payload_offset), int(info.payload_bytes))
            found[cluster] = stored if info.payload_bytes else None
    return found


def check_same(old, new):
    """Bytes, digest, regions, metadata, tallies; `verify` finds nothing; msgpack walks it."""
    with lazyrestore.open(old) as before, lazyrestore.open(new) as after:
        assert after.verify().damage == ()
        assert after.regions == before.regions
        assert after.all_metadata() == before.all_metadata()
        before_files = dict(before.files)
        assert after.files == before_files
        for region in before.regions:
            if region.length < 1 << 24:  # of larger ones the digest says it
                assert after.read(region.name) == before.read(region.name)
        other = {"path", "id", "writer", "stored_bytes", "ratio"}
        infos = [
            {name: getattr(each.info, name) for name in each.info.__slots__ if name not in other}
            for each in (before, after)
        ]
        assert infos[0] == infos[1]
        assert before.info.id != after.info.id
    with open(new, "rb") as file:
        kinds = [next(iter(record)) for record in msgpack.Unpacker(file)]
    assert kinds[0] == "lazyrestore"
    end = ["metadata", *(["files"] if before_files else []), "root", "footer"]
    assert kinds[-len(end) :] == end
    assert set(kinds[1 : -len(end)]) <= {"cluster", "index"}


def check_front(new, clusters):
    """Hot clusters follow each other in their order, with no cluster before them."""
    where = places(new)
    hot = list(dict.fromkeys(where[each] for each in clusters if where[each]))
    for before, after in itertools.pairwise(hot):
        assert after[0] == before[0] + before[1] + len(fmt.record_head("cluster", after[1]))
    stored = sorted({place for place in where.values() if place})
    assert stored[: len(hot)] == hot
    return hot


def test_hot_clusters_are_at_the_front(tmp_path):
    """2,000 clusters in several leaves of the index, 200 of them hot, in an order of their own"""
    old, new = tmp_path / "old.lzr", tmp_path / "new.lzr"
    write_image(old, {"a": "dzhr" * 400, "b": "d" * 400}, cluster_size=PAGE)
    hot = random.Random(3).sample(range(2000), 200)
    report = lazyrestore.optimize(old, set_of(old, hot), new)
    check_same(old, new)
    stored = check_front(new, hot)
    assert report.hot_clusters == 200
    assert report.hot_bytes == 200 * PAGE
    assert report.hot_payload_bytes == sum(length for _, length in stored)
    assert report.front_bytes == sum(stored[-1])
    assert report.stored_bytes == new.stat().st_size == old.stat().st_size
    found = WorkingSet.load(f"{new}.ws")
    assert list(found) == hot
    assert report.working_set == f"{new}.ws"
    assert new.stat().st_mode & 0o777 == 0o600


def test_what_a_replay_reads_is_one_piece(tmp_path):
    """The index nodes of hot clusters lie before these; those of others do not"""
    old, new = tmp_path / "old.lzr", tmp_path / "new.lzr"
    write_image(old, {"a": "r" * 1000}, cluster_size=PAGE)
    report = lazyrestore.optimize(old, set_of(old, [300, 301, 700]), new)
    with open(new, "rb") as file:
        unpacker = msgpack.Unpacker(file)
        records = []
        for record in unpacker:
            (kind, payload), end = next(iter(record.items())), unpacker.tell()
            if kind == "index":
                head = fmt.NodeHead.unpack(payload)
                records.append((kind, head.level, head.first_cluster, end))
            elif kind == "cluster":
                records.append((kind, end))
    assert [each[:3] for each in records[:3]] == [
        ("index", 0, 256),
        ("index", 0, 512),
        ("index", 1, 0),
    ]
    assert [each[0] for each in records[3:-2]] == ["cluster"] * 1000
    assert records[5][1] == report.front_bytes
    assert [each[:3] for each in records[-2:]] == [("index", 0, 0), ("index", 0, 768)]


def test_repeats_are_kept_once(tmp_path):
    """Two hot clusters with one record, and cold ones that share it"""
    old, new = tmp_path / "old.lzr", tmp_path / "new.lzr"
    write_image(old, {"a": "drdrdrdr" * 8, "b": "drdrdrdr" * 8}, cluster_size=4 * PAGE)
    hot = [20, 4, 25, 4 + 16]
    hot = list(dict.fromkeys(hot))
    report = lazyrestore.optimize(old, set_of(old, hot), new)
    check_same(old, new)
    assert len(check_front(new, hot)) < len(hot)
    assert report.stored_bytes == old.stat().st_size


@pytest.mark.parametrize("name", SOUND)
def test_every_golden_image(tmp_path, name):
    """With each second cluster hot, last ones first, and with none"""
    old, new = sound(name), tmp_path / "new.lzr"
    with lazyrestore.open(old) as image:
        count = image.cluster_count
    hot = list(range(min(count, 4000)))[::-2]
    for each in (hot, []):
        lazyrestore.optimize(old, set_of(old, each), new)
        check_same(old, new)
        if count < 10000:
            check_front(new, each)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_image_and_set(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    old, new = folder / "old.lzr", folder / "new.lzr"
    layouts = data.draw(
        st.lists(st.text(alphabet="drzh", max_size=40), max_size=3).map(
            lambda texts: {f"r{number}": text for number, text in enumerate(texts)}
        )
    )
    write_image(old, layouts, cluster_size=data.draw(st.sampled_from([PAGE, 4 * PAGE])))
    with lazyrestore.open(old) as image:
        count = image.cluster_count
    hot = data.draw(st.lists(st.integers(0, count - 1), unique=True)) if count else []
    lazyrestore.optimize(old, set_of(old, hot), new)
    check_same(old, new)
    check_front(new, hot)
    lazyrestore.optimize(new, set_of(new, hot[::-1]), old)
    check_same(new, old)
    check_front(old, hot[::-1])


def test_several_recordings(tmp_path):
    """Merged, from files or not; the merged one lies beside the new image"""
    old, new = tmp_path / "old.lzr", tmp_path / "new.lzr"
    write_image(old, {"a": "r" * 100}, cluster_size=PAGE)
    one, two = set_of(old, [50, 3]), set_of(old, [7, 50])
    two.save(tmp_path / "two.ws")
    report = lazyrestore.optimize(old, [one, tmp_path / "two.ws"], new)
    assert report.recordings == 2
    assert list(WorkingSet.load(f"{new}.ws")) == [50, 7, 3]
    check_front(new, [50, 7, 3])


def test_in_place(tmp_path):
    """Over the old image, which is read to its end before it goes"""
    path = tmp_path / "x.lzr"
    expected = write_image(path, {"a": "dr" * 300}, cluster_size=PAGE)
    lazyrestore.optimize(path, set_of(path, [599, 1]), path)
    with lazyrestore.open(path) as image:
        assert image.read("a") == expected["a"]
    check_front(path, [599, 1])
    assert sorted(os.listdir(tmp_path)) == ["x.lzr", "x.lzr.ws"]


def test_a_damaged_image_is_refused(tmp_path):
    """In a cluster, hot or not, or in the index; the target stays as it was, and nothing is left"""
    old, new = tmp_path / "old.lzr", tmp_path / "new.lzr"
    write_image(old, {"a": "r" * 600}, cluster_size=PAGE)
    new.write_bytes(b"before")
    hot = set_of(old, [5])
    with lazyrestore.open(old) as image:
        node = image.file_bytes - fmt.FOOTER_RECORD_BYTES - 2000
    where = payloads(old, "a")
    for at in (where[5][0] + 9, where[400][0] + 4095, node):
        flip(old, at)
        with pytest.raises(ImageError, match="another copy"):
            lazyrestore.optimize(old, hot, new)
        flip(old, at)
        assert new.read_bytes() == b"before"
        assert sorted(os.listdir(tmp_path)) == ["new.lzr", "old.lzr"]
    lazyrestore.optimize(old, hot, new)
    check_same(old, new)


def test_what_does_not_go_together(tmp_path):
    old, other = tmp_path / "old.lzr", tmp_path / "other.lzr"
    write_image(old, {"a": "r" * 6})
    write_image(other, {"a": "d" * 6})
    with pytest.raises(WorkingSetError, match="record one of this image"):
        lazyrestore.optimize(old, [set_of(old, [0]), set_of(other, [0])], tmp_path / "new.lzr")
    with pytest.raises(ValueError, match="no working set"):
        lazyrestore.optimize(old, [], tmp_path / "new.lzr")
    with pytest.raises(FileNotFoundError):
        lazyrestore.optimize(old, tmp_path / "none.ws", tmp_path / "new.lzr")
    with pytest.raises(FileNotFoundError):
        lazyrestore.optimize(old, set_of(old, [0]), tmp_path / "none" / "new.lzr")
    assert sorted(os.listdir(tmp_path)) == ["old.lzr", "other.lzr"]


def test_nothing_that_is_read_is_replaced_by_another(tmp_path):
    """An image whose name ends as a working set's; and a working set as the output"""
    old = tmp_path / "state.ws"
    write_image(old, {"a": "r" * 6})
    hot = set_of(old, [0])
    hot.save(tmp_path / "run")
    before = old.read_bytes(), (tmp_path / "run").read_bytes()
    for output in ("state", "run"):
        with pytest.raises(ValueError, match="another name"):
            lazyrestore.optimize(old, tmp_path / "run", tmp_path / output)
    assert before == (old.read_bytes(), (tmp_path / "run").read_bytes())
    assert sorted(os.listdir(tmp_path)) == ["run", "state.ws"]


def test_progress(tmp_path):
    """All payloads are counted, once"""
    old = tmp_path / "old.lzr"
    write_image(old, {"a": "r" * 64})
    told = []
    lazyrestore.optimize(
        old, set_of(old, [0]), tmp_path / "new.lzr", progress=lambda *each: told.append(each)
    )
    total = sum(place[1] for place in places(old).values())
    assert told[-1] == (total, total)
    assert told == sorted(told)
