"""What the site promises and no build of it would notice."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import lazyrestore

DOCS = Path(__file__).parents[2] / "docs"


def test_every_exported_name_is_in_the_reference_once() -> None:
    shown = re.findall(r"^::: lazyrestore\.(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.M)
    assert sorted(shown) == sorted(set(lazyrestore.__all__) - {"__version__"})


def test_every_page_is_in_the_navigation() -> None:
    # mkdocs says this too, but it is not installed where the tests run.
    text = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r"^ {6}- .*: ([\w-]+\.md)$", text, re.M))
    there = {path.name for path in DOCS.glob("*.md") if not path.name.endswith(".in.md")}
    assert named == there | {"index.md"}


@pytest.fixture(scope="module")
def check() -> Callable[[Path], list[str]]:
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "site" / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Path], list[str]] = module.check
    return found


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="b.html">', ""),
        ('<a href="b.html#there">', ""),
        ('<a href="https://example.org/">', ""),
        ('<a href="c.html">', "which is not there"),
        ('<a href="b.html#missing">', "no such heading"),
        ('<a href="#missing">', "no such heading"),
        ('<a href="folder/">', "which is not there"),
        ('<img src="p.png">', "which is not there"),
        ('<script src="https://example.org/a.js"></script>', "fetches"),
        ('<link rel="stylesheet" href="//example.org/a.css">', "fetches"),
        ('<link rel="canonical" href="https://example.org/">', ""),
    ],
)
def test_the_check_of_the_site_sees_what_is_wrong(
    html: str, problem: str, tmp_path: Path, check: Callable[[Path], list[str]]
) -> None:
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text('<h1 id="there">')
    (tmp_path / "folder").mkdir()
    found = check(tmp_path)
    assert len(found) == bool(problem), found
    assert problem in "".join(found)


def test_the_check_of_the_site_sees_what_styles_fetch(
    tmp_path: Path, check: Callable[[Path], list[str]]
) -> None:
    (tmp_path / "a.html").write_text("")
    (tmp_path / "a.css").write_text("body { background: url(https://example.org/a.png) }")
    assert "fetches https://example.org/a.png" in check(tmp_path)[0]
