"""docs/cli.md says what the commands say of themselves."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import typer

from lazyrestore.cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"


def load_maker():
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
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
