"""`lazyrestore info --svg FILE`: a picture that is XML, in which nothing lies on anything else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from cli_support import Old, run
from image_files import SOUND, run_each, sound
from restore_support import write_image

import lazyrestore
from lazyrestore import _svg

SVG = "{http://www.w3.org/2000/svg}"
SHAPE = re.compile(r"M(\d+) (\d+)h(\d+)v(\d+)h-(\d+)z")
Box = tuple[float, float, float, float]


def draw(image: Path, tmp_path: Path) -> ElementTree.Element:
    picture = tmp_path / "picture.svg"
    run("info", "--svg", picture, image).ok()
    return ElementTree.fromstring(picture.read_bytes())


def shapes(root: ElementTree.Element) -> dict[str, list[Box]]:
    """(left, top, right, bottom) of all that is coloured, by what it shows."""
    found: dict[str, list[Box]] = {}
    for path in root.iter(f"{SVG}path"):
        data = path.attrib["d"]
        parts = list(SHAPE.finditer(data))
        assert "".join(part[0] for part in parts) == data
        for x, y, width, height, back in (map(int, part.groups()) for part in parts):
            assert width == back > 0
            assert height > 0
            found.setdefault(path.attrib["class"], []).append((x, y, x + width, y + height))
    return found


def texts(root: ElementTree.Element) -> list[Box]:
    """Where texts lie, by the widest monospace letters that there are."""
    boxes = []
    for text in root.iter(f"{SVG}text"):
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        css = text.attrib.get("class", "")
        size = 16 if css == "title" else 11
        width = 0.61 * size * len(text.text or "")
        left = x - width if "length" in css else x
        boxes.append((left, y - 0.8 * size, left + width, y + 0.2 * size))
    return boxes


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check(root: ElementTree.Element) -> None:
    """All within the picture, and nothing on anything else."""
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert root.attrib["viewBox"] == f"0 0 {width:.0f} {height:.0f}"
    cells = [box for boxes in shapes(root).values() for box in boxes]
    lines: dict[float, list[Box]] = {}
    for box in [*cells, *texts(root)]:
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= width
        assert box[3] <= height
        for line in range(int(box[1]) // 30, int(box[3]) // 30 + 1):
            lines.setdefault(line, []).append(box)
    for boxes in lines.values():
        boxes.sort()
        for number, box in enumerate(boxes):
            for other in boxes[number + 1 :]:
                if other[0] >= box[2]:
                    break
                assert not overlap(box, other), (box, other)


@pytest.mark.parametrize(
    "name", ["mixed", "many_regions", "tall_tree", "unicode_names", "no_regions"]
)
def test_golden_images(name: str, tmp_path: Path) -> None:
    """Valid, and nothing overlaps"""
    root = draw(sound(name), tmp_path)
    check(root)
    assert root.tag == f"{SVG}svg"
    titles = [each.text or "" for each in root.iter(f"{SVG}title")]
    with lazyrestore.open(sound(name)) as image:
        assert len(titles) == 1 + len(image.regions)
    assert titles[0].startswith(f"{name}.lzr: ")


def test_all_golden_images_are_drawn(tmp_path: Path) -> None:
    """The report is printed too"""
    calls = [("info", "--svg", tmp_path / f"{name}.svg", sound(name)) for name in SOUND]
    for name, result in zip(SOUND, run_each(calls), strict=True):
        assert f"{name}.lzr: a lazyrestore image" in result.ok().out
        ElementTree.parse(tmp_path / f"{name}.svg")


def test_as_much_of_each_kind(tmp_path: Path) -> None:
    """Areas: a cell is a cluster here; its height goes by how much of it is data"""
    image = tmp_path / "x.lzr"
    layout = "dddd" * 3 + "rrrr" * 2 + "zzzz" * 5 + "hhhh" * 7 + "ddhh" * 4 + "dddd"
    write_image(image, {"a": layout, "b": "dddd"}, cluster_size=16384)
    found = shapes(draw(image, tmp_path))
    cell, height = _svg._CELL_WIDTH, _svg._CELL_HEIGHT

    def area(css: str) -> float:
        return sum((box[2] - box[0]) * (box[3] - box[1]) for box in found.get(css, ()))

    one = cell * height
    assert area("data") == (3 + 4 / 2 + 1) * one
    assert area("raw") == 2 * one
    assert area("zero") == 5 * one
    assert area("hole") == (7 + 4 / 2) * one
    assert area("repeat") == 1 * one if "repeat" in found else True
    assert not found.get("hot")


def test_more_regions_than_rows(tmp_path: Path) -> None:
    """One behind the other: a picture of bearable height, with all of the data in it"""
    image = tmp_path / "x.lzr"
    with lazyrestore.ImageWriter(image) as writer:
        for number in range(2000):
            writer.add_region(f"region {number}")
            writer.write(number.to_bytes(8, "little") * (512 * (number % 40)))
        writer.add_region("long")
        writer.hole(30 << 20)
    root = draw(image, tmp_path)
    check(root)
    assert float(root.attrib["height"]) < 2000
    titles = [each.text or "" for each in root.iter(f"{SVG}title")]
    assert titles[1001].startswith("region 1000: 0 B, ")
    assert titles[-1].startswith("long: 30.0 MiB")
    cells = [box for boxes in shapes(root).values() for box in boxes]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in cells)
    clusters = sum(-(-(number % 40) // 16) for number in range(2000))
    assert area == (clusters + 30 * 16) * _svg._CELL_WIDTH * _svg._CELL_HEIGHT


def test_dark_and_light(tmp_path: Path) -> None:
    """Colours of both, by class"""
    text = "".join(each.text or "" for each in draw(sound("mixed"), tmp_path).iter(f"{SVG}style"))
    light, _, dark = text.partition("@media (prefers-color-scheme: dark)")
    for name in ("data", "raw", "repeat", "zero", "hole", "planes", "lost", "hot", "ground"):
        assert light.count(f".{name}{{fill:#") == dark.count(f".{name}{{fill:#") == 1


def test_names_that_are_markup(tmp_path: Path) -> None:
    """And control characters, which XML has no place for, and letters of any script"""
    image = tmp_path / "<&>'\".lzr"
    names = ["<script>&amp;", "a\x00\x1b\x0b", "\ufffe", "内存", "]]>"]
    write_image(image, dict.fromkeys(names, "d"))
    root = draw(image, tmp_path)
    shown = [text.text for text in root.iter(f"{SVG}text")]
    assert "<script>&amp;" in shown
    assert "内存" in shown
    assert "a\\x00\\x1b\\x0b" in shown


def test_other_endings(tmp_path: Path) -> None:
    """Are refused before anything is read"""
    run("info", "--svg", tmp_path / "a.png", tmp_path / "nix").fails(2, ".svg")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """As everywhere; a picture that was there stays where the image is not one"""
    run("info", "--svg", tmp_path / "nix" / "a.svg", sound("mixed")).fails(1, "No such file")
    old = Old(tmp_path / "old.svg")
    run("info", "--svg", old, tmp_path / "nix.lzr").fails(1, "nix.lzr")
    old.check()
    run("info", "--svg", old, sound("mixed")).ok()
    assert old.path.read_bytes().startswith(b"<svg")
