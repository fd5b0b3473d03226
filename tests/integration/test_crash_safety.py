"""Dumps that are killed, or cannot write: the target is the old image or the new one, whole."""

from __future__ import annotations

import ctypes
import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_support import run_and_kill
from process_support import Memory, in_child, pattern, target
from restore_support import PACKAGE_HOME
from writer_support import KIB, MIB, temporaries

import lazyrestore
from lazyrestore import ImageWriter, ProcessMemory
from lazyrestore._outfile import OutputFile

OLD = random.Random(1).randbytes(100 * KIB)
NEW = random.Random(2).randbytes(10 * MIB)


def dump_new(path: Path) -> None:
    # So small, clusters are written in more pieces; and one thread repeats itself best.
    lazyrestore.dump(NEW, path, cluster_size=4096, level=1, threads=1)


def which(path: Path, old: bytes) -> str:
    """Which image is there, whole."""
    if path.read_bytes() == old:
        return "old"
    with lazyrestore.open(path) as image:
        image.verify()
        assert image.read("memory") == NEW
    return "new"


def put_old(path: Path) -> bytes:
    lazyrestore.dump(OLD, path)
    return path.read_bytes()


# ---- Killed --------------------------------------------------------------------------------------


@in_child(300)
def test_killed_at_any_call_that_changes_files(tmp_path: Path) -> None:
    os.umask(0)
    path = tmp_path / "image.lzr"
    old = put_old(path)
    calls = run_and_kill(lambda: dump_new(path)).calls
    assert which(path, old) == "new"
    assert calls.count("writev") > 10
    assert len(calls) > 25
    seen: dict[str, int] = {"old": 0, "new": 0, "left": 0}
    for number in range(len(calls)):
        for after in (False, True):
            old = put_old(path)
            run = run_and_kill(lambda: dump_new(path), at_call=number, after=after)
            assert run.was_killed, f"call {number}, {after}"
            found = which(path, old)
            seen[found] += 1
            left = temporaries(tmp_path)
            seen["left"] += len(left)
            assert len(left) <= (found == "old")
            for name in left:
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
            put_old(path)
            assert os.listdir(tmp_path) == [path.name], f"call {number}, {after}"
    assert sum(seen.values()) > 50
    assert seen["old"] > seen["new"] > 0
    assert seen["left"] > 20


@in_child(120)
def test_killed_at_any_moment_of_any_thread(tmp_path: Path) -> None:
    path = tmp_path / "image.lzr"

    def dump() -> None:
        lazyrestore.dump(NEW, path, threads=2, level=1)

    old = put_old(path)
    stops = run_and_kill(dump).stops
    for number in range(20):
        old = put_old(path)
        run_and_kill(dump, at_stop=stops * number // 20)
        which(path, old)
        put_old(path)
        assert os.listdir(tmp_path) == [path.name]


@in_child(120)
def test_a_process_runs_on_wherever_its_dump_is_killed(tmp_path: Path) -> None:
    memory = Memory(4 * MIB)
    memory.write(0, pattern(4 * MIB))
    path = tmp_path / "image.lzr"
    old = put_old(path)
    with target() as process:
        source = ProcessMemory(process.pid, [memory.range])

        def dump() -> None:
            lazyrestore.dump(source, path, threads=1, level=1)

        stops = run_and_kill(dump).stops
        process.expect_running()
        path.write_bytes(old)
        killed = 0
        for number in range(40):
            killed += run_and_kill(dump, at_stop=stops * number // 40).was_killed
            process.expect_running()
            assert process.status()["TracerPid"] == "0"
            assert process.status()["State"][0] in "SR"
        assert killed > 30
        # It can be dumped, and is as it was.
        lazyrestore.dump(source, path)
        with lazyrestore.open(path) as image:
            assert image.read(memory.name) == pattern(4 * MIB)
    assert os.listdir(tmp_path) == [path.name]


# ---- What is left behind, and what is not ----------------------------------------------------


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "image.lzr"
    with ImageWriter(path) as first:
        first.add_region("memory")
        first.write(NEW)
        (name,) = temporaries(tmp_path)
        lazyrestore.dump(OLD, path)
        assert temporaries(tmp_path) == [name]
        with lazyrestore.open(path) as image:
            assert image.read("memory") == OLD
    with lazyrestore.open(path) as image:
        assert image.read("memory") == NEW
    assert os.listdir(tmp_path) == [path.name]


@in_child()
def test_a_forked_child_of_a_writer_does_not_make_it_look_dead(tmp_path: Path) -> None:
    """Nor does the end of such a child; and that a child outlives the writer is no matter."""
    path = tmp_path / "image.lzr"
    with ImageWriter(path) as writer:
        writer.add_region("memory")
        child = os.fork()
        if child == 0:
            writer.abort()
            os._exit(0)
        os.waitpid(child, 0)
        lazyrestore.dump(OLD, path)
        assert len(temporaries(tmp_path)) == 1
        writer.write(NEW)
    assert lazyrestore.open(path).read("memory") == NEW


def test_only_what_a_writer_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "image.lzr"
    mine = [".image.lzr.0123456789abcdef.tmp", ".image.lzr.fedcba9876543210.tmp"]
    kept = [
        ".image.lzr.0123456789abcde.tmp",
        ".image.lzr.0123456789abcdeg.tmp",
        ".image_lzr.0123456789abcdef.tmp",
        ".other.lzr.0123456789abcdef.tmp",
        ".image.lzr.0123456789abcdef.tmp~",
    ]
    for name in mine + kept:
        (tmp_path / name).write_bytes(b"x")
    link, folder, pipe = (f".image.lzr.{digit * 16}.tmp" for digit in "012")
    (tmp_path / link).symlink_to(kept[0])
    (tmp_path / folder).mkdir()
    os.mkfifo(tmp_path / pipe)
    lazyrestore.dump(OLD, path)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *kept, link, folder, pipe])
    assert (tmp_path / kept[0]).read_bytes() == b"x"


