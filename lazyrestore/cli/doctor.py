"""`lazyrestore doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._arguments import JsonOption
from ._errors import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore._criu.examine import CriuDiagnosis
    from lazyrestore._doctor import Diagnosis

_KERNEL_SAYS_NO = 4


def doctor(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say everything that was found out.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="No report: the exit code says it."),
    ] = False,
    criu_bin: Annotated[
        str | None,
        typer.Option(
            "--criu-bin",
            metavar="PATH",
            help="The CRIU to look at.  [default: CRIU= in the environment, or that of PATH]",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what this machine allows, and the command that changes it.

    There are three levels. full: lazy restores without limits. user-mode-only: lazy restores, but
    system calls on pages that are not there yet fail. none: eager restores only; the exit code is
    4 then.

    Whole processes need CRIU: it is looked for, and has a look at the kernel (criu check).
    """
    from lazyrestore._criu.examine import examine_criu
    from lazyrestore._doctor import NONE, examine

    found = examine()
    criu = examine_criu(criu_bin)
    if json:
        from ._show import plain, print_json

        whole = plain(found)
        assert isinstance(whole, dict)
        print_json({**whole, "criu": criu})
    elif not quiet:
        _print(found, criu, verbose)
    if found.level == NONE or found.facts.libzstd is None:
        what = "restores cannot be lazy here" if found.level == NONE else "libzstd is missing"
        fail(_KERNEL_SAYS_NO, f"{what}: the report says why, and what to do")


def _print(found: Diagnosis, criu: CriuDiagnosis, verbose: bool) -> None:
    import sys

    from ._show import paint, print_fields, size

    facts = found.facts
    colour = {"full": "green", "none": "red"}.get(found.level, "yellow")
    print(f"userfaultfd: {paint(found.level, f'bold {colour}', sys.stdout)}")
    _print_wrapped(found.meaning, "  ")
    if found.reasons:
        print("why not more:")
        for reason in found.reasons:
            _print_wrapped(reason, "  - ")
    if found.remedies:
        one = "any one of these changes it, the narrowest first" if found.remedies[1:] else "this"
        print(f"what to do ({one}):")
        for remedy in found.remedies:
            print(f"  {remedy.command}")  # one line, whatever its length: it is there to be copied
            _print_wrapped(remedy.effect, "      ")
    for warning in found.warnings:
        _print_wrapped(warning, "warning: ")
    _print_settings(found)
    _print_criu(criu)
    print("this machine:")
    missing = [feature for feature in found.features if not feature.present]
    present = ", ".join(feature.name for feature in found.features if feature.present)
    fields = [
        ("kernel", f"Linux {facts.kernel}, pages of {size(facts.page_size)}"),
        ("features", present or "none"),
        *((f"without {lack.name}", f"{lack.without} (Linux {lack.since})") for lack in missing),
        ("libzstd", facts.libzstd or "missing"),
        ("criu", _criu(criu)),
        ("cores", str(facts.cores)),
        ("waking a thread", _waking(found)),
        ("dump --pid", _dump_right(found)),
        ("lazyrestore", facts.version),
    ]
    if verbose:
        fields += [
            ("user", f"{facts.user} ({facts.uid})"),
            ("vm.unprivileged_userfaultfd", _setting(facts.unprivileged)),
            ("kernel.yama.ptrace_scope", _setting(facts.ptrace_scope)),
            ("vm.overcommit_memory", _setting(facts.overcommit)),
            ("vm.max_map_count", _setting(facts.max_map_count)),
            ("transparent huge pages", _setting(facts.thp)),
            ("seccomp filter", "yes" if facts.seccomp else "no"),
            ("container", "yes" if facts.container else "no"),
        ]
    print_fields(fields)


def _print_settings(found: Diagnosis) -> None:
    if not found.settings:
        return
    from ._wakeup_text import print_settings

    _print_wrapped(
        "demand faults are slow here: idle cores halt, and waking one is most of a fault"
        " ('lazyrestore bench hello' shows it); any one of these helps, the narrowest first:",
        "",
    )
    print_settings(found.settings)


def _print_criu(criu: CriuDiagnosis) -> None:
    level = "lazy" if criu.lazy else "eager only" if criu.dump else "none"
    print(f"processes: {level}")
    _print_wrapped(criu.meaning, "  ")
    if criu.problems:
        print("why not more, and what to do:")
        for problem in criu.problems:
            _print_wrapped(problem, "  - ")


def _criu(criu: CriuDiagnosis) -> str:
    facts = criu.facts
    if facts.path is None:
        return "missing"
    named = f", named by {facts.origin}" if facts.origin not in ("", "PATH") else ""
    return f"{facts.version or 'of no known version'}, {facts.path}{named}"


def _waking(found: Diagnosis) -> str:
    """What it costs."""
    from ._show import duration

    wakeup = found.facts.wakeup
    if wakeup is None:
        return "not measured"
    same = f"{duration(wakeup.one_core_us)} on the same core"
    if wakeup.idle_core_us is None:
        return same
    return f"{duration(wakeup.idle_core_us)} on an idle core, {same}"


def _dump_right(found: Diagnosis) -> str:
    """Whose memory can be dumped."""
    facts = found.facts
    if facts.ptrace_scope == 3:
        return "of no process: kernel.yama.ptrace_scope is 3, until the next boot"
    if facts.may_trace:
        return "of any process"
    if facts.ptrace_scope == 2:
        return "of no process: kernel.yama.ptrace_scope is 2: be root"
    if facts.ptrace_scope == 1:
        return "of its own children: kernel.yama.ptrace_scope is 1: be root for others"
    return f"of processes of user {facts.user}"


def _setting(value: int | str | None) -> str:
    return "unknown" if value is None else str(value)


def _print_wrapped(text: str, start: str) -> None:
    import textwrap

    lines = textwrap.wrap(text, 78 - len(start), break_on_hyphens=False, break_long_words=False)
    for number, line in enumerate(lines):
        print((start if number == 0 else " " * len(start)) + line)
