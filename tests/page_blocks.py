"""The code blocks of a Markdown page: what is to be run, and what it is to print.

What a page may say in comments, which readers of the page do not see:

    <!-- test: setup                  the lines up to --> are run by the shell, before what follows
    <!-- test: python                 … by the interpreter
    <!-- test: file NAME -->          the next block is written to NAME, not run
    <!-- test: skip REASON -->        the next block is not run
    <!-- test: skip "WORDS" REASON --> the commands of the next block that begin with WORDS are not
    <!-- test: if criu -->            what follows, up to <!-- test: fi -->, only where CRIU works;
                                      `if root`: as root only

All else runs: `python` blocks in one interpreter, the commands of `console` blocks (each after
"$ ") in one shell. A `text` block that directly follows a Python block is what that prints.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w-]*)")
DIRECTIVE = re.compile(r"<!-- test: (.*?)-->", re.DOTALL)
LONGEST_COMMAND_LINES = 30


@dataclass
class Step:
    """One thing to do. `kind`: "python", "shell", "file", "skip", "if" or "fi"."""

    kind: str
    text: str
    line: int
    expected: list[str] | None = None
    """Lines of output; None: whatever it is."""
    name: str = ""
    """Of the file; the reason, of what is skipped; what is needed for what follows."""


@dataclass
class Page:
    path: Path
    steps: list[Step] = field(default_factory=list)
    languages: dict[str, int] = field(default_factory=dict)
    """Blocks by language, also of those that are not for running (text, c, json)."""


class PageError(Exception):
    """A block that cannot be made sense of; the message begins with its place."""


def read_page(path: Path) -> Page:
    page = Page(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    directive = ""
    previous = -1  # the line at which a Python block ended
    number = 0
    while number < len(lines):
        start = number
        match = FENCE.match(lines[number])
        if match is None:
            if lines[number].lstrip().startswith("<!-- test: "):
                while "-->" not in lines[number]:
                    number += 1
                directive = _directive(page, lines[start : number + 1], start)
            elif lines[number].strip():
                directive = ""
            number += 1
            continue
        number = _end_of_block(path, lines, start, match["indent"] + match["fence"])
        indent = len(match["indent"])
        body = [line[indent:] for line in lines[start + 1 : number]]
        language = match["language"]
        page.languages[language] = page.languages.get(language, 0) + 1
        follows = previous >= 0 and not "".join(lines[previous + 1 : start]).strip()
        if language == "text" and follows:
            page.steps[-1].expected = body
        else:
            _add_block(page, language, body, start + 2, directive)
        previous = number if language == "python" and not directive else -1
        directive = ""
        number += 1
    return page


def _end_of_block(path: Path, lines: list[str], start: int, fence: str) -> int:
    for number in range(start + 1, len(lines)):
        if lines[number].rstrip() == fence:
            return number
    raise PageError(f"{path}:{start + 1}: this block does not end")


def _directive(page: Page, lines: list[str], start: int) -> str:
    """What a comment says; what it says to run at once is added to the page."""
    match = DIRECTIVE.search("\n".join(lines))
    assert match is not None, f"{page.path}:{start + 1}"
    said = match[1]
    word, _, rest = said.strip().partition(" ")
    if word in ("if", "fi"):
        page.steps.append(Step(word, "", start + 1, name=rest))
        return ""
    first, _, text = said.partition("\n")
    if first.strip() not in ("setup", "python"):
        return said.strip()
    kind = "shell" if first.strip() == "setup" else "python"
    page.steps.append(Step(kind, text.strip("\n") + "\n", start + 2))
    return ""


def _add_block(page: Page, language: str, body: list[str], line: int, directive: str) -> None:
    word, _, rest = directive.partition(" ")
    if word == "file":
        page.steps.append(Step("file", "\n".join(body) + "\n", line, name=rest))
    elif word == "skip" and not rest.startswith('"'):
        if not rest:
            raise PageError(f"{page.path}:{line}: skipped without a reason")
        page.steps.append(Step("skip", "\n".join(body), line, name=rest))
    elif language == "python":
        page.steps.append(Step("python", "\n".join(body) + "\n", line))
    elif language in ("console", "sh", "bash"):
        if language != "console" or not any(text.startswith("$ ") for text in body):
            raise PageError(f"{page.path}:{line}: for commands: ```console, each after '$ '")
        _add_commands(page, body, line, rest if word == "skip" else "")


def _add_commands(page: Page, body: list[str], line: int, skip: str) -> None:
    words, reason = "", ""
    if skip:
        _, words, reason = skip.split('"', 2)
        if not reason.strip():
            raise PageError(f"{page.path}:{line}: skipped without a reason")
    number = 0
    while number < len(body):
        start = number
        command = body[number].removeprefix("$ ")
        while _is_open(command) and number - start < LONGEST_COMMAND_LINES:
            number += 1
            if number == len(body):
                raise PageError(f"{page.path}:{line + start}: this command does not end")
            command += "\n" + body[number].removeprefix("> ")
        number += 1
        output: list[str] = []
        while number < len(body) and not body[number].startswith("$ "):
            output.append(body[number])
            number += 1
        while output and not output[-1].strip():
            output.pop()
        step = Step("shell", command, line + start, expected=output or None)
        if words and command.startswith(words):
            step = Step("skip", command, line + start, name=reason.strip())
        page.steps.append(step)


def _is_open(command: str) -> bool:
    """Whether the shell would wait for more lines of it."""
    if command.endswith("\\"):
        return True
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    return "unexpected end of file" in done.stderr or "unexpected EOF" in done.stderr


# What differs from run to run and from machine to machine: numbers with their units and sums.
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?\d[\d,_]*(?:\.\d+)?(?:e[-+]?\d+)?"
    r"(?: ?(?:[KMGT]?i?B(?:/s)?|ns|µs|ms|s|min|h|%|×)(?![\w]))?"
)
_LETTERS_DIGITS = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b|\b0x[0-9a-f]+\b")


def _plain(line: str) -> str:
    line = _LETTERS_DIGITS.sub("HEX", line)
    line = _NUMBER.sub("N", line)
    return re.sub(r"\s+", " ", line).strip()


def _pattern(line: str, loose: bool) -> re.Pattern[str]:
    parts = line.rstrip().split("…")
    if loose:
        parts = [_plain(part) if part.strip() else part.strip() for part in parts]
    return re.compile(r"\s*(?:.*?)\s*".join(re.escape(part) for part in parts))


def differs(expected: list[str], actual: list[str], *, loose: bool) -> str | None:
    """How output is other than expected; None: it is not.

    "…" stands for any part of a line; alone in a line, for any lines. Where `loose`, one number
    is as good as another, and so is the space between words.
    """
    actual = [line.rstrip() for line in actual]
    while actual and not actual[-1]:
        actual.pop()
    place = 0
    anywhere = False
    for line in expected:
        if line.strip() == "…":
            anywhere = True
            continue
        pattern = _pattern(line, loose)
        end = len(actual) if anywhere else min(place + 1, len(actual))
        for candidate in range(place, end):
            if pattern.fullmatch(_plain(actual[candidate]) if loose else actual[candidate]):
                place = candidate + 1
                break
        else:
            return f"expected: {line}\nprinted:  {actual[place] if place < len(actual) else '-'}"
        anywhere = False
    if place < len(actual) and not anywhere:
        return f"printed, and not expected: {actual[place]}"
    return None
