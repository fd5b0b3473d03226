"""Properties of the Python reader on images that mean harm: fuzz_properties.py PROPERTY [EXAMPLES].

Each is run by tests/unit/test_fuzz_reader.py in a process of its own, so that a hang or a crash is
one failed test. Whatever an image says, the outcome is an error of lazyrestore's own or a right
reading; for less than 100 MiB and a second of processor time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy  # noqa: F401 - so that its first import does not count
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "fixtures")]

import make_fixtures  # noqa: E402
from agreement import judge  # noqa: E402
from image_surgery import Field, Surgery, settle  # noqa: E402
from resident import forget_peak, resident, resident_peak  # noqa: E402

import lazyrestore  # noqa: E402

MEMORY_MAX = 100 << 20
CPU_SECONDS_MAX = 1.0
SLICE = 1 << 16
SMALL = 4 << 20

NAMES = (
    "no_regions empty_region one_byte zero holes repeated incompressible mixed unicode_names"
    " clusters_4k clusters_2m pages_64k tall_tree many_regions planes"
).split()
GOLDEN = {name: (HERE.parent / "fixtures" / f"{name}.lzr").read_bytes() for name in NAMES}
FIELDS: dict[str, dict[str, list[Field]]] = {name: {} for name in NAMES}
for _name in NAMES:
    for _field in Surgery(GOLDEN[_name]).fields():
        FIELDS[_name].setdefault(_field.name.split(".")[0], []).append(_field)
outcomes: Counter[str] = Counter()
folder = Path(tempfile.mkdtemp())


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """What one image may cost."""
    forget_peak()
    before, start = resident(), time.process_time()
    yield
    seconds, grown = time.process_time() - start, resident_peak() - before
    assert seconds < CPU_SECONDS_MAX, f"{seconds:.3f} s of processor time"
    assert grown < MEMORY_MAX, f"{grown >> 20} MiB"


def publish(data: bytes) -> Path:
    path = folder / "image.lzr"
    path.write_bytes(data)
    return path


def read_some(image: lazyrestore.Image) -> dict[str, list[tuple[int, bytes]]]:
    """Both ends of some regions, as far as they can be read."""
    found: dict[str, list[tuple[int, bytes]]] = {}
    for region in image.regions[:8]:
        parts = found.setdefault(region.name, [])
        length = min(SLICE, region.length)
        for offset in {0, region.length - length}:
            with contextlib.suppress(lazyrestore.ClusterError):
                parts.append((offset, image.read(region.name, offset, length)))
    return found


def use(path: Path) -> str:
    """Do with an image all that one does with one; says how far that came."""
    try:
        image = lazyrestore.open(path)
    except lazyrestore.ImageError:
        return "refused"
    with image:
        with contextlib.suppress(lazyrestore.ImageError):
            assert image.info.path == str(path)
        for region in image.regions[:8]:
            with contextlib.suppress(lazyrestore.ImageError):
                image.metadata(region.name)
        found = read_some(image)
        is_small = sum(region.length for region in image.regions) <= SMALL
        if is_small and len(image.regions) <= 16:
            with contextlib.suppress(lazyrestore.LazyRestoreError), restore(path) as session:
                for region in session.values():
                    for offset, part in found[region.name]:
                        assert region[offset : offset + len(part)] == part
                    with contextlib.suppress(lazyrestore.ImageError):
                        assert region.array().nbytes == region.length
        report = image.verify(threads=1)
        return "damaged" if report.damage else "sound"


def restore(path: Path) -> lazyrestore.Session:
    return lazyrestore.restore(path, lazy=False)


# ---- Bytes -----------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(
        st.floats(0, 0.999), st.integers(0, 255), st.sampled_from("x x x x x x w w d i c".split())
    ),
    min_size=1,
    max_size=2,
)


@given(st.sampled_from(NAMES), edits)
def bytes_change(name: str, changes: list[tuple[float, int, str]]) -> None:
    """Checksums stay as they were: what is read is what was dumped, or nothing is."""
    data = bytearray(GOLDEN[name])
    for where, value, how in changes:
        at = int(where * len(data))
        if how == "x":
            data[at : at + 1] = bytes([(data[at] if data else 0) ^ (value or 1)])
        elif how == "w":
            data[at : at + 8] = bytes([value]) * 8
        elif how == "d":
            del data[at : at + value]
        elif how == "i":
            data[at:at] = bytes([value]) * (value % 9)
        else:
            del data[at:]
    path = publish(bytes(data))
    with bounded():
        outcome = use(path)
    outcomes[outcome] += 1
    # There is no byte that does not count.
    assert (outcome == "sound") == (data == GOLDEN[name])
    original = publish_original(name)
    try:
        image = lazyrestore.open(path)
    except lazyrestore.ImageError:
        return
    with image, lazyrestore.open(original) as sound:
        assert image.regions == sound.regions
        for region, parts in read_some(image).items():
            for offset, part in parts:
                assert part == sound.read(region, offset, len(part))


def publish_original(name: str) -> Path:
    path = folder / f"{name}.lzr"
    if not path.exists():
        path.write_bytes(GOLDEN[name])
    return path


# ---- Fields ----------------------------------------------------------------------------------

odd_values = st.one_of(
    st.sampled_from(
        [*(0, 1, 2, 3, 255, 256, 257, 4095, 4096, 65536, 1 << 20, 1 << 31, 1 << 40, 1 << 62)]
        + [(1 << 64) - n for n in (1, 2, 8, 100, 4096)]
        + [(1 << 32) - n for n in (1, 2, 24, 100)]
    ),
    st.integers(0, (1 << 64) - 1),
)
relations = st.sampled_from(["=", "+", "-", "^"])
structures = st.sampled_from("footer root tree region node entry entry entry".split())
surgeries = st.lists(
    st.tuples(structures, st.floats(0, 0.999), relations, odd_values), min_size=1, max_size=3
)


@given(st.sampled_from(NAMES), surgeries, st.booleans())
def fields_change(name: str, changes: list[tuple[str, float, str, int]], settles: bool) -> None:
    """Checksums are made right again; the C core and the second decoder must agree with this."""
    surgery = Surgery(GOLDEN[name])
    for structure, where, relation, value in changes:
        fields = FIELDS[name].get(structure) or FIELDS[name]["footer"]
        field = fields[int(where * len(fields))]
        old = field.get(bytes(surgery.data))
        new = {"=": value, "+": old + value % 9, "-": old - value % 9, "^": old ^ 1 << value % 64}
        field.put(surgery.data, new[relation])
    path = publish(surgery.reseal())
    with bounded():
        outcome = use(path)
    if settles and outcome == "damaged" and settle(path):
        with bounded():
            outcome = "settled, " + use(path)
    outcomes[outcome] += 1
    judge(path)


# ---- msgpack ---------------------------------------------------------------------------------

values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats()),
        *(st.text(max_size=20), st.binary(max_size=20)),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=12)),
        st.builds(msgpack.Timestamp, st.integers(0, 1 << 40), st.integers(0, 999_999_999)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
LENGTH = make_fixtures.Draft().regions[0].length
dtypes = st.one_of(
    st.sampled_from(
        ["|u1", "|O", "<f8", "|V0", "<U3", "(", "2,i4", "<M8[7s]", "|S0", "O8", "i4,O", "\0"]
    ),
    st.just([["a", "<i4"], ["b", "|O"]]),
    st.just([["a", [["b", "|u1"]]], [["t", "n"], "<f8", [2]]]),
    values,
)
shapes = st.one_of(
    st.lists(st.one_of(st.integers(-3, 70_000), st.sampled_from([1 << 62, (1 << 64) - 1, 1.5]))),
    # Those that the region's length would allow.
    st.sampled_from([[LENGTH // n] for n in (1, 2, 4, 8)] + [[-1, -LENGTH // 8], [1, LENGTH, 1]]),
    values,
)
arrays = st.fixed_dictionaries(
    {"array": st.one_of(values, st.fixed_dictionaries({"dtype": dtypes, "shape": shapes}))}
)
# What packers would not write: lengths that are not true, nesting, keys twice, unfinished objects.
raw_values = st.one_of(
    st.integers(1, 1100).map(lambda depth: b"\x91" * depth + b"\xc0"),
    st.integers(1, 1100).map(lambda depth: b"\x81\xa1k" * depth + b"\xc0"),
    st.integers(1, 1100).map(lambda depth: b"\xdd\x00\x00\xf0\x00" * depth),
    st.just(b"\x82\xa1k\x01\xa1k\x02"),
    st.just(b"\xdf\xff\xff\xff\xff"),
    st.just(b"\xc6\xff\xff\xff\xff"),
    st.just(b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    st.binary(max_size=40),
    values.map(lambda value: msgpack.packb(value, use_bin_type=True)),
)
HEADER_KEYS = "version critical compatible page_size id created writer other".split()
MARK = "a broken image"


@given(
    st.one_of(
        st.just({}), st.just({}), st.dictionaries(st.sampled_from(HEADER_KEYS), values, max_size=2)
    ),
    st.one_of(st.none(), st.none(), raw_values),
    st.one_of(arrays, arrays, values, raw_values),
    st.booleans(),
)
def msgpack_changes(
    header: dict[str, object], source: bytes | None, metadata: object, settles: bool
) -> None:
    """Header and metadata are anything at all, or nothing that is msgpack."""
    made = make_fixtures.Draft()
    made.header_changes = header
    kept = metadata if isinstance(metadata, bytes) else msgpack.packb(metadata, use_bin_type=True)
    made.regions[0].metadata = kept
    pack = make_fixtures.pack

    def pack_raw(value: object) -> bytes:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
        return packed if source is None else packed.replace(pack(MARK), source)

    make_fixtures.pack = pack_raw
    try:
        data = made.build()
    finally:
        make_fixtures.pack = pack
    path = publish(data)
    if settles:
        settle(path)
    with bounded():
        outcomes[use(path)] += 1
    judge(path)


PROPERTIES = {"bytes": bytes_change, "fields": fields_change, "msgpack": msgpack_changes}


def main(name: str, examples: str = "200", chosen: str = "0") -> None:
    settled = settings(
        max_examples=int(examples),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for warmed in NAMES:  # what is imported when first needed does not count
        use(publish(GOLDEN[warmed]))
    outcomes.clear()
    seed(int(chosen))(settled(PROPERTIES[name]))()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
