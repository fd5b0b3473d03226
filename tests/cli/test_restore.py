"""`lazyrestore restore --output`: every byte, into a file that is whole or not there."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import (
    PAGE,
    Image,
    Old,
    finish,
    interrupt,
    run,
    start,
    temporary_files,
    wait_until,
)

import lazyrestore

MakeImage = Callable[..., Image]
LAYOUT = "dddd" + "rrrr" + "z" * 64 + "hhhh" + "dzhr" + "zhzh" + "d"


@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_byte(make_image: MakeImage, tmp_path: Path, cluster_size: int, threads: int) -> None:
    image = make_image({"memory": LAYOUT}, cluster_size=cluster_size)
    out = tmp_path / "out"
    text = run("restore", image.path, "--output", out, "--threads", threads).ok().out
    assert out.read_bytes() == image.expected["memory"]
    assert str(out) in text
    assert run("restore", image.path, "-o", "-").ok().out_bytes == image.expected["memory"]


def test_odd_lengths(tmp_path: Path) -> None:
    """A region that ends within a page, and one that is empty"""
    for length in (0, 1, PAGE - 1, PAGE + 1, 12_345, 65_537):
        data = bytes(range(1, 252)) * (length // 251 + 1)
        path, out = tmp_path / f"{length}.lzr", tmp_path / f"{length}"
        lazyrestore.dump(data[:length], path)
        run("restore", path, "-o", out).ok()
        assert out.read_bytes() == data[:length]
        assert run("restore", path, "-o", "-").ok().out_bytes == data[:length]


def test_larger_than_what_is_decoded_at_once(tmp_path: Path) -> None:
    """Several pieces, on several threads, in order"""
    data = b"".join(number.to_bytes(8, "little") * 512 for number in range(6000))
    path, out = tmp_path / "large.lzr", tmp_path / "out"
    lazyrestore.dump(data, path, cluster_size=16384)
    report = json.loads(run("restore", path, "-o", out, "--json").ok().out)
    assert out.read_bytes() == data
    assert run("restore", path, "-o", "-", "--threads", 3).ok().out_bytes == data
    assert report["logical_bytes"] == len(data)
    assert report["region"] == "memory"
    assert report["path"] == str(out)
    assert report["seconds"] > 0


def test_zeros_are_holes(tmp_path: Path) -> None:
    """1 GiB of zeros takes no room on the disk, and no time to speak of"""
    path, out = tmp_path / "zeros.lzr", tmp_path / "out"
    with lazyrestore.ImageWriter(path) as image:
        image.add_region("memory")
        image.zero(1 << 30)
        image.write(b"end")
    report = json.loads(run("restore", path, "-o", out, "--json").ok().out)
    here = out.stat()
    assert here.st_size == (1 << 30) + 3
    assert here.st_blocks * 512 < 1 << 20
    assert report["data_bytes"] < 1 << 17
    with out.open("rb") as file:
        file.seek(1 << 30)
        assert file.read() == b"end"


def test_private_and_in_place_of_the_old(small: Image, tmp_path: Path) -> None:
    """0600 whatever the umask: memory holds secrets"""
    old = Old(tmp_path / "out")
    run("restore", small.path, "--region", "more", "-o", old, umask=0).ok()
    assert old.path.read_bytes() == small.expected["more"]
    assert stat.S_IMODE(old.path.stat().st_mode) == 0o600
    assert temporary_files(tmp_path) == []


def test_several_regions(small: Image, tmp_path: Path) -> None:
    """Asks which"""
    out = tmp_path / "out"
    run("restore", small.path, "-o", out).fails(2, "--region", "data", "more")
    assert not out.exists()
    run("restore", small.path, "-o", out, "--region", "data").ok()
    assert out.read_bytes() == small.expected["data"]
    run("restore", small.path, "-o", out, "--region", "nix").fails(2, "'nix'", "'data'", "'more'")
    assert out.read_bytes() == small.expected["data"]


def test_no_regions(make_image: MakeImage, tmp_path: Path) -> None:
    run("restore", make_image({}).path, "-o", tmp_path / "out").fails(1, "no regions")


def test_nowhere_to(small: Image) -> None:
    """Says what to add"""
    run("restore", small.path).fails(2, "--output", "--lazy")


def test_json_and_output_both_to_stdout(small: Image) -> None:
    run("restore", small.path, "-o", "-", "--json").fails(2, "--json")


def test_quiet(small: Image, tmp_path: Path) -> None:
    assert run("restore", small.path, "--region", "more", "-qo", tmp_path / "x").ok().out == ""


def test_into_a_pipe_by_name(small: Image, tmp_path: Path) -> None:
    """What is no file is written to, not replaced"""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE) as reader:
        child = start("restore", small.path, "--region", "data", "-o", fifo)
        # Read while it is written: pipes do not hold all of it.
        assert reader.communicate(timeout=60)[0] == small.expected["data"]
        finish(child).ok()
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    run("restore", small.path, "--region", "data", "-o", "/dev/null").ok()


def test_a_reader_that_stops(tmp_path: Path) -> None:
    """As in `restore -o - | head -c 5`"""
    path = tmp_path / "large.lzr"
    lazyrestore.dump(b"lazy" * (4 << 20), path)
    child = start("restore", path, "-o", "-")
    assert child.stdout.read(4) == b"lazy"
    child.stdout.close()
    child.stdout = None
    result = finish(child)
    assert (result.code, result.err) == (141, "")


def test_a_damaged_cluster(small: Image, tmp_path: Path) -> None:
    """Nothing takes the target's place"""
    from restore_support import payloads

    old = Old(tmp_path / "out")
    offset, _ = payloads(small.path, "data")[8]
    data = bytearray(small.path.read_bytes())
    data[offset] ^= 1
    small.path.write_bytes(data)
    result = run("restore", small.path, "--region", "data", "-o", old)
    result.fails(3, "'data'", "offset 131072", "checksum")
    old.check()
    run("restore", small.path, "--region", "more", "-o", old).ok()
    result = run("restore", small.path, "--region", "data", "-o", "-")
    assert result.code == 3
    assert small.expected["data"].startswith(result.out_bytes)  # nothing wrong before the error


