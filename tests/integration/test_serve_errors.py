"""What becomes of a served process that touches a page which cannot be loaded."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from process_support import in_child
from restore_support import PAGE, flip, payloads, write_image
from serve_peer import Monitor
from serve_support import Service, eventually

pytestmark = pytest.mark.uffd

PAGES = 64
CLUSTER = 16384
BAD = 5 * CLUSTER


class Broken:
    """An image of which one cluster is damaged, and can be mended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        layout = {"memory": "d" * PAGES}
        self.expected = write_image(path, layout, cluster_size=CLUSTER)["memory"]
        offset, length = payloads(path, "memory")[BAD // CLUSTER]
        self._middle = offset + length // 2
        self.flip()

    def flip(self) -> None:
        flip(self.path, self._middle)


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    return Broken(tmp_path / "vm.lzr")


def said(service: Service, monitor: Monitor) -> None:
    error = service.wait("error", pid=monitor.pid)
    assert error["region"] == "memory"
    assert error["offset"] == BAD
    assert "checksum" in error["reason"]


@in_child()
def test_kill(broken: Broken, tmp_path: Path) -> None:
    """By default it is ended before it can read what is wrong; others live on"""
    with (
        Service(tmp_path / "s", broken.path) as service,
        Monitor(PAGES) as other,
        Monitor(PAGES) as monitor,
    ):
        other.restore(service.path)
        monitor.restore(service.path)
        assert monitor.read(0, BAD) == broken.expected[:BAD]
        monitor.order(f"read({BAD}, 1)")
        assert monitor.process.wait(60) == -signal.SIGKILL
        said(service, monitor)
        service.wait("gone", pid=monitor.pid)
        assert other.read(BAD + CLUSTER, PAGE) == broken.expected[BAD + CLUSTER :][:PAGE]


@in_child()
def test_poison(broken: Broken, tmp_path: Path) -> None:
    """It gets SIGBUS, and all else goes on"""
    with (
        Service(tmp_path / "s", broken.path, "--on-error", "poison") as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        # A system call fails where a touch would kill.
        monitor.order(f"os.write(spare, memoryview(maps[0][1])[{BAD} : {BAD + PAGE}])")
        with pytest.raises(OSError, match="Bad address"):
            monitor.result()
        said(service, monitor)
        rest = BAD + CLUSTER
        assert monitor.read(rest, PAGE) == broken.expected[rest : rest + PAGE]
        monitor.order(f"read({BAD}, 1)")
        assert monitor.process.wait(60) == -signal.SIGBUS


@in_child()
def test_log(broken: Broken, tmp_path: Path) -> None:
    """It waits until the image is mended"""
    with (
        Service(tmp_path / "s", broken.path, "--on-error", "log") as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        monitor.order(f"read({BAD}, {CLUSTER})")
        said(service, monitor)
        with pytest.raises(TimeoutError):
            monitor.result(0.5)
        broken.flip()
        assert monitor.result() == broken.expected[BAD : BAD + CLUSTER]
        assert len(service.find("error")) == 1, "it is said once"
        assert monitor.read_all() == broken.expected


@in_child()
def test_log_while_it_fills(broken: Broken, tmp_path: Path) -> None:
    """What the fill could not load is loaded when it is touched later"""
    with (
        Service(tmp_path / "s", broken.path, "--on-error", "log", "--prefetch", "all") as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        said(service, monitor)
        broken.flip()
        assert monitor.read_all() == broken.expected


@in_child()
def test_an_image_that_is_cut_short(broken: Broken, tmp_path: Path) -> None:
    """While it is served: whoever touches what is gone is ended, and never reads zeros"""
    with (
        Service(tmp_path / "s", broken.path) as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        monitor.read(0, 1)
        with open(broken.path, "r+b") as file:
            file.truncate(100)
        monitor.order("read_all()")
        assert monitor.process.wait(60) == -signal.SIGKILL
        service.wait("gone", pid=monitor.pid)
        eventually("it is said", lambda: service.find("error", pid=monitor.pid))
        with Monitor(PAGES) as late:
            late.restore(service.path)
            late.order("read_all()")
            assert late.process.wait(60) == -signal.SIGKILL
