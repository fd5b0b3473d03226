"""What says how far a command is: on a terminal, in a pipe, and when it is asked by a signal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_support import COMMAND, TIMEOUT_S, environment, finish, run, start, wait_until
from terminal_support import Terminal, plain

from lazyrestore.cli._progress import Progress, describe

MIB = 1 << 20


def test_it_says_rate_and_time_left() -> None:
    text = describe("dump", 1 << 30, 4 << 30, 512 * MIB)
    assert "25%" in text
    assert "1.0 GiB of 4.0 GiB" in text
    assert "512.0 MiB/s" in text
    assert text.endswith("6 s left")
    assert len(text) < 80
    assert describe("dump", 1 << 30, 512 << 30, 1 << 30).endswith("8 min 31 s left")
    assert describe("dump", 1 << 30, 512 << 40, 1 << 20).endswith(" h left")
    assert describe("dump", 99, 100, 10.0).endswith("1 s left")


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_longest_that_is_likely_fits(columns: int) -> None:
    """And the bar is of the same width while the rest of the line changes"""
    widths = set()
    for done, rate in ((1000 * MIB, 900 * MIB), (512 << 30, 1 << 20), (1009 << 30, 1 << 30)):
        text = describe("optimize", done, 1009 << 30, rate, columns=columns)
        assert len(text) < columns
        widths.add(sum(text.count(letter) for letter in "█▉▊▋▌▍▎▏·"))
    assert len(widths) == 1
    assert widths.pop() >= min(40, columns - 76)


def test_the_bar_shows_eighths() -> None:
    """It moves where a few letters would stand still"""
    shown = {describe("dump", share, 160, 1.0, columns=80).split()[1] for share in range(160)}
    assert len({bar for bar in shown if set(bar) <= set("█▉▊▋▌▍▎▏·")}) > 80
    assert "█" * 10 in describe("dump", 160, 160, 1.0, columns=80)


def test_of_unknown_length() -> None:
    assert describe("dump", 1 << 30, None, 512 * MIB) == "dump  1.0 GiB  512.0 MiB/s"
    assert "left" not in describe("dump", 4 << 30, 4 << 30, 1.0)
    assert describe("dump", 0, 4 << 30, 0.0)


def test_the_rate_follows_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of zeros at 100 GiB/s says little about the minute of data behind it"""
    now = [0.0]
    monkeypatch.setattr("lazyrestore.cli._progress.time.monotonic", lambda: now[0])
    shown: list[float] = []
    progress = Progress("dump", wanted=True)
    monkeypatch.setattr(progress, "_draw", lambda *_: shown.append(progress._rate))
    monkeypatch.setattr(progress, "_is_line", True)
    monkeypatch.setattr(progress, "_interval", 0.1)
    done = 0
    for rate, seconds in ((100 << 30, 1), (100 << 20, 15)):
        for _ in range(seconds * 4):
            now[0] += 0.25
            done += rate // 4
            progress(done, 1 << 50)
    assert shown[2] > 50 << 30
    assert shown[-1] < 1 << 30


def feed(child: subprocess.Popen[bytes], is_done: threading.Event) -> threading.Thread:
    """Write random pages to its standard input, until the event."""

    def write() -> None:
        while not is_done.is_set():
            os.write(child.stdin.fileno(), os.urandom(65536))
            is_done.wait(0.005)
        child.stdin.close()
        child.stdin = None

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_on_a_terminal(tmp_path: Path) -> None:
    """One line that changes, and is gone in the end; the report goes elsewhere"""
    is_done = threading.Event()
    arguments = [*COMMAND, "dump", "--file", "-", tmp_path / "x.lzr"]
    with Terminal(*arguments, streams="2", stdin=subprocess.PIPE) as terminal:
        thread = feed(terminal.child, is_done)
        try:
            terminal.wait_for(lambda text: text.count("iB/s") >= 3)
        finally:
            is_done.set()
            thread.join(TIMEOUT_S)
        assert terminal.finish() == 0
        assert "\n" not in terminal.shown
        assert plain(terminal.shown).split("\r")[-2].strip() == ""


SCRIPT = """
import sys, time
from lazyrestore.cli._progress import Progress
with Progress("verify", wanted=eval(sys.argv[1])) as progress:
    begin = time.monotonic()
    done = 0
    while time.monotonic() - begin < 0.7:
        done += 1 << 20
        progress(done, 1 << 50)
"""


