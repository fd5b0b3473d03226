"""Make docs/man/*.1 from the help: `python docs/make_man.py`.

One page for the program and one for each command. A test compares them with what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import lazyrestore
from lazyrestore.cli._commands import ENVIRONMENT, EXIT_CODES, Command, Parameter, describe
from lazyrestore.cli._examples import EXAMPLES
from lazyrestore.cli._help import SECTIONS, group

FOLDER = Path(__file__).with_name("man")

_FILES = (
    ("*.lzr", "Images, by custom. They are made readable by their owner alone."),
    ("IMAGE.ws", "A working set beside an image; a restore finds it by its name."),
)
_OPTION = re.compile(r"(?<![\w-])(--?[a-z][\w-]*)")
_CODE = re.compile(r"`([^`]+)`")


def make() -> dict[Path, str]:
    """The pages, by their paths."""
    program, commands = describe()
    pages = {FOLDER / "lazyrestore.1": _program_page(program, commands)}
    for command in commands:
        pages[FOLDER / f"lazyrestore-{command.name}.1"] = _command_page(command, commands)
    return pages


def write() -> None:
    for path, text in make().items():
        path.write_text(text, encoding="utf-8")


def _program_page(program: Command, commands: list[Command]) -> str:
    by_name = {command.name: command for command in commands}
    lines = _head("lazyrestore", program)
    lines += [".SH DESCRIPTION", *_paragraphs(program.help), *_paragraphs(_WHAT)]
    lines.append(".SH COMMANDS")
    for title, names in SECTIONS:
        lines.append(f".SS {title}")
        for name in names:
            if name in by_name:
                lines += [".TP", f"\\fBlazyrestore\\-{_roff(name)}\\fR(1)"]
                lines.append(_line(_text(f"{by_name[name].summary}.")))
    lines += _options(program.options)
    lines += [".SH EXIT STATUS", *_terms(EXIT_CODES)]
    lines += [".SH ENVIRONMENT", *_terms(ENVIRONMENT)]
    lines += [".SH FILES", *_terms(_FILES)]
    lines += _see_also("lazyrestore", commands)
    return "\n".join(lines) + "\n"


_WHAT = """A dump writes the memory of a process, a file or a virtual machine into a compressed
image. A restore maps that memory empty, and fills each page when it is first touched: the first
byte is there in microseconds to milliseconds, whatever the size of the image.

Every command prints its result on standard output: text or, with --json, one object with sizes in
bytes and times in microseconds. Progress goes to standard error, and only to a terminal unless
--progress is given. What goes wrong is one line on standard error that says what, where, and what
to do about it."""


def _command_page(command: Command, commands: list[Command]) -> str:
    lines = _head(f"lazyrestore-{command.name}", command)
    lines += [".SH DESCRIPTION", *_paragraphs(command.help)]
    if command.arguments:
        lines.append(".SH ARGUMENTS")
        for argument in command.arguments:
            lines += [".TP", _value(argument.metavar), _line(_text(argument.help))]
    lines += _options(command.options)
    examples = EXAMPLES.get(command.name, ())
    if examples:
        lines.append(".SH EXAMPLES")
    for what, text in examples:
        lines += [".PP", _line(_text(f"{what}:")), ".PP", ".RS 4", ".EX"]
        lines += [_line(_roff(one.strip())) for one in text.splitlines()]
        lines += [".EE", ".RE"]
    lines += [".SH EXIT STATUS", _line(_text(_STATUS))]
    lines += _see_also(command.name, commands)
    return "\n".join(lines) + "\n"


_STATUS = "0 where it is done; what else there is stands in lazyrestore(1)."


def _head(name: str, command: Command) -> list[str]:
    """With the first letter small, as whatis wants it."""
    summary = command.summary
    if summary[1:2].islower():
        summary = summary[0].lower() + summary[1:]
    usage = " ".join(_usage(word) for word in command.usage.split())
    program = name.replace("lazyrestore-", "lazyrestore ")
    return [
        '.\\" Made from the help by docs/make_man.py: do not edit.',
        f'.TH {name.upper()} 1 "" "lazyrestore {lazyrestore.__version__}" "lazyrestore"',
        ".nh",  # no word is to be broken, nor stretched
        ".ad l",
        ".SH NAME",
        f"{_roff(name)} \\- {_roff(summary)}",
        ".SH SYNOPSIS",
        f"\\fB{_roff(program)}\\fR {usage}",
    ]


def _usage(word: str) -> str:
    """What is to be replaced is in italics; brackets and dots are not."""
    return re.sub(r"[A-Za-z]{2,}|\b[A-Z]\b", lambda found: f"\\fI{found[0]}\\fR", _roff(word))


def _options(options: Iterable[Parameter]) -> list[str]:
    rows = {_name(option): option.help for option in options}
    lines: list[str] = []
    for number, (title, members) in enumerate(group(rows.items())):
        lines.append(".SH OPTIONS" if number == 0 else f".SS {_roff(title)}")
        for name, text in members:
            lines += [".TP", name, _line(_text(text))]
    return lines


def _name(option: Parameter) -> str:
    value = f" {_value(option.metavar)}" if option.metavar else ""
    names = [f"\\fB{_roff(name)}\\fR{value}" for name in option.names]
    if len(names) > 1 and value:  # the value once, behind the last
        names[:-1] = [name.removesuffix(value) for name in names[:-1]]
    return ", ".join([*names, *(f"\\fB{_roff(name)}\\fR" for name in option.off_names)])


def _value(metavar: str) -> str:
    return f"\\fI{_roff(metavar)}\\fR"


def _terms(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [line for name, text in rows for line in (".TP", f"\\fB{_roff(name)}\\fR", _text(text))]


def _see_also(own: str, commands: list[Command]) -> list[str]:
    names = ["lazyrestore", *(f"lazyrestore-{command.name}" for command in commands)]
    others = [name for name in names if name not in (own, f"lazyrestore-{own}")]
    pages = [*(f"\\fB{_roff(name)}\\fR(1)" for name in others), "\\fBuserfaultfd\\fR(2)"]
    return [".SH SEE ALSO", ",\n".join(pages)]


def _paragraphs(text: str) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return [line for part in paragraphs if part for line in (".PP", _line(_text(part)))]


def _text(text: str) -> str:
    """Running text: options stand out, and sentences do not."""
    text = " ".join(_CODE.sub(r"\1", text).split())
    parts = _OPTION.split(text)
    return "".join(
        f"\\fB{_roff(part)}\\fR" if number % 2 else part.replace("\\", "\\e")
        for number, part in enumerate(parts)
    )


def _roff(text: str) -> str:
    """Letters that mean something to roff, and hyphens that are to be copied."""
    return text.replace("\\", "\\e").replace("-", "\\-")


def _line(text: str) -> str:
    """A line that begins with a dot or an apostrophe would be a request."""
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    write()
