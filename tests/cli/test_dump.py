"""`lazyrestore dump`: of a process, a file, standard input; and what can go wrong."""

from __future__ import annotations

import array
import json
import os
import pty
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import core_support
import pytest
from cli_support import (
    PAGE,
    TIMEOUT_S,
    Old,
    environment,
    finish,
    interrupt,
    run,
    start,
    state_of,
    target,
    temporary_files,
    wait_until,
)

import lazyrestore
from lazyrestore.sources import ProcessMemory

FIELDS = (
    "logical_bytes",
    "stored_bytes",
    "ratio",
    "zero_bytes",
    "duplicate_bytes",
    "regions",
    "digest",
    "seconds",
    "frozen_us",
    "skipped",
)


def numbered(pages: int) -> bytes:
    """What `target` has in its memory"""
    empty = bytes(PAGE)
    return b"".join(
        (page + 1).to_bytes(8, "little") + empty[8:] if page % 2 == 0 else empty
        for page in range(pages)
    )


# ---- Files ---------------------------------------------------------------------------------------


def test_a_file(tmp_path: Path) -> None:
    data = b"memory " * 30_000
    (tmp_path / "raw").write_bytes(data)
    text = run("dump", "--file", tmp_path / "raw", tmp_path / "x.lzr").ok().out
    with lazyrestore.open(tmp_path / "x.lzr") as image:
        assert image.read("memory") == data
    for word in ("memory", "zero pages", "image", "ratio", "time", "digest"):
        assert word in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert temporary_files(tmp_path) == []


def test_standard_input(tmp_path: Path) -> None:
    """Of a length that nobody knows at the start"""
    data = os.urandom(1 << 20) + bytes(1 << 20)
    report = json.loads(
        run("dump", "--file", "-", tmp_path / "x.lzr", "--json", given=data).ok().out
    )
    assert report["logical_bytes"] == len(data)
    assert report["zero_bytes"] == 1 << 20
    with lazyrestore.open(tmp_path / "x.lzr") as image:
        assert image.read("memory") == data
        assert image.info.source == "standard input"


def test_json(tmp_path: Path) -> None:
    """All that the report says, of which the image says the same"""
    page = b"x" * PAGE
    (tmp_path / "raw").write_bytes(page * 64 + bytes(64 * PAGE))
    report = json.loads(
        run("dump", "--file", tmp_path / "raw", tmp_path / "x.lzr", "--json").ok().out
    )
    assert set(FIELDS) <= set(report)
    assert report["logical_bytes"] == 128 * PAGE
    assert report["zero_bytes"] + report["hole_bytes"] == 64 * PAGE
    assert report["duplicate_bytes"] == 48 * PAGE  # three of four equal clusters
    assert report["stored_bytes"] == (tmp_path / "x.lzr").stat().st_size
    assert report["frozen_us"] is None
    assert report["skipped"] == []
    info = json.loads(run("info", tmp_path / "x.lzr", "--json").ok().out)
    for name in FIELDS[:7]:
        assert info[name] == report[name], name


def test_options_reach_the_image(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"memory " * 30_000)
    digests = set()
    for options in (
        ["--cluster-size", "4K", "--level", "1", "--threads", "1"],
        ["--cluster-size", "0x1000", "--level", "19", "--threads", "2"],
        ["--cluster-size", "4096", "--level", "-7"],
    ):
        run("dump", "--file", tmp_path / "raw", tmp_path / "x.lzr", *options).ok()
        with lazyrestore.open(tmp_path / "x.lzr") as image:
            assert image.info.cluster_size == 4096
            digests.add(image.digest)
    assert len(digests) == 1


