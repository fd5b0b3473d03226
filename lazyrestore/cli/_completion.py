"""What completes the command line in bash, zsh and fish.

    lazyrestore --show-completion bash        print it
    lazyrestore --install-completion          put it where the shell finds it

The scripts have all that does not depend on the place: Tab starts no Python but for the names of an
image's regions. `docs/make_completion.py` writes them for packages, with the functions below.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ._errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._commands import Command, Parameter

SHELLS = ("bash", "zsh", "fish")
FILE_NAMES = {"bash": "lazyrestore.bash", "zsh": "_lazyrestore", "fish": "lazyrestore.fish"}

# What a value is, by what it is called; anything else cannot be completed.
_KINDS = {
    **dict.fromkeys(("IMAGE", "[IMAGE]", "A", "B", "NEW", "BEFORE", "AFTER"), "image"),
    **dict.fromkeys(("FILE", "PATH", "ELF"), "file"),
    **dict.fromkeys(("SOCKET",), "file"),
    "DIR": "folder",
    "PID": "process",
    "NAME": "region",
    "UID": "user",
    "[IMAGE|hello]": "image",
}
# Options that want files of one kind.
_ENDINGS = {
    "--working-set": "ws",
    "--npz": "npz",
    "--npy": "npy",
    "--safetensors": "safetensors",
    "--svg": "svg",
}
_CHOICE = re.compile(r"[a-z0-9-]+(\|[a-z0-9-]+)+")  # all that it can be, as auto|none
_WORDS = {"[IMAGE|hello]": ("hello",), "[SHELL]": SHELLS}


def kind_of(parameter: Parameter) -> str:
    """What its value is: image, file, folder, process, region, user, command, words or ""."""
    if parameter.choices or _CHOICE.fullmatch(parameter.metavar):
        return "words"
    metavar = parameter.metavar.removesuffix("...")
    if "COMMAND" in metavar:
        return "command"
    if metavar not in _KINDS and metavar in _WORDS:
        return "words"
    return _KINDS.get(metavar, "")


def words_of(parameter: Parameter) -> tuple[str, ...]:
    """The words that its value can be, beside what its kind says."""
    if _CHOICE.fullmatch(parameter.metavar):
        return tuple(parameter.metavar.split("|"))
    return parameter.choices or _WORDS.get(parameter.metavar, ())


def ending_of(parameter: Parameter) -> str:
    """How the files that it wants end, without a dot; "": any."""
    return next((_ENDINGS[name] for name in parameter.names if name in _ENDINGS), "")


def script(shell: str) -> str:
    """The script for a shell.

    Raises:
        UsageError: of no such shell.
    """
    from ._commands import describe

    if shell not in SHELLS:
        raise UsageError(f"completion is for bash, zsh and fish, and not for {shell!r}: give one")
    from . import _completion_bash, _completion_fish, _completion_zsh

    make = {
        "bash": _completion_bash.make,
        "zsh": _completion_zsh.make,
        "fish": _completion_fish.make,
    }[shell]
    return make(*describe())


def names(commands: Iterable[Command]) -> list[str]:
    """The commands' names."""
    return [command.name for command in commands]


# ---- --show-completion, --install-completion -----------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Do what one of the two says, with the shell's name or without."""
    option, _, given = arguments[0].partition("=")
    rest = [*([given] if given else []), *arguments[1:]]
    if len(rest) > 1:
        raise UsageError(f"{option} is given a shell's name at most: bash, zsh or fish")
    shell = rest[0] if rest else _find_shell(option)
    text = script(shell)
    if option == "--show-completion":
        print(text, end="")
        return
    path, advice = _place(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: written; {advice}")


def _find_shell(option: str) -> str:
    """The shell that started this, or else the user's own."""
    try:
        name = Path(f"/proc/{os.getppid()}/comm").read_text().strip()
    except OSError:
        name = ""
    if name not in SHELLS:
        name = os.path.basename(os.environ.get("SHELL", ""))
    if name not in SHELLS:
        raise UsageError(f"which shell is this? say {option} bash, zsh or fish")
    return name


def _place(shell: str) -> tuple[Path, str]:
    """Where the user's own completions are, and what is to be done yet."""
    home = Path.home()
    again = "start a new shell for it to take effect"
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return config / "fish" / "completions" / FILE_NAMES[shell], again
    if shell == "bash":
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
        path = data / "bash-completion" / "completions" / "lazyrestore"
        if os.path.exists("/usr/share/bash-completion/bash_completion"):
            return path, again
        return path, f"add to ~/.bashrc, as bash-completion is not installed: source {path}"
    path = home / ".zfunc" / FILE_NAMES[shell]
    config_file = Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
    try:
        if ".zfunc" in config_file.read_text(errors="replace"):
            return path, again
    except OSError:
        pass
    return path, f"add to {config_file}: fpath+=~/.zfunc; autoload -Uz compinit; compinit"