@pytest.mark.root
def test_what_somebody_else_left_is_theirs(tmp_path: Path) -> None:
    left = tmp_path / ".image.lzr.0123456789abcdef.tmp"
    left.write_bytes(b"x")
    os.chown(left, 65534, 65534)
    lazyrestore.dump(OLD, tmp_path / "image.lzr")
    assert left.exists()


def test_a_link_at_the_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep")
    precious.chmod(0o644)
    names = iter(["0" * 16, "1" * 16, "2" * 16, "3" * 16])
    monkeypatch.setattr("lazyrestore._outfile._random_word", lambda: next(names))
    for digit, place in zip("012", ("precious", "nowhere", str(tmp_path)), strict=True):
        (tmp_path / f".image.lzr.{digit * 16}.tmp").symlink_to(place)
    path = tmp_path / "image.lzr"
    lazyrestore.dump(OLD, path)
    assert next(names, None) is None
    assert precious.read_bytes() == b"keep"
    assert stat.S_IMODE(precious.stat().st_mode) == 0o644
    assert not (tmp_path / "nowhere").exists()
    assert not path.is_symlink()
    assert len(os.listdir(tmp_path)) == 5


@in_child(120)
def test_writers_of_one_target_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each looks for what others left, while these begin, write and end."""
    path = tmp_path / "image.lzr"
    until = time.monotonic() + 3
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            files = 0
            try:
                while time.monotonic() < until or files <= 100:
                    file = OutputFile(os.fspath(path))
                    file.append(b"%d" % number * 1000)
                    file.commit()
                    files += 1
            except BaseException as error:
                print(f"after {files} files: {error!r}", file=sys.stderr)
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert os.listdir(tmp_path) == [path.name]
    assert re.fullmatch(rb"(\d)\1{999}", path.read_bytes())


# ---- What cannot be written ------------------------------------------------------------------


@in_child()
def test_a_limit_of_file_sizes_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "image.lzr"
    old = put_old(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    lazyrestore.dump(NEW, tmp_path / "whole.lzr")
    size = (tmp_path / "whole.lzr").stat().st_size
    (tmp_path / "whole.lzr").unlink()
    for limit in [0, 1, 100, 4096, *range(5000, size, size // 12), size - 4096, size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"File too large.*ulimit -f.*image\.lzr"):
            lazyrestore.dump(NEW, path)
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == [path.name]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    lazyrestore.dump(NEW, path)
    assert which(path, old) == "new"


def mount_small(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x20000):  # CLONE_NEWNS
        pytest.skip(f"no mount namespace of its own here: {os.strerror(ctypes.get_errno())}")
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount anything that nobody else sees: {done.stderr.strip()}")


@pytest.mark.root
@in_child()
def test_a_disk_that_is_full_anywhere(tmp_path: Path) -> None:
    mount_small(tmp_path)
    path = tmp_path / "image.lzr"
    old = put_old(path)
    data = NEW[: 700 * KIB]
    filler = tmp_path / "filler"
    outcomes = []
    for free in (0, 4, 64, 300, 600, 690, 700, 704, 708, 720, 800):
        filler.write_bytes(b"")
        room = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        filler.write_bytes(bytes(room - free * KIB))
        said = ""
        try:
            lazyrestore.dump(data, path, threads=1)
        except OSError as error:
            said = str(error)
        if said:
            assert "No space left on device: free some" in said
            assert path.read_bytes() == old
            outcomes.append("full")
        else:
            with lazyrestore.open(path) as image:
                image.verify()
                assert image.read("memory") == data
            filler.unlink()
            old = put_old(path)
            outcomes.append("written")
        assert temporaries(tmp_path) == []
    assert outcomes[0] == "full"
    assert outcomes[-1] == "written"


@pytest.mark.root
@in_child()
def test_what_a_killed_dump_left_makes_room_first(tmp_path: Path) -> None:
    mount_small(tmp_path)
    path = tmp_path / "image.lzr"
    data = NEW[: 700 * KIB]
    child = os.fork()
    if child == 0:
        writer = ImageWriter(path)
        writer.add_region("memory")
        writer.write(data)
        writer._end_region()
        while writer._under_way:
            writer._write_oldest()
        writer._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (name,) = temporaries(tmp_path)
    assert (tmp_path / name).stat().st_size > 600 * KIB
    lazyrestore.dump(data, path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("what", ["all", "the file", "moved"])
def test_the_folder_is_taken_away(tmp_path: Path, what: str) -> None:
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    path = folder / "image.lzr"
    writer = ImageWriter(path)
    writer.add_region("memory")
    writer.write(OLD)
    if what == "moved":
        folder.rename(moved)
        writer.close()
        with lazyrestore.open(moved / "image.lzr") as image:
            assert image.read("memory") == OLD
        assert os.listdir(moved) == ["image.lzr"]
        return
    if what == "all":
        shutil.rmtree(folder)
    else:
        (folder / temporaries(folder)[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"was removed meanwhile.*image\.lzr"):
        writer.close()
    assert not path.exists()
    assert os.listdir(tmp_path) == ([] if what == "all" else ["folder"])


# ---- Order -----------------------------------------------------------------------------------


def strace(path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Dump under strace. Returns what came of it, and the calls, one a line."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    log = path.parent.parent / f"{path.parent.name}.strace"
    calls = "/^(openat|flock|fchmod|writev?|pwritev?|pwrite64|f(data)?sync|rename.*|unlink.*)$"
    code = (
        "import sys, lazyrestore\n"
        "try: lazyrestore.dump(bytes(range(256)) * 400, sys.argv[1])\n"
        "except OSError as error: sys.exit(str(error))\n"
    )
    tracing = ["strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={calls}", *options]
    done = subprocess.run(
        [*tracing, sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "ptrace" in done.stderr.lower() or "PTRACE" in done.stderr:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()[:200]}")
    lines = [re.sub(r"^\d+ +", "", line) for line in log.read_text().splitlines()]
    folder = re.escape(str(path.parent))
    return done, [line for line in lines if re.search(folder, line)]


def test_the_order_of_what_makes_it_durable(tmp_path: Path) -> None:
    path = tmp_path / "image.lzr"
    put_old(path)
    done, lines = strace(path)
    assert done.returncode == 0, done.stderr
    temporary = r"\.image\.lzr\.[0-9a-f]{16}\.tmp"
    folder = re.escape(str(tmp_path))
    (made,) = [line for line in lines if re.search(r"openat.*O_CREAT", line)]
    assert re.search(rf'"{temporary}", .*O_EXCL.*O_NOFOLLOW.*0600\)', made)
    kinds = [re.match(r"\w+", line)[0] for line in lines]  # type: ignore[index]
    from_first_write = lines[kinds.index("writev") :]
    last = [line for line in from_first_write if not line.startswith("writev")]
    assert len(last) == 3, last
    assert re.match(rf"fsync\(\d+<{folder}/{temporary}>\) += 0", last[0])
    assert re.match(rf'rename\w*\(\d+<{folder}>, "{temporary}", .*"image\.lzr".*\) += 0', last[1])
    assert re.match(rf"fsync\(\d+<{folder}>\) += 0", last[2])
    assert all(line.startswith("writev") for line in from_first_write[:-3])


@pytest.mark.parametrize(("when", "expected"), [(1, "old"), (2, "new")])
def test_what_cannot_be_made_durable_is_an_error(tmp_path: Path, when: int, expected: str) -> None:
    """Of the file: the old image stays. Of the folder: the new one is there, and is whole."""
    path = tmp_path / "image.lzr"
    old = put_old(path)
    done, lines = strace(path, "-e", f"inject=fsync:error=EIO:when={when}")
    assert any("EIO" in line and "INJECTED" in line for line in lines), lines
    assert done.returncode == 1
    assert "Input/output error" in done.stderr
    assert (path.read_bytes() == old) == (expected == "old")
    with lazyrestore.open(path) as image:
        image.verify()
    assert os.listdir(tmp_path) == [path.name]
