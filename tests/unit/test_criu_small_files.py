"""Where CRIU's small files are: gone when they are no longer needed, however that comes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lazyrestore._criu import smallfiles
from lazyrestore._criu.smallfiles import SmallFiles

ROOT = Path(__file__).parents[2]


def write(files: SmallFiles, name: str, data: bytes) -> None:
    Path(files.path, name).write_bytes(data)


@pytest.fixture(params=[True, False], ids=["tmpfs", "folder"])
def files(request, tmp_path, monkeypatch):
    monkeypatch.setattr(smallfiles, "_PLACES", (str(tmp_path),))
    with SmallFiles(detached=request.param) as files:
        if files.is_detached != request.param:
            pytest.skip("a tmpfs cannot be made here: no CAP_SYS_ADMIN, or before Linux 5.2")
        yield files


def test_files_are_found_by_other_processes(files):
    subprocess.run(["sh", "-c", f"echo 1 >{files.path}/b; echo 22 >{files.path}/a"], check=True)
    os.mkdir(f"{files.path}/c")
    assert files.names() == ["a", "b", "c"]
    assert [files.size(name) for name in files.names()] == [3, 2, -1]
    assert files.read("a") == b"22\n"
    assert files.read("none") == b""


def test_only_for_this_user(files):
    status = os.stat(files.fd)
    assert status.st_mode & 0o777 == 0o700
    assert status.st_uid == os.geteuid()


def test_a_tmpfs_has_no_name_and_a_limit():
    with SmallFiles(limit_bytes=1 << 20) as files:
        if not files.is_detached:
            pytest.skip("a tmpfs cannot be made here: no CAP_SYS_ADMIN, or before Linux 5.2")
        assert os.readlink(files.path) == "/"
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write(files, "large", bytes(2 << 20))


def test_a_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(smallfiles, "_PLACES", (str(tmp_path),))
    with SmallFiles(detached=False) as files:
        write(files, "a", b"1")
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def test_the_next_place_where_one_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(smallfiles, "_PLACES", (str(tmp_path / "none"), str(tmp_path)))
    with SmallFiles(detached=False) as files:
        assert len(os.listdir(tmp_path)) == 1
        files.close()


_KILLED = """
import os, signal, sys
from pathlib import Path
from lazyrestore._criu import smallfiles
smallfiles._PLACES = (sys.argv[1],)
files = smallfiles.SmallFiles(detached=False)
Path(files.path, "a").write_bytes(b"secret")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_dump_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(smallfiles, "_PLACES", (str(tmp_path),))
    others = tmp_path / "lazyrestore-dump-and-others"
    others.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    with SmallFiles(detached=False) as first:
        write(first, "a", b"1")
        with SmallFiles(detached=False):  # whose time has not come
            assert first.read("a") == b"1"
            assert len(os.listdir(tmp_path)) == 3
    assert os.listdir(tmp_path) == [others.name]
