"""`lazyrestore demo`: a real program, dumped by its pid while it lives, and restored both ways."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from restore_support import PACKAGE_HOME, TESTS

import lazyrestore
from lazyrestore._demo import steps
from lazyrestore._demo.target import Target

MAIN = "import sys; from lazyrestore.cli import main; sys.exit(main())"
SMALL = ("demo", "--size", "20M")
TIMEOUT_S = 60 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))

# Makes userfaultfd(2) fail with EPERM from here on, as container runtimes do.
NO_USERFAULTFD = """
import ctypes, platform, struct, sys
number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
code = b"".join(struct.pack("HBBI", *step) for step in (
    (0x20, 0, 0, 0),             # load the system call's number
    (0x15, 0, 1, number),        # is it userfaultfd?
    (0x06, 0, 0, 0x00050001),    # fail with EPERM
    (0x06, 0, 0, 0x7fff0000),    # let it pass
))
room = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(4, ctypes.addressof(room))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    sys.exit("seccomp: errno %d" % ctypes.get_errno())
"""


class Home:
    """A folder for temporary files, and the demo run with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "TMPDIR": str(folder),
            "PYTHONPATH": os.pathsep.join((str(PACKAGE_HOME), str(TESTS))),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(
        self, *arguments: str, python: str = sys.executable, script: str = MAIN, **options: Any
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [python, "-c", script, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        child = self.start(*arguments, **options)
        try:
            out, err = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            pytest.fail(f"hung: {child.communicate()}")
        return subprocess.CompletedProcess(arguments, child.returncode, out, err)

    def left_over(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))

    def programs(self) -> list[int]:
        """Pids of demo programs that were started with this folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                    environment = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                ours = f"TMPDIR={self.folder}".encode() in environment
                if ours and b"lazyrestore._demo.state" in command:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    folder = tmp_path / "tmp"
    folder.mkdir()
    return Home(folder)


def wait_until(what: str, is_so: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def test_json_has_what_was_seen(home: Home) -> None:
    """The contents are the same, the program went on, and nothing is left"""
    result = home.run(*SMALL, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report["logical_bytes"] > 20 << 20
    assert report["stored_bytes"] * 2 < report["logical_bytes"]
    assert report["ratio"] == pytest.approx(report["logical_bytes"] / report["stored_bytes"])
    assert report["zero_bytes"] >= 2 << 20  # the cleared cache
    assert report["hole_bytes"] >= 3 << 20  # the sparse table
    assert report["beats_after"] > report["beats_before"]
    assert report["compared_bytes"] == report["logical_bytes"]
    assert report["objects"] == 2000
    assert 0 < report["frozen_us"] <= report["dump_seconds"] * 1e6
    assert report["eager_resident_bytes"] > 8 << 20
    assert report["image"] is None
    assert home.left_over() == []
    assert home.programs() == []


@pytest.mark.uffd
def test_lazy_is_sooner_by_one_fault(home: Home) -> None:
    """One fault for the first access, one cluster of memory; in the end as much as eagerly"""
    report = json.loads(home.run(*SMALL, "--json").stdout)
    assert report["lazy"] is True
    assert report["privilege"] == "full"
    assert report["notes"] == []
    assert report["first_access_faults"] == 1
    assert report["first_access_resident_bytes"] == 65536
    assert report["all_resident_bytes"] == report["eager_resident_bytes"]
    assert report["all_faults"] > 100
    assert report["speedup"] == pytest.approx(
        report["eager_first_access_us"] / report["lazy_first_access_us"], rel=1e-3
    )
    assert report["touch_us"]["p50"] <= report["touch_us"]["p99"]


@pytest.mark.uffd
def test_people_get_one_table(home: Home) -> None:
    """Every figure has its line, none is longer than a terminal is wide"""
    result = home.run(*SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for what in ("image", "dump", "lives on", "contents", "first access", "fault, p99"):
        assert re.search(rf"^  {what}\b.*\d|^  {what} .*the same", result.stdout, re.MULTILINE)
    assert re.search(r"ratio \d+\.\d\d", result.stdout)
    assert re.search(r"first access after +\S+ \S+ +\S+ \S+ +\d+ times sooner", result.stdout)
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_keep_leaves_a_sound_image(home: Home, tmp_path: Path) -> None:
    """--keep DIR: the image stays there, and nowhere else is anything"""
    kept = tmp_path / "new" / "folder"
    result = home.run(*SMALL, "--keep", str(kept))
    assert result.returncode == 0
    assert [path.name for path in kept.iterdir()] == ["demo.lzr"]
    assert str(kept / "demo.lzr") in result.stdout
    with lazyrestore.open(kept / "demo.lzr") as image:
        assert image.verify().damage == ()
        assert all(re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", region.name) for region in image.regions)
    assert home.left_over() == []


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
@pytest.mark.parametrize("when", ["building", "dumping", "restoring"])
def test_interrupted_it_leaves_nothing(
    home: Home, when: str, number: signal.Signals, exit_code: int
) -> None:
    """One line, the shell's exit code, no file and no program left, whatever it was doing"""
    child = home.start("demo", "--size", "64M")
    reached = {
        "building": lambda: bool(home.programs()),
        "dumping": lambda: any(home.folder.rglob("*.tmp")),
        "restoring": lambda: any(home.folder.rglob("demo.lzr")),
    }
    wait_until(when, lambda: reached[when]() or child.poll() is not None)
    assert child.poll() is None, child.communicate()
    # As a terminal does it: to all of the demo's processes.
    os.killpg(child.pid, number)
    _, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == exit_code, err
    assert err.count("\n") == 1, err
    assert home.left_over() == []
    wait_until("the program ended", lambda: not home.programs())


def test_killed_it_leaves_no_program(home: Home) -> None:
    """SIGKILL of the demo: the program that it started sees that, and ends"""
    child = home.start("demo", "--size", "16M")
    wait_until("it dumps", lambda: any(home.folder.rglob("*.lzr*")) or child.poll() is not None)
    assert child.poll() is None, child.communicate()
    child.kill()
    child.communicate(timeout=TIMEOUT_S)
    wait_until("the program ended", lambda: not home.programs())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--size", "1M"),
        ("--size", "many"),
        ("--walk", "0"),
        ("--walk", "x"),
        ("--walk", "3", "--size", "20M"),
    ],
    ids=" ".join,
)
def test_usage(home: Home, arguments: tuple[str, ...]) -> None:
    """What cannot be is refused with 2 and one line"""
    result = home.run("demo", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("lazyrestore: ")


def test_a_folder_that_cannot_be_written(home: Home) -> None:
    """--keep where nothing can be made: 1, one line with the path, no program left"""
    result = home.run(*SMALL, "--keep", "/proc/nothing")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "/proc/nothing" in result.stderr
    assert home.programs() == []


# ---- The walk ------------------------------------------------------------------------------------


@pytest.mark.uffd
def test_walk_is_one_fault_and_four_reads_a_page(home: Home) -> None:
    """As in userfaultfd(2): each fault before the first read of its page, then four reads"""
    if os.sysconf("SC_PAGESIZE") != 4096:
        pytest.skip("pages are not of 4096 bytes: other numbers of reads")
    result = home.run("demo", "--walk", "23")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    mapped = re.match(r"Mapped (\d+) bytes at (0x[0-9a-f]+)", result.stdout)
    assert mapped is not None
    assert int(mapped[1]) == 23 * 4096
    start = int(mapped[2], 16)
    lines = re.findall(
        r"^ +(fault): address = (0x[0-9a-f]+)|^ +(COPY) of 4096 bytes at offset (0x[0-9a-f]+)"
        r"|^(Read) address (0x[0-9a-f]+): (\w)",
        result.stdout,
        re.MULTILINE,
    )
    expected = []
    for page in range(23):
        letter = chr(ord("A") + page % 20)
        first = start + page * 4096 + 0xF
        expected.append(("fault", first))
        expected.append(("COPY", page * 4096))
        expected.extend(("Read", first + step, letter) for step in (0, 1024, 2048, 3072))
    found = []
    for fault, at, copy, offset, read, address, letter in lines:
        if fault:
            # Before 5.18 the kernel tells the page's address only.
            exact = int(at, 16)
            found.append((fault, exact if exact & 0xFFF else exact + 0xF))
        elif copy:
            found.append((copy, int(offset, 16)))
        else:
            found.append((read, int(address, 16), letter))
    assert found == expected
    assert home.left_over() == []


@pytest.mark.uffd
def test_walk_as_json(home: Home) -> None:
    """One object with every fault and every read"""
    found = json.loads(home.run("demo", "--walk", "5", "--json").stdout)
    assert found["logical_bytes"] == 5 * os.sysconf("SC_PAGESIZE")
    assert len(found["faults"]) == 5
    assert [fault["action"] for fault in found["faults"]] == ["COPY"] * 5
    assert len(found["reads"]) == found["logical_bytes"] // 1024
    assert [read["address"] - found["address"] for read in found["reads"]] == list(
        range(0xF, found["logical_bytes"], 1024)
    )


# ---- That the comparing compares -----------------------------------------------------------------


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """A dumped program's image, and what the program said of its memory."""
    folder = tmp_path_factory.mktemp("dumped")
    path = str(folder / "demo.lzr")
    with Target(16 << 20) as target:
        target.wait_ready()
        before = target.describe()
        lazyrestore.dump(lazyrestore.ProcessMemory(target.pid), path)
    yield path, before
    shutil.rmtree(folder)


def test_a_wrong_byte_in_a_buffer_is_seen(dumped: tuple[str, dict[str, Any]]) -> None:
    """Each buffer of the program is compared: one changed byte anywhere is an error"""
    path, before = dumped
    for buffer in before["buffers"]:
        with lazyrestore.restore(path, lazy=False) as session:
            steps._compare_with_program(session, before)
            region, offset = steps._find(session, buffer["address"])
            region[offset + buffer["length"] - 1] ^= 1
            with pytest.raises(steps.Differs, match=buffer["name"]):
                steps._compare_with_program(session, before)


def test_a_wrong_object_is_seen(dumped: tuple[str, dict[str, Any]]) -> None:
    """So are its small objects"""
    path, before = dumped
    with lazyrestore.restore(path, lazy=False) as session:
        region, offset = steps._find(session, before["objects"]["places"][7][0])
        region[offset] ^= 1
        with pytest.raises(steps.Differs, match="objects"):
            steps._compare_with_program(session, before)


@pytest.mark.uffd
def test_a_difference_between_the_ways_is_seen(dumped: tuple[str, dict[str, Any]]) -> None:
    """And every region between eager and lazy"""
    path, before = dumped
    with lazyrestore.restore(path, lazy=False) as session:
        expected = steps._digests(session)
    address = before["buffers"][0]["address"]
    assert steps._restore_lazily(path, address, before, expected, []) is not None
    name = list(expected)[-1]
    with pytest.raises(steps.Differs, match=name):
        steps._restore_lazily(path, address, before, {**expected, name: b""}, [])


def test_a_program_that_ends_is_an_error() -> None:
    """Not a hang, and not a traceback from within"""
    with Target(16 << 20) as target:
        target.wait_ready()
        os.kill(target.pid, signal.SIGKILL)
        with pytest.raises(lazyrestore.LazyRestoreError, match="signal 9"):
            target.describe()


# ---- Ordinary users ------------------------------------------------------------------------------


class Nobody:
    """How to run Python with this package as an ordinary user."""

    def __init__(self, python: str, path: str) -> None:
        self.python = python
        self.path = path
        self.options: dict[str, Any] = {}
        if os.geteuid() == 0:
            self.options = {"user": 65534, "group": 65534, "extra_groups": []}

    def can_run(self) -> bool:
        code = "import lazyrestore.cli, lazyrestore._native, zstandard, msgpack"
        try:
            result = subprocess.run(
                [self.python, "-c", code],
                env={**os.environ, "PYTHONPATH": self.path, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                check=False,
                timeout=TIMEOUT_S,
                **self.options,
            )
        except OSError:
            return False
        return result.returncode == 0


@pytest.fixture(scope="module")
def nobody() -> Nobody:
    """This interpreter where an ordinary user can run it, else the system's with our packages."""
    packages = sysconfig.get_paths()["platlib"]
    path = os.pathsep.join((str(PACKAGE_HOME), packages))
    for python in (sys.executable, "/usr/bin/python3"):
        found = Nobody(python, path)
        if found.can_run():
            return found
    pytest.skip(
        f"an ordinary user can run neither {sys.executable} nor /usr/bin/python3 with {path}"
    )


@pytest.fixture
def nobodys_home(nobody: Nobody) -> Iterator[Home]:
    # Not within pytest's own folders: every pytest that starts closes them to other users.
    with tempfile.TemporaryDirectory(prefix="lazyrestore-nobody-") as folder:
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        home = Home(Path(folder))
        home.environment["PYTHONPATH"] = nobody.path
        yield home


def test_an_ordinary_user_gets_figures(nobodys_home: Home, nobody: Nobody) -> None:
    """Lazily as far as the kernel allows; where that is less than all, it is said"""
    result = nobodys_home.run(*SMALL, "--json", python=nobody.python, **nobody.options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report["compared_bytes"] == report["logical_bytes"]
    assert report["beats_after"] > report["beats_before"]
    assert report["lazy"] == (report["privilege"] != "none")
    assert bool(report["notes"]) == (report["privilege"] != "full")
    if report["privilege"] == "user-mode-only":
        assert "doctor" in report["notes"][0]
    assert nobodys_home.left_over() == []


def test_without_any_userfaultfd_it_is_eager(nobodys_home: Home, nobody: Nobody) -> None:
    """The figures that there are, one note of what is missing, and exit code 0"""
    if os.access("/dev/userfaultfd", os.R_OK) and os.geteuid() != 0:
        pytest.skip("this user may use /dev/userfaultfd: only the system call can be forbidden")
    script = NO_USERFAULTFD + MAIN
    options = {"python": nobody.python, "script": script, **nobody.options}
    result = nobodys_home.run(*SMALL, **options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert re.search(r"^  first access +\S+ \S+ +-$", result.stdout, re.MULTILINE)
    assert "note: no lazy restore here" in result.stdout
    report = json.loads(nobodys_home.run(*SMALL, "--json", **options).stdout)
    assert (report["lazy"], report["privilege"]) == (False, "none")
    assert report["lazy_first_access_us"] is None
    assert report["compared_bytes"] == report["logical_bytes"]


def test_the_walk_needs_userfaultfd(nobodys_home: Home, nobody: Nobody) -> None:
    """There is no walk without faults: exit code 4, and what to do"""
    if os.access("/dev/userfaultfd", os.R_OK) and os.geteuid() != 0:
        pytest.skip("this user may use /dev/userfaultfd: only the system call can be forbidden")
    script = NO_USERFAULTFD + MAIN
    result = nobodys_home.run(
        "demo", "--walk", "2", python=nobody.python, script=script, **nobody.options
    )
    assert result.returncode == 4
    assert result.stderr.count("\n") == 1
    assert "doctor" in result.stderr


def test_an_ordinary_user_can_walk(nobodys_home: Home, nobody: Nobody) -> None:
    """Reads are user-mode faults: these are served without any right"""
    result = nobodys_home.run("demo", "--walk", "3", python=nobody.python, **nobody.options)
    if result.returncode == 4:
        pytest.skip(f"the kernel allows no userfaultfd at all: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("fault: address") == 3
