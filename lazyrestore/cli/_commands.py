"""What commands there are and what they take, for completion and manual pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import typer

EXIT_CODES = (
    ("0", "done"),
    ("1", "failed: no such process or file, or no right to it; a full disk; of diff: they differ"),
    ("2", "usage: arguments that do not go together, a region that is not there"),
    ("3", "the image is damaged, cut short, of a newer version, or not one"),
    ("4", "the kernel, or a permission, says no (`lazyrestore doctor` explains)"),
    ("5", "the other side of a connection, or CRIU, failed or is missing"),
    ("126, 127", "of `restore --lazy IMAGE -- COMMAND`: it cannot be started; else its own code"),
    ("130, 143", "Ctrl-C, SIGTERM: everything was undone"),
    ("141", "nobody reads standard output any more: that was a `head`, say"),
)

ENVIRONMENT = (
    ("NO_COLOR", "Where it is set and not empty, nothing is coloured."),
    ("FORCE_COLOR", "Where it is set, not empty and not 0, colours are not for terminals only."),
    ("LAZYRESTORE_SOCKET", "Where attach() finds its service; restore sets it for its COMMAND."),
    ("LAZYRESTORE_LIBZSTD", "The path of libzstd, where the system's own is not to be used."),
    ("LAZYRESTORE_LIBRARY", "The path of another liblazyrestore.so than the package's own."),
    ("LAZYRESTORE_TRACEBACK", "1: what fails also prints where, for who reports a bug."),
    ("CRIU", "The CRIU to use for processes, rather than that of PATH."),
)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An option or an argument.

    Attributes:
        names: of an option, as ("-o", "--output"); of an argument nothing.
        off_names: what takes it back, as ("--no-progress",).
        metavar: what its value is called, as "FILE"; "" where it has none.
        choices: all that its value can be, or nothing where that is open.
        help: what it does, with its default.
        is_many: it can be given several times.
        is_required: it cannot be left out.
    """

    names: tuple[str, ...]
    off_names: tuple[str, ...]
    metavar: str
    choices: tuple[str, ...]
    help: str
    is_many: bool
    is_required: bool

    @property
    def brief(self) -> str:
        """Its first sentence or so, without the default."""
        text = self.help.partition("  [")[0]
        for mark in ("; ", ". ", ": "):
            head, _, rest = text.partition(mark)
            if rest and len(head) > 24:
                text = head
        return text.rstrip(".")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command. `help` has paragraphs, with an empty line between them."""

    name: str
    usage: str
    help: str
    arguments: tuple[Parameter, ...]
    options: tuple[Parameter, ...]

    @property
    def summary(self) -> str:
        """What it does, in a sentence, without a full stop."""
        from ._help import summary

        return summary(self.help).rstrip(".")


def describe() -> tuple[Command, list[Command]]:
    """The program itself and its options, and all of its commands."""
    from . import COMMANDS, make_app

    group = typer.main.get_command(make_app(COMMANDS))
    commands = group.commands  # type: ignore[attr-defined]
    return _describe("lazyrestore", group), [_describe(name, commands[name]) for name in COMMANDS]


def _describe(name: str, command: object) -> Command:
    context = typer.Context(command, help_option_names=["--help", "-h"])  # type: ignore[arg-type]
    found: dict[str, list[Parameter]] = {"argument": [], "option": []}
    for parameter in command.get_params(context):  # type: ignore[attr-defined]
        record = parameter.get_help_record(context)
        if record is None:
            continue
        is_option = parameter.param_type_name == "option"
        is_flag = is_option and bool(parameter.is_flag or parameter.count)
        found[parameter.param_type_name].append(
            Parameter(
                # Short ones first; those of --help come in any order.
                names=tuple(sorted(parameter.opts, key=len)) if is_option else (),
                off_names=tuple(parameter.secondary_opts),
                metavar="" if is_flag else parameter.make_metavar(context),
                choices=() if is_flag else _choices(parameter),
                help=" ".join(record[1].split(" ")),
                is_many=bool(parameter.multiple) if is_option else parameter.nargs == -1,
                is_required=bool(parameter.required),
            )
        )
    return Command(
        name=name,
        usage=" ".join(command.collect_usage_pieces(context)),  # type: ignore[attr-defined]
        help=command.help or "",  # type: ignore[attr-defined]
        arguments=tuple(found["argument"]),
        options=tuple(found["option"]),
    )


def _choices(parameter: object) -> tuple[str, ...]:
    given: Sequence[object] = getattr(parameter.type, "choices", ())  # type: ignore[attr-defined]
    return tuple(str(choice) for choice in given)
