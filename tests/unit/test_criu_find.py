"""Finding CRIU: which one is taken, what is said where there is none, and what fits the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyrestore._criu import find
from lazyrestore._criu.examine import CriuCheck, CriuFacts, diagnose, gather
from lazyrestore._criu.find import Criu, find_criu, search_path
from lazyrestore.errors import CriuError

NEW, OLD = "6.18.1-amd64", "6.1.0-18-amd64"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is all of PATH, and no administrators' folders"""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CRIU", raising=False)
    monkeypatch.setattr(find, "_ADMIN_FOLDERS", (str(tmp_path / "sbin"),))
    return tmp_path


def program(path: Path, script: str = "exit 0") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def says(path: Path, version: str) -> Criu:
    return Criu(program(path, f'echo "Version: {version}"; echo "GitID: v{version}"'))


def kernel(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", release, "#1", "")))


def test_the_named_one_comes_first_then_the_variable_then_path(alone, monkeypatch):
    in_admin = program(alone / "sbin" / "criu")
    assert find_criu() == Criu(in_admin, "")
    in_path = program(alone / "criu")
    assert find_criu() == Criu(in_path, "PATH")
    named = program(alone / "else" / "my-criu")
    monkeypatch.setenv("CRIU", named)
    assert find_criu() == Criu(named, "CRIU")
    assert find_criu(in_path) == Criu(in_path, "--criu-bin")
    assert find_criu("criu") == Criu(in_path, "--criu-bin")  # a name is looked for in PATH
    monkeypatch.setenv("CRIU", "")  # as if it was not set
    assert find_criu().origin == "PATH"


def test_a_relative_name_becomes_absolute(alone, monkeypatch):
    monkeypatch.chdir(alone)
    path = program(alone / "here" / "criu")
    assert find_criu("here/criu").path == path


def test_none_is_there(alone, monkeypatch):
    """On a kernel for which Debian's package is too old it is not what is advised"""
    kernel(monkeypatch, OLD)
    with pytest.raises(CriuError, match="install the package criu"):
        find_criu()
    kernel(monkeypatch, NEW)
    with pytest.raises(CriuError, match=r"need 4\.1.*packaging/criu/fetch-criu\.sh"):
        find_criu()


def test_what_is_named_is_not_replaced_by_another(alone, monkeypatch):
    """A mistake in a name is told, though PATH has a CRIU"""
    program(alone / "criu")
    with pytest.raises(CriuError, match="--criu-bin names as CRIU, is not there"):
        find_criu(str(alone / "nothing"))
    monkeypatch.setenv("CRIU", "no-such-criu")
    with pytest.raises(CriuError, match="CRIU= names as CRIU, is not in PATH"):
        find_criu()
    (alone / "plain").write_text("no program")
    with pytest.raises(CriuError, match="is not a program"):
        find_criu(str(alone / "plain"))


def test_the_version(alone):
    assert says(alone / "criu", "4.1.1").version == (4, 1, 1)
    assert says(alone / "criu", "3.17").version_text == "3.17"
    with pytest.raises(CriuError, match="does not say its version"):
        _ = Criu(program(alone / "other", "echo hello")).version
    with pytest.raises(CriuError, match="cannot start CRIU"):
        _ = Criu(str(alone / "gone")).version


@pytest.mark.parametrize(
    ("version", "release", "words"),
    [
        (
            "3.17.1",
            NEW,
            "does not work with Linux 6.18.1-amd64: kernels from 6.13 on need CRIU 4.1",
        ),
        ("4.0", "6.13.0", "need CRIU 4.1"),
        ("3.16.1", OLD, "older than 3.17"),
        ("3.17.1", OLD, None),
        ("4.0", "6.12.99", None),
        ("4.1", NEW, None),
        ("4.2.1", "7.0.0-rc1", None),
    ],
)
def test_too_old_for_a_kernel(alone, version, release, words):
    said = says(alone / "criu", version).too_old(release)
    assert (said is None) == (words is None), said
    if words is not None:
        assert words in said
        assert "fetch-criu.sh" in said


def test_administrators_folders_are_searched_by_criu_itself(alone):
    """It starts programs such as nft and ip, which are there"""
    assert search_path().split(":") == [str(alone), str(alone / "sbin")]


# ---- What doctor makes of it ---------------------------------------------------------------------

GOOD = CriuFacts("/usr/sbin/criu", "PATH", "4.1.1", None, True, CriuCheck(True, True, ()))


def test_all_is_well():
    found = diagnose(GOOD)
    assert (found.dump, found.lazy, found.problems) == (True, True, ())


@pytest.mark.parametrize(
    ("change", "dump", "words"),
    [
        ({"lacking": "CRIU is not installed: do this"}, False, "CRIU is not installed: do this"),
        ({"is_privileged": False, "check": None}, False, "sudo lazyrestore"),
        ({"check": CriuCheck(False, True, ("no ptrace",))}, False, "criu check: no ptrace"),
        ({"check": CriuCheck(False, True, ())}, False, "criu check fails"),
        ({"check": CriuCheck(True, False, ())}, True, "uffd-noncoop"),
    ],
)
def test_each_lack_is_named(change, dump, words):
    found = diagnose(
        CriuFacts(**{**{name: getattr(GOOD, name) for name in GOOD.__slots__}, **change})
    )
    assert found.dump == dump
    assert not found.lazy
    assert words in found.problems[0]


def test_the_check_is_asked_of_the_program(alone, monkeypatch):
    """What it complains about comes without where its source has it"""
    kernel(monkeypatch, NEW)
    script = """case "$*" in
--version) echo "Version: 4.1";;
"check") echo "Error (criu/cr-check.c:12): Kernel lacks this"; exit 1;;
*) exit 0;;
esac"""
    facts = gather(program(alone / "criu", script))
    assert facts.version == "4.1"
    if facts.is_privileged:
        assert facts.check == CriuCheck(False, True, ("Kernel lacks this",))


def test_a_version_that_cannot_work_is_not_asked_further(alone, monkeypatch):
    kernel(monkeypatch, NEW)
    facts = gather(says(alone / "criu", "3.17.1").path)
    assert facts.check is None
    assert "need CRIU 4.1" in facts.lacking
    assert gather(str(alone / "nothing")).path is None
