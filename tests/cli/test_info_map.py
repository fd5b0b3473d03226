"""`lazyrestore info --map` and `-v`: a letter for so many clusters."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import termios
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import PAGE, Image, environment, finish, run, start
from image_files import EXPECTED, SOUND, broken, broken_by, check_refused, run_each, sound
from restore_support import flip
from rich.cells import cell_len

import lazyrestore
from lazyrestore._clusters import Index

MakeImage = Callable[..., Image]
UTF8 = environment({"LC_ALL": "C.UTF-8"})
# A cluster each: data, random, zero, hole, mostly zero, mostly data; the first again.
LAYOUT = "dddd" + "rrrr" + "zzzz" + "hhhh" + "dzhz" + "dddz" + "hzhz"


@pytest.fixture
def drawn(make_image: MakeImage) -> Path:
    path = make_image({"a": LAYOUT, "void": "", "again": "dddd" * 2}, cluster_size=4 * PAGE).path
    with lazyrestore.open(path) as image:
        clusters = array("Q", [5, 1, 8])
        kept = lazyrestore.WorkingSet(
            image.digest, 4 * PAGE, image.cluster_count, clusters, array("Q", [1, 2, 3])
        )
        kept.save(f"{path}.ws")
    return path


def rows(text: str) -> dict[str, str]:
    """Cells by the name of their region; marks by the name and a star."""
    found, name = {}, ""
    for line in text.partition("\n\n")[2].splitlines():
        if not line:
            break
        if line[0] != " ":
            name, _, cells = line.partition(" ")
            found[name] = cells.partition("KiB")[2].strip()
        else:
            found[f"{name}*"] = line
    return found


def test_each_kind(drawn: Path) -> None:
    """Its own letter, with and without UTF-8; marks of the working set below"""
    text = run("info", "--map", drawn, env=UTF8).ok().out
    found = rows(text)
    assert found["a"] == "█▓░·▄█░"
    assert found["again"].startswith("▒")
    marks = found["a*"]
    line = next(line for line in text.splitlines() if line.startswith("a "))
    assert [at - line.index("█") for at, letter in enumerate(marks) if letter != " "] == [1, 5]
    for words in ("data", "not compressible 16.0 KiB", "zero", "untouched", "working set 48.0 KiB"):
        assert words in text, words
    assert "a cell is 16.0 KiB, 1 cluster" in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    plain = run("info", "--map", drawn, env=environment({"LC_ALL": "C"})).ok().out
    assert rows(plain)["a"] == "#%0.+#0"
    assert plain.isascii()
    assert plain == run("info", "--map", drawn, env=environment({"PYTHONIOENCODING": "ascii"})).out


def test_colours(drawn: Path) -> None:
    """Only where they are wanted; without them the text is the same"""
    plain = run("info", "--map", drawn, env=UTF8).ok().out
    assert "\x1b" not in plain
    coloured = run("info", "--map", drawn, env={**UTF8, "FORCE_COLOR": "1"}).ok().out
    assert "\x1b[33m▓\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert (
        run("info", "--map", drawn, env={**UTF8, "FORCE_COLOR": "1", "NO_COLOR": "1"}).out == plain
    )


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_it_fits(tmp_path: Path, columns: int) -> None:
    """Any width; a large region takes several rows, those that are alike are not repeated"""
    path = tmp_path / "x.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("a name that has to be cut somewhere in the middle of it " * 3)
        for number in range(40):
            image.write(number.to_bytes(4, "little") * 16384 * 20)
        image.hole(1 << 40)
        image.write(b"the end")
    text = run("info", "--map", path, env={**UTF8, "COLUMNS": str(columns)}).ok().out
    lines = text.partition("\n\n")[2].splitlines()
    assert max(map(len, lines)) <= columns
    assert sum("rows like this" in line for line in lines) == 1
    assert len(lines) <= 12


@pytest.mark.parametrize("columns", [48, 80])
def test_letters_of_two_columns(tmp_path: Path, columns: int) -> None:
    """Lengths and cells begin at the same column in each row, also where a name is cut"""
    path = tmp_path / "x.lzr"
    lazyrestore.dump({"a": b"1", "重み": b"2", "状態" * 12: b"3", "e\u0301" * 9: b"4"}, path)
    text = run("info", "--map", path, env={**UTF8, "COLUMNS": str(columns)}).ok().out
    lines = text.partition("\n\n")[2].splitlines()[:4]
    for letter in " B  ", "█":
        assert len({cell_len(line.partition(letter)[0]) for line in lines}) == 1, lines
    table = run("ls", path, env=UTF8).ok().out.splitlines()
    assert len({cell_len(line.partition(" r--p")[0]) for line in table[1:]}) == 1, table


def test_a_terminal(make_image: MakeImage) -> None:
    """Its own width, and colours; without a word in the environment of either"""
    path = make_image({"a": "d" * 400}, cluster_size=4 * PAGE).path
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, 132))
    variables = environment({"LC_ALL": "C.UTF-8", "TERM": "xterm"})
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        variables.pop(name, None)
    child = start("info", "--map", path, env=variables, stdout=theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # which is how the other end's closing shows
        while part := os.read(ours, 65536):
            text += part
    os.close(ours)
    assert finish(child).code == 0
    assert f"\x1b[32m{'█' * 100}\x1b[0m" in text.decode()  # in 80 columns it is two rows
    assert "▔" not in text.decode()


def test_json(drawn: Path) -> None:
    """Bytes of each kind, and the cells as letters"""
    found = json.loads(run("info", "--map", "--json", drawn).ok().out)["map"]
    first, void, again = found["regions"]
    assert (found["cell_clusters"], found["cell_bytes"]) == (1, 4 * PAGE)
    assert first["cells"] == "#%0.+#0"
    assert first["working_set"] == " ^   ^ "
    assert (first["zero_bytes"], first["hole_bytes"]) == (9 * PAGE, 7 * PAGE)
    assert (first["data_bytes"], first["raw_bytes"]) == (8 * PAGE, 4 * PAGE)
    assert void["cells"] == ""
    assert again["repeat_bytes"] == 4 * PAGE
    assert again["working_set_clusters"] == 1
    assert found["damage"] == []


def test_verbose(tmp_path: Path) -> None:
    """What each region is and takes in the file: it adds up to the payloads"""
    for name, result in zip(
        SOUND, run_each(("info", "-v", sound(name)) for name in SOUND), strict=True
    ):
        lines = result.ok().out.splitlines()
        with lazyrestore.open(sound(name)) as image:
            expected = len(image.regions)
        start = next(at for at, line in enumerate(lines) if line.startswith("region "))
        assert len(lines) - start - 1 == expected
    path = tmp_path / "x.lzr"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region(
            "w", metadata={"array": {"dtype": "<f4", "shape": [4, 1024], "order": "C"}}
        )
        image.write(b"\1" * 4 * PAGE)
    (line,) = run("info", "-v", path).ok().out.splitlines()[-1:]
    assert line.startswith("w ")
    assert line.endswith("float32 4×1024")


def test_every_golden_image() -> None:
    """As many bytes of each kind as expected.json says"""
    results = run_each(("info", "--map", "--json", sound(name)) for name in SOUND)
    for name, result in zip(SOUND, results, strict=True):
        regions = json.loads(result.ok().out)["map"]["regions"]
        said = EXPECTED["golden"][name]
        assert sum(each["zero_bytes"] for each in regions) == said["zero_bytes"]
        assert sum(each["hole_bytes"] for each in regions) == said["hole_bytes"]


def test_thousands_of_regions(tmp_path: Path) -> None:
    """A row each"""
    path = tmp_path / "x.lzr"
    with lazyrestore.ImageWriter(path) as image:
        for number in range(3000):
            image.add_region(f"region {number}")
            image.write(number.to_bytes(8, "little") * (1 + number % 700))
    text = run("info", "--map", path, env=UTF8).ok().out
    assert sum(line.startswith("region ") for line in text.splitlines()) == 3000
    assert "a cell is 64.0 KiB, 1 cluster" in text


def test_damage(make_image: MakeImage) -> None:
    """What is below a lost node is shown as such; exit code 3, with the place"""
    path = make_image({"a": "d" * 700, "b": "dd"}, cluster_size=PAGE).path
    with lazyrestore.open(path) as image:
        index = Index(image)
        list(index.stretches(300, 1))
        offset = index._kept[0][0][0]
    flip(path, offset + 100)
    for options in (("--map",), ("-v",), ("--svg", path.with_suffix(".svg"))):
        found = run("info", path, *options, env=UTF8)
        assert found.code == 3
        assert found.err.count("\n") == 1
        for word in ("'a'", str(256 * PAGE), str(offset), "checksum", "verify"):
            assert word in found.err, word
    assert "! unreadable 1.0 MiB" in run("info", path, "--map", env=UTF8).out
    run("info", path).ok()


def test_broken_images() -> None:
    """What the index tells is told, with its place; what only the data tells is for verify"""
    names = broken_by("read")
    calls = [("info", "--map", "--json", broken(name)) for name in names]
    for name, result in zip(names, run_each(calls), strict=True):
        damage = json.loads(result.out)["map"]["damage"]
        if name.startswith(("node_", "entry_")):
            assert result.code == 3, name
            first = EXPECTED["broken"][name]["cluster"]
            assert damage[0]["cluster"] == first, name
        else:
            assert (result.code, damage) == (0, []), name


def test_bad_images(tmp_path: Path) -> None:
    check_refused("info", tmp_path, "--map")
