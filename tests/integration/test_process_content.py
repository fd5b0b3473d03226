"""A C program with 256 MiB of which any page can be checked, through its whole life."""

from __future__ import annotations

import random

import pytest
from program_support import Content, resident_bytes, until

import lazyrestore

MIB = 1 << 20


def expect_progress(program):
    """Its threads check pages, and find none that is wrong."""
    checks, _ = program.numbers("progress")
    until("its threads go on", lambda: program.numbers("progress")[0] > checks + 100)
    assert program.numbers("progress")[1] == 0


def test_a_large_program_lives_on(programs):
    """Checked while it is filled, written to, checkpointed again once it is, and restored again."""
    content = Content(256)
    program = programs.start("content.c", 256)
    program.does("threads 3")
    image = program.dump(programs.image())
    assert image.stat().st_size < 128 * MIB  # each line has one word that does not compress

    program = programs.restore(image, program.home)
    numbers = random.Random(1).sample(range(len(content)), 6)
    content.check_bytes(program, *numbers, 0, 7, 15, len(content) - 1)
    expect_progress(program)
    content.write(program, 1000, 3000, 9)
    content.write(program, 60_000, 500, 10)
    content.check(program)
    program.wait_until_filled()

    image = program.dump(programs.image())
    program = programs.restore(image, program.home)
    content.check_bytes(program, 1000, 3999, 4000, 60_499)
    expect_progress(program)
    content.check(program)
    program.wait_until_filled()
    content.check(program)
    program.end()


def test_an_image_is_restored_again_and_again(programs):
    """What a process writes nobody finds in the image that it came from."""
    program = programs.start("content.c", 16)
    image = program.dump(programs.image())
    for version in (5, 6):
        content = Content(16)
        program = programs.restore(image, program.home)
        content.check(program, 100, 500)
        content.write(program, 0, 2000, version)
        content.check(program)
        program.end()


def test_a_program_that_is_left_running(programs):
    """It goes on, and its image has it as it was."""
    before = Content(16)
    program = programs.start("content.c", 16)
    image = program.dump(programs.image(), "--leave-running")
    after = Content(16)
    after.write(program, 100, 100, 4)
    after.check(program)
    program.end()
    before.check(programs.restore(image, program.home))


def test_on_demand_only(programs, tmp_path):
    """Nothing is loaded that is not touched, by the program or by system calls."""
    content = Content(64)
    program = programs.start("content.c", 64)
    image = program.dump(programs.image())
    program = programs.restore(image, program.home, "--prefetch", "none")
    assert resident_bytes(program.pid) < 8 * MIB
    content.check_saved(program, tmp_path / "saved", 2000, 256)
    content.write(program, 10_000, 100, 3)
    content.check(program, 5000, 600)
    assert 2 * MIB < resident_bytes(program.pid) < 24 * MIB
    assert program.helpers(), "nobody would serve what is missing"
    content.check(program)
    program.end()


@pytest.mark.parametrize("prefetch", ["none", "auto"])
def test_a_program_that_ends_by_itself(programs, prefetch):
    """With pages missing: who serves it ends too."""
    program = programs.start("content.c", 64)
    image = program.dump(programs.image())
    program = programs.restore(image, program.home, "--prefetch", prefetch)
    Content(64).check(program, 0, 300)
    assert program.ask("exit 3") == ""
    program.wait_for_end()


def test_a_working_set_is_recorded_and_replayed(programs):
    """A recording has what one run touched, and little else; the next runs right with it."""
    content = Content(64)
    program = programs.start("content.c", 64)
    image = program.dump(programs.image())
    record = programs.folder / "run.ws"
    program = programs.restore(image, program.home, "--prefetch", "none", "--record", record)
    content.check(program, 4096, 4096)  # 16 MiB of 64
    program.end()
    recorded = lazyrestore.WorkingSet.load(record)
    data_bytes = len(recorded) * recorded.cluster_size
    assert 15 * MIB < data_bytes < 24 * MIB

    program = programs.restore(image, program.home, "--working-set", record)
    content.check_bytes(program, 4096, 5000, 8191, 0)
    content.check(program)
    program.wait_until_filled()
    content.check(program)
    program.end()
