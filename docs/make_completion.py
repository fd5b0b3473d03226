"""Make docs/completion/ from the commands: `python docs/make_completion.py`.

A package installs these files; `lazyrestore --show-completion SHELL` prints the same. A test
compares them.
"""

from __future__ import annotations

from pathlib import Path

from lazyrestore.cli._completion import FILE_NAMES, script

FOLDER = Path(__file__).with_name("completion")


def make() -> dict[Path, str]:
    """The files, by their paths."""
    return {FOLDER / name: script(shell) for shell, name in FILE_NAMES.items()}


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path, text in make().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
