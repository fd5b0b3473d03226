"""`lazyrestore info`: what an image says of itself, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import COMMAND, PAGE, Image, run
from image_files import EXPECTED, SOUND, check_refused, run_each, sound
from restore_support import write_image
from terminal_support import Terminal

import lazyrestore

MakeImage = Callable[..., Image]


def info_of(path: Path) -> dict[str, object]:
    return json.loads(run("info", "--json", path).ok().out)


def test_every_golden_image() -> None:
    """The sizes and the digest that fixtures/expected.json says"""
    results = run_each(("info", sound(name), "--json") for name in SOUND)
    for name, result in zip(SOUND, results, strict=True):
        found = json.loads(result.ok().out)
        stored = sound(name).stat().st_size
        for key, value in EXPECTED["golden"][name].items():
            if key in found:
                assert found[key] == value, (name, key)
        assert found["digest"] == EXPECTED["golden"][name]["digest"]
        assert found["stored_bytes"] == stored
        assert found["ratio"] == pytest.approx(found["logical_bytes"] / stored, abs=1e-5)
        kinds = ("zero_bytes", "hole_bytes", "data_bytes")
        assert sum(found[kind] for kind in kinds) == found["logical_bytes"]


def test_json(make_image: MakeImage) -> None:
    """Counted by hand"""
    path = make_image({"a": "d" * 4 + "zzzz" + "hh" + "zz"}, cluster_size=4 * PAGE).path
    found = info_of(path)
    assert found["path"] == str(path)
    assert found["version"] == 1
    assert found["logical_bytes"] == 12 * PAGE
    assert found["zero_bytes"] == 6 * PAGE
    assert found["hole_bytes"] == 2 * PAGE
    assert found["data_bytes"] == 4 * PAGE
    assert found["duplicate_bytes"] == 0
    assert (found["clusters"], found["stored_clusters"]) == (3, 1)
    assert (found["page_size"], found["cluster_size"]) == (PAGE, 4 * PAGE)
    expected = {"name": "a", "address": 0, "length": 12 * PAGE, "protection": 3, "shared": False}
    assert found["regions"] == [expected | {"planes": 0}]


def test_regions() -> None:
    """Name, address, length and protection of each, in their order"""
    regions = {region["name"]: region for region in info_of(sound("mixed"))["regions"]}
    assert list(regions) == ["array", "nothing", "heap", "libc.so", "shared", "no access"]
    assert regions["heap"]["address"] == 0x555500000000
    assert regions["heap"]["length"] == 381833
    assert regions["libc.so"]["protection"] == 5
    assert regions["no access"]["protection"] == 0
    assert [name for name, region in regions.items() if region["shared"]] == ["shared"]


def test_repeats(make_image: MakeImage) -> None:
    """Two equal regions: the second is all repeats, and the text says so"""
    path = make_image({"a": "d" * 16, "b": "d" * 16}, cluster_size=8 * PAGE).path
    found = info_of(path)
    assert found["duplicate_bytes"] == 16 * PAGE
    assert found["stored_clusters"] == 2
    assert "of which 64.0 KiB are repeats" in run("info", path).ok().out


def test_text() -> None:
    """Everything that --json has but the regions themselves, within 80 columns"""
    text = run("info", sound("mixed")).ok().out
    digest = EXPECTED["golden"]["mixed"]["digest"]
    for words in (
        "version 1",
        "2025-01-01T00:00:00Z by lazyrestore fixtures",
        "the golden image 'mixed'",
        "422.9 KiB in 6 regions",
        "154.9 KiB",
        "136.0 KiB",
        "132.0 KiB",
        "ratio 22.05",
        "10 of 64.0 KiB, 7 stored; pages of 4.0 KiB",
        digest,
    ):
        assert words in text, words
    assert max(map(len, text.splitlines()[1:])) <= 80


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_long_fields_are_broken_to_fit_a_terminal(tmp_path: Path, columns: int) -> None:
    """Between words, and below where they began; in a pipe each stays on its line"""
    image = tmp_path / "x.lzr"
    lazyrestore.dump({f"layer-{number}.attention.weight": b"x" * 100 for number in range(9)}, image)
    (line,) = (one for one in run("info", image).ok().out.splitlines() if "layer-0" in one)
    with Terminal(*COMMAND, "info", image, columns=columns) as terminal:
        assert terminal.finish() == 0
    shown = terminal.shown.splitlines()[1:]
    digest = 64 + len("  working set  ")  # one word, and wider than 60 columns
    assert max(map(len, shown)) <= max(columns, digest)
    at = next(number for number, one in enumerate(shown) if one.startswith("  of "))
    until = next(number for number, one in enumerate(shown) if one.startswith("  memory "))
    assert (until - at > 1) == (len(line) > columns)
    assert " ".join(" ".join(shown[at:until]).split()) == " ".join(line.split())
    assert all(one.startswith(" " * 15) for one in shown[at + 1 : until])


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    """The level and the threads do not matter; one byte more or less does"""
    content = b"".join(number.to_bytes(8, "little") * 512 for number in range(300)) + b"end"
    raw, other = tmp_path / "raw", tmp_path / "other"
    raw.write_bytes(content)
    other.write_bytes(content[:-1] + b"D")
    options = (
        ("--level", 1, "--threads", 1),
        ("--level", 9, "--threads", 1),
        ("--level", 3, "--threads", 2),
    )
    paths = [tmp_path / f"{number}.lzr" for number in range(len(options))]
    calls = [
        ("dump", "--file", raw, path, "-q", *chosen)
        for path, chosen in zip(paths, options, strict=True)
    ]
    changed = tmp_path / "changed.lzr"
    calls.append(("dump", "--file", other, changed, "-q"))
    for result in run_each(calls):
        result.ok()
    found = [json.loads(r.ok().out) for r in run_each(("info", p, "--json") for p in paths)]
    assert len({image["stored_bytes"] for image in found}) > 1  # or the levels were the same
    assert len({image["id"] for image in found}) == len(paths)
    assert len({image["digest"] for image in found}) == 1
    assert info_of(changed)["digest"] != found[0]["digest"]


def test_a_hole_is_not_a_zero_page(make_image: MakeImage) -> None:
    """To the digest, though both read as zeros"""
    zero, hole = (make_image({"a": kind * 4}).path for kind in "zh")
    assert info_of(zero)["digest"] != info_of(hole)["digest"]


def test_a_source_with_control_characters(tmp_path: Path) -> None:
    """A file's name cannot change the terminal"""
    raw = tmp_path / "a\x1b[31m\nb"
    raw.write_bytes(b"memory")
    run("dump", "-q", "--file", raw, tmp_path / "x.lzr").ok()
    text = run("info", tmp_path / "x.lzr").ok().out
    assert "\x1b" not in text
    assert "\\x1b[31m\\nb" in text


def test_little_is_read(tmp_path: Path) -> None:
    """Of an image with all clusters lost, as much is known: none of them is looked at"""
    path = tmp_path / "x.lzr"
    write_image(path, {"a": "r" * 256})
    before = info_of(path)
    data = bytearray(path.read_bytes())
    data[4096 : 128 * PAGE] = bytes(128 * PAGE - 4096)
    path.write_bytes(data)
    assert info_of(path) == before


def test_bad_images(tmp_path: Path) -> None:
    check_refused("info", tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a device, a name that is not there: says which, and waits for nothing"""
    run("info", tmp_path).fails(1, str(tmp_path), "Is a directory")
    run("info", "/dev/zero").fails(1, "/dev/zero", "regular file")
    run("info", tmp_path / "nix").fails(1, "nix", "No such file", "check the name")
