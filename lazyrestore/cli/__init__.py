"""The command line: one module a command, with a function of the command's name.

A command prints its result on standard output: text, or with --json one object. What goes wrong is
an exception, and `main` makes one line on standard error and the exit code of it:

    0 done                    3 bad image                        130 Ctrl-C
    1 failed                  4 the kernel or a permission       143 SIGTERM
    2 usage                   5 the remote side

Start-up is part of the time to first access, so only the module of the command that was asked for
is imported, and each imports what it needs in its function. A restore of processes that is asked
for with common options does without what reads the arguments (see `lazyrestore.__main__`).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import typer

    from lazyrestore._criu.pager import Daemon

__all__ = ["COMMANDS", "main", "make_app"]

COMMANDS = (
    *("dump", "restore", "info", "ls", "cat", "diff", "verify", "optimize"),
    *("serve", "lazy-pages", "top", "bench", "doctor", "demo"),
)
"""In the order in which `lazyrestore --help` has them. To add one: a module here of that name, with
a function of that name (for "-" they have "_"), and its name in this list."""


def main(arguments: Sequence[str] | None = None, *, daemon: Daemon | None = None) -> int:
    """Run the command line; the exit code.

    Args:
        arguments: without the program's name; None: those of this process.
        daemon: for a restore of processes, forked already.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:  # as many programs have it
        given = [*given[1:2], "--help"]
    if given in (["--version"], ["-V"]) and _print_version():
        return 0

    import gc

    import typer

    from . import _errors

    if not given:
        main(["--help"])
        return _errors.USAGE
    try:
        _errors.prepare()
        if given[0].startswith(("--show-completion", "--install-completion")):
            from . import _completion

            _completion.main(given)
            sys.stdout.flush()
            return 0
        app = make_app(_commands_for(given), has_options=given[0] not in COMMANDS)
        command = typer.main.get_command(app)
        gc.freeze()  # what was imported stays: no collection, at the end neither, looks at it again
        with command.make_context("lazyrestore", given, obj=daemon) as context:
            command.invoke(context)
        sys.stdout.flush()
    except BaseException as error:
        return _errors.report(error, given)
    return 0


def _print_version() -> bool:
    """Without what reads arguments; False: it cannot be printed, and why is to be said."""
    import lazyrestore

    try:
        print(f"lazyrestore {lazyrestore.__version__}", flush=True)
    except OSError:
        return False
    return True


def _commands_for(arguments: Sequence[str]) -> Sequence[str]:
    """The commands that have to be there to make sense of the arguments."""
    if arguments[0] in ("--version", "-V"):
        return ()
    asked = next((argument for argument in arguments if not argument.startswith("-")), "")
    return (asked,) if asked in COMMANDS else COMMANDS


def make_app(commands: Iterable[str] = COMMANDS, *, has_options: bool = True) -> typer.Typer:
    """The application with some of its commands, and with its own options or without."""
    from ._app import make_app as make

    return make(commands, has_options=has_options)
