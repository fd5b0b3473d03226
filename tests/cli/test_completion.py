"""Completion in real shells: what Tab gives in bash, zsh and fish."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import TIMEOUT_S, Image, environment, run
from restore_support import PACKAGE_HOME
from terminal_support import Terminal, plain

from lazyrestore.cli import COMMANDS, _completion
from lazyrestore.cli._commands import describe

DOCS = Path(__file__).parents[2] / "docs"
SHELLS = [
    pytest.param(
        shell,
        marks=pytest.mark.skipif(
            shutil.which(shell) is None, reason=f"{shell} is not installed: apt-get install {shell}"
        ),
    )
    for shell in _completion.SHELLS
]


@pytest.fixture
def folder(tmp_path: Path, small: Image) -> Path:
    """A folder with images, one of them with an odd name, and a program lazyrestore in PATH"""
    place = tmp_path / "place"
    (place / "states").mkdir(parents=True)
    for name in ("first.lzr", "fine day.lzr", "notes.txt", "run.ws"):
        shutil.copy(small.path, place / name)
    program = tmp_path / "bin" / "lazyrestore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lazyrestore "$@"\n')
    program.chmod(0o755)
    return place


def variables(folder: Path) -> dict[str, str]:
    path = f"{folder.parent / 'bin'}:{os.environ['PATH']}"
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    return {"PATH": path, "HOME": str(home), "PYTHONPATH": str(PACKAGE_HOME)}


def complete(shell: str, folder: Path, line: str) -> set[str]:
    """What the shell would offer at the end of a line; without what it says beside it."""
    script = folder.parent / _completion.FILE_NAMES[shell]
    if not script.exists():
        script.write_text(run("--show-completion", shell).ok().out)
    if shell == "zsh":
        return complete_zsh(script, folder, line)
    if shell == "fish":
        command = ["fish", "-N", "-c", f"source {script}; complete -C $argv[1]", line]
    else:
        words = """
            source "$1"
            line=$2
            COMP_WORDS=($(sed 's/=/ = /' <<< "$line"))
            [[ $line == *' ' ]] && COMP_WORDS+=('')
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _lazyrestore 2>&1
            printf '%s\\n' "${COMPREPLY[@]}"
        """
        command = ["bash", "--norc", "-c", words, "-", str(script), line]
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(variables(folder)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.stderr == "", result
    found = {offered.partition("\t")[0] for offered in result.stdout.splitlines()}
    return {offered.rpartition("=")[2] for offered in found if offered}


# zsh's own completion, in a zsh of its own (zpty): what it would add is written out instead.
_ZSH = r"""
zmodload zsh/zpty
fpath=(${1:h} $fpath)
line=$2
zpty inner zsh -f -i
write() { zpty -w inner "$1" }
write 'PS1=; unsetopt zle_bracketed_paste 2>/dev/null; stty -echo 2>/dev/null'
write "fpath=(${(q)1:h} \$fpath); autoload -Uz compinit; compinit -u -D"
write 'compadd() { if [[ ${@[(ie)-O]} -le $# || ${@[(ie)-A]} -le $# || ${@[(ie)-D]} -le $# ]]; then
  builtin compadd "$@"; return; fi
  typeset -a __found; builtin compadd -A __found "$@"; builtin compadd "$@"
  print -rl -- ${__found/#/OFFERED:} >> '"${(q)3}"' }'
write 'finish() { zle .kill-buffer; print DONE >> '"${(q)3}"' }'
write 'zle -C list complete-word _main_complete; bindkey "^I" list'
write 'zle -N finish; bindkey "^X" finish'
write "print READY >> ${(q)3}"
until grep -q READY $3 2>/dev/null; do zpty -rt inner _ 2>/dev/null; sleep 0.02; done
zpty -n -w inner "$line"$'\t\x18'
until grep -q DONE $3; do zpty -rt inner _ 2>/dev/null; sleep 0.02; done
zpty -d inner
"""


def complete_zsh(script: Path, folder: Path, line: str) -> set[str]:
    out = folder.parent / "offered"
    out.unlink(missing_ok=True)
    subprocess.run(
        ["zsh", "-f", "-c", _ZSH, "-", script, line, out],
        cwd=folder,
        env=environment({**variables(folder), "TERM": "xterm"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    lines = out.read_text().splitlines()
    return {
        name.rstrip("= ") for text in lines if (name := text.removeprefix("OFFERED:")) != text
    } - {""}


@pytest.mark.parametrize("shell", SHELLS)
def test_commands(shell: str, folder: Path) -> None:
    offered = complete(shell, folder, "lazyrestore ")
    assert set(COMMANDS) <= offered
    assert complete(shell, folder, "lazyrestore do") >= {"doctor"}


@pytest.mark.parametrize("shell", SHELLS)
def test_options_of_a_command(shell: str, folder: Path) -> None:
    offered = complete(shell, folder, "lazyrestore dump --p")
    assert {"--pid", "--process", "--progress"} <= {*offered, *(f"--{one}" for one in offered)}
    offered = complete(shell, folder, "lazyrestore dump --leave")
    assert any(one.endswith("leave-running") for one in offered)


@pytest.mark.parametrize("shell", SHELLS)
def test_values(shell: str, folder: Path) -> None:
    assert complete(shell, folder, "lazyrestore restore --touch ") >= {"first", "random"}
    assert complete(shell, folder, "lazyrestore restore --touch=r") >= {"random"}
    assert complete(shell, folder, "lazyrestore restore --touch=") >= {"first", "random"}
    assert complete(shell, folder, "lazyrestore dump --byte-planes ") >= {"auto", "none", "8"}
    assert str(os.getpid()) in complete(shell, folder, f"lazyrestore dump --pid {os.getpid()}")


@pytest.mark.parametrize("shell", SHELLS)
def test_images_and_folders(shell: str, folder: Path) -> None:
    """Also one with a space in its name; all files where none is an image"""
    offered = {
        name.rstrip("/").replace("\\", "") for name in complete(shell, folder, "lazyrestore info ")
    }
    assert {"first.lzr", "fine day.lzr", "states"} <= offered
    assert offered & {"notes.txt", "run.ws"} == set()
    assert "notes.txt" in complete(shell, folder, "lazyrestore info no")
    assert "run.ws" in complete(shell, folder, "lazyrestore optimize first.lzr --working-set ")


@pytest.mark.parametrize("shell", SHELLS)
def test_regions_of_the_image(shell: str, folder: Path, small: Image) -> None:
    offered = complete(shell, folder, "lazyrestore cat first.lzr --region ")
    assert set(small.expected) <= offered


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_to_serve(shell: str, folder: Path) -> None:
    """What follows -- is another program, and then its own business"""
    assert "lazyrestore" in complete(shell, folder, "lazyrestore restore first.lzr -- lazyres")
    if shell == "bash":
        assert "notes.txt" in complete(shell, folder, "lazyrestore restore first.lzr -- cat no")
    else:
        line = "lazyrestore restore first.lzr -- lazyrestore doct"
        assert "doctor" in complete(shell, folder, line)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_tab_in_an_interactive_bash(folder: Path) -> None:
    """A name with a space is quoted, and what is unique is completed whole"""
    script = folder.parent / "completion"
    script.write_text(run("--show-completion", "bash").ok().out)
    with Terminal(
        "bash", "--norc", "--noprofile", cwd=folder, env={**variables(folder), "PS1": "> "}
    ) as terminal:
        terminal.type(f"source {script}; echo read''y\n")
        terminal.wait_for("ready\r\n")
        terminal.type("lazyrestore ver\tfin\t")
        terminal.wait_for("lazyrestore verify fine\\ day.lzr ")
        terminal.type("\n")
        terminal.wait_for("sound")


def test_a_shell_is_found_or_asked_for(tmp_path: Path) -> None:
    """Who starts it is a shell; else $SHELL is one"""
    command = (sys.executable, "-m", "lazyrestore")
    by_name = run("--show-completion", "fish").ok().out
    env = environment({"SHELL": "/usr/bin/fish"})
    assert run("--show-completion", env=env, command=command).ok().out == by_name
    nothing = environment({"SHELL": "/bin/false"})
    run("--show-completion", env=nothing).fails(2, "bash, zsh or fish")
    run("--show-completion", "tcsh").fails(2, "tcsh", "bash, zsh and fish")
    run("--install-completion", "bash", "zsh").fails(2, "bash, zsh or fish")
    in_bash = ("bash", "--norc", "-c", '"$@"; exit', "-", *command)
    assert run("--show-completion", env=env, command=in_bash).ok().out.startswith("# Completion")


@pytest.mark.parametrize("shell", _completion.SHELLS)
def test_installing(shell: str, tmp_path: Path) -> None:
    """Into the user's own folders, and nowhere else; what is left to do is said"""
    env = environment({"HOME": str(tmp_path), "SHELL": f"/bin/{shell}"})
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR"):
        env.pop(name, None)
    said = run("--install-completion", shell, env=env).ok().out
    places = {
        "bash": ".local/share/bash-completion/completions/lazyrestore",
        "zsh": ".zfunc/_lazyrestore",
        "fish": ".config/fish/completions/lazyrestore.fish",
    }
    path = tmp_path / places[shell]
    assert path.read_text() == run("--show-completion", shell).ok().out
    assert said.startswith(f"{path}: written; ")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    if shell == "zsh":
        assert "fpath+=~/.zfunc" in said
        (tmp_path / ".zshrc").write_text("fpath+=~/.zfunc; autoload -Uz compinit; compinit\n")
        assert "fpath" not in run("--install-completion", "zsh", env=env).ok().out


def test_every_option_is_in_every_script() -> None:
    """Whatever is added to a command is completed"""
    program, commands = describe()
    scripts = {shell: run("--show-completion", shell).ok().out for shell in _completion.SHELLS}
    for command in (program, *commands):
        for option in command.options:
            for name in (*option.names, *option.off_names):
                if name.startswith("--"):
                    assert name in scripts["bash"]
                    assert name in scripts["zsh"]
                    assert f"-l {name[2:]} " in scripts["fish"]


def test_the_files_of_packages_are_made_from_the_commands() -> None:
    spec = importlib.util.spec_from_file_location("make_completion", DOCS / "make_completion.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    for path, text in module.make().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path} is not what the commands are: python docs/make_cli.py"
        )


def test_plain_takes_escapes_out() -> None:
    """What other tests here rely on"""
    assert plain("\x1b[1;31mlazy\x1b[0m\x1b]0;title\x07restore") == "lazyrestore"
