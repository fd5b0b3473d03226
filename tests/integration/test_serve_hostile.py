"""What a service must bear: peers that send nonsense, too much, nothing, or end at any moment.

Each is refused with its reason; and a peer that was there before, and one that comes afterwards,
are served as if nothing had been.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_support import in_child
from restore_support import PAGE, write_image
from serve_peer import NOBODY, Monitor
from serve_support import Service, become

pytestmark = pytest.mark.uffd

PAGES = 64
LAYOUT = "drzd" * (PAGES // 4)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "vm.lzr", {"memory": LAYOUT}, cluster_size=16384)
    return tmp_path / "vm.lzr"


@contextlib.contextmanager
def unimpressed(image: Path, *options: object) -> Iterator[Service]:
    """A service whose peers before and after see nothing of what is done to it meanwhile."""
    expected = write_image(image.parent / "same.lzr", {"memory": LAYOUT})["memory"]
    with Service(image.parent / "s", image, *options) as service:
        with Monitor(PAGES) as before:
            before.restore(service.path)
            half = PAGES * PAGE // 2
            assert before.read(0, half) == expected[:half]
            fds = Counter(service.fds())
            yield service
            assert before.read(half, half) == expected[half:]
            with Monitor(PAGES) as after:
                after.restore(service.path)
                assert after.read_all() == expected
            service.wait("gone", pid=after.pid)
            # (One that was being handed to the keeper when they were counted may be none now.)
            become("descriptors that are left", lambda: Counter(service.fds()) - fds, Counter())
        service.wait("gone", pid=before.pid)


def refused(service: Service, monitor: Monitor, code: str, *words: str, after: int = 0) -> None:
    """It was, and was told so on its connection."""
    said = json.loads(monitor.reply())["error"]
    assert said["code"] == code, said
    event = service.wait("refused", after + 1, code=code, pid=monitor.pid)
    assert event["reason"] == said["message"]
    for word in words:
        assert word in said["message"], said


@in_child()
def test_descriptors(image: Path) -> None:
    """None, another kind, too many, two that could be meant"""
    kinds = {
        "[]": ("no-fd", "no userfaultfd came"),
        "[spare]": ("no-fd", "memfd:spare"),
        "[os.open('/dev/null', 0)]": ("no-fd", "/dev/null"),
        "[os.eventfd(0)]": ("no-fd", "[eventfd]"),
        "[connection.fileno()]": ("no-fd", "socket:"),
        "[os.pipe()[0], os.pidfd_open(os.getpid())]": ("no-fd", "pipe:", "[pidfd]"),
        "[uffd, os.dup(uffd)]": ("descriptors", "more than one"),
        "[uffd, spare, spare, spare]": ("descriptors", "more than 3"),
        "[spare] * 253": ("descriptors", "more than 3"),
        "[uffd] * 253": ("descriptors", "more than 3"),
    }
    with unimpressed(image) as service, Monitor(PAGES) as monitor:
        for number, (fds, (code, *words)) in enumerate(kinds.items()):
            monitor.connect(service.path)
            monitor.send(monitor.message(), fds)
            before = sum(each[0] == code for each in list(kinds.values())[:number])
            refused(service, monitor, code, *words, after=before)


@in_child(120)
def test_descriptors_whose_close_takes_long(image: Path) -> None:
    """Of who is refused, goes away, is served, or says more afterwards: nobody waits for them"""

    def asked(service: Service) -> None:
        with service.connect() as sock:
            sock.sendall(b'{"type":"status"}')
            assert sock.recv(1)

    with unimpressed(image) as service, Monitor(PAGES) as monitor:
        for data, fds in ((b"nonsense", "[]"), (b"[{}]", "[spare] * 4"), (b"[{}]", "[]")):
            monitor.connect(service.path)
            monitor.ask(f"send_lingering({data!r}, {fds})")
            monitor.reply()
            asked(service)
        monitor.connect(service.path)
        monitor.ask("send_lingering(b'[')")
        monitor.ask("hang_up()")
        service.wait("refused", pid=monitor.pid, code="gone")
        asked(service)
        monitor.connect(service.path)
        monitor.ask(f"send_lingering({monitor.message()!r}, [uffd])")
        service.wait("serving", pid=monitor.pid)
        asked(service)
        monitor.ask("send_lingering(b'more')")
        assert monitor.read(0, PAGE)
        asked(service)


@in_child()
def test_userfaultfds_that_cannot_be_served(image: Path) -> None:
    """Not initialised; of nothing; of other memory; of memory that is not registered"""
    with unimpressed(image) as service:
        for fds in ("[new_userfaultfd()]", "[open_userfaultfd()]"):
            with Monitor(PAGES) as monitor:
                monitor.connect(service.path)
                monitor.send(monitor.message(), fds)
                refused(service, monitor, "failed")
        with Monitor(PAGES) as monitor:
            monitor.spans = [(monitor.spans[0][0] - (1 << 40), PAGES * PAGE, 0)]
            monitor.connect(service.path)
            monitor.send(monitor.message())
            refused(service, monitor, "failed")


@in_child()
def test_text(image: Path) -> None:
    """Garbage, endless JSON, deep JSON, an end in the middle"""
    texts = {
        b"GET / HTTP/1.1\r\n\r\n": ("garbage", "GET"),
        b"\x00\x01\x02": ("garbage", "no handshake"),
        b"[}": ("garbage", "not JSON"),
        b"[" * 100: ("garbage", "levels"),
        b'{"type":"dance"}': ("garbage", "dance"),
        b'{"type":0}': ("ranges", "no handshake"),
        b"[]": ("ranges", "no list"),
        b"[{}]": ("ranges", "base_host_virt_addr"),
        b"[" + b"9" * 6000 + b"]": ("garbage", "not JSON"),
        b"[" + b" " * 100_000 + b"\xff]": ("garbage", "not JSON"),
        b" " * 200_000: ("garbage", "white space"),
        b'["' + b"x" * (2 << 20): ("garbage", "longer"),
        b"[" + b"[]," * 500_000: ("garbage", "longer"),
    }
    with unimpressed(image) as service:
        for text, (code, word) in texts.items():
            with Monitor(PAGES) as monitor:
                monitor.connect(service.path)
                with contextlib.suppress(OSError):  # it is refused before all is sent
                    monitor.send(text)
                refused(service, monitor, code, word)
        for text in (b'[{"a', b"[", b'{"type":', b"[" + b"1," * 100_000):
            with Monitor(PAGES) as monitor:
                monitor.connect(service.path)
                monitor.send(text)
                monitor.ask("connection.shutdown(socket.SHUT_WR)")
                refused(service, monitor, "gone", "in the middle")


@in_child()
def test_ranges(image: Path) -> None:
    """Overlaps, too much, outside of the image, and what lies there is not registered"""
    with unimpressed(image) as service, Monitor(PAGES) as monitor:
        ((address, size, _),) = monitor.spans
        cases = {
            "same addresses": [(address, size, 0), (address + PAGE, PAGE, size)],
            "same offsets": [(address, 2 * PAGE, 0), (address + 2 * PAGE, PAGE, PAGE)],
            "another snapshot": [(address, size + PAGE, 0)],
            "has 262144 bytes": [(address, size, 1 << 60)],
            "whole pages": [(address + 1, PAGE, 0)],
            "last address": [((1 << 64) - PAGE, PAGE, 0)],
            "is empty": [(address, 0, 0)],
            "the most": [(address, PAGE, 0)] * 1025,
        }
        for number, (word, spans) in enumerate(cases.items()):
            monitor.spans = spans
            monitor.connect(service.path)
            monitor.send(monitor.message())
            refused(service, monitor, "ranges", word, after=number)
        for number, page_size in enumerate((0, 512, 8192, 1 << 30)):
            monitor.spans = [(0, 0, 0)]
            monitor.connect(service.path)
            monitor.send(monitor.message(page_size=page_size))
            refused(service, monitor, "ranges", "pages of", after=len(cases) + number)
        monitor.spans = [(address, size // 2, 0), (1 << 40, size // 2, size // 2)]
        monitor.connect(service.path)
        monitor.send(monitor.message())
        refused(service, monitor, "failed")


@in_child()
def test_a_descriptor_without_its_flags(image: Path, tmp_path: Path) -> None:
    """O_NONBLOCK belongs to the description that both have: cleared, also in the middle"""
    expected = write_image(tmp_path / "same.lzr", {"memory": LAYOUT})["memory"]
    clear = "fcntl.fcntl(uffd, fcntl.F_SETFL, 0)"
    with unimpressed(image) as service, Monitor(PAGES) as monitor:
        monitor.ask(clear)
        monitor.restore(service.path)
        monitor.read(0, 1)
        monitor.ask(clear)
        assert monitor.read_all() == expected


@in_child()
def test_it_reads_its_own_messages(image: Path) -> None:
    """A peer that takes faults away from under the service waits itself, and nobody else"""
    with unimpressed(image) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        monitor.ask("start_stealing()")
        monitor.order("read_all()")  # nobody knows when that ends


@in_child()
def test_never_read(image: Path) -> None:
    """One that never reads what it is told; and one that never stops to send"""
    with unimpressed(image) as service, Monitor(PAGES) as monitor:
        for number in range(50):
            monitor.connect(service.path)
            monitor.send(b"nonsense")
            service.wait("refused", number + 1, pid=monitor.pid)
        monitor.restore(service.path)
        with contextlib.suppress(OSError):
            monitor.send(b"x" * (8 << 20), "[spare] * 253")
        monitor.read(0, 1)


@in_child()
def test_dies_at_every_step(image: Path) -> None:
    """Killed after each piece of its handshake, and while it waits for a page"""
    with unimpressed(image) as service:
        for step in range(8):
            with Monitor(PAGES) as monitor:
                text = monitor.message()
                monitor.connect(service.path)
                if step >= 1:
                    monitor.send(text[: 1 << step], "[uffd]")
                if step >= 6:
                    monitor.send(text[1 << step :], "[]")
                if step == 7:
                    service.wait("serving", pid=monitor.pid)
                    monitor.order("read_all()")
                os.kill(monitor.pid, signal.SIGKILL)


@pytest.fixture
def public(image: Path) -> Iterator[Path]:
    """The image in a folder that every user can reach"""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(prefix="lazyrestore-") as folder:
        os.chmod(folder, 0o755)
        yield Path(shutil.copy(image, folder))


@in_child()
def test_users(public: Path, tmp_path: Path) -> None:
    """Another user is not admitted unless it was said so; and not to what is the owner's"""
    expected = write_image(tmp_path / "same.lzr", {"memory": LAYOUT})["memory"]
    with (
        unimpressed(public, "--socket-mode", "666") as service,
        Monitor(PAGES, uid=NOBODY) as monitor,
    ):
        monitor.connect(service.path)
        with contextlib.suppress(BrokenPipeError):  # it is refused before it says anything
            monitor.send(monitor.message())
        refused(service, monitor, "user", "--allow-uid 65534")
    with (
        unimpressed(public, "--socket-mode", "666", "--allow-uid", NOBODY) as service,
        Monitor(PAGES, uid=NOBODY) as monitor,
    ):
        monitor.connect(service.path)
        monitor.send(b'{"type":"takeover"}', "[]")
        refused(service, monitor, "user", "own user")
        monitor.restore(service.path)
        assert monitor.read_all() == expected


