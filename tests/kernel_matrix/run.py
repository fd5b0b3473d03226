#!/usr/bin/env python3
"""Run the tests under another kernel: one of Debian's, in QEMU, with this machine's files.

    run.py [--kernel PACKAGE] [--limit SECONDS] [--shell-command COMMAND]

The kernel comes from a package of this machine's own apt sources, which is unpacked and not
installed. Its root is this machine's file system, read-only, under a layer in memory: so tests,
Python and tools are those that `make test` uses, at the same paths, and nothing that the guest
writes is kept. guest.sh, beside this file, says what is run there. Exit codes: 0 passed, 1 failed,
77 it cannot be run on this machine (and why).
"""

from __future__ import annotations

import argparse
import gzip
import io
import lzma
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from signal import SIGKILL

TREE = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = TREE / "build" / "kernel-matrix"
INITRAMFS = CACHE / "initramfs.gz"
CONSOLE = CACHE / "console.log"  # what the kernel said
DEFAULT_KERNEL = "linux-image-amd64"
QEMU = "qemu-system-x86_64"
MEMORY_MIB = 2048
PROCESSORS = 2
# Without KVM all is that much slower, and the limits are that much longer.
SLOW_FACTOR = 5
LIMIT_S, SLOW_LIMIT_S = 600, 1800
# In which the guest must say its first word: seconds with KVM, a few without.
START_LIMIT_S = 300
# What must be loaded, and what only some tests want; what either needs is found in the modules.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
MODULES_WANTED = ("zram", "lzo_rle")
# What is kept of a kernel's package.
KERNEL_FILES = r"^\./boot/vmlinuz|\.ko(\.xz)?$|/modules\.builtin$"
# Lines of the kernel that mean that it is broken, whatever the tests say.
BROKEN = re.compile(r"Kernel panic|BUG:|Oops:|general protection fault|blocked for more than")


class CannotRunError(Exception):
    """This machine lacks something that cannot be got from here."""


class FailedError(Exception):
    """What should have worked did not."""


def say(text: str) -> None:
    print(f"kernel-matrix: {text}", flush=True)


def apt(*arguments: str, folder: Path | None = None) -> str:
    """Run an apt command and return what it printed; FailedError with its message."""
    result = subprocess.run(
        arguments,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )
    if result.returncode != 0:
        raise FailedError(f"{shlex.join(arguments)}:\n{result.stderr.strip()}")
    return result.stdout


# Others may be installing, and mirrors may be slow.
PATIENT = ("-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=5")


def apt_retry(*arguments: str, folder: Path | None = None) -> str:
    """As apt(); root gets new package lists first if it fails: they may be old, or none."""
    try:
        return apt(*arguments, folder=folder)
    except FailedError:
        if os.geteuid() != 0:
            raise
        say("apt-get update")
        apt("apt-get", *PATIENT, "update", "-qq")
        return apt(*arguments, folder=folder)


def check_machine() -> None:
    if platform.machine() != "x86_64":
        raise CannotRunError(f"it knows amd64's kernels only, and this is {platform.machine()}")
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        raise CannotRunError(f"there is no {missing[0]} here: the kernel is one of Debian's")
    if shutil.which(QEMU) is None:
        if os.geteuid() != 0:
            raise CannotRunError(f"{QEMU} is missing: apt-get install qemu-system-x86")
        say("installing qemu-system-x86")
        install = ("apt-get", *PATIENT, "install", "-y", "-qq", "--no-install-recommends")
        apt_retry(*install, "qemu-system-x86")


def find_package(name: str) -> tuple[str, str]:
    """The package with the kernel itself and its version: a metapackage names another."""
    for _ in range(3):
        text = apt_retry("apt-cache", "show", "--no-all-versions", name)
        version = re.search(r"^Version: (\S+)$", text, re.M)
        further = re.search(r"^Depends:.*\b(linux-image-\S+)", text, re.M)
        if version is None:
            break
        if further is None:
            return name, version[1]
        name = further[1]
    raise FailedError(f"apt's {name} is not a kernel")


