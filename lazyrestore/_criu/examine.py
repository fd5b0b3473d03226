"""What `doctor` says of CRIU: whether whole processes can be dumped and restored here."""

from __future__ import annotations

from dataclasses import dataclass

from lazyrestore._sudo import sudo
from lazyrestore.errors import CriuError

from .find import Criu, find_criu, may_use_criu


@dataclass(frozen=True)
class CriuCheck:
    """What `criu check` says.

    Attributes:
        ok: it finds all that it needs.
        lazy: restores can be lazy, with children of fork as well (uffd-noncoop).
        problems: what it does not like, a line each; empty if ok.
    """

    ok: bool
    lazy: bool
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CriuFacts:
    """What was found out, before anything is concluded.

    Attributes:
        path: of CRIU; None: it was not found.
        origin: what named it: "--criu-bin", "CRIU", "PATH", or "".
        version: as "4.1.1"; None: it does not say.
        lacking: why it cannot be used, and what to do: not there, does not start, too old.
        is_privileged: this user has the capabilities that it needs.
        check: what `criu check` says; None: it was not asked, for it would fail.
    """

    path: str | None = None
    origin: str = ""
    version: str | None = None
    lacking: str | None = None
    is_privileged: bool = True
    check: CriuCheck | None = None


@dataclass(frozen=True, slots=True)
class CriuDiagnosis:
    """What follows from the facts.

    Attributes:
        dump: processes can be dumped, and restored at once.
        lazy: they can be restored lazily.
        meaning: that, in words.
        problems: why there is no more, each with what to do about it.
        facts: what this was concluded from.
    """

    dump: bool
    lazy: bool
    meaning: str
    problems: tuple[str, ...]
    facts: CriuFacts


def examine_criu(explicit: str | None = None) -> CriuDiagnosis:
    """Look for CRIU, and have it look at the kernel."""
    return diagnose(gather(explicit))


def gather(explicit: str | None = None) -> CriuFacts:
    """Everything that `diagnose` wants to know."""
    privileged = may_use_criu()
    try:
        criu = find_criu(explicit)
    except CriuError as error:
        return CriuFacts(lacking=str(error), is_privileged=privileged)
    return _ask(criu, privileged)


def _ask(criu: Criu, privileged: bool) -> CriuFacts:
    facts: dict[str, str | None] = {"version": None, "lacking": None}
    check = None
    try:
        facts["version"] = criu.version_text
        facts["lacking"] = criu.too_old()
        if facts["lacking"] is None and privileged:
            check = criu.check()
    except CriuError as error:
        facts["lacking"] = str(error)
    return CriuFacts(
        path=criu.path,
        origin=criu.origin,
        version=facts["version"],
        lacking=facts["lacking"],
        is_privileged=privileged,
        check=check,
    )


def diagnose(facts: CriuFacts) -> CriuDiagnosis:
    """What follows; looks at nothing but the facts."""
    problems = []
    if facts.lacking is not None:
        problems.append(facts.lacking)
    if not facts.is_privileged:
        problems.append(
            "CRIU needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, which this user has not:"
            f" {sudo('...')}"
        )
    check = facts.check
    if check is not None and not check.ok:
        problems += [f"criu check: {line}" for line in check.problems] or ["criu check fails"]
    dump = not problems
    lazy = dump and check is not None and check.lazy
    if dump and not lazy:
        problems.append(
            "criu check --feature uffd-noncoop fails: lazy restores need a kernel with"
            " CONFIG_USERFAULTFD, and root's rights outside of user namespaces"
        )
    if lazy:
        meaning = "whole processes can be dumped (dump --process) and restored (restore --lazy)"
    elif dump:
        meaning = "whole processes can be dumped, but restores of them cannot be lazy"
    else:
        meaning = "whole processes can be neither dumped nor restored; memory can (dump --pid)"
    return CriuDiagnosis(dump, lazy, meaning, tuple(problems), facts)
