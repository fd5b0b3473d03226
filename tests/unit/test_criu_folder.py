"""Folders of CRIU's images into an image and out again; and which folders are refused."""

from __future__ import annotations

import errno
import json
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from criu_folders import (
    LAZY,
    PAGE,
    PARENT,
    PRESENT,
    FolderMaker,
    contents,
    magic,
    message,
    page,
    pagemap,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lazyrestore
from lazyrestore import CriuFolder, ImageError, ImageWriter
from lazyrestore._criu.checkpoint import Checkpoint
from lazyrestore._criu.pagemap import parse

FIXTURES = Path(__file__).parents[2] / "fixtures"

BOTH = PRESENT | LAZY
HEAP, STACK = 0x5555_0000_3000, 0x7FFF_0000_0000


def plain(path: Path) -> FolderMaker:
    """Two tasks, the second a copy of the first but for a page; shared memory; odd files."""
    made = FolderMaker(path, pids=(7, 9))
    heap = ["a", "b", 0, "c", *range(1, 100)]
    made.memory("shmem-920", [(0, ["s"], PRESENT), (0x30_0000, ["t"], PRESENT)])
    made.memory("7", [(HEAP, heap, BOTH), (STACK, ["stack"], PRESENT), (STACK + PAGE, [0], BOTH)])
    made.memory("9", [(HEAP, ["child", *heap[1:]], BOTH), (STACK, ["stack"], PRESENT)])
    made.put("empty.img", b"")
    made.put("Größe", b"a file with a strange name")
    made.put("dump.log", b"(00.000000) Version: 4.1\n")
    return made


@pytest.fixture
def imported(tmp_path):
    """A folder, and the image made of it."""
    made = plain(tmp_path / "dump")
    report = lazyrestore.dump(CriuFolder(made.path), tmp_path / "image.lzr", cluster_size=65536)
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        yield made.path, image, report


def checkpoint_of(image) -> Checkpoint:
    found = Checkpoint.of(image)
    assert found is not None
    return found


def dump_and_export(source: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    lazyrestore.dump(CriuFolder(source), tmp_path / "made.lzr")
    with lazyrestore.open(tmp_path / "made.lzr") as image:
        assert image.verify().damage == ()
        checkpoint_of(image).write_folder(str(out))
    return out


# ---- What is in the image ------------------------------------------------------------------------


def test_what_comes_out_is_what_went_in(imported, tmp_path):
    source, image, _ = imported
    seen = []
    checkpoint_of(image).write_folder(
        str(tmp_path / "out"), progress=lambda done, total: seen.append((done, total))
    )
    assert contents(tmp_path / "out") == contents(source)
    pages = sum(len(data) for name, data in contents(source).items() if "pages-" in name)
    assert seen[-1] == (pages, pages)


def test_what_the_image_says_of_processes(imported):
    _, image, report = imported
    checkpoint = checkpoint_of(image)
    assert checkpoint.root == 7
    assert [(task.pid, task.ppid, task.comm, task.threads) for task in checkpoint.tasks] == [
        (7, 0, "task 7", 1),
        (9, 7, "task 9", 1),
    ]
    assert [task.nbytes for task in checkpoint.tasks] == [105 * PAGE, 104 * PAGE]
    assert report.processes == image.info.processes == checkpoint.processes
    assert list(checkpoint.objects()) == ["7", "9", "shmem-920"]
    assert image.verify().damage == ()
    said = json.loads(image.files["lazyrestore.json"])
    assert said["shared"] == [{"id": "920", "bytes": 2 * PAGE}]


def test_regions_are_where_memory_was(imported):
    _, image, report = imported
    assert [(region.name, region.address, region.shared) for region in image.regions] == [
        ("7/555500000000-55550006a000", HEAP - 3 * PAGE, False),
        ("7/7fff00000000-7fff00002000", STACK, False),
        ("9/555500000000-55550006a000", HEAP - 3 * PAGE, False),
        ("9/7fff00000000-7fff00001000", STACK, False),
        ("shmem-920/0-1000", 0, True),
        ("shmem-920/300000-301000", 0, True),
    ]
    assert image.read("7/555500000000-55550006a000", 4 * PAGE, PAGE) == page("b")
    assert image.read("9/555500000000-55550006a000", 3 * PAGE, PAGE) == page("child")
    # All but the first cluster of the heap are the parent's too; and its stack.
    assert report.duplicate_bytes == (103 - 13 + 1) * PAGE
    assert report.zero_bytes == 3 * PAGE
    assert report.hole_bytes == 2 * 3 * PAGE


def test_lazy_ranges_are_what_may_come_later(imported):
    _, image, _ = imported
    checkpoint = checkpoint_of(image)
    assert checkpoint.lazy_ranges(7) == [
        (HEAP, 103 * PAGE, 3 * PAGE, 0),
        (STACK + PAGE, PAGE, PAGE, 1),
    ]
    assert checkpoint.lazy_ranges(9) == [(HEAP, 103 * PAGE, 3 * PAGE, 2)]
    assert checkpoint.lazy_ranges(8) == []


def test_the_folder_for_a_lazy_restore(imported, tmp_path):
    source, image, _ = imported
    checkpoint_of(image).write_lazy_folder(str(tmp_path / "lazy"))
    lazy, whole = contents(tmp_path / "lazy"), contents(source)
    assert lazy.keys() == whole.keys()
    for name, data in whole.items():
        if not name.startswith("pag"):
            assert lazy[name] == data
    assert parse(lazy["pagemap-7.img"], "").entries == [
        (HEAP, 103, LAZY),
        (STACK, 1, PRESENT),
        (STACK + PAGE, 1, LAZY),
    ]
    assert lazy["pages-2.img"] == page("stack")
    assert lazy["pages-3.img"] == page("stack")
    assert lazy["pagemap-shmem-920.img"] == whole["pagemap-shmem-920.img"]
    assert lazy["pages-1.img"] == whole["pages-1.img"]


def test_files_that_are_long_become_regions(tmp_path):
    made = plain(tmp_path / "dump")
    archive = os.urandom(5 << 20)
    made.put("tmpfs-dev-1.tar.gz.img", archive)
    # A pagemap can be long too, if it says each page by itself.
    listed = [(HEAP + PAGE * number, 1, BOTH) for number in range(300_000)]
    made.put("pagemap-9.img", pagemap(3, listed))
    with open(made.path / "pages-3.img", "wb") as file:
        file.truncate(300_000 * PAGE)
    assert (made.path / "pagemap-9.img").stat().st_size > 4 << 20
    lazyrestore.dump(CriuFolder(made.path), tmp_path / "image.lzr", cluster_size=65536)
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        assert "tmpfs-dev-1.tar.gz.img" not in image.files
        assert "file/tmpfs-dev-1.tar.gz.img" in [region.name for region in image.regions]
        checkpoint = checkpoint_of(image)
        assert checkpoint.content("tmpfs-dev-1.tar.gz.img") == archive
        assert checkpoint.lazy_ranges(9) == [(HEAP, 300_000 * PAGE, 3 * PAGE, 2)]
        assert image.verify().damage == ()
        checkpoint.write_lazy_folder(str(tmp_path / "lazy"))
    assert (tmp_path / "lazy" / "tmpfs-dev-1.tar.gz.img").read_bytes() == archive
    assert (tmp_path / "lazy" / "pages-3.img").stat().st_size == 0


def test_the_golden_image_of_processes(tmp_path):
    """What an earlier version wrote, every later one makes the same folder of"""
    with lazyrestore.open(FIXTURES / "processes.lzr") as image:
        checkpoint = checkpoint_of(image)
        assert (checkpoint.criu_version, checkpoint.root) == ("4.1.1", 7)
        assert [(task.pid, task.ppid, task.comm, task.threads) for task in checkpoint.tasks] == [
            (7, 0, "parent", 2),
            (9, 7, "child", 1),
        ]
        assert checkpoint.lazy_ranges(7) == [(HEAP - 2 * PAGE, 2 * PAGE, PAGE, 0)]
        assert checkpoint.lazy_ranges(9) == [(HEAP - 2 * PAGE, 2 * PAGE, PAGE, 2)]
        assert image.verify().damage == ()
        checkpoint.write_folder(str(tmp_path / "whole"))
        checkpoint.write_lazy_folder(str(tmp_path / "lazy"))
        heap, child = (image.read(f"{pid}/555500000000-555500003000")[PAGE:] for pid in (7, 9))
        stack = image.read("7/7fff00000000-7fff00001000")
        kept = {name: data for name, data in image.files.items() if name != "lazyrestore.json"}
        kept |= {"long": image.read("file/long"), "pages-1.img": image.read("shmem-4/0-1000")}
    whole = {**kept, "pages-2.img": heap + stack, "pages-3.img": child}
    assert contents(tmp_path / "whole") == whole
    lazy = contents(tmp_path / "lazy")
    assert (lazy["pages-2.img"], lazy["pages-3.img"]) == (stack, b"")
    assert parse(lazy["pagemap-9.img"], "").entries == [(HEAP - 2 * PAGE, 2, LAZY)]


def test_a_zombie_has_no_memory(tmp_path):
    made = FolderMaker(tmp_path / "dump", pids=(7, 8))
    made.core(8, "gone", state=2)
    made.memory("7", [(HEAP, ["x"], BOTH)])
    lazyrestore.dump(CriuFolder(made.path), tmp_path / "image.lzr")
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        tasks = checkpoint_of(image).tasks
        assert [(task.comm, task.is_zombie) for task in tasks] == [
            ("task 7", False),
            ("gone", True),
        ]
        assert checkpoint_of(image).lazy_ranges(8) == []


def test_an_image_of_memory_has_no_processes(tmp_path):
    lazyrestore.dump(b"memory", tmp_path / "image.lzr")
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        assert Checkpoint.of(image) is None
        assert image.info.processes == ()
    with ImageWriter(tmp_path / "files.lzr") as writer:
        writer.add_file("other", b"")
    with lazyrestore.open(tmp_path / "files.lzr") as image:
        assert Checkpoint.of(image) is None


def test_optimize_keeps_the_files(imported, tmp_path):
    source, image, _ = imported
    working_set = lazyrestore.WorkingSet(
        image.digest, image.cluster_size, image.cluster_count, [1, 0], [0, 1]
    )
    lazyrestore.optimize(image.path, working_set, tmp_path / "better.lzr")
    with lazyrestore.open(tmp_path / "better.lzr") as better:
        assert better.files == image.files
        assert better.verify().damage == ()
        checkpoint_of(better).write_folder(str(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(source)


# ---- Folders that build on others ----------------------------------------------------------------


def chain(tmp_path: Path, depth: int) -> tuple[Path, Path]:
    """The newest of some folders; and one that has the same pages all by itself."""
    pages = {HEAP + number * PAGE: f"first {number}" for number in range(20)}
    previous = None
    for level in range(depth):
        made = FolderMaker(tmp_path / f"dump{level}")
        here = {HEAP + (level * 3 + n) % 20 * PAGE: f"{level} {n}" for n in range(2)}
        pages |= here if previous else {}
        entries = [
            (address, [seed], BOTH)
            if previous is None or address in here
            else (address, [seed], PARENT)
            for address, seed in sorted(pages.items())
        ]
        made.memory("7", entries)
        if previous is not None:
            made.parent(f"../{previous.name}")
        previous = made.path
    whole = FolderMaker(tmp_path / "whole")
    whole.memory("7", [(HEAP, [seed for _, seed in sorted(pages.items())], BOTH)])
    assert previous is not None
    return previous, whole.path


@pytest.mark.parametrize("depth", [2, 3, 40])
def test_folders_that_build_on_others_become_one(tmp_path, depth):
    newest, whole = chain(tmp_path, depth)
    out = dump_and_export(newest, tmp_path)
    assert contents(out) == contents(whole)
    assert not (out / "parent").exists()


def test_a_folder_with_a_parent_of_which_it_needs_nothing(tmp_path):
    newest, _ = chain(tmp_path, 2)
    made = plain(tmp_path / "dump")
    made.parent(newest)
    out = dump_and_export(made.path, tmp_path)
    assert contents(out) == contents(made.path)


def test_a_circle_of_folders_is_refused(tmp_path):
    for name in ("a", "b", "c"):
        made = FolderMaker(tmp_path / name)
        made.memory("7", [(HEAP, ["x"], PARENT)])
        made.parent({"a": "../b", "b": "../c", "c": "../a"}[name])
    with pytest.raises(ImageError, match="the folders go in a circle"):
        lazyrestore.dump(CriuFolder(tmp_path / "a"), tmp_path / "x.lzr")
    made = FolderMaker(tmp_path / "d")
    made.parent(".")
    with pytest.raises(ImageError, match="the folders go in a circle"):
        lazyrestore.dump(CriuFolder(tmp_path / "d"), tmp_path / "x.lzr")


# ---- What is refused -----------------------------------------------------------------------------


def remove(name):
    return lambda made: (made.path / name).unlink()


def cut(name, nbytes):
    return lambda made: os.truncate(made.path / name, (made.path / name).stat().st_size + nbytes)


def put(name, data):
    return lambda made: made.put(name, data)


def lost_parent(made):
    made.memory("7", [(HEAP, ["x"], PARENT)])


def parent_gone(made):
    lost_parent(made)
    made.parent("../nowhere")


def wrong_parent(made):
    lost_parent(made)
    FolderMaker(made.path.parent / "older").memory("7", [(HEAP + PAGE, ["x"], BOTH)])
    made.parent("../older")


def short_parent(made):
    lost_parent(made)
    older = FolderMaker(made.path.parent / "older")
    older.memory("7", [(HEAP, ["x"], BOTH)])
    cut("pages-1.img", -1)(older)
    made.parent("../older")


REFUSED = {
    "no inventory": (remove("inventory.img"), r"no inventory.img: .* given up before its end"),
    "newer": (
        put("inventory.img", magic(0x58313116) + message((1, 3))),
        "inventory.img says image version 3, and only 2 is known here: a newer CRIU",
    ),
    "older": (
        put("inventory.img", magic(0x58313116) + message((1, 1))),
        "image version 1, and only 2 is known here: dump again with",
    ),
    "other magic": (
        put("inventory.img", magic(0x58313117) + message((1, 2))),
        "does not begin as an inventory",
    ),
    "inventory cut": (cut("inventory.img", -1), "inventory.img is damaged"),
    "no tree": (remove("pstree.img"), "no pstree.img: the dump was not completed"),
    "empty tree": (put("pstree.img", magic(0x54564319, 0x50273030)), "has no processes"),
    "tree cut": (cut("pstree.img", -1), "pstree.img is damaged"),
    "tree of another kind": (put("pstree.img", magic(0x54564319, 1)), "does not begin as that"),
    "no core": (remove("core-9.img"), "no core-9.img: the dump was not completed"),
    "core cut": (cut("core-9.img", -1), "core-9.img is damaged"),
    "no pages": (remove("pages-2.img"), "no pages-2.img, where the pages of pagemap-7.img are"),
    "pages cut": (cut("pages-2.img", -1), "pages-2.img has 430079 bytes, shorter than the 430080"),
    "pages too long": (cut("pages-2.img", PAGE), "longer than the 430080"),
    "pagemap cut": (cut("pagemap-7.img", -1), "pagemap-7.img is cut short"),
    "pagemap of another kind": (put("pagemap-7.img", b"\x7fELF"), "does not begin as a pagemap"),
    "pages of two": (
        lambda made: made.put("pagemap-7.img", (made.path / "pagemap-9.img").read_bytes()),
        "pagemap-9.img names pages-3.img, as pagemap-7.img does",
    ),
    "lazy dump": (
        lambda made: made.memory("7", [(HEAP, ["x"], LAZY)]),
        "was dumped with --lazy-pages",
    ),
    "no parent": (lost_parent, "its link `parent` is not there"),
    "parent gone": (parent_gone, "nowhere, which is not there"),
    "wrong parent": (wrong_parent, "its link `parent` leads to another dump's"),
    "short parent": (short_parent, "pages-1.img has 4095 bytes, shorter than"),
    "file of ours": (put("lazyrestore.json", b"{}"), "has a file lazyrestore.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    made = plain(tmp_path / "dump")
    damage, why = REFUSED[name]
    damage(made)
    with pytest.raises(ImageError, match=why) as raised:
        lazyrestore.dump(CriuFolder(made.path), tmp_path / "image.lzr")
    assert str(made.path.parent) in str(raised.value)
    assert not list(tmp_path.glob("*.lzr"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        lazyrestore.dump(CriuFolder(tmp_path / "none"), tmp_path / "image.lzr")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        lazyrestore.dump(CriuFolder(tmp_path / "file"), tmp_path / "image.lzr")


def test_the_image_is_not_put_among_what_is_read(tmp_path, monkeypatch):
    made = plain(tmp_path / "dump")
    with pytest.raises(ValueError, match="put it into another folder"):
        lazyrestore.dump(CriuFolder(made.path), made.path / "image.lzr")
    monkeypatch.chdir(made.path)
    with pytest.raises(ValueError, match="put it into another folder"):
        lazyrestore.dump(CriuFolder("."), "image.lzr")


def test_links_and_folders_are_left_out_and_told(tmp_path):
    made = plain(tmp_path / "dump")
    (made.path / "folder").mkdir()
    (made.path / "link.img").symlink_to("/etc/passwd")
    os.mkfifo(made.path / "pipe")
    report = lazyrestore.dump(CriuFolder(made.path), tmp_path / "image.lzr")
    assert [piece.name for piece in report.skipped] == ["folder", "link.img", "pipe"]
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        assert "link.img" not in image.files


# ---- Folders that are written --------------------------------------------------------------------


def test_nothing_that_is_there_is_touched(imported, tmp_path):
    _, image, _ = imported
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    with pytest.raises(OSError, match="not empty") as raised:
        checkpoint_of(image).write_folder(str(target))
    assert raised.value.errno == errno.ENOTEMPTY
    assert contents(target) == {"mine": b"mine"}


def test_an_empty_folder_is_taken_and_files_are_private(imported, tmp_path):
    source, image, _ = imported
    target = tmp_path / "target"
    target.mkdir()
    checkpoint_of(image).write_folder(str(target))
    assert contents(target) == contents(source)
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o600}


def test_what_fails_leaves_nothing(imported, tmp_path):
    """A cluster that is damaged is found when most files are written"""
    _, image, _ = imported
    with image.reader() as reader:
        offset = reader.cluster(image.cluster_count - 1).payload_offset
    data = bytearray(Path(image.path).read_bytes())
    data[offset + 8] ^= 1
    (tmp_path / "bad.lzr").write_bytes(data)
    (tmp_path / "empty").mkdir()
    with lazyrestore.open(tmp_path / "bad.lzr") as bad:
        for target in ("new", "empty"):
            with pytest.raises(lazyrestore.ClusterError):
                checkpoint_of(bad).write_folder(str(tmp_path / target))
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


# ---- Images that are not what they say -----------------------------------------------------------


def rewritten(image, path: Path, change) -> list[str]:
    """An image with the same regions and other files; what verify says of it."""
    with ImageWriter(path, cluster_size=image.cluster_size) as writer:
        files = dict(image.files)
        names = [region.name for region in image.regions]
        change(files, names)
        for region, name in zip(image.regions, names, strict=True):
            name, missing = name if isinstance(name, tuple) else (name, 0)
            if name:
                writer.add_region(name, address=region.address)
                writer.write(image.read(region.name, 0, region.length - missing))
        for name, data in files.items():
            writer.add_file(name, data)
    with lazyrestore.open(path) as made:
        return [damage.reason for damage in made.verify().damage]


def without(name):
    return lambda files, names: files.pop(name)


def other_description(**values):
    def change(files, names):
        said = json.loads(files["lazyrestore.json"])
        files["lazyrestore.json"] = json.dumps({**said, **values}).encode()

    return change


def without_region(number):
    def change(files, names):
        names[number] = ""

    return change


def cut_region(number, nbytes):
    return lambda files, names: names.__setitem__(number, (names[number], nbytes))


def renamed(name):
    """Shared memory that is now something else, and nobody misses"""

    def change(files, names):
        files.pop("pagemap-shmem-920.img")
        names[4] = name

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda files, names: None, None),
        (without("inventory.img"), "inventory"),
        (without("pstree.img"), "pstree.img"),
        (without("core-9.img"), "core-9.img"),
        (without_region(0), "does not have the pages of 7 from 0x555500003000"),
        (without_region(4), "does not have the pages of shmem-920"),
        (other_description(root=9), "do not agree"),
        (other_description(tree=[]), "do not agree"),
        (other_description(tree=5), "lazyrestore.json is damaged"),
        (other_description(criu=None), "lazyrestore.json is damaged"),
        (
            lambda files, names: files.update({"lazyrestore.json": b"["}),
            "lazyrestore.json is damaged",
        ),
        (
            lambda files, names: files.update({"pagemap-9.img": files["pagemap-7.img"]}),
            "does not have the pages of 9|the same pages",
        ),
        (cut_region(0, 1), "does not have the pages of 7 from 0x555500003000"),
        (cut_region(1, 4096), "does not have the pages of 7 from 0x7fff00001000"),
        (renamed("file/../evil"), "is not the name of a file"),
        (renamed("file//tmp/evil"), "is not the name of a file"),
        (renamed("file/.."), "is not the name of a file"),
        (renamed("file/" + "n" * 256), "1 to 255 bytes"),
        (renamed("file/stats-dump"), "two files 'stats-dump'"),
    ],
)
def test_verify_looks_at_processes(imported, tmp_path, change, why):
    _, image, _ = imported
    reasons = rewritten(image, tmp_path / "changed.lzr", change)
    (tmp_path / "out").mkdir()
    if why is None:
        assert reasons == []
    else:
        assert len(reasons) == 1
        assert re.search(why, reasons[0])
        with lazyrestore.open(tmp_path / "changed.lzr") as made, suppress(ImageError):
            checkpoint_of(made).write_folder(str(tmp_path / "out" / "in"))
    assert not (tmp_path / "evil").exists()


KINDS = ["pagemap-7.img", "pagemap-shmem-920.img", "pstree.img", "core-9.img", "inventory.img"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_damage_of_a_file_is_anything_but_an_error(tmp_path_factory, data):
    """Of a folder, or of an image: refused, or read as what it then says"""
    tmp_path = tmp_path_factory.mktemp("damage")
    made = plain(tmp_path / "dump")
    lazyrestore.dump(CriuFolder(made.path), tmp_path / "image.lzr")
    name = data.draw(st.sampled_from([*KINDS, "lazyrestore.json"]))
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        damaged = bytearray(image.files[name])
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        del damaged[data.draw(st.integers(0, len(damaged))) or len(damaged) :]

        def change(files, names):
            files[name] = bytes(damaged)

        rewritten(image, tmp_path / "changed.lzr", change)
    with lazyrestore.open(tmp_path / "changed.lzr") as image, suppress(ImageError):
        checkpoint = checkpoint_of(image)
        for pid in (7, 8, 9, *(task.pid for task in checkpoint.tasks)):
            for address, nbytes, offset, number in checkpoint.lazy_ranges(pid):
                region = image.regions[number]
                assert region.address + offset == address
                assert offset + nbytes <= region.length
        assert image.info.processes == checkpoint.processes
        checkpoint.write_lazy_folder(str(tmp_path / "lazy"))
        checkpoint.write_folder(str(tmp_path / "out"))
    if name in KINDS:
        made.put(name, bytes(damaged))
        with suppress(ImageError):
            lazyrestore.dump(CriuFolder(made.path), tmp_path / "again.lzr")
            with lazyrestore.open(tmp_path / "again.lzr") as image:
                assert image.verify().damage == ()


def test_processes_come_in_small_clusters_unless_told_otherwise(tmp_path):
    made = plain(tmp_path / "dump")
    for wanted, size in ((None, 8192), (32768, 32768)):
        lazyrestore.dump(CriuFolder(made.path), tmp_path / "image.lzr", cluster_size=wanted)
        with lazyrestore.open(tmp_path / "image.lzr") as image:
            assert image.cluster_size == size
