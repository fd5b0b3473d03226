"""Memory cgroups with a limit, v1 or v2, and programs that run in one."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")
_V1_NONE = 1 << 62
_numbers = itertools.count()


class Cgroup:
    """A memory cgroup below the one that this process is in.

    Attributes:
        path: its folder.
        is_v1: whether its files are those of version 1.
    """

    def __init__(self, path: Path, *, is_v1: bool) -> None:
        self.path = path
        self.is_v1 = is_v1

    def set_limit(self, limit: int | None) -> None:
        """Limit memory, in bytes; what is beyond it shall not go to swap."""
        if not self.is_v1:
            with contextlib.suppress(OSError):
                self._write("memory.swap.max", "0")
            self._write("memory.max", "max" if limit is None else str(limit))
            return
        # The limit of memory and swap cannot be below that of memory: in the order that fits.
        for _ in range(2):
            for name in ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"):
                with contextlib.suppress(OSError):
                    self._write(name, str(-1 if limit is None else limit))
        found = self._number("memory.limit_in_bytes")
        assert found >= _V1_NONE if limit is None else found == limit, (found, limit)

    def wrap(self) -> tuple[str, ...]:
        """What to put before a command, so that it runs in here from its first page on."""
        enter = 'echo $$ > "$0"; exec "$@"'
        return ("sh", "-e", "-c", enter, str(self.path / "cgroup.procs"))

    @property
    def kills(self) -> int:
        """How many processes the kernel killed for this limit."""
        name = "memory.oom_control" if self.is_v1 else "memory.events"
        return self._field(name, "oom_kill")

    @property
    def used(self) -> int:
        """Bytes that cannot be had back at once: without page cache that is not in use."""
        whole = self._number("memory.usage_in_bytes" if self.is_v1 else "memory.current")
        key = "total_inactive_file" if self.is_v1 else "inactive_file"
        return whole - self._field("memory.stat", key)

    def add_child(self) -> Cgroup:
        """A cgroup in this one, which may hold no program of its own then."""
        if not self.is_v1:
            self._write("cgroup.subtree_control", "+memory")
        path = self.path / "inner"
        path.mkdir()
        return Cgroup(path, is_v1=self.is_v1)

    def remove(self) -> None:
        """Its programs have ended, but the kernel may need a moment to see that."""
        for _ in range(100):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.path.rmdir()

    def _write(self, name: str, value: str) -> None:
        (self.path / name).write_text(value)

    def _number(self, name: str) -> int:
        return int((self.path / name).read_text())

    def _field(self, name: str, key: str) -> int:
        lines = (line.split() for line in (self.path / name).read_text().splitlines())
        return next(int(words[1]) for words in lines if words[0] == key)


def _own_paths() -> dict[str, str]:
    """Controllers (of v2: none) to path."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return {names: path for _, names, path in (line.split(":", 2) for line in lines)}


def _make_v1() -> Cgroup | str:
    path = next(path for names, path in _own_paths().items() if "memory" in names.split(","))
    mount = _ROOT / "memory"
    here = mount / path.lstrip("/")
    folder = (here if here.is_dir() else mount) / _name()
    try:
        folder.mkdir()
    except OSError as error:
        return f"no cgroup can be made: {error}"
    return Cgroup(folder, is_v1=True)


def _make_v2() -> Cgroup | str:
    """In v2 only a cgroup without processes, or the root, can have children with a limit."""
    here = _ROOT / _own_paths().get("", "/").lstrip("/")
    if not (_ROOT / "cgroup.controllers").is_file():
        return f"no cgroup v2 in {_ROOT}, and no memory controller of v1"
    why = ""
    for parent in (here, *here.parents):
        if not parent.is_relative_to(_ROOT):
            break
        folder = parent / _name()
        try:
            if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                (parent / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
        except OSError as error:
            why = str(error)
            continue
        if (folder / "memory.max").is_file() and os.access(folder / "memory.max", os.W_OK):
            return Cgroup(folder, is_v1=False)
        folder.rmdir()
        why = f"{folder} would have no memory limit"
    return f"no cgroup with a memory limit can be made: {why}"


def _name() -> str:
    return f"lazyrestore-test-{os.getpid()}-{next(_numbers)}"


@contextlib.contextmanager
def cgroup(limit: int | None) -> Iterator[Cgroup]:
    """A cgroup with a limit, or skip."""
    is_v1 = any("memory" in names.split(",") for names in _own_paths())
    made = _make_v1() if is_v1 else _make_v2()
    if isinstance(made, str):
        pytest.skip(made)
    try:
        made.set_limit(limit)
        yield made
    finally:
        made.remove()
