"""Every state that can be reached, and the shortest way to a bad one. Knows nothing of pages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State", bound=Hashable)


class Move(NamedTuple, Generic[State]):
    """What may happen next, in words, and what is then."""

    words: str
    state: State


class Found(NamedTuple, Generic[State]):
    """How many states there are; where one is bad, why, and the moves to it from the first."""

    states: int
    wrong: str | None
    first: State
    trace: list[Move[State]]


def explore(
    first: State,
    moves: Callable[[State], Iterable[Move[State]]],
    wrong: Callable[[State], str | None],
    is_finished: Callable[[State], bool],
) -> Found[State]:
    """Look at all states that `moves` lead to from the first, whatever their order.

    A state is bad where `wrong` says why, or where no moves at all lead to a finished one: a
    deadlock, or going round for good. Breadth first, so a trace is as short as can be.
    """
    states = [first]
    number = {first: 0}
    came_by: list[tuple[int, str]] = [(-1, "")]
    comes_from: list[list[int]] = [[]]
    ends: list[int] = []

    def found(bad: int, why: str | None) -> Found[State]:
        trace: list[Move[State]] = []
        while bad > 0:
            before, words = came_by[bad]
            trace.append(Move(words, states[bad]))
            bad = before
        return Found(len(states), why, first, trace[::-1])

    for here, state in enumerate(states):  # which grows meanwhile
        why = wrong(state)
        if why:
            return found(here, why)
        is_end = True
        for move in moves(state):
            is_end = False
            there = number.setdefault(move.state, len(states))
            if there == len(states):
                states.append(move.state)
                came_by.append((here, move.words))
                comes_from.append([])
            comes_from[there].append(here)
        if is_end:
            ends.append(here)

    can_finish = {at for at, state in enumerate(states) if is_finished(state)}
    to_do = deque(can_finish)
    while to_do:
        for before in comes_from[to_do.popleft()]:
            if before not in can_finish:
                can_finish.add(before)
                to_do.append(before)
    for end in ends:
        if end not in can_finish:
            return found(end, "somebody waits, and nothing can happen")
    for at in range(len(states)):
        if at not in can_finish:
            bad = found(at, "and so on for good: somebody waits, whatever happens")
            bad.trace.extend(go_round(states[at], moves))
            return bad
    return found(0, None)


def go_round(
    state: State, moves: Callable[[State], Iterable[Move[State]]]
) -> Iterator[Move[State]]:
    """Some moves from here, until a state comes again."""
    seen: set[State] = set()
    while state not in seen:
        seen.add(state)
        move = next(iter(moves(state)))
        yield move
        state = move.state
