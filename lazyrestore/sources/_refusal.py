"""Why a process cannot be frozen: what /proc says about it, and what to do."""

from __future__ import annotations

import os

from lazyrestore._native import lib

_YAMA = "/proc/sys/kernel/yama/ptrace_scope"


def explain(pid: int, code: int, os_error: int, timeout: float) -> str | None:
    """What to tell about the code (LR_ERR_*) that freezing `pid` gave; None: nothing better."""
    if code == lib.LR_ERR_NOT_FOUND:
        return not_found(pid)
    if code == lib.LR_ERR_ARGUMENT:
        if pid == os.getpid():
            return f"process {pid} is this one and cannot freeze itself: dump a buffer instead"
        name = process_name(pid)
        return f"process {pid}{name} is a kernel thread: it has no memory of its own to dump"
    if code == lib.LR_ERR_GONE:
        return _gone(pid)
    if code == lib.LR_ERR_TIMEOUT:
        return _timeout(pid, timeout)
    if code == lib.LR_ERR_PERMISSION:
        return f"not allowed to read process {pid}{process_name(pid)}: {_refused(pid, os_error)}"
    return None


def read_status(path: str) -> dict[str, str]:
    """The fields of a /proc/.../status file; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            fields = (line.partition(":") for line in file)
            return {key: value.strip() for key, _, value in fields}
    except OSError:
        return {}


def process_name(pid: int) -> str:
    """Its name, as " (cat)"; nothing where it has ended."""
    name = read_status(f"/proc/{pid}/status").get("Name")
    return f" ({name})" if name else ""


def not_found(pid: int) -> str:
    """What to say where there is no process of a number."""
    process = read_status(f"/proc/{pid}/status").get("Tgid", str(pid))
    if process != str(pid):
        return f"{pid} is a thread of process {process}: give that number"
    return f"there is no process {pid}: `ps -e` lists those that run"


def _gone(pid: int) -> str:
    if read_status(f"/proc/{pid}/status").get("State", "").startswith("Z"):
        return (
            f"process {pid}{process_name(pid)} has ended, or its main thread has: its memory can no"
            " longer be read; start it again"
        )
    return f"process {pid} ended before it could be read: start it again"


def _tasks(pid: int) -> list[dict[str, str]]:
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [read_status(f"/proc/{pid}/task/{tid}/status") for tid in tids]


def _timeout(pid: int, timeout: float) -> str:
    message = f"process {pid}{process_name(pid)} could not be stopped within {timeout:g} s"
    for task in _tasks(pid):
        if task.get("State", "").startswith("D"):
            return (
                f"{message}: its thread {task.get('Pid')} ({task.get('Name')}) waits in the kernel"
                " and cannot be interrupted (for a device, a network file system, or a vfork"
                " child): try again when that is over"
            )
    return f"{message}: try again, or allow more time"


def _refused(pid: int, os_error: int) -> str:
    status = read_status(f"/proc/{pid}/status")
    if not status:
        return f"{os.strerror(os_error)}: /proc hides it; be its owner or root"
    for task in [status, *_tasks(pid)]:
        tracer = task.get("TracerPid", "0")
        if tracer != "0":
            name = process_name(int(tracer))
            return (
                f"process {tracer}{name} traces it already, and there can be one only: end that"
                " one (a debugger, strace, another dump), and try again"
            )
    uids = status.get("Uid", "").split()
    if os.geteuid() != 0 and uids and set(uids) != {str(os.geteuid())}:
        return f"it belongs to user {uids[0]}, this is user {os.geteuid()}: be that user or root"
    scope = _yama_scope()
    if scope == 3:
        return "kernel.yama.ptrace_scope is 3, which forbids it to all until the next boot"
    if scope == 2 or (scope == 1 and os.geteuid() != 0):
        remedy = "be root, or set kernel.yama.ptrace_scope to 0 (sysctl, as root)"
        if scope == 1:
            remedy += ", or start it from the process that dumps it"
        return f"kernel.yama.ptrace_scope is {scope}: {remedy}"
    return (
        f"{os.strerror(os_error)}: it has rights that this process lacks, or protects its memory"
        " (prctl PR_SET_DUMPABLE), or a container forbids ptrace: be root with CAP_SYS_PTRACE"
    )


def _yama_scope() -> int:
    try:
        with open(_YAMA, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
