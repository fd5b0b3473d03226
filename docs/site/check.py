"""What mkdocs does not check of the built site: `python docs/site/check.py build/site`.

Every link within it leads to a file and a heading that are there, also where a page has it as HTML;
and nothing is fetched from anywhere else when a page is viewed.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What makes a browser fetch something; a link that is followed (<a>) does not.
FETCHED = {
    "script": "src", "img": "src", "source": "src", "video": "src", "audio": "src", "iframe": "src",
    "link": "href", "object": "data", "embed": "src",
}  # fmt: skip
NOT_FETCHED_LINKS = {"canonical", "next", "prev", "alternate"}
FETCHED_BY_STYLE = re.compile(
    r"url\(\s*['\"]?((?:https?:)?//[^'\")\s]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)"
)


class Page(HTMLParser):
    """What a page links to, fetches, and has anchors for."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what one tag has."""
        values = {name: value or "" for name, value in attributes}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a":
            if "name" in values:
                self.anchors.add(values["name"])
            if "href" in values:
                self.links.append(values["href"])
        elif tag in FETCHED and FETCHED[tag] in values:
            said = values.get("rel", "").split() if tag == "link" else []
            if not NOT_FETCHED_LINKS.intersection(said):
                self.fetched.append(values[FETCHED[tag]])


def check(site: Path) -> list[str]:
    """What is wrong, a line each."""
    problems: list[str] = []
    pages: dict[Path, Page] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in page.fetched:
            if urlsplit(link).netloc:
                problems.append(f"{name} fetches {link}")
            elif urlsplit(link).scheme != "data" and not target_of(site, path, link).is_file():
                problems.append(f"{name} uses {link}, which is not there")
        # The page for what is not there has links from the site's root.
        for link in page.links if name.name != "404.html" else []:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = target_of(site, path, link)
            if target not in pages and not target.is_file():
                problems.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                # The theme's own, made when a page is viewed.
                if anchor not in pages[target].anchors and not anchor.startswith("__"):
                    problems.append(f"{name} links to {link}: no such heading")
    for path in sorted(site.rglob("*.css")):
        fetched = FETCHED_BY_STYLE.finditer(path.read_text(encoding="utf-8"))
        problems += [f"{path.relative_to(site)} fetches {url[1] or url[2]}" for url in fetched]
    if not pages:
        problems.append(f"{site} has no pages")
    return problems


def target_of(site: Path, page: Path, link: str) -> Path:
    """The file that a link leads to."""
    path = unquote(urlsplit(link).path)
    base = site if path.startswith("/") else page.parent
    target = (base / path.lstrip("/")).resolve() if path else page
    return target / "index.html" if target.is_dir() else target


if __name__ == "__main__":
    found = check(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "every link leads somewhere, and nothing is fetched from elsewhere")
    sys.exit(1 if found else 0)
