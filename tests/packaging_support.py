"""The package as pip makes and installs it: from a copy of the source tree, in venvs of its own."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCTS = {"liblazyrestore.so", "_binding.py", "_binding.pyi"}
# What pip says where a package index cannot be reached: that is no fault of ours.
NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution"
    "|No matching distribution found|ProxyError|SSLError"
)

needs_source_tree = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists() or shutil.which("gcc") is None,
    reason="needs the source tree and gcc",
)


def run(*command, cwd, ok=True, **environment):
    """Run a command without what this process's own make or pytest left in the environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    env.pop("PYTHONPATH", None)
    env.pop("LAZYRESTORE_LIBRARY", None)
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**env, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if ok and result.returncode != 0:
        output = result.stdout + result.stderr
        if NO_NETWORK.search(output):
            pytest.skip(f"pip cannot install what it needs: {output.strip().splitlines()[-1]}")
        pytest.fail(f"{' '.join(map(str, command))}:\n{output}")
    return result


def copy_tree(target):
    """Copy the source tree, without what is built and what is not for an sdist."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis",
        *PRODUCTS,
    )  # fmt: skip
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def files_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def make_builder(folder):
    """The Python of an environment that has what the package needs to be built and to run."""
    run(sys.executable, "-m", "venv", folder, cwd="/")
    python = folder / "bin" / "python"
    run(
        python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "hatchling", "build",
        "cffi>=1.16", "msgpack>=1.0", "zstandard>=0.22", "typer>=0.21,<0.29",
        cwd="/",
    )  # fmt: skip
    return python


def make_sdist(builder, folder):
    """An sdist of a copy of the tree."""
    tree = copy_tree(folder / "lazyrestore")
    run(builder, "-m", "build", "-q", "--sdist", "--no-isolation", "-o", "dist", ".", cwd=tree)
    [archive] = (tree / "dist").glob("*.tar.gz")
    return archive


def make_wheel(builder, sdist, folder):
    """The wheel that is made from the sdist, in an environment of its own as pip does it."""
    run(builder, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist, cwd=folder)
    [made] = folder.glob("*.whl")
    return made


def install(builder, wheel, folder, *packages):
    """The Python of a new environment with the wheel, what that needs, and these: nothing else."""
    run(builder, "-m", "venv", "--without-pip", folder, cwd="/")
    python = folder / "bin" / "python"
    run(
        builder, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check",
        "--only-binary=:all:", wheel, *packages,
        cwd="/",
    )  # fmt: skip
    return python
