"""`lazyrestore doctor`: what this machine allows, why not more, and the narrowest remedy first."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import sys
from pathlib import Path

import pytest
from cli_support import Result, environment, run
from criu_support import criu
from seccomp_support import DENY

from lazyrestore._doctor import FULL, NONE, USER_MODE_ONLY, Diagnosis, diagnose, gather

SETTING = Path("/proc/sys/vm/unprivileged_userfaultfd")
DEVICE = "/dev/userfaultfd"
needs_refusal = pytest.mark.skipif(
    not SETTING.exists() or SETTING.read_text().strip() != "0",
    reason="vm.unprivileged_userfaultfd lets every user have one",
)
needs_device = pytest.mark.skipif(
    not os.path.exists(DEVICE) or os.stat(DEVICE).st_mode & 0o006 != 0,
    reason=f"no {DEVICE}, or everybody may open it",
)


def remedies_of(report: dict[str, object]) -> list[str]:
    return [remedy["command"] for remedy in report["remedies"]]  # type: ignore[attr-defined]


def first_with(commands: list[str], word: str) -> int:
    """Where the first command with a word is"""
    return next(number for number, command in enumerate(commands) if word in command)


# ---- Here ----------------------------------------------------------------------------------------


@pytest.mark.uffd
def test_json_here() -> None:
    """With every right: nothing to explain, exit code 0, and the facts are this machine's"""
    report = json.loads(run("doctor", "--json").ok().out)
    assert report["level"] == "full"
    assert report["reasons"] == report["remedies"] == []
    facts = report["facts"]
    assert 0 in (facts["device_error"], facts["syscall_error"])
    assert facts["kernel"] == platform.release()
    assert facts["uid"] == os.geteuid()
    assert facts["page_size"] == os.sysconf("SC_PAGESIZE")
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert "libzstd" in facts["libzstd"]
    assert facts["unprivileged"] == (int(SETTING.read_text()) if SETTING.exists() else None)
    assert {feature["name"] for feature in report["features"]} == {
        *("POISON", "EXACT_ADDRESS", "THREAD_ID")
    }


@pytest.mark.uffd
def test_text_here() -> None:
    """The level first; with -v every setting"""
    text = run("doctor").ok().out
    assert text.startswith("userfaultfd: full\n")
    assert "what to do" not in text or "CRIU" in text.split("what to do")[1]
    assert platform.release() in text
    for word in ("pages of", "features", "libzstd", "cores", "dump --pid"):
        assert word in text
    assert "vm.max_map_count" not in text
    more = run("doctor", "-v").ok().out
    for word in ("vm.max_map_count", "vm.unprivileged_userfaultfd", "ptrace_scope", "seccomp"):
        assert word in more


# ---- An ordinary user ----------------------------------------------------------------------------


@needs_refusal
@needs_device
def test_an_ordinary_user(nobody: object) -> None:
    """Why not more, and what changes that: the ACL for one before the setting for all"""
    result = nobody.run("doctor", "--json")  # type: ignore[attr-defined]
    report = json.loads(result.out)
    can_user_mode = report["facts"]["user_mode_error"] == 0
    assert report["level"] == ("user-mode-only" if can_user_mode else "none")
    assert result.code == (0 if can_user_mode else 4)
    assert report["facts"]["device_error"] == errno.EACCES
    assert report["facts"]["syscall_error"] == errno.EPERM
    reasons = " ".join(report["reasons"])
    assert f"user nobody may not open {DEVICE}" in reasons
    assert "vm.unprivileged_userfaultfd is 0" in reasons
    commands = remedies_of(report)
    assert commands[0] == f"sudo setfacl -m u:nobody:rw {DEVICE}"
    assert commands[-1] == "sudo sysctl vm.unprivileged_userfaultfd=1"


@needs_refusal
@needs_device
def test_an_ordinary_user_in_words(nobody: object) -> None:
    result = nobody.run("doctor")  # type: ignore[attr-defined]
    lines = result.out.splitlines()
    assert lines[0] in ("userfaultfd: user-mode-only", "userfaultfd: none")
    if lines[0].endswith("user-mode-only"):
        assert result.ok()
        assert "--privilege" in result.out
        assert "populate()" in result.out
    assert "why not more:" in lines
    acl, setting = (first_with(lines, word) for word in ("setfacl", "sudo sysctl"))
    assert acl < setting
    assert "this one user" in lines[acl + 1]
    assert "every user" in lines[setting + 1]


