"""`lazyrestore restore --lazy IMAGE -- COMMAND`: a program with a service beside it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from cli_support import COMMAND, TIMEOUT_S, Image, environment, finish, run, start, wait_until
from fork_support import FENCES

pytestmark = pytest.mark.uffd

# Says what it gets, until it is told to end by SIGTERM.
LISTENER = """
import os, signal, sys
def got(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(5)
for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH", "TSTP", "CONT"):
    signal.signal(getattr(signal, "SIG" + name), got)
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""
PYTHON = (sys.executable, "-c")


_started: list[subprocess.Popen[bytes]] = []


def _late(*_: object) -> NoReturn:
    raise TimeoutError("the test took too long")


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Whatever a test waits for, it does not wait for good, and leaves nothing running."""
    before = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, 2 * TIMEOUT_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    while _started:
        child = _started.pop()
        child.kill()
        child.wait()


def serve(image: Image, *command: object, **options: object) -> subprocess.Popen[bytes]:
    child = start("restore", "--lazy", image.path, "--", *command, **options)
    _started.append(child)
    return child


def begin_listener(
    image: Image, command: tuple[object, ...] = (*PYTHON, LISTENER)
) -> tuple[subprocess.Popen[bytes], int]:
    child = serve(image, *command)
    assert child.stdout is not None
    word, pid = child.stdout.readline().split()
    assert word == b"ready"
    return child, int(pid)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_it_ends_as_the_program_does(small: Image, script: str, code: int) -> None:
    result = run("restore", "--lazy", small.path, "--", "sh", "-c", script)
    assert (result.code, result.out, result.err) == (code, "", ""), result


def test_the_program_has_the_regions(small: Image, tmp_path: Path) -> None:
    script = """
        import hashlib, json, lazyrestore
        with lazyrestore.attach() as found:
            print(json.dumps({name: hashlib.sha256(region).hexdigest()
                              for name, region in found.items()}))
    """
    import hashlib

    result = run("restore", "--lazy", small.path, "--", *PYTHON, textwrap.dedent(script)).ok()
    expected = {
        name: hashlib.sha256(content).hexdigest() for name, content in small.expected.items()
    }
    assert json.loads(result.out) == expected


def test_standard_input_and_output_are_the_programs(small: Image) -> None:
    given = bytes(range(256)) * 1000
    child = serve(small, "cat", stdin=subprocess.PIPE)
    result = finish(child, given)
    assert (result.code, result.err) == (0, ""), result.err
    assert result.out_bytes == given


def test_signals_and_limits_are_as_they_were(small: Image) -> None:
    """No shell in between: some unblock all signals"""
    child = start(
        *("-c", 'ulimit -Sn 333; exec "$@"', "sh", *COMMAND, "restore", "--lazy", small.path),
        *("--", "cat", "/proc/self/status", "/proc/self/limits"),
        command=("sh",),
    )
    found = finish(child).ok().out
    assert re.search(r"^Max open files +333 ", found, re.MULTILINE)
    assert re.search(r"^SigBlk:\t0+$", found, re.MULTILINE)
    ignored = re.search(r"^SigIgn:\t(\w+)$", found, re.MULTILINE)
    assert ignored is not None
    # But for two that are the C library's own, and that its posix_spawn has ignored.
    assert int(ignored[1], 16) & ~(3 << 31) == 0


@pytest.mark.parametrize("name", ["INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT"])
def test_signals_are_passed_on_once(small: Image, name: str) -> None:
    child, _ = begin_listener(small)
    assert child.stdout is not None
    child.send_signal(getattr(signal, "SIG" + name))
    assert child.stdout.readline().decode().strip() == "SIG" + name
    child.send_signal(signal.SIGTERM)
    result = finish(child)
    assert (result.code, result.out.split()) == (5, ["SIGTERM"]), result


def test_nothing_is_left(small: Image, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    script = """
        import os, stat, lazyrestore
        path = os.environ["LAZYRESTORE_SOCKET"]
        print(os.path.dirname(os.path.dirname(path)))
        print(oct(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)))
        print(oct(stat.S_IMODE(os.stat(path).st_mode)))
    """
    result = run(
        *("restore", "--lazy", small.path, "--", *PYTHON, textwrap.dedent(script)),
        env=environment({"TMPDIR": str(folder)}),
    ).ok()
    assert result.out.split() == [str(folder), "0o700", "0o600"]
    assert list(folder.iterdir()) == []


def test_a_temporary_folder_whose_path_is_long_is_not_taken(small: Image, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    result = run(
        *("restore", "--lazy", small.path, "--", "sh", "-c", "echo $LAZYRESTORE_SOCKET"),
        env=environment({"TMPDIR": str(folder)}),
    ).ok()
    assert result.out.startswith("/tmp/lazyrestore-")
    assert not os.path.exists(os.path.dirname(result.out.strip()))


def test_a_program_that_is_not_there(small: Image) -> None:
    result = run("restore", "--lazy", small.path, "--", "no-such-program", "x")
    result.fails(127, "no-such-program", "No such file")
    result = run("restore", "--lazy", small.path, "--", small.path)
    result.fails(126, str(small.path), "Permission denied")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--touch", "first"), "--touch"),
        (("--count", "3"), "--count"),
        (("--json",), "--json"),
        (("--region", "data"), "--region"),
        (("--at-original-address",), "--at-original-address"),
        (("--output", "x"), "--output"),
        (("--record", "x.ws", "--prefetch", "all"), "--record"),
        (("--working-set", "x.ws", "--prefetch", "none"), "--prefetch none"),
    ],
)
def test_options_that_make_no_sense_together(
    small: Image, options: tuple[str, ...], says: str
) -> None:
    result = run("restore", "--lazy", small.path, *options, "--", "touch", small.path)
    assert result.code == 2, result
    assert says in result.err


def test_a_command_needs_lazy(small: Image) -> None:
    run("restore", small.path, "--", "true").fails(2, "'true'", "--lazy")


def test_an_image_that_cannot_be_opened(tmp_path: Path) -> None:
    run("restore", "--lazy", tmp_path / "nothing", "--", "true").fails(1, "No such file")
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    run("restore", "--lazy", tmp_path / "junk", "--", "true").fails(3, "not a lazyrestore image")


def test_what_is_touched_is_recorded_and_loaded_first(small: Image, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded.ws"
    script = 'import lazyrestore; lazyrestore.attach()["data"].populate(0, 40000)'
    run(
        *("restore", "--lazy", small.path, "--record", recorded),
        *("--", *PYTHON, script),
    ).ok()
    import lazyrestore

    found = lazyrestore.WorkingSet.load(recorded)
    assert len(found) == 3
    script = """
        import lazyrestore
        found = lazyrestore.attach()
        assert found.wait(60)
        print(found.state)
    """
    result = run(
        *("restore", "--lazy", small.path, "--working-set", recorded),
        *("--", *PYTHON, textwrap.dedent(script)),
    ).ok()
    assert result.out == "complete\n"


def test_what_cannot_be_loaded_is_said(small: Image) -> None:
    script = f"""
        import faulthandler, os, lazyrestore
        found = lazyrestore.attach()
        os.truncate({str(small.path)!r}, 4096)
        found["data"][0]
    """
    result = run("restore", "--lazy", small.path, "--", *PYTHON, textwrap.dedent(script))
    assert result.code - 128 in FENCES, result
    assert "region 'data' at offset 0 cannot be loaded" in result.err


def test_the_program_outlives_a_killed_service_with_what_it_has(
    small: Image, tmp_path: Path
) -> None:
    """What is missing then is fenced: never zeros, never a hang."""
    script = """
        import ctypes, os, sys, lazyrestore
        from lazyrestore.errors import RestoreError
        found = lazyrestore.attach(deadline=0.3)
        region = found["data"]
        first = region[:8192]
        print("ready", os.getpid(), flush=True)
        try:
            found.wait()
        except Exception as error:
            print(type(error).__name__)
        assert region[:8192] == first
        try:
            region.populate()
        except RestoreError:
            print(found.state, flush=True)
    """
    child, _ = begin_listener(small, (*PYTHON, textwrap.dedent(script)))
    child.kill()
    assert child.stdout is not None
    assert child.stdout.read().split() == [b"RemoteError", b"fenced"]
    finish(child)


def test_a_program_that_goes_on_in_the_background_does_not_hold_it_up(small: Image) -> None:
    child = serve(small, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    result = finish(child).ok()
    os.kill(int(result.out), signal.SIGKILL)


class Terminal:
    """A shell's part: a session with a terminal, and this command as its job in the foreground."""

    SHELL = """
        import os, signal, sys
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        def foreground(group):
            os.tcsetpgrp(0, group)
        job = os.posix_spawn(sys.executable, sys.argv[1:], os.environ, setpgroup=0,
                             setsigdef=[signal.SIGTTOU])
        foreground(job)
        while True:
            _, status = os.waitpid(job, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            foreground(os.getpgrp())
            print("stopped", flush=True)
            if input() != "fg":
                break
            foreground(job)
            os.killpg(job, signal.SIGCONT)
        foreground(os.getpgrp())
        print("ended", os.waitstatus_to_exitcode(status), flush=True)
    """

    def __init__(self, *arguments: object) -> None:
        shell = textwrap.dedent(self.SHELL)
        command = [sys.executable, "-c", shell, *COMMAND, *map(str, arguments)]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, environment())
        self.text = b""

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.text:
            assert time.monotonic() < deadline, (text, self.text)
            try:
                self.text += os.read(self.fd, 4096)
            except OSError:
                assert text in self.text, (text, self.text)

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def test_ctrl_c_works_once(small: Image) -> None:
    terminal = Terminal("restore", "--lazy", small.path, "--", *PYTHON, LISTENER)
    terminal.wait_for(b"ready")
    terminal.wait_for(b"\n")
    terminal.type(b"\x03")
    terminal.wait_for(b"SIGINT")
    terminal.type(b"\x1c")
    terminal.wait_for(b"SIGQUIT")
    job = int(terminal.text.split(b"ready ")[1].split()[0])
    os.kill(job, signal.SIGTERM)
    terminal.wait_for(b"ended 5")
    assert terminal.text.count(b"SIGINT") == 1, terminal.text
    assert terminal.text.count(b"SIGQUIT") == 1, terminal.text
    terminal.close()


