"""`dump --criu`, and what `info` and `ls` say of the image of processes that it makes."""

from __future__ import annotations

import json
from pathlib import Path

from cli_support import run
from criu_folders import LAZY, PAGE, PRESENT, FolderMaker

HEAP = 0x5555_0000_0000


def folder(path: Path) -> FolderMaker:
    made = FolderMaker(path, pids=(7, 9, 11))
    made.core(9, "sh\x1b[31m")
    made.core(11, "gone", state=2)
    made.memory("7", [(HEAP, range(100), PRESENT | LAZY)])
    made.memory("9", [(HEAP, range(50), PRESENT | LAZY)])
    return made


def test_a_folder_becomes_an_image(tmp_path: Path) -> None:
    made = folder(tmp_path / "dump")
    image = tmp_path / "x.lzr"
    said = json.loads(run("dump", "--json", "--criu", made.path, image).ok().out)
    assert [process["comm"] for process in said["processes"]] == ["task 7", "sh\x1b[31m", "gone"]
    assert run("verify", image).ok()
    assert "task 7" in run("dump", "--criu", made.path, image).ok().out


def test_info_shows_the_processes_as_a_tree(tmp_path: Path) -> None:
    image = tmp_path / "x.lzr"
    run("dump", "-q", "--criu", folder(tmp_path / "dump").path, image).ok()
    text = run("info", image).ok().out
    assert "  processes    3 processes, 3 threads\n" in text
    lines = [line.split() for line in text.split("\n\n")[1].splitlines()]
    assert lines == [
        ["process", "threads", "pages", "name"],
        ["7", "1", "400.0", "KiB", "task", "7"],
        ["9", "1", "200.0", "KiB", "sh\\x1b[31m"],
        ["11", "1", "ended", "gone"],
    ]
    assert "\n  9 " in text
    assert "\n    11 " in text
    said = json.loads(run("info", "--json", image).ok().out)
    assert said["criu_version"] == ""
    assert said["processes"][1] == {
        "pid": 9,
        "ppid": 7,
        "comm": "sh\x1b[31m",
        "threads": 1,
        "zombie": False,
        "bytes": 50 * PAGE,
    }


def test_ls_says_whose_each_region_is(tmp_path: Path) -> None:
    image = tmp_path / "x.lzr"
    run("dump", "-q", "--criu", folder(tmp_path / "dump").path, image).ok()
    lines = run("ls", image).ok().out.splitlines()
    assert lines[1].startswith("7/555500000000-555500064000")
    assert lines[1].endswith("task 7")
    assert lines[2].endswith("sh\\x1b[31m")
    assert lines[3].startswith("and 9 files, ")
    listed = json.loads(run("ls", "--json", image).ok().out)["files"]
    assert {"name": "stats-dump", "bytes": 20} in listed


def test_what_is_no_such_folder(tmp_path: Path) -> None:
    image = tmp_path / "x.lzr"
    run("dump", "--criu", tmp_path, image).fails(3, "no inventory.img", "dump again")
    run("dump", "--criu", tmp_path / "nix", image).fails(1, "nix", "No such file")
    made = folder(tmp_path / "dump")
    run("dump", "--criu", made.path, made.path / "x.lzr").fails(2, "another folder")
    run("dump", "--criu", made.path, "--pid", "1", image).fails(2, "one of")
    assert not image.exists()