_WITH_ANOTHER_DEVICE = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
mknod -m 600 "$1/userfaultfd" c $2 $3
mount --bind "$1/userfaultfd" /dev/userfaultfd
shift 3
remedy=$1
shift
"$@" > before || true
sh -c "$remedy" >&2
exec "$@"
"""


@needs_refusal
@needs_device
def test_the_first_remedy_works(nobody: object, tmp_path: Path) -> None:
    """Typed as it stands, on a device of a mount namespace of our own: full"""
    report = json.loads(nobody.run("doctor", "--json").out)  # type: ignore[attr-defined]
    remedy = remedies_of(report)[0].removeprefix("sudo ")
    number = os.stat(DEVICE).st_rdev
    folder = tmp_path / "dev"
    folder.mkdir()
    script = tmp_path / "script"
    script.write_text(_WITH_ANOTHER_DEVICE)
    packages = f"PYTHONPATH={nobody.packages}"  # type: ignore[attr-defined]
    doctor = ("env", packages, *nobody.command, "-m", "lazyrestore", "doctor", "--json")  # type: ignore[attr-defined]
    result = run(
        *(folder, os.major(number), os.minor(number), remedy, *doctor),
        command=("unshare", "-m", "sh", script),
        cwd=tmp_path,
    )
    for reason in ("setfacl: not found", "Operation not supported", "unshare:", "mount:"):
        if reason in result.err:
            pytest.skip(f"cannot try it here: {result.err.strip()}")
    before = json.loads((tmp_path / "before").read_text())
    assert before["facts"]["device_error"] == errno.EACCES
    after = json.loads(result.ok().out)
    assert (after["level"], after["facts"]["device_error"]) == ("full", 0)


# ---- A filter of system calls --------------------------------------------------------------------


def filtered(*options: str, error: int) -> Result:
    """How doctor ends where system calls for userfaultfd fail with `error`"""
    script = (
        f"{DENY}\ndeny_userfaultfd({error})\n"
        "from lazyrestore.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    result = run("doctor", *options, command=(sys.executable, "-c", script))
    if result.out.startswith("skip"):
        pytest.skip(f"seccomp: {result.out[5:]}")
    return result


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_under_a_filter(error: int) -> None:
    """None: exit code 4, one line, and no advice that a filter would make vain"""
    result = filtered("--json", error=error).fails(4, "cannot be lazy")
    report = json.loads(result.out)
    assert report["level"] == "none"
    assert "eager" in report["meaning"]
    facts = report["facts"]
    assert (facts["syscall_error"], facts["user_mode_error"]) == (error, error)
    assert facts["seccomp"] is True
    assert "filter" in " ".join(report["reasons"])
    commands = " ".join(remedies_of(report))
    assert commands
    assert "sysctl" not in commands
    assert "setfacl" not in commands


def test_under_a_filter_in_words() -> None:
    text = filtered(error=errno.EPERM).fails(4, "cannot be lazy").out
    assert text.startswith("userfaultfd: none\n")
    assert "forbidden by a filter (seccomp)" in text
    assert "what to do" in text
    assert "features               none" in text


def test_quiet(nobody: object) -> None:
    """For scripts: the exit code, and a line only where it is not 0"""
    assert filtered("-q", error=errno.EPERM).fails(4, "cannot be lazy").out == ""
    assert run("doctor", "-q").out == ""


# ---- Machines that are not here ------------------------------------------------------------------


def machine(**changes: object) -> Diagnosis:
    """What follows for an ordinary user of an ordinary machine with these changes"""
    facts = dataclasses.replace(
        gather(),
        device_error=errno.EACCES,
        syscall_error=errno.EPERM,
        user_mode_error=0,
        kernel="6.8.0-31-generic",
        user="ann",
        uid=1000,
        outer_uid=None,
        may_trace=False,
        seccomp=False,
        container=False,
        unprivileged=0,
        overcommit=0,
        libzstd="/usr/lib/libzstd.so.1",
    )
    return diagnose(dataclasses.replace(facts, **changes))  # type: ignore[arg-type]


def commands_for(**changes: object) -> list[str]:
    return [remedy.command for remedy in machine(**changes).remedies]


def test_levels() -> None:
    assert machine(device_error=0).level == FULL
    assert machine(syscall_error=0).level == FULL
    assert machine().level == USER_MODE_ONLY
    assert machine(user_mode_error=errno.EPERM).level == NONE


def test_narrowest_first() -> None:
    """One user, a group, everybody"""
    acl, rule, setting = commands_for()
    assert acl == f"sudo setfacl -m u:ann:rw {DEVICE}"
    assert 'GROUP="kvm"' in rule
    assert setting == "sudo sysctl vm.unprivileged_userfaultfd=1"


def test_before_the_device() -> None:
    """Linux 5.10: no device to open, and no user-mode-only"""
    old = {"kernel": "5.10.0-8-amd64", "device_error": errno.ENOENT}
    assert commands_for(**old) == ["sudo sysctl vm.unprivileged_userfaultfd=1"]
    found = machine(**old, user_mode_error=errno.EINVAL)
    assert found.level == NONE
    assert any("since 6.1" in reason for reason in found.reasons)
    assert any("before Linux 5.11" in reason for reason in found.reasons)


@pytest.mark.parametrize("kernel", ["5.4.0", "6.8.0"])
def test_a_kernel_without_it(kernel: str) -> None:
    missing = dict.fromkeys(("syscall_error", "user_mode_error"), errno.ENOSYS)
    (command,) = commands_for(kernel=kernel, device_error=errno.ENOENT, **missing)
    assert "CONFIG_USERFAULTFD" in command


def test_in_a_container() -> None:
    """As its root, with a default profile: the device, then the profile; no setting"""
    commands = commands_for(
        container=True,
        uid=0,
        user="root",
        device_error=errno.ENOENT,
        user_mode_error=errno.EPERM,
        seccomp=True,
    )
    assert f"--device {DEVICE}" in commands[0]
    assert "seccomp=" in commands[1]
    assert len(commands) == 2


def test_in_a_user_namespace() -> None:
    """The one who is meant outside, by number"""
    found = machine(uid=0, user="root", outer_uid=1000, may_trace=True)
    assert found.remedies[0].command == f"sudo setfacl -m u:1000:rw {DEVICE}"
    assert "outside" in found.remedies[0].effect
    assert any("user namespace" in reason for reason in found.reasons)


def test_an_acl_helps_where_only_the_system_call_is_filtered() -> None:
    """As a service manager's sandbox does it, outside of containers"""
    commands = commands_for(user_mode_error=errno.EPERM, seccomp=True)
    assert commands[0].startswith("sudo setfacl")
    assert not any("sysctl" in command for command in commands)


