"""What programs do to their memory while it is restored: move, drop and unmap it, and fork."""

from __future__ import annotations

import random

import pytest
from program_support import BLOCK_PAGES, Content

MIB_OF_ALL = 48


@pytest.fixture
def restore(programs):
    """Restores a program of 48 MiB; the program and what it must have."""
    program = programs.start("content.c", MIB_OF_ALL)
    program.does("threads 2")
    image = program.dump(programs.image())

    def restore(*options):
        return programs.restore(image, program.home, *options), Content(MIB_OF_ALL)

    return restore


@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_memory_that_is_moved_dropped_and_unmapped(programs, restore, prefetch):
    """Blocks in random order, some of them more than once, with threads that look on."""
    program, content = restore("--prefetch", prefetch)
    chance = random.Random(prefetch)
    gone = set()
    for _ in range(120):
        block = chance.randrange(MIB_OF_ALL)
        if block in gone:
            content.map(program, block)
            gone.remove(block)
            continue
        what = chance.choice(("move", "move", "drop", "unmap", "write", "check"))
        if what == "write":
            content.write(program, block * BLOCK_PAGES + 3, 60, chance.randrange(2, 99))
        elif what == "check":
            content.check(program, block * BLOCK_PAGES, 40)
        else:
            getattr(content, what)(program, block)
        if what == "unmap":
            gone.add(block)
    content.check(program)
    assert program.numbers("progress")[1] == 0
    if prefetch == "all":
        program.wait_until_filled()
        content.check(program)
        # What is left of all that can be checkpointed, and comes back.
        image = program.dump(programs.image())
        program = programs.restore(image, program.home)
        content.check(program)
    program.end()


@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_a_storm_of_forks(programs, restore, prefetch):
    """Children and grandchildren, of a parent with threads, with all that they have not touched."""
    program, content = restore("--prefetch", prefetch)
    for first in (0, 4000, 8000):
        assert program.numbers(f"storm 24 {first} 160")[:2] == [24, 0]
    content.write(program, 100, 3000, 5)
    content.move(program, 5, 3)
    content.drop(program, 9, 2)
    assert program.numbers("storm 16 100 500")[:2] == [16, 0]
    content.check(program)
    assert program.numbers("progress")[1] == 0
    program.end()