def test_ctrl_z_stops_both_and_fg_lets_them_go_on(small: Image) -> None:
    script = """
        import lazyrestore, os, sys
        found = lazyrestore.attach()
        print("ready", os.getpid(), flush=True)
        for line in sys.stdin:
            print("sum", sum(found["data"][:]), flush=True)
    """
    expected = b"sum %d" % sum(small.expected["data"])
    terminal = Terminal("restore", "--lazy", small.path, "--", *PYTHON, textwrap.dedent(script))
    terminal.wait_for(b"ready")
    terminal.type(b"\x1a")
    terminal.wait_for(b"stopped")
    terminal.type(b"fg\n")
    terminal.type(b"\n")
    terminal.wait_for(expected)
    terminal.type(b"\x04")
    terminal.wait_for(b"ended 0")
    terminal.close()


def test_a_program_that_ignores_ctrl_z_is_served_on(small: Image) -> None:
    script = """
        import lazyrestore, os, signal, sys
        def got(number, frame):
            print("sum", sum(lazyrestore.attach()["data"][:]), flush=True)
        signal.signal(signal.SIGTSTP, got)
        print("ready", os.getpid(), flush=True)
        sys.stdin.read()
    """
    terminal = Terminal("restore", "--lazy", small.path, "--", *PYTHON, textwrap.dedent(script))
    terminal.wait_for(b"ready")
    terminal.type(b"\x1a")
    terminal.wait_for(b"sum %d" % sum(small.expected["data"]))
    terminal.type(b"\x04")
    terminal.wait_for(b"ended 0")
    terminal.close()


