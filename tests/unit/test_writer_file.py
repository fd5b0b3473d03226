"""ImageWriter: the file it makes, and what is left when something fails, stops or is killed."""

from __future__ import annotations

import gc
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from restore_support import run_in_child
from writer_support import MIB, decode, noise, temporaries, workers

from lazyrestore import ImageWriter


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "image.lzr"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    gc.collect()
    assert temporaries(tmp_path) == []
    assert workers() == []


# ---- The file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277, 0o777])
def test_images_and_temporary_files_are_for_their_owner_only(tmp_path, path, mask):
    before = os.umask(mask)
    try:
        with ImageWriter(path) as writer:
            (temporary,) = temporaries(tmp_path)
            assert temporary.startswith(".image.lzr.")
            assert stat.S_IMODE(os.stat(tmp_path / temporary).st_mode) == 0o600
            writer.add_region("memory")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_old_file_stays_until_the_image_is_complete(tmp_path, path):
    path.write_bytes(b"old")
    with ImageWriter(path) as writer:
        writer.add_region("memory")
        writer.write(noise(3 * MIB))
        assert path.read_bytes() == b"old"
    assert len(decode(path).content("memory")) == 3 * MIB
    assert os.listdir(tmp_path) == [path.name]


def test_an_exception_leaves_the_old_file(tmp_path, path):
    path.write_bytes(b"old")

    def interrupted():
        with ImageWriter(path) as writer:
            writer.add_region("memory")
            writer.write(noise(3 * MIB))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_is_replaced_and_not_followed(tmp_path, path):
    (tmp_path / "precious").write_bytes(b"keep")
    path.symlink_to("precious")
    with ImageWriter(path) as writer:
        writer.add_region("memory")
    assert (tmp_path / "precious").read_bytes() == b"keep"
    assert not path.is_symlink()


def test_a_link_that_stands_for_an_open_file_is_not_replaced(tmp_path, path, monkeypatch):
    """As /dev/stdout does, which root could replace for the whole system"""
    monkeypatch.chdir(tmp_path)
    with open("open", "wb") as file:
        path.symlink_to(f"/proc/self/fd/{file.fileno()}")
        (tmp_path / "further").symlink_to(path.name)
        for target in (os.fspath(path), path.name, "further", f"/dev/fd/{file.fileno()}"):
            with pytest.raises(FileExistsError, match=r"open file.*another name"):
                ImageWriter(target)
    assert sorted(os.listdir(tmp_path)) == sorted(["further", "open", path.name])
    assert path.is_symlink()


def test_the_folder_may_be_the_current_one_and_change(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with ImageWriter("image.lzr") as writer:
        writer.add_region("memory")
        os.chdir(tmp_path)
    assert (tmp_path / "a" / "image.lzr").exists()


def test_long_names_have_room_for_a_temporary_one(tmp_path):
    name = "n" * 251 + ".lzr"
    with ImageWriter(tmp_path / name) as writer:
        writer.add_region("memory")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("missing/image.lzr", FileNotFoundError),
        ("file/image.lzr", NotADirectoryError),
        ("", IsADirectoryError),
        ("folder", IsADirectoryError),
        ("pipe", FileExistsError),
        ("n" * 256, OSError),
    ],
)
def test_targets_that_cannot_be(tmp_path, target, error):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    whole = os.path.join(tmp_path, target)
    with pytest.raises(error) as raised, ImageWriter(whole) as writer:
        writer.add_region("memory")
    assert raised.value.filename == whole
    assert sorted(os.listdir(tmp_path)) == before


