"""What this machine allows: which userfaultfd can be had, why not more, and what changes it."""

from __future__ import annotations

import dataclasses
import errno
import os
import platform
import pwd

import lazyrestore

from . import _wakeup
from ._native import ffi, lib

FULL = "full"
USER_MODE_ONLY = "user-mode-only"
NONE = "none"

_DEVICE = "/dev/userfaultfd"
_CAP_SYS_PTRACE = 1 << 19
_DEVICE_SINCE = (6, 1)
_USER_MODE_ONLY_SINCE = (5, 11)


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """Something that a kernel's userfaultfd may have.

    Attributes:
        name: as in linux/userfaultfd.h, without UFFD_FEATURE_.
        since: the first Linux that has it.
        present: True if this one has it.
        without: what is lost where it is missing.
    """

    name: str
    since: str
    present: bool
    without: str


@dataclasses.dataclass(frozen=True, slots=True)
class Remedy:
    """One way to be allowed more.

    Attributes:
        command: to type, or to add to a command.
        effect: what it does, and for whom.
    """

    command: str
    effect: str


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What was found out, before anything is concluded.

    Attributes:
        device_error: errno of having a userfaultfd from /dev/userfaultfd; 0: it works.
        syscall_error: of the system call; 0: it works.
        user_mode_error: of the system call with UFFD_USER_MODE_ONLY; 0: it works.
        features: bits that UFFDIO_API offers; 0 where there is no way to ask.
        kernel: release.
        user: name of the effective user.
        uid: its number.
        outer_uid: its number outside of this user namespace, None: this is the first one.
        may_trace: True with CAP_SYS_PTRACE.
        seccomp: True if a filter of system calls is set.
        container: True if this looks like a container.
        unprivileged: vm.unprivileged_userfaultfd, None: unknown.
        ptrace_scope: kernel.yama.ptrace_scope, None: there is no Yama.
        overcommit: vm.overcommit_memory.
        max_map_count: vm.max_map_count.
        thp: setting of transparent huge pages.
        page_size: of the kernel, bytes.
        cores: that this process may use.
        libzstd: path of the library, None: it is missing.
        version: of lazyrestore.
        wakeup: what waking a thread costs; None: it was not measured.
    """

    device_error: int
    syscall_error: int
    user_mode_error: int
    features: int
    kernel: str
    user: str
    uid: int
    outer_uid: int | None
    may_trace: bool
    seccomp: bool
    container: bool
    unprivileged: int | None
    ptrace_scope: int | None
    overcommit: int | None
    max_map_count: int | None
    thp: str | None
    page_size: int
    cores: int
    libzstd: str | None
    version: str
    wakeup: _wakeup.Wakeup | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis:
    """What follows from the facts.

    Attributes:
        level: "full", "user-mode-only" or "none": the best userfaultfd that can be had.
        meaning: what works with it.
        reasons: why there is no more.
        remedies: what changes that, the narrowest first; any one of them is enough.
        features: those that matter here.
        warnings: other things that will get in the way.
        settings: what makes demand faults faster, where waking is most of what they cost.
        facts: what all this was concluded from.
    """

    level: str
    meaning: str
    reasons: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    features: tuple[Feature, ...]
    warnings: tuple[str, ...]
    settings: tuple[_wakeup.Setting, ...]
    facts: Facts


# (bit, name, since, what is lost without it)
_FEATURES = (
    (14, "POISON", "6.6", "pages that cannot be loaded give SIGSEGV, not SIGBUS"),
    (11, "EXACT_ADDRESS", "5.18", "--trace shows the page that was touched, not the address"),
    (8, "THREAD_ID", "4.14", "--trace does not show which thread waited"),
)

_MEANINGS = {
    FULL: "restores are lazy, and system calls on lazy memory work like any access",
    USER_MODE_ONLY: (
        "restores are lazy with --privilege user-mode-only (or auto), but system calls on pages"
        " that are not there yet fail: populate() them first"
    ),
    NONE: "restores are eager only: everything is decoded at once (lazy=False, --or-eager)",
}


def examine() -> Diagnosis:
    """Look at this machine, as this user."""
    return diagnose(gather())


def has_only_user_mode() -> bool:
    """If the full kind of userfaultfd is refused here, and the lesser one is not."""
    probe = ffi.new("struct lr_uffd_probe *")
    lib.lr_uffd_probe(probe)
    full = probe.device_error == 0 or probe.syscall_error == 0
    return not full and probe.user_mode_error == 0


def gather() -> Facts:
    """Everything that `diagnose` wants to know."""
    probe = ffi.new("struct lr_uffd_probe *")
    lib.lr_uffd_probe(probe)
    status = _status()
    uid = os.geteuid()
    return Facts(
        device_error=probe.device_error,
        syscall_error=probe.syscall_error,
        user_mode_error=probe.user_mode_error,
        features=probe.features,
        kernel=platform.release(),
        user=_user_name(uid),
        uid=uid,
        outer_uid=_outer_uid(uid),
        may_trace=bool(int(status.get("CapEff", "0"), 16) & _CAP_SYS_PTRACE),
        seccomp=status.get("Seccomp", "0") != "0",
        container=_is_container(),
        unprivileged=_number("/proc/sys/vm/unprivileged_userfaultfd"),
        ptrace_scope=_number("/proc/sys/kernel/yama/ptrace_scope"),
        overcommit=_number("/proc/sys/vm/overcommit_memory"),
        max_map_count=_number("/proc/sys/vm/max_map_count"),
        thp=_thp(),
        page_size=os.sysconf("SC_PAGESIZE"),
        cores=len(os.sched_getaffinity(0)),
        libzstd=_libzstd(),
        version=lazyrestore.__version__,
        wakeup=_wakeup.measure(),
    )


def diagnose(facts: Facts) -> Diagnosis:
    """What follows; looks at nothing but the facts."""
    level = NONE
    if facts.device_error == 0 or facts.syscall_error == 0:
        level = FULL
    elif facts.user_mode_error == 0:
        level = USER_MODE_ONLY
    is_full = level == FULL
    return Diagnosis(
        level=level,
        meaning=_MEANINGS[level],
        reasons=() if is_full else tuple(_reasons(facts, level)),
        remedies=() if is_full else tuple(_remedies(facts)),
        features=tuple(
            Feature(name, since, bool(facts.features >> bit & 1), without)
            for bit, name, since, without in _FEATURES
        ),
        warnings=tuple(_warnings(facts)),
        settings=_wakeup.settings(facts.wakeup),
        facts=facts,
    )


# ---- Why ---------------------------------------------------------------------------------------


def _reasons(facts: Facts, level: str) -> list[str]:
    reasons = [_device_reason(facts), _syscall_reason(facts)]
    if level == NONE:
        reasons.append(_user_mode_reason(facts))
    return reasons


def _device_reason(facts: Facts) -> str:
    error = facts.device_error
    if error == errno.ENOENT:
        if _release(facts.kernel) < _DEVICE_SINCE:
            return f"{_DEVICE} is not there: kernels have it since 6.1"
        if facts.container:
            return f"{_DEVICE} is not there: the container was not given it"
        return f"{_DEVICE} is not there"
    if error == errno.EACCES:
        return f"user {facts.user} may not open {_DEVICE}"
    if error == errno.EPERM:  # which no mode of a file gives
        return f"{_DEVICE} is forbidden by a filter (seccomp) or by the container's cgroup"
    return f"{_DEVICE} gives an error: {os.strerror(error)}"


def _syscall_reason(facts: Facts) -> str:
    error = facts.syscall_error
    if error == errno.ENOSYS:
        return "the kernel has no userfaultfd (CONFIG_USERFAULTFD), or a filter hides it"
    if error != errno.EPERM:
        return f"the system call gives an error: {os.strerror(error)}"
    if _is_filtered(facts):
        return "the system call is forbidden by a filter (seccomp), as containers have it"
    if facts.may_trace:
        return "the system call asks for CAP_SYS_PTRACE outside of this user namespace"
    return "vm.unprivileged_userfaultfd is 0, and this process has no CAP_SYS_PTRACE"


def _is_filtered(facts: Facts) -> bool:
    """If something else than rights keeps the system call from working, so that none would help."""
    if facts.syscall_error == errno.ENOSYS:
        return True
    if facts.syscall_error != errno.EPERM:
        return False
    if facts.unprivileged == 1 or (facts.may_trace and facts.outer_uid is None):
        return True
    return facts.user_mode_error == errno.EPERM  # which asks for no right


def _user_mode_reason(facts: Facts) -> str:
    error = facts.user_mode_error
    if error == errno.EINVAL or _release(facts.kernel) < _USER_MODE_ONLY_SINCE:
        return "user-mode-only does not exist before Linux 5.11"
    if error == errno.EPERM:
        return "user-mode-only, which needs no right, is forbidden by a filter (seccomp)"
    return f"user-mode-only gives an error: {os.strerror(error)}"


# ---- What to do --------------------------------------------------------------------------------


def _remedies(facts: Facts) -> list[Remedy]:
    """The narrowest first: one user, then a group, then everybody."""
    has_device = _release(facts.kernel) >= _DEVICE_SINCE
    is_there = has_device and (facts.device_error != errno.ENOENT or facts.container)
    if facts.syscall_error == errno.ENOSYS and not is_there:
        return [Remedy("boot a kernel with CONFIG_USERFAULTFD=y", "all distributions' have it")]
    remedies = []
    if facts.container and has_device:
        remedies += _container_remedies(facts)
    elif has_device and not _is_device_filtered(facts):
        remedies += _device_remedies(facts)
    if facts.container:
        effect = "lets the container use the system call (its default profile forbids it)"
        command = "docker run --cap-add SYS_PTRACE --security-opt seccomp=PROFILE.json ..."
        remedies.append(Remedy(command, effect))
    if facts.unprivileged == 0 and not _is_filtered(facts):
        where = " (on the host)" if facts.container else ""
        effect = f"lets every user have userfaultfds, until the next boot{where}"
        remedies.append(Remedy("sudo sysctl vm.unprivileged_userfaultfd=1", effect))
    if not remedies:
        effect = "where there is no filter of system calls"
        remedies.append(Remedy("run it outside of the sandbox, or as root", effect))
    return remedies


def _is_device_filtered(facts: Facts) -> bool:
    """If who may open the device does not matter."""
    return facts.device_error in (errno.EPERM, errno.ENOSYS)


def _container_remedies(facts: Facts) -> list[Remedy]:
    remedies = []
    if facts.device_error in (errno.ENOENT, errno.EPERM):
        effect = "gives this one container the device; its root may open it then"
        remedies.append(Remedy(f"docker run --device {_DEVICE} ...", effect))
    is_root = facts.uid == 0 and facts.outer_uid is None
    if not is_root and not _is_device_filtered(facts):
        remedies.append(_acl(facts, "on the host"))
    return remedies


def _device_remedies(facts: Facts) -> list[Remedy]:
    where = "" if facts.outer_uid is None else "outside of this user namespace"
    rule = (
        """echo 'KERNEL=="userfaultfd", GROUP="kvm", MODE="0660"' | sudo tee"""
        " /etc/udev/rules.d/60-userfaultfd.rules && sudo udevadm trigger /dev/userfaultfd"
    )
    return [_acl(facts, where), Remedy(rule, "lets the members of a group, for good")]


def _acl(facts: Facts, where: str) -> Remedy:
    who = facts.user if facts.outer_uid is None else str(facts.outer_uid)
    effect = "lets this one user, until the next boot (setfacl is in the package acl)"
    command = f"sudo setfacl -m u:{who}:rw {_DEVICE}"
    return Remedy(command, f"{effect}; {where}" if where else effect)


def _warnings(facts: Facts) -> list[str]:
    warnings = []
    if facts.libzstd is None:
        warnings.append(
            "libzstd.so.1 cannot be loaded, and nothing works without it: apt-get install libzstd1,"
            " or let LAZYRESTORE_LIBZSTD name the library"
        )
    if facts.overcommit == 2:
        warnings.append(
            "vm.overcommit_memory is 2: a lazy restore is charged for all of its memory at once;"
            " sudo sysctl vm.overcommit_memory=0 lets it be larger than what is free"
        )
    if facts.page_size > 65536:
        warnings.append(f"pages of {facts.page_size} bytes are larger than clusters usually are")
    return warnings


# ---- Looking -----------------------------------------------------------------------------------


def _release(kernel: str) -> tuple[int, int]:
    numbers = [int(part) for part in kernel.split("-", 1)[0].split(".")[:2] if part.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def _status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        fields = (line.partition(":") for line in file)
        return {key: value.strip() for key, _, value in fields}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _outer_uid(uid: int) -> int | None:
    """What a user is outside of this user namespace; None in the first one."""
    text = _read("/proc/self/uid_map")
    rows = [[int(number) for number in line.split()] for line in (text or "").splitlines()]
    if not rows or rows == [[0, 0, 4294967295]]:
        return None
    for inside, outside, length in rows:
        if inside <= uid < inside + length:
            return outside + uid - inside
    return uid


def _is_container() -> bool:
    marks = ("/.dockerenv", "/run/.containerenv")
    return any(os.path.exists(mark) for mark in marks) or "container" in os.environ


def _thp() -> str | None:
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    if text is None:
        return None
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else text.strip()


def _libzstd() -> str | None:
    if lib.lr_init() < 0:
        return None
    wanted = os.environ.get("LAZYRESTORE_LIBZSTD")
    for line in (_read("/proc/self/maps") or "").splitlines():
        path = line.partition("/")[2]
        if "libzstd" in os.path.basename(path):
            return f"/{path}"
    return wanted or "libzstd.so.1"


def _number(path: str) -> int | None:
    text = _read(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None
