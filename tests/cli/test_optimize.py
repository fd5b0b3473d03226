"""`lazyrestore optimize`, and recording and replaying on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import PAGE, Image, Old, run
from image_files import check_refused
from restore_support import flip, payloads, write_image

import lazyrestore
from lazyrestore import WorkingSet

pytestmark = pytest.mark.uffd
MakeImage = Callable[..., Image]


def report_of(*arguments: object) -> dict[str, object]:
    return json.loads(run(*arguments, "--json").ok().out)


@pytest.fixture
def image(make_image: MakeImage) -> Image:
    """256 clusters"""
    return make_image({"a": "dr" * 128}, cluster_size=PAGE)


RANDOM = ("--touch", "random", "--count", 40)


def test_from_a_recording_to_its_replay(image: Image, tmp_path: Path) -> None:
    """The same touches again: with the working set none of them waits"""
    record, new = tmp_path / "run.ws", tmp_path / "new.lzr"
    recorded = report_of("restore", "--lazy", *RANDOM, "--record", record, image.path)
    assert recorded["recorded_clusters"] == 40
    assert recorded["replayed_clusters"] is None
    report = report_of("optimize", image.path, "--working-set", record, "-o", new)
    assert report["hot_clusters"] == 40
    assert report["hot_bytes"] == 40 * PAGE
    assert report["recordings"] == 1
    assert report["path"] == str(new)
    assert report["working_set"] == f"{new}.ws"
    assert report["stored_bytes"] == new.stat().st_size
    with lazyrestore.open(image.path) as opened:
        assert report["digest"] == opened.digest
    run("verify", "-q", new).ok()
    replay = ("restore", "--lazy", *RANDOM, "--prefetch", "auto", "--replay", "before", new)
    replayed = report_of(*replay)
    assert replayed["replayed_clusters"] == 40
    assert replayed["recorded_clusters"] is None
    assert replayed["faults"] == 0
    assert replayed["touched_pages"] == 40
    named = report_of(
        "restore", "--lazy", *RANDOM, "--working-set", record, "--replay", "before", image.path
    )
    assert (named["replayed_clusters"], named["faults"]) == (40, 0)
    by_default = report_of("restore", "--lazy", *RANDOM, new)
    assert (by_default["replayed_clusters"], by_default["faults"]) == (None, 40)


def test_text(image: Image, tmp_path: Path) -> None:
    one, two, new = tmp_path / "one.ws", tmp_path / "two.ws", tmp_path / "new.lzr"
    text = run("restore", "--lazy", "--record", one, image.path).ok().out
    assert "1 cluster recorded" in text
    run("restore", "--lazy", *RANDOM, "-q", "--record", two, image.path).ok()
    both = ("--working-set", one, "--working-set", two)
    text = run("optimize", image.path, *both, "-o", new).ok().out
    count = len(WorkingSet.load(f"{new}.ws"))
    assert f"{count} clusters" in text
    assert "merged from 2 recordings" in text
    assert f"{new}.ws" in text
    assert max(map(len, text.splitlines()[:2])) <= 80 + len(str(new))
    assert run("optimize", "-q", image.path, *both, "-o", new).ok().out == ""
    text = run("restore", "--lazy", "--prefetch", "auto", new).ok().out
    assert f"{count} clusters replayed" in text


def test_info_shows_what_lies_beside(image: Image, tmp_path: Path) -> None:
    assert report_of("info", image.path)["working_set"] is None
    assert "none beside it" in run("info", image.path).ok().out
    beside = f"{image.path}.ws"
    run("restore", "--lazy", *RANDOM, "-q", "--record", beside, image.path).ok()
    assert report_of("info", image.path)["working_set"] == {
        "path": beside,
        "clusters": 40,
        "bytes": 40 * PAGE,
        "recordings": 1,
    }
    assert "40 clusters, 160.0 KiB" in run("info", image.path).ok().out
    Path(beside).write_bytes(b"something else")
    assert report_of("info", image.path)["working_set"] is None
    assert "cannot be used" in run("info", image.path).ok().out


def test_a_bad_working_set(image: Image, tmp_path: Path) -> None:
    """Named: exit code 3. Found: one line, and the restore goes on"""
    other, run_ws = tmp_path / "other.lzr", tmp_path / "run.ws"
    write_image(other, {"a": "d"})
    run("restore", "--lazy", "-q", "--record", run_ws, other).ok()
    target = Old(tmp_path / "new.lzr")
    optimize = ("optimize", image.path, "-o", target, "--working-set")
    run(*optimize, run_ws).fails(3, "run.ws", "record one of this image")
    run(*optimize, other).fails(3, "other.lzr", "not a working set")
    run(*optimize, tmp_path / "none.ws").fails(1, "none.ws", "No such file")
    restore = ("restore", "--lazy", image.path, "--working-set")
    run(*restore, run_ws).fails(3, "run.ws", "record one of this image")
    target.check()
    Path(f"{image.path}.ws").write_bytes(run_ws.read_bytes())
    result = run("restore", "--lazy", "--prefetch", "auto", "--json", image.path)
    assert result.code == 0
    assert result.err.startswith("lazyrestore: ")
    assert result.err.endswith("Restored without it\n")
    assert len(result.err.splitlines()) == 1
    assert json.loads(result.out)["replayed_clusters"] is None


def test_a_damaged_image(image: Image, tmp_path: Path) -> None:
    run_ws = tmp_path / "run.ws"
    run("restore", "--lazy", "-q", "--record", run_ws, image.path).ok()
    flip(image.path, payloads(image.path, "a")[200][0])
    target = Old(tmp_path / "new.lzr")
    optimize = ("optimize", image.path, "--working-set", run_ws, "-o", target)
    run(*optimize).fails(3, "checksum", "take another copy")
    target.check()


def test_bad_images(image: Image, tmp_path: Path) -> None:
    run_ws = tmp_path / "run.ws"
    run("restore", "--lazy", "-q", "--record", run_ws, image.path).ok()
    folder = tmp_path / "bad"
    folder.mkdir()
    check_refused("optimize", folder, "--working-set", run_ws, "-o", tmp_path / "new.lzr")


def test_usage(image: Image, tmp_path: Path) -> None:
    new = tmp_path / "new.lzr"
    run("optimize", image.path, "-o", new).fails(2, "--working-set")
    run("optimize", image.path, "--working-set", new).fails(2, "--output")
    for option in (("--record", new), ("--working-set", new), ("--replay", "before")):
        run("restore", image.path, "-o", new, *option).fails(2, option[0], "--lazy")
    lazy = ("restore", "--lazy", image.path)
    run(*lazy, "--record", new, "--prefetch", "all").fails(2, "loaded ahead")
    run(*lazy, "--record", new, "--working-set", new).fails(2, "loaded ahead")
    run(*lazy, "--prefetch", "none", "--working-set", new).fails(2, "leave out")
    run(*lazy, "--record", tmp_path / "none" / "x").fails(1, "none", "No such file")
    run(*lazy, "--record", image.path).fails(2, "another name")
    assert not new.exists()
