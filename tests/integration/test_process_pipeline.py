"""A shell pipeline, which forks for ever."""

from __future__ import annotations

import os
import signal

from program_support import PROGRAMS, Program, tree, until

LINES = 100_000


def numbers_in(log) -> int:
    """How many lines there are; none is missing, and none is wrong."""
    text = log.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    for number, line in enumerate(whole, 1):
        assert line == f"{number} {number * (number + 1) // 2} right"
    return len(whole)


def expect_more(log):
    had = numbers_in(log)
    until("the pipeline goes on", lambda: numbers_in(log) > had + 20)


def test_a_pipeline_lives_on(programs):
    """Each number goes through, once, whichever part of it was where."""
    log = programs.folder / "log"
    log.touch()
    script = str(PROGRAMS / "pipeline.sh")
    pid = programs.spawn(["sh", script, str(log), str(LINES)])
    program = Program(programs, pid, programs.folder, "")
    until("it runs", lambda: numbers_in(log) > 20)
    image = program.dump(programs.image())

    program = programs.restore(image, programs.folder)
    expect_more(log)
    assert len(tree(program.pid)) >= 4
    program.wait_until_filled()
    expect_more(log)

    image = program.dump(programs.image())
    program = programs.restore(image, programs.folder, "--prefetch", "none")
    expect_more(log)
    for one in reversed(tree(program.pid)):
        os.kill(one, signal.SIGKILL)
    program.wait_for_end()
