"""A parent with forked children, shared memory, and one that has ended."""

from __future__ import annotations

from program_support import tree

PAGES = 2048


def test_a_family_lives_on(programs):
    """All its members, in their own memory and in what they share."""
    program = programs.start("family.c", 4, PAGES)
    assert program.numbers("work 300") == [5, 0, 5 * 300]
    image = program.dump(programs.image())

    program = programs.restore(image, program.home)
    assert len(tree(program.pid)) == 6  # with the one that has ended
    assert program.numbers("check") == [5, 0, 5 * 300]
    assert program.numbers("work 200") == [5, 0, 5 * 500]
    assert program.numbers("fork")[1] == 0  # of the youngest, with all that it has of its own
    assert program.numbers("check")[:2] == [6, 0]
    program.wait_until_filled()
    steps = program.numbers("work 100")[2]

    image = program.dump(programs.image())
    program = programs.restore(image, program.home, "--prefetch", "none")
    assert program.numbers("check") == [6, 0, steps]
    assert program.numbers("work 100") == [6, 0, steps + 6 * 100]
    assert program.ask("reap") == "42"
    assert program.numbers("check")[:2] == [6, 0]
    program.end()
