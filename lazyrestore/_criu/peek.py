"""Whether an image may be one of processes, before any module that could open it is there.

A restore of processes has much to start at once, and starts it by this; what the image is, is seen
when it is opened.
"""

from __future__ import annotations

import os

_FOOTER_BYTES = 192
_COMPATIBLE = slice(24, 32)
_FILES = 1
_MAGIC = b"\x81\xablazyrestore"


def may_have_processes(path: str) -> bool:
    """If its footer says that it has files; False also for what cannot be read, or is no image."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return False
    try:
        size = os.fstat(fd).st_size
        if size < _FOOTER_BYTES or os.pread(fd, len(_MAGIC), 0) != _MAGIC:
            return False
        footer = os.pread(fd, _FOOTER_BYTES, size - _FOOTER_BYTES)
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(int.from_bytes(footer[_COMPATIBLE], "little") & _FILES)
