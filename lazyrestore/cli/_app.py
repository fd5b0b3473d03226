"""The application: what all commands have in common."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

import lazyrestore


def make_app(commands: Iterable[str]) -> typer.Typer:
    """The application with some of its commands."""
    app = typer.Typer(
        name="lazyrestore",
        help="Memory checkpoints that open at once: compressed, verified, and used like memory.",
        epilog="'lazyrestore COMMAND --help' says more about a command.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in commands:
        module = name.replace("-", "_")
        app.command(name)(getattr(import_module(f"lazyrestore.cli.{module}"), module))
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lazyrestore {lazyrestore.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass
