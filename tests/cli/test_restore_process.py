"""`restore` of processes: what its options mean, where they do not go together, and who is told.

What becomes of the processes is in tests/integration/test_criu_restore.py.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from cli_support import run
from criu_folders import LAZY, PRESENT, FolderMaker
from typer.testing import CliRunner

import lazyrestore
from lazyrestore._criu.early import begin
from lazyrestore._criu.peek import may_have_processes
from lazyrestore._criu.request import ProcessOptions, read
from lazyrestore.cli import _process, make_app
from lazyrestore.writer import ImageWriter

GIVEN = [
    ("-d",),
    ("--restore-detached",),
    ("--pidfile", "p"),
    ("--pidfile=p=q",),
    ("--criu-bin", "/x/criu"),
    ("--criu-opt=--shell-job",),
    ("--criu-opt", "--tcp-close", "--criu-opt=-v4"),
    ("--criu-opt=--external=net[1]:x", "--criu-opt=-v4"),
    ("--prefetch", "none"),
    ("--prefetch=all",),
    ("--record=r", "--prefetch=none"),
    ("--working-set", "w"),
    ("--granularity=page",),
    ("--on-error", "log"),
    ("--no-keeper",),
    ("--log=l",),
    ("--json",),
    ("-q",),
    ("--quiet",),
]


def memory(path: Path, files: dict[str, bytes] | None = None) -> Path:
    """An image of memory, which may have files of somebody's"""
    with ImageWriter(path) as image:
        for name, data in (files or {}).items():
            image.add_file(name, data)
        image.add_region("memory")
        image.write(b"x" * 4096)
    return path


# ---- The short way to read arguments -----------------------------------------------------------


