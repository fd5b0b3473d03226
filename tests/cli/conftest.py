"""An ordinary user who runs the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cli_support
import pytest
from restore_support import PACKAGE_HOME

NOBODY = 65534
_PACKAGES = (
    "cffi",
    "msgpack",
    "typer",
    "click",
    "annotated_doc",
    "shellingham",
    "zstandard",
)


class Nobody:
    """Runs commands as the user nobody, who has a folder of its own."""

    def __init__(self, home: Path, command: tuple[str, ...]) -> None:
        self.home = home
        self.packages = home / "packages"
        self.folder = home / "folder"
        self.command = command

    def run(self, *arguments: object, script: str | None = None) -> cli_support.Result:
        """The command line, or a script that ends with running it."""
        variables = {"PYTHONPATH": str(self.packages), "PYTHONDONTWRITEBYTECODE": "1"}
        return cli_support.run(
            *arguments,
            command=(*self.command, *(("-m", "lazyrestore") if script is None else ("-c", script))),
            env={"PATH": os.environ["PATH"], **variables},
            cwd=self.folder,
        )

    def bring(self, path: Path, mode: int = 0o644) -> Path:
        """A copy of a file that nobody can read."""
        copy = self.folder / path.name
        shutil.copy(path, copy)
        copy.chmod(mode)
        return copy


@pytest.fixture(scope="session")
def nobody() -> Iterator[Nobody]:
    """The package and what it needs, where an ordinary user can read it."""
    python, setpriv = Path("/usr/bin/python3"), shutil.which("setpriv")
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    if setpriv is None or not python.exists():
        pytest.skip("setpriv or /usr/bin/python3 is not installed")
    home = Path(tempfile.mkdtemp(prefix="lazyrestore-nobody-"))
    try:
        user = Nobody(home, _prepare(home, python, setpriv))
        probe = user.run("--version")
        if probe.code != 0:
            pytest.skip(f"{python} cannot use the packages of this venv: {probe.err[-200:]}")
        yield user
    finally:
        shutil.rmtree(home)


def _prepare(home: Path, python: Path, setpriv: str) -> tuple[str, ...]:
    import cffi

    packages = home / "packages"
    packages.mkdir()
    site = Path(cffi.__file__).parent.parent
    for name in _PACKAGES:
        if (site / name).is_dir():
            shutil.copytree(site / name, packages / name)
    for module in (*site.glob("_cffi_backend*"), *site.glob("typing_extensions.py")):
        if module.is_file():
            shutil.copy(module, packages)
    shutil.copytree(PACKAGE_HOME / "lazyrestore", packages / "lazyrestore")
    (home / "folder").mkdir()
    subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
    os.chown(home / "folder", NOBODY, NOBODY)
    drop = ("--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    return (setpriv, *drop, str(python))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
