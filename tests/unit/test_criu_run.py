"""Running CRIU: what it is given, and what is made of its log."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from lazyrestore._criu.find import Criu
from lazyrestore._criu.run import errors_of, hint_of, plain_lines, start
from lazyrestore.errors import CriuError


@pytest.fixture(autouse=True)
def kept_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs are kept here, not in /tmp"""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def script(tmp_path: Path, text: str) -> Criu:
    path = tmp_path / "criu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Criu(str(path))


def run(tmp_path: Path, text: str, *arguments: str) -> str:
    """What a script in CRIU's place, in its folder, fails with"""
    text = f"cd {tmp_path}\n{text}"
    with pytest.raises(CriuError) as caught:
        start(script(tmp_path, text), "restore", arguments, folder=str(tmp_path)).finish()
    return str(caught.value)


TAKEN = """(00.031788) Creating process using clone3()
(00.032034) Error (criu/cr-restore.c:1230): Can't fork for 28147: File exists
(00.032050) Error (criu/cr-restore.c:2320): Restoring FAILED.
"""
RLIMIT = "Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: not permitted\n"


def test_the_first_error_is_the_reason_and_what_is_always_there_is_not():
    assert errors_of(RLIMIT + TAKEN) == ["Can't fork for 28147: File exists"]
    assert errors_of(RLIMIT) == []
    assert errors_of(
        " 28147: Error (criu/files.c:1): x\npie: 28147: Error (criu/pie/r.c:2): y"
    ) == [
        "x",
        "y",
    ]
    assert plain_lines("criu: unrecognized option '--x'\n\n(00.01) hello\nError (a): b\n") == [
        "criu: unrecognized option '--x'"
    ]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("Can't fork for 28147: File exists", "unshare -p -f --mount-proc"),
        ("Pid 12 do not match expected 13 (task vs. set)", "unshare -p"),
        ("vdso: Unexpected rt vDSO area bounds", "kernels from 6.13 on need CRIU 4.1"),
        ("sockets: Can't get 1:16 opt: Operation not supported", "need CRIU 4.2"),
        ("Task attached to shell terminal. Consider using --shell-job option.", "=--shell-job"),
        ("inet: Connected TCP socket, consider using --tcp-established option.", "tcp-established"),
        ("File usr/bin/x has bad size 12 (expect 13)", "put them back"),
        ("Can't open file opt/x on restore: No such file or directory", "put them back"),
        ("Can't dump file 5 of that type [600] (unknown anon_inode:[userfaultfd])", "userfaultfd"),
        ("The criu itself is within dumped tree.", "from outside"),
        ("inet: Can't bind inet socket (id 3): Address already in use", "same address"),
        ("Can't chose service_fd_base", "ulimit -n"),
        ("something that nobody knows", None),
    ],
)
def test_known_errors_come_with_what_to_do(error, advice):
    hint = hint_of(f"(00.1) Error (criu/x.c:1): {error}\n{RLIMIT}")
    assert (hint is None) == (advice is None), hint
    if advice is not None:
        assert advice in hint


def test_a_failure_is_one_line_with_the_log_kept(tmp_path, kept_logs):
    said = run(tmp_path, f"cat > restore.log <<'E'\n{RLIMIT}{TAKEN}E\nexit 1", "-D", "x")
    assert said.startswith(
        "CRIU's restore failed: Can't fork for 28147: File exists; its number is"
    )
    assert "\n" not in said
    (kept,) = kept_logs.iterdir()
    assert f"its log is {kept}" in said
    assert kept.read_text() == RLIMIT + TAKEN
    assert kept.stat().st_mode & 0o077 == 0


def test_what_it_says_before_it_has_a_log(tmp_path):
    said = run(tmp_path, "echo \"criu: unrecognized option '--bogus'\" >&2; echo usage; exit 1")
    assert "failed: criu: unrecognized option '--bogus'; check --criu-opt" in said


def test_a_signal_and_a_silent_end(tmp_path):
    assert "signal 9 ended it" in run(tmp_path, "kill -9 $$")
    assert "exit code 7" in run(tmp_path, "exit 7")


def test_it_cannot_be_started(tmp_path):
    with pytest.raises(CriuError, match=r"cannot start CRIU.*--criu-bin"):
        start(Criu(str(tmp_path / "gone")), "dump", [], folder=str(tmp_path))


def test_what_it_is_given(tmp_path):
    """Our arguments first, so that the user's count; descriptors by their numbers; admin's PATH"""
    theirs, mine = os.pipe()
    text = 'cd "$4"; echo "$@" > arguments; echo "$PATH $X" > environment; echo hi > /proc/self/fd/'
    criu = script(tmp_path, f"{text}{mine}")
    try:
        running = start(
            criu,
            "dump",
            ["-v4"],
            folder=str(tmp_path),
            pass_fds=[mine],
            environment={"X": "set"},
        )
        running.finish()
        assert os.read(theirs, 10) == b"hi\n"
    finally:
        os.close(theirs)
        os.close(mine)
    found = (tmp_path / "arguments").read_text().split()
    assert found == ["dump", "-v2", "-W", str(tmp_path), "-o", "dump.log", "-v4"]
    path, variable = (tmp_path / "environment").read_text().split()
    assert "/usr/sbin" in path.split(":")
    assert variable == "set"
    assert running.poll() == 0


@pytest.mark.parametrize(("action", "is_own"), [("dump", True), ("restore", False)])
def test_a_terminal_cannot_end_a_dump_in_the_middle(tmp_path, action, is_own):
    """Ctrl-C reaches the whole group: CRIU killed in a dump would break what it dumps"""
    criu = script(tmp_path, f"exec cat /proc/self/stat > {tmp_path}/stat")
    running = start(criu, action, [], folder=str(tmp_path))
    running.finish()
    group = int((tmp_path / "stat").read_text().rpartition(")")[2].split()[2])
    assert group == (running.pid if is_own else os.getpgrp())


def test_the_real_one_says_why(tmp_path):
    """With a CRIU that works: a folder that is no image, and an option that does not exist"""
    from criu_support import criu

    found = Criu(criu())
    with pytest.raises(CriuError, match=r"failed: .*(inventory|EOF)"):
        start(found, "restore", ["-D", str(tmp_path)], folder=str(tmp_path)).finish()
    with pytest.raises(CriuError, match=r"unrecognized option.*check --criu-opt"):
        start(found, "restore", ["--bogus"], folder=str(tmp_path)).finish()
    assert subprocess.run([found.path, "--version"], capture_output=True, check=True).stdout
