"""`criu restore --lazy-pages` beside `lazyrestore lazy-pages`, for the tests of that."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from restore_support import flip, payloads
from serve_support import LIMIT_S, Service, eventually

import lazyrestore
from lazyrestore import ProcessTree
from lazyrestore._criu.checkpoint import Checkpoint
from lazyrestore._open import Image

PROGRAM = Path(__file__).with_name("talkative.py")


class Dumped:
    """An image of talkative.py, and the folder that criu restore gets.

    Attributes:
        image: its path.
        folder: of CRIU's, without the pages.
        talk: where its processes are asked.
        pids: their numbers in the image: root's and kid's.
    """

    def __init__(self, home: Path, criu: str) -> None:
        self.criu = criu
        self.image = home / "tree.lzr"
        self.folder = home / "lazy"
        self.talk = home / "talk"
        self.talk.mkdir()
        program = subprocess.Popen(
            [sys.executable, "-S", str(PROGRAM), str(self.talk)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": os.environ["PATH"]},
        )
        try:
            space = os.stat(f"/proc/{program.pid}/ns/pid").st_ino
            for name in ("root", "kid"):
                assert ask(self.talk, space, name, "len(memory)") == 1024 * 4096
            report = lazyrestore.dump(ProcessTree(program.pid, criu=criu), self.image)
            self.pids = [one.pid for one in report.processes]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, 9)
            program.wait()
        self.write_folder(self.folder)

    def write_folder(self, folder: Path) -> None:
        """Write what criu restore needs."""
        found = Checkpoint.of(Image(str(self.image)))
        assert found is not None
        found.write_lazy_folder(str(folder))


class Restored:
    """A restore in a pid namespace of its own, which ends with it: a context manager."""

    def __init__(self, dumped: Dumped, folder: Path | None = None, *options: str) -> None:
        self._talk = dumped.talk
        self.log = dumped.talk / f"restore-{time.monotonic_ns()}.log"
        self.process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *(dumped.criu, "restore", "--lazy-pages", "-D", str(folder or dumped.folder)),
                *("-o", str(self.log), "-v4", *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        children = f"/proc/{self.process.pid}/ns/pid_for_children"
        mine = os.stat("/proc/self/ns/pid").st_ino
        self.space = mine
        while self.space == mine:
            assert self.process.poll() is None
            with contextlib.suppress(FileNotFoundError):  # not forked yet
                self.space = os.stat(children).st_ino

    def ask(self, name: str, question: str) -> Any:
        """What an expression is there."""
        return ask(self._talk, self.space, name, question, self._is_alive)

    def order(self, name: str, question: str) -> None:
        """The same, but nobody waits for the answer."""
        order(self._talk, self.space, name, question)

    def answer(self, name: str) -> Any:
        """Wait for the answer to an order."""
        return answer(self._talk, self.space, name, self._is_alive)

    def _is_alive(self) -> None:
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-15:]
            raise AssertionError("\n".join([f"it ended: {self.process.returncode}", *lines]))

    def end(self) -> None:
        """End all of it."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def order(talk: Path, space: int, name: str, question: str) -> None:
    """Ask a process something."""
    new = talk / f"{space}.{name}.order"
    new.write_text(question)
    new.rename(talk / f"{space}.{name}.ask")


def ask(talk: Path, space: int, name: str, question: str, check: Any = lambda: None) -> Any:
    """What an expression is in a process."""
    order(talk, space, name, question)
    return answer(talk, space, name, check)


def answer(talk: Path, space: int, name: str, check: Any = lambda: None) -> Any:
    """What it said, when it does."""
    file = talk / f"{space}.{name}.answer"

    def is_there() -> bool:
        check()
        return file.exists()

    eventually(f"{name} answers", is_there)
    text = file.read_text()
    file.unlink()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise AssertionError(f"{name}: {text}") from None


def lazy_pages(dumped: Dumped, *arguments: object, image: Path | None = None) -> tuple[object, ...]:
    """Arguments of the command."""
    return ("-D", dumped.folder, "--image", image or dumped.image, *arguments)


class Daemon(Service):
    """`lazyrestore lazy-pages`."""

    def __init__(self, dumped: Dumped, arguments: tuple[object, ...], **options: Any) -> None:
        super().__init__(None, *arguments, verb=("lazy-pages",), **options)
        self.path = str(dumped.folder / "lazy-pages.socket")

    def ask_status(self) -> dict[str, Any]:
        """What it says of itself."""
        with self.connect() as sock:
            sock.sendall(b'{"type":"status"}\n')
            with sock.makefile() as file:
                return dict(json.loads(file.readline()))


def daemon(dumped: Dumped, *arguments: object, image: Path | None = None, **options: Any) -> Daemon:
    """The same, for an image."""
    return Daemon(dumped, lazy_pages(dumped, *arguments, image=image), **options)


def ends(service: Service) -> int:
    """Its exit code, when it ends by itself."""
    return service.process.wait(LIMIT_S)


def clusters_of(image: Image, pid: int) -> set[int]:
    """Clusters with a task's memory, by their numbers in the image."""
    found = Checkpoint.of(image)
    assert found is not None
    first = []  # of each region
    at = 0
    for region in image.regions:
        first.append(at)
        at += -(-region.length // image.cluster_size)
    return {
        first[region] + cluster
        for _, length, offset, region in found.lazy_ranges(pid)
        for cluster in range(
            offset // image.cluster_size, -(-(offset + length) // image.cluster_size)
        )
    }


def damage(path: Path, pid: int, address: int) -> int:
    """Damage what a task has at an address, in the image's file: where; `flip` it to mend it."""
    image = Image(str(path))
    found = Checkpoint.of(image)
    assert found is not None
    for start, length, offset, region in found.lazy_ranges(pid):
        if start <= address < start + length:
            cluster = (offset + address - start) // image.cluster_size
            at, payload = payloads(path, image.regions[region].name)[cluster]
            flip(path, at + payload // 2)
            return at + payload // 2
    raise AssertionError(f"{address:#x} is in no range of {pid}")