def in_full(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the full way makes of them"""
    seen: list[dict[str, object]] = []

    def run(options: ProcessOptions, for_memory: object, daemon: object) -> int:
        seen.append(vars(options))
        return 0

    monkeypatch.setattr(_process, "run", run)
    monkeypatch.setattr("lazyrestore.cli.restore.may_have_processes", lambda _: True)
    result = CliRunner().invoke(make_app(["restore", "info"]), ["restore", *arguments])
    assert result.exit_code == 0, result.output
    return {**seen[0], "begun_ns": 0}


@pytest.mark.parametrize("given", GIVEN, ids=" ".join)
def test_each_option_is_understood_as_in_full(given, monkeypatch):
    arguments = ["--lazy", "image.lzr", *given]
    if given[-1].startswith("--criu-opt=") and given[0] == "--criu-opt":
        assert read(arguments) is None  # a value that looks like an option is for the full way
        return
    assert vars(read(arguments)) == in_full(arguments, monkeypatch)


def test_any_two_options_in_any_order(monkeypatch):
    simple = [given for given in GIVEN if given[0] != "--criu-opt"]
    for one, two in itertools.islice(itertools.permutations(simple, 2), 0, None, 5):
        arguments = [*one, "image.lzr", *two, "--lazy"]
        assert vars(read(arguments)) == in_full(arguments, monkeypatch), arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["image.lzr"],
        ["--lazy"],
        ["--lazy", "one.lzr", "two.lzr"],
        ["--lazy", "image.lzr", "--", "command"],
        ["--lazy", "image.lzr", "--touch", "all"],
        ["--lazy", "image.lzr", "--prefetch", "some"],
        ["--lazy", "image.lzr", "--pidfile"],
        ["--lazy", "image.lzr", "--json=yes"],
        ["--lazy", "image.lzr", "-dq"],
        ["--lazy", "image.lzr", "--help"],
        ["--lazy", "image.lzr", "-o", "file"],
        ["--lazy", ""],
    ],
    ids=" ".join,
)
def test_everything_else_is_read_in_full(arguments):
    assert read(arguments) is None


def test_nothing_is_started_early_where_it_is_not_needed(tmp_path):
    image = str(memory(tmp_path / "memory.lzr"))
    assert not may_have_processes(image)
    assert not may_have_processes(str(tmp_path / "gone"))
    assert not may_have_processes(str(tmp_path))
    assert not may_have_processes("\0")
    (tmp_path / "short").write_bytes(b"\x81\xablazyrestore")
    assert not may_have_processes(str(tmp_path / "short"))
    for arguments in (["restore", "--lazy", image], ["info", image], [], ["restore", image]):
        assert begin(arguments) is None


def test_what_asks_for_much_is_not_imported_for_a_restore():
    """Start-up is most of what a restore of processes takes"""
    script = (
        "import sys; import lazyrestore.__main__, lazyrestore.cli._process, lazyrestore._open\n"
        "import lazyrestore._criu.restoring, lazyrestore._criu.checkpoint, lazyrestore._criu.run\n"
        "import lazyrestore._criu.request, lazyrestore._criu.lazyfolder\n"
        "print(*{'typer', 'asyncio', 'subprocess', 'msgpack'} & set(sys.modules))"
    )
    assert run(command=[sys.executable, "-c", script]).ok().out == "\n"


# ---- What does not go together -----------------------------------------------------------------


def test_an_image_of_memory_with_files_is_restored_as_memory(tmp_path):
    """Whatever they are: what looks like processes from outside is looked at"""
    image = memory(tmp_path / "files.lzr", {"notes": b"hello"})
    assert may_have_processes(str(image))
    out = run("restore", "--lazy", image, "--or-eager", "--privilege", "auto").ok().out
    assert "first" in out
    run("restore", "--lazy", image, "-d").fails(2, "--restore-detached", "images of processes")


@pytest.mark.parametrize(
    "given", [("-d",), ("--pidfile", "x"), ("--criu-opt=--x",), ("--on-error", "kill")]
)
def test_options_of_processes_for_an_image_of_memory(tmp_path, given):
    image = memory(tmp_path / "memory.lzr")
    run("restore", "--lazy", image, *given).fails(2, "is for images of processes")
    run("restore", image, "-o", tmp_path / "out", *given).fails(2, "is for running processes")


def test_criu_folders_of_an_image_of_memory(tmp_path):
    image = memory(tmp_path / "memory.lzr")
    run("restore", image, "--criu", tmp_path / "folder").fails(1, "has memory, but no processes")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--touch", "all"), "--touch"),
        (("--region", "1/0-1000"), "--region"),
        (("--seed", "0"), "--seed"),
        (("--trace",), "--trace"),
        (("--privilege", "auto"), "--privilege"),
        (("--", "true"), "COMMAND"),
        (("-o", "x"), "--output"),
    ],
)
def test_options_of_memory_for_an_image_of_processes(tree_image, given, words):
    if words == "--touch":
        given = ("--touch", "random")
    run("restore", "--lazy", tree_image, *given).fails(2, words, "one of processes: leave it out")


@pytest.mark.parametrize("option", ["-D/x", "--images-dir=/x", "-ofile", "--pidfile=x", "-d", "x"])
def test_what_criu_is_told_by_us(tree_image, option):
    run("restore", "--lazy", tree_image, f"--criu-opt={option}").fails(2, f"--criu-opt={option}")


def test_recording_what_was_loaded_ahead(tree_image, tmp_path):
    both = ("--record", tmp_path / "r", "--prefetch", "all")
    run("restore", "--lazy", tree_image, *both).fails(2, "--record cannot see")


def test_it_has_to_be_said_what_to_do(tree_image):
    run("restore", tree_image).fails(2, "--lazy", "--criu DIR")


def test_criu_and_other_options(tree_image, tmp_path):
    folder = tmp_path / "folder"
    run("restore", tree_image, "--criu", folder, "-d").fails(2, "--restore-detached and --criu")
    run("restore", tree_image, "--criu", folder, "-o", "x").fails(2, "--output and --criu")
    run("restore", tree_image, "--criu", folder, "--touch", "first").fails(2, "--touch and --criu")
    folder.mkdir()
    (folder / "mine").touch()
    run("restore", tree_image, "--criu", folder).fails(2, "is not empty")
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_criu_folders(tree_image, tmp_path):
    import json

    whole, lazy = tmp_path / "whole", tmp_path / "lazy"
    out = run("restore", tree_image, "--criu", whole).ok().out
    assert out.startswith(f"{whole}: ")
    report = json.loads(run("restore", tree_image, "--criu", lazy, "--lazy", "--json").ok().out)
    assert report["lazy"]
    assert report["files"] == len(list(lazy.iterdir()))
    assert {path.name for path in whole.iterdir()} == {path.name for path in lazy.iterdir()}
    assert (whole / "pages-1.img").stat().st_size == 8192
    assert (lazy / "pages-1.img").stat().st_size == 4096


def test_not_root(tree_image, nobody):
    copy = nobody.bring(tree_image)
    result = nobody.run("restore", "--lazy", copy)
    result.fails(4, "be root: sudo lazyrestore restore")


@pytest.fixture
def tree_image(tmp_path: Path) -> Path:
    """An image of one process, made of a folder such as CRIU writes."""
    folder = tmp_path / "criu"
    FolderMaker(folder).memory(
        "7", [(1 << 20, ["kept"], PRESENT), (2 << 20, ["later"], PRESENT | LAZY)]
    )
    path = tmp_path / "tree.lzr"
    lazyrestore.dump(lazyrestore.CriuFolder(folder), path)
    return path
