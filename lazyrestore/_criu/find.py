"""Finding CRIU, and what it says of itself and of this machine.

Nothing here starts CRIU but `Criu.version` and what asks for it: a restore is under way before
its version is known, and asks only when something went wrong.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from lazyrestore.errors import CriuError

if TYPE_CHECKING:
    from .examine import CriuCheck

VARIABLE = "CRIU"
_NAME = "criu"
_CAP_SYS_ADMIN = 1 << 21
_CAP_CHECKPOINT_RESTORE = 1 << 40
# Where administrators' programs are, which are not in every user's PATH.
_ADMIN_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_ASK_S = 30.0
# From 6.13 on the kernel lays out [vvar] otherwise; CRIU follows since 4.1.
_NEW_KERNEL = (6, 13)
_CRIU_FOR_NEW_KERNEL = (4, 1)
OLDEST = (3, 17)
"""The first version whose images and whose socket are as they are expected here."""

HOW_TO_GET = (
    "packaging/criu/fetch-criu.sh of lazyrestore's source unpacks a newer one into a folder,"
    " without installing it; then set CRIU to its path, or give --criu-bin"
)


class Criu(NamedTuple):
    """The program.

    Attributes:
        path: absolute.
        origin: what named it: "--criu-bin", "CRIU", "PATH", or "" where it was found elsewhere.
    """

    path: str
    origin: str = ""

    @property
    def version(self) -> tuple[int, ...]:
        """As (4, 1, 1); asked anew each time.

        Raises:
            CriuError: it does not start, or is something else.
        """
        return _version(self.path)

    @property
    def version_text(self) -> str:
        """As "4.1.1".

        Raises:
            CriuError: it does not start, or is something else.
        """
        return ".".join(map(str, self.version))

    def too_old(self, kernel: str | None = None) -> str | None:
        """Why this version cannot work with a kernel, and what to do; None where it can.

        Args:
            kernel: its release; None: the one that runs.

        Raises:
            CriuError: its version cannot be asked for.
        """
        release = os.uname().release if kernel is None else kernel
        version = self.version
        text = ".".join(map(str, version))
        if version < OLDEST:
            return f"CRIU {text} ({self.path}) is older than 3.17, the first that fits: " + (
                HOW_TO_GET
            )
        if kernel_version(release) >= _NEW_KERNEL and version < _CRIU_FOR_NEW_KERNEL:
            return (
                f"CRIU {text} ({self.path}) does not work with Linux {release}: kernels from 6.13"
                f" on need CRIU 4.1: {HOW_TO_GET}"
            )
        return None

    def check(self) -> CriuCheck:
        """Have it look at the kernel: `criu check`; about a tenth of a second.

        Raises:
            CriuError: it does not start.
        """
        from .examine import CriuCheck

        code, output = ask(self.path, "check")
        lazy, _ = ask(self.path, "check", "--feature", "uffd-noncoop")
        if code == 0:
            return CriuCheck(ok=True, lazy=lazy == 0, problems=())
        from .run import errors_of, plain_lines

        problems = errors_of(output) or plain_lines(output)
        return CriuCheck(ok=False, lazy=lazy == 0, problems=tuple(problems))


def find_criu(explicit: str | None = None) -> Criu:
    """The CRIU to use: the one that is named, or CRIU= in the environment, or one of PATH.

    Args:
        explicit: its path, or its name in PATH (--criu-bin).

    Raises:
        CriuError: there is none.
    """
    if explicit is not None:
        return Criu(_named(explicit, "--criu-bin"), "--criu-bin")
    named = os.environ.get(VARIABLE)
    if named:
        return Criu(_named(named, f"{VARIABLE}="), VARIABLE)
    path = _in_folders(_NAME, os.environ.get("PATH", os.defpath).split(os.pathsep))
    if path is not None:
        return Criu(path, "PATH")
    path = _in_folders(_NAME, _ADMIN_FOLDERS)
    if path is not None:
        return Criu(path)
    if kernel_version(os.uname().release) >= _NEW_KERNEL:
        advice = f"kernels from 6.13 on need 4.1, newer than Debian 12's package; {HOW_TO_GET}"
    else:
        advice = f"install the package criu, or give its path with --criu-bin or {VARIABLE}="
    raise CriuError(f"CRIU is not installed, and processes need it: {advice}")


def may_use_criu() -> bool:
    """If this process has one of the capabilities that CRIU asks for."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    bits = int(line.split()[1], 16)
                    return bool(bits & (_CAP_SYS_ADMIN | _CAP_CHECKPOINT_RESTORE))
    except (OSError, ValueError):
        pass
    return os.geteuid() == 0


def search_path() -> str:
    """PATH with administrators' folders: CRIU starts programs of its own (nft, ip, tar)."""
    folders = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part]
    return os.pathsep.join([*folders, *(one for one in _ADMIN_FOLDERS if one not in folders)])


def kernel_version(release: str) -> tuple[int, int]:
    """Of "6.18.44-fc": (6, 18); (0, 0) of what cannot be read."""
    parts = release.split("-", 1)[0].split(".")
    numbers = [int(part) for part in parts[:2] if part.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def ask(path: str, *arguments: str) -> tuple[int, str]:
    """Run CRIU for what it prints; its exit code and both of its outputs.

    Raises:
        CriuError: it does not start, or does not end.
    """
    import subprocess

    try:
        found = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": search_path()},
            timeout=_ASK_S,
            check=False,
        )
    except OSError as error:
        raise not_started(path, error) from None
    except subprocess.TimeoutExpired:
        raise CriuError(
            f"{path} {' '.join(arguments)} does not end: is that CRIU? Give another --criu-bin"
        ) from None
    return found.returncode, found.stdout.decode("utf-8", "replace")


def not_started(path: str, error: OSError) -> CriuError:
    """CRIU cannot be started."""
    return CriuError(
        f"cannot start CRIU, {path}: {error.strerror or error}: give another with --criu-bin"
        f" or {VARIABLE}="
    )


def _named(name: str, origin: str) -> str:
    if "/" in name:
        path = os.path.abspath(name)
        if _is_program(path):
            return path
        what = "is not a program" if os.path.exists(path) else "is not there"
    else:
        found = _in_folders(name, search_path().split(os.pathsep))
        if found is not None:
            return found
        what = "is not in PATH"
    raise CriuError(f"{name}, which {origin} names as CRIU, {what}: give the path of CRIU there")


def _in_folders(name: str, folders: list[str] | tuple[str, ...]) -> str | None:
    for folder in folders:
        path = os.path.abspath(os.path.join(folder or ".", name))
        if _is_program(path):
            return path
    return None


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _version(path: str) -> tuple[int, ...]:
    import re

    _, output = ask(path, "--version")
    found = re.search(r"^Version:\s*v?(\d+(?:\.\d+)*)", output, re.MULTILINE)
    if found is None:
        raise CriuError(f"{path} does not say its version as CRIU does: give another --criu-bin")
    return tuple(int(part) for part in found[1].split("."))
