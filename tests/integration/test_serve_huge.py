"""`lazyrestore serve`: guests whose memory is in huge pages, Firecracker's `huge_pages: 2M`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from process_support import in_child
from restore_support import write_image
from serve_peer import EVENT_REMOVE, HUGE, PAGE, Monitor
from serve_support import Service

pytestmark = pytest.mark.uffd

PAGES = 4 * HUGE // PAGE
LAYOUT = ("drzd" * 64 + "z" * 256) * (PAGES // 512)
SETTING = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages")


@pytest.fixture
def _huge_pages() -> Iterator[None]:
    """They exist as long as somebody has them mapped."""
    try:
        before = SETTING.read_text()
        SETTING.write_text("16")
    except OSError as error:
        pytest.skip(f"no huge pages to be had here: {error}")
    try:
        yield
    finally:
        SETTING.write_text(before)


@pytest.mark.usefixtures("_huge_pages")
@in_child()
def test_a_guest(tmp_path: Path) -> None:
    """Touched, given up by a balloon, and filled: whole pages, the right ones"""
    expected = write_image(tmp_path / "vm.lzr", {"memory": LAYOUT})["memory"]
    half = PAGES * PAGE // 2
    for prefetch in ("none", "all"):
        with (
            Service(tmp_path / "s", tmp_path / "vm.lzr", "--prefetch", prefetch) as service,
            Monitor(PAGES, regions=2, features=EVENT_REMOVE, page_size=HUGE) as monitor,
        ):
            monitor.restore(service.path)
            assert monitor.read(half - 5, 10) == expected[half - 5 : half + 5]
            monitor.ask(f"discard({half}, {HUGE})")
            if prefetch == "all":
                service.wait("complete")
            zeros = bytes(HUGE)
            assert monitor.read_all() == expected[:half] + zeros + expected[half + HUGE :]
            assert service.find("error") == []


@pytest.mark.usefixtures("_huge_pages")
@in_child()
def test_another_size_than_it_says(tmp_path: Path) -> None:
    """Neither is served: it would get wrong pages, or none"""
    write_image(tmp_path / "vm.lzr", {"memory": LAYOUT})
    with Service(tmp_path / "s", tmp_path / "vm.lzr") as service:
        for real, said in ((HUGE, PAGE), (PAGE, HUGE)):
            with Monitor(PAGES, page_size=real) as monitor:
                monitor.page_size = said
                monitor.restore(service.path)
                service.wait("refused", pid=monitor.pid)
