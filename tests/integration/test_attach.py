"""`lazyrestore.attach`: regions whose pages another process loads, which may be killed."""

from __future__ import annotations

import array
import contextlib
import gc
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fork_support import contents, dies_by_fence, end_of, fork, give_up, missing, same
from keeper_support import Kept
from owner_support import is_mapped
from process_support import in_child
from restore_support import write_image
from serve_support import LIMIT_S, Service, eventually

import lazyrestore
from lazyrestore._doctor import has_only_user_mode
from lazyrestore.errors import KernelError, RegionNotFound, RemoteError, RestoreError

pytestmark = pytest.mark.uffd

PAGE = 4096
LAYOUT = "ddrz" * 64


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "state.lzr"
    write_image(path, {"memory": LAYOUT, "more": "d" * 16}, cluster_size=16384)
    return path


def attach(service: Service, **options: object) -> lazyrestore.Attachment:
    return lazyrestore.attach(service.path, deadline=LIMIT_S, **options)  # type: ignore[arg-type]


@in_child(60)
def test_regions_are_as_those_of_a_restore(tmp_path: Path) -> None:
    numbers = np.arange(50000, dtype="int32").reshape(100, 500)
    path = tmp_path / "state.lzr"
    report = lazyrestore.dump({"numbers": numbers, "text": b"hello", "empty": b""}, path)
    with Service(tmp_path / "s", path) as service, attach(service) as attachment:
        assert list(attachment) == ["numbers", "text", "empty"]
        assert attachment.digest == report.digest
        assert (attachment.state, attachment.privilege) == ("served", "full")
        region = attachment["numbers"]
        with lazyrestore.open(path) as opened:
            assert region.metadata == opened.metadata("numbers") != {}
        view = region.array()
        assert (view == numbers).all()
        view[0, 0] = 77
        assert bytes(region[:4]) == b"M\0\0\0"
        assert bytes(attachment["text"][:]) == b"hello"
        assert len(attachment["empty"]) == 0
        with pytest.raises(RegionNotFound, match="'numbers'"):
            attachment["other"]
        del view
    assert attachment.state == "closed"
    with pytest.raises(ValueError, match="attach again"):
        attachment["text"]
    with pytest.raises(ValueError, match="attach again"):  # rather than an image of nothing
        lazyrestore.dump(attachment, path)


@in_child(60)
def test_views_outlive_the_attachment_and_keep_it_from_closing(image: Path, tmp_path: Path) -> None:
    expected = contents(str(image))
    with Service(tmp_path / "s", image) as service:
        attachment = attach(service)
        view = memoryview(attachment["memory"])
        address = attachment["memory"].address
        with pytest.raises(BufferError, match="memory"):
            attachment.close()
        with attachment:
            pass
        same(view, expected["memory"])
        view.release()
        gc.collect()
        assert not is_mapped(address)
        service.wait("gone")


@in_child(60)
def test_a_region_that_is_forgotten_is_unmapped(image: Path, tmp_path: Path) -> None:
    """In a cycle, with threads that still fault in another one"""
    with Service(tmp_path / "s", image) as service:
        attachment = attach(service)
        cycle: list[object] = [attachment["more"]]
        cycle.append(cycle)
        more = attachment["more"].address
        expected = contents(str(image))
        other = attachment["memory"]
        del attachment
        del cycle
        gc.collect()
        assert not is_mapped(more)
        same(other, expected["memory"])


@in_child(60)
def test_what_is_populated_needs_nobody(image: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "s", image) as service, attach(service) as attachment:
        region = attachment["memory"]
        region.populate(8 * PAGE, 16 * PAGE)
        assert missing(region) <= len(LAYOUT) - 16
        region.populate()
        assert missing(region) == 0
        with pytest.raises(ValueError, match="within"):
            region.populate(0, len(region) + 1)


@in_child(60)
def test_what_cannot_be_loaded_is_told(image: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "s", image, "--on-error", "poison") as service:
        with attach(service) as attachment:
            region = attachment["memory"]
            assert region[0] == contents(str(image))["memory"][0]
            os.truncate(image, 4096)
            with pytest.raises(RestoreError, match="cannot be loaded"):
                region.populate()
        service.wait("error")


@in_child(60)
def test_complete_memory_is_ordinary_memory(image: Path, tmp_path: Path) -> None:
    expected = contents(str(image))
    with Service(tmp_path / "s", image, "--prefetch", "all") as service:
        attachment = attach(service)
        assert attachment.wait(LIMIT_S)
        service.wait("gone")  # it needs nobody
    assert attachment.state == "complete"

    def look() -> None:
        same(attachment["memory"], expected["memory"])
        assert attachment.state == "complete"

    assert end_of(fork(look)) == 0
    look()
    attachment.close()


