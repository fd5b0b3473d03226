"""Make docs/cli.md from the help texts: `python docs/make_cli.py`.

A test compares the file with what this makes, so the page cannot say what the commands do not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lazyrestore.cli import COMMANDS

PAGE = Path(__file__).with_name("cli.md")

_HEAD = """# The command line

Made from the help texts by `python docs/make_cli.py`.

Every command prints its result on standard output: text for people or, with `--json`, one JSON
object with sizes in bytes and times in microseconds. Progress goes to standard error, and only to a
terminal. What goes wrong is one line on standard error that says what, where, and what to do about
it (with `--json` also an object with an `error`).

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed: no such process, no such file, a full disk |
| 2 | usage: arguments that do not go together, a region that is not there |
| 3 | the image is damaged, cut short, of a newer version, or not one |
| 4 | the kernel, or a permission, says no (`lazyrestore doctor` explains) |
| 5 | the other side of a connection failed |
| 130, 143 | Ctrl-C, SIGTERM: everything was undone |

SIZE, and the numbers of `cat`, take suffixes (`64K`, `1M`, `2G`: powers of 1024) and hexadecimal
(`0x1000`).
"""


def help_of(*command: str) -> str:
    """What `lazyrestore COMMAND --help` prints in a terminal of 100 columns."""
    result = subprocess.run(
        [sys.executable, "-m", "lazyrestore", *command, "--help"],
        env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.rstrip()


def make() -> str:
    """The whole page."""
    parts = [_HEAD, f"```\n{help_of()}\n```\n"]
    parts += [f"## {command}\n\n```\n{help_of(command)}\n```\n" for command in COMMANDS]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(make(), encoding="utf-8")
