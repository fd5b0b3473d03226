"""`lazyrestore diff`: what it says, and its exit codes: 0 alike, 1 different, 2 or more trouble."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import PAGE, Image, environment, run, target
from image_files import SOUND, TRUNCATIONS, broken, broken_by, run_each, sound, truncations
from restore_support import flip, payloads

import lazyrestore
from lazyrestore.cli.diff import _percent

MakeImage = Callable[..., Image]
LAYOUT = "dddd" + "zzzz" + "hhhh" + "dzhr"


@pytest.fixture
def two(make_image: MakeImage) -> tuple[Path, Path]:
    """Two images: three pages of "heap" differ; "code" is alike; "a" and "b" have no other."""
    a = make_image({"heap": LAYOUT * 9, "code": "d" * 20, "a": "d"})
    changed = "zddd" + "zdzz" + "hhhr" + "dzhr" + LAYOUT * 8
    b = make_image({"heap": changed, "code": "d" * 20, "b": ""})
    return a.path, b.path


def test_text(two: tuple[Path, Path]) -> None:
    """How many, which, and where, within 80 columns"""
    found = run("diff", *two)
    assert (found.code, found.err) == (1, "")
    lines = found.out.splitlines()
    assert lines[0] == f"{two[0]} and {two[1]} differ"
    assert lines[1] == "3 of 164 pages differ, 12.0 KiB of 656.0 KiB in 2 regions; pages of 4.0 KiB"
    (table,) = [line for line in lines if line.startswith("heap ") and "%" in line]
    assert table.split() == ["heap", "576.0", "KiB", "3", "2.1%", "0", "2", "1"]
    assert f"only in {two[0]}: a, 4.0 KiB" in lines
    assert f"only in {two[1]}: b, 0 B" in lines
    for first, last in ((0, 1), (5, 6), (11, 12)):
        where = ["heap", f"{first * PAGE:#x}", f"{last * PAGE:#x}", "1"]
        assert any(line.split() == where for line in lines)
    assert not any(line.startswith("code") for line in lines)
    assert max(map(len, lines[1:])) <= 80
    assert not any(line != line.rstrip() for line in lines)
    (cells,) = [line for line in lines if line.startswith("heap ") and "·" in line]
    row = cells.split()[3]
    assert [at for at, letter in enumerate(row) if letter == "█"] == [0, 5, 11]
    assert "code" in run("diff", "-v", *two).out


def test_json(two: tuple[Path, Path]) -> None:
    """The same object that lazyrestore.diff gives"""
    found = run("diff", "--json", "--limit", 2, *two)
    assert (found.code, found.err) == (1, "")
    said = json.loads(found.out)
    assert said["same"] is False
    assert (said["pages"], said["different_pages"], said["different_bytes"]) == (164, 3, 3 * PAGE)
    heap, code = said["regions"]
    assert heap["states"] == {"zero, data": 1, "hole, data": 1, "data, zero": 1}
    assert heap["range_count"] == 3
    assert heap["ranges"] == [[0, PAGE], [5 * PAGE, PAGE]]
    assert code["different_pages"] == 0
    assert said["only_a"] == [{"name": "a", "offset": 0, "length": PAGE}]
    assert said["only_b"] == [{"name": "b", "offset": 0, "length": 0}]


def test_alike(make_image: MakeImage) -> None:
    """A line; nothing with --quiet; holes are like zeros"""
    a = make_image({"m": "dzhr" * 20}, cluster_size=16384).path
    b = make_image({"m": "dhzr" * 20}, cluster_size=4096).path
    lines = run("diff", a, b).ok().out.splitlines()
    assert lines[0] == f"{a} and {b} hold the same: 320.0 KiB in 1 region"
    assert lines[1] == "(40 pages zero in one and untouched in the other: read alike)"
    assert len(lines) == 2
    assert run("diff", "--quiet", a, b).ok().out == ""
    assert run("diff", a, a).ok().out.count("\n") == 1
    assert json.loads(run("diff", "--json", a, b).ok().out)["same"] is True


def test_each_golden_image_is_like_itself(tmp_path: Path) -> None:
    """And like a copy; and unlike any other"""
    for name in SOUND:
        (tmp_path / name).write_bytes(sound(name).read_bytes())
    for result in run_each(("diff", sound(name), tmp_path / name) for name in SOUND):
        assert "hold the same" in result.ok().out
    pairs = list(zip(SOUND, [*SOUND[1:], SOUND[0]], strict=True))
    results = run_each(("diff", sound(one), sound(other)) for one, other in pairs)
    for pair, result in zip(pairs, results, strict=True):
        assert (result.code, result.err) == (1, ""), (pair, result)


def test_quiet(two: tuple[Path, Path]) -> None:
    """Nothing but the exit code"""
    found = run("diff", "-q", *two)
    assert (found.code, found.out, found.err) == (1, "", "")


def test_one_region(two: tuple[Path, Path]) -> None:
    """What is not asked for does not matter"""
    assert "hold the same" in run("diff", *two, "--region", "code").ok().out
    found = run("diff", *two, "--region", "code", "--region", "heap", "--json")
    assert [each["name"] for each in json.loads(found.out)["regions"]] == ["heap", "code"]
    run("diff", *two, "--region", "nix").fails(2, "nix", "heap")


def test_nothing_but_metadata(tmp_path: Path) -> None:
    """Is a difference too"""
    paths = [tmp_path / "a.lzr", tmp_path / "b.lzr"]
    for number, path in enumerate(paths):
        with lazyrestore.ImageWriter(path) as image:
            image.add_region("m", protection=3 - number, metadata={"n\n": number})
            image.write(b"x" * (5 + number))
    found = run("diff", *paths)
    assert found.code == 1
    lines = found.out.splitlines()
    assert "m: length 5 and 6 bytes" in lines
    assert "m: protection rw- and -w-" in lines
    assert "m: metadata {'n\\n': 0} and {'n\\n': 1}" in lines


def test_arrays_of_other_shapes(tmp_path: Path) -> None:
    """As ls shows them; what that does not tell apart, as it is stored"""
    paths = [tmp_path / "a.lzr", tmp_path / "b.lzr"]
    for number, path in enumerate(paths):
        with lazyrestore.ImageWriter(path) as image:
            for name, more in (("a", {}), ("b", {"more": number})):
                shape = [2, 2 + number] if name == "a" else [2]
                array_of = {"dtype": "<f4", "shape": shape, "order": "C"}
                image.add_region(name, metadata={"array": array_of, **more})
                image.write(b"x" * 8)
    lines = run("diff", *paths).out.splitlines()
    assert "a: metadata float32 2×2 and float32 2×3" in lines
    (line,) = [line for line in lines if line.startswith("b: metadata ")]
    assert "'more': 0" in line
    assert "'more': 1" in line


def test_files(tmp_path: Path) -> None:
    """By name, and not all of very many; lines stay short"""
    paths = [tmp_path / "a.lzr", tmp_path / "b.lzr"]
    for number, path in enumerate(paths):
        with lazyrestore.ImageWriter(path) as image:
            for name in range(30):
                image.add_file(f"a-long-name-of-a-file-{name:02}", bytes([number]))
            image.add_file(f"only-{number}", b"x")
    found = run("diff", *paths)
    assert found.code == 1
    text = " ".join(found.out.splitlines())
    assert "30 files differ: a-long-name-of-a-file-00, a-long-name-of-a-file-01" in text
    assert text.endswith("a-long-name-of-a-file-07 and 22 more")
    assert f"only in {paths[1]}: 1 file: only-1" in text
    assert all(len(line) <= 80 or str(tmp_path) in line for line in found.out.splitlines())


def test_nothing_in_common(tmp_path: Path) -> None:
    paths = [tmp_path / "a.lzr", tmp_path / "b.lzr"]
    for path in paths:
        lazyrestore.dump({path.stem: b"x" * PAGE}, path)
    lines = run("diff", *paths).out.splitlines()
    assert lines[1] == "no region is in both: nothing was compared"
    assert lines[3:] == [f"only in {path}: {path.stem}, 4.0 KiB" for path in paths]


def test_what_regions_are(tmp_path: Path) -> None:
    """Said where there is room for it"""
    paths = [tmp_path / "a.lzr", tmp_path / "b.lzr"]
    for number, path in enumerate(paths):
        with lazyrestore.ImageWriter(path) as image:
            image.add_region("r" * 30, metadata={"path": "/usr/lib/libc.so.6", "offset": 4096})
            image.write(bytes([1 + number]) * PAGE)
    wide = run("diff", *paths, env=environment({"COLUMNS": "200"})).out
    assert "/usr/lib/libc.so.6 at 0x1000" in wide
    narrow = run("diff", *paths).out
    assert "libc" not in narrow
    assert max(map(len, narrow.splitlines()[1:])) <= 80


def test_damage(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Exit code 3, where and why; what can be compared is"""
    flip(two[1], payloads(two[1], "heap")[7][0])
    found = run("diff", *two)
    assert found.code == 3
    assert found.err.count("\n") == 1
    for word in (str(two[1]), "checksum", "'heap'", str(7 * 65536), "take another copy"):
        assert word in found.err
    assert "differ, and cannot be read throughout" in found.out
    assert f"{7 * 65536:#x}" in found.out
    said = json.loads(run("diff", *two, "--json").out)
    assert said["regions"][0]["different_pages"] == 3
    assert said["regions"][0]["unreadable_pages"] == 4 + 2  # its zeros can be read
    (damage,) = said["damage"]
    assert damage["path"] == str(two[1])
    assert damage["damage"]["region"] == "heap"
    copy = tmp_path / "copy.lzr"
    copy.write_bytes(two[1].read_bytes())
    found = run("diff", two[1], copy)
    assert found.code == 3
    assert "alike as far as they can be read" in found.out


