"""docs/cli.md and the manual pages say what the commands say of themselves."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from lazyrestore.cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"


def load_maker(name="make_cli"):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


needs_its_typer = pytest.mark.skipif(
    tuple(map(int, typer.__version__.split(".")[:2])) < (0, 28),
    reason=f"typer {typer.__version__} lays help out otherwise than 0.28, which made the page",
)


@needs_its_typer
def test_the_page_is_made_from_the_help_texts(monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
    )
    made = load_maker().make()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == made, (
        "docs/cli.md is not what the commands say: python docs/make_cli.py"
    )


def test_every_command_is_on_the_page():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"\n## {command}\n" in page


@needs_its_typer
def test_the_manual_pages_are_made_from_the_help_texts():
    made = load_maker("make_man").make()
    assert {path.name for path in made} == {path.name for path in (DOCS / "man").glob("*.1")}
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path} is not what the commands say: python docs/make_cli.py"
        )


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is missing: groff-base")
def test_the_manual_pages_are_sound():
    """groff has no complaint, and what is to be copied is not broken"""
    pages = sorted((DOCS / "man").glob("*.1"))
    assert len(pages) == len(COMMANDS) + 1
    for page in pages:
        result = subprocess.run(
            ["groff", "-ww", "-man", "-Tascii", "-rLL=80n", "-P-cbou", page],
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == "", page
        assert max(map(len, result.stdout.splitlines())) <= 80
    dump = (DOCS / "man" / "lazyrestore-dump.1").read_text(encoding="utf-8")
    assert "lazyrestore dump \\-\\-pid 4711 state.lzr\n" in dump


def test_every_command_has_examples_that_can_be_given():
    """Their options are there: they are taken from the help"""
    from lazyrestore.cli._commands import describe
    from lazyrestore.cli._examples import EXAMPLES

    commands = {command.name: command for command in describe()[1]}
    assert set(commands) <= set(EXAMPLES)
    for name in commands:
        for _, text in EXAMPLES[name]:
            assert f"lazyrestore {name}" in text, text
            for line in text.replace("|", "\n").splitlines():
                words = line.removesuffix("&").split()
                if words[:1] == ["sudo"]:
                    del words[0]
                if words[:1] != ["lazyrestore"]:
                    continue
                mine = words[2 : words.index("--") if "--" in words else None]
                known = {n for option in commands[words[1]].options for n in option.names}
                for word in mine:
                    if word.startswith("--") and len(word) > 2:
                        assert word in known, (name, word)


def test_the_program_has_no_page_for_what_is_no_command():
    """A command that is taken out takes its page with it"""
    names = {f"lazyrestore-{name}.1" for name in COMMANDS} | {"lazyrestore.1"}
    assert {path.name for path in (DOCS / "man").glob("*.1")} == names
