"""Working sets and fills of served processes, and folders of images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_support import run
from process_support import in_child
from restore_support import PAGE, write_image
from serve_peer import Monitor
from serve_support import Service, become, eventually

import lazyrestore
from lazyrestore._workingset import WorkingSet

pytestmark = pytest.mark.uffd

PAGES = 256
CLUSTER = 16384
LAYOUT = {"memory": "drdz" * (PAGES // 4)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "vm.lzr", LAYOUT, cluster_size=CLUSTER)
    return tmp_path / "vm.lzr"


def expected_of(image: Path) -> bytes:
    with lazyrestore.open(image) as opened:
        return opened.read("memory")


def missing(monitor: Monitor) -> list[int]:
    """Pages of a monitor's that are not there: what it has not been given yet."""
    return list(monitor.ask("missing()"))


@in_child()
def test_record_and_replay(image: Path, tmp_path: Path) -> None:
    """What one touched is loaded first for the next, in that order, and then the rest"""
    recorded = tmp_path / "first.ws"
    with (
        Service(tmp_path / "s", image, "--record", recorded) as service,
        Monitor(PAGES) as monitor,
        Monitor(PAGES) as second,
    ):
        monitor.restore(service.path)
        for cluster in (9, 2, 5):
            monitor.read(cluster * CLUSTER, 1)
        monitor.close()
        service.wait("gone", pid=monitor.pid)
        second.restore(service.path)
        second.read(0, 1)
        second.close()
        service.wait("error", pid=second.pid)  # the file has the first one's already
    assert list(WorkingSet.load(recorded)) == [9, 2, 5]
    with (
        Service(tmp_path / "s", image, "--working-set", recorded) as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        service.wait("complete", pid=monitor.pid)
        assert service.find("gone") == []
        assert monitor.read_all() == expected_of(image)
    os.rename(recorded, f"{image}.ws")  # where it is looked for
    with Service(tmp_path / "s", image) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        service.wait("complete", pid=monitor.pid)
        monitor.close()
        assert service.wait("gone", pid=monitor.pid)["faults"] == 0
    with (
        Service(tmp_path / "s", image, "--prefetch", "none") as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        monitor.read(0, 1)
        # The page that was touched may come before the rest of its cluster.
        rest = PAGES - CLUSTER // PAGE
        eventually("the cluster is there", lambda: len(missing(monitor)) <= rest)
        assert len(missing(monitor)) == rest


@in_child()
def test_record_into_a_folder(image: Path, tmp_path: Path) -> None:
    """A file for each, by its number; also of who is there when the service ends"""
    folder = tmp_path / "sets"
    folder.mkdir()
    monitors = [Monitor(PAGES) for _ in range(3)]
    try:
        with Service(tmp_path / "s", image, "--record", folder, "--on-error", "log") as service:
            for number, monitor in enumerate(monitors):
                monitor.restore(service.path)
                monitor.read(number * CLUSTER, 1)
            monitors[0].close()
            service.wait("gone", pid=monitors[0].pid)
    finally:
        for monitor in monitors:
            monitor.close()
    for number, monitor in enumerate(monitors):
        assert list(WorkingSet.load(folder / f"vm.{monitor.pid}.ws")) == [number]


@in_child()
def test_fill(image: Path, tmp_path: Path) -> None:
    """Everything comes without a touch, and it is said when it is there"""
    with (
        Service(tmp_path / "s", image, "--prefetch", "all") as service,
        Monitor(PAGES, regions=3) as monitor,
    ):
        monitor.restore(service.path)
        service.wait("complete", pid=monitor.pid)
        os.kill(service.pid, 19)  # whatever is touched now must be there
        try:
            assert monitor.read_all() == expected_of(image)
        finally:
            os.kill(service.pid, 18)


@in_child()
def test_a_working_set_of_another_image(image: Path, tmp_path: Path) -> None:
    """Beside an image it is said and done without; named, it is refused at the start"""
    other = tmp_path / "other.lzr"
    write_image(other, {"memory": "r" * 8}, cluster_size=CLUSTER)
    with lazyrestore.restore(other, lazy=True, record=tmp_path / "vm.lzr.ws") as session:
        session["memory"][0]
    with Service(tmp_path / "s", image) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        assert monitor.read_all() == expected_of(image)
        assert "Served without it" in service.wait("error")["reason"]
    named = ("--working-set", tmp_path / "vm.lzr.ws")
    run("serve", image, "--socket", tmp_path / "t", *named).fails(3, "record one of this image")


@in_child()
def test_granularity(image: Path, tmp_path: Path) -> None:
    """A page at a time, for the least memory"""
    with (
        Service(tmp_path / "s", image, "--granularity", "page") as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        monitor.read(0, 1)
        assert missing(monitor) == list(range(1, PAGES))


@in_child()
def test_a_folder_of_images(image: Path, tmp_path: Path) -> None:
    """The socket's name says which; images come, change and go"""
    images, sockets = tmp_path / "images", tmp_path / "sockets"
    images.mkdir()
    sockets.mkdir()
    for number, name in enumerate(("a", "b")):
        write_image(images / f"{name}.lzr", {"memory": "d" * PAGES}, salt=number + 1)
    with Service(sockets, "--image-dir", images) as service:
        service.wait("listening", 2)

        def serves(name: str) -> None:
            expected = expected_of(images / f"{name}.lzr")
            with Monitor(PAGES) as monitor:
                monitor.restore(sockets / f"{name}.sock")
                assert monitor.read_all() == expected

        serves("a")
        serves("b")
        with Monitor(PAGES) as early:
            early.restore(sockets / "a.sock")
            before = expected_of(images / "a.lzr")
            early.read(0, 1)
            # A new image takes the old one's name: who is served already keeps the old one.
            write_image(images / "new", {"memory": "d" * PAGES}, salt=9)
            os.replace(images / "new", images / "a.lzr")
            serves("a")
            assert early.read_all() == before
        write_image(images / "c.lzr", {"memory": "d" * PAGES}, salt=3)
        eventually("a socket for it", (sockets / "c.sock").exists)
        serves("c")
        (images / "b.lzr").write_bytes(b"no image")
        with Monitor(PAGES) as monitor:
            monitor.connect(sockets / "b.sock")
            monitor.send(monitor.message())
            assert "not a" in json.loads(monitor.reply())["error"]["message"]
        os.unlink(images / "b.lzr")
        become("its socket goes", lambda: sorted(os.listdir(sockets)), ["a.sock", "c.sock"])
        serves("a")


@in_child()
def test_one_socket_of_a_folder_of_images(image: Path, tmp_path: Path) -> None:
    """Its name says which image, wherever it is; one that is not there is refused"""
    with (
        Service(tmp_path / "vm.sock", "--image-dir", tmp_path) as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        assert monitor.read_all() == expected_of(image)
    with (
        Service(tmp_path / "none.sock", "--image-dir", tmp_path) as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.connect(service.path)
        monitor.send(monitor.message())
        assert "No such file" in json.loads(monitor.reply())["error"]["message"]
