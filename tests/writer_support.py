"""What tests of the writer share: a fast second reader, random bytes, leftovers."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

from image_decoder import Decoded

from lazyrestore._native import ffi, lib

PAGE = 4096
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def fast_crc32c(data: bytes) -> int:
    return lib.lr_crc32c(0, ffi.from_buffer(data), len(data))


def decode(path) -> Decoded:
    return Decoded(Path(path).read_bytes(), fast_crc32c)


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("lazyrestore-compress")]
