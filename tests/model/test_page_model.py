"""Nothing goes wrong with a page, whatever the order; and without any of the remedies, it does."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from model.explore import Found, Move, explore
from model.page_model import REMEDIES, Rules, State, is_finished, moves, wrong
from model.settings import LIMIT, SETTINGS, describe, find_wrong, first_state, without

ROOT = Path(__file__).parents[2]

# How each one is seen to fail: so that a mutant is not caught for a mistake of the model's own.
HARM = {
    "remove_events": "the parent finds the image's bytes in page 0, not zeros",
    "one_installer": "the parent finds the image's bytes in page 0, not zeros",
    "pager_looks": "the parent finds the image's bytes in page 0, not zeros",
    "apply_first": "the parent finds the image's bytes in page 0, not zeros",
    "zeros_once_settled": "finds the image's bytes in page 0, not zeros",
    "settle_after_put": "the child finds zeros in page 0, not the image's bytes",
    "settle_at_once": "the child finds the image's bytes in page 0, not zeros",
    "read_on_eagain": "and so on for good",
    "keep_on_eagain": "nothing can happen",
    "wake_on_eexist": "nothing can happen",
    "sync_before_fork": "the child finds the image's bytes in page 0, not zeros",
    "put_off_reads": "the child finds the image's bytes in page 0, not zeros",
    "serve_during_fork": "nothing can happen",
    "rearm_child": "the child finds zeros in page 0, not the image's bytes",
}


@functools.cache
def explored(setting: str) -> tuple[Found[State], frozenset[str]]:
    """What comes of a setting with all remedies, and all moves that were made, in words."""
    words: set[str] = set()

    def noted(state: State) -> list[Move[State]]:
        after = list(moves(state, Rules()))
        words.update(f"{state.process}: {move.words}" for move in after)
        return after

    found = explore(first_state(SETTINGS[setting]), noted, wrong, is_finished)
    return found, frozenset(words)


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_order_is_bad(setting: str) -> None:
    found, _ = explored(setting)
    assert found.wrong is None, describe(found)
    assert found.states > 500


@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_remedy_is_needed(remedy: str) -> None:
    bad = find_wrong(without(remedy))
    assert bad is not None, "nothing goes wrong without it"
    setting, found = bad
    assert found.wrong is not None
    assert HARM[remedy] in found.wrong, f"{setting}\n{describe(found)}"


def test_a_traces_moves_follow_from_each_other() -> None:
    rules = without("sync_before_fork")
    bad = find_wrong(rules)
    assert bad is not None
    setting, found = bad
    state = first_state(SETTINGS[setting])
    for move in found.trace:
        assert wrong(state) is None
        assert move in list(moves(state, rules))
        state = move.state
    assert wrong(state) == found.wrong


def judge_limit(rules: Rules) -> Found[State]:
    return explore(first_state(LIMIT), lambda state: moves(state, rules), wrong, is_finished)


def test_the_limit_is_where_it_is_said_to_be() -> None:
    """Where fork() waits for a lock, its child may find what another thread gives up meanwhile. If
    this fails, the limit is gone: docs/page-states.md tells of it."""
    found = judge_limit(Rules())
    words = [move.words for move in found.trace]
    called = words.index("B calls fork()")
    locked = words.index("C takes a lock")
    returned = words.index("A takes page 0 out: DONTNEED returns")
    copied = words.index("B has its memory copied")
    assert max(called, locked) < returned < copied
    assert "the pager has noted all that was given up" not in words[returned:copied]
    assert found.wrong == "the child finds the image's bytes in page 0, not zeros"


def test_there_is_no_other_limit() -> None:
    found = judge_limit(Rules(strict_fork=False))
    assert found.wrong is None, describe(found)


def test_all_that_the_model_has_happens() -> None:
    """A setting that never comes to some move would show nothing about it."""
    seen = frozenset[str]().union(*(explored(setting)[1] for setting in SETTINGS))
    for words in (
        "parent: A finds page 0 missing",
        "parent: A is let go on in DONTNEED",
        "parent: the pager's COPY of page 1 is refused: EAGAIN",
        "parent: the pager's ZEROPAGE of page 0 is refused: EAGAIN",
        "parent: the pager's COPY of page 0 puts the image's bytes there",
        "parent: the pager's ZEROPAGE of page 0 puts zeros there",
        "parent: the pager's ZEROPAGE of page 0 finds one there, and it wakes who waits",
        "parent: the pager takes the job: page 1 to be put",
        "parent: the pager takes the job: all is settled",
        "parent: the kernel copies whether page 0 is settled: True",
        "parent: the kernel copies whether page 0 is settled: False",
        "child: the pager's COPY of page 0 puts the image's bytes there",
        "child: the pager's COPY of page 0 finds one there, and it wakes who waits",
        "child: the pager's ZEROPAGE of page 0 puts zeros there",
        "child: B reads A in page 0",
        "child: A calls DONTNEED of page 1",
    ):
        assert words in seen, words
    # Where one thread installs, only a child can find a page that it did not know to be there.
    assert "parent: the pager's COPY of page 0 finds one there, and it wakes who waits" not in seen


def test_a_trace_can_be_printed() -> None:
    command = [sys.executable, "-m", "tests.model", "--mutant", "rearm_child"]
    printed = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert "B touches page 0: the kernel puts zeros there" in printed
    assert printed.rstrip().endswith("the child finds zeros in page 0, not the image's bytes")


def test_the_page_names_every_remedy() -> None:
    page = (ROOT / "docs" / "page-states.md").read_text()
    for remedy in REMEDIES:
        assert f"`{remedy}`" in page, remedy
