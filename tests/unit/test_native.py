"""Binding and library belong together, and every error code becomes an exception that helps."""

import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from restore_support import run_in_child

import lazyrestore
from lazyrestore import _binding, _native, errors
from lazyrestore._native import check, error_name, ffi, lib, new_problem, remedy, strerror

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "csrc" / "lazyrestore.h"
PACKAGE = Path(lazyrestore.__file__).parent

CODES = {
    name: getattr(lib, name)
    for name in re.findall(r"^\t(LR_ERR_\w+) = -\d+,", HEADER.read_text(), re.MULTILINE)
}

EXPECTED = {
    "LR_ERR_ARGUMENT": ValueError,
    "LR_ERR_NOMEM": MemoryError,
    "LR_ERR_IO": errors.LazyRestoreError,
    "LR_ERR_NOT_FOUND": errors.RegionNotFound,
    "LR_ERR_PERMISSION": errors.KernelError,
    "LR_ERR_UNSUPPORTED": errors.KernelError,
    "LR_ERR_BUSY": errors.KernelError,
    "LR_ERR_TIMEOUT": TimeoutError,
    "LR_ERR_NO_ZSTD": errors.KernelError,
    "LR_ERR_SYSTEM": errors.LazyRestoreError,
    "LR_ERR_GONE": errors.ProcessError,
    "LR_ERR_LIMIT": errors.KernelError,
    "LR_ERR_CLOSED": ValueError,
    "LR_ERR_PAGE_SIZE": errors.KernelError,
    "LR_ERR_STATE": errors.RemoteError,
    "LR_ERR_REFUSED": errors.RemoteError,
    "LR_ERR_PROTOCOL": errors.RemoteError,
    "LR_ERR_EMPTY": errors.ImageError,
    "LR_ERR_MAGIC": errors.ImageError,
    "LR_ERR_TRUNCATED": errors.ImageError,
    "LR_ERR_FOOTER": errors.ImageError,
    "LR_ERR_VERSION": errors.ImageError,
    "LR_ERR_FEATURE": errors.ImageError,
    "LR_ERR_HEADER": errors.ImageError,
    "LR_ERR_ROOT": errors.ImageError,
    "LR_ERR_METADATA": errors.ImageError,
    "LR_ERR_NODE": errors.ClusterError,
    "LR_ERR_ENTRY": errors.ClusterError,
    "LR_ERR_SHORT": errors.ClusterError,
    "LR_ERR_CHECKSUM": errors.ClusterError,
    "LR_ERR_FRAME": errors.ClusterError,
    "LR_ERR_FILES": errors.ImageError,
}

# What to do about these depends on what was asked, or on errno.
WITHOUT_REMEDY = {"LR_ERR_ARGUMENT", "LR_ERR_IO", "LR_ERR_NOT_FOUND", "LR_ERR_SYSTEM"}