@in_child()
def test_a_user_who_may_not_open_the_socket(public: Path) -> None:
    """By default the socket is its owner's alone"""
    with (
        unimpressed(public) as service,
        Monitor(PAGES, uid=NOBODY) as monitor,
        pytest.raises(PermissionError),
    ):
        monitor.connect(service.path)


@in_child(120)
def test_a_thousand_connections(image: Path, tmp_path: Path) -> None:
    """All at once, and nobody says what he wants: others are served, too many are refused"""
    expected = write_image(tmp_path / "same.lzr", {"memory": LAYOUT})["memory"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 8192:
        pytest.skip(f"only {hard} descriptors may be open here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with unimpressed(image) as service:
        crowd = [service.connect() for _ in range(1000)]
        service.wait("connected", 1001)
        with Monitor(PAGES) as monitor:
            monitor.restore(service.path)
            assert monitor.read_all() == expected
            more = [service.connect() for _ in range(100)]
            told = [json.loads(sock.recv(4096)) for sock in more[-50:]]
            assert all(each["error"]["code"] == "busy" for each in told)
            service.wait("refused", 50, code="busy")
        for sock in (*crowd, *more):
            sock.close()


@in_child()
def test_without_descriptors(image: Path, tmp_path: Path) -> None:
    """Nothing can be accepted: whoever comes waits, and it goes on when it can"""
    expected = write_image(tmp_path / "same.lzr", {"memory": LAYOUT})["memory"]
    with unimpressed(image) as service, Monitor(PAGES) as monitor:
        soft, hard = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        assert soft == hard  # raised at the start
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (len(service.fds()), hard))
        monitor.connect(service.path)
        monitor.send(monitor.message())
        service.wait("error")
        time.sleep(0.5)
        assert len(service.find("error")) == 1, "it is said once"
        # Just enough to accept, and not for all that a peer needs: refused, and nothing is left.
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (len(service.fds()) + 2, hard))
        service.wait("refused", pid=monitor.pid)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (hard, hard))
        monitor.restore(service.path)
        assert monitor.read_all() == expected


@in_child()
def test_descriptors_of_its_own(image: Path) -> None:
    """A service's own listening socket and memory, sent to it, are not held"""
    with unimpressed(image) as service:
        sock = service.connect()
        rights = array.array("i", [sock.fileno()])
        sock.sendmsg([b"["], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        sock.sendall(b"]")
        assert json.loads(sock.recv(4096))["error"]["code"] == "ranges"
        assert sock.recv(1) == b""
