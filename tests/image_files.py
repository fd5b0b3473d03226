"""Images that are sound, broken or cut short, and a fast way to try a command on all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cli_support import Result, run

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
SOUND = tuple(sorted(EXPECTED["golden"]))
TRUNCATIONS = 200

# A process a call would take minutes: this one calls the command line again and again, each time
# with files in the place of standard output and error.
_MANY = """
import json, os, sys, tempfile
from lazyrestore.cli import main
calls, results = json.load(sys.stdin), []
report = os.dup(1)
for call in calls:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = main(call)
        sys.stdout.flush()
        sys.stderr.flush()
        texts = [os.pread(fd, 1 << 24, 0).decode("latin-1") for fd in (1, 2)]
        results.append((code, *texts))
os.dup2(report, 1)
print(json.dumps(results))
"""


def run_each(calls: Iterable[Sequence[object]]) -> list[Result]:
    """How the command line ends with each of these arguments, all in one process."""
    given = [[str(argument) for argument in call] for call in calls]
    ended = run(command=(sys.executable, "-c", _MANY), given=json.dumps(given).encode())
    assert ended.code == 0, ended
    results = [
        Result(code, out.encode("latin-1"), err.encode("latin-1"))
        for code, out, err in json.loads(ended.out)
    ]
    assert len(results) == len(given) > 0
    return results


def sound(name: str) -> Path:
    return FIXTURES / f"{name}.lzr"


def broken(name: str) -> Path:
    return FIXTURES / "broken" / f"{name}.lzr"


def broken_by(*found_by: str) -> list[str]:
    """The broken images that are found out there, see fixtures/README.md."""
    names = [name for name, what in EXPECTED["broken"].items() if what["found_by"] in found_by]
    assert names
    return names


def truncations(folder: Path, image: Path) -> list[Path]:
    """Copies of an image that end at 200 places: both ends closely, the middle evenly."""
    data = image.read_bytes()
    size = len(data)
    places = {*range(30), *range(size - 30, size)}
    step = size / (TRUNCATIONS - len(places) + 1)
    middle = (round(step * number) for number in range(1, TRUNCATIONS))
    for place in middle:
        if len(places) == TRUNCATIONS:
            break
        places.add(place)
    assert len(places) == TRUNCATIONS
    paths = []
    for place in sorted(places):
        path = folder / f"cut-{place}.lzr"
        path.write_bytes(data[:place])
        paths.append(path)
    return paths


def check_refused(command: str, tmp_path: Path, *options: object) -> None:
    """The command refuses what cannot be opened: exit code 3, one line with the image's name.

    Also all truncations, and every broken image of which opening it finds out.
    """
    paths = [broken(name) for name in broken_by("open", "names")]
    cut = truncations(tmp_path, sound("mixed"))
    before = sorted(tmp_path.iterdir())
    for path, result in zip(
        [*paths, *cut], run_each((command, path, *options) for path in [*paths, *cut]), strict=True
    ):
        result.fails(3, str(path))
        assert result.out == "", result
        if path in cut:
            assert "cut short" in result.err or "empty" in result.err or "not a" in result.err
    assert sorted(tmp_path.iterdir()) == before
    run(command, broken("empty"), *options).fails(3, "empty", "make it again")
    run(command, broken("not_ours"), *options).fails(3, "not a lazyrestore image")
    run(command, broken("newer_version"), *options).fails(3, "newer version", "upgrade")
    run(command, broken("critical_feature"), *options).fails(3, "feature", "upgrade")