def test_trouble(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Never 1, which says that they differ"""
    run("diff", two[0], tmp_path / "nix.lzr").fails(2, "nix.lzr", "No such file")
    run("diff", tmp_path, two[0]).fails(2, "Is a directory")
    run("diff", two[0]).fails(2, "B")
    run("diff", *two, "--limit", "-1").fails(2, "limit")
    text = tmp_path / "text"
    text.write_text("no image")
    run("diff", two[0], text).fails(3, "not a lazyrestore image")
    said = json.loads(run("diff", "--json", two[0], tmp_path / "nix.lzr").out)
    assert said["error"]["exit_code"] == 2


def test_bad_images(tmp_path: Path) -> None:
    """What cannot be opened, on either side, and what is found out later"""
    good = sound("mixed")
    bad = [broken(name) for name in broken_by("open", "names")]
    bad += truncations(tmp_path, good)[:: TRUNCATIONS // 20]
    for path, result in zip(bad, run_each(("diff", good, path) for path in bad), strict=True):
        result.fails(3, str(path))
        assert result.out == ""
    for path, result in zip(bad, run_each(("diff", path, good) for path in bad), strict=True):
        result.fails(3, str(path))


def test_what_is_found_out_later(tmp_path: Path) -> None:
    """All that can be wrong with an index, a cluster or the files, against sound memory"""
    names = broken_by("read", "files")
    others = []
    for name in names:
        other = tmp_path / f"{name}.lzr"
        with lazyrestore.open(broken(name)) as image, lazyrestore.ImageWriter(other) as written:
            for number, region in enumerate(image.regions):
                written.add_region(region.name)
                written.write(bytes([number + 1]) * region.length)
        others.append(other)
    calls = [("diff", broken(name), other) for name, other in zip(names, others, strict=True)]
    for name, result in zip(names, run_each(calls), strict=True):
        assert result.code == 3, (name, result)
        assert result.err.count("\n") == 1
        assert str(broken(name)) in result.err


def test_a_pipe_and_a_closed_one(two: tuple[Path, Path]) -> None:
    """ASCII where that is all there is; no colours but where they are forced"""
    plain = run("diff", *two, env=environment({"PYTHONIOENCODING": "ascii"}))
    assert plain.out.isascii()
    assert "#" in plain.out
    posix = run("diff", *two, env=environment({"LC_ALL": "C"}))
    assert posix.out == plain.out
    found = run("diff", *two, env=environment({"LC_ALL": "C.UTF-8"}))
    assert "\x1b" not in found.out
    coloured = run("diff", *two, env=environment({"LC_ALL": "C.UTF-8", "FORCE_COLOR": "1"}))
    assert "\x1b[31m█\x1b[0m" in coloured.out
    neither = run("diff", *two, env=environment({"FORCE_COLOR": "1", "NO_COLOR": "1"}))
    assert "\x1b" not in neither.out


def test_shares() -> None:
    """All and none are said of nothing else"""
    assert _percent(0.0) == "0%"
    assert _percent(1.0) == "100%"
    assert _percent(1e-9) == "<0.1%"
    assert _percent(1 - 1e-9) == ">99.9%"
    assert _percent(0.5) == "50.0%"


def test_two_dumps_of_a_process(tmp_path: Path) -> None:
    """Which page it wrote to in between"""
    a, b = tmp_path / "a.lzr", tmp_path / "b.lzr"
    with target(16) as (child, address):
        span = f"{address:x}-{address + 16 * PAGE:x}"
        run("dump", "-q", "--pid", child.pid, "--range", span, a).ok()
        with open(f"/proc/{child.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address + 6 * PAGE + 100)
            memory.write(b"changed")
        run("dump", "-q", "--pid", child.pid, "--range", span, b).ok()
    found = run("diff", a, b)
    assert found.code == 1
    assert "1 of 16 pages differ" in found.out
    assert [span, hex(6 * PAGE), hex(7 * PAGE), "1"] in [
        line.split() for line in found.out.splitlines()
    ]
