"""Hatchling's build hook: compile the core and make the binding, in wheels and editable installs.

The library is no extension module: one wheel serves every Python on the platform, and is tagged
py3-none-PLATFORM.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# A make that started pip must not hand its flags and variables down to the one started here.
NOT_INHERITED = (
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "BUILD",
    "PACKAGE",
    "SANITIZE",
)
PRODUCTS = ("liblazyrestore.so", "_binding.py", "_binding.pyi")
# Where a shell and man(1) look for what docs/make_cli.py made of the help, below an environment's
# own folder. lazyrestore.3 is of the C library, which a wheel does not install.
SHARED = {
    "docs/man/*.1": "share/man/man1",
    "docs/completion/lazyrestore.bash": "share/bash-completion/completions/lazyrestore",
    "docs/completion/_lazyrestore": "share/zsh/site-functions/_lazyrestore",
    "docs/completion/lazyrestore.fish": "share/fish/vendor_completions.d/lazyrestore.fish",
}


class NativeBuildHook(BuildHookInterface):
    """Runs csrc/Makefile: into the package for an editable install, aside for a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        if version == "editable":
            self._make()
            return
        # Aside: a wheel is made of its sources alone, not of what an earlier build left behind.
        self._scratch = tempfile.TemporaryDirectory(prefix="lazyrestore-build-")
        package = Path(self._scratch.name) / "package"
        package.mkdir()
        self._make(f"BUILD={self._scratch.name}/build", f"PACKAGE={package}")
        for name in PRODUCTS:
            build_data["force_include"][str(package / name)] = f"lazyrestore/{name}"
        for pattern, place in SHARED.items():
            for path in sorted(Path(self.root).glob(pattern)):
                name = f"{place}/{path.name}" if "*" in pattern else place
                build_data["shared_data"][str(path)] = name

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._scratch.cleanup()

    def _make(self, *variables: str) -> None:
        csrc = str(Path(self.root) / "csrc")
        command = ["make", "-C", csrc, "python", f"PYTHON={sys.executable}", *variables]
        environment = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        try:
            result = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise RuntimeError("make is missing: apt-get install make gcc libc6-dev") from None
        if result.returncode != 0:
            raise RuntimeError(
                "the C core could not be built (are gcc and libc6-dev installed?):\n"
                f"{result.stdout}{result.stderr}"
            )
