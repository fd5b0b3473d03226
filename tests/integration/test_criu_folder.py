"""Folders that CRIU itself made: into an image and out again, and CRIU runs what comes out."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from criu_folders import contents, make_incremental, pages_of
from criu_support import crit, criu
from tree_support import LIMIT_S, Tree, restore, running_tree

import lazyrestore
from lazyrestore import CriuFolder, ImageError
from lazyrestore._criu.checkpoint import Checkpoint
from lazyrestore._criu.pagemap import LAZY, PARENT, PRESENT, parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def criu_path() -> str:
    return criu()


@pytest.fixture
def tree(tmp_path: Path, criu_path: str) -> Iterator[Tree]:
    with running_tree(tmp_path) as tree:
        yield tree


def run_criu(criu_path: str, action: str, tree: Tree, folder: Path, *options: str) -> None:
    folder.mkdir()
    command = [criu_path, action, "-t", str(tree.pid), "-D", str(folder), "-v2", "-o", "log"]
    done = subprocess.run(
        [*command, *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, (folder / "log").read_text()


@contextmanager
def imported(folder: Path, image: Path) -> Iterator[Checkpoint]:
    lazyrestore.dump(CriuFolder(folder), image)
    with lazyrestore.open(image) as opened:
        assert opened.verify().damage == ()
        checkpoint = Checkpoint.of(opened)
        assert checkpoint is not None
        yield checkpoint


def flags_of(folder: Path) -> set[int]:
    """Those of all entries of all pagemaps."""
    return {
        flags
        for path in folder.glob("pagemap-*.img")
        for _, _, flags in parse(path.read_bytes(), path.name).entries
    }


def decoded(crit_path: str, path: Path) -> object:
    done = subprocess.run(
        [crit_path, "decode", "-i", path], capture_output=True, check=True, timeout=LIMIT_S
    )
    return json.loads(done.stdout)


def test_criu_runs_what_comes_out(tree, tmp_path, criu_path):
    before, image, after = tmp_path / "before", tmp_path / "tree.lzr", tmp_path / "after"
    run_criu(criu_path, "dump", tree, before)
    tree.has_ended()
    with imported(before, image) as checkpoint:
        assert checkpoint.root == tree.pid
        assert sorted(task.pid for task in checkpoint.tasks) == sorted(tree.pids)
        assert [task.is_zombie for task in checkpoint.tasks].count(True) == 1
        checkpoint.write_folder(str(after))
    assert contents(after) == contents(before)
    diff = subprocess.run(["diff", "-r", before, after], capture_output=True, check=False)
    assert (diff.returncode, diff.stdout) == (0, b"")
    shutil.rmtree(before)
    assert restore(criu_path, after) == tree.pid
    tree.goes_on()


def test_crit_reads_what_comes_out(tree, tmp_path, criu_path):
    before, image, lazy = tmp_path / "before", tmp_path / "tree.lzr", tmp_path / "lazy"
    run_criu(criu_path, "dump", tree, before, "--leave-running")
    with imported(before, image) as checkpoint:
        checkpoint.write_lazy_folder(str(lazy))
    name = f"pagemap-{tree.pid}.img"
    whole, rest = (decoded(crit(), folder / name)["entries"] for folder in (before, lazy))
    assert whole[0] == rest[0]
    assert len(whole) == len(rest)
    for old, new in zip(whole[1:], rest[1:], strict=True):
        assert (old["vaddr"], old["nr_pages"]) == (new["vaddr"], new["nr_pages"])
        assert new["flags"] == (LAZY if old["flags"] & LAZY else PRESENT)
    assert decoded(crit(), lazy / "inventory.img") == decoded(crit(), before / "inventory.img")


def can_track_memory(criu_path: str) -> bool:
    command = [criu_path, "check", "--feature", "mem_dirty_track"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_folders_that_build_on_others_are_one_that_runs(tree, tmp_path, criu_path):
    if not can_track_memory(criu_path):
        pytest.skip("this kernel does not tell which pages were written (CONFIG_MEM_SOFT_DIRTY)")
    first, second, last = (tmp_path / name for name in ("first", "second", "last"))
    run_criu(criu_path, "pre-dump", tree, first, "--track-mem")
    tree.goes_on()
    run_criu(*(criu_path, "pre-dump", tree, second, "--track-mem", "--prev-images-dir", "../first"))
    tree.goes_on()
    run_criu(criu_path, "dump", tree, last, "--track-mem", "--prev-images-dir", "../second")
    tree.has_ended()
    assert any(flags & PARENT for flags in flags_of(last))
    assert any(flags & PARENT for flags in flags_of(second))

    out = tmp_path / "out"
    with imported(last, tmp_path / "tree.lzr") as checkpoint:
        checkpoint.write_folder(str(out))
    assert flags_of(out) <= {PRESENT, PRESENT | LAZY}
    assert contents(out).keys() == contents(last).keys()
    for folder in (first, second, last):
        shutil.rmtree(folder)
    assert restore(criu_path, out) == tree.pid
    tree.goes_on()


def test_folders_that_were_made_to_build_on_others(tree, tmp_path, criu_path):
    """Without the kernel's help; CRIU itself says whether they are what it would have made"""
    first, second, last = (tmp_path / name for name in ("first", "second", "last"))
    run_criu(criu_path, "dump", tree, first, "--leave-running")
    tree.goes_on()
    run_criu(criu_path, "dump", tree, second, "--leave-running")
    tree.goes_on()
    run_criu(criu_path, "dump", tree, last)
    tree.has_ended()
    shutil.copytree(last, tmp_path / "whole")
    assert make_incremental(last, second) > 1000
    assert make_incremental(second, first) > 1000
    out = tmp_path / "out"
    with imported(last, tmp_path / "tree.lzr") as checkpoint:
        checkpoint.write_folder(str(out))
    assert not (out / "parent").exists()
    for path in out.glob("pagemap-*.img"):
        whole = dict(pages_of(tmp_path / "whole", path.name))
        assert dict(pages_of(out, path.name)) == whole
    assert restore(criu_path, last) == tree.pid
    tree.goes_on()
    tree.kill()
    tree.has_ended()
    for folder in (first, second, last):
        shutil.rmtree(folder)
    assert restore(criu_path, out) == tree.pid
    tree.goes_on()


