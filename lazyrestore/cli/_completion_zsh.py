"""Completion for zsh, with what each thing does beside it."""

from __future__ import annotations

from collections.abc import Sequence

from ._commands import Command, Parameter
from ._completion import ending_of, kind_of, words_of

_HEAD = """\
#compdef lazyrestore
# Completion of lazyrestore for zsh. Made from its help: do not edit.

# Files with an ending, which comes last; all files where there are none of these.
_lazyrestore_files() {
	_files "${@[1,-2]}" -g "*.${@[-1]}(-.)" || _files "${@[1,-2]}"
}

# Numbers of processes, with their names.
_lazyrestore_processes() {
	local pid
	local -a found
	for pid in /proc/<->(/N:t); do
		found+=("$pid:$(</proc/$pid/comm)")
	done 2>/dev/null
	_describe -t processes process found
}

# Names of the regions of the first image on the line.
_lazyrestore_regions() {
	local image found
	for image in ${(Q)words}; do
		[[ $image == *.lzr ]] || continue
		found=(${(f)"$(_call_program regions lazyrestore ls --quiet ${(q)~image} 2>/dev/null)"})
		compadd -a found
		return
	done
	_message 'region: write the image first'
}
"""


def make(program: Command, commands: Sequence[Command]) -> str:
    """The script."""
    lines = [_HEAD, "_lazyrestore() {"]
    lines.append("\tlocal curcontext=$curcontext state line ret=1")
    lines.append("\ttypeset -A opt_args")
    lines.append("\t_arguments -C \\")
    lines += [f"\t\t{spec} \\" for option in program.options for spec in _specs(option)]
    lines += ["\t\t'1: :->command' \\", "\t\t'*:: :->rest' && ret=0", "\tcase $state in"]
    lines += ["\tcommand)", "\t\tlocal -a commands", "\t\tcommands=("]
    lines += [f"\t\t\t{_quote(f'{one.name}:{one.summary}')}" for one in commands]
    lines += ["\t\t)", "\t\t_describe -t commands command commands && ret=0", "\t\t;;"]
    lines += ["\trest)", "\t\tcase $words[1] in"]
    for command in commands:
        specs = [spec for option in command.options for spec in _specs(option)]
        specs += _positionals(command)
        lines.append(f"\t\t{command.name})")
        lines.append("\t\t\t_arguments -s -S \\")
        lines += [f"\t\t\t\t{spec} \\" for spec in specs[:-1]]
        lines += [f"\t\t\t\t{specs[-1]} && ret=0", "\t\t\t;;"]
    lines += ["\t\tesac", "\t\t;;", "\tesac", "\treturn ret", "}", ""]
    # Found in fpath it is the function's body; sourced, it makes itself known.
    lines += ['if [[ $funcstack[1] == _lazyrestore ]]; then\n\t_lazyrestore "$@"']
    lines += ["else\n\tcompdef _lazyrestore lazyrestore\nfi", ""]
    return "\n".join(lines)


def _specs(option: Parameter) -> list[str]:
    """As _arguments wants it: one for each name, that excludes the others."""
    all_names = (*option.names, *option.off_names)
    value = f":{_plain(option.metavar)}:{_action(option)}" if option.metavar else ""
    before = "*" if option.is_many else f"({' '.join(all_names)})" if len(all_names) > 1 else ""
    text = _plain(option.brief)
    return [
        _quote(f"{before}{name}{'=' if value and name.startswith('--') else ''}[{text}]{value}")
        for name in all_names
    ]


def _positionals(command: Command) -> list[str]:
    specs = []
    for number, argument in enumerate(command.arguments, 1):
        if kind_of(argument) == "command":
            specs.append("'*:::command:_normal'")
            continue
        action = _action(argument)
        words = words_of(argument)
        if words and kind_of(argument) != "words":
            action = f"{{compadd {' '.join(words)}; {action}}}"
        specs.append(_quote(f"{number}:{_plain(argument.metavar).strip(' ')}:{action}"))
    return specs


def _action(parameter: Parameter) -> str:
    kind = kind_of(parameter)
    if kind == "words":
        return f"({' '.join(words_of(parameter))})"
    ending = "lzr" if kind == "image" else ending_of(parameter)
    if ending:
        return f"_lazyrestore_files {ending}"
    return {
        "file": "_files",
        "folder": "_files -/",
        "process": "_lazyrestore_processes",
        "region": "_lazyrestore_regions",
        "user": "_users",
    }.get(kind, "")


def _plain(text: str) -> str:
    """Without what means something to _arguments."""
    for letter in "[]:\\":
        text = text.replace(letter, " " if letter in "[]" else f"\\{letter}")
    return " ".join(text.split())


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
