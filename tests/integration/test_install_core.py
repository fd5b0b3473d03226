"""`make install-core`: what a C program needs, and nothing of Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_support import Image, run
from restore_support import write_image

import lazyrestore

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "csrc" / "lazyrestore.h"
MANUAL = ROOT / "docs" / "man" / "lazyrestore.3"

pytestmark = pytest.mark.skipif(
    not HEADER.exists() or shutil.which("gcc") is None, reason="needs the source tree and gcc"
)


def call(*command: object, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run(
        list(map(str, command)),
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, (command, result.stdout, result.stderr)
    assert result.stderr == "", (command, result.stderr)
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that an install went to, as a package's would."""
    folder = tmp_path_factory.mktemp("package")
    call("make", "-C", ROOT, "install-core", "PREFIX=/opt/lr", f"DESTDIR={folder}")
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "state.lzr"
    expected = write_image(path, {"data": "drzh" * 16})

    class Made:
        pass

    made = Made()
    made.path, made.expected = path, expected  # type: ignore[attr-defined]
    return made  # type: ignore[return-value]


def build(source: Path, program: Path, installed: Path, *, static: bool = False) -> None:
    """As the manual page says."""
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    place = installed / "opt/lr/lib"
    flags = call(
        *("pkg-config", "--cflags", "--libs", *(["--static"] if static else []), "lazyrestore"),
        PKG_CONFIG_PATH=f"{place}/pkgconfig",
        PKG_CONFIG_SYSROOT_DIR=str(installed),
    ).split()
    if static:
        flags = [f"{place}/liblazyrestore.a" if one == "-llazyrestore" else one for one in flags]
    call("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", source, "-o", program, *flags)


def test_all_that_belongs_to_it_is_there(installed: Path) -> None:
    version = lazyrestore.__version__
    found = {
        str(path.relative_to(installed / "opt/lr"))
        for path in installed.rglob("*")
        if not path.is_dir()
    }
    assert found == {
        "include/lazyrestore.h",
        "lib/liblazyrestore.a",
        "lib/liblazyrestore.so",
        "lib/liblazyrestore.so.0",
        f"lib/liblazyrestore.so.{version}",
        "lib/pkgconfig/lazyrestore.pc",
        "share/man/man3/lazyrestore.3",
    }
    library = installed / "opt/lr/lib/liblazyrestore.so"
    assert library.resolve().name == f"liblazyrestore.so.{version}"
    assert "SONAME" in (dynamic := call("readelf", "-d", library))
    assert "[liblazyrestore.so.0]" in dynamic
    text = (installed / "opt/lr/lib/pkgconfig/lazyrestore.pc").read_text()
    assert f"Version: {version}\n" in text
    assert "libdir=${prefix}/lib\n" in text
    assert str(installed) not in text


@pytest.mark.uffd
@pytest.mark.parametrize("static", [False, True])
def test_a_program_is_built_with_it_and_runs(
    installed: Path, tmp_path: Path, image: Image, static: bool
) -> None:
    program = tmp_path / "attach"
    build(ROOT / "examples" / "attach.c", program, installed, static=static)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(installed / "opt/lr/lib")}
    if static:
        del environment["LD_LIBRARY_PATH"]
    else:
        assert "liblazyrestore.so.0" in call("readelf", "-d", program)
    environment["PYTHONPATH"] = str(ROOT)
    result = run("restore", "--lazy", image.path, "--", program, env=environment).ok()
    data = image.expected["data"]
    first, middle, last = data[0], data[len(data) // 2], data[-1]
    assert f"data: {len(data)} bytes" in result.out
    assert f"first byte 0x{first:02x}, middle 0x{middle:02x}, last 0x{last:02x}" in result.out


@pytest.mark.uffd
def test_the_manuals_example_is_right(installed: Path, tmp_path: Path, image: Image) -> None:
    text = MANUAL.read_text()
    source = text[text.index(".Bd -literal") : text.index(".Ed\n")].split("\n", 1)[1]
    (tmp_path / "sum.c").write_text(source.replace("\\e", "\\"))
    build(tmp_path / "sum.c", tmp_path / "sum", installed)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(installed / "opt/lr/lib"),
        "PYTHONPATH": str(ROOT),
    }
    result = run("restore", "--lazy", image.path, "--", tmp_path / "sum", env=environment).ok()
    assert result.out == f"data: {sum(image.expected['data'])}\n"


def test_a_program_without_a_service_is_told(installed: Path, tmp_path: Path) -> None:
    build(ROOT / "examples" / "attach.c", tmp_path / "attach", installed, static=True)
    environment = {k: v for k, v in os.environ.items() if k != "LAZYRESTORE_SOCKET"}
    result = subprocess.run(
        [tmp_path / "attach"], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "attach: an argument is out of its range\n"


def test_the_manual_names_every_function() -> None:
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    functions = set(re.findall(r"\b(lr_[a-z0-9_]+)\(", header))
    named = set(re.findall(r"\.F[no] (lr_[a-z0-9_]+)", MANUAL.read_text()))
    assert len(functions) > 70
    assert named == functions


def test_the_manual_is_well_formed() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    # Quiet, and with every warning.
    call("groff", "-mdoc", "-Tutf8", "-ww", "-z", MANUAL)
