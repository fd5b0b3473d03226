"""What runs the pages' blocks sees each way in which a page can be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from page_blocks import PageError, differs, read_page

RUN_PAGE = Path(__file__).parents[1] / "run_page.py"

RIGHT = {
    "nothing to run": "```text\nas you like\n```",
    "output": "```python\nprint(1 + 1)\n```\n\n```text\n2\n```",
    "names go on": "```python\nx = 1\n```\nand\n```python\nprint(x)\n```\n```text\n1\n```",
    "a number is as good as another":
    "```console\n$ echo took 3.2 ms, 5 KiB\ntook 18 ms, 2.0 MiB\n```",
    "any lines": "```console\n$ seq 100; echo end\n…\nend\n```",
    "any part": "```console\n$ echo made today by me\nmade … me\n```",
    "a failure that is shown": "```console\n$ (exit 3)\n$ echo $?\n3\n```",
    "more than one line": "```console\n$ echo 'a\nb' \\\n    c\na\nb c\n```",
    "the shell's folder is Python's": "```console\n$ mkdir a && cd a\n```\n"
    "```python\nimport os\nprint(os.path.basename(os.getcwd()))\n```\n```text\na\n```",
    "a file":
    "<!-- test: file a.py -->\n```python\nprint('a')\n```\n```console\n$ python3 a.py\na\n```",
    "what is prepared": "<!-- test: setup\nname=me\n-->\n```console\n$ echo $name\nme\n```",
    "skipped": "<!-- test: skip there is no such thing -->\n```console\n$ no-such-thing\n```",
    "skipped in part":
    '<!-- test: skip "no-such" not here -->\n```console\n$ no-such-thing\n$ true\n```',
}  # fmt: skip
WRONG = {
    "a command fails": "```console\n$ false\n```",
    "no such command": "```console\n$ no-such-thing\n```",
    "a failure before another command": "```console\n$ false\n$ true\n```",
    "another exit code": "```console\n$ (exit 3)\n$ echo $?\n4x\n```",
    "other output": "```console\n$ echo one\ntwo\n```",
    "more output": "```console\n$ seq 3\n1\n2\n```",
    "less output": "```console\n$ seq 2\n1\n2\n3\n```",
    "an exception": "```python\nraise ValueError\n```",
    "Python that does not compile": "```python\nx =\n```",
    "Python prints another number": "```python\nprint(1 + 1)\n```\n\n```text\n3\n```",
    "the rest of a block": '<!-- test: skip "true" as it is -->\n```console\n$ true\n$ false\n```',
    "it ends the interpreter": "```python\nimport os\nos._exit(0)\n```",
    "it ends the shell": "```console\n$ exit 0\n```",
    "it never ends": "```console\n$ sleep 1000\n```",
}
SENSELESS = {
    "skipped without a reason": "<!-- test: skip -->\n```console\n$ true\n```",
    "skipped in part without a reason": '<!-- test: skip "a" -->\n```console\n$ a\n```',
    "no end": "```python\nx = 1\n",
    "commands without a sign": "```console\ntrue\n```",
    "a shell script": "```sh\n$ true\n```",
    "an open command": "```console\n$ echo 'a\n```",
}


def run(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, RUN_PAGE, page],
        cwd=folder,
        env=os.environ | {"BLOCK_LIMIT_S": "2" if "sleep" in text else "60"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_a_page_that_is_right_passes(text: str, tmp_path: Path) -> None:
    done = run(text, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_page_that_is_wrong_fails(text: str, tmp_path: Path) -> None:
    done = run(text, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "\n=== " in done.stdout


@pytest.mark.parametrize("text", SENSELESS.values(), ids=SENSELESS)
def test_a_page_that_makes_no_sense_is_refused(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(PageError, match=str(page)):
        read_page(page)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    text = """
        ```console
        $ setsid sh -c 'echo $$ > pid; exec sleep 1000' > /dev/null 2>&1 &
        $ until [ -s pid ]; do sleep 0.05; done
        ```
    """
    assert run(textwrap.dedent(text), tmp_path).returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_lines_are_compared_as_the_page_means_them() -> None:
    assert differs(["a", "…", "z"], ["a", "z"], loose=False) is None
    assert differs(["…"], [], loose=False) is None
    assert differs(["a 1"], ["a 2"], loose=True) is None
    assert differs(["a 1"], ["a 2"], loose=False) is not None
    assert differs(["digest …"], ["digest 0a1b2c3d4e"], loose=True) is None
    assert differs(["at 7fd274b46010"], ["at 7ffa81001000"], loose=True) is None
    assert differs(["a b"], ["a c"], loose=True) is not None
    assert differs(["a", "…"], ["b"], loose=True) is not None
