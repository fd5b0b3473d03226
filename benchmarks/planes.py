"""P4: byte planes, on the weights of a real network and on whole numbers."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lazyrestore

from . import peers
from .bench import Bench
from .runner import NotMeasuredError, Row, in_turns

PACKAGE = "rapidocr_onnxruntime"
"""On PyPI: networks that read text in pictures (PaddleOCR's), as ONNX files; 15 MB of float32."""
_MODELS = ("ch_PP-OCRv4_rec_infer.onnx", "ch_PP-OCRv4_det_infer.onnx")
_FLOAT = 1
_PASS_S = 0.1
_BLOCK = 65536  # of blosc2, as our clusters are

Array = np.ndarray[Any, Any]


def against_plain(bench: Bench) -> Iterator[Row]:
    """P4: size and speed of decoding with byte planes, against plain zstd and blosc2."""
    for name, data, is_target in _data_sets(bench):
        yield from _rows(bench, name, data, is_target)


def _data_sets(bench: Bench) -> Iterator[tuple[str, Array, bool]]:
    floats = weights()
    chance = np.random.default_rng(1)
    rows = bench.data.nbytes // 32
    times = 1_700_000_000_000_000 + np.cumsum(chance.poisson(1000, rows))
    yield "float32 weights", floats, True
    yield "bfloat16 of them", _to_bfloat16(floats), True
    yield "int64 times", times.astype(np.int64), True
    yield "int64 ids", np.sort(chance.integers(0, 1 << 40, rows)), False


def _rows(bench: Bench, name: str, data: Array, is_target: bool) -> Iterator[Row]:
    ours = {bp: peers.in_memory(f"planes-{bp}.lzr") for bp in ("auto", "none")}
    sizes = {
        bp: lazyrestore.dump({"x": data}, path, byte_planes=bp).stored_bytes
        for bp, path in ours.items()
    }
    ways: dict[str, Callable[[], float]] = {
        bp: functools.partial(_decode_image, path, data) for bp, path in ours.items()
    }
    missing = ""
    with contextlib.ExitStack() as stack:
        for path in ours.values():
            stack.callback(path.unlink)
        try:
            packed = _pack_blosc2(data)
            ways["blosc2"] = functools.partial(_decode_blosc2, packed, data)
            sizes["blosc2"] = len(packed)
        except NotMeasuredError as error:
            missing = str(error)
        stack.enter_context(_one_core())
        found = in_turns(ways, bench.repeats)
    for key, peer, limits in (
        ("none", "plain zstd", (0.95, 0.8) if is_target else (None, None)),
        ("blosc2", "blosc2 (shuffle, zstd)", (None, None)),
    ):
        note = missing if key not in sizes else ""
        yield Row(
            "P4",
            "size with byte planes",
            data=name,
            unit="MB",
            ours=[sizes["auto"] / 1e6],
            peer_name=peer,
            peer=[] if note else [sizes[key] / 1e6],
            limit=limits[0],
            note=note,
        )
        yield Row(
            "P4",
            "decoding, one core",
            data=name,
            unit="MB/s",
            ours=found["auto"],
            peer_name=peer,
            peer=found.get(key, []),
            is_more=True,
            limit=limits[1],
            note=note,
        )


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _speed(nbytes: int, work: Callable[[], object]) -> float:
    """MB/s of as many passes as take a moment."""
    passes, begin = 0, time.perf_counter()
    while (took := time.perf_counter() - begin) < _PASS_S:
        work()
        passes += 1
    return nbytes * passes / took / 1e6


def _decode_image(path: Path, data: Array) -> float:
    room = np.empty_like(data)
    view = memoryview(room.view(np.uint8))
    with lazyrestore.open(path) as image, image.reader() as reader:
        speed = _speed(data.nbytes, lambda: reader.read_into(0, 0, view))
    _compare(room, data)
    return speed


def _pack_blosc2(data: Array) -> bytes:
    """In blocks as long as our clusters; zstd's level 3 is what it calls 2."""
    try:
        import blosc2
    except ImportError:
        raise NotMeasuredError("no blosc2: pip install blosc2") from None
    return blosc2.compress2(
        data,
        codec=blosc2.Codec.ZSTD,
        clevel=2,
        filters=[blosc2.Filter.SHUFFLE],
        typesize=data.itemsize,
        blocksize=_BLOCK,
        nthreads=1,
    )


def _decode_blosc2(packed: bytes, data: Array) -> float:
    import blosc2

    room = np.empty_like(data)
    speed = _speed(data.nbytes, lambda: blosc2.decompress2(packed, dst=room, nthreads=1))
    _compare(room, data)
    return speed


def _compare(got: Array, expected: Array) -> None:
    if not np.array_equal(got.view(np.uint8), expected.view(np.uint8)):
        raise RuntimeError("what was decoded is not what was compressed")


def _to_bfloat16(floats: Array) -> Array:
    """Rounded to the nearest, as programs do it; their bits."""
    bits = floats.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# ---- Weights -------------------------------------------------------------------------------------


def weights() -> Array:
    """All float32 tensors of the networks, one after another."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        name = PACKAGE.replace("_", "-")
        raise NotMeasuredError(f"no weights of a network: pip install --no-deps {name}")
    folder = Path(next(iter(found.submodule_search_locations))) / "models"
    tensors = [tensor for name in _MODELS for tensor in _tensors((folder / name).read_bytes())]
    return np.concatenate(tensors)


def _tensors(model: bytes) -> Iterator[Array]:
    """Of an ONNX file: a graph's initializers, and what its nodes have as constants."""
    for graph in _messages(memoryview(model), 7):
        yield from map(_floats, _messages(graph, 5))
        for node in _messages(graph, 1):
            for attribute in _messages(node, 5):
                yield from map(_floats, _messages(attribute, 5))


def _floats(tensor: memoryview) -> Array:
    fields = dict(_fields(tensor))
    raw = fields.get(9, b"")
    is_float = fields.get(2) == _FLOAT and isinstance(raw, memoryview)
    return np.frombuffer(raw if is_float else b"", "<f4")


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == number and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Of a protobuf message: their numbers and what they hold."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        length = {1: lambda: 8, 2: varint, 5: lambda: 4}[kind]()
        yield key >> 3, message[at : at + length]
        at += length
