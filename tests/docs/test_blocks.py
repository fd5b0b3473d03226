"""Every block of code in the README and the tutorial runs, and in the how-to pages where it can.

Each page has a clean folder, a home of its own, and real commands. `run_page.py` runs the blocks
and `page_blocks.py` says what a page may ask for. The tutorial is done as by somebody new: in a
copy of the project, with what it installs itself.
"""

from __future__ import annotations

import code
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import read_page

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 600
# Not what was built or installed here: somebody new has none of it.
NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".hypothesis", ".*_cache", "__pycache__", "build", "dist"),
    *("*.so", "_binding.py*"),
)
PAGES = [
    "README.md",
    "docs/arrays.md",
    "docs/containers.md",
    "docs/converters.md",
    "docs/objects.md",
    "docs/permissions.md",
    "docs/processes.md",
    "docs/serving.md",
    "docs/working-sets.md",
]


def page_path(name: str) -> Path:
    return REPOSITORY / name


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """The environment: `python` and `lazyrestore` are those that run this."""
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    for name, arguments in (("python", ""), ("python3", ""), ("lazyrestore", "-m lazyrestore ")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        script.chmod(0o755)
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    environment = os.environ | {
        "HOME": str(home),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", f"{cache}/pip"),
        "COLUMNS": "80",
        "LC_ALL": "C.UTF-8",
    }
    environment.pop("VIRTUAL_ENV", None)
    for settings in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"):
        if settings.exists():
            environment.setdefault("PIP_CONFIG_FILE", str(settings))
    return environment


def run_page(page: Path, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "run_page.py"), str(page)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        start_new_session=True,
    )
    # pip's words where it installs; in CI there has to be a network.
    offline = "NewConnectionError|NameResolutionError|No matching distribution found"
    if re.search(offline, done.stdout) and os.environ.get("CI") != "true":
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, "\n".join(done.stdout.split("\n")[-60:])


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run_and_print_what_the_page_says(
    name: str, tmp_path: Path, tools: dict[str, str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    run_page(page_path(name), folder, tools)


def test_the_tutorial_works_on_a_machine_that_has_nothing_of_ours(
    tmp_path: Path, tools: dict[str, str]
) -> None:
    folder = tmp_path / "lazyrestore"
    shutil.copytree(REPOSITORY, folder, ignore=NOT_COPIED, symlinks=True)
    (tmp_path / "bin" / "lazyrestore").unlink()
    del tools["PYTHONPATH"]
    run_page(page_path("docs/tutorial.md"), folder, tools)


def test_nothing_of_the_tutorial_is_skipped_or_set_up_in_secret() -> None:
    tutorial = page_path("docs/tutorial.md")
    directives = re.findall(r"<!-- test: (\w+)", tutorial.read_text(encoding="utf-8"))
    assert set(directives) <= {"file"}
    assert {step.kind for step in read_page(tutorial).steps} == {"shell", "python", "file"}


class Prompt(code.InteractiveConsole):
    """Python's, which only looks whether it understands."""

    problem = ""

    def runcode(self, code: object) -> None:
        pass

    def showsyntaxerror(self, filename: str | None = None, **_: object) -> None:
        self.problem = str(sys.exc_info()[1])


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_python_can_be_pasted_into_a_prompt(name: str) -> None:
    # Before Python 3.13 that ends a `with` or a `def` at an empty line only.
    for step in read_page(page_path(name)).steps:
        if step.kind == "python":
            prompt = Prompt()
            for number, line in enumerate([*step.text.split("\n"), ""], step.line):
                prompt.push(line)
                assert not prompt.problem, f"{name}:{number}: {prompt.problem}"
