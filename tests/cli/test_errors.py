"""What a new user runs into: the wrong file, the wrong place, no rights. A cause and a remedy."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from cli_support import PAGE, Image, Old, Result, environment, run, start, wait_until
from seccomp_support import DENY

import lazyrestore
from lazyrestore import _filekind


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.arange(100))
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(100))
    return file.getvalue()


def safetensors() -> bytes:
    head = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(8)


def core() -> bytes:
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHI", 4, 62, 1) + bytes(40)


FILES = {
    "results.npz": (npz, ["an archive of arrays", "dump --npz"]),
    "array.npy": (npy, ["a numpy array", "dump --npy"]),
    "model.safetensors": (safetensors, ["a safetensors file", "dump --safetensors"]),
    "core.4711": (core, ["a core file", "dump --core"]),
    "vm.mem.zst": (lambda: zstandard.compress(bytes(PAGE)), ["by zstd", "zstd -d"]),
    "vm.mem.gz": (lambda: gzip.compress(bytes(PAGE)), ["by gzip", "gzip -d"]),
    "vm.mem.xz": (lambda: lzma.compress(bytes(PAGE)), ["by xz", "xz -d"]),
    "vm.mem.bz2": (lambda: bz2.compress(bytes(PAGE)), ["by bzip2", "bzip2 -d"]),
    "state.pkl": (lambda: pickle.dumps([1] * 99), ["a pickle", "dump_pickle"]),
    "notes.txt": (lambda: "Größe: 1 µs\n".encode() * 30, ["a text", "`lazyrestore dump` made"]),
    "program": (lambda: Path(sys.executable).read_bytes()[:PAGE], ["a program"]),
    "noise": (lambda: b"\xff\xfe\xfd" + bytes(range(256)), ["`lazyrestore dump` made"]),
    "empty": (bytes, ["empty", "make it again"]),
    "one byte": (lambda: b"\x80", ["`lazyrestore dump` made"]),
}


@pytest.mark.parametrize("name", FILES)
def test_another_kind_of_file(tmp_path: Path, name: str) -> None:
    """What it is, and how it becomes an image; by the command line and in Python alike"""
    make, words = FILES[name]
    path = tmp_path / name
    path.write_bytes(make())
    run("info", path).fails(3, str(path), *words)
    with pytest.raises(lazyrestore.ImageError, match=words[-1].replace("[", "\\[")) as raised:
        lazyrestore.open(path)
    assert str(path) in str(raised.value)


def test_a_working_set_is_no_image(small: Image, tmp_path: Path) -> None:
    run("restore", small.path, "--lazy", "--region", "data", "--record", tmp_path / "x.ws")
    if not (tmp_path / "x.ws").exists():
        pytest.skip("no lazy restore here, so nothing is recorded")
    run("info", tmp_path / "x.ws").fails(3, "it is a working set", "the image that it belongs to")


def test_the_advice_can_be_typed(tmp_path: Path) -> None:
    """Also where a name has a space: what is in the message makes an image of it"""
    path = tmp_path / "my results.npz"
    path.write_bytes(npz())
    line = run("info", path).fails(3).err
    command = line.partition("`")[2].partition("`")[0]
    assert command.startswith("lazyrestore dump --npz '")
    if "--npz" not in run("dump", "--help").out:
        pytest.skip("dump has no --npz yet")
    script = f'lazyrestore() {{ "{sys.executable}" -m lazyrestore "$@"; }}; {command}'
    subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment(), check=True)
    assert run("info", tmp_path / "my results.lzr").ok()


def test_nothing_is_said_of_what_cannot_be_read(tmp_path: Path) -> None:
    assert _filekind.describe(tmp_path / "none") == ""
    assert _filekind.describe(tmp_path) == ""


@pytest.mark.parametrize("length", [1, 100, -100, -1])
def test_cut_short(small: Image, tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.lzr"
    path.write_bytes(small.path.read_bytes()[:length])
    words = ["`lazyrestore dump` made"] if length == 1 else ["cut short", "make it again"]
    run("info", path).fails(3, *words)


def test_places(small: Image, tmp_path: Path) -> None:
    """Folders, links and pipes where a file is asked for; folders that are not there"""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "ring").symlink_to("ring")
    for name, words in (
        ("folder", ["Is a directory", "name of a file"]),
        ("pipe", ["regular file"]),
        ("link", ["No such file", "check the name"]),
        ("ring", ["check the links"]),
        ("none/x.lzr", ["there is no folder", "make it"]),
        ("", ["''", "check the name"]),
    ):
        run("info", tmp_path / name if name else "").fails(1, *words)
    missing = tmp_path / "none" / "out"
    run("restore", small.path, "-o", missing, "--region", "data").fails(1, "there is no folder")
    run("dump", "--file", small.path, missing).fails(1, f"there is no folder {missing.parent}")
    run("dump", "--file", small.path, "/dev/null").fails(1, "not a regular file", "another name")


def test_sockets(small: Image, tmp_path: Path) -> None:
    """No service, something else, somebody else's"""
    missing = tmp_path / "x.sock"
    run("top", missing, "--once").fails(5, f"`lazyrestore serve IMAGE --socket {missing}`")
    run("top", small.path, "--once").fails(5, "is no socket", "lazyrestore serve")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(missing))
    run("top", missing, "--once").fails(5, "its service has ended", "start it again")


