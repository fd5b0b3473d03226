"""Three readers of one image, and what they must agree about.

The C core (lr_image_open, lr_reader), `lazyrestore.open(...).verify()`, and the second decoder of
tests/image_decoder.py, which was written from docs/format.md alone and asks for all that a writer
must do.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from image_decoder import Bad, Decoded
from image_surgery import crc32c

import lazyrestore
from lazyrestore._native import error_name, ffi, lib, new_problem

CLUSTERS_MAX = 20_000

PINNED = {
    "features": "bits in `compatible` may be ignored by readers",
    "header's features": "the same; those that count stand in the footer",
    "a plain frame": "a frame with a checksum of its own, or a dictionary's id, decodes all right",
    "a uniform node is not written": "it only wastes space",
    "a node comes after its clusters": "the order is for writers; readers go by offsets",
    "every cluster record is used": "it only wastes space",
    "every index record is used": "it only wastes space",
}
"""What the decoder asks for and `verify` does not, and why that is not needed to read rightly."""


@dataclasses.dataclass
class Verdicts:
    """What each of the three said; None: nothing against it."""

    core: str | None
    verify: str | None
    decoder: str | None


@dataclasses.dataclass
class _Core:
    """What the core says: an error's name or the clusters, (count, states, data) by their first."""

    error: str | None
    clusters: dict[int, tuple[int, bytes, bytes]]


def read_core(path: Path) -> _Core:
    found = ffi.new("lr_image **")
    problem = new_problem()
    code = lib.lr_image_open(str(path).encode(), found, problem)
    if code < 0:
        return _Core(error_name(code), {})
    image = ffi.gc(found[0], lib.lr_image_close)
    info = ffi.new("struct lr_image_info *")
    lib.lr_image_get_info(image, info)
    if info.files_bytes:
        files = bytearray(info.files_content_bytes)
        code = lib.lr_image_get_files(image, ffi.from_buffer(files), problem)
        if code < 0:
            return _Core(error_name(code), {})
    made = ffi.new("lr_reader **")
    assert lib.lr_reader_open(image, made) == 0
    reader = ffi.gc(made[0], lib.lr_reader_close)
    room = bytearray(info.cluster_size)
    entry = ffi.new("struct lr_cluster_info *")
    core = _Core(None, {})
    at = 0
    while at < info.cluster_count and len(core.clusters) < CLUSTERS_MAX:
        code = lib.lr_reader_get_cluster(reader, at, entry, problem)
        if code == 0:
            code = lib.lr_reader_get_data(reader, at, ffi.from_buffer(room), problem)
        if code < 0:
            core.error = core.error or error_name(code)
            return core  # one is enough to refuse the image
        states = bytes(
            entry.states[page // 32] >> 2 * (page % 32) & 3 for page in range(entry.pages)
        )
        core.clusters[at] = (entry.run, states, bytes(room[:code]))
        at += entry.run
    return core


def verify(path: Path) -> str | None:
    try:
        image = lazyrestore.open(path)
    except lazyrestore.ImageError as error:
        return str(error)
    with image:
        damage = image.verify(threads=1).damage
        return damage[0].reason if damage else None


def decode(data: bytes) -> tuple[Decoded | None, str | None]:
    try:
        return Decoded(data, crc32c), None
    except Bad as error:
        return None, str(error)
    except UnicodeDecodeError:
        return None, "names are UTF-8"
    except Exception as error:  # whatever it stumbles over: that is how it refuses
        return None, repr(error)


def judge(path: Path) -> Verdicts:
    """Ask all three, and check that they agree."""
    data = path.read_bytes()
    core, verified, (decoded, reason) = read_core(path), verify(path), decode(data)
    verdicts = Verdicts(core.error, verified, reason)
    if verified is None:
        assert core.error is None, (path, verdicts)
        assert reason is None or reason in PINNED, (path, verdicts)
    if decoded is not None:
        assert core.error is None, (path, verdicts)
        assert verified is None, (path, verdicts)
        _compare(path, core, decoded)
    return verdicts


def _compare(path: Path, core: _Core, decoded: Decoded) -> None:
    """All clusters are the same, page by page, and so is what is said of the image."""
    if len(core.clusters) < CLUSTERS_MAX:
        first = 0
        for entry in decoded.entries:
            while first < entry.first + entry.count:
                run, states, data = core.clusters[first]
                if entry.states is None:
                    assert run <= entry.first + entry.count - first
                    assert set(states) <= {entry.kind}
                    assert data == b""
                else:
                    assert (run, states, data) == (1, entry.states, entry.payload), (path, first)
                first += run
        assert first == decoded.cluster_count
    with lazyrestore.open(path) as image:
        assert [
            (region.name, region.address, region.length, region.protection, region.shared)
            for region in image.regions
        ] == [
            (region.name, region.address, region.length, region.protection, bool(region.flags))
            for region in decoded.regions.values()
        ]
        planes = [region.planes for region in decoded.regions.values()]
        assert [region.planes for region in image.regions] == planes
        assert image.all_metadata() == [region.metadata for region in decoded.regions.values()]
        assert image.files == decoded.files
        info = image.info
        assert info.digest == decoded.digest.hex()
        assert (info.zero_bytes, info.hole_bytes) == (decoded.zero_bytes, decoded.hole_bytes)
        assert info.source == decoded.header["source"]
