"""`lazyrestore dump --process`: what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from cli_support import run
from criu_support import criu
from tree_support import running_tree


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("CRIU", criu())
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for the logs of dumps that fail
    monkeypatch.setattr(tempfile, "tempdir", None)
    with running_tree(tmp_path) as tree:
        yield tree


def test_a_tree(tree, tmp_path):
    image = tmp_path / "tree.lzr"
    text = run("dump", "--process", tree.pid, "--leave-running", image).ok().out
    assert "processes   3: " in text
    assert f" {tree.pid}, " in text
    assert "; 4 threads" in text
    assert "the processes stood still for" in text
    assert "not in the image" not in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    tree.goes_on()
    report = json.loads(run("dump", "--process", tree.pid, image, "--json").ok().out)
    tree.runs_no_more()
    assert {one["pid"] for one in report["processes"]} == set(tree.pids)
    root = report["processes"][0]
    assert {**root, "bytes": 0, "comm": ""} == {
        "pid": tree.pid,
        "ppid": 0,
        "comm": "",
        "threads": 2,
        "zombie": False,
        "bytes": 0,
    }
    assert root["bytes"] > 4 << 20
    assert 0 < report["frozen_us"] < report["seconds"] * 1e6
    assert f"process tree {tree.pid}" in run("info", image).ok().out


def test_what_goes_wrong_is_one_line(tree, tmp_path):
    image = tmp_path / "tree.lzr"
    run("dump", "--process", 1 << 22 | 1, image).fails(1, "there is no process")
    run("dump", "--process", os.getpid(), image).fails(1, "outside")
    run("dump", "--process", tree.pid, image, "--criu-bin", "/bin/true").fails(5, "/bin/true")
    run("dump", "--process", tree.pid, image, "--criu-bin", tmp_path / "nix").fails(5, "nix")
    run("dump", "--process", tree.pid, tmp_path / "nix" / "x.lzr").fails(1, "No such file")
    run("dump", "--process", tree.pid, image, "--criu-opt=--nonsense").fails(5, "nonsense")
    tree.goes_on()
    assert not image.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--process", "0"], ["from 1"]),
        (["--process", "7", "--pid", "7"], ["one of"]),
        (["--process", "7", "--criu", "folder"], ["one of"]),
        (["--process", "7", "--range", "1000-2000"], ["--range", "--pid"]),
        (["--pid", "7", "--leave-running"], ["--leave-running", "--process"]),
        (["--file", "x", "--criu-opt=-l"], ["--criu-opt", "--process"]),
        (["--process", "7", "--criu-opt=--track-mem"], ["complete in itself"]),
        (["--process", "7", "--criu-opt", "restore"], ["not an option"]),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path, arguments, words):
    run("dump", *arguments, Path("x.lzr")).fails(2, *words)