def test_byte_planes(tmp_path: Path) -> None:
    """A file holds anything, so it must be said; the content is the same"""
    chance = random.Random(1)
    numbers = array.array("d", (chance.gauss(0, 0.02) for _ in range(100_000)))
    (tmp_path / "raw").write_bytes(numbers)
    found = {}
    for options in ([], ["none"], ["auto"], ["2"], ["4"], ["8"]):
        given = ["--byte-planes", *options] if options else []
        report = json.loads(
            run("dump", "--file", tmp_path / "raw", tmp_path / "x", *given, "--json").ok().out
        )
        (region,) = report["regions"]
        found["".join(options)] = region["planes"], report["stored_bytes"], report["digest"]
    assert {key: planes for key, (planes, _, _) in found.items()} == {
        **dict.fromkeys(["", "none", "auto"], 0),
        "2": 2,
        "4": 4,
        "8": 8,
    }
    assert found["8"][1] < 0.95 * found["none"][1]
    assert len({digest for _, _, digest in found.values()}) == 1
    assert (tmp_path / "x").stat().st_size == found["8"][1]
    shown = run("dump", "--file", tmp_path / "raw", tmp_path / "x", "--byte-planes", "8").ok().out
    assert ", with byte planes\n" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--pid", "--file", "--core"]),
        (["--core", "x", "--file", "x"], ["--pid", "--file", "--core"]),
        (["--core", "x", "--range", "0-1000"], ["--range", "--pid"]),
        (["--core", "-"], ["standard input", "name"]),
        (["--pid", "1", "--file", "x"], ["--pid", "--file"]),
        (["--file", "x", "--range", "0-1000"], ["--range", "--pid"]),
        (["--file", "/etc/passwd", "--cluster-size", "3K"], ["power of two", "3072"]),
        (["--file", "/etc/passwd", "--cluster-size", "4M"], ["2 MiB"]),
        (["--file", "/etc/passwd", "--cluster-size", "many"], ["--cluster-size", "'many'"]),
        (["--file", "/etc/passwd", "--level", "23"], ["-7 to 22"]),
        (["--file", "/etc/passwd", "--level", "high"], ["--level"]),
        (["--file", "/etc/passwd", "--threads", "257"], ["256"]),
        (["--file", "/etc/passwd", "--byte-planes", "3"], ["--byte-planes", "2, 4 or 8", "'3'"]),
        (["--file", "/etc/passwd", "--byte-planes", ""], ["--byte-planes", "auto"]),
        (["--pid", "none"], ["--pid"]),
        (["--pid", "0"], ["pid"]),
        (["--pid", "-5"], ["pid"]),
        (["--pid", "1", "--range", "2000-1000"], ["2000"]),
        (["--pid", "1", "--range", "1000-1000"], ["1000"]),
        (["--pid", "1", "--range", "1001-3000"], ["1001"]),
        (["--pid", "1", "--range", "1000-2fff"], ["2fff"]),
        (["--pid", "1", "--range", "1000"], ["START-END"]),
        (["--pid", "1", "--range", "1000-"], ["START-END"]),
        (["--pid", "1", "--range", "10000000000000000-20000000000000000"], ["START-END"]),
    ],
)
def test_usage_errors(tmp_path: Path, options: list[str], words: list[str]) -> None:
    """Nothing is written, and nobody is stopped"""
    old = Old(tmp_path / "x.lzr")
    run("dump", *options, old).fails(2, *words)
    old.check()


def test_not_to_standard_output(tmp_path: Path) -> None:
    run("dump", "--file", "/etc/passwd", "-", cwd=tmp_path).fails(2, "standard output")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_the_image(tmp_path: Path) -> None:
    old = Old(tmp_path / "x.lzr")
    run("dump", "--file", old, old).fails(2, str(old))
    old.check()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    old = Old(tmp_path / "x.lzr")
    run("dump", "--file", tmp_path / "nix", old).fails(1, "No such file", "nix")
    run("dump", "--file", tmp_path, old).fails(1, "directory")
    old.check()


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x")
    source = ("--file", tmp_path / "raw")
    run("dump", *source, tmp_path / "nix" / "x.lzr").fails(1, "No such file", "nix")
    run("dump", *source, tmp_path).fails(1, "directory")
    os.mkfifo(tmp_path / "fifo")
    run("dump", *source, tmp_path / "fifo").fails(1, "not a regular file")
    assert temporary_files(tmp_path) == []


def test_a_folder_of_someone_else(nobody: object) -> None:
    folder = nobody.home / "roots images"
    folder.mkdir(exist_ok=True)
    result = nobody.run("dump", "--file", "/etc/passwd", folder / "x.lzr")
    result.fails(1, "Permission denied", str(folder / "x.lzr"))
    assert list(folder.iterdir()) == []


# ---- Core files ----------------------------------------------------------------------------------


def test_a_core_file(tmp_path: Path) -> None:
    """Regions by address; what the file leaves out is said"""
    data = os.urandom(3 * PAGE)
    parts = [core_support.Part(0x7F0000000000, data, memory=5 * PAGE)]
    core = core_support.write(tmp_path / "core", parts, core_support.process_note(4711, "cat"))
    text = run("dump", "--core", core, tmp_path / "x.lzr").ok().out
    assert "not in the image: 8.0 KiB in 1 piece" in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    with lazyrestore.open(tmp_path / "x.lzr") as image:
        assert image.info.source == f"core file {core} of process 4711 (cat)"
        assert image.read("7f0000000000-7f0000003000") == data
    report = json.loads(run("dump", "--core", core, tmp_path / "x.lzr", "--json").ok().out)
    assert [piece["name"] for piece in report["skipped"]] == ["7f0000003000-7f0000005000"]


