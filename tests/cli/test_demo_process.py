"""`lazyrestore demo --process`: a server, dumped whole, that runs again both ways."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_support import run
from criu_support import criu

SIZE = ("--size", "16M")


def without(program: str, folder: Path) -> str:
    """A PATH that has all but one program"""
    folder.mkdir()
    for path in reversed(os.environ["PATH"].split(os.pathsep)):
        for entry in os.scandir(path) if os.path.isdir(path) else ():
            if entry.name != program:
                (folder / entry.name).unlink(missing_ok=True)
                (folder / entry.name).symlink_to(entry.path)
    return str(folder)


@pytest.mark.parametrize("program", ["redis-server", "python"])
def test_it_runs_again_both_ways(tmp_path: Path, program: str) -> None:
    """All values are compared, and nothing is left"""
    path = criu()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    if program == "python":
        environment["PATH"] = without("redis-server", tmp_path / "bin")
    elif shutil.which(program) is None:
        pytest.skip("redis-server is not installed")
    command = ("demo", "--process", *SIZE, "--json", "--criu-bin", path)
    report = json.loads(run(*command, env=environment).ok().out)
    assert ("redis" in report["program"]) == (program == "redis-server")
    assert report["keys"] == (16 << 20) // 4000
    assert report["compared"] == 2000
    assert 0 < report["stored_bytes"] < report["criu_bytes"]
    for way in ("eager", "lazy"):
        assert 0 < report[way]["first_us"] <= report[way]["runs_us"]
    assert report["lazy"]["resident_bytes"] <= report["eager"]["resident_bytes"]
    assert not os.path.exists(f"/proc/{report['pid']}")
    assert os.listdir(temporary) == []


def test_as_text_and_kept(tmp_path: Path) -> None:
    path = criu()
    text = run("demo", "--process", *SIZE, "--keep", tmp_path, "--criu-bin", path).ok().out
    for words in ("runs again", "first answer after", "of CRIU's", "2000 values compared"):
        assert words in text
    assert os.listdir(tmp_path) == ["process.lzr"]
    assert f"the image is kept: {tmp_path}/process.lzr" in text


def test_what_does_not_go_together(tmp_path: Path) -> None:
    run("demo", "--process", "--criu-bin", tmp_path / "gone").fails(5, "--criu-bin", "is not there")
    run("demo", "--criu-bin", "x").fails(2, "--criu-bin is for --process")
    run("demo", "--process", "--walk", "3").fails(2, "--walk and --process")