def test_many_programs_beside_each_other(small: Image) -> None:
    script = 'import lazyrestore; print(sum(lazyrestore.attach()["data"][:]))'
    children = [serve(small, *PYTHON, script) for _ in range(4)]
    for child in children:
        assert int(finish(child).ok().out) == sum(small.expected["data"])


def test_a_service_that_fails_takes_the_program_with_it(small: Image) -> None:
    """Rather than let it wait for pages that do not come."""
    script = """
        import sys
        from lazyrestore._serve import service
        def fail(*_, **__):
            raise RuntimeError("a bug")
        service.Service.add_listener = fail
        from lazyrestore.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    child = start(
        *(*PYTHON, textwrap.dedent(script)),
        *("restore", "--lazy", small.path, "--", "sleep", "1000"),
        command=(),
    )
    result = finish(child)
    assert result.code == 1, result
    assert "a bug" in result.err


def test_stops_that_others_send_do_not_stop_the_service(small: Image) -> None:
    script = """
        import lazyrestore, os, signal, sys
        found = lazyrestore.attach()
        print("ready", os.getpid(), flush=True)
        for line in sys.stdin:
            print(sum(found["data"][:]), flush=True)
    """
    child = serve(small, *PYTHON, textwrap.dedent(script), stdin=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    pid = int(child.stdout.readline().split()[1])
    before = _sleeps(child.pid)
    os.kill(pid, signal.SIGSTOP)
    wait_until(
        "it is stopped",
        lambda: Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T",
    )
    wait_until("it was noticed", lambda: _sleeps(child.pid) > before)
    os.kill(pid, signal.SIGCONT)
    child.stdin.write(b"\n")
    child.stdin.flush()
    assert int(child.stdout.readline()) == sum(small.expected["data"])
    result = finish(child)
    assert result.code == 0, result


def _sleeps(pid: int) -> int:
    """How often its main thread has gone to sleep, or has been stopped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
