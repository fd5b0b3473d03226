"""An ordinary user who uses the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from packaging_support import make_builder, make_sdist, make_wheel
from program_support import running_programs
from restore_support import PACKAGE_HOME, TESTS, run_in_child


@pytest.fixture(scope="session")
def program_build(tmp_path_factory):
    """Where the programs of tests/processes are compiled."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture
def programs(program_build):
    """See `program_support.Programs`; at the end nothing of them is left."""
    with running_programs(program_build) as found:
        yield found


@pytest.fixture(scope="module")
def nobody_home(tmp_path_factory):
    """The package and what it needs where an ordinary user can read it: a venv of root's is not."""
    python = Path("/usr/bin/python3")
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    if not setpriv or not python.exists():
        pytest.skip("setpriv or /usr/bin/python3 is not installed")
    import _cffi_backend
    import cffi
    import msgpack

    home = Path(tempfile.mkdtemp(prefix="lazyrestore-nobody-"))
    for package in (cffi, msgpack):
        folder = Path(package.__file__).parent
        shutil.copytree(folder, home / folder.name)
    shutil.copy(_cffi_backend.__file__, home)
    shutil.copytree(PACKAGE_HOME / "lazyrestore", home / "lazyrestore")
    shutil.copy(TESTS / "restore_support.py", home)
    subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
    wrap = (setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    probe = subprocess.run(
        [*wrap, str(python), "-c", "import _cffi_backend, lazyrestore; lazyrestore.restore"],
        env={"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        shutil.rmtree(home)
        pytest.skip(f"{python} cannot use this venv's packages: {probe.stderr.splitlines()[-1]}")

    def run(script, *arguments, before=(), after=(), **options):
        environment = {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        command = (*before, *wrap, *after)
        return run_in_child(
            script, *arguments, python=str(python), wrap=command, environment=environment, **options
        )

    run.home = home
    yield run
    shutil.rmtree(home)


@pytest.fixture
def open_image(nobody_home, small):
    """The small image, where nobody can read it."""
    path = nobody_home.home / "small.lzr"
    shutil.copy(small.path, path)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="session")
def venv(tmp_path_factory):
    """The Python of an environment that builds the package; see `packaging_support`."""
    return make_builder(tmp_path_factory.mktemp("venv") / "v")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory, venv):
    return make_sdist(venv, tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, venv, sdist):
    return make_wheel(venv, sdist, tmp_path_factory.mktemp("wheel"))
