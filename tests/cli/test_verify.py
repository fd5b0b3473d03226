"""`lazyrestore verify`: sound images are, and of all others it says what is lost and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import COMMAND, PAGE, Image, Result, run
from image_files import (
    EXPECTED,
    SOUND,
    TRUNCATIONS,
    broken,
    broken_by,
    check_refused,
    run_each,
    sound,
    truncations,
)
from restore_support import flip, payloads, run_in_child
from terminal_support import Terminal

import lazyrestore

MakeImage = Callable[..., Image]
MIB = 1 << 20


def damage_of(result: Result, path: Path) -> list[dict[str, object]]:
    """What --json lists; the exit code and the line on standard error are right"""
    report = json.loads(result.out)
    damage = report["damage"]
    assert report["path"] == str(path)
    noun = "error" if len(damage) == 1 else "errors"
    result.fails(3, str(path), f"{len(damage)} {noun} found", "take another copy")
    return damage


# ---- Sound images --------------------------------------------------------------------------------


def test_every_golden_image() -> None:
    """Exit code 0, nothing on standard error, and all of it was looked at"""
    results = run_each(("verify", sound(name), "--json") for name in SOUND)
    for name, result in zip(SOUND, results, strict=True):
        report = json.loads(result.ok().out)
        assert report["damage"] == []
        assert report["logical_bytes"] == EXPECTED["golden"][name]["logical_bytes"]
        with lazyrestore.open(sound(name)) as image:
            assert report["clusters"] == image.info.clusters
    for name, result in zip(SOUND, run_each(("verify", sound(n)) for n in SOUND), strict=True):
        (line,) = result.ok().out.splitlines()
        assert line.startswith(f"{sound(name)}: sound (")


def test_quiet(make_image: MakeImage) -> None:
    """Only the exit code, and the line on standard error"""
    image = make_image({"memory": "d" * 16})
    assert run("verify", "-q", image.path).ok().out == ""
    flip(image.path, payloads(image.path, "memory")[0][0] + 9)
    assert run("verify", "-q", image.path).fails(3, "1 error found").out == ""


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads(make_image: MakeImage, threads: int) -> None:
    """However many there are, all is found, and in its order"""
    image = make_image({"memory": "d" * 600}, cluster_size=4096)
    places = payloads(image.path, "memory")
    for cluster in (0, 255, 256, 599):
        flip(image.path, places[cluster][0] + 5)
    result = run("verify", "--json", "--threads", threads, image.path)
    assert [found["cluster"] for found in damage_of(result, image.path)] == [0, 255, 256, 599]


# ---- Damage --------------------------------------------------------------------------------------


def test_every_broken_image_that_opens() -> None:
    """Exit code 3; where a cluster is lost, its region, its place there and its bytes"""
    names = broken_by("read", "verify")
    results = run_each(("verify", "--json", broken(name)) for name in names)
    for name, result in zip(names, results, strict=True):
        damage = damage_of(result, broken(name))
        assert damage, name
        assert all(found["reason"] for found in damage)
        cluster = EXPECTED["broken"][name]["cluster"]
        if cluster is None:
            continue
        with lazyrestore.open(broken(name)) as image:
            number, offset = image.place_of_cluster(cluster)
            region = image.regions[number]
            cluster_size = image.cluster_size
            lengths = {region.name: region.length for region in image.regions}
        (found,) = [lost for lost in damage if lost["cluster"] == cluster]
        assert (found["region"], found["offset"]) == (region.name, offset), name
        if EXPECTED["broken"][name]["code"] == "LR_ERR_NODE":
            lost = {lost["region"]: lost["length"] for lost in damage if lost["region"]}
            assert lost == lengths, name
        else:
            assert found["length"] == min(cluster_size, region.length - offset), name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong_digest", "digest"),
        ("false_zero_bytes", "for zero_bytes, and 36864 were counted"),
        ("false_hole_bytes", "for hole_bytes"),
        ("false_duplicate_bytes", "for duplicate_bytes"),
        ("false_payload_bytes", "for payload_bytes"),
        ("false_stored_clusters", "for stored_clusters"),
        ("overlapping_extents", "at byte 5096 of the file"),
        ("stream_does_not_walk", "byte 10036 of the file"),
        ("stream_has_strange_record", "byte 10036 of the file"),
        ("header_says_other_cluster_size", "cluster_size"),
        ("header_has_other_id", "id"),
    ],
)
def test_what_only_verify_finds(name: str, words: str) -> None:
    """Each says which of its claims is not so, or where in the file"""
    (result,) = run_each([("verify", "--json", broken(name))])
    (found,) = damage_of(result, broken(name))
    assert words in str(found["reason"])


def test_which_regions_are_sound(tmp_path: Path) -> None:
    """-v: one line a region; on a terminal the verdict has a colour"""
    image = tmp_path / "x.lzr"
    lazyrestore.dump({"good": os.urandom(MIB), "bad": os.urandom(MIB)}, image)
    assert run("verify", "-v", image).ok().out.splitlines()[2:] == [
        "region   length  state",
        "good    1.0 MiB  sound",
        "bad     1.0 MiB  sound",
    ]
    offset, length = payloads(image, "bad")[3]
    flip(image, offset + length // 2)
    lines = run("verify", "-v", image).fails(3, "1 error found").out.splitlines()
    assert lines[-2:] == ["good    1.0 MiB  sound", "bad     1.0 MiB  1 error"]
    with Terminal(*COMMAND, "verify", image) as terminal:
        assert terminal.finish() == 3
    assert "\x1b[1;31mdamaged\x1b[0m" in terminal.shown


def test_several_at_once(make_image: MakeImage) -> None:
    """All are listed, each where it is, also in words; the rest is looked at"""
    image = make_image({"a": "d" * 40, "b": "r" * 10}, cluster_size=4 * PAGE)
    for region, cluster in (("a", 2), ("a", 7), ("b", 2)):
        offset, length = payloads(image.path, region)[cluster]
        flip(image.path, offset + length // 2)
    result = run("verify", "--json", image.path)
    damage = damage_of(result, image.path)
    assert [(found["region"], found["offset"], found["length"]) for found in damage] == [
        ("a", 8 * PAGE, 4 * PAGE),
        ("a", 28 * PAGE, 4 * PAGE),
        ("b", 8 * PAGE, 2 * PAGE),
    ]
    report = json.loads(result.out)
    assert (report["clusters"], report["logical_bytes"]) == (13, 50 * PAGE)

    text = run("verify", image.path).fails(3, "3 errors found").out.splitlines()
    assert ": damaged (13 clusters, 200.0 KiB, " in text[0]
    assert text[1].split()[:3] == ["region", "offset", "lost"]
    places = [line.split()[:4] for line in text[2:]]
    assert places == [
        ["a", "0x8000", "16.0", "KiB"],
        ["a", "0x1c000", "16.0", "KiB"],
        ["b", "0x8000", "8.0", "KiB"],
    ]
    assert all("checksum is wrong (at byte " in line for line in text[2:])


def test_the_place_in_the_file(make_image: MakeImage) -> None:
    """Is that of the payload: a hex editor finds it there"""
    image = make_image({"a": "d" * 40}, cluster_size=4 * PAGE)
    offset, _ = payloads(image.path, "a")[3]
    flip(image.path, offset + 20)
    (found,) = damage_of(run("verify", "--json", image.path), image.path)
    assert f"at byte {offset} of the file" in str(found["reason"])


def test_a_repeat_is_lost_wherever_it_is(make_image: MakeImage) -> None:
    """One record damaged, every cluster that it stands for listed"""
    image = make_image({"a": "d" * 4, "b": "d" * 4}, cluster_size=4 * PAGE)
    flip(image.path, payloads(image.path, "a")[0][0] + 9)
    damage = damage_of(run("verify", "--json", image.path), image.path)
    assert [found["region"] for found in damage] == ["a", "b"]


def test_every_byte_counts(tmp_path: Path) -> None:
    """Wherever one is changed, in payload, index, names, header or footer: exit code 3, one line"""
    data = sound("mixed").read_bytes()
    paths = []
    for number in range(250):
        place = number * len(data) // 250 if number < 150 else len(data) - 1 - (number - 150) * 5
        path = tmp_path / f"flip-{number}.lzr"
        path.write_bytes(data)
        flip(path, place)
        paths.append(path)
    for path, result in zip(paths, run_each(("verify", path) for path in paths), strict=True):
        result.fails(3, str(path))


def test_a_region_name_that_would_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.lzr"
    lazyrestore.dump({"a\n\x1b[31mb": b"memory"}, path)
    flip(path, payloads(path, "a\n\x1b[31mb")[0][0])
    text = run("verify", path).fails(3).out
    assert text.count("\n") == 3
    assert "a\\n\\x1b[31mb" in text


# ---- What cannot be opened -----------------------------------------------------------------------


def test_bad_images(tmp_path: Path) -> None:
    check_refused("verify", tmp_path)


def test_truncated_and_filled_up(tmp_path: Path) -> None:
    """A copy of the right length, of which the end never came"""
    size = sound("mixed").stat().st_size
    paths = truncations(tmp_path, sound("mixed"))
    assert len(paths) == TRUNCATIONS
    for path in paths:
        os.truncate(path, size)
    for path, result in zip(paths, run_each(("verify", path) for path in paths), strict=True):
        if path.read_bytes() != sound("mixed").read_bytes():  # it ends in zeros itself
            result.fails(3, str(path))


# ---- Cost ----------------------------------------------------------------------------------------

_PEAK = """
import sys
from lazyrestore.cli import main
from resident import resident_peak
code = main(sys.argv[1:])
print(resident_peak(), file=sys.stderr)
sys.exit(code)
"""


def peak_of(path: Path) -> int:
    """The most memory that verifying an image took, in bytes"""
    result = run_in_child(_PEAK, "verify", path, timeout=60, ok=False)
    assert result.returncode == 0, result
    return int(result.stderr)


@pytest.mark.parametrize("kind", ["data", "noise"])
def test_memory_is_bounded(tmp_path: Path, kind: str) -> None:
    """Whatever the length of the regions, and whether they compress"""
    peaks = []
    for length in (4 * MIB, 192 * MIB):
        path = tmp_path / "x.lzr"
        with lazyrestore.ImageWriter(path, level=1) as image:
            image.add_region("memory")
            for number in range(length // MIB):
                if kind == "noise":
                    image.write(os.urandom(MIB))
                else:
                    head = number.to_bytes(8, "little")
                    image.write((head + bytes(range(1, 249)) * 33)[:8192] * (MIB // 8192))
        peaks.append(peak_of(path))
        path.unlink()
    assert peaks[1] - peaks[0] < 48 * MIB, peaks


def test_only_the_image_is_touched(tmp_path: Path) -> None:
    """And only read: a copy without the right to write it is as good"""
    path = tmp_path / "x.lzr"
    shutil.copy(sound("mixed"), path)
    path.chmod(0o400)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    run("verify", path).ok()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]
