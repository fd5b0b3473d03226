"""The machine, as far as figures depend on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import lazyrestore

_FILES = {
    "guest_halt_poll_ns": "/sys/module/haltpoll/parameters/guest_halt_poll_ns",
    "halt_poll_ns": "/sys/module/kvm/parameters/halt_poll_ns",
    "idle_driver": "/sys/devices/system/cpu/cpuidle/current_driver",
    "idle_governor": "/sys/devices/system/cpu/cpuidle/current_governor",
    "thp": "/sys/kernel/mm/transparent_hugepage/enabled",
}


def _field(path: str, name: str) -> str | None:
    with open(path, encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


def describe() -> dict[str, object]:
    """Processor, memory, kernel, versions, and settings that matter."""
    found: dict[str, object] = {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in (_field("/proc/cpuinfo", "flags") or "").split(),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "lazyrestore": lazyrestore.__version__,
    }
    for name, path in _FILES.items():
        file = Path(path)
        try:
            found[name] = file.read_text(encoding="utf-8").strip()
        except OSError:
            found[name] = None
    return found
