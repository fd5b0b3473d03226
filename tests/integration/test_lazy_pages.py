"""`lazyrestore lazy-pages`: what a real CRIU restores is right, whatever that does."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

import pytest
from cli_support import run
from criu_support import criu
from keeper_support import Kept
from lazy_pages_support import Dumped, Restored, clusters_of, daemon, damage, ends, lazy_pages
from restore_support import flip
from serve_support import eventually

from lazyrestore._open import Image
from lazyrestore._workingset import WorkingSet

pytestmark = pytest.mark.uffd

ALL = "digest() == expected('memory', PAGES) and digest(other) == expected('other', 64)"
ZEROS = "untouched[:] == bytes(len(untouched))"


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Dumped:
    return Dumped(tmp_path_factory.mktemp("dumped"), criu())


def are_right(restored: Restored, *names: str) -> None:
    for name in names:
        assert restored.ask(name, ALL), name
        assert restored.ask(name, ZEROS), name


def test_on_demand(dumped: Dumped) -> None:
    """A tree, and a child that it forks later; the daemon ends when the last of them has"""
    with daemon(dumped, "--prefetch", "none") as service:
        with Restored(dumped) as restored:
            assert restored.ask("root", "digest(memory, 5, 1) == digest(fill('memory', 6), 5, 1)")
            service.wait("restored", tasks=2)
            assert restored.ask("root", "fork('late')") > 0
            are_right(restored, "late", "kid", "root")
            assert service.find("complete") == []
            assert service.process.poll() is None
        assert ends(service) == 0
        served, gone = service.find("serving"), service.find("gone")
        assert sorted(event["peer"] for event in served) == sorted(e["peer"] for e in gone)
        assert {event["protocol"] for event in served} == {"criu"}
        assert len(served) == 3
        assert [event["task"] for event in served][2] == 0
        assert service.find("error") == []
        assert not os.path.exists(dumped.folder / "lazy-pages.socket")


def test_filled(dumped: Dumped) -> None:
    """When all has come the daemon ends, and the processes go on without it"""
    with daemon(dumped, "--prefetch", "all") as service, Restored(dumped) as restored:
        assert ends(service) == 0
        assert len(service.find("complete")) == 2
        restored.ask("root", "fork('late')")
        are_right(restored, "late", "kid", "root")


@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_what_they_do_with_their_memory(dumped: Dumped, prefetch: str) -> None:
    """Given up, moved, unmapped: before all has come, and while it comes"""
    with daemon(dumped, "--prefetch", prefetch) as service, Restored(dumped) as restored:
        restored.ask("root", "fork('late')")
        for name in ("root", "kid", "late"):
            restored.ask(name, "memory.madvise(mmap.MADV_DONTNEED, 64 * PAGE, 64 * PAGE)")
            restored.ask(name, "move(memory, PAGES)")
            restored.ask(name, "other.close()")
            assert restored.ask(name, "memory[64 * PAGE : 128 * PAGE] == bytes(64 * PAGE)")
            restored.ask(name, "globals().update(right=fill('memory', PAGES))")
            assert restored.ask(name, "memory[128 * PAGE : PAGES * PAGE] == right[128 * PAGE :]")
            assert restored.ask(name, "memory[: 64 * PAGE] == right[: 64 * PAGE]")
        restored.end()
        assert ends(service) == 0
        assert service.find("error") == []


def test_exec(dumped: Dumped) -> None:
    """Who has become another program needs nobody any more, and the others still do"""
    with daemon(dumped, "--prefetch", "none") as service, Restored(dumped) as restored:
        restored.ask("root", "fork('late')")
        late = service.wait("serving", 3)["peer"]
        restored.order("late", "os.execv('/bin/sleep', ['sleep', '1000'])")
        service.wait("gone", peer=late)
        restored.order("kid", "os.execv('/bin/sleep', ['sleep', '1000'])")
        service.wait("gone", task=dumped.pids[1])
        are_right(restored, "root")
        assert service.process.poll() is None
        restored.end()
        assert ends(service) == 0


def test_record_and_replay(dumped: Dumped, tmp_path: Path) -> None:
    """One file for all tasks of a restore, and for the children that they forked"""
    recorded = tmp_path / "touched.ws"
    with daemon(dumped, "--record", recorded) as service, Restored(dumped) as restored:
        restored.ask("root", "digest(memory, 0, 64)")
        restored.ask("kid", "digest(memory, 128, 64)")
        restored.ask("root", "fork('late')")
        restored.ask("late", "digest(memory, 256, 64)")
        restored.end()
        assert ends(service) == 0
    found = WorkingSet.load(str(recorded))
    times = list(found.times_us)
    assert times == sorted(times)
    image = Image(str(dumped.image))
    for pid in dumped.pids:
        assert set(found) & clusters_of(image, pid)
    with daemon(dumped, "--working-set", recorded) as service, Restored(dumped) as restored:
        assert ends(service) == 0  # the rest follows
        are_right(restored, "root", "kid")


def test_several_at_once(dumped: Dumped) -> None:
    """Of one image, one after another too: the numbers in the image are those of all of them"""
    with daemon(dumped, "--keep", "--prefetch", "none") as service:
        with Restored(dumped) as first, Restored(dumped) as second, Restored(dumped) as third:
            for restored in (first, second, third):
                restored.ask("root", f"memory.write(b'{restored.space}')")
            for restored in (first, second, third):
                text = str(restored.space)
                assert restored.ask("root", f"memory[:{len(text)}]") == text.encode()
                are_right(restored, "kid")
            assert len({event["pid"] for event in service.find("serving")}) == 6
            assert len({event["restore"] for event in service.find("serving")}) == 3
            peers = service.ask_status()["peers"]
            assert {peer["protocol"] for peer in peers} == {"criu"}
            assert sorted(peer["task"] for peer in peers) == sorted(dumped.pids * 3)
        service.wait("gone", 6)
        with Restored(dumped) as fourth:
            are_right(fourth, "root", "kid")
        service.wait("gone", 8)
        assert service.stop(signal.SIGTERM) == 0
        assert service.find("error") == []


def test_sigterm_fills(dumped: Dumped) -> None:
    """Told to end, it fills what it serves; the processes go on"""
    with daemon(dumped, "--prefetch", "none") as service, Restored(dumped) as restored:
        restored.ask("root", "0")
        service.wait("restored")
        assert service.stop(signal.SIGTERM) == 0
        assert len(service.find("complete")) == 2
        are_right(restored, "root", "kid")


@pytest.mark.parametrize("on_error", ["kill", "log"])
def test_a_page_cannot_be_loaded(dumped: Dumped, tmp_path: Path, on_error: str) -> None:
    """The process that touches it is ended, or waits; the others go on"""
    damaged = tmp_path / "damaged.lzr"
    damaged.write_bytes(dumped.image.read_bytes())
    arguments = ("--prefetch", "none", "--on-error", on_error)
    kid = dumped.pids[1]
    with daemon(dumped, *arguments, image=damaged) as service, Restored(dumped) as restored:
        restored.ask("root", "fork('late')")
        service.wait("serving", 3)
        address = restored.ask("kid", "address(mine)")
        place = damage(damaged, kid, address)
        restored.order("kid", "digest(mine)")
        assert service.wait("error")["task"] == kid
        if on_error == "kill":
            service.wait("gone", task=kid)
        are_right(restored, "root", "late")
        if on_error == "log":
            flip(damaged, place)
            assert restored.answer("kid") == restored.ask("root", "expected('kid', 64)")


def test_killed(dumped: Dumped) -> None:
    """The keeper serves on, all of them, and ends when they have"""
    with Kept(None, *lazy_pages(dumped, "--prefetch", "none"), verb=("lazy-pages",)) as service:
        with Restored(dumped) as restored:
            restored.ask("root", "fork('late')")
            service.wait("serving", 3)
            service.wait_for_keeper()
            service.kill_server()
            are_right(restored, "root", "kid", "late")
        service.wait_until_all_ended()
        assert service.find("error") == []


def test_as_criu_lazy_pages(dumped: Dumped, tmp_path: Path) -> None:
    """--daemon returns when CRIU can be started; --status-fd, --pidfile, --log-file"""
    folder, reading, writing = tmp_path / "work", *os.pipe()
    folder.mkdir()
    (tmp_path / "log").write_text("before\n")
    result = run(
        *("lazy-pages", "-D", dumped.folder, "--image", dumped.image, "-W", folder, "-d"),
        *("--status-fd", writing, "--pidfile", tmp_path / "pid", "-o", tmp_path / "log"),
        pass_fds=[writing],
    ).ok()
    os.close(writing)
    assert os.read(reading, 10) == b"\0"
    assert os.read(reading, 10) == b""
    os.close(reading)
    pid = int((tmp_path / "pid").read_text())
    pidfd = os.pidfd_open(pid)
    try:
        assert result.out == ""
        with Restored(dumped, None, "-W", str(folder)) as restored:
            are_right(restored, "root", "kid")
        eventually("it ends", lambda: select.select([pidfd], [], [], 0)[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    log = (tmp_path / "log").read_text()
    assert log.startswith("before\n")
    assert "restored by CRIU" in log
    failed = run("lazy-pages", "-D", dumped.folder, "--image", dumped.image, "-W", "/nowhere", "-d")
    failed.fails(1, "/nowhere", "make it")
