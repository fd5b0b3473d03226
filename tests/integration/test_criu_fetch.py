"""packaging/criu/fetch-criu.sh: which mirror it takes, and that what it made can be moved.

That it fetches is seen whenever the other tests find their CRIU: `make criu` made it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from criu_support import MADE, ROOT

SCRIPT = ROOT / "packaging" / "criu" / "fetch-criu.sh"


def release(field: str) -> str:
    path = Path("/etc/os-release")
    lines = path.read_text().splitlines() if path.exists() else []
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get(field, "").strip('"')


debian = pytest.mark.skipif(
    release("ID") != "debian" or not release("VERSION_CODENAME") or not shutil.which("apt-config"),
    reason="this is not Debian",
)


def fetch(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def source(tmp_path: Path, name: str, text: str, *arguments: str) -> list[str]:
    """What apt would be given where the machine's sources are these."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / name).write_text(text.replace("OWN", release("VERSION_CODENAME")))
    settings = tmp_path / "apt.conf"
    settings.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/none"; Dir::Etc::sourceparts "{folder}";\n'
    )
    done = fetch("--source", *arguments, APT_CONFIG=str(settings))
    if done.returncode:
        assert "no mirror" in done.stderr, done.stderr
        return []
    return [line for line in done.stdout.splitlines() if not line.startswith("Architectures: ")]


ONE_LINE = """\
# deb http://commented.example/debian OWN main
deb-src http://src.example/debian OWN main
deb http://security.example/debian-security OWN-security main
deb [ arch=amd64 signed-by=/keys/ours.gpg ] http://one.example/debian OWN contrib main # mine
deb http://two.example/debian OWN main
"""

STANZAS = """\
# Types: deb
Types: deb deb-src
Enabled: no
URIs: http://off.example/debian
Suites: OWN
Components: main

Types: deb
URIs:
 https://three.example/debian
 https://four.example/debian
Suites: OWN-updates
 OWN
components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
# comment
 mDMEY
 -----END PGP PUBLIC KEY BLOCK-----
"""


@debian
def test_the_mirror_of_the_own_suite_of_a_list(tmp_path):
    assert source(tmp_path, "a.list", ONE_LINE) == [
        "Types: deb",
        "URIs: http://one.example/debian",
        "Suites: trixie",
        "Components: main",
        "Signed-By: /keys/ours.gpg",
    ]


@debian
def test_the_mirror_of_the_own_suite_of_stanzas(tmp_path):
    assert source(tmp_path, "a.sources", STANZAS, "forky") == [
        "Types: deb",
        "URIs: https://three.example/debian",
        "Suites: forky",
        "Components: main",
        "Signed-By:",
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " mDMEY",
        " -----END PGP PUBLIC KEY BLOCK-----",
    ]


@debian
def test_a_machine_that_follows_stable(tmp_path):
    text = "deb [check-valid-until=no] http://five.example/debian stable main\n"
    lines = source(tmp_path, "a.list", text)
    assert lines[1] == "URIs: http://five.example/debian"
    assert lines[-1] == "Check-Valid-Until: no"


@debian
def test_no_mirror_is_an_error(tmp_path):
    assert source(tmp_path, "a.list", "deb http://six.example/debian OWN contrib\n") == []


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    done = fetch(tmp_path)
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(not MADE.exists(), reason="no build/criu: this machine has a CRIU, or none")
def test_what_it_made_starts_from_anywhere(tmp_path):
    folder = MADE.parents[1]
    moved = tmp_path / "it has moved"
    shutil.copytree(folder / "bin", moved / "bin")
    (moved / "root").symlink_to(folder / "root")
    (tmp_path / "linked").symlink_to(moved / "bin" / "criu")
    for start, path in (("linked", None), ("criu", moved / "bin"), ("crit", moved / "bin")):
        command = f"./{start}" if path is None else start
        done = subprocess.run(
            [command, "--version"],
            cwd=tmp_path,
            env={"PATH": f"{path or '/nowhere'}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert any(part[:1].isdigit() for part in done.stdout.split())
