"""How help is laid out: commands and options in groups, and examples at the end.

Options whose help begins with one of `_GROUPS` ("With --lazy: ...") stand together under that.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import Protocol

    Rows = Sequence[tuple[str, str]]

    class Formatter(Protocol):
        """What typer lays help out with."""

        def section(self, name: str) -> AbstractContextManager[None]:
            """Indent what is written."""

        def write_dl(self, rows: Rows) -> None:
            """Write terms and what they mean."""

        def write(self, string: str) -> None:
            """Write as it is."""


SECTIONS = (
    ("Images", ("dump", "restore", "info", "ls", "cat", "verify", "diff", "optimize")),
    ("Other processes", ("serve", "lazy-pages", "top")),
    ("This machine", ("doctor", "bench", "demo")),
)
_GROUP = re.compile(r"((?:With|Of|To) [^:]{1,24}): ")
_LEAST = 3  # so many options make a group
_HYPHEN = "\N{NON-BREAKING HYPHEN}"


def protect(text: str) -> str:
    """The same, such that no line is broken within --an-option."""
    return text.replace("-", _HYPHEN)


def unprotect(text: str) -> str:
    """What `protect` was given, as it is to be printed."""
    return text.replace(_HYPHEN, "-")


def summary(help_text: str) -> str:
    """What a command does, in one sentence."""
    return " ".join(help_text.partition("\n\n")[0].split())


def write_commands(formatter: Formatter, helps: dict[str, str]) -> None:
    """Commands and what they do, in sections."""
    rest = dict(helps)
    # All in one column, whatever the section.
    width = max(map(len, helps), default=0)
    for title, names in SECTIONS:
        rows = [(f"{name:<{width}}", summary(rest.pop(name))) for name in names if name in rest]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
    if rest:
        with formatter.section("More"):
            formatter.write_dl([(name, summary(text)) for name, text in rest.items()])


def group(rows: Iterable[tuple[str, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Options under their headings; those that are for all come first."""
    plain: list[tuple[str, str]] = []
    groups: dict[str, list[tuple[str, str]]] = {}
    whole = list(rows)
    for name, text in whole:
        found = _GROUP.match(text)
        if found is None:
            plain.append((name, text))
        else:
            rest = text[found.end() :]
            groups.setdefault(found[1], []).append((name, rest[:1].upper() + rest[1:]))
    for title in [title for title, members in groups.items() if len(members) < _LEAST]:
        names = {name for name, _ in groups.pop(title)}
        plain = [row for row in whole if row in plain or row[0] in names]
    return [("Options", plain), *groups.items()]


def write_examples(formatter: Formatter, examples: Rows) -> None:
    """What each does, and below it the command, which is never broken: it is there to be copied."""
    formatter.write("\nExamples:\n")
    for what, command in examples:
        formatter.write(f"  {what}:\n    {command}\n")
