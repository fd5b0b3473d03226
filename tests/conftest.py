"""Fixtures that more than one test file uses, and what this kernel or user cannot do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from criu_support import MADE
from restore_support import write_image

from lazyrestore._native import ffi, lib


def _probe() -> tuple[str | None, str | None]:
    """Why there is no userfaultfd with full rights, and why there is none at all; None: there is"""
    probe = ffi.new("struct lr_uffd_probe *")
    lib.lr_uffd_probe(probe)
    full = min(probe.device_error, probe.syscall_error)
    why_not_full = (
        None
        if full == 0
        else "no userfaultfd for system calls' faults: "
        f"/dev/userfaultfd: {os.strerror(probe.device_error)}, "
        f"userfaultfd(2): {os.strerror(probe.syscall_error)}"
    )
    why_none = (
        None
        if full == 0 or probe.user_mode_error == 0
        else f"no userfaultfd of any kind: {os.strerror(probe.user_mode_error)}"
    )
    return why_not_full, why_none


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "uffd: needs a userfaultfd that serves system calls too")
    # What is tested finds it there too, as criu_support does.
    if MADE.exists():
        os.environ.setdefault("CRIU", str(MADE))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why_not_full, _ = _probe()
    for item in items:
        if why_not_full and item.get_closest_marker("uffd"):
            item.add_marker(pytest.mark.skip(reason=why_not_full))
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs to be root"))


class SmallImage:
    """An image, and what each of its regions must read as."""

    def __init__(self, path: Path, expected: dict[str, bytes]) -> None:
        self.path = path
        self.expected = expected


MakeImage = Callable[..., SmallImage]


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Make an image from layouts: one letter a page, d data, r random, z zero, h hole."""
    made = 0

    def make(layouts: Mapping[str, str], **options: object) -> SmallImage:
        nonlocal made
        made += 1
        path = tmp_path / f"{made}.lzr"
        return SmallImage(path, write_image(path, layouts, **options))  # type: ignore[arg-type]

    return make


@pytest.fixture
def small(make_image: MakeImage) -> SmallImage:
    """Two regions: "data", 64 pages in 16 clusters of every kind; "more", 16 pages of data."""
    layout = "dddd" + "rrrr" + "zzzz" + "hhhh" + "dzhr" + "zhzh" + "ddzz" + "drdr"
    return make_image({"data": layout * 2, "more": "d" * 16}, cluster_size=16384)
