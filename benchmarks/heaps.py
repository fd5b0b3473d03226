"""Live programs whose memory is dumped: `python -m benchmarks.heaps objects|database BYTES`.

Each fills its memory from the sources of the Python that runs it, prints "ready", and waits until
its standard input is closed.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
import sqlite3
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def source_files() -> list[Path]:
    """The standard library's modules, and those that are installed beside it."""
    places = dict.fromkeys((sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")))
    return [path for place in places for path in sorted(Path(place).rglob("*.py"))]


def texts() -> Iterator[tuple[str, str]]:
    """Names and contents, over and over."""
    for turn in itertools.count():
        for path in source_files():
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            yield f"{turn}:{path}", text


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Definition:
    """What a program that indexes sources keeps of each definition."""

    def __init__(self, name: str, line: int, arguments: list[str], doc: str | None) -> None:
        self.name = name
        self.line = line
        self.arguments = arguments
        self.doc = doc
        self.uses: dict[str, int] = {}


def fill_objects(nbytes: int) -> object:
    """Dicts, lists, tuples, instances and strings: an index of source files."""
    index: dict[str, object] = {}
    for name, text in texts():
        words: dict[str, list[int]] = {}
        for number, line in enumerate(text.splitlines()):
            for word in re.findall(r"\w+", line):
                words.setdefault(word, []).append(number)
        found = []
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                given = [a.arg for a in node.args.args] if hasattr(node, "args") else []
                made = Definition(node.name, node.lineno, given, ast.get_docstring(node))
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Name):
                        made.uses[inner.id] = made.uses.get(inner.id, 0) + 1
                found.append(made)
        digest = hashlib.sha256(text.encode()).hexdigest()
        index[name] = {"words": words, "found": found, "text": text, "digest": digest}
        if resident_bytes() >= nbytes:
            break
    return index


def fill_database(nbytes: int) -> object:
    """A database in memory: rows of text and numbers, with two indexes."""
    database = sqlite3.connect(":memory:")
    database.execute("create table files (id integer primary key, name text, digest blob)")
    database.execute(
        "create table lines (id integer primary key, file integer, number integer, indent integer,"
        " changed_ms integer, score real, text text)"
    )
    database.execute("create index by_text on lines (text)")
    database.execute("create index by_change on lines (changed_ms, file)")
    now_ms = 1_700_000_000_000
    for number, (name, text) in enumerate(texts()):
        database.execute(
            "insert into files values (?, ?, ?)",
            (number, name, hashlib.sha256(text.encode()).digest()),
        )
        rows = []
        for at, line in enumerate(text.splitlines()):
            now_ms += 7 + len(line) * 3
            indent = len(line) - len(line.lstrip())
            rows.append((number, at, indent, now_ms, len(line) / (1 + at), line))
        database.executemany(
            "insert into lines (file, number, indent, changed_ms, score, text)"
            " values (?, ?, ?, ?, ?, ?)",
            rows,
        )
        if resident_bytes() >= nbytes:
            break
    return database


def main() -> None:
    fill = {"objects": fill_objects, "database": fill_database}[sys.argv[1]]
    held = fill(int(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.read()
    del held


if __name__ == "__main__":
    main()
