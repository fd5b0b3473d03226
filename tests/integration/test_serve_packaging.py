"""What packaging/ has: units, a seccomp profile, a container's first process."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import COMMAND, environment, run
from keeper_support import Kept
from process_support import in_child
from restore_support import PACKAGE_HOME, write_image
from serve_peer import Monitor
from serve_support import LIMIT_S

PACKAGING = PACKAGE_HOME / "packaging"
SYSTEMD, DOCKER = PACKAGING / "systemd", PACKAGING / "docker"
PAGES = 64
LAYOUT = "drzd" * (PAGES // 4)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with a `lazyrestore` in it, as the package's script is."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "lazyrestore"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    script.chmod(0o755)
    return script


def test_systemd_takes_the_units(installed: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    names = {}
    for unit in sorted(SYSTEMD.glob("*.service")) + sorted(SYSTEMD.glob("*.socket")):
        text = unit.read_text()
        assert text.count("/usr/bin/lazyrestore") == (unit.suffix == ".service")
        name = unit.name.replace("@", "@state")
        (tmp_path / name).write_text(text.replace("/usr/bin/lazyrestore", str(installed)))
        names[name] = text
    assert len(names) == 3
    # Of a user's, for those need nothing of what runs here.
    result = subprocess.run(
        [analyze, "--man=no", "verify", *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    mine = [line for line in result.stderr.splitlines() if "lazyrestore" in line]
    if result.returncode and not mine:
        pytest.skip(f"systemd-analyze does not work here: {result.stderr.strip()[:200]}")
    assert (result.returncode, mine) == (0, [])


def command_of(unit: str) -> list[str]:
    text = (SYSTEMD / unit).read_text().replace("\\\n", " ")
    found = re.search(r"^ExecStart=/usr/bin/lazyrestore (.*)$", text, re.MULTILINE)
    assert found is not None
    return [word for word in shlex.split(found[1]) if word != "$LAZYRESTORE_OPTIONS"]


@pytest.mark.uffd
@in_child(120)
def test_the_units_commands_serve(tmp_path: Path) -> None:
    expected = write_image(tmp_path / "state.lzr", {"memory": LAYOUT})["memory"]
    command = command_of("lazyrestore-serve.service")
    places = {"/var/lib/lazyrestore": str(tmp_path), "/run/lazyrestore": str(tmp_path)}
    assert command[0] == "serve"
    with (
        Kept(None, *(places.get(word, word) for word in command[1:])) as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(tmp_path / "state.sock")
        assert monitor.read_all() == expected
        assert service.stop() == 0
    one = command_of("lazyrestore@.service")
    assert one[:2] == ["serve", "/var/lib/lazyrestore/%i.lzr"]
    image = str(tmp_path / "state.lzr")
    with Kept(tmp_path / "s", image, *one[2:]) as service:
        assert service.stop() == 0


def keys(unit: str) -> dict[str, str]:
    lines = (SYSTEMD / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line))


@pytest.mark.parametrize("unit", ["lazyrestore@.service", "lazyrestore-serve.service"])
def test_a_keeper_survives_the_end_of_its_unit(unit: str) -> None:
    found = keys(unit)
    assert found["KillMode"] == "process"
    assert (found["Type"], found["NotifyAccess"]) == ("notify", "all")
    # Each instance would have a network namespace, and so names, of its own.
    assert "PrivateNetwork" not in found
    command = command_of(unit)
    grace = float(command[command.index("--grace") + 1])
    assert float(found["TimeoutStopSec"].removesuffix("s")) > grace


def numbers_of_calls() -> dict[str, int]:
    """Of this machine, from the C library's headers."""
    source = "#include <sys/syscall.h>\n"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to ask for the numbers of system calls")
    text = subprocess.run(
        [compiler, "-E", "-dM", "-"], input=source, capture_output=True, text=True, check=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"#define __NR_(\w+) (\d+)\n", text)}


