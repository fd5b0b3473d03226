"""`lazyrestore cat`: any part of a region, right, without userfaultfd."""

from __future__ import annotations

import base64
import json
import os
import pty
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import PAGE, Image, finish, run, start
from image_files import broken, check_refused, run_each, sound
from restore_support import flip, payloads

import lazyrestore

MakeImage = Callable[..., Image]
CLUSTER = 4 * PAGE


def test_all_of_a_region(small: Image) -> None:
    """Byte for byte, every kind of page"""
    for name, expected in small.expected.items():
        assert run("cat", small.path, "--region", name).ok().out_bytes == expected


def test_unaligned_offsets(small: Image) -> None:
    """Around every border of a cluster, within pages, over several clusters, at random"""
    expected = small.expected["data"]
    ranges = [
        (border + before, length)
        for border in range(CLUSTER, len(expected), CLUSTER)
        for before, length in ((-1, 2), (-3, PAGE + 7), (0, 1), (-1, 1))
    ]
    chance = random.Random(1)
    for _ in range(60):
        offset = chance.randrange(len(expected))
        ranges.append((offset, chance.randrange(len(expected) - offset + 1)))
    ranges += [(0, 0), (len(expected), 0), (len(expected) - 1, 1), (0, len(expected))]
    calls = [
        ("cat", small.path, "--region=data", f"--offset={offset}", f"--length={length}")
        for offset, length in ranges
    ]
    for (offset, length), result in zip(ranges, run_each(calls), strict=True):
        assert result.ok().out_bytes == expected[offset : offset + length], (offset, length)


def test_to_the_end(small: Image) -> None:
    """Without a length; nothing from the very end"""
    expected = small.expected["more"]
    result = run("cat", small.path, "--region", "more", "--offset", len(expected) - 4099)
    assert result.ok().out_bytes == expected[-4099:]
    result = run("cat", small.path, "--region", "more", "--offset", len(expected))
    assert result.ok().out_bytes == b""


@pytest.mark.parametrize(
    ("written", "number"),
    [("0x1001", 0x1001), ("0X1f", 31), ("4K", 4096), ("8KiB", 8192), ("12kb", 12288), ("7B", 7)],
)
def test_sizes(small: Image, written: str, number: int) -> None:
    """Hexadecimal, and powers of 1024, for both"""
    expected = small.expected["data"]
    command = ("cat", small.path, "--region", "data", "--offset", written, "--length", written)
    assert run(*command).ok().out_bytes == expected[number : 2 * number]


def test_far_into_40_gib(tmp_path: Path) -> None:
    """A page of data in the midst of zeros, and zeros before it, at once"""
    path = tmp_path / "x.lzr"
    place = (20 << 30) + 5 * PAGE
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("memory")
        image.zero(place)
        image.write(b"needle " * 512)
        image.zero(20 << 30)
    result = run("cat", path, "--offset", hex(place - 100), "--length", "128K").ok()
    assert result.out_bytes == (bytes(100) + b"needle " * 512).ljust(128 << 10, b"\0")
    run("cat", path, "--json").fails(2, "64 MiB", "--length")


def test_past_the_end(small: Image) -> None:
    """Refused as a whole, with the length that there is"""
    length = len(small.expected["more"])
    for offset, count in ((0, length + 1), (length, 1), (length + 1, 0), (1 << 70, 1), (1, "16E")):
        options = ("--region", "more", "--offset", offset, "--length", count)
        if count == "16E":
            assert run("cat", small.path, *options).fails(2, "--length", "16E").out == ""
        else:
            result = run("cat", small.path, *options)
            assert result.fails(2, "'more'", f"{length} bytes").out == ""
    result = run("cat", small.path, "--region", "more", "--offset", length + 1)
    assert result.fails(2, "'more'", f"{length} bytes").out == ""


@pytest.mark.parametrize("value", ["-1", "1e3", "4X", "", "0x", "1.5K", "K"])
@pytest.mark.parametrize("option", ["--offset", "--length"])
def test_bad_sizes(option: str, value: str) -> None:
    (result,) = run_each([("cat", sound("mixed"), "--region", "heap", f"{option}={value}")])
    assert result.fails(2, option, repr(value), "4096, 0x1000, 4K").out == ""


# ---- Which region --------------------------------------------------------------------------------


def test_one_region_needs_no_name(make_image: MakeImage) -> None:
    image = make_image({"only": "dzr"})
    assert run("cat", image.path).ok().out_bytes == image.expected["only"]


def test_several_regions(small: Image) -> None:
    """Asks which, naming them"""
    run("cat", small.path).fails(2, "several regions", "--region", "data", "more")
    run("cat", sound("many_regions")).fails(2, "region 0000", "and 594 more")


def test_a_region_that_is_not_there(small: Image) -> None:
    """Names those that are"""
    run("cat", small.path, "--region", "nix").fails(2, "'nix'", "'data'", "'more'")
    run("cat", sound("no_regions"), "--region", "nix").fails(2, "'nix'", "no regions")
    run("cat", sound("no_regions")).fails(1, "no regions")


