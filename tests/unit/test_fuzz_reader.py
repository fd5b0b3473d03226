"""Hypothesis against the Python reader: see tests/fuzz_properties.py.

FUZZ_EXAMPLES=n tries so many of each kind, and not those of every run but others.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import msgpack
import pytest
from image_surgery import Surgery

import lazyrestore
from lazyrestore._open import unpack

TESTS = Path(__file__).resolve().parent.parent
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bytes", {"refused", "damaged", "sound"}),
        ("fields", {"refused", "damaged", "sound", "settled, sound"}),
        ("msgpack", {"damaged", "sound"}),
    ],
)
def test_property(name: str, expected: set[str]) -> None:
    """Each ends by itself, holds, and has seen every kind of outcome"""
    seed = random.SystemRandom().randrange(1 << 32) if EXAMPLES else 0
    ended = subprocess.run(
        [sys.executable, TESTS / "fuzz_properties.py", name, EXAMPLES or "250", str(seed)],
        capture_output=True,
        text=True,
        timeout=60 + 2 * int(EXAMPLES or 0),
        check=False,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
    )
    assert ended.returncode == 0, f"seed {seed}:\n{ended.stdout}{ended.stderr}"
    assert set(json.loads(ended.stdout.splitlines()[-1])) >= expected


# ---- What was found --------------------------------------------------------------------------


def header_with(source: bytes) -> bytes:
    """A small image whose header has other msgpack where `source` is"""
    sys.path.insert(0, str(TESTS.parent / "fixtures"))
    try:
        import make_fixtures
    finally:
        sys.path.pop(0)
    made = make_fixtures.Draft()
    pack = make_fixtures.pack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            make_fixtures, "pack", lambda value: pack(value).replace(pack("a broken image"), source)
        )
        return bytes(made.build())


def test_lists_in_lists_in_the_header(tmp_path: Path) -> None:
    """Once a RecursionError, from making a text of them"""
    path = tmp_path / "image.lzr"
    path.write_bytes(header_with(b"\x91" * 1020 + b"\xc0"))
    with lazyrestore.open(path) as image:
        with pytest.raises(lazyrestore.ImageError, match="source is not a text"):
            assert image.info
        (damage,) = image.verify().damage
        assert "source is not what it should be" in damage.reason


def test_lengths_that_are_not_true() -> None:
    """Arrays in arrays, each of which claims to be as long as all: once a list was made for each"""
    claims = b"\xdd\x00\x00\xff\xf0" * 1000
    tracemalloc.start()
    try:
        with pytest.raises(lazyrestore.ImageError, match="the header is damaged"):
            unpack(claims + bytes(65535 - len(claims)), "the header")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "array",
    [
        {"dtype": [""], "shape": []},
        {"dtype": "|O", "shape": [10]},
        {"dtype": "|O", "shape": [-1, -10]},
        {"dtype": "<f8", "shape": [-2, -5]},
        {"dtype": "<f8", "shape": [1] * 70 + [10]},
        {"dtype": [["a", "<i4"], ["b", "|O"]], "shape": [10]},
        ["dtype", "shape"],
    ],
)
def test_metadata_that_describes_no_array(tmp_path: Path, array: object) -> None:
    """Once whatever numpy raised"""
    path = tmp_path / "image.lzr"
    with lazyrestore.ImageWriter(path) as writer:
        writer.add_region("memory", metadata={"array": array})
        writer.write(b"x" * 80)
    with lazyrestore.restore(path, lazy=False) as session:
        assert bytes(session["memory"]) == b"x" * 80
        with pytest.raises(lazyrestore.ImageError, match="does not describe an array of 80 bytes"):
            session["memory"].array()


def test_many_regions_and_many_lost_references(tmp_path: Path) -> None:
    """Not every one lost is looked at for every region: 30 s for an image of 700 KiB"""
    path = tmp_path / "image.lzr"
    with lazyrestore.ImageWriter(path, cluster_size=4096) as writer:
        writer.add_region("large")  # of references without nodes, in turn all zero and all holes
        for _ in range(8192):
            writer.zero(1 << 20)
            writer.hole(1 << 20)
        for number in range(3000):
            writer.add_region(f"region {number}")
            writer.zero(1)
    surgery = Surgery(path.read_bytes())
    for node in surgery._nodes():
        for entry in node.entries(24) if node.level == 1 else ():
            surgery.data[entry + 17] = 1
    path.write_bytes(surgery.reseal())
    assert path.stat().st_size < 1 << 20
    start = time.process_time()
    with lazyrestore.open(path) as image:
        report = image.verify(threads=1)
    assert len(report.damage) == 16384
    assert time.process_time() - start < 5


def test_metadata_with_a_key_twice() -> None:
    with pytest.raises(lazyrestore.ImageError, match="a key stands twice"):
        unpack(b"\x82\xa1a\x01\xa1a\x02", "the metadata")
    assert unpack(msgpack.packb({"a": 1}), "the metadata") == {"a": 1}
