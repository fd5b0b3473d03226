"""Completion for bash, from version 4 on; it needs nothing of bash-completion."""

from __future__ import annotations

from collections.abc import Sequence

from ._commands import Command, Parameter
from ._completion import ending_of, kind_of, names, words_of

_HEAD = """\
# Completion of lazyrestore for bash. Made from its help: do not edit.

# Files with an ending and folders; all files where there are none of these.
_lazyrestore_files() {
	local cur=$1 ending=$2
	compopt -o filenames 2>/dev/null
	if [[ -n $ending ]]; then
		mapfile -t COMPREPLY < <(compgen -f -X "!*.$ending" -- "$cur"; compgen -d -- "$cur")
		[[ ${#COMPREPLY[@]} -gt 0 ]] && return
	fi
	mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}

_lazyrestore_words() {
	mapfile -t COMPREPLY < <(compgen -W "$2" -- "$1")
}

# Names of the regions of the first image on the line. They are no patterns, nor are they words.
_lazyrestore_regions() {
	local cur=$1 word name
	for word in "${COMP_WORDS[@]:2}"; do
		[[ $word == *.lzr ]] || continue
		word=${word/#\\~\\//$HOME/}
		compopt -o filenames 2>/dev/null
		while IFS= read -r name; do
			[[ $name == "$cur"* ]] && COMPREPLY+=("$name")
		done < <("${COMP_WORDS[0]}" ls --quiet "$word" 2>/dev/null)
		return
	done
}

_lazyrestore() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command='' word i
	COMPREPLY=()
	# --option=value: "=" is a word of its own.
	if [[ $cur == = ]]; then
		cur=''
	elif [[ $prev == = ]]; then
		prev=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ -z $command && $word != -* ]]; then
			command=$word
		elif [[ $word == -- && $command == restore ]]; then
			if ((i + 1 == COMP_CWORD)); then
				mapfile -t COMPREPLY < <(compgen -c -- "$cur")
				[[ $cur == */* ]] && _lazyrestore_files "$cur"
			else
				_lazyrestore_files "$cur"
			fi
			return
		fi
	done
"""


def make(program: Command, commands: Sequence[Command]) -> str:
    """The script."""
    lines = [_HEAD + '\tcase "$command $prev" in']
    for command in (program, *commands):
        owner = "" if command is program else command.name
        for option in command.options:
            if option.metavar:
                pattern = " | ".join(f'"{owner} {name}"' for name in option.names)
                lines.append(f"\t{pattern}) {_action(option)}; return ;;")
    lines += ["\tesac", "\tcase $command in", "\t'')"]
    lines.append(
        f'\t\t_lazyrestore_words "$cur" "{_words([*_options(program), *names(commands)])}"'
    )
    lines.append("\t\treturn ;;")
    for command in commands:
        lines.append(f"\t{command.name})")
        lines.append("\t\tif [[ $cur == -* ]]; then")
        lines.append(f'\t\t\t_lazyrestore_words "$cur" "{_words(_options(command))}"')
        action = _positional(command)
        if action:
            lines += ["\t\telse", f"\t\t\t{action}"]
        lines += ["\t\tfi", "\t\treturn ;;"]
    lines += ["\tesac", "}", "", "complete -F _lazyrestore lazyrestore", ""]
    return "\n".join(lines)


def _options(command: Command) -> list[str]:
    """All that can be written; the short ones are known by heart."""
    return [
        name
        for option in command.options
        for name in (*option.names, *option.off_names)
        if name.startswith("--")
    ]


def _words(words: Sequence[str]) -> str:
    return " ".join(words)


def _action(parameter: Parameter) -> str:
    """What fills COMPREPLY with values."""
    kind = kind_of(parameter)
    if kind == "words":
        return f'_lazyrestore_words "$cur" "{_words(words_of(parameter))}"'
    if kind == "image":
        return '_lazyrestore_files "$cur" lzr'
    if kind == "file":
        return f'_lazyrestore_files "$cur" {ending_of(parameter)}'.rstrip()
    if kind == "folder":
        return 'compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur")'
    if kind == "process":
        return '_lazyrestore_words "$cur" "$(cd /proc && echo [0-9]*)"'
    if kind == "region":
        return '_lazyrestore_regions "$cur"'
    if kind == "user":
        return 'mapfile -t COMPREPLY < <(compgen -u -- "$cur")'
    return "true"


def _positional(command: Command) -> str:
    for argument in command.arguments:
        if kind_of(argument) == "command":
            continue
        text = _action(argument)
        for word in words_of(argument) if kind_of(argument) != "words" else ():
            text += f'; [[ {word} == "$cur"* ]] && COMPREPLY+=({word})'
        return text
    return ""