def test_an_unwritable_folder(tmp_path):
    """In a child, as somebody else where this is root, who may write everywhere."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:
        # /proc takes no new files from anybody, and root is refused like everyone.
        folder = Path("/proc/self")
    with pytest.raises(OSError, match=r"image\.lzr") as raised:
        ImageWriter(folder / "image.lzr")
    assert raised.value.filename == str(folder / "image.lzr")


def test_a_forgotten_writer_leaves_nothing(tmp_path, path):
    writer = ImageWriter(path)
    writer.add_region("memory")
    writer.write(noise(3 * MIB))
    assert len(temporaries(tmp_path)) == 1
    del writer
    gc.collect()
    assert os.listdir(tmp_path) == []


def test_a_writer_that_is_open_at_exit_leaves_nothing(tmp_path, path):
    run_in_child(
        """
        import os, sys
        from lazyrestore import ImageWriter
        writer = ImageWriter(sys.argv[1])
        writer.add_region("memory")
        writer.write(os.urandom(5 << 20))
        """,
        path,
    )
    assert os.listdir(tmp_path) == []


def test_a_forked_child_leaves_its_parents_file(tmp_path, path):
    run_in_child(
        """
        import os, sys
        from lazyrestore import ImageWriter
        with ImageWriter(sys.argv[1]) as writer:
            writer.add_region("memory")
            if os.fork() == 0:
                sys.exit()
            assert os.wait()[1] == 0
            writer.write(b"after the child")
        """,
        path,
    )
    assert decode(path).content("memory") == b"after the child"


# ---- Failing -------------------------------------------------------------------------------------


def write_much(path: Path, **options) -> None:
    with ImageWriter(path, **options) as writer:
        writer.add_region("memory")
        writer.write(noise(50 * MIB))


def test_an_error_in_a_worker_reaches_the_caller(tmp_path, path, monkeypatch):
    from lazyrestore import _compress

    def fail(self, data, width):
        raise MemoryError("no more")

    monkeypatch.setattr(_compress.Worker, "_compress", fail)
    with pytest.raises(MemoryError, match="no more"):
        write_much(path)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_progress_function_reaches_the_caller(tmp_path, path):
    def stop(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        write_much(path, progress=stop)
    assert os.listdir(tmp_path) == []


def test_a_failed_writer_says_that_it_is_closed(path):
    def stop(done, total):
        raise RuntimeError("enough")

    writer = ImageWriter(path, progress=stop)
    writer.add_region("memory")
    with pytest.raises(RuntimeError):
        writer.write(noise(50 * MIB))
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        writer.close()


def test_the_callers_buffers_are_free_again(path):
    data = bytearray(noise(8 * MIB))
    with ImageWriter(path) as writer:
        writer.add_region("memory")
        writer.write_stable(data)
    data.append(1)  # a BufferError if anything still held it
    writer = ImageWriter(path)
    writer.add_region("memory")
    writer.write_stable(data)
    writer.abort()
    gc.collect()
    data.append(1)


LIMITED = """
    import errno, os, resource, sys
    from lazyrestore import ImageWriter
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        with ImageWriter(sys.argv[1]) as writer:
            writer.add_region("memory")
            writer.write(os.urandom(20 << 20))
    except OSError as error:
        assert error.errno == errno.EFBIG, error
        assert error.filename == sys.argv[1]
        assert "ulimit" in str(error)
        sys.exit(7)
