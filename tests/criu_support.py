"""Which CRIU the tests of processes use, and whether it works here.

In this order: the environment's CRIU, build/criu/bin/criu (which `make criu` makes), PATH's. Where
there is none that works, the tests skip with the reason; with CI=true they fail: there it is
installed before. `criu()` is for tests and their fixtures; nothing is run when this is imported.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "build" / "criu" / "bin" / "criu"


def find_criu() -> str | None:
    """The first that there is; None: there is none."""
    given = os.environ.get("CRIU")
    if given:
        return shutil.which(given)
    return str(MADE) if MADE.exists() else shutil.which("criu")


@functools.cache
def why_not() -> str | None:
    """What keeps CRIU from working here, or None."""
    if os.geteuid() != 0:
        return "CRIU needs to be root"
    path = find_criu()
    if path is None:
        given = os.environ.get("CRIU")
        return f"CRIU={given}: no such program" if given else "no CRIU here: make criu"
    try:
        check = subprocess.run(
            [path, "check"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=120,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} check: {error}"
    if check.returncode == 0:
        return None
    said = " / ".join(check.stdout.split("\n")[:-1][-3:])
    return f"{path} check: exit {check.returncode}: {said}"


def criu() -> str:
    """The path of a CRIU that works, or the test is skipped; in CI it fails."""
    import pytest  # slow to import: not in children

    why = why_not()
    if why is not None:
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(why)
        pytest.skip(why)
    path = find_criu()
    assert path is not None
    return path


@functools.cache
def criu_version() -> tuple[int, ...]:
    """As (4, 1, 1)."""
    out = subprocess.run([criu(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Version:\s*(\d+(?:\.\d+)+)", out)
    assert found, out
    return tuple(int(part) for part in found[1].split("."))


def crit() -> str:
    """CRIU's tool that shows images: beside `criu()`, or PATH's; or the test is skipped."""
    import pytest

    beside = Path(criu()).with_name("crit")
    found = str(beside) if beside.exists() else shutil.which("crit")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no crit beside {criu()}")
        pytest.skip(f"no crit beside {criu()}: make criu")
    return found