# Allows what it is given and fails all else with EPERM; then it becomes another program.
_CONFINE = """
import ctypes, json, os, struct, sys
numbers = json.loads(sys.argv[1])
code = [(0x20, 0, 0, 0)]
for number in numbers:
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x7FFF0000)]
code += [(0x06, 0, 0, 0x00050001)]
filters = b"".join(struct.pack("HBBI", *line) for line in code)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.c_char_p)]
program = Program(len(code), filters)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program)) == 0, os.strerror(ctypes.get_errno())
assert libc.sethostname(b"x", 1) == -1 and ctypes.get_errno() == 1
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.uffd
@in_child(120)
def test_the_profile_allows_what_a_service_and_its_keeper_do(tmp_path: Path) -> None:
    """Under it a service serves, is killed, and its keeper serves on"""
    profile = json.loads((DOCKER / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    names = [name for rule in profile["syscalls"] for name in rule["names"]]
    assert {rule["action"] for rule in profile["syscalls"]} == {"SCMP_ACT_ALLOW"}
    assert len(names) == len(set(names))
    assert {"userfaultfd", "process_madvise", "pidfd_open", "pidfd_send_signal"} <= set(names)
    known = numbers_of_calls()
    if platform.machine() == "x86_64":
        # Newer than some headers.
        assert {name for name in names if name not in known} <= {"futex_waitv", "epoll_pwait2"}
    numbers = json.dumps([known[name] for name in names if name in known])
    wrap = (sys.executable, "-c", _CONFINE, numbers, *COMMAND)
    expected = write_image(tmp_path / "vm.lzr", {"memory": LAYOUT})["memory"]
    with (
        Kept(tmp_path / "s", tmp_path / "vm.lzr", "--prefetch", "all", command=wrap) as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        service.wait("complete")
        service.wait_for_keeper()
        service.kill_server()
        assert monitor.read_all() == expected
        with Monitor(PAGES) as other:
            other.restore(service.path)
            assert other.read_all() == expected
            assert service.find("error") == []


@pytest.mark.root
@pytest.mark.uffd
@in_child(120)
def test_the_first_process_of_a_container(installed: Path, tmp_path: Path) -> None:
    """In a process namespace of its own: a service that is killed is followed by another"""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    expected = write_image(tmp_path / "vm.lzr", {"memory": LAYOUT})["memory"]
    path = f"{installed.parent}:{os.environ['PATH']}"
    wrap = (unshare, "--pid", "--fork", "--kill-child", "--mount-proc", "sh")
    if subprocess.run([*wrap, "-c", "true"], capture_output=True).returncode:
        pytest.skip("no process namespace can be made here")
    arguments = (tmp_path / "vm.lzr", "--on-error", "log", "--grace", "0")
    with Contained(
        tmp_path / "s",
        *arguments,
        command=(*wrap, str(DOCKER / "entrypoint.sh")),
        env=environment({"PATH": path}),
    ) as service:
        with Monitor(PAGES) as monitor:
            monitor.restore(service.path)
            service.wait("serving")
            first = service.outside(service.wait("listening")["service_pid"])
            service.wait_for_keeper()
            os.kill(first, signal.SIGKILL)
            # The keeper serves, and then the service that was started after it.
            service.wait("taken_over", 2)
            service.wait("keeper_started", 2)
            assert monitor.read(0, 4096) == expected[:4096]
            # Told to end, it leaves the peer to the keeper, and waits for that.
            os.kill(service.first_process(), signal.SIGTERM)
            service.wait("left")
            service.wait("taken_over", 3)
            assert monitor.read_all() == expected
            assert service.process.poll() is None
        assert service.process.wait(LIMIT_S) == 0
        service.wait_until_all_ended()
        said, service.other = "".join(service.other), []
        assert "ended by signal 9: starting another" in said


class Contained(Kept):
    """A service behind the first process of a process namespace."""

    def __init__(self, path: object, *arguments: object, command: tuple[str, ...], **rest: object):
        # It is the script that says "serve".
        super().__init__(path, *arguments, command=("env", *command), verb=(), **rest)

    def first_process(self) -> int:
        """The script, as it is numbered outside."""
        return self.outside(1)

    def outside(self, inside: int) -> int:
        """The number here of a process there."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = re.search(r"^NSpid:\t(.*)$", status, re.MULTILINE)[1].split()
                if len(numbers) > 1 and int(numbers[-1]) == inside:
                    found.append(pid)
        assert len(found) == 1, (inside, found)
        return found[0]


def test_the_dockerfile_names_what_there_is() -> None:
    """It is not built here: that needs Docker's daemon, and a network"""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (PACKAGE_HOME / source).exists(), source
        assert f"!{source}" in ignored, source
    assert "USER 10001" in text
    assert "[metrics]" in text
    assert "\nmetrics = " in (PACKAGE_HOME / "pyproject.toml").read_text()
    arguments = json.loads(re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)[1])
    help_text = run("serve", "--help").out
    for option in filter(lambda word: word.startswith("--"), arguments):
        assert option in help_text
    script = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)[1])[-1]
    assert f"COPY packaging/docker/entrypoint.sh {script}" in text
    assert subprocess.run(["sh", "-n", DOCKER / "entrypoint.sh"]).returncode == 0


def test_what_the_readme_names_is_there() -> None:
    text = (PACKAGING / "README.md").read_text()
    for name in re.findall(r"\b(?:systemd|docker)/[\w@.*-]+\.\w+", text):
        assert list(PACKAGING.glob(name)), name
