"""What CRIU's images say of the whole: inventory.img, pstree.img and the tasks' core-*.img."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from lazyrestore.errors import ImageError

from .protobuf import MessageError, decode, decode_numbers, frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore.reports import ProcessInfo

INVENTORY = "inventory.img"
PSTREE = "pstree.img"
VERSION = 2
"""Of image folders: CRIU writes it since 1.7, and no other is known here."""

_COMMON = (0x54564319).to_bytes(4, "little")
_MAGIC_INVENTORY = (0x58313116).to_bytes(4, "little")
_MAGIC_PSTREE = _COMMON + (0x50273030).to_bytes(4, "little")
_MAGIC_CORE = _COMMON + (0x55053847).to_bytes(4, "little")
_DEAD_STATES = (2, 6)  # of a task that has ended, and was not waited for


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One process.

    Attributes:
        pid: in its tree's own pid namespace: the one that the images are named for.
        ppid: of its parent there; 0 for the root of the tree.
        comm: its name.
        threads: how many it has.
        is_zombie: it has ended; only its parent does not know yet. It has no memory.
        nbytes: in pages of its own, that the image has.
    """

    pid: int
    ppid: int
    comm: str
    threads: int
    is_zombie: bool = False
    nbytes: int = 0


def report(tasks: Iterable[Task]) -> tuple[ProcessInfo, ...]:
    """Tasks as reports have them."""
    from lazyrestore.reports import ProcessInfo  # takes its time, and a restore has no use for it

    return tuple(
        ProcessInfo(task.pid, task.ppid, task.comm, task.threads, task.is_zombie, task.nbytes)
        for task in tasks
    )


def check_inventory(data: bytes, what: str) -> None:
    """See that a folder is of a version that is known.

    Raises:
        ImageError: it is of another, or damaged.
    """
    if data[: len(_MAGIC_INVENTORY)] != _MAGIC_INVENTORY:
        raise ImageError(
            f"{what} does not begin as an inventory of CRIU's: give a folder that `criu dump` made"
        )
    try:
        messages = list(frames(data, len(_MAGIC_INVENTORY)))
        fields = dict(decode(messages[0])) if messages else {}
    except MessageError as error:
        raise ImageError(f"{what} is damaged: {error}: take another copy") from None
    said = fields.get(1)
    version = said if isinstance(said, int) else 0
    if version == VERSION:
        return
    if version > VERSION:
        raise ImageError(
            f"{what} says image version {version}, and only {VERSION} is known here: a newer CRIU"
            " made it; upgrade lazyrestore, or dump with CRIU 4"
        )
    raise ImageError(
        f"{what} says image version {version}, and only {VERSION} is known here: dump again with"
        " CRIU 1.7 or newer"
    )


def parse_tree(files: Mapping[str, bytes], where: str) -> list[Task]:
    """The tasks, parents before their children, as pstree.img has them; without their memory.

    Args:
        files: the folder's small files by their names.
        where: the folder, for messages.

    Raises:
        ImageError: an image is missing, damaged, or of another version.
    """
    data = files.get(PSTREE)
    if data is None:
        raise ImageError(f"{where} has no {PSTREE}: the dump was not completed; dump again")
    what = f"{where}/{PSTREE}"
    tasks = []
    for message in _messages(data, _MAGIC_PSTREE, what):
        pid, ppid, threads = _parse_task(message, what)
        comm, is_zombie = _parse_core(files, pid, where)
        tasks.append(Task(pid, ppid, comm, len(threads), is_zombie))
    if not tasks:
        raise ImageError(f"{what} has no processes: the dump was not completed; dump again")
    return tasks


def _messages(data: bytes, magic: bytes, what: str) -> Sequence[bytes]:
    if data[: len(magic)] != magic:
        raise ImageError(
            f"{what} does not begin as that image of CRIU's does: take another copy, or dump again"
        )
    try:
        return list(frames(data, len(magic)))
    except MessageError as error:
        raise ImageError(f"{what} is damaged: {error}: take another copy") from None


def _parse_task(message: bytes, what: str) -> tuple[int, int, list[int]]:
    numbers: dict[int, int] = {}
    threads: list[int] = []
    try:
        for number, value in decode(message):
            if number == 5:
                threads += decode_numbers(value)
            elif isinstance(value, int):
                numbers[number] = value
    except MessageError as error:
        raise ImageError(f"{what} is damaged: {error}: take another copy") from None
    if not 0 < numbers.get(1, 0) < 1 << 31:
        raise ImageError(f"{what} is damaged: a process has no number: take another copy")
    return numbers[1], numbers.get(2, 0), threads


def _parse_core(files: Mapping[str, bytes], pid: int, where: str) -> tuple[str, bool]:
    """Name of a task, and whether it had ended."""
    name = f"core-{pid}.img"
    data = files.get(name)
    if data is None:
        raise ImageError(f"{where} has no {name}: the dump was not completed; dump again")
    what = f"{where}/{name}"
    try:
        for message in _messages(data, _MAGIC_CORE, what):
            for number, value in decode(message):
                if number == 3 and isinstance(value, bytes):
                    fields = dict(decode(value))
                    comm = fields.get(6, b"")
                    text = comm.decode(errors="replace") if isinstance(comm, bytes) else ""
                    return text, fields.get(1) in _DEAD_STATES
    except MessageError as error:
        raise ImageError(f"{what} is damaged: {error}: take another copy") from None
    return "", False
