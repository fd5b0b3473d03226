"""The processes of a tree, as /proc shows them, before and while CRIU holds them.

What matters most: a process that is being lazily restored lets CRIU read its missing pages as if
they had never been, and the next restore would make them zeros. CRIU refuses whoever holds a
userfaultfd, but a process that was restored by CRIU does not hold its own. So the mappings are
looked at here: those that are registered with a userfaultfd say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from lazyrestore.errors import ProcessError
from lazyrestore.sources import _smaps
from lazyrestore.sources._refusal import not_found, process_name, read_status

__all__ = ["check_root", "refuse_incomplete", "refuse_traced", "tree"]


def check_root(pid: int) -> None:
    """ProcessError for what can be seen to be no root of a tree to dump."""
    status = read_status(f"/proc/{pid}/status")
    if status.get("Tgid") != str(pid):
        raise ProcessError(not_found(pid))
    if status.get("State", "").startswith(("Z", "X")):
        raise ProcessError(f"process {pid} has ended: there is nothing of it to dump")
    if "VmSize" not in status:
        raise ProcessError(
            f"process {pid}{process_name(pid)} is a kernel thread: there is nothing of it to dump"
        )
    own = os.getpid()
    while own:
        if own == pid:
            what = "this one" if pid == os.getpid() else "above this one"
            raise ProcessError(
                f"process {pid}{process_name(pid)} is {what}: a tree is dumped from outside of it:"
                " start the dump elsewhere (in another terminal, say)"
            )
        own = int(read_status(f"/proc/{own}/status").get("PPid", "0"))


def refuse_traced(pid: int) -> None:
    """ProcessError if a thread of the tree has a tracer, which CRIU wants to be."""
    for one in tree(pid):
        for thread in _threads(one):
            tracer = int(read_status(f"/proc/{one}/task/{thread}/status").get("TracerPid", "0"))
            if tracer:
                raise ProcessError(
                    f"process {tracer}{process_name(tracer)} traces process"
                    f" {one}{process_name(one)}, and there can be one only: end that one (a"
                    " debugger, strace, another dump), and try again"
                )


def refuse_incomplete(pid: int) -> None:
    """ProcessError if pages of the tree may be missing until a pager brings them.

    While the tree is frozen, that is certain; before, it saves the freeze.
    """
    for one in tree(pid):
        for mapping in _mappings(one):
            if mapping.may_wait_for_pager:
                what = "wait until its restore is complete (`lazyrestore top` shows it)"
                if _holds_userfaultfd(one):
                    what = "have it close its sessions, or wait until its restore is complete"
                raise ProcessError(
                    f"process {one}{process_name(one)} is itself being lazily restored: pages of"
                    f" {mapping.label} may not be there yet, and would be zeros in the image:"
                    f" {what}, and dump again"
                )


def _holds_userfaultfd(pid: int) -> bool:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[userfaultfd]":
                    return True
    return False


def tree(pid: int) -> Iterator[int]:
    """The process and all its descendants that are there now."""
    pending = [pid]
    while pending:
        one = pending.pop()
        yield one
        for thread in _threads(one):
            with suppress(OSError), open(f"/proc/{one}/task/{thread}/children", "rb") as file:
                pending.extend(int(child) for child in file.read().split())


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _mappings(pid: int) -> Iterator[_smaps.Mapping]:
    """None for one that has ended, or has no memory."""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            yield from _smaps.parse(file)
    except (FileNotFoundError, ProcessLookupError):
        return
    except OSError as error:
        raise ProcessError(
            f"cannot list the memory of process {pid}: {error.strerror}: be root"
        ) from error