# ---- Ctrl-C, full disks --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that takes a second or so to decode."""
    path = tmp_path_factory.mktemp("slow") / "slow.lzr"
    block = b"".join(number.to_bytes(4, "little") * 1024 for number in range(256))
    with lazyrestore.ImageWriter(path, cluster_size=4096) as image:
        image.add_region("memory")
        for _ in range(512):
            image.write(block)
    return path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(slow: Path, tmp_path: Path, number: int, code: int) -> None:
    """The old file stays, the new one does not"""
    folder = tmp_path / "folder"
    folder.mkdir()
    old = Old(folder / "out")
    child = start("restore", slow, "-o", old)
    wait_until("a temporary file", lambda: temporary_files(folder))
    interrupt(child, number).fails(code, "given up", str(old))
    old.check()


def test_interrupted_while_nobody_reads(slow: Path) -> None:
    child = start("restore", slow, "-o", "-")
    assert child.stdout.read(1)
    result = interrupt(child)
    result.fails(130, "given up")


def test_a_full_disk(slow: Path, full_disk: Path) -> None:
    old = Old(full_disk / "out")
    run("restore", slow, "-o", old).fails(1, "No space left on device", str(old))
    old.check()


def test_a_limit_of_file_sizes(slow: Path, tmp_path: Path) -> None:
    """ulimit -f: an error, not SIGXFSZ"""
    folder = tmp_path / "folder"
    folder.mkdir()
    old = Old(folder / "out")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    run("restore", slow, "-o", old, preexec_fn=limit).fails(1, "File too large", str(old))
    old.check()


def test_targets_that_cannot_be(small: Image, tmp_path: Path) -> None:
    only = ("--region", "more", "-o")
    run("restore", small.path, *only, tmp_path / "nix" / "out").fails(1, "No such file", "nix")
    run("restore", small.path, *only, tmp_path).fails(1, "directory", str(tmp_path))
    run("restore", small.path, *only, tmp_path / ("x" * 300)).fails(1, "name too long")


def test_the_image_itself(small: Image, tmp_path: Path) -> None:
    """One region in the place of the image would be all that is left of it, by whatever name"""
    content = small.path.read_bytes()
    image = tmp_path / "x.lzr"
    image.write_bytes(content)
    (tmp_path / "link").symlink_to("x.lzr")
    for name in (image, tmp_path / "." / "x.lzr", tmp_path / "link"):
        result = run("restore", image, "--region", "more", "-o", name)
        result.fails(2, "is the image itself", "another name")
    assert image.read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    assert temporary_files(tmp_path) == []


def test_a_folder_of_someone_else(small: Image, nobody: object) -> None:
    copy = nobody.bring(small.path)
    folder = nobody.home / "roots"
    folder.mkdir(exist_ok=True)
    result = nobody.run("restore", copy, "--region", "more", "-o", folder / "out")
    result.fails(1, "Permission denied", str(folder / "out"))
    assert list(folder.iterdir()) == []


def test_what_is_for_processes_is_refused_with_the_reason(small: Image, tmp_path: Path) -> None:
    """For another kind of image, and without --lazy; an image that is not there is said first"""
    refused = run("restore", "--lazy", "-d", small.path)
    refused.fails(2, "--restore-detached is for images of processes", "memory alone")
    run("restore", "--pidfile", tmp_path / "pid", small.path).fails(2, "add --lazy")
    run("restore", "--lazy", "-d", tmp_path / "none.lzr").fails(1, "none.lzr", "No such file")
