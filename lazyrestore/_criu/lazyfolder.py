"""The folder for `criu restore --lazy-pages`: CRIU's, without the pages that can come later.

An entry that may be lazy says so, and no more that its pages are there; so an unmodified CRIU
leaves that memory empty, and registers it with the userfaultfd that it hands over.
"""

from __future__ import annotations

from .checkpoint import Checkpoint
from .export import write_folder
from .pagemap import LAZY, PRESENT, Pagemap


def make_lazy(pagemap: Pagemap) -> Pagemap:
    """The same pagemap, with what may be lazy being only that."""
    entries = [
        (address, pages, LAZY if flags & LAZY else PRESENT)
        for address, pages, flags in pagemap.entries
    ]
    return Pagemap(pagemap.pages_id, entries, pagemap.is_wide)


def write_lazy_folder(checkpoint: Checkpoint, folder: str) -> None:
    """Write it: see `Checkpoint.write_lazy_folder`."""

    def rewrite(name: str, pagemap: Pagemap) -> Pagemap:
        return make_lazy(checkpoint.lazy_pagemap(name, pagemap) or pagemap)

    write_folder(checkpoint, folder, rewrite=rewrite)