def test_core_files_that_are_none(tmp_path: Path) -> None:
    old = Old(tmp_path / "x.lzr")
    run("dump", "--core", tmp_path / "nix", old).fails(1, "No such file", "nix")
    run("dump", "--core", "/etc/passwd", old).fails(1, "/etc/passwd", "not an ELF core file")
    run("dump", "--core", sys.executable, old).fails(1, "rather than a core file")
    run("dump", "--core", "/dev/stdin", old, given=b"\x7fELF").fails(2, "not a regular file")
    run("dump", "--core", old, old).fails(2, "to be dumped")
    old.check()


# ---- Processes -----------------------------------------------------------------------------------


def test_a_process(tmp_path: Path) -> None:
    """All its private memory; it runs on; what was left out is said"""
    path = tmp_path / "x.lzr"
    with target(64) as (child, address):
        report = json.loads(run("dump", "--pid", child.pid, path, "--json").ok().out)
        assert state_of(child.pid) == "S"
        assert report["frozen_us"] > 0
        assert any("[vvar]" in piece["name"] for piece in report["skipped"])
        with lazyrestore.open(path) as image:
            (region,) = (r for r in image.regions if r.address <= address < r.address + r.length)
            content = image.read(region.name, address - region.address, 64 * PAGE)
            assert content == numbered(64)
            assert f"process {child.pid}" in image.info.source
        text = run("dump", "--pid", child.pid, path).ok().out
        assert "stood still" in text
        assert "not in the image" in text
        assert "[vvar]" not in text
        assert max(map(len, text.splitlines()[1:])) <= 80
        verbose = run("dump", "--pid", child.pid, path, "-v").ok().out
        assert "[vvar]" in verbose
        assert f"{region.name} " in verbose


@pytest.mark.parametrize("prefix", ["", "0x"])
def test_ranges(tmp_path: Path, prefix: str) -> None:
    """Each is a region; names are lower-case hexadecimal"""
    path = tmp_path / "x.lzr"
    with target(16) as (child, address):
        ends = [(address, address + 4 * PAGE), (address + 8 * PAGE, address + 16 * PAGE)]
        options = [f"--range={prefix}{start:X}-{prefix}{end:x}" for start, end in ends]
        run("dump", "--pid", child.pid, *options, path).ok()
    with lazyrestore.open(path) as image:
        assert [r.name for r in image.regions] == [f"{start:x}-{end:x}" for start, end in ends]
        assert image.read(image.regions[0].name) == numbered(16)[: 4 * PAGE]
        assert image.read(image.regions[1].name) == numbered(16)[8 * PAGE :]


def test_a_range_that_is_unmapped(tmp_path: Path) -> None:
    old = Old(tmp_path / "x.lzr")
    with target(16) as (child, address):
        end = address + 17 * PAGE
        result = run("dump", "--pid", child.pid, f"--range={address:x}-{end:x}", old)
        result.fails(1, f"{address + 16 * PAGE:x}", str(child.pid))
        assert state_of(child.pid) == "S"
    old.check()


def test_a_pid_that_is_nobodys(tmp_path: Path) -> None:
    old = Old(tmp_path / "x.lzr")
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    run("dump", "--pid", ended.pid, old).fails(1, str(ended.pid), "no process")
    run("dump", "--pid", 2**31 - 1, old).fails(1, "no process")
    old.check()


def test_a_kernel_thread(tmp_path: Path) -> None:
    """Has no memory"""
    if not Path("/proc/2/comm").exists() or "kthreadd" not in Path("/proc/2/comm").read_text():
        pytest.skip("no kernel threads are to be seen here")
    run("dump", "--pid", 2, tmp_path / "x.lzr").fails(1, "kernel thread")
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_someone_else(nobody: object) -> None:
    """It is told whose it is; the process is not disturbed"""
    with target(16) as (child, _):
        image = nobody.folder / "x.lzr"
        nobody.run("dump", "--pid", child.pid, image).fails(1, str(child.pid), "belongs to user 0")
        assert state_of(child.pid) == "S"
        assert not image.exists()
        assert temporary_files(nobody.folder) == []


def start_slow_dump(tmp_path: Path, pid: int, old: Old) -> subprocess.Popen[bytes]:
    """A dump that is in the middle of a process's memory, and will be for a while."""
    child = start("dump", "--pid", pid, "--level", 22, "--threads", 1, old)
    wait_until(
        "part of an image",
        lambda: any(path.stat().st_size > 1 << 20 for path in temporary_files(tmp_path)),
    )
    return child