def load_cut_cdef():
    spec = importlib.util.spec_from_file_location("cut_cdef", ROOT / "csrc" / "cut_cdef.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(code, **environment):
    """Run Python code in a child of its own; the variables are added to the environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",  # which comes first on the child's path
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def raised(code, *arguments, **keywords):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its type is what the callers look at
        check(code, *arguments, **keywords)
    return caught.value


class TestBinding:
    def test_versions_agree(self):
        assert ffi.string(lib.lr_version()).decode() == lazyrestore.__version__

    def test_hashes_agree_with_the_header(self):
        import hashlib

        digest = hashlib.sha256(HEADER.read_bytes()).hexdigest()
        assert digest == _binding.HEADER_HASH
        assert ffi.string(lib.lr_header_hash()).decode() == digest

    def test_cdef_is_what_stands_in_the_header(self):
        text = HEADER.read_text()
        cdef = load_cut_cdef().cut_cdef(text)
        assert text.partition("/* cffi: begin */")[2].partition("/* cffi: end */")[0] == cdef

    @pytest.mark.parametrize("marker", ["/* cffi: begin */", "/* cffi: end */"])
    def test_a_header_without_its_markers_is_refused(self, marker):
        with pytest.raises(ValueError, match="once each"):
            load_cut_cdef().cut_cdef(HEADER.read_text().replace(marker, ""))

    def test_every_declared_function_is_exported_and_no_other(self):
        if shutil.which("nm") is None:
            pytest.skip("nm is not installed: apt-get install binutils")
        listing = subprocess.run(
            ["nm", "-D", "--defined-only", PACKAGE / "liblazyrestore.so"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        exported = {
            line.split()[2].partition("@")[0]
            for line in listing.splitlines()
            if line.split()[1] != "A"
        }
        cdef = load_cut_cdef().cut_cdef(HEADER.read_text())
        cdef = re.sub(r"/\*.*?\*/", "", cdef, flags=re.DOTALL)
        declared = set(re.findall(r"\b(lr_\w+)\(", cdef))
        assert exported == declared

    def test_struct_layouts_are_the_compilers(self, tmp_path):
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler: apt-get install gcc libc6-dev")
        lines, expected = [], []
        for name in re.findall(r"^struct \w+(?= \{)", HEADER.read_text(), re.MULTILINE):
            lines.append(f'printf("%zu\\n", sizeof({name}));')
            expected.append(ffi.sizeof(name))
            for field, _ in ffi.typeof(name).fields:
                lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
                expected.append(ffi.offsetof(name, field))
        assert len(expected) > 50
        source = tmp_path / "layout.c"
        body = "\n".join(lines)
        source.write_text(
            f"#include <stdio.h>\n#include <lazyrestore.h>\nint main(void) {{\n{body}\n}}\n"
        )
        program = tmp_path / "layout"
        subprocess.run([compiler, f"-I{HEADER.parent}", source, "-o", program], check=True)
        told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        assert [int(line) for line in told.split()] == expected


class TestLoading:
    @pytest.fixture
    def copied(self, tmp_path):
        """A copy of the package that may be broken; the folder to put on the path, and itself."""
        copy = tmp_path / "lazyrestore"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        return copy

    def load(self, copied, **environment):
        return run("import lazyrestore._native", PYTHONPATH=str(copied.parent), **environment)

    def test_a_sound_copy_loads(self, copied):
        result = self.load(copied)
        assert result.returncode == 0, result.stderr

    def test_a_binding_of_another_header_is_refused(self, copied):
        binding = copied / "_binding.py"
        binding.write_text(binding.read_text().replace(_binding.HEADER_HASH, "0" * 64))
        result = self.load(copied)
        last = result.stderr.splitlines()[-1]
        assert result.returncode == 1
        assert last.startswith("ImportError: ")
        assert "another lazyrestore.h" in last
        assert "`make`" in last

    def test_a_missing_binding_is_named(self, copied):
        (copied / "_binding.py").unlink()
        result = self.load(copied)
        last = result.stderr.splitlines()[-1]
        assert last.startswith("ImportError: ")
        assert "_binding.py was not built" in last
        assert "`make`" in last

    def test_a_missing_library_is_named(self, copied):
        (copied / "liblazyrestore.so").unlink()
        last = self.load(copied).stderr.splitlines()[-1]
        assert last.startswith("ImportError: cannot load the C core")
        assert str(copied / "liblazyrestore.so") in last
        assert "`make`" in last

    def test_the_variable_names_another_library(self, copied):
        moved = copied.parent / "elsewhere.so"
        (copied / "liblazyrestore.so").rename(moved)
        result = self.load(copied, LAZYRESTORE_LIBRARY=str(moved))
        assert result.returncode == 0, result.stderr

    def test_a_library_that_is_not_ours_is_refused(self, copied):
        result = self.load(copied, LAZYRESTORE_LIBRARY="libc.so.6")
        last = result.stderr.splitlines()[-1]
        assert last.startswith("ImportError: libc.so.6 is not the C core")
        assert "LAZYRESTORE_LIBRARY" in last


class TestCheck:
    def test_every_code_of_the_header_is_expected_here(self):
        assert set(CODES) == set(EXPECTED)

    @pytest.mark.parametrize("code", [0, 1, 1 << 40])
    def test_success_is_returned(self, code):
        assert check(code) == code

    @pytest.mark.parametrize("name", EXPECTED)
    def test_code_becomes_its_exception(self, name):
        error = raised(CODES[name], what="cannot do this")
        assert type(error) is EXPECTED[name]
        text = str(error)
        assert text.startswith(f"cannot do this: {strerror(CODES[name])}")
        assert "\n" not in text
        assert text.endswith(remedy(CODES[name]))
        assert bool(remedy(CODES[name])) == (name not in WITHOUT_REMEDY)

    @pytest.mark.parametrize("name", EXPECTED)
    def test_code_knows_its_name(self, name):
        assert error_name(CODES[name]) == name

    def test_every_text_is_another(self):
        texts = {strerror(code) for code in CODES.values()} | {strerror(-1000)}
        assert len(texts) == len(CODES) + 1
        assert all(texts)

    def test_an_unknown_code_is_still_an_error(self):
        assert type(raised(-1000)) is errors.LazyRestoreError

    def test_the_problem_tells_where(self):
        problem = new_problem()
        problem.code, problem.cluster, problem.file_offset = lib.LR_ERR_CHECKSUM, 7, 4096
        error = raised(lib.LR_ERR_CHECKSUM, problem, what="cannot read", region="a", offset=65536)
        assert (error.region, error.offset, error.cluster) == ("a", 65536, 7)
        assert "(region 'a' at offset 65536, cluster 7, at byte 4096 of the file)" in str(error)

    def test_a_new_problem_says_nothing(self):
        error = raised(lib.LR_ERR_CHECKSUM, new_problem())
        assert (error.region, error.offset, error.cluster) == (None, None, None)
        assert "(" not in str(error)

    def test_a_problem_of_an_earlier_call_is_not_told(self):
        problem = new_problem()
        problem.code, problem.cluster, problem.os_error = lib.LR_ERR_CHECKSUM, 7, errno.EIO
        error = raised(lib.LR_ERR_FRAME, problem)
        assert error.cluster is None
        assert os.strerror(errno.EIO) not in str(error)

    def test_a_session_raises_restore_errors(self):
        error = raised(lib.LR_ERR_SHORT, cluster_error=errors.RestoreError)
        assert type(error) is errors.RestoreError

    def test_the_systems_error_is_told(self):
        problem = new_problem()
        problem.code, problem.os_error = lib.LR_ERR_SYSTEM, errno.EMFILE
        assert os.strerror(errno.EMFILE) in str(raised(lib.LR_ERR_SYSTEM, problem))

    def test_a_cluster_that_cannot_be_read_is_a_cluster_error(self):
        problem = new_problem()
        problem.code, problem.os_error, problem.cluster = lib.LR_ERR_IO, errno.EIO, 3
        error = raised(lib.LR_ERR_IO, problem, file="x.lzr")
        assert type(error) is errors.ClusterError
        assert error.cluster == 3

    @pytest.mark.parametrize(
        ("name", "os_error", "expected"),
        [
            ("LR_ERR_NOT_FOUND", errno.ENOENT, FileNotFoundError),
            ("LR_ERR_NOT_FOUND", 0, FileNotFoundError),
            ("LR_ERR_PERMISSION", errno.EACCES, PermissionError),
            ("LR_ERR_PERMISSION", 0, PermissionError),
            ("LR_ERR_IO", errno.EISDIR, IsADirectoryError),
            ("LR_ERR_SYSTEM", errno.ENOTDIR, NotADirectoryError),
        ],
    )
    def test_a_file_gives_what_open_would(self, name, os_error, expected):
        problem = new_problem()
        problem.code, problem.os_error = CODES[name], os_error
        error = raised(CODES[name], problem, what="cannot open", file=Path("x.lzr"))
        assert type(error) is expected
        assert error.filename == "x.lzr"

    def test_a_bad_image_is_no_matter_of_the_file(self):
        error = raised(lib.LR_ERR_MAGIC, what="cannot open x.lzr", file="x.lzr")
        assert type(error) is errors.ImageError

    def test_a_process_that_is_not_there(self):
        assert type(raised(lib.LR_ERR_NOT_FOUND, pid=4000000)) is errors.ProcessError

    def test_a_process_of_someone_else(self):
        error = raised(lib.LR_ERR_PERMISSION, pid=1)
        assert type(error) is errors.KernelError
        assert "root" in str(error)

    def test_the_core_itself_fills_a_problem(self, tmp_path):
        image, problem = ffi.new("lr_image **"), new_problem()
        missing = tmp_path / "missing.lzr"
        code = lib.lr_image_open(os.fsencode(missing), image, problem)
        assert code == lib.LR_ERR_NOT_FOUND
        assert type(raised(code, problem, file=missing)) is FileNotFoundError
        empty = tmp_path / "empty.lzr"
        empty.touch()
        code = lib.lr_image_open(os.fsencode(empty), image, problem)
        assert error_name(code) == "LR_ERR_EMPTY"


class TestLazyExports:
    def test_importing_the_package_imports_next_to_nothing(self):
        code = (
            "import sys; before = set(sys.modules); import lazyrestore;"
            "print(*sorted(set(sys.modules) - before))"
        )
        result = run(code)
        assert result.returncode == 0, result.stderr
        assert set(result.stdout.split()) <= {"__future__", "lazyrestore"}

    @pytest.mark.parametrize("name", lazyrestore.__all__)
    def test_every_export_is_there(self, name):
        assert getattr(lazyrestore, name) is not None
        assert name in dir(lazyrestore)

    def test_the_loader_of_names_knows_all_of_them(self):
        assert set(lazyrestore._HOME) | {"__version__"} == set(lazyrestore.__all__)

    def test_every_exception_is_exported(self):
        classes = {
            name
            for name, value in vars(errors).items()
            if isinstance(value, type) and issubclass(value, errors.LazyRestoreError)
        }
        assert classes <= set(lazyrestore.__all__)

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="nonsense"):
            lazyrestore.nonsense  # noqa: B018

    def test_the_library_that_is_loaded_lies_in_the_package(self):
        assert (PACKAGE / "liblazyrestore.so").exists()
        assert Path(_native.__file__).parent == PACKAGE


MANY_AT_ONCE = """
import gc, sys, threading
from lazyrestore._native import ffi, lib

class Slow:  # to collect: takes more than a thread's turn
    def __init__(self):
        self.me = self
    def __del__(self):
        for _ in range(3000):
            pass

def make():
    start.wait()
    for name in ffi.list_types()[1]:
        Slow()
        try:
            ffi.new(f"struct {name} *")
        except TypeError:  # opaque
            pass
    for name in dir(lib):
        Slow()
        getattr(lib, name)

sys.setswitchinterval(1e-6)
gc.set_threshold(1)
start = threading.Barrier(4)
threads = [threading.Thread(target=make) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_may_be_the_first_to_use_a_type():
    """Without its types made beforehand every other such process aborts."""
    for _ in range(8):
        run_in_child(MANY_AT_ONCE)
