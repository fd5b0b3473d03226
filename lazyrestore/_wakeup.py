"""What waking a thread costs on this machine, and what to set where that is most of a fault.

A demand fault wakes two threads: the pager, and then who touched the page. Where a core that has
nothing to do halts, that costs more than all else; in a virtual machine much more.
"""

from __future__ import annotations

import dataclasses
import os
import re

from ._native import ffi, lib

_HALT_POLL = "/sys/module/haltpoll/parameters/guest_halt_poll_ns"
_LATENCY_DEVICE = "/dev/cpu_dma_latency"
_IDLE_DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver"
_POLL_NS = 200_000

# What the rest of a fault costs, and no more: a COPY of a page, two system calls, two switches.
_REST_OF_A_FAULT_US = 6.0


@dataclasses.dataclass(frozen=True, slots=True)
class Wakeup:
    """What was measured, in microseconds from waking a thread to its running (medians).

    Attributes:
        one_core_us: both threads on one core.
        idle_core_us: each on a core that is idle, and may halt; None: there is only one.
        busy_core_us: each on a core that something of the lowest priority keeps busy; None: there
            is only one, or that priority is refused.
        guest_halt_poll_ns: for how long this guest's cores poll before they halt; None: they
            cannot.
        idle_driver: of the kernel, what idle cores do; None: there is none.
        has_latency_device: True if there is a /dev/cpu_dma_latency.
        is_virtual: True in a virtual machine.
        core: number of one that this process may use.
    """

    one_core_us: float
    idle_core_us: float | None
    busy_core_us: float | None
    guest_halt_poll_ns: int | None
    idle_driver: str | None
    has_latency_device: bool
    is_virtual: bool
    core: int

    @property
    def dominates(self) -> bool:
        """If waking idle cores is most of what a demand fault takes."""
        if self.idle_core_us is None:
            return False
        return 2 * (self.idle_core_us - self.one_core_us) > _REST_OF_A_FAULT_US


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One way to make waking cheaper.

    Attributes:
        command: to type.
        effect: what it does, and what it costs.
        undo: what takes it back.
    """

    command: str
    effect: str
    undo: str


def measure(limit_s: float = 0.12) -> Wakeup:
    """Measure it, within about `limit_s` seconds, and read the settings."""
    cost = ffi.new("struct lr_wakeup_cost *")
    lib.lr_wakeup_cost(int(limit_s * 1e9), cost)
    poll = _read(_HALT_POLL)
    driver = _read(_IDLE_DRIVER)
    return Wakeup(
        one_core_us=cost.one_core_ns / 1000,
        idle_core_us=cost.two_cores_ns / 1000 or None,
        busy_core_us=cost.kept_awake_ns / 1000 or None,
        guest_halt_poll_ns=int(poll) if poll is not None and poll.isdecimal() else None,
        idle_driver=driver if driver not in (None, "", "none") else None,
        has_latency_device=os.path.exists(_LATENCY_DEVICE),
        is_virtual=_is_virtual(),
        core=max(os.sched_getaffinity(0)),
    )


def settings(found: Wakeup | None) -> tuple[Setting, ...]:
    """What to set, the narrowest first; nothing where waking does not dominate."""
    if found is None or not found.dominates:
        return ()
    ways = []
    if found.has_latency_device and found.idle_driver is not None:
        ways.append(
            Setting(
                f"sudo sh -c 'exec 3>{_LATENCY_DEVICE} && printf 0 >&3 && exec COMMAND'",
                "no core halts while COMMAND runs: idle cores poll, and use power",
                "nothing to do: it ends with COMMAND",
            )
        )
    if found.guest_halt_poll_ns is not None and found.guest_halt_poll_ns < _POLL_NS:
        ways.append(
            Setting(
                f"echo {_POLL_NS} | sudo tee {_HALT_POLL}",
                f"cores of this guest poll for up to {_POLL_NS // 1000} µs before they halt, until"
                " the next boot; costs processor time when idle threads wake often",
                f"echo {found.guest_halt_poll_ns} | sudo tee {_HALT_POLL}",
            )
        )
    ways.append(
        Setting(
            f"taskset -c {found.core} COMMAND",
            "all threads of COMMAND share one core, so none has to wake another core; costs the"
            " other cores",
            "nothing to do: it ends with COMMAND",
        )
    )
    return tuple(ways)


def _is_virtual() -> bool:
    flags = re.search(r"^flags\s*:(.*)$", _read("/proc/cpuinfo") or "", re.MULTILINE)
    return flags is not None and "hypervisor" in flags[1].split()


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
