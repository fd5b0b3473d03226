"""Make docs/errors.md from the exception classes: `python docs/make_errors.py`.

A test compares the page with what this makes.
"""

from __future__ import annotations

import errno
import os
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import lazyrestore
from lazyrestore import _native, errors
from lazyrestore._native import lib
from lazyrestore.cli import _errors
from lazyrestore.cli._commands import EXIT_CODES

PAGE = Path(__file__).with_name("errors.md")

_HEAD = """# Errors

Made from the exception classes by `python docs/make_errors.py`.

What goes wrong is one line: what happened, where, and what to do about it.

```console
$ lazyrestore info results.npz
lazyrestore: cannot open results.npz: not a lazyrestore image; it is an archive of arrays (.npz): \\
`lazyrestore dump --npz results.npz results.lzr` makes an image
```

The command line prints it on standard error, and with `--json` also as an object `error` (`type`,
`message`, `exit_code`) on standard output. With `LAZYRESTORE_TRACEBACK=1` it prints where in the
program it came from, for a report of a bug. In Python it is the text of an exception. What
userfaultfd lacks here, and the command that gives it, says `lazyrestore doctor`.
"""

_BUILT_IN = (
    ("OSError", 1, "A file: `FileNotFoundError`, `PermissionError`, a full disk..."),
    ("ValueError, TypeError", 2, "An argument that cannot be. The message says what can."),
    (
        "TimeoutError",
        1,
        "`populate(timeout=)`: not all was loaded in time; call it again to go on.",
    ),
    ("BufferError", 1, "`close()`, while arrays or memoryviews are alive: let go of them first."),
    ("MemoryError", 1, "Memory or address space is short: free some, or use fewer threads."),
    ("ModuleNotFoundError", 1, "An optional package: the message has the `pip install` for it."),
)

_SIGNALS = """## SIGBUS

A program that touches a page which cannot be loaded gets SIGBUS (SIGSEGV before Linux 6.6), and
never zeros. Python prints `Bus error`. `session.errors` and the output of `lazyrestore serve` say
which page, and why; `populate()` loads memory with an exception instead. Causes and remedies are
those of `RestoreError`; [reliability](reliability.md) has the whole story.
"""


def make() -> str:
    """The whole page."""
    for module in pkgutil.walk_packages(lazyrestore.__path__, "lazyrestore."):
        if not module.name.endswith(("__main__", "._binding", ".liblazyrestore")):
            import_module(module.name)
    parts = [_HEAD, "## Exit codes\n", _table(("exit code", "meaning"), EXIT_CODES)]
    parts += ["## Exceptions\n", "In Python all are in `lazyrestore`:\n"]
    tree = (errors.__doc__ or "").partition("\n\n")[2].partition("\n\n")[0]
    parts.append("```text\n" + "\n".join(line[4:] for line in tree.splitlines()) + "\n```\n")
    for kind in _own(errors.LazyRestoreError):
        parts.append(_section(kind))
    parts += ["### Kinds of these\n", _others()]
    parts += ["## Python's own exceptions\n", _table(("exception", "exit code", "when"), _BUILT_IN)]
    parts += ["What the system says of a file, and what helps:\n", _table(_OS_HEADS, _os_rows())]
    parts.append(_SIGNALS)
    parts += [_C_HEAD, _table(("code", "", "meaning", "in Python", "what helps"), _codes())]
    return "\n".join(parts)


def write() -> None:
    PAGE.write_text(make(), encoding="utf-8")


def _own(base: type[errors.LazyRestoreError]) -> list[type[errors.LazyRestoreError]]:
    """Those with causes of their own, a class before what is under it."""
    kinds = [base] if "causes" in vars(base) else []
    return kinds + [each for below in _below(base) for each in _own(below)]


def _below(base: type[errors.LazyRestoreError]) -> list[type[errors.LazyRestoreError]]:
    """The package's own; those of the demo are for the demo."""
    kinds = [
        kind
        for kind in base.__subclasses__()
        if kind.__module__.startswith("lazyrestore.") and "._demo" not in kind.__module__
    ]
    # In the order in which they stand in errors.py, and then by name: whatever was imported first.
    names = list(vars(errors))
    return sorted(
        kinds,
        key=lambda kind: (
            names.index(kind.__name__) if kind.__name__ in names else len(names),
            kind.__name__,
        ),
    )


def _section(kind: type[errors.LazyRestoreError]) -> str:
    text = (kind.__doc__ or "").partition("\n\n")[0]
    rows = _table(("cause", "what helps"), kind.causes)
    return f"### {kind.__name__}\n\n{text} Exit code {kind.exit_code}.\n\n{rows}"


def _others() -> str:
    """Classes under them that modules have for themselves."""
    rows = []
    waiting = [errors.LazyRestoreError]
    while waiting:
        for kind in _below(waiting.pop()):
            waiting.append(kind)
            if "causes" not in vars(kind) and not kind.__name__.startswith("_"):
                base = kind.__mro__[1].__name__
                text = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
                rows.append((f"`{kind.__name__}`", f"`{base}`", kind.exit_code, text))
    return _table(("exception", "kind of", "exit code", "when"), sorted(set(rows)))


_OS_HEADS = ("error", "the system says", "what helps")


def _os_rows() -> list[tuple[str, str, str]]:
    return [
        (f"`{errno.errorcode[number]}`", os.strerror(number), hint)
        for number, hint in sorted(_errors._HINTS.items())
    ]


_C_HEAD = """## Codes of the C library

`lr_strerror()` has the text and `lr_error_name()` the name; `struct lr_problem` the place.
"""


def _codes() -> list[tuple[str, int, str, str, str]]:
    rows = []
    for name in dir(lib):
        if name.startswith("LR_ERR_"):
            code = getattr(lib, name)
            kind = _native._CLASSES.get(code, errors.LazyRestoreError).__name__
            hint = _native.remedy(code) or "the message says, by what was asked for"
            rows.append((f"`{name}`", code, _native.strerror(code), kind, hint))
    return sorted(rows, key=lambda row: -row[1])


def _table(heads: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


if __name__ == "__main__":
    write()
