"""Make an sdist, and from it a wheel for each processor: build_wheels.py [--out DIR] [ARCH...].

Each wheel serves every Python from 3.11 on. auditwheel reads from the library inside what it needs
of the C library, and gives the wheel the tag that follows from it.

zig is the compiler: it links against the C library of any age, and for any processor. `--compiler
gcc` takes gcc, or ARCH-linux-gnu-gcc; such a wheel needs a C library as new as this machine's.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("x86_64", "aarch64")
# The oldest that Python 3.11 and the packages that lazyrestore needs are made for.
GLIBC = "2.17"
# Assertions stay, as in every other build; -g0 and --strip-debug: zig's own objects have symbols.
CFLAGS = "-O2 -g0 -UNDEBUG"
LDFLAGS = "-Wl,--strip-debug"
# The same sources give the same wheels, byte for byte: of this date, which is hatchling's own too.
DATE = os.environ.get("SOURCE_DATE_EPOCH", "1580601600")
LIBRARY = "lazyrestore/liblazyrestore.so"
NOT_INHERITED = re.compile("MAKE|MFLAGS|CC$|AR$|CFLAGS$|LDFLAGS$|WARNINGS$|BUILD$|PACKAGE$|PYTHON")


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    """Run a command; what it prints is shown only if it fails."""
    kept = {name: value for name, value in os.environ.items() if not NOT_INHERITED.match(name)}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, "SOURCE_DATE_EPOCH": DATE, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        sys.exit(f"{result.stdout}\n{' '.join(map(str, command))}: exit code {result.returncode}")


def made_in(folder: Path, pattern: str) -> Path:
    """The one file of a folder that has such a name."""
    [found] = folder.glob(pattern)
    return found


def compiler_of(architecture: str, kind: str) -> str:
    """What make is to call as CC."""
    if kind == "zig":
        return f"{sys.executable} -m ziglang cc -target {architecture}-linux-gnu.{GLIBC}"
    name = "gcc" if architecture == platform.machine() else f"{architecture}-linux-gnu-gcc"
    if shutil.which(name) is None:
        package = name if name == "gcc" else f"gcc-{architecture.replace('_', '-')}-linux-gnu"
        sys.exit(f"{name} is missing: apt-get install {package}, or --compiler zig")
    return name


def make_sdist(work: Path) -> Path:
    """The sdist of this tree, in `work`."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", work, ".", cwd=ROOT)
    return made_in(work, "*.tar.gz")


def make_wheel(sdist: Path, architecture: str, kind: str, work: Path) -> Path:
    """A wheel from an unpacked sdist, tagged by what is in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    tree = made_in(work, "lazyrestore-*")
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", work / "raw", ".",
        cwd=tree,
        CC=compiler_of(architecture, kind),
        CFLAGS=CFLAGS,
        LDFLAGS=LDFLAGS,
        # What sysconfig then says is the platform.
        _PYTHON_HOST_PLATFORM=f"linux-{architecture}",
    )  # fmt: skip
    raw = made_in(work / "raw", "*.whl")
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    run(
        sys.executable, "-m", "auditwheel", "repair", "-w", work / "repaired", raw,
        cwd=work, PATH=beside,
    )  # fmt: skip
    return made_in(work / "repaired", "*.whl")


def look(wheel: Path, architecture: str, work: Path) -> str:
    """What the library in a wheel is for and needs; exits where that is not what was asked."""
    shutil.unpack_archive(wheel, work / "look", "zip")
    with open(work / "look" / LIBRARY, "rb") as file:
        elf = ELFFile(file)
        machine = elf.get_machine_arch()
        needed = [
            str(version.name)
            for section in elf.iter_sections()
            if isinstance(section, GNUVerNeedSection)
            for _, versions in section.iter_versions()
            for version in versions
        ]
    if machine != {"x86_64": "x64", "aarch64": "AArch64"}[architecture]:
        sys.exit(f"{wheel.name} has a library for {machine}")
    if f"_{architecture}.whl" not in wheel.name or "manylinux" not in wheel.name:
        sys.exit(f"{wheel.name} is not tagged as a manylinux wheel for {architecture}")
    newest = max(needed, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    return f"{wheel.stat().st_size // 1024} KiB, needs {newest} at most"


def main() -> int:
    """Make what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("architectures", nargs="*", metavar="ARCH", default=list(ARCHITECTURES))
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--compiler", choices=("zig", "gcc"), default="zig")
    options = parser.parse_args()
    if unknown := sorted(set(options.architectures) - set(ARCHITECTURES)):
        parser.error(f"{unknown[0]}: one of {', '.join(ARCHITECTURES)}")

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lazyrestore-wheels-") as name:
        work = Path(name)
        sdist = make_sdist(work)
        made = [(sdist, f"{sdist.stat().st_size // 1024} KiB")]
        for architecture in options.architectures:
            folder = work / architecture
            folder.mkdir()
            wheel = make_wheel(sdist, architecture, options.compiler, folder)
            made.append((wheel, look(wheel, architecture, folder)))
        for path, told in made:
            shutil.copyfile(path, options.out / path.name)
            print(f"{options.out / path.name}: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
