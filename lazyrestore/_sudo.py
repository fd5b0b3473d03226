"""How root runs this command."""

from __future__ import annotations

import os
import sys


def sudo(rest: str) -> str:
    """The command with sudo: of a virtual environment by its path, for root's PATH has it not."""
    program = sys.argv[0] if sys.argv else ""
    if sys.prefix == sys.base_prefix or os.path.basename(program) != "lazyrestore":
        return f"sudo lazyrestore {rest}"
    import shlex

    return f"sudo {shlex.quote(os.path.abspath(program))} {rest}"
