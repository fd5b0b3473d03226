"""Make docs/cli.md from the help texts: `python docs/make_cli.py`.

Tests compare the file with what this makes, so the page cannot say what the commands do not. Makes
the manual pages and the scripts for completion too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lazyrestore.cli import COMMANDS
from lazyrestore.cli._commands import EXIT_CODES

PAGE = Path(__file__).with_name("cli.md")

_HEAD = """# The command line

Made from the help texts by `python docs/make_cli.py`.

Every command prints its result on standard output: text for people or, with `--json`, one JSON
object with sizes in bytes and times in microseconds. Progress goes to standard error, and only to a
terminal. What goes wrong is one line on standard error that says what, where, and what to do about
it (with `--json` also an object with an `error`).

{exit_codes}

SIZE, and the numbers of `cat`, take suffixes (`64K`, `1M`, `2G`: powers of 1024) and hexadecimal
(`0x1000`).

On a terminal a line says how far it is, how fast, and how long it will take yet; `--progress` has
it in a pipe too, as lines, and `--no-progress` nowhere. `kill -USR1 PID` has a command that takes
long say it at any time. Colours are for terminals, unless `NO_COLOR` is set, or `FORCE_COLOR`.

`lazyrestore --install-completion` completes commands, options, images and the names of regions on
Tab, in bash, zsh and fish. Each command has a manual page: `man lazyrestore-dump`.
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
    rows = ["| exit code | meaning |", "| --- | --- |"]
    rows += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES]
    parts = [_HEAD.format(exit_codes="\n".join(rows)), f"```\n{help_of()}\n```\n"]
    parts += [f"## {command}\n\n```\n{help_of(command)}\n```\n" for command in COMMANDS]
    return "\n".join(parts)


if __name__ == "__main__":
    import make_completion
    import make_errors
    import make_man

    PAGE.write_text(make(), encoding="utf-8")
    make_man.write()
    make_completion.write()
    make_errors.write()