@in_child(60)
def test_children_have_nothing_of_it(image: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "s", image) as service, attach(service) as attachment:
        region = attachment["memory"]
        expected = contents(str(image))["memory"]

        def close() -> None:
            assert attachment.state == "closed"
            attachment.close()
            gc.collect()

        assert region[0] == expected[0]
        assert dies_by_fence(lambda: region[0]) == signal.SIGSEGV
        assert end_of(fork(close)) == 0
        same(region, expected)


@in_child(60)
def test_threads_fault_and_give_up_at_once(image: Path, tmp_path: Path) -> None:
    expected = contents(str(image))["memory"]
    with Service(tmp_path / "s", image) as service, attach(service) as attachment:
        region = attachment["memory"]
        lost = range(0, len(LAYOUT), 7)
        failures: list[BaseException] = []

        def read(seed: int) -> None:
            pages = [page for page in range(len(LAYOUT)) if page not in lost]
            random.Random(seed).shuffle(pages)
            try:
                same(region, expected, pages)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for page in lost:
            give_up(region, page)
        for thread in threads:
            thread.join()
        assert failures == []
        for page in lost:
            assert not any(region[page * PAGE : (page + 1) * PAGE])


@in_child(90)
def test_the_next_service_goes_on(image: Path, tmp_path: Path) -> None:
    expected = contents(str(image))["memory"]
    with Service(tmp_path / "s", image) as service:
        attachment = attach(service)
        region = attachment["memory"]
        region[:3] = b"new"
        give_up(region, 9)
        service.process.kill()
        service.process.wait()
        eventually("it is noticed", lambda: attachment.state == "resuming")
    with Service(tmp_path / "s", image) as service:
        same(region, expected, [page for page in range(len(LAYOUT)) if page not in (0, 9)])
        assert region[:PAGE] == b"new" + expected[3:PAGE]
        assert region[9 * PAGE : 10 * PAGE] == bytes(PAGE)
        eventually("it is served", lambda: attachment.state == "served")
        assert attachment.resumes == 1
        attachment.close()


@in_child(90)
def test_a_keeper_goes_on_without_its_noticing(image: Path, tmp_path: Path) -> None:
    expected = contents(str(image))["memory"]
    with Kept(tmp_path / "s", image) as service, attach(service) as attachment:
        region = attachment["memory"]
        region[:3] = b"new"
        for turn in range(3):
            service.wait_for_keeper()
            service.kill_server()
            same(region, expected, range(1 + turn * 60, 1 + turn * 60 + 60))
        assert region[:PAGE] == b"new" + expected[3:PAGE]
        assert (attachment.state, attachment.resumes) == ("served", 0)


@in_child(120)
def test_attaching_while_services_are_killed(image: Path, tmp_path: Path) -> None:
    """At any moment of it, with a keeper that takes over in the middle."""
    expected = contents(str(image))
    choice = random.Random(3)
    is_over = threading.Event()
    turns, failures = [0], []

    def work() -> None:
        try:
            while not is_over.is_set():
                with attach(service) as attachment:
                    same(attachment["more"], expected["more"])
                    same(attachment["memory"], expected["memory"], range(3, len(LAYOUT), 17))
                turns[0] += 1
        except BaseException as error:
            failures.append(error)

    # One stays: a keeper that has taken over ends with its last peer.
    with Kept(tmp_path / "s", image) as service, attach(service):
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for _ in range(6):
            done = turns[0]
            eventually("they go on", lambda done=done: turns[0] > done + 1 or failures)
            service.wait_for_keeper()
            time.sleep(choice.random() * 0.01)
            service.kill_server()
        is_over.set()
        for worker in workers:
            worker.join()
        assert failures == []


@in_child(60)
def test_where_nobody_comes_what_is_missing_is_fenced(image: Path, tmp_path: Path) -> None:
    expected = contents(str(image))["memory"]
    with Service(tmp_path / "s", image) as service:
        attachment = lazyrestore.attach(service.path, deadline=0.3)
        region = attachment["memory"]
        same(region, expected, range(8))
        region[0] = 1
        service.process.kill()
        service.process.wait()
    with pytest.raises(RemoteError, match="none has taken its place"):
        attachment.wait()
    assert attachment.state == "fenced"
    assert region[0] == 1
    same(region, expected, range(1, 8))
    with pytest.raises(RestoreError):
        region.populate()
    attachment.close()


