"""What pip and make do with the source tree: one wheel for every Python, also from an sdist."""

import re
import shutil
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging_support import PRODUCTS, ROOT, copy_tree, files_of, needs_source_tree, run

import lazyrestore

TAG = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

pytestmark = [pytest.mark.slow, needs_source_tree]


def test_sdist_has_the_sources_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "Makefile",
        "README.md",
        "csrc/Makefile",
        "csrc/build_hook.py",
        "csrc/cut_cdef.py",
        "csrc/lazyrestore.h",
        "csrc/lazyrestore.map",
        "csrc/run_tests.sh",
        "docs/format.md",
        "lazyrestore/_native.py",
        "tests/unit/test_native.py",
    } <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.[ch]")} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".a", "_binding.py"))]


def test_wheel_is_for_every_python_on_this_platform(wheel):
    assert wheel.name == f"lazyrestore-{lazyrestore.__version__}-{TAG}.whl"
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        told = archive.read(name).decode()
    assert re.findall("^Tag: (.*)$", told, re.MULTILINE) == [TAG]
    assert "Root-Is-Purelib: false" in told


def test_wheel_has_the_library_and_the_binding_and_no_sources_of_them(wheel):
    names = files_of(wheel)
    assert {f"lazyrestore/{name}" for name in PRODUCTS | {"py.typed", "__init__.py"}} <= names
    assert not [name for name in names if name.endswith((".c", ".h", ".o", ".a"))]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lazyrestore"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lazyrestore").rglob("*.py")}
    assert modules <= names


def test_wheel_does_not_take_over_what_lies_in_the_tree(tmp_path, venv, wheel):
    tree = copy_tree(tmp_path / "lazyrestore")
    for name in PRODUCTS:
        (tree / "lazyrestore" / name).write_text("left over")
    run(
        venv, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree,
        cwd=tmp_path,
    )  # fmt: skip
    [made] = tmp_path.glob("*.whl")
    assert files_of(made) == files_of(wheel)
    with zipfile.ZipFile(made) as archive:
        for name in PRODUCTS:
            assert archive.read(f"lazyrestore/{name}") != b"left over"
            assert (tree / "lazyrestore" / name).read_text() == "left over"


LOOK = (
    "import lazyrestore, lazyrestore._native as n;"
    "print(lazyrestore.__file__);"
    "print(n.ffi.string(n.lib.lr_version()).decode());"
    "print(n.ffi.string(n.lib.lr_header_hash()).decode());"
    "n.check(n.lib.lr_init())"
)


def test_installed_wheel_works_and_can_be_removed(tmp_path, venv, wheel):
    run(venv, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel, cwd=tmp_path)
    place, version, _ = run(venv, "-c", LOOK, cwd=tmp_path).stdout.split()
    assert Path(place).is_relative_to(venv.parents[1])
    assert version == lazyrestore.__version__
    told = run(venv.parent / "lazyrestore", "--version", cwd=tmp_path).stdout
    assert lazyrestore.__version__ in told
    run(venv, "-m", "pip", "uninstall", "-q", "-y", "lazyrestore", cwd=tmp_path)
    assert not list(venv.parents[1].glob("lib/*/site-packages/lazyrestore/*.so"))


def test_editable_install_follows_the_tree(tmp_path, venv):
    tree = copy_tree(tmp_path / "lazyrestore")
    run(
        venv, "-m", "pip", "install", "-q", "--no-deps", "--editable", tree,
        cwd=tmp_path,
    )  # fmt: skip
    place, _, before = run(venv, "-c", LOOK, cwd=tmp_path).stdout.split()
    assert Path(place).is_relative_to(tree)

    header = tree / "csrc" / "lazyrestore.h"
    header.write_text(header.read_text() + "/* another header */\n")
    # As long as nothing is built anew both are of the old header.
    assert run(venv, "-c", LOOK, cwd=tmp_path).stdout.split()[2] == before
    run("make", "-C", tree / "csrc", "python", f"PYTHON={venv}", cwd=tmp_path)
    assert run(venv, "-c", LOOK, cwd=tmp_path).stdout.split()[2] != before
    again = run("make", "-s", "-C", tree / "csrc", "python", f"PYTHON={venv}", cwd=tmp_path)
    assert not re.findall("CC|LD|CFFI", again.stdout)
    run(venv, "-m", "pip", "uninstall", "-q", "-y", "lazyrestore", cwd=tmp_path)


def test_a_failing_compiler_is_told(tmp_path, venv):
    tree = copy_tree(tmp_path / "lazyrestore")
    (tree / "csrc" / "error.c").write_text('#error "this is broken"\n')
    result = run(
        venv, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree,
        cwd=tmp_path, ok=False,
    )  # fmt: skip
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "the C core could not be built" in output
    assert "this is broken" in output


class TestPreflight:
    """What make says where something is missing: a folder with few commands stands for it."""

    TOOLS = ("sh", "bash", "nproc", "sed", "sha256sum", "cut", "printf", "echo", "uname")

    @pytest.fixture
    def commands(self, tmp_path):
        folder = tmp_path / "bin"
        folder.mkdir()
        for tool in self.TOOLS:
            if found := shutil.which(tool):
                (folder / tool).symlink_to(found)
        return folder

    def make(self, commands, target):
        tree = copy_tree(commands.parent / "tree")
        make = shutil.which("make")
        return run(make, target, cwd=tree, ok=False, PATH=str(commands))

    def test_everything_is_named_at_once(self, commands):
        result = self.make(commands, "test")
        assert result.returncode != 0
        assert "apt-get install python3 python3-venv gcc libc6-dev\n" in result.stderr

    def test_debians_python_without_venv(self, commands):
        (commands / "gcc").symlink_to(shutil.which("gcc"))
        python = commands / "python3"
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        result = self.make(commands, "demo")
        assert result.returncode != 0
        assert "apt-get install python3-venv\n" in result.stderr

    def test_a_compiler_without_headers(self, commands):
        gcc = commands / "gcc"
        gcc.write_text("#!/bin/sh\nexit 1\n")
        gcc.chmod(0o755)
        result = self.make(commands, "core")
        assert result.returncode != 0
        assert "apt-get install libc6-dev\n" in result.stderr