def test_names_in_any_script() -> None:
    for name in ("内存", "🦥", "Grüße/Größe ²"):
        with lazyrestore.open(sound("unicode_names")) as image:
            expected = image.read(name)
        result = run("cat", sound("unicode_names"), "--region", name)
        assert result.ok().out_bytes == expected


def test_an_empty_region() -> None:
    assert run("cat", sound("empty_region")).ok().out_bytes == b""


# ---- Where it goes -------------------------------------------------------------------------------


def test_json(small: Image) -> None:
    """The bytes in base64"""
    command = ("cat", small.path, "--region", "data", "--offset", 4095, "--length", 5, "--json")
    answer = json.loads(run(*command).ok().out)
    data = base64.b64decode(answer.pop("base64"), validate=True)
    assert data == small.expected["data"][4095:4100]
    assert answer == {"region": "data", "offset": 4095, "length": 5}


def test_a_closed_pipe(make_image: MakeImage) -> None:
    """Quiet, as `cat FILE | head -c 5` is"""
    image = make_image({"memory": "r" * 256})
    child = start("cat", image.path)
    assert child.stdout is not None
    assert child.stdout.read(5) == image.expected["memory"][:5]
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == b""
    assert child.wait(timeout=60) == 141


def test_a_reader_that_stops_in_the_middle_of_20_gib() -> None:
    """Soon: nothing is decoded that nobody wants"""
    cat = f"{sys.executable} -m lazyrestore cat {sound('tall_tree')} --region left"
    script = f"{cat} | head -c 1000000 | wc -c"
    result = finish(start(script, command=("sh", "-c")))
    assert result.ok().out.split() == ["1000000"]


def test_a_full_disk(small: Image) -> None:
    with open("/dev/full", "wb") as full:
        result = run("cat", small.path, "--region", "data", stdout=full)
    result.fails(1, "standard output", "No space left on device", "free some space")


def test_a_closed_standard_output(small: Image) -> None:
    script = f"{sys.executable} -m lazyrestore cat {small.path} --region data >&-"
    finish(start(script, command=("sh", "-c"))).fails(1, "standard output", "redirect it")


def test_a_terminal(small: Image) -> None:
    """Is not given memory unless it is forced on it"""
    command = ("cat", small.path, "--region", "more", "--length", "8", "--offset", "0x1000")
    for force in ((), ("--force",)):
        master, terminal = pty.openpty()
        child = start(*command, *force, stdout=terminal, stderr=subprocess.PIPE)
        os.close(terminal)
        result = finish(child)
        if force:
            assert result.code == 0, result
            assert os.read(master, 100) == small.expected["more"][4096:4104]
        else:
            result.fails(2, "terminal", "--force")
        os.close(master)


# ---- Rights and damage ---------------------------------------------------------------------------


def test_without_userfaultfd(nobody: object, small: Image) -> None:
    """Any user who may read the image may"""
    copy = nobody.bring(small.path)  # type: ignore[attr-defined]
    result = nobody.run("cat", copy, "--region", "data", "--offset", 5)  # type: ignore[attr-defined]
    assert result.ok().out_bytes == small.expected["data"][5:]
    copy = nobody.bring(small.path, 0o000)  # type: ignore[attr-defined]
    nobody.run("cat", copy, "--region", "data").fails(1, str(copy), "Permission denied")  # type: ignore[attr-defined]


def test_a_damaged_cluster(make_image: MakeImage) -> None:
    """Whoever does not want it gets what he wants; else its place, and what stands before it"""
    image = make_image({"memory": "d" * 16}, cluster_size=CLUSTER)
    flip(image.path, payloads(image.path, "memory")[2][0] + 9)
    expected = image.expected["memory"]
    for offset, length in ((0, 2 * CLUSTER), (3 * CLUSTER, CLUSTER)):
        result = run("cat", image.path, "--offset", offset, "--length", length).ok()
        assert result.out_bytes == expected[offset : offset + length]
    result = run("cat", image.path, "--offset", 3 * CLUSTER - 1, "--length", 2)
    result.fails(3, "checksum", "'memory'", f"offset {2 * CLUSTER}", "take another copy")
    assert result.out_bytes == b""
    result = run("cat", image.path).fails(3, "'memory'", f"offset {2 * CLUSTER}")
    assert expected.startswith(result.out_bytes)
    result = run("cat", image.path, "--json").fails(3, f"offset {2 * CLUSTER}")
    assert json.loads(result.out)["error"]["type"] == "ClusterError"


def test_a_damaged_index() -> None:
    run("cat", broken("node_checksum"), "--region", "memory").fails(3, "index node", "byte 10045")


def test_bad_images(tmp_path: Path) -> None:
    check_refused("cat", tmp_path, "--region", "heap")