def test_always_some_remedy() -> None:
    """Whatever is wrong, unless nothing is"""
    for error in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOENT, errno.EMFILE):
        for kernel in ("4.19.0", "5.10.0", "6.8.0"):
            for container in (False, True):
                found = machine(
                    device_error=error,
                    syscall_error=errno.EPERM if error == errno.ENOENT else error,
                    user_mode_error=errno.EPERM,
                    kernel=kernel,
                    container=container,
                )
                assert found.remedies
                assert len(found.reasons) == 3


def test_warnings() -> None:
    assert machine().warnings == ()
    assert "apt-get install libzstd1" in machine(libzstd=None).warnings[0]
    assert "overcommit" in machine(overcommit=2).warnings[0]


def test_no_libzstd(tmp_path: Path) -> None:
    """Doctor still explains the machine, and its exit code is that of the others"""
    missing = {"LAZYRESTORE_LIBZSTD": str(tmp_path / "none.so")}
    result = run("doctor", env=environment(missing)).fails(4, "libzstd is missing")
    assert "LAZYRESTORE_LIBZSTD" in result.out


# ---- Processes ---------------------------------------------------------------------------------


def test_criu_is_looked_for(tmp_path: Path) -> None:
    """Too old for the kernel that runs: what to do is said, and nothing else changes"""
    old = tmp_path / "criu"
    old.write_text("#!/bin/sh\necho 'Version: 3.16.1'\n")
    old.chmod(0o755)
    report = json.loads(run("doctor", "--json", "--criu-bin", old).out)
    criu = report["criu"]
    assert (criu["dump"], criu["lazy"]) == (False, False)
    assert criu["facts"]["path"] == str(old)
    assert criu["facts"]["version"] == "3.16.1"
    assert "fetch-criu.sh" in criu["problems"][0]
    text = " ".join(run("doctor", "--criu-bin", old).out.split())
    assert "processes: none" in text
    assert "CRIU 3.16.1" in text
    assert f"criu 3.16.1, {old}, named by --criu-bin" in text


def test_criu_is_missing(tmp_path: Path) -> None:
    """It is no reason to fail: memory needs none"""
    result = run("doctor", env={**environment(), "CRIU": str(tmp_path / "gone")})
    assert "processes: none" in result.out
    assert "CRIU= names as CRIU, is not there" in " ".join(result.out.split())
    assert result.code == run("doctor").code


@pytest.mark.uffd
def test_criu_that_works() -> None:
    """The one that the tests of processes use"""
    report = json.loads(run("doctor", "--json", "--criu-bin", criu()).ok().out)["criu"]
    assert (report["dump"], report["lazy"], report["problems"]) == (True, True, [])
    assert report["facts"]["check"] == {"ok": True, "lazy": True, "problems": []}
    assert "processes: lazy" in run("doctor", "--criu-bin", criu()).ok().out
