"""`lazyrestore ls`: the regions of an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import run, target
from image_files import SOUND, check_refused, run_each, sound

import lazyrestore
from lazyrestore.cli.ls import describe_dtype


def test_json() -> None:
    """What each region is, with the metadata that its owner wanted kept"""
    listed = json.loads(run("ls", "--json", sound("mixed")).ok().out)
    assert listed["path"] == str(sound("mixed"))
    regions = {region["name"]: region for region in listed["regions"]}
    assert list(regions) == ["array", "nothing", "heap", "libc.so", "shared", "no access"]
    assert regions["array"] == {
        "name": "array",
        "address": 0x7F0012345670,
        "length": 12345,
        "protection": 3,
        "shared": False,
        "planes": 0,
        "metadata": {"array": {"dtype": "|u1", "shape": [12345], "order": "C"}},
    }
    assert regions["libc.so"]["metadata"] == {"path": "/usr/lib/libc.so.6", "offset": 0x26000}
    assert regions["heap"]["metadata"] == {}
    assert regions["shared"]["shared"] is True


def test_text() -> None:
    """A line a region, within 80 columns"""
    lines = run("ls", sound("mixed")).ok().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("name", "array", "nothing", "heap", "libc.so", "shared", "no")
    ]
    assert lines[0].split() == ["name", "address", "length", "prot", "what"]
    assert lines[1].split()[1:] == ["7f0012345670", "12.1", "KiB", "rw-p", "uint8", "12345"]
    assert lines[2].endswith("rw-p  float64 0×3")
    assert lines[4].endswith("30.0 KiB  r-xp  /usr/lib/libc.so.6 at 0x26000")
    assert lines[5].endswith("8.0 KiB  rw-s")
    assert lines[6].endswith("10 B  ---p")
    assert max(map(len, lines)) <= 80
    assert not any(line != line.rstrip() for line in lines)


def test_every_golden_image() -> None:
    """As many regions as lazyrestore.open has, of the same names"""
    texts = run_each(("ls", sound(name)) for name in SOUND)
    objects = run_each(("ls", "--json", sound(name)) for name in SOUND)
    for name, text, listed in zip(SOUND, texts, objects, strict=True):
        with lazyrestore.open(sound(name)) as image:
            names = [region.name for region in image.regions]
            files = {kept: len(data) for kept, data in image.files.items()}
        said = json.loads(listed.ok().out)
        assert [region["name"] for region in said["regions"]] == names
        assert {file["name"]: file["bytes"] for file in said["files"]} == files
        lines = text.ok().out.splitlines()[1:]
        if files:
            assert lines.pop().startswith(f"and {len(files)} file")
        assert len(lines) == len(names)
        for line, region in zip(lines, names, strict=True):
            assert line.startswith(region)


def test_no_regions() -> None:
    """The heads alone; an empty list"""
    assert run("ls", sound("no_regions")).ok().out.count("\n") == 1
    assert json.loads(run("ls", "--json", sound("no_regions")).ok().out)["regions"] == []


def test_a_process(tmp_path: Path) -> None:
    """Its regions are named for their addresses, which are not said twice"""
    path = tmp_path / "x.lzr"
    with target(4) as (child, address):
        span = f"{address:x}-{address + 4 * 4096:x}"
        run("dump", "-q", "--pid", child.pid, "--range", span, path).ok()
    lines = run("ls", path).ok().out.splitlines()
    assert len(lines) == 2
    assert "address" not in lines[0]
    assert lines[1].split()[:4] == [span, "16.0", "KiB", "rw-p"]
    (region,) = json.loads(run("ls", "--json", path).ok().out)["regions"]
    assert region["address"] == address


def test_a_name_with_control_characters(tmp_path: Path) -> None:
    """Stays on its line; --json has it as it is"""
    path = tmp_path / "x.lzr"
    lazyrestore.dump({"a\n\x1b[31mb": b"memory"}, path)
    lines = run("ls", path).ok().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("a\\n\\x1b[31mb ")
    (region,) = json.loads(run("ls", "--json", path).ok().out)["regions"]
    assert region["name"] == "a\n\x1b[31mb"


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("<f4", "float32"),
        ("|b1", "bool"),
        (">i2", "int16 (big-endian)"),
        ("<c16", "complex128"),
        ("<M8[D]", "datetime64[D]"),
        ("<m8[25us]", "timedelta64[25us]"),
        ("|S5", "bytes5"),
        ("bfloat16", "bfloat16"),
        ([["a", "<i4"], [["title", "b"], "<f8", [2, 3]]], "{a: int32, b: float64 2×3}"),
        (None, "None"),
        (["x", ["y"], 7], "{?, ?, ?}"),
        ("<f" + "9" * 40, "<f" + "9" * 40),
    ],
)
def test_dtypes(dtype: object, text: str) -> None:
    """As numpy prints them; anything else that the metadata has, as it is"""
    assert describe_dtype(dtype) == text


def test_bad_images(tmp_path: Path) -> None:
    check_refused("ls", tmp_path)
