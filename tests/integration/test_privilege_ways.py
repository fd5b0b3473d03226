"""The ways to a userfaultfd where the system call is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from privilege_support import USER_MODE, needs_refusal, without_userfaultfd
from restore_support import run_in_child

# ---- The device, where the system call is refused ------------------------------------------------


FULL = """
import os, sys
import lazyrestore
from lazyrestore._doctor import examine
path = sys.argv[1]
with lazyrestore.open(path) as image:
    expected = image.read("data")
found = examine()
assert found.level == "full" and not found.reasons and not found.remedies, found
assert found.facts.device_error == 0 and found.facts.syscall_error == 1, found.facts
for lazy in (True, "auto"):
    with lazyrestore.restore(path, lazy=lazy) as session:
        assert session.lazy and session.stats().privilege == "full"
        fd = os.memfd_create("out")
        assert os.write(fd, session["data"]) == len(expected)  # a system call on missing pages
        assert os.pread(fd, len(expected), 0) == expected
        os.close(fd)
print("right")
"""

_OPEN_DEVICE = """
mount -t tmpfs -o mode=755 tmpfs "$1"
mknod -m 666 "$1/userfaultfd" c $2 $3
mount --bind "$1/userfaultfd" /dev/userfaultfd
shift 3
exec "$@"
"""


@pytest.fixture
def with_open_device(tmp_path):
    """Runs a command where everybody may open the device: in a mount namespace of its own."""
    device = Path("/dev/userfaultfd")
    if not device.exists():
        pytest.skip("no /dev/userfaultfd: kernels have it since 6.1")
    folder = tmp_path / "dev"
    folder.mkdir()
    number = device.stat().st_rdev
    numbers = (str(os.major(number)), str(os.minor(number)))
    before = ("unshare", "-m", "sh", "-e", "-c", _OPEN_DEVICE, "open", str(folder), *numbers)
    probe = subprocess.run([*before, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"cannot open the device up: {probe.stderr.strip()}")
    return before


@pytest.mark.root
@needs_refusal
def test_an_ordinary_user_who_may_open_the_device(nobody_home, open_image, with_open_device):
    result = nobody_home(FULL, open_image, before=with_open_device)
    assert result.stdout == "right\n"


@pytest.mark.root
@pytest.mark.parametrize("error", [1, 38])
def test_as_in_a_container_that_was_given_the_device(small, with_open_device, error):
    """Its profile forbids the system call; the device's ioctl passes"""
    script = FULL.replace("syscall_error == 1", f"syscall_error == {error}")
    assert without_userfaultfd(script, small.path, error=error, device=False).stdout == "right\n"


@pytest.mark.root
@pytest.mark.uffd
@needs_refusal
def test_children_of_a_process_that_dropped_its_rights(small):
    """The device was kept: a child gets a userfaultfd of its own by it, and right bytes"""
    if not os.path.exists("/dev/userfaultfd"):
        pytest.skip("no /dev/userfaultfd: kernels have it since 6.1")
    run_in_child(
        """
        import os, sys
        import lazyrestore
        expected = lazyrestore.open(sys.argv[1]).read("data")
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            lazyrestore.restore(sys.argv[1], lazy=True)
        except (lazyrestore.KernelError, PermissionError):
            pass
        else:
            raise AssertionError("the rights were not dropped")
        pid = os.fork()
        if pid == 0:
            fd = os.memfd_create("out")
            right = os.write(fd, session["data"]) == len(expected)
            os._exit(0 if right and os.pread(fd, len(expected), 0) == expected else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert bytes(session["data"]) == expected
        """,
        small.path,
    )


# ---- Root inside a user namespace ----------------------------------------------------------------


@pytest.fixture
def in_user_namespace(nobody_home):
    """Runs a script as nobody who is root inside a user namespace."""
    after = ("unshare", "--user", "--map-root-user")
    probe = nobody_home("", after=after, ok=False)
    if probe.returncode:
        pytest.skip(f"nobody cannot have a user namespace: {probe.stderr.strip()}")

    def run(script, *arguments, **options):
        return nobody_home(script, *arguments, after=after, **options)

    return run


@pytest.mark.root
@needs_refusal
def test_root_inside_a_user_namespace(in_user_namespace, open_image):
    result = in_user_namespace(
        """
        import os, re, sys, warnings
        import lazyrestore
        from lazyrestore._doctor import examine
        path = sys.argv[1]
        expected = lazyrestore.open(path).read("data")
        assert os.geteuid() == 0
        try:
            lazyrestore.restore(path, lazy=True)
        except lazyrestore.KernelError as error:
            assert error.exit_code == 4 and "doctor" in str(error), error
        else:
            raise AssertionError("restored lazily")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with lazyrestore.restore(path) as session:
                assert not session.lazy
                assert bytes(session["data"]) == expected
        assert len(caught) == 1 and "doctor" in str(caught[0].message), caught
        found = examine()
        assert found.level == "user-mode-only", found.level
        assert any("user namespace" in reason for reason in found.reasons), found.reasons
        assert "setfacl -m u:65534:rw" in found.remedies[0].command, found.remedies
        assert re.search("outside|on the host", found.remedies[0].effect), found.remedies
        print("right")
        """,
        open_image,
    )
    assert result.stdout == "right\n"
    assert in_user_namespace(USER_MODE, open_image, "auto").stdout == "right\n"


@pytest.mark.root
@needs_refusal
def test_root_inside_a_user_namespace_who_may_open_the_device(
    in_user_namespace, open_image, with_open_device
):
    assert in_user_namespace(FULL, open_image, before=with_open_device).stdout == "right\n"
