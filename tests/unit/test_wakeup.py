"""What is said of waking threads: only what helps on that machine, and how to take it back."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from lazyrestore import _wakeup
from lazyrestore._wakeup import Wakeup, settings

SLOW = Wakeup(
    one_core_us=1.8,
    idle_core_us=17.0,
    busy_core_us=11.0,
    guest_halt_poll_ns=0,
    idle_driver="haltpoll",
    has_latency_device=True,
    is_virtual=True,
    core=3,
)


def commands(found: Wakeup) -> str:
    return "\n".join(setting.command for setting in settings(found))


def test_where_it_dominates() -> None:
    """The narrowest first, each with what takes it back"""
    found = settings(SLOW)
    assert [setting.command.split()[0] for setting in found] == ["sudo", "echo", "taskset"]
    assert all(setting.undo for setting in found)
    assert "taskset -c 3 " in found[2].command


def test_where_it_does_not() -> None:
    """Nothing to set: waking is cheap, or there is one core, or it was not measured"""
    assert settings(dataclasses.replace(SLOW, idle_core_us=3.2)) == ()
    assert settings(dataclasses.replace(SLOW, idle_core_us=None)) == ()
    assert settings(None) == ()


def test_only_what_is_there() -> None:
    """No command that names a file which this machine has not got, or that has no effect"""
    assert "guest_halt_poll_ns" not in commands(dataclasses.replace(SLOW, guest_halt_poll_ns=None))
    assert "cpu_dma_latency" not in commands(dataclasses.replace(SLOW, has_latency_device=False))
    # Without a driver idle cores halt whatever that device says.
    assert "cpu_dma_latency" not in commands(dataclasses.replace(SLOW, idle_driver=None))
    # It is set already.
    set_already = dataclasses.replace(SLOW, guest_halt_poll_ns=200_000)
    assert "guest_halt_poll_ns" not in commands(set_already)


def test_undo_puts_the_value_back() -> None:
    """Not a default, but what was there"""
    before = dataclasses.replace(SLOW, guest_halt_poll_ns=50_000)
    setting = next(s for s in settings(before) if "guest_halt_poll_ns" in s.command)
    assert setting.undo.startswith("echo 50000 |")


def test_measured_here() -> None:
    """Quickly, and what is said of files is so"""
    found = _wakeup.measure(0.03)
    assert found.one_core_us > 0
    cores = len(os.sched_getaffinity(0))
    assert (found.idle_core_us is None) == (cores == 1)
    poll = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")
    expected = int(poll.read_text()) if poll.exists() else None
    assert found.guest_halt_poll_ns == expected
    assert found.core in os.sched_getaffinity(0)


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/cpu_dma_latency"),
    reason="only root can open /dev/cpu_dma_latency, where it is",
)
def test_the_command_for_one_command_works() -> None:
    """As it stands there, for who is root already"""
    command = settings(SLOW)[0].command.removeprefix("sudo ")
    assert "cpu_dma_latency" in command
    shows = "readlink /proc/self/fd/3"
    done = subprocess.run(
        ["sh", "-c", command.replace("COMMAND", shows)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "/dev/cpu_dma_latency"), done
