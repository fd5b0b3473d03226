"""Images for measurements and tests, built within seconds: text as services log it, and zeros."""

from __future__ import annotations

from lazyrestore.writer import ImageWriter

from .text import log_text, varied

_BASE_BYTES = 32 << 20
_GIB = 1 << 30


def write_text_image(path: str, nbytes: int, *, level: int = 3) -> None:
    """One region "memory" of `nbytes` of log text, no two clusters of which are the same.

    About as fast as zstd at that level. It compresses to a third.
    """
    base = log_text(min(nbytes, _BASE_BYTES))
    with ImageWriter(path, level=level, source="log text") as image:
        image.add_region("memory")
        for variant in range(-(-nbytes // len(base))):
            left = nbytes - variant * len(base)
            image.write_stable(varied(base, variant)[:left])


def write_sparse_image(path: str, nbytes: int, *, data_bytes: int = 1 << 20) -> None:
    """One region "memory": at each GiB `data_bytes` of log text, and zeros between."""
    base = log_text(data_bytes)
    with ImageWriter(path, source="log text between zeros") as image:
        image.add_region("memory")
        for variant, start in enumerate(range(0, nbytes, _GIB)):
            length = min(_GIB, nbytes - start)
            image.write_stable(varied(base, variant)[:length])
            image.zero(max(0, length - data_bytes))
