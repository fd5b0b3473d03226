"""A Python with threads that compute in arrays of numpy."""

from __future__ import annotations

import sys

import pytest
from program_support import PROGRAMS, until

np = pytest.importorskip("numpy")
sys.path.insert(0, str(PROGRAMS))

THREADS, MIB = 4, 8


def sum_after(number: int, steps: int) -> int:
    """What all words of an array must come to, by what the program says of itself."""
    import arrays

    start, total = arrays.begin(number, MIB << 17), 0
    for index, part in enumerate(np.split(start, arrays.SLICES)):
        done = steps // arrays.SLICES + (index < steps % arrays.SLICES)
        total += int(arrays.after(part, done).sum())
    return total & ((1 << 64) - 1)


def expect_it_computes(program):
    bad, steps = program.numbers("check")
    assert bad == 0
    until("its threads go on", lambda: program.numbers("check")[1] > steps + 8)
    for number in range(THREADS):
        steps, total = program.numbers(f"sum {number}")
        assert total == sum_after(number, steps), number


def test_a_python_lives_on(programs):
    """Its arrays, its threads, and those that it makes from then on."""
    program = programs.start("arrays.py", THREADS, MIB)
    until("it has computed", lambda: program.numbers("check")[1] > 40)
    steps = program.numbers("check")[1]
    image = program.dump(programs.image())

    program = programs.restore(image, program.home)
    assert program.numbers("check")[1] >= steps
    expect_it_computes(program)
    program.does(f"grow {MIB}")
    program.wait_until_filled()
    expect_it_computes(program)

    image = program.dump(programs.image())
    program = programs.restore(image, program.home)
    expect_it_computes(program)
    program.ask("exit 0")
    program.wait_for_end()