def test_a_process_that_ends_meanwhile(tmp_path: Path) -> None:
    old = Old(tmp_path / "x.lzr")
    with target(32768, "random") as (child, _):
        dump = start_slow_dump(tmp_path, child.pid, old)
        child.kill()
        finish(dump).fails(1, str(child.pid), "ended")
    old.check()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_a_process_is_frozen(tmp_path: Path, number: int, code: int) -> None:
    """It runs on, the old image stays, nothing lies about"""
    old = Old(tmp_path / "x.lzr")
    with target(32768, "random") as (child, _):
        dump = start_slow_dump(tmp_path, child.pid, old)
        assert state_of(child.pid) == "t"
        interrupt(dump, number).fails(code, "given up", str(old))
        wait_until("the process runs", lambda: state_of(child.pid) == "S")
    old.check()


def test_killed_while_a_process_is_frozen(tmp_path: Path) -> None:
    """SIGKILL leaves the temporary file, but lets the process run, and the old image be"""
    old = Old(tmp_path / "x.lzr")
    with target(32768, "random") as (child, _):
        dump = start_slow_dump(tmp_path, child.pid, old)
        assert interrupt(dump, signal.SIGKILL).code == -signal.SIGKILL
        wait_until("the process runs", lambda: state_of(child.pid) == "S")
    assert old.path.read_bytes() == Old.CONTENT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_interrupted_while_it_waits_for_input(tmp_path: Path, number: int, code: int) -> None:
    old = Old(tmp_path / "x.lzr")
    dump = start("dump", "--file", "-", old, stdin=subprocess.PIPE)
    wait_until("a temporary file", lambda: temporary_files(tmp_path))
    dump.send_signal(number)
    assert dump.wait(TIMEOUT_S) == code  # with its input still open
    finish(dump).fails(code, "given up", str(old))
    old.check()


def test_nohup(tmp_path: Path) -> None:
    """A SIGHUP that is ignored stays ignored"""
    dump = start(
        "dump",
        "--file",
        "-",
        tmp_path / "x.lzr",
        stdin=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_until("a temporary file", lambda: temporary_files(tmp_path))
    dump.send_signal(signal.SIGHUP)
    finish(dump, b"some data").ok()
    assert (tmp_path / "x.lzr").exists()


# ---- Disks ---------------------------------------------------------------------------------------


def test_a_full_disk(full_disk: Path) -> None:
    old = Old(full_disk / "x.lzr")
    result = run("dump", "--file", "-", old, given=os.urandom(4 << 20))
    result.fails(1, "No space left on device", str(old))
    old.check()


def test_a_limit_of_file_sizes(tmp_path: Path) -> None:
    old = Old(tmp_path / "x.lzr")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = run("dump", "--file", "-", old, given=os.urandom(4 << 20), preexec_fn=limit)
    result.fails(1, "File too large", str(old))
    old.check()


# ---- Progress ------------------------------------------------------------------------------------


def drip(tmp_path: Path, terminal: bool, *options: str) -> tuple[bytes, bytes]:
    """Dump slow input; what came on standard output, and on standard error."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "lazyrestore", "dump", "--file", "-", *options]
    with subprocess.Popen(
        [*command, str(tmp_path / "x.lzr")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=follower if terminal else subprocess.PIPE,
        env=environment(),
    ) as child:
        os.close(follower)
        wait_until("a temporary file", lambda: temporary_files(tmp_path))
        for _ in range(8):
            child.stdin.write(os.urandom(1 << 20))
            child.stdin.flush()
            time.sleep(0.1)
        out, err = child.communicate(timeout=TIMEOUT_S)
        assert child.returncode == 0
    if terminal:
        err = b""
        try:
            while piece := os.read(leader, 65536):
                err += piece
        except OSError:  # the last one who had it open is gone
            pass
    os.close(leader)
    return out, err


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """One line that is drawn again and again, and taken away at the end"""
    _, err = drip(tmp_path, True)
    assert b"dump  " in err
    assert b"MiB/s" in err
    assert b"\n" not in err
    assert err.split(b"\r")[-2].strip() == b""


def test_no_progress_elsewhere(tmp_path: Path) -> None:
    """Nor with --quiet"""
    assert drip(tmp_path, False)[1] == b""
    (tmp_path / "x.lzr").unlink()
    assert drip(tmp_path, True, "--quiet") == (b"", b"")


def test_source_is_what_the_api_has(tmp_path: Path) -> None:
    """The command writes what the function does"""
    with target(16) as (child, address):
        spot = f"{address:x}-{address + 16 * PAGE:x}"
        run("dump", "--pid", child.pid, "--range", spot, tmp_path / "a.lzr").ok()
        source = ProcessMemory(child.pid, [(address, address + 16 * PAGE)])
        report = lazyrestore.dump(source, tmp_path / "b.lzr")
    with lazyrestore.open(tmp_path / "a.lzr") as image:
        assert image.digest == report.digest
