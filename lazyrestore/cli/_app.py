"""The application: what all commands have in common."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

import lazyrestore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Wider than that nobody reads well.
_HELP_COLUMNS = 100


class Command(TyperCommand):
    """A command whose help has options in groups, and examples."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """As `[OPTIONS] IMAGE`; what need not be given is in brackets."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write what can be given."""
        from ._help import group, protect

        rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows[parameter.param_type_name].append(record)
        for title, members in (("Arguments", rows["argument"]), *group(rows["option"])):
            if members:
                with formatter.section(title):
                    formatter.write_dl([(name, protect(text)) for name, text in members])

    def format_help_text(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write what the command does."""
        from ._help import protect

        plain, self.help = self.help, protect(self.help or "")
        super().format_help_text(ctx, formatter)
        self.help = plain

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write all of it."""
        from ._help import unprotect

        super().format_help(ctx, formatter)
        formatter.buffer[:] = [unprotect(piece) for piece in formatter.buffer]

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the examples."""
        from ._examples import EXAMPLES
        from ._help import write_examples

        examples = EXAMPLES.get(self.name or "")
        if examples:
            write_examples(formatter, examples)


class Group(TyperGroup):
    """The commands, in sections."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write what each does."""
        from ._help import write_commands

        write_commands(formatter, {name: self.commands[name].help or "" for name in self.commands})


def make_app(commands: Iterable[str], *, has_options: bool = True) -> typer.Typer:
    """The application with some of its commands; its own options only where one may be given."""
    app = typer.Typer(
        name="lazyrestore",
        cls=Group,
        help="Memory checkpoints that open at once: compressed, verified, and used like memory.",
        epilog="'lazyrestore COMMAND --help' says more about a command.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": _HELP_COLUMNS,
        },
    )
    app.callback()(_options if has_options else _nothing)
    for name in commands:
        module = name.replace("-", "_")
        function = getattr(import_module(f"lazyrestore.cli.{module}"), module)
        app.command(name, cls=Command)(function)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lazyrestore {lazyrestore.__version__}")
        raise typer.Exit


def _nothing() -> None:
    pass


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_show_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
    # These two are for the help: `main` answers them before there is an application.
    show_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            help="Print what completes commands, options, images and regions on Tab, for bash, zsh"
            " or fish.",
            show_default=False,
        ),
    ] = None,
    install_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]", help="Put that where the shell finds it.", show_default=False
        ),
    ] = None,
) -> None:
    pass