@in_child(60)
def test_a_touch_of_what_is_fenced_ends_the_process(image: Path, tmp_path: Path) -> None:
    def touch() -> None:
        attachment = lazyrestore.attach(service.path, deadline=0.3)
        os.kill(service.pid, signal.SIGKILL)
        attachment["memory"][40 * PAGE]

    with Service(tmp_path / "s", image) as service:
        dies_by_fence(touch)
        service.process.wait()


@in_child(60)
def test_who_is_refused_is_told_why(image: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "s", "--image-dir", tmp_path) as service:
        with pytest.raises(RemoteError, match=r"refused: .*s\.lzr"):
            attach(service)
        service.wait("refused")


@in_child(60)
def test_another_user_is_refused(image: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    place = f"/tmp/lazyrestore-test-{os.getpid()}"  # which anybody may look into
    with Service(place, image, "--socket-mode", "666", "--on-error", "poison") as service:

        def try_it() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with pytest.raises(RemoteError, match="user 65534 is not admitted"):
                attach(service, privilege="user-mode-only")

        assert end_of(fork(try_it)) == 0


@in_child(60)
def test_who_has_no_rights_is_served(image: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    expected = contents(str(image))["memory"]
    place = f"/tmp/lazyrestore-test-{os.getpid()}"
    with Service(
        place, image, "--socket-mode", "666", "--allow-uid", "65534", "--on-error", "poison"
    ) as service:

        def use() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            if has_only_user_mode():
                with pytest.raises(KernelError, match="attach with privilege='auto'"):
                    attach(service)
            with attach(service, privilege="auto") as attachment:
                assert attachment.privilege in ("full", "user-mode-only")
                same(attachment["memory"], expected)
                attachment["more"].populate()

        assert end_of(fork(use)) == 0


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64])
def test_something_else_that_listens_is_no_service(tmp_path: Path, says: bytes) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        connection.sendall(says)
        connection.recv(100)
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(RemoteError, match="not a lazyrestore service"):
        lazyrestore.attach(tmp_path / "s", deadline=LIMIT_S)
    thread.join()
    listener.close()


def test_what_cannot_be_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAZYRESTORE_SOCKET", raising=False)
    with pytest.raises(ValueError, match="LAZYRESTORE_SOCKET"):
        lazyrestore.attach()
    with pytest.raises(ValueError, match="deadline"):
        lazyrestore.attach("s", deadline=0)
    with pytest.raises(ValueError, match="privilege"):
        lazyrestore.attach("s", privilege="some")
    with pytest.raises(ValueError, match="107"):
        lazyrestore.attach("s" * 108)
    with pytest.raises(ValueError, match="null"):
        lazyrestore.attach("a\0b")
    with pytest.raises(FileNotFoundError):
        lazyrestore.attach(tmp_path / "nothing", deadline=0.05)
    monkeypatch.setenv("LAZYRESTORE_SOCKET", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        lazyrestore.attach(deadline=0.05)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "closed"))
    listener.close()
    with pytest.raises(RemoteError, match="start `lazyrestore serve`"):
        lazyrestore.attach(tmp_path / "closed", deadline=0.05)


@in_child(60)
def test_a_client_that_sends_nonsense_harms_nobody(image: Path, tmp_path: Path) -> None:
    """Each of these is refused or let go, and the next one is served."""
    hello = b"LRATTACH\1\0\0\0\0\0\0\0"
    memory = os.memfd_create("no userfaultfd")
    ranges = b"LRRANGES\1\0\0\0\1\0\0\0\0\x10\0\0\0\0\0\0" + bytes(32)
    with Service(tmp_path / "s", image) as service:
        for begins, fds in (
            (b"LRATTACH\2\0\0\0\0\0\0\0", []),
            (hello + b"x" * 24, []),
            (hello + b"LRRANGES\1\0\0\0\xff\xff\xff\xff" + bytes(8), []),
            (hello + ranges, []),
            (hello + ranges, [memory]),
            (b"LRATTACH\1\0\0\0\1\0\0\0" + ranges, [memory]),
            (ranges, []),
        ):
            with service.connect() as connection:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                connection.sendmsg([begins], [rights] if fds else [])
                connection.shutdown(socket.SHUT_WR)
                heard = b""
                with contextlib.suppress(ConnectionResetError):  # it did not read all of it
                    while piece := connection.recv(65536):
                        heard += piece
                assert begins == ranges or b"LRREFUSE" in heard, begins
        for cut in range(0, len(hello + ranges), 5):
            with service.connect() as connection:
                connection.sendall((hello + ranges)[:cut])
        with attach(service) as attachment:
            same(attachment["memory"], contents(str(image))["memory"])
    os.close(memory)
