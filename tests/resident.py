"""How much memory a process has had, for the tests of what is bounded; children import it too."""

from __future__ import annotations


def _status_bytes(key: str) -> int:
    with open("/proc/self/status", encoding="utf-8") as lines:
        value = next(line for line in lines if line.startswith(key + ":"))
    return int(value.split()[1]) << 10


def resident() -> int:
    """What this process has resident now, in bytes."""
    return _status_bytes("VmRSS")


def resident_peak() -> int:
    """The most that this process has had resident, in bytes.

    Not ru_maxrss: Linux lets a program begin with the peak of the process that started it, so that
    a bound would fail, and a growth would not show, after whatever that one has done before.
    """
    return _status_bytes("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew, from what is resident now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
