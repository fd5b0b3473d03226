"""dump --file of a virtual machine's memory: zero pages by content, in memory that is bounded."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from restore_support import run_in_child

import lazyrestore

PAGE = 4096
GIB = 1 << 30
PIECE = 64 << 10
LEAST_ROOM = 4 * GIB


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """1 GiB, of which 32 MiB were used, here and there."""
    room = os.statvfs(tmp_path)
    if room.f_bavail * room.f_frsize < LEAST_ROOM:
        pytest.skip(f"{tmp_path} has no room for a file of 1 GiB")
    return tmp_path / "memory"


def used(chance: random.Random) -> dict[int, bytes]:
    """What is in the memory at which offset; unlike each other, half of it not at 64 KiB."""
    places = chance.sample(range(0, GIB // PIECE, 2), 512)
    return {
        place * PIECE + chance.choice((0, 3 * PAGE)): chance.randbytes(PIECE // 2) * 2
        for place in places
    }


def write(path: Path, pieces: dict[int, bytes], is_sparse: bool) -> None:
    zeros = bytes(1 << 20)
    with open(path, "wb", buffering=0) as file:
        if not is_sparse:
            for _ in range(GIB >> 20):
                file.write(zeros)
        file.truncate(GIB)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


def dump_in_child(memory: Path, image: Path) -> dict[str, int]:
    """The report, and by how many bytes the process grew while it dumped."""
    result = run_in_child(
        """
        import dataclasses, json, sys
        import lazyrestore
        from resident import resident_peak
        lazyrestore.dump(b"x" * 5000, sys.argv[2])  # all is imported
        before = resident_peak()
        report = lazyrestore.dump(lazyrestore.RawFile(sys.argv[1]), sys.argv[2])
        print(json.dumps(dataclasses.asdict(report) | {"grown": resident_peak() - before}))
        """,
        memory,
        image,
        timeout=300,
    )
    report: dict[str, int] = json.loads(result.stdout)
    return report


def test_a_virtual_machines_memory(tmp_path: Path, memory: Path) -> None:
    """1 GiB, sparse or written out: the same image, 32 MiB of data in it, and bounded memory"""
    pieces = used(random.Random(1))
    digests = set()
    for is_sparse in (True, False):
        write(memory, pieces, is_sparse)
        report = dump_in_child(memory, tmp_path / "image.lzr")
        assert report["logical_bytes"] == GIB
        assert report["data_bytes"] == len(pieces) * PIECE
        assert report["zero_bytes"] == GIB - len(pieces) * PIECE
        assert report["stored_bytes"] < len(pieces) * PIECE
        assert report["grown"] < 128 << 20
        digests.add(report["digest"])
        memory.unlink()
    assert len(digests) == 1
    with lazyrestore.open(tmp_path / "image.lzr") as image:
        assert image.info.page_size == PAGE
        for offset, data in pieces.items():
            assert image.read("memory", offset, len(data)) == data
