"""The bytes of images: the constants, the golden images, the broken ones."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgpack
import pytest
from image_decoder import Decoded, crc32c

import lazyrestore
from lazyrestore import format as fmt
from lazyrestore._native import error_name, ffi, lib, new_problem

ROOT = Path(__file__).parent.parent.parent
FIXTURES = ROOT / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())


def fast_crc32c(data: bytes) -> int:
    return lib.lr_crc32c(0, ffi.from_buffer(data), len(data))


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fixtures", FIXTURES / "make_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_fixtures"] = module
    spec.loader.exec_module(module)
    return module


script = load_script()
GOLDENS = script.goldens()


def states_of(pieces, page_size) -> str:
    """Page states as they must be, worked out a byte at a time rather than by runs."""
    length = sum(piece[1] for piece in pieces)
    kinds = bytearray()  # a byte each: 0 hole, 1 zero or data
    content = bytearray()
    for kind, piece_length, data in pieces:
        kinds += bytes([kind != "hole"]) * piece_length
        content += data or bytes(piece_length)
    states = []
    for start in range(0, length, page_size):
        end = start + page_size
        if any(content[start:end]):
            states.append("d")
        else:
            states.append("z" if any(kinds[start:end]) else "h")
    return "".join(states)


# ---- Constants -----------------------------------------------------------------------------------


C_NUMBER = re.compile(r"\s*(?:#define\s+)?(LR_\w+)[\s=]+\(?([\dxu ()<|l]+?)\)?[,\s]*$")


def c_constants() -> dict[str, int]:
    """The numbers in csrc/format.h."""
    names = {}
    for line in (ROOT / "csrc/format.h").read_text().splitlines():
        if found := C_NUMBER.match(line):
            number, _, shift = re.sub(r"(?<=\d)u?l*\b", "", found[2]).strip("()").partition("<<")
            names[found[1]] = int(number, 0) << int(shift or "0")
    return names


@pytest.mark.parametrize(
    ("python_name", "c_name"),
    [
        ("VERSION", "LR_FORMAT_VERSION"),
        ("CRITICAL_KNOWN", "LR_FORMAT_CRITICAL_KNOWN"),
        ("HEADER_MAX_BYTES", "LR_HEADER_MAX_BYTES"),
        ("FOOTER_BYTES", "LR_FOOTER_BYTES"),
        ("ROOT_BYTES", "LR_ROOT_BYTES"),
        ("REGION_BYTES", "LR_REGION_BYTES"),
        ("CODEC_ZSTD", "LR_REGION_CODEC_ZSTD"),
        ("NODE_HEAD_BYTES", "LR_NODE_HEAD_BYTES"),
        ("NODE_FANOUT", "LR_NODE_FANOUT"),
        ("REFERENCE_BYTES", "LR_REF_BYTES"),
        ("ENTRY_HEAD_BYTES", "LR_ENTRY_HEAD_BYTES"),
        ("PAGE_SIZE_MIN", "LR_PAGE_SIZE_MIN"),
        ("PAGE_SIZE_MAX", "LR_PAGE_SIZE_MAX"),
        ("CLUSTER_SIZE_MIN", "LR_CLUSTER_SIZE_MIN"),
        ("CLUSTER_SIZE_MAX", "LR_CLUSTER_SIZE_MAX"),
        ("PAGES_PER_WORD", "LR_PAGES_PER_WORD"),
        ("REGIONS_MAX", "LR_REGIONS_MAX"),
        ("NAME_BYTES_MAX", "LR_NAME_BYTES_MAX"),
        ("TREE_HEIGHT_MAX", "LR_TREE_HEIGHT_MAX"),
        ("LENGTH_MAX", "LR_LENGTH_MAX"),
        ("METADATA_BYTES_MAX", "LR_METADATA_BYTES_MAX"),
        ("FILES_BYTES_MAX", "LR_FILES_BYTES_MAX"),
        ("FEATURE_FILES", "LR_FORMAT_FILES"),
        ("FEATURE_PLANES", "LR_FORMAT_PLANES"),
        ("FILTER_PLANES", "LR_REGION_FILTER_PLANES"),
        ("ENTRY_KIND_AT", "LR_ENTRY_KIND"),
        ("ENTRY_PLANES_AT", "LR_ENTRY_PLANES"),
    ],
)
def test_constants_are_the_same_in_c(python_name, c_name):
    assert getattr(fmt, python_name) == c_constants()[c_name]


FIELDS = {
    # Python structure and the first byte of each of its fields: the name in C's enum
    "LR_FOOTER_": (
        fmt.Footer(
            version=1,
            page_size=2,
            cluster_size=3,
            header_bytes=4,
            critical=5,
            compatible=6,
            id=bytes([7]) * 16,
            digest=bytes([8]) * 32,
            file_bytes=9,
            root_offset=10,
            root_bytes=11,
            root_crc32c=12,
            metadata_offset=13,
            metadata_bytes=14,
            metadata_crc32c=15,
            header_crc32c=16,
            files_offset=17,
            files_bytes=18,
            files_crc32c=19,
            files_content_bytes=20,
        ),
        [
            *("VERSION", "PAGE_SIZE", "CLUSTER_SIZE", "HEADER_BYTES", "CRITICAL", "COMPATIBLE"),
            *("ID", "DIGEST", "FILE_BYTES", "ROOT_OFFSET", "ROOT_SIZE", "ROOT_CRC"),
            *("METADATA_OFFSET", "METADATA_SIZE", "METADATA_CRC", "HEADER_CRC"),
            *("FILES_OFFSET", "FILES_SIZE", "FILES_CRC", "FILES_CONTENT"),
        ],
    ),
    "LR_ROOT_": (
        fmt.Root(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, fmt.Reference(1, 11)),
        [
            *("REGION_COUNT", "NAMES_BYTES", "TREE_HEIGHT", "CLUSTER_COUNT", "LOGICAL_BYTES"),
            *("ZERO_BYTES", "HOLE_BYTES", "DUPLICATE_BYTES", "PAYLOAD_BYTES", "STORED_CLUSTERS"),
            "TREE",
        ],
    ),
    "LR_REGION_": (
        fmt.RegionEntry(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
        [
            *("ADDRESS", "LENGTH", "FIRST_CLUSTER", "CLUSTER_COUNT", "NAME_OFFSET", "NAME_BYTES"),
            *("PROTECTION", "FLAGS", "CODEC", "FILTER", "PLANES"),
        ],
    ),
    "LR_NODE_": (fmt.NodeHead(1, 2, 3), ["LEVEL", "COUNT", "FIRST_CLUSTER"]),
    "LR_ENTRY_": (
        fmt.LeafEntry(4, bytes([6]) * 8, 1, 2, 3, 5),
        ["OFFSET", "SIZE", "CRC", "KIND", "PLANES", "STATES"],
    ),
}


@pytest.mark.parametrize("prefix", FIELDS)
def test_fields_lie_where_c_has_them(prefix):
    structure, names = FIELDS[prefix]
    packed = structure.pack()
    constants = c_constants()
    in_order = []
    for number, name in enumerate(names, 1):
        at = constants[prefix + name]
        assert packed[at] == number, f"{prefix}{name} at {at}"
        in_order.append(at)
    assert in_order == sorted(in_order)


@pytest.mark.parametrize(
    "structure",
    [
        fmt.Reference(2, 1 << 40, 123, 0xFFFFFFFF),
        fmt.LeafEntry(2, bytes(range(16)), 1 << 40, 123, 456, 8),
        fmt.NodeHead(3, 256, 1 << 50),
        fmt.Root(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, fmt.Reference(2, 11, 12, 13)),
        fmt.RegionEntry(1 << 63, 2, 3, 4, 5, 6, 7, 1, 1, 1, 4),
        fmt.Footer(1, 2, 3, b"i" * 16, b"d" * 32, *range(8), 1, 6, 7, 8, 9, 10, 11),
    ],
)
def test_structures_unpack_to_what_was_packed(structure):
    assert type(structure).unpack(structure.pack()) == structure


@pytest.mark.parametrize("pages", [1, 2, 31, 32, 33, 512])
def test_states_pack_two_bits_a_page(pages):
    states = bytes(page * 7 % 3 for page in range(pages))
    words = fmt.state_words(pages)
    packed = fmt.pack_states(states, words)
    assert len(packed) == 8 * words
    assert fmt.unpack_states(packed, pages) == states
    for page in (0, pages // 2, pages - 1):
        (word,) = struct.unpack_from("<Q", packed, page // 32 * 8)
        assert word >> (2 * (page % 32)) & 3 == states[page]


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 65535, 65536, 100000])
def test_record_heads_are_what_msgpack_makes(nbytes):
    payload = bytes(nbytes)
    assert fmt.record_head("cluster", nbytes) + payload == msgpack.packb({"cluster": payload})


@pytest.mark.parametrize("count", [0, 15, 16, 65535, 65536])
def test_array_heads_are_what_msgpack_makes(count):
    assert fmt.array_head(count) + b"\xc0" * count == msgpack.packb([None] * count)


@pytest.mark.parametrize(
    ("clusters", "height"),
    [(0, 1), (1, 1), (256, 1), (257, 2), (65536, 2), (65537, 3), (1 << 50, 7)],
)
def test_tree_height(clusters, height):
    assert fmt.tree_height(clusters) == height


# ---- Golden images -------------------------------------------------------------------------------


def test_every_image_here_is_expected_and_the_reverse():
    assert {p.stem for p in FIXTURES.glob("*.lzr")} == set(EXPECTED["golden"]) == set(GOLDENS)
    assert {p.stem for p in (FIXTURES / "broken").iterdir()} == set(EXPECTED["broken"])


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_images_hold_what_the_script_says(name):
    golden = GOLDENS[name]
    decoded = Decoded((FIXTURES / f"{name}.lzr").read_bytes())
    assert decoded.page_size == golden.page_size
    assert decoded.cluster_size == golden.cluster_size
    assert list(decoded.regions) == [region.name for region in golden.regions]
    for region in golden.regions:
        found = decoded.regions[region.name]
        assert found.length == region.length
        assert found.address == region.address
        assert found.protection == region.protection
        assert found.flags == region.shared
        assert found.metadata == region.metadata
        if region.length < 1 << 30:
            assert decoded.content(region.name) == region.content()
            assert decoded.states(region.name) == states_of(region.pieces, golden.page_size)
    assert decoded.files == golden.files
    expected = EXPECTED["golden"][name]
    assert decoded.digest.hex() == expected["digest"]
    assert decoded.zero_bytes == expected["zero_bytes"]
    assert decoded.hole_bytes == expected["hole_bytes"]
    assert decoded.duplicate_bytes == expected["duplicate_bytes"]


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_images_are_read_by_the_library(name):
    golden = GOLDENS[name]
    with lazyrestore.open(FIXTURES / f"{name}.lzr") as image:
        assert image.digest == EXPECTED["golden"][name]["digest"]
        assert image.info.data_bytes == EXPECTED["golden"][name]["data_bytes"]
        assert image.files == golden.files
        assert image.has_files == bool(golden.files)
        for region in golden.regions:
            assert image.metadata(region.name) == region.metadata
            if region.length < 1 << 30:
                assert image.read(region.name) == region.content()


def test_the_tall_tree_has_its_one_page_in_the_middle():
    middle = 20 << 30
    text = script.text(4096)[2]
    with lazyrestore.open(FIXTURES / "tall_tree.lzr") as image:
        assert image.read("left", middle - 10, 4116) == bytes(10) + text + bytes(10)
        assert image.read("left", 0, 4096) == bytes(4096)
        assert image.read("left", 2 * middle - 1) == b"\0"
        assert image.read("right") == text[:1]


@pytest.mark.parametrize("name", GOLDENS)
def test_todays_writer_gives_golden_content_the_same_digest(name, tmp_path):
    made = script.write_golden(name, GOLDENS[name], tmp_path / "again.lzr")
    assert made == EXPECTED["golden"][name]


def test_fixed_parts_of_a_golden_image_byte_for_byte():
    """What no version of zstd can change: header, tree, metadata, root and footer of zeros."""
    data = (FIXTURES / "zero.lzr").read_bytes()
    assert data[:13].hex() == "81ab6c617a79726573746f7265"
    root = data.index(b"\x81\xa4root\xc4") + 8
    assert struct.unpack_from("<IIIIQQQQ", data, root) == (
        *(1, 6, 2, 0, 301),
        *(300 * 65536 + 5000, 300 * 65536 + 5000, 0),
    )
    assert data[root + 72 : root + 96] == bytes(16) + b"\1" + bytes(7)
    assert data[root + 224 : root + 230] == b"memory"
    assert data[-202:-192].hex() == "81a6666f6f746572c4c0"
    assert len(data) == root + 230 + 202


def test_the_script_makes_the_same_images_again(tmp_path):
    subprocess.run(
        [sys.executable, FIXTURES / "make_fixtures.py", tmp_path], check=True, timeout=60
    )
    assert json.loads((tmp_path / "expected.json").read_text()) == EXPECTED
    for path in FIXTURES.glob("*.lzr"):
        kept, made = Decoded(path.read_bytes()), Decoded((tmp_path / path.name).read_bytes())
        assert kept.header == made.header
        assert kept.digest == made.digest


def test_the_golden_image_of_planes_has_them():
    decoded = Decoded((FIXTURES / "planes.lzr").read_bytes())
    assert decoded.critical == fmt.FEATURE_PLANES
    widths = {name: region.planes for name, region in decoded.regions.items()}
    assert widths == {
        "four": 4,
        "copy": 4,
        "two": 2,
        "eight": 8,
        "noise": 0,
        "text": 0,
        "nothing": 0,
    }
    kinds = [(entry.kind, entry.planes, entry.offset) for entry in decoded.entries]
    assert [kind[:2] for kind in kinds[:6]] == [(2, 4)] * 5 + [(2, 0)]
    assert kinds[4] == kinds[0]  # the copy's first cluster is the other region's
    with lazyrestore.open(FIXTURES / "planes.lzr") as image:
        assert {region.name: region.planes for region in image.regions} == widths


@pytest.mark.parametrize("name", sorted(set(GOLDENS) - {"planes"}))
def test_images_without_planes_ask_nothing_new_of_a_reader(name):
    decoded = Decoded((FIXTURES / f"{name}.lzr").read_bytes())
    assert decoded.critical == 0
    assert {region.planes for region in decoded.regions.values()} <= {0}


# ---- Broken images -------------------------------------------------------------------------------


def open_code(path: Path) -> tuple[int, ffi.CData]:
    found = ffi.new("lr_image **")
    code = lib.lr_image_open(bytes(path), found, new_problem())
    return code, ffi.gc(found[0], lib.lr_image_close) if code == 0 else None


def cluster_codes(image: ffi.CData, count: int) -> list[int]:
    found = ffi.new("lr_reader **")
    assert lib.lr_reader_open(image, found) == 0
    reader = ffi.gc(found[0], lib.lr_reader_close)
    room = bytearray(2 << 20)
    codes = []
    for cluster in range(count):
        problem = new_problem()
        code = lib.lr_reader_get_data(reader, cluster, ffi.from_buffer(room), problem)
        if code < 0:
            assert problem.code == code
            assert problem.cluster == cluster
        codes.append(min(code, 0))
    return codes


def named(found_by: str) -> list[str]:
    return [name for name, what in EXPECTED["broken"].items() if what["found_by"] == found_by]


@pytest.fixture(autouse=True)
def libzstd():
    assert lib.lr_init() == 0


def test_the_draft_of_the_broken_images_is_sound(tmp_path):
    data = script.Draft().build()
    decoded = Decoded(data)
    assert decoded.states("memory") == "ddddddzzzzzzzhzhhhhhdzd"
    path = tmp_path / "draft.lzr"
    path.write_bytes(data)
    code, image = open_code(path)
    assert code == 0
    assert cluster_codes(image, 7) == [0] * 7


def test_the_draft_with_planes_is_sound(tmp_path):
    data = script.in_planes(script.put(script.REGION + 49, "BB", 1, 4))
    path = tmp_path / "draft.lzr"
    path.write_bytes(data)
    plain = Decoded(script.Draft().build())
    assert Decoded(data).content("memory") == plain.content("memory")
    with lazyrestore.open(path) as image:
        assert image.read("memory") == plain.content("memory")
        assert image.verify().damage == ()


@pytest.mark.parametrize("name", EXPECTED["broken"])
def test_the_second_reader_refuses_every_broken_image(name):
    data = (FIXTURES / "broken" / f"{name}.lzr").read_bytes()
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it stumbles over
        Decoded(data)


@pytest.mark.parametrize("name", named("open"))
def test_broken_images_do_not_open(name):
    path = FIXTURES / "broken" / f"{name}.lzr"
    code, _ = open_code(path)
    assert error_name(code) == EXPECTED["broken"][name]["code"]
    with pytest.raises(lazyrestore.ImageError, match=re.escape(str(path))):
        lazyrestore.open(path)


@pytest.mark.parametrize("name", named("names"))
def test_names_that_cannot_be_are_refused(name):
    path = FIXTURES / "broken" / f"{name}.lzr"
    with pytest.raises(lazyrestore.ImageError, match=re.escape(str(path))):
        lazyrestore.open(path)


@pytest.mark.parametrize("name", named("read"))
def test_broken_clusters_are_not_read_and_others_are(name):
    expected = EXPECTED["broken"][name]
    code, image = open_code(FIXTURES / "broken" / f"{name}.lzr")
    assert code == 0
    codes = cluster_codes(image, 7)
    assert error_name(codes[expected["cluster"]]) == expected["code"]
    if expected["code"] != "LR_ERR_NODE":
        shares = (0, 6)  # these have one record
        for cluster in range(7):
            if cluster != expected["cluster"] and not (
                cluster in shares and expected["cluster"] in shares
            ):
                assert codes[cluster] == 0


@pytest.mark.parametrize("name", named("files"))
def test_broken_files_are_not_read_and_clusters_are(name):
    path = FIXTURES / "broken" / f"{name}.lzr"
    code, raw = open_code(path)
    assert code == 0
    assert cluster_codes(raw, 7) == [0] * 7
    room = bytearray(1 << 20)
    problem = new_problem()
    code = lib.lr_image_get_files(raw, ffi.from_buffer(room), problem)
    assert error_name(code) == (EXPECTED["broken"][name]["code"] or "LR_OK")
    with lazyrestore.open(path) as image:
        with pytest.raises(lazyrestore.ImageError, match=re.escape(f"{path}: the image's")):
            assert image.files
        assert any("files" in damage.reason for damage in image.verify().damage)


@pytest.mark.parametrize("name", named("verify"))
def test_what_only_verify_finds_opens_and_reads(name):
    code, image = open_code(FIXTURES / "broken" / f"{name}.lzr")
    assert code == 0
    assert cluster_codes(image, 7) == [0] * 7


def test_each_kind_of_damage_has_a_broken_image():
    """Every code that is about images, but for one that only a file that shrinks gives."""
    codes = {what["code"] for what in EXPECTED["broken"].values() if what["code"]}
    text = (ROOT / "csrc/lazyrestore.h").read_text()
    about_images = {name for name, n in re.findall(r"(LR_ERR_\w+) = -(\d+)", text) if int(n) >= 20}
    assert codes == about_images - {"LR_ERR_SHORT"}


def test_crc32c_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283 == fast_crc32c(b"123456789")
