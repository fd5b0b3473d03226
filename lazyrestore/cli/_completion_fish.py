"""Completion for fish, with what each thing does beside it."""

from __future__ import annotations

from collections.abc import Sequence

from ._commands import Command, Parameter
from ._completion import ending_of, kind_of, names, words_of

_HEAD = """\
# Completion of lazyrestore for fish. Made from its help: do not edit.

# Files with an ending and folders; all files where there are none of these.
function __lazyrestore_files
	set -l found (__fish_complete_path (commandline -ct))
	set -l wanted (string match -r ".*(?:/|\\.$argv[1])(?:\\t.*)?\\$" -- $found)
	set -q wanted[1]; or set wanted $found
	printf '%s\\n' $wanted
end

# Names of the regions of the first image on the line.
function __lazyrestore_regions
	for word in (commandline -opc)[2..-1]
		if string match -q '*.lzr' -- $word
			lazyrestore ls --quiet (string replace -r '^~/' "$HOME/" -- $word) 2>/dev/null
			return
		end
	end
end

# What has been typed is what follows -- of this command.
function __lazyrestore_is_behind
	contains -- -- (commandline -opc)
end

function __lazyrestore_behind
	set -l words (commandline -opc) (commandline -ct)
	set -l at (contains -i -- -- $words)
	__fish_complete_subcommand --commandline $words[(math $at + 1)..-1]
end

complete -c lazyrestore -e
complete -c lazyrestore -f
"""


def make(program: Command, commands: Sequence[Command]) -> str:
    """The script."""
    lines = [_HEAD]
    none = f"not __fish_seen_subcommand_from {' '.join(names(commands))}"
    lines += [
        f"complete -c lazyrestore -n '{none}' -a {command.name} -d {_quoted(command.summary)}"
        for command in commands
    ]
    lines += [_option(none, option) for option in program.options]
    for command in commands:
        seen = f"__fish_seen_subcommand_from {command.name}"
        if any(kind_of(argument) == "command" for argument in command.arguments):
            lines.append(
                f"complete -c lazyrestore -n '{seen}; and __lazyrestore_is_behind'"
                " -a '(__lazyrestore_behind)'"
            )
            seen += "; and not __lazyrestore_is_behind"
        lines.append("")
        for argument in command.arguments:
            values = _values(argument)
            if values and kind_of(argument) != "command":
                lines.append(f"complete -c lazyrestore -n '{seen}' {values}")
                break
        lines += [_option(seen, option) for option in command.options]
    return "\n".join(lines) + "\n"


def _option(condition: str, option: Parameter) -> str:
    lines = []
    text = _quoted(option.brief)
    if option.names:
        parts = [f"complete -c lazyrestore -n '{condition}'"]
        parts += [
            f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
        ]
        if option.metavar:
            values = _values(option)
            parts.append(f"-x {values}" if values else "-x")
        lines.append(" ".join([*parts, f"-d {text}"]))
    lines += [
        f"complete -c lazyrestore -n '{condition}' -l {name[2:]} -d {text}"
        for name in option.off_names
    ]
    return "\n".join(lines)


def _values(parameter: Parameter) -> str:
    kind = kind_of(parameter)
    words = " ".join(words_of(parameter))
    if kind == "words":
        return f"-a '{words}'"
    ending = "lzr" if kind == "image" else ending_of(parameter)
    if ending:
        return f"-a '{f'{words} '.lstrip()}(__lazyrestore_files {ending})'"
    return {
        "file": "-a '(__fish_complete_path (commandline -ct))'",
        "folder": "-a '(__fish_complete_directories (commandline -ct))'",
        "process": "-a '(__fish_complete_pids)'",
        "region": "-a '(__lazyrestore_regions)'",
        "user": "-a '(__fish_complete_users)'",
    }.get(kind, "")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