def test_a_dump_that_was_given_up_is_refused(tmp_path, criu_path):
    """CRIU's own: it does not dump one end of a pair of sockets, and leaves what it has written"""
    folder = tmp_path / "dump"
    folder.mkdir()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        quiet = subprocess.DEVNULL
        sleeper = subprocess.Popen(
            ["sleep", "1000"], stdin=theirs, stdout=quiet, stderr=quiet, start_new_session=True
        )
        try:
            command = [criu_path, "dump", "-t", str(sleeper.pid), "-D", folder, "-o", "log"]
            done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
        finally:
            sleeper.kill()
            sleeper.wait()
    assert done.returncode != 0
    assert (folder / "pstree.img").exists()
    with pytest.raises(ImageError, match=r"no inventory\.img: .* given up before its end"):
        lazyrestore.dump(CriuFolder(folder), tmp_path / "tree.lzr")


def test_criu_restores_lazily_from_the_lazy_folder(tree, tmp_path, criu_path):
    """An unmodified `criu restore --lazy-pages`; the pages come from the image"""
    before, image, lazy = tmp_path / "before", tmp_path / "tree.lzr", tmp_path / "lazy"
    run_criu(criu_path, "dump", tree, before)
    tree.has_ended()
    with imported(before, image) as checkpoint:
        checkpoint.write_lazy_folder(str(lazy))
        come_later = sum(
            nbytes for pid in tree.pids for _, nbytes, _, _ in checkpoint.lazy_ranges(pid)
        )
    sizes = [
        sum(path.stat().st_size for path in folder.glob("pages-*.img")) for folder in (before, lazy)
    ]
    assert come_later == sizes[0] - sizes[1] > sizes[0] // 2
    shutil.rmtree(before)
    ready, told = os.pipe()
    daemon = subprocess.Popen(
        [
            *(sys.executable, "-m", "lazyrestore", "lazy-pages", "--status-fd", str(told)),
            *("--images-dir", lazy, "--image", image, "--prefetch", "all", "--no-keeper"),
        ],
        pass_fds=[told],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        os.close(told)
        assert os.read(ready, 1) == b"\0"
        assert restore(criu_path, lazy, "--lazy-pages") == tree.pid
        tree.goes_on()
        assert daemon.wait(LIMIT_S) == 0
        tree.goes_on()
    finally:
        os.close(ready)
        tree.kill()
        daemon.kill()
        daemon.wait()
