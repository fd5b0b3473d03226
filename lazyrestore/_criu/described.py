"""lazyrestore.json: what an image of processes says of them, for people and for a restore."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lazyrestore.errors import ImageError

from .inventory import Task


def parse_description(data: bytes, what: str) -> tuple[str, int, tuple[Task, ...]]:
    """The version of CRIU, the root's number, and the tasks.

    Raises:
        ImageError: it is not what `folder.describe` makes.
    """
    try:
        said = json.loads(data)
        tasks = tuple(map(_parse_task, said["tree"]))
        version, root = said["criu"], said["root"]
        if not isinstance(version, str) or type(root) is not int:
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ImageError(f"{what} is damaged: take another copy") from None
    return version, root, tasks


def _parse_task(said: Mapping[str, object]) -> Task:
    numbers = [said[key] for key in ("pid", "ppid", "threads", "bytes")]
    comm = said["comm"]
    if not isinstance(comm, str) or not all(type(number) is int for number in numbers):
        raise TypeError
    pid, ppid, threads, nbytes = (int(str(number)) for number in numbers)
    return Task(pid, ppid, comm, threads, bool(said["zombie"]), nbytes)
