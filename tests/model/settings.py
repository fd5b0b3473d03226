"""What the owners do in each setting, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .explore import Found, explore
from .page_model import Call, Feeder, Rules, State, Thread, is_finished, moves, wrong

# The child of a fork does what follows it; in the parent its thread ends. A feeder loads both pages
# meanwhile.
SETTINGS = {
    "fork while another holds a lock": ("lock, read 0, unlock", "fork, read 0, write 1"),
    "drop, then fork": ("drop 0, fork, read 0, drop 1, read 1", "write 1"),
    "fork while another writes and drops": ("write 0, drop 0", "fork, read 0, read 1"),
    "fork waits while another drops": ("write 0, drop 0", "fork, read 0", "lock, unlock"),
    "fork while another drops": ("drop 0, write 1", "fork, read 0, read 1"),
    "fork while two others do all": ("write 0, drop 0", "fork, read 0, read 1", "drop 1"),
    "three touch": ("read 0, read 1", "write 0", "write 1, read 0"),
    "one drops what others touch": ("write 0, drop 0, read 0", "read 0, read 1"),
    "two drop": ("drop 0, read 0", "drop 1, write 0, read 1"),
}

# One more: see docs/page-states.md, "A limit".
LIMIT = ("drop 0", "fork, read 0", "lock, unlock")


def first_state(programs: tuple[str, ...]) -> State:
    def calls(program: str) -> Iterator[Call]:
        for words in program.split(", "):
            verb, _, page = words.partition(" ")
            yield Call(verb, int(page or 0))

    return State(
        threads=tuple(
            Thread(name, tuple(calls(program)))
            for name, program in zip("ABC", programs, strict=False)
        ),
        feeder=Feeder(),
    )


def check(setting: str, rules: Rules) -> Found[State]:
    return explore(
        first_state(SETTINGS[setting]), lambda state: moves(state, rules), wrong, is_finished
    )


def find_wrong(rules: Rules) -> tuple[str, Found[State]] | None:
    """The first setting in which these rules are not enough."""
    for setting in SETTINGS:
        found = check(setting, rules)
        if found.wrong:
            return setting, found
    return None


def without(remedy: str) -> Rules:
    return replace(Rules(), **{remedy: False})


def describe(found: Found[State]) -> str:
    """The trace, with the pages after each move: what they hold, * where settled."""
    lines: list[str] = []
    for move in found.trace:
        state = move.state
        pages = "  ".join(
            f"{content or '-':18}{'*' if is_settled else ' '}"
            for content, is_settled in zip(state.pages, state.settled, strict=True)
        )
        lines.append(f"{len(lines) + 1:4}  {move.words:66}{pages}")
    return "\n".join([*lines, f"      {found.wrong}"])
