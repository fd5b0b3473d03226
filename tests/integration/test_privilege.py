"""What happens where userfaultfd is not allowed, or only for faults of user mode."""

from __future__ import annotations

import os
import sys
import warnings

import pytest
from privilege_support import USER_MODE, needs_refusal, without_userfaultfd
from restore_support import PAGE, run_in_child

import lazyrestore


@pytest.mark.parametrize("error", [1, 38])
def test_strictly_lazy_is_a_kernel_error_that_says_what_and_what_to_do(small, error):
    result = without_userfaultfd(
        """
        import sys
        import lazyrestore
        for privilege in ("full", "auto", "user-mode-only"):
            try:
                lazyrestore.restore(sys.argv[1], lazy=True, privilege=privilege)
            except lazyrestore.KernelError as error:
                print(error.exit_code, error)
        """,
        small.path,
        error=error,
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("4 ")
        assert "userfaultfd" in line
        assert "doctor" in line
        assert os.strerror(error) in line


def test_auto_restores_eagerly_with_one_warning(small):
    result = without_userfaultfd(
        """
        import sys, warnings
        import lazyrestore
        expected = {}
        with lazyrestore.open(sys.argv[1]) as image:
            expected = {r.name: image.read(r.name) for r in image.regions}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            session = lazyrestore.restore(sys.argv[1])
        (warning,) = caught
        assert warning.category is RuntimeWarning
        assert warning.filename == "<string>", warning.filename
        print(warning.message)
        assert not session.lazy
        assert {name: bytes(region) for name, region in session.items()} == expected
        assert session.stats().privilege == "none"
        session["data"].populate()
        session["data"].array()
        session.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with lazyrestore.restore(sys.argv[1], lazy=False) as session:
                assert bytes(session["data"]) == expected["data"]
        """,
        small.path,
    )
    (line,) = result.stdout.splitlines()
    assert "userfaultfd" in line
    assert "doctor" in line
    assert "eager" in line


def test_a_damaged_cluster_is_an_error_in_the_eager_fallback_too(small):
    from restore_support import flip, payloads

    flip(small.path, payloads(small.path, "data")[0][0] + 9)
    without_userfaultfd(
        """
        import sys, warnings
        import lazyrestore
        warnings.simplefilter("ignore")
        try:
            lazyrestore.restore(sys.argv[1])
        except lazyrestore.ClusterError as error:
            # The other region shares that record; which is decoded first is a matter of threads.
            assert error.region in ("data", "more")
        else:
            raise AssertionError("restored")
        """,
        small.path,
    )


def test_descriptors_that_ran_out_are_an_error_and_no_crash(small):
    run_in_child(
        """
        import os, resource, sys, warnings
        import lazyrestore
        lazyrestore.restore(sys.argv[1], lazy=False).close()
        for spare in range(12):
            used = len(os.listdir("/proc/self/fd")) - 1
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
            try:
                session = lazyrestore.restore(sys.argv[1], lazy=True)
            except (lazyrestore.LazyRestoreError, OSError) as error:
                message = str(error)
                assert "\\n" not in message
            else:
                assert session["data"][0] == 1
                session.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert len(os.listdir("/proc/self/fd")) - 1 == used
        """,
        small.path,
    )


# ---- User mode only ------------------------------------------------------------------------------


def test_user_mode_only_by_choice(small):
    from lazyrestore._native import ffi, lib

    probe = ffi.new("struct lr_uffd_probe *")
    lib.lr_uffd_probe(probe)
    if probe.user_mode_error:
        pytest.skip(f"no user-mode-only userfaultfd: {os.strerror(probe.user_mode_error)}")
    assert run_in_child(USER_MODE, small.path, "user-mode-only").stdout == "right\n"


@pytest.mark.root
@needs_refusal
def test_an_ordinary_user_is_told_what_is_missing(nobody_home, open_image):
    result = nobody_home(
        """
        import sys
        import lazyrestore
        try:
            lazyrestore.restore(sys.argv[1], lazy=True)
        except lazyrestore.KernelError as error:
            print(error)
        """,
        open_image,
    )
    assert "userfaultfd" in result.stdout
    assert "doctor" in result.stdout


@pytest.mark.root
@needs_refusal
def test_an_ordinary_users_first_try_never_fails(nobody_home, open_image):
    result = nobody_home(
        """
        import sys
        import lazyrestore
        expected = lazyrestore.open(sys.argv[1]).read("data")
        with lazyrestore.restore(sys.argv[1]) as session:
            assert not session.lazy
            assert bytes(session["data"]) == expected
        print("right")
        """,
        open_image,
        ok=False,
    )
    assert result.returncode == 0
    assert result.stdout == "right\n"
    assert result.stderr.count("RuntimeWarning") == 1
    assert "privilege='auto' is lazy here" in result.stderr  # where that is so: the next test


@pytest.mark.root
@needs_refusal
@pytest.mark.parametrize("privilege", ["auto", "user-mode-only"])
def test_an_ordinary_user_with_user_mode_only(nobody_home, open_image, privilege):
    assert nobody_home(USER_MODE, open_image, privilege).stdout == "right\n"


@pytest.mark.root
@needs_refusal
def test_resident_bytes_work_for_an_ordinary_user(nobody_home, open_image):
    # /proc/self/pagemap hides frame numbers from users, but not which pages are there.
    nobody_home(
        """
        import sys
        import lazyrestore
        with lazyrestore.restore(sys.argv[1], lazy=True, privilege="auto") as session:
            region = session["data"]
            assert region.resident_bytes == 0
            region.touch(1)
            session.stats()  # waits for the cluster's other pages, which may come a moment later
            assert region.resident_bytes == 4 * 4096, region.resident_bytes
            region.touch()
            assert session.stats().pages_copied * 4096 == region.resident_bytes
        """,
        open_image,
    )


@pytest.mark.root
def test_an_image_that_a_user_may_not_read_is_a_permission_error(nobody_home, open_image):
    open_image.chmod(0o600)
    nobody_home(
        """
        import sys
        import lazyrestore
        for opening in (lazyrestore.open, lazyrestore.restore):
            try:
                opening(sys.argv[1])
            except PermissionError as error:
                assert error.filename == sys.argv[1]
            else:
                raise AssertionError("opened")
        """,
        open_image,
    )


@pytest.mark.root
@pytest.mark.uffd
def test_rights_that_are_dropped_after_the_restore_do_not_matter(small):
    run_in_child(
        """
        import os, sys
        import lazyrestore
        expected = lazyrestore.open(sys.argv[1]).read("data")
        session = lazyrestore.restore(sys.argv[1], lazy=True)
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        fd = os.memfd_create("out")
        assert os.write(fd, session["data"]) == len(expected)
        assert os.pread(fd, len(expected), 0) == expected
        """,
        small.path,
    )


@pytest.mark.uffd
def test_full_rights_say_so_and_warn_of_nothing(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for privilege in ("full", "auto"):
            with lazyrestore.restore(small.path, privilege=privilege) as session:
                assert session.lazy
                assert session.stats().privilege == "full"
                assert session["data"][: 2 * PAGE] == small.expected["data"][: 2 * PAGE]
    assert sys.platform == "linux"
