"""Whoever serves a restored program is killed: it goes on with what it had, or it dies."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from program_support import Content

MIB_OF_ALL = 48


@pytest.fixture(scope="module")
def delays():
    """Moments at which to kill, of each kind of kill some."""
    return random.Random(os.environ.get("PROGRAM_SEED", "1"))


@pytest.mark.parametrize("prefetch", ["none", "auto"])
def test_one_of_those_who_serve_is_killed(programs, delays, prefetch):
    """Any of them, again and again, at any moment: the program never finds a wrong page."""
    program = programs.start("content.c", MIB_OF_ALL)
    program.does("threads 2")
    image = program.dump(programs.image())
    for turn in range(3):
        content = Content(MIB_OF_ALL)
        program = programs.restore(image, program.home, "--prefetch", prefetch)
        time.sleep(delays.choice((0, 0.002, 0.02, 0.1)) * delays.random())
        for _ in range(2):
            serving = program.helpers()
            if serving:
                os.kill(serving[turn % len(serving)], signal.SIGKILL)
            content.check(program, delays.randrange(8000), 500)
            content.write(program, delays.randrange(8000), 300, 2 + turn)
            assert program.numbers("storm 4 9000 60")[:2] == [4, 0]
            # Whoever goes on needs somebody who would go on for him.
            program.wait_until_kept()
        content.check(program)
        assert program.numbers("progress")[1] == 0
        program.end()


def test_all_who_have_the_memory_are_killed(programs, delays):
    """Right content as long as it lives, and it does not live for long with pages missing."""
    program = programs.start("content.c", MIB_OF_ALL)
    image = program.dump(programs.image())
    for turn in range(3):
        content = Content(MIB_OF_ALL)
        program = programs.restore(image, program.home, "--prefetch", "none")
        if turn % 2:
            time.sleep(0.1 * delays.random())
        serving = program.helpers()
        # The oldest are the one that serves, and its keeper; the warden is what is left.
        for pid in serving[:2]:
            os.kill(pid, signal.SIGKILL)
        try:
            while True:
                content.check(program)
        except (OSError, ValueError):
            pass  # no answer, or an empty one: it is dead
        program.wait_for_end()
