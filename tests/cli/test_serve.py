"""`lazyrestore serve`: its arguments, and where it can listen."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from cli_support import Image, run, start, wait_until
from serve_support import Service


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["IMAGE", "--image-dir"]),
        (["IMAGE", "--image-dir", "."], ["--image-dir"]),
        (["IMAGE"], ["--socket"]),
        (["IMAGE", "--socket", "s", "--on-error", "hope"], ["--on-error", "kill"]),
        (["IMAGE", "--socket", "s", "--allow-uid", "no such user"], ["no such user"]),
        (["IMAGE", "--socket", "s", "--allow-uid", "-1"], ["-1"]),
        (["IMAGE", "--socket", "s", "--allow-uid", str(1 << 32)], [str(1 << 32)]),
        (["IMAGE", "--socket", "s", "--socket-mode", "rw"], ["rw", "600"]),
        (["IMAGE", "--socket", "s", "--socket-mode", "7777"], ["7777"]),
        (["IMAGE", "--socket", "s", "--grace", "soon"], ["soon", "seconds"]),
        (["IMAGE", "--socket", "s", "--grace", "nan"], ["nan"]),
        (["IMAGE", "--socket", "s", "--record", "r", "--prefetch", "all"], ["--record"]),
        (["IMAGE", "--socket", "s", "--record", "r", "--working-set", "w"], ["--record"]),
        (["IMAGE", "--socket", "s", "--prefetch", "none", "--working-set", "w"], ["none"]),
        (["--image-dir", ".", "--socket", "s", "--working-set", "w"], ["--working-set"]),
        (["IMAGE", "--socket", "."], ["folder"]),
        (["IMAGE", "--socket", "s" * 200], ["200 bytes", "107"]),
        (["IMAGE", "--socket", ""], ["socket"]),
    ],
)
def test_usage_errors(arguments: list[str], words: list[str], small: Image, tmp_path: Path) -> None:
    given = [small.path if each == "IMAGE" else each for each in arguments]
    run("serve", *given, cwd=tmp_path).fails(2, *words)
    assert [path for path in tmp_path.iterdir() if path.is_socket()] == []


def test_what_is_not_there(small: Image, tmp_path: Path) -> None:
    sock = ("--socket", tmp_path / "s")
    run("serve", tmp_path / "none.lzr", *sock).fails(1, "none.lzr", "No such file")
    run("serve", Path(__file__), *sock).fails(3, "not a lazyrestore image")
    run("serve", "--image-dir", tmp_path / "none", *sock).fails(1, "none")
    run("serve", "--image-dir", small.path, *sock).fails(1, "Not a directory")
    run("serve", small.path, *sock, "--working-set", tmp_path / "w").fails(1, "No such file")
    run("serve", small.path, *sock, "--record", tmp_path / "none" / "r").fails(1, "No such file")
    run("serve", small.path, *sock, "--record", small.path).fails(2, "would be replaced")
    run("serve", small.path, "--socket", tmp_path / "none" / "s").fails(1, "no folder")
    assert not (tmp_path / "s").exists()


@pytest.mark.uffd
def test_a_path_that_is_taken(small: Image, tmp_path: Path) -> None:
    """By a file, a folder, another's socket; one that nobody listens on is replaced"""
    path = tmp_path / "s"
    path.write_text("precious")
    run("serve", small.path, "--socket", path).fails(1, "no socket")
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    with Service(path, small.path):
        run("serve", small.path, "--socket", path, "--no-keeper").fails(5, "already served")
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()
    with Service(path, small.path, "--socket-mode", "660"):
        assert path.stat().st_mode & 0o777 == 0o660


def test_a_folder_that_is_not_writable(small: Image, tmp_path: Path, nobody: object) -> None:
    image = nobody.bring(small.path)  # type: ignore[attr-defined]
    closed = nobody.folder.parent / "closed"  # type: ignore[attr-defined]
    closed.mkdir()
    closed.chmod(0o755)
    result = nobody.run("serve", image, "--socket", closed / "s")  # type: ignore[attr-defined]
    result.fails(1, "closed/s", "writable")


@pytest.mark.uffd
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end(small: Image, tmp_path: Path, number: int) -> None:
    """Exit code 0, and nothing is left"""
    service = Service(tmp_path / "s", small.path, keeper=True)
    assert service.stop(number) == 0
    assert service.find("stopped") != []
    assert service.other == []
    assert not (tmp_path / "s").exists()


@pytest.mark.uffd
def test_several_sockets(small: Image, tmp_path: Path) -> None:
    with Service(tmp_path / "b", small.path, "--socket", tmp_path / "a") as service:
        service.wait("listening", 2)
        for name in ("a", "b"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(tmp_path / name))
                sock.sendall(b'{"type":"nonsense"}')
                assert b"nonsense" in sock.recv(4096)


@pytest.mark.uffd
def test_text_events(small: Image, tmp_path: Path) -> None:
    """Without --log-json: a line each, on standard error"""
    path = tmp_path / "s"
    child = start("serve", small.path, "--socket", path, "--no-keeper", stdout=subprocess.DEVNULL)
    with socket.socket(socket.AF_UNIX) as sock:
        wait_until("it listens", lambda: path.exists() and sock.connect_ex(str(path)) == 0)
        sock.sendall(b"nonsense\x1b[31m")
        sock.recv(4096)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0
    assert b"nonsense" in err
    assert b"\x1b" not in err, "what peers send does not reach the terminal as it is"
    assert os.fsencode(path) in err
