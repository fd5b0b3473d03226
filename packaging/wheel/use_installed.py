"""Use the installed package as somebody would who has nothing else: use_installed.py [--emulated].

Exits by the first thing that is not as it should be. With --emulated, for a Python that runs under
an emulator: nothing is started, and nothing restored lazily.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.resources
import importlib.util
import io
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import lazyrestore
from lazyrestore.cli import COMMANDS, main

EMULATED = "--emulated" in sys.argv[1:]
PAGE = 4096


def need(is_so: bool, what: str) -> None:
    """Exit unless it is so."""
    if not is_so:
        sys.exit(f"not so: {what}")


def command(*arguments: str | Path) -> str:
    """What a command of lazyrestore prints; it has to succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(argument) for argument in arguments])
    need(code == 0, f"`lazyrestore {' '.join(map(str, arguments))}` succeeds")
    return out.getvalue()


def look_at_the_package() -> None:
    """It has all its parts, and nothing came with it that it does not need."""
    told = importlib.metadata.metadata("lazyrestore")
    need(told["Version"] == lazyrestore.__version__, "the version is told alike")
    files = importlib.resources.files("lazyrestore")
    for name in ("liblazyrestore.so", "_binding.py", "_binding.pyi", "py.typed"):
        need((files / name).is_file(), f"{name} is in the package")
    needed = importlib.metadata.requires("lazyrestore") or []
    always = sorted(re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line)
    need(always == ["cffi", "msgpack", "typer", "zstandard"], f"four packages are needed: {always}")
    for name in ("numpy", "blake3", "matplotlib", "prometheus_client"):
        need(importlib.util.find_spec(name) is None, f"{name} was not installed")
    print(f"lazyrestore {lazyrestore.__version__}: Python {platform.python_version()},", end=" ")
    print(f"{' '.join(platform.libc_ver())}, {platform.machine()}")


def start_it() -> None:
    """As a command and as a module, alike."""
    script = Path(sys.executable).with_name("lazyrestore")
    for words in ([script], [sys.executable, "-m", "lazyrestore"]):
        result = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
        need(result.stdout == f"lazyrestore {lazyrestore.__version__}\n", f"{words} starts it")
    print("starts as lazyrestore and as python -m lazyrestore")


def use_the_api(image: Path, state: bytes) -> None:
    """Dump, look, restore both ways."""
    report = lazyrestore.dump({"state": state, "none": b""}, image)
    need(report.logical_bytes == len(state), "the report tells the size")
    with lazyrestore.open(image) as opened:
        need(opened.read("state", 5 * PAGE, 99) == state[5 * PAGE : 5 * PAGE + 99], "read() reads")
        need(not opened.verify().damage, "the image is sound")
    with lazyrestore.restore(image, lazy=False) as session:
        need(session["state"][:] == state, "an eager restore has every byte")
    for width in (2, 4, 8):
        numbers = b"".join((7 * n).to_bytes(width, "little") for n in range(8000))
        planes = image.with_name(f"planes-{width}.lzr")
        lazyrestore.dump(numbers, planes, byte_planes=width)
        with lazyrestore.open(planes) as opened:
            need(opened.read("memory") == numbers, f"byte planes of {width} bytes are put back")
    print(f"dumped {len(state) >> 20} MiB as {report.stored_bytes >> 10} KiB, and read them back")
    if EMULATED:
        return
    with lazyrestore.restore(image, lazy=True, prefetch="none") as session:
        region = session["state"]
        need(region[7 * PAGE] == state[7 * PAGE], "one byte is right")
        need(0 < session.faults < 10, "and came by few faults")
        need(region[:] == state, "a lazy restore has every byte")
        region[0] = region[0] ^ 255
        need(region[0] != state[0], "and can be written to")
        print(f"restored lazily, with {session.faults} faults")


def use_the_commands(image: Path, state: bytes, folder: Path) -> None:
    """Each that needs no other program."""
    for name in COMMANDS:
        need("Usage: lazyrestore" in command(name, "--help"), f"{name} --help tells its usage")
    need(json.loads(command("info", "--json", image))["logical_bytes"] == len(state), "info")
    need("state" in command("ls", image), "ls")
    command("verify", "--quiet", image)
    source, copy, back = folder / "source", folder / "copy.lzr", folder / "back"
    source.write_bytes(state)
    command("dump", "--quiet", "--file", source, copy)
    command("restore", "--quiet", "--output", back, copy)
    need(back.read_bytes() == state, "dump --file and restore --output give the file back")
    if not EMULATED:
        told = json.loads(command("restore", "--lazy", "--json", copy))
        need(told["faults"] >= 1, "restore --lazy tells its faults")
        need(json.loads(command("doctor", "--json"))["level"] == "full", "doctor: root may do all")
    print(f"{len(COMMANDS)} commands")


if __name__ == "__main__":
    random.seed(7)
    pages = (random.randbytes(PAGE), bytes(PAGE), b"page" * (PAGE // 4))
    STATE = b"".join(pages[random.randrange(3)] for _ in range(2048))
    look_at_the_package()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if not EMULATED:
            start_it()
        use_the_api(place / "state.lzr", STATE)
        use_the_commands(place / "state.lzr", STATE, place)