def find_busybox() -> tuple[str, str]:
    text = apt_retry("apt-cache", "show", "--no-all-versions", "busybox-static")
    version = re.search(r"^Version: (\S+)$", text, re.M)
    if version is None:
        raise FailedError("apt has no busybox-static")
    return "busybox-static", version[1]


def unpack(package: str, version: str, pattern: str) -> Path:
    """Fetch a package, keep the files whose path matches, and return the folder with them."""
    folder = CACHE / f"{package}_{version.replace(':', '%')}"
    if folder.is_dir():
        return folder
    say(f"fetching {package} {version}")
    fresh = CACHE / f"{folder.name}.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        apt_retry("apt-get", *PATIENT, "download", "-qq", f"{package}={version}", folder=fresh)
        (deb,) = fresh.glob("*.deb")
        command = ("dpkg-deb", "--fsys-tarfile", str(deb))
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            with tarfile.open(fileobj=tar.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and re.search(pattern, member.name):
                        content = archive.extractfile(member)
                        assert content is not None
                        (fresh / Path(member.name).name).write_bytes(content.read())
        if tar.returncode != 0:
            raise FailedError(f"{deb.name} could not be unpacked")
        deb.unlink()
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def module_name(file: Path) -> str:
    return file.name.partition(".")[0].replace("-", "_")


def read_module(file: Path) -> bytes:
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def modules(folder: Path) -> list[tuple[str, bytes]]:
    """The modules to load, each behind those that it depends on."""
    files = {module_name(file): file for file in folder.glob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found:
            return
        content = read_module(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in depends[1].decode().split(",") if depends else []:
            if other:
                add(other.replace("-", "_"))
        found[name] = content

    built_in = (folder / "modules.builtin").read_text()
    for name in MODULES:
        if name in files:
            add(name)
        elif not re.search(rf"/{name.replace('_', '[-_]')}\.ko$", built_in, re.M):
            raise CannotRunError(f"this kernel has no module {name}: choose another one")
    for name in MODULES_WANTED:
        if name in files:
            add(name)
    return list(found.items())


def write_entry(out: io.BytesIO, name: str, mode: int, content: bytes = b"") -> None:
    """One file or folder in cpio's "newc" form: thirteen numbers in hex, the name, the content."""
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = "070701" + "".join(f"{number:08x}" for number in numbers)
    for part in (header.encode() + name.encode() + b"\0", content):
        out.write(part + bytes(-len(part) % 4))


def write_initramfs(path: Path, kernel: Path, busybox: Path, config: dict[str, str]) -> None:
    out = io.BytesIO()
    for name in ("bin", "dev", "host", "modules", "root", "writes"):
        write_entry(out, name, 0o040755)
    write_entry(out, "bin/busybox", 0o100755, busybox.read_bytes())
    write_entry(out, "init", 0o100755, (HERE / "init").read_bytes())
    lines = "".join(f"{key}={shlex.quote(value)}\n" for key, value in config.items())
    write_entry(out, "config", 0o100644, lines.encode())
    for number, (name, content) in enumerate(modules(kernel)):
        write_entry(out, f"modules/{number:02}-{name}.ko", 0o100644, content)
    write_entry(out, "TRAILER!!!", 0)
    path.write_bytes(gzip.compress(out.getvalue(), 1))


def command_of(kernel: Path, has_kvm: bool) -> list[str]:
    (vmlinuz,) = kernel.glob("vmlinuz-*")
    # ttyS0 is the kernel's, ttyS1 the tests'. A panic ends QEMU (panic=-1, -no-reboot).
    append = "console=ttyS0 panic=-1 oops=panic quiet loglevel=5"
    accelerator = ["-accel", "kvm", "-cpu", "host"]
    if not has_kvm:
        # Emulated, the kernel's mitigations and wide vectors cost a third of the time.
        append += " mitigations=off"
        accelerator = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"]
    share = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "pc", "-m", str(MEMORY_MIB), "-smp", str(PROCESSORS)),
        *accelerator,
        *("-kernel", str(vmlinuz), "-initrd", str(INITRAMFS), "-append", append),
        *("-serial", f"file:{CONSOLE}", "-serial", "stdio"),
        *("-fsdev", share, "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-device", "virtio-rng-pci"),
    ]


def why_no_kvm() -> str | None:
    """Why KVM cannot be used; None: it can, as far as can be seen.

    A virtual machine may have a /dev/kvm without the processor's help, which runs no kernel but
    one that was made for it.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is not there, or not for this user"
    if not re.search(r"^flags\b.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.M):
        return "/dev/kvm is there, but not what it needs of the processor"
    return None


def boot(
    kernel: Path, busybox: Path, options: dict[str, str], limit_s: float, *, has_kvm: bool
) -> tuple[int | None, bool]:
    """Run QEMU and pass on what the tests print.

    Returns their status, None if there was none, and whether anything was printed.
    """
    factor = 1 if has_kvm else SLOW_FACTOR
    limits = factor * float(os.environ.get("CHECK_TIME_FACTOR", "1"))
    config = {
        **options,
        "TIME_FACTOR": str(factor),
        "CHECK_TIME_FACTOR": str(limits),
        "LIMIT": str(int(limit_s)),
    }
    write_initramfs(INITRAMFS, kernel, busybox / "busybox", config)
    CONSOLE.unlink(missing_ok=True)
    tail = ""
    command = command_of(kernel, has_kvm)
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert qemu.stdout is not None
    timers = [threading.Timer(seconds, qemu.kill) for seconds in (limit_s, START_LIMIT_S)]
    for timer in timers:
        timer.start()
    try:
        # Not by lines: pytest's progress shall be seen.
        while chunk := os.read(qemu.stdout.fileno(), 65536):
            timers[1].cancel()
            text = chunk.decode(errors="replace").replace("\r", "")
            tail = tail[-200:] + text
            print(text, end="", flush=True)
        code = qemu.wait()
        if code != 0:
            say(f"{QEMU} ended with {code}" + (": its time was over" if code == -SIGKILL else ""))
    finally:
        for timer in timers:
            timer.cancel()
        qemu.kill()
        qemu.wait()
    end = re.search(r"^kernel-matrix: end (\d+)$", tail, re.M)
    return int(end[1]) if end else None, bool(tail)


def console_lines() -> list[str]:
    return CONSOLE.read_text(errors="replace").splitlines() if CONSOLE.exists() else []


def broken_lines() -> list[str]:
    return [line for line in console_lines() if BROKEN.search(line)]


def run(kernel_name: str, limit_s: float | None, shell_command: str) -> int:
    check_machine()
    package, version = find_package(kernel_name)
    kernel = unpack(package, version, KERNEL_FILES)
    busybox = unpack(*find_busybox(), r"^\./bin/busybox$")
    options = {
        "TREE": str(TREE),
        "PYTHON": str(Path(sys.executable).absolute()),
        "KERNEL_MUST_BE": "old" if kernel_name == DEFAULT_KERNEL else "any",
        "SHELL_COMMAND": shell_command,
    }
    why_not = why_no_kvm()
    status = None
    if why_not is None:
        say(f"booting {package} {version} with KVM")
        status, has_begun = boot(kernel, busybox, options, limit_s or LIMIT_S, has_kvm=True)
        if not has_begun and not broken_lines():
            why_not = "the guest did not start with KVM"
    if why_not is not None:
        say(f"booting {package} {version}, emulated and so slowly: {why_not}")
        status, _ = boot(kernel, busybox, options, limit_s or SLOW_LIMIT_S, has_kvm=False)
    broken = broken_lines()
    if status is None or broken:
        print("\n".join(console_lines()[-40:]))
        raise FailedError(
            f"the kernel is broken: {broken[0]}" if broken else "the guest did not come to its end"
        )
    return 1 if status else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests under one of Debian's kernels.")
    parser.add_argument("--kernel", default=DEFAULT_KERNEL, help="its package (%(default)s)")
    parser.add_argument("--limit", type=float, help=f"seconds ({LIMIT_S}, or {SLOW_LIMIT_S})")
    parser.add_argument(
        "--shell-command", default="", metavar="COMMAND", help="run this there, not the tests"
    )
    arguments = parser.parse_args()
    try:
        return run(arguments.kernel, arguments.limit, arguments.shell_command)
    except CannotRunError as error:
        say(f"cannot be run here: {error}")
        return 77
    except FailedError as error:
        say(f"failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