@pytest.mark.parametrize("columns", [40, 80, 200, 0])
def test_it_fits_the_terminal(columns: int) -> None:
    """Whatever its width, and where it does not say (0)"""
    with Terminal(sys.executable, "-c", SCRIPT, "None", columns=columns) as terminal:
        assert terminal.finish() == 0
    lines = [line for line in plain(terminal.shown).split("\r") if line.strip()]
    assert len(lines) > 1
    assert max(map(len, lines)) < (columns or 80)
    assert all(line.startswith("verify") for line in lines)
    assert ("█" in terminal.shown or "·" in terminal.shown) == (columns != 40)
    assert all(re.match(r"verify  \d+%", line) for line in lines) == (columns == 40)


def test_letters_that_the_terminal_has_not() -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with Terminal(sys.executable, "-c", SCRIPT, "None", env=env) as terminal:
        assert terminal.finish() == 0
    assert terminal.shown.isascii()
    assert ".." in terminal.shown


@pytest.mark.parametrize("how", [["--no-progress"], ["-q"], []])
def test_none(tmp_path: Path, how: list[str]) -> None:
    """It was not wanted, or this is a terminal that knows no lines that change"""
    env = {} if how else {"TERM": "dumb"}
    with Terminal(sys.executable, "-c", SCRIPT, repr(False if how else None), env=env) as terminal:
        assert terminal.finish() == 0
        assert terminal.shown == ""
    data = tmp_path / "data"
    data.write_bytes(b"x" * 10000)
    with Terminal(
        *COMMAND, "dump", *how, "--file", data, tmp_path / "x.lzr", streams="2", env=env
    ) as terminal:
        assert terminal.finish() == 0
        assert terminal.shown == ""


def test_in_a_pipe(tmp_path: Path) -> None:
    """Nothing, or with --progress whole lines, of which the last says that it is done"""
    data, image = tmp_path / "data", tmp_path / "x.lzr"
    data.write_bytes(bytes(range(256)) * 4096)
    assert run("dump", "--file", data, image).ok()
    for command in (
        ["dump", "--file", data, image],
        ["verify", image],
        ["restore", image, "-o", tmp_path / "out"],
    ):
        for others in ([], ["--json"], ["-q"]):
            result = run(*command, *others, "--progress")
            assert result.code == 0, result
            assert "\r" not in result.err
            assert result.err.splitlines()[-1].startswith(f"{command[0]}  100%  1.0 MiB of 1.0 MiB")
            assert "%" not in result.out
        assert run(*command, "--no-progress").ok().out


def test_a_failure_is_the_last_that_is_said(tmp_path: Path) -> None:
    """Also with --progress: one line, of what went wrong"""
    run("dump", "--progress", "--file", tmp_path / "none", tmp_path / "x.lzr").fails(1, "No such")


def test_who_asks_by_a_signal_is_told(tmp_path: Path) -> None:
    """SIGUSR1, as dd has it: a line, even with -q in a pipe"""
    is_done = threading.Event()
    image = tmp_path / "x.lzr"
    child = start("dump", "-q", "--file", "-", image, stdin=subprocess.PIPE)
    thread = feed(child, is_done)
    status = Path(f"/proc/{child.pid}/status")
    bit = 1 << (signal.SIGUSR1 - 1)
    try:
        wait_until(
            "it listens",
            lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & bit,
        )
        child.send_signal(signal.SIGUSR1)
        assert select.select([child.stderr], [], [], TIMEOUT_S)[0], "it says nothing"
        line = child.stderr.readline().decode()
    finally:
        is_done.set()
        thread.join(TIMEOUT_S)
    assert line.startswith("dump  ")
    assert line.rstrip().endswith("iB/s")
    result = finish(child)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert image.exists()


@pytest.mark.parametrize(
    ("variables", "has"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"FORCE_COLOR": "0"}, False),
    ],
)
def test_colours_on_a_terminal(variables: dict[str, str], has: bool) -> None:
    with Terminal(*COMMAND, "info", "none.lzr", env=variables) as terminal:
        assert terminal.finish() == 1
    assert ("\x1b[" in terminal.shown) == has
    assert plain(terminal.shown).startswith("lazyrestore: none.lzr: No such file")


def test_colours_in_a_pipe() -> None:
    """None, unless they are forced"""
    run("info", "none.lzr").fails(1)
    forced = run("info", "none.lzr", env=environment({"FORCE_COLOR": "1"}))
    assert forced.err.startswith("\x1b[")
    assert plain(forced.err).startswith("lazyrestore: none.lzr")
