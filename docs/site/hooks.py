"""What mkdocs does not do by itself: the README as the first page, and links out of docs/.

The pages are read in the repository as well as in the site. There a link to ../examples/attach.c
opens that file; the site has no such file, so each one that is linked to becomes a page of its own
below `source/`. A link to what is not there is a warning, and so an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
OUTSIDE = "source"
INDEX = "index.md"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
# A number and its unit stay in one line of a table's narrow cell.
QUANTITY = re.compile(r"(?<=\d) (?=(?:[KMGT]?i?B(?:/s)?|ns|µs|ms|s|%|×)(?: |$))")
TABLE_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
# What tests/page_blocks.py reads.
DIRECTIVE = re.compile(r"^<!-- test: .*?-->\n", re.MULTILINE | re.DOTALL)
LANGUAGES = {
    ".c": "c", ".h": "c", ".py": "python", ".sh": "bash", ".json": "json", ".3": "groff",
    ".ipynb": "json", ".toml": "toml", ".service": "ini", ".socket": "ini",
}  # fmt: skip

log = logging.getLogger("mkdocs.hooks.lazyrestore")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the index, and a page for each file that something links to."""
    waiting = ["README.md"]
    waiting += [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, page_of(path), content=text_of(path)))
        if path.endswith(".md"):
            for target in links_of(path):
                if target not in seen and not target.startswith("docs/"):
                    seen.add(target)
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside of docs/ into links to their pages."""
    here = page.file.src_uri
    origin = path_of(here)

    def replace(match: re.Match[str]) -> str:
        target = resolve(origin, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(page_of(target), posixpath.dirname(here)) + match[3]

    def change(text: str) -> str:
        text = LINK.sub(replace, text)
        return TABLE_ROW.sub(lambda row: QUANTITY.sub("\N{NO-BREAK SPACE}", row[0]), text)

    return outside_fences(DIRECTIVE.sub("", markdown), change)


def path_of(page: str) -> str:
    """Where the source of a page of the site lies in the repository."""
    if page == INDEX:
        return "README.md"
    if page.startswith(f"{OUTSIDE}/"):
        path = page.removeprefix(f"{OUTSIDE}/")
        return path if (REPOSITORY / path).is_file() else path.removesuffix(".md")
    return f"docs/{page}"


def page_of(path: str) -> str:
    """The page of the site that has a file of the repository."""
    if path == "README.md":
        return INDEX
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{OUTSIDE}/{path}" + ("" if path.endswith(".md") else ".md")


def text_of(path: str) -> str:
    """A file as Markdown."""
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n~~~~ {language}\n{text.rstrip()}\n~~~~\n"


def links_of(path: str) -> list[str]:
    """The files of the repository that a Markdown file links to."""
    found: list[str] = []
    text = (REPOSITORY / path).read_text(encoding="utf-8")

    def collect(part: str) -> str:
        for match in LINK.finditer(part):
            target = resolve(path, match[2])
            if target is not None:
                found.append(target)
        return part

    outside_fences(text, collect)
    return found


def resolve(origin: str, link: str) -> str | None:
    """The file that a link in `origin` means; None: it is not for the repository."""
    if ":" in link or link.startswith("/"):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    if (REPOSITORY / target).is_dir():
        target = posixpath.join(target, "README.md")
    if not (REPOSITORY / target).is_file():
        if not target.startswith("docs/"):  # else mkdocs says it
            log.warning("%s links to %s, which is not there", origin, link)
        return None
    return target


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Apply `change` to what is not in a fenced block."""
    parts: list[str] = []
    end = 0
    for match in FENCE.finditer(text):
        parts += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(text[end:])])