def test_programs(small: Image, tmp_path: Path) -> None:
    """A COMMAND that is none"""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    lazy = ("restore", "--lazy", small.path, "--")
    run(*lazy, script).fails(126, "Permission denied", f"chmod +x {script}")
    run(*lazy, tmp_path / "none").fails(127, "check the name")


def test_options(small: Image) -> None:
    """What was meant, or where to read"""
    run("infoo").fails(2, "Did you mean 'info'? See 'lazyrestore --help'")
    run("info", "--jso", small.path).fails(2, "--json", "lazyrestore info --help")
    run("dump", "--pid", "redis", "x.lzr").fails(2, "'redis' is not a whole number")
    run("restore", small.path).fails(2, "--output FILE", "--lazy")
    run("restore", small.path, "-o", "x").fails(2, "--region", *small.expected)
    run("cat", small.path, "--region", "none").fails(2, "no region 'none'", "data")


# ---- No rights -----------------------------------------------------------------------------------


def blocked(error: int, *arguments: object) -> Result:
    """As in a container whose filter forbids userfaultfd, device or not."""
    script = (
        f"{DENY}\ndeny_userfaultfd({error})\n"
        "from lazyrestore.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    result = run(*arguments, command=(sys.executable, "-c", script))
    if result.out.startswith("skip"):
        pytest.skip(f"seccomp: {result.out[5:]}")
    return result


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_in_a_container(small: Image, error: int) -> None:
    """EPERM as Docker says it, ENOSYS as an old kernel does: doctor; and --or-eager works"""
    lazy = ("restore", "--lazy", small.path, "--region", "data")
    blocked(error, *lazy).fails(4, "userfaultfd", "lazyrestore doctor")
    eager = blocked(error, *lazy, "--or-eager")
    assert eager.code == 0, eager
    assert "restored eagerly" in eager.out
    assert "decoded everything at once instead" in eager.err
    assert "what to do" in blocked(error, "doctor").fails(4, "the report says why").out


def test_as_an_ordinary_user(small: Image, nobody: object) -> None:
    """Each of the first commands that somebody tries: none fails without saying what to do"""
    image = nobody.bring(small.path)  # type: ignore[attr-defined]
    call = nobody.run  # type: ignore[attr-defined]
    lazy = call("restore", "--lazy", "--region", "data", image)
    if lazy.code:
        lazy.fails(4, "userfaultfd", "lazyrestore doctor")
    assert call("info", image).code == 0
    assert call("verify", image).code == 0
    call("dump", "--pid", "1", "x.lzr").fails(1, "process 1", "root")
    call("dump", "--file", "/etc/shadow", "x.lzr").fails(1, "Permission denied", "another user")
    call("dump", "--file", image, "/x.lzr").fails(1, "/x.lzr", "Permission denied")
    call("serve", image, "--socket", "/x.sock").fails(1, "cannot listen", "another path")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is missing: util-linux")
def test_root_in_a_user_namespace(small: Image, tmp_path: Path) -> None:
    """It calls itself root, and the kernel does not agree"""
    script = f'exec "{sys.executable}" -m lazyrestore "$@"'
    command = ("unshare", "--user", "--map-root-user", "sh", "-c", script, "-")
    result = run("restore", "--lazy", "--region", "data", small.path, command=command)
    if "unshare" in result.err:
        pytest.skip(f"no user namespaces here: {result.err.strip()}")
    if result.code:  # the device may be open to all
        result.fails(4, "userfaultfd", "lazyrestore doctor")


# ---- Optional packages, disks, memory ------------------------------------------------------------

_WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
import lazyrestore
session = lazyrestore.restore(sys.argv[1], lazy=False)
try:
    session["x"].array()
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_without_numpy(tmp_path: Path) -> None:
    """Who wants an array is told what to install"""
    image = tmp_path / "x.lzr"
    lazyrestore.dump({"x": np.arange(10_000)}, image)
    result = run("numpy", image, command=(sys.executable, "-c", _WITHOUT)).ok()
    assert "pip install 'lazyrestore[numpy]'" in result.out
    assert "array()" in result.out


def test_a_dump_without_room(tmp_path: Path) -> None:
    """A limit of file sizes, as a full disk: named, and what was there stays"""
    old = Old(tmp_path / "x.lzr")
    data = tmp_path / "data"
    data.write_bytes(os.urandom(1 << 20))
    old.beside = sorted(tmp_path.iterdir())
    limit = 'ulimit -f 64; exec "$@"'
    command = ("bash", "-c", limit, "-", sys.executable, "-m", "lazyrestore")
    run("dump", "--file", data, old, command=command).fails(1, "File too large", "ulimit -f")
    old.check()


def test_ctrl_c_says_what_became_of_it(tmp_path: Path) -> None:
    """Not a traceback, nor half an image"""
    child = start("dump", "--file", "-", tmp_path / "x.lzr", stdin=subprocess.PIPE)
    child.stdin.write(bytes(PAGE))
    child.stdin.flush()
    wait_until(
        "the dump has begun", lambda: list(tmp_path.glob("*.tmp")) or list(tmp_path.iterdir())
    )
    child.send_signal(2)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err.decode().count("\n") == 1
    assert "given up" in err.decode()
    assert list(tmp_path.iterdir()) == []
    assert out == b""
