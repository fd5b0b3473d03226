"""Several restores of one image at once, each in a PID namespace of its own."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from cli_support import COMMAND
from program_support import LIMIT_S, Content, Program, needs, until


class Contained:
    """A restore in namespaces of its own: its socket lies in a home of its own.

    Attributes:
        process: of the command, which is the first one of its PID namespace.
        program: what was restored.
    """

    def __init__(self, programs, image: Path, home: Path, *options: object) -> None:
        own = Path(tempfile.mkdtemp(prefix="home-", dir=programs.folder))
        mark, env = programs.new_mark()
        script = f'mount --bind "{own}" "{home}" && exec "$@"'
        command = [*COMMAND, "restore", "--lazy", *options, image]
        unshare = [
            needs("unshare", "util-linux"),
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        self.process = subprocess.Popen(
            [*unshare, "sh", "-c", script, "sh", *map(str, command)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.program = Program(programs, self.process.pid, own, mark)

    def end(self) -> int:
        """Have the program end; what the command ends with."""
        self.program.ask("exit 7")
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def contained(programs):
    """Starts one."""
    found = []

    def start(*arguments, **options):
        found.append(Contained(programs, *arguments, **options))
        return found[-1]

    yield start
    for one in found:
        one.close()


def has_answered(one: Contained) -> bool:
    assert one.process.poll() is None, one.process.stderr.read()
    if not (one.program.home / "socket").exists():
        return False
    try:
        one.program.ask("progress")
    except ConnectionRefusedError:  # bound, and it does not listen yet
        return False
    return True


def test_three_restores_of_one_image_at_once(programs, contained):
    """Each writes what the others do not see, and forks; the command ends as the program does."""
    program = programs.start("content.c", 48)
    image = program.dump(programs.image())
    (program.home / "socket").unlink()
    copies = [contained(image, program.home) for _ in range(3)]
    contents = [Content(48) for _ in copies]
    for number, (one, content) in enumerate(zip(copies, contents, strict=True)):
        until("it answers", lambda one=one: has_answered(one))
        content.write(one.program, 1000 * number, 2000, 5 + number)
    for one, content in zip(copies, contents, strict=True):
        assert one.program.numbers("storm 8 3000 200")[:2] == [8, 0]
        content.check(one.program)
    assert [one.end() for one in copies] == [7, 7, 7]