"""


def test_a_file_that_may_not_grow(tmp_path, path):
    path.write_bytes(b"old")
    done = run_in_child(LIMITED, path, ok=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.root
def test_a_full_disk(tmp_path):
    """A real one: a file system of 1 MiB in a mount namespace of its own."""
    done = run_in_child(
        """
        import errno, os, subprocess, sys
        from lazyrestore import ImageWriter
        folder = sys.argv[1]
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
        target = os.path.join(folder, "image.lzr")
        open(target, "w").write("old")
        try:
            with ImageWriter(target) as writer:
                writer.add_region("memory")
                writer.write(os.urandom(20 << 20))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            assert error.filename == target
            assert os.listdir(folder) == ["image.lzr"]
            assert open(target).read() == "old"
            sys.exit(7)
        """.replace("import errno", "import errno, ctypes").replace(
            "folder = sys.argv[1]",
            "folder = sys.argv[1]\n"
            "        libc = ctypes.CDLL(None, use_errno=True)\n"
            "        if libc.unshare(0x20000):\n"
            "            sys.exit(8)\n"
            "        if subprocess.run(['mount', '--make-rprivate', '/']).returncode:\n"
            "            sys.exit(9)  # in a chroot / is no mount point",
        ),
        tmp_path,
        ok=False,
    )
    if done.returncode == 9:
        pytest.skip(f"mounts cannot be kept private here: {done.stderr.strip()}")
    if done.returncode == 8 or "permission denied" in done.stderr.lower():
        pytest.skip("may not mount anything here")
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("round_", range(8))
def test_ctrl_c_at_any_time_leaves_the_old_file_and_ends(tmp_path, path, round_):
    path.write_bytes(b"old")
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import os, sys
                from lazyrestore import ImageWriter
                data = os.urandom(1 << 20) * 4 + b"text" * (1 << 20)
                print("ready", flush=True)
                while True:
                    with ImageWriter(sys.argv[1] + ".other", level=3, threads=2) as writer:
                        writer.add_region("memory")
                        for _ in range(30):
                            writer.write(data)
                            writer.zero(123456789)
                        writer.abort()
                """
            ),
            str(path),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(random.Random(round_).random() * 0.4)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert "KeyboardInterrupt" in stderr
    assert child.returncode == -signal.SIGINT
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"old"


def test_killed_it_leaves_the_old_file(tmp_path, path):
    path.write_bytes(b"old")
    done = run_in_child(
        """
        import os, signal, sys
        from lazyrestore import ImageWriter
        writer = ImageWriter(sys.argv[1])
        writer.add_region("memory")
        writer.write(os.urandom(5 << 20))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
        ok=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    for name in temporaries(tmp_path):
        (tmp_path / name).unlink()


def test_memory_is_bounded(tmp_path, path):
    """4 GiB, of which 256 MiB are data that does not compress, through small pieces."""
    done = run_in_child(
        """
        import os, sys
        from lazyrestore import ImageWriter
        import lazyrestore._assemble
        from resident import resident_peak
        zeros = bytes(1 << 20)
        before = resident_peak()
        with ImageWriter(sys.argv[1], threads=8, level=1) as writer:
            writer.add_region("memory")
            for number in range(4096):
                if number % 16:
                    writer.write(zeros)
                else:
                    writer.write(os.urandom(1 << 20))
        print(resident_peak() - before)
        """,
        path,
        timeout=300,
    )
    assert int(done.stdout) < 256 * MIB
    assert path.stat().st_size > 256 * MIB


def test_a_peak_is_a_process_own():
    """What these tests rely on, and what ru_maxrss is not: the parent's is not the child's."""
    script = """
    import subprocess, sys
    from resident import resident_peak
    if sys.argv[1] == "parent":
        before = resident_peak()
        block = b"x" * (256 << 20)
        grown = resident_peak() - before
        assert grown >= 256 << 20, grown
        subprocess.run([sys.executable, "-c", sys.argv[2], "child"], check=True)
    else:
        assert 4 << 20 < resident_peak() < 128 << 20, resident_peak()
    """
    run_in_child(script, "parent", textwrap.dedent(script))


@pytest.mark.parametrize("level", [1, 3, 22])
def test_memory_is_bounded_on_machines_with_many_cores(path, level):
    """The largest clusters, as many threads as a machine of 64 cores would have by default."""
    done = run_in_child(
        """
        import os, sys
        os.sched_getaffinity = lambda pid: set(range(64))
        from lazyrestore import ImageWriter
        import lazyrestore._assemble
        from resident import resident_peak
        before = resident_peak()
        level = int(sys.argv[2])
        with ImageWriter(sys.argv[1], cluster_size=2 << 20, level=level) as writer:
            writer.add_region("memory")
            for _ in range(256 if level < 5 else 16):
                writer.write(os.urandom(1 << 20))
                writer.write(bytes(1 << 20))
        print(resident_peak() - before)
        """,
        path,
        level,
        timeout=300,
    )
    assert int(done.stdout) < 256 * MIB
