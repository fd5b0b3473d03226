"""A model of what can happen to a lazily restored page, explored state by state.

The actors are the kernel, threads that own the memory, the pager, a feeder (fill or populate) and a
fork. Each move is one that nothing can come between in the engine; all orders of them are tried.
docs/page-states.md tells which move is what in the code, and what is left out.

    python -m tests.model                      all settings, with all remedies
    python -m tests.model --mutant NAME        without one: how it goes wrong
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import NamedTuple, TypeVar

from .explore import Move

PAGES = (0, 1)  # of one cluster, both data
IMAGE, ZEROS = "the image's bytes", "zeros"  # what a page may hold; or the name of who wrote it


@dataclass(frozen=True)
class Rules:
    """The remedies. Each one taken away must lead to a bad state."""

    remove_events: bool = True  # the kernel tells of MADV_DONTNEED, and waits
    one_installer: bool = True  # the feeder hands over, and installs nothing
    pager_looks: bool = True  # not the feeder, before he hands over
    apply_first: bool = True  # what was given up is noted before anything is put anywhere
    zeros_once_settled: bool = True  # a settled page that is missing is zeros, not loaded again
    settle_after_put: bool = True  # not before the page is there
    settle_at_once: bool = True  # not after the next messages were read
    read_on_eagain: bool = True  # messages, before it is tried again
    keep_on_eagain: bool = True  # the fault, to be tried again
    wake_on_eexist: bool = True
    sync_before_fork: bool = True  # wait until what was read is applied
    put_off_reads: bool = True  # until the memory is copied, unless the fork() waits for a lock
    serve_during_fork: bool = True  # fork() waits for locks whose holders wait for pages
    rearm_child: bool = True  # register its memory anew, with a pager of its own

    # Not a remedy, but what is promised where fork() waits for no lock: a child never sees what was
    # given up while fork() was under way, before its memory was copied.
    strict_fork: bool = True


REMEDIES = [field.name for field in fields(Rules) if field.name != "strict_fork"]


class Call(NamedTuple):
    """What an owner does: read, write or drop (MADV_DONTNEED) a page; lock, unlock; fork."""

    verb: str
    page: int = 0


class At(StrEnum):
    """Where a thread of the owners is with his call."""

    READY = "ready"
    MISSED = "missed"  # found the page missing
    ASLEEP = "asleep"  # his fault can be read
    ASKED = "asked"  # asleep, and it was read
    REMOVE = "remove"  # in MADV_DONTNEED, whose message can be read
    REMOVE_READ = "remove read"
    ZAP = "zap"  # goes on, and has not taken the page out yet
    SYNC = "sync"  # in the handler before fork(), until what was read is applied
    FORK = "fork"  # waits for the C library's locks
    COPY = "copy"  # the kernel copies memory: nobody else can change what is mapped


class Do(StrEnum):
    """What the pager is about to do."""

    POLL = "poll"
    READ = "read"
    APPLY = "apply"
    LOOK = "look"
    PUT = "put"
    SETTLE = "settle"


class Feed(StrEnum):
    """Where the feeder is."""

    DECODE = "decode"
    HAND_OVER = "hand over"
    HANDED = "handed over"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Thread:
    name: str
    todo: tuple[Call, ...]
    at: At = At.READY


@dataclass(frozen=True, slots=True)
class Pager:
    do: Do = Do.POLL
    removed: tuple[int, ...] = ()  # read, not applied yet
    waiting: tuple[int, ...] = ()  # pages of faults that were read; the first is served first
    run: tuple[int, ...] = ()  # to be put
    put: tuple[int, ...] = ()  # and not settled yet
    gives: str = IMAGE


@dataclass(frozen=True, slots=True)
class Feeder:
    at: Feed = Feed.DECODE
    run: tuple[int, ...] = PAGES  # what he saw missing, as he decoded


@dataclass(frozen=True, slots=True)
class Fork:
    """From the call until the child is there."""

    legal: tuple[frozenset[str], ...]  # what the child may find
    bits: tuple[tuple[int, bool], ...] = ()  # settled, as copied so far


@dataclass(frozen=True, slots=True)
class State:
    threads: tuple[Thread, ...]
    feeder: Feeder
    pager: Pager = Pager()
    process: str = "parent"
    pages: tuple[str | None, ...] = (None, None)  # None where missing
    settled: tuple[bool, ...] = (False, False)
    is_registered: bool = True
    holder: str = ""  # of a lock of the C library
    fork: Fork | None = None
    # For the judge only, who knows what was asked for and in what order.
    legal: tuple[frozenset[str], ...] = (frozenset({IMAGE}),) * 2
    loads: tuple[int, ...] = (0, 0)

    @property
    def is_changing(self) -> bool:
        """The kernel refuses every page: EAGAIN."""
        return any(thread.at in (At.REMOVE, At.REMOVE_READ) for thread in self.threads)

    @property
    def is_copied(self) -> bool:
        """A fork holds the lock that each change of what is mapped needs."""
        return any(thread.at == At.COPY for thread in self.threads)

    def is_dropped(self, page: int) -> bool:
        """Somebody is in MADV_DONTNEED of the page, and it can still be taken out."""
        return any(
            thread.at in (At.REMOVE, At.REMOVE_READ, At.ZAP) and thread.todo[0].page == page
            for thread in self.threads
        )


T = TypeVar("T")


def put_at(items: tuple[T, ...], at: int, item: T) -> tuple[T, ...]:
    return (*items[:at], item, *items[at + 1 :])


def settle(state: State, pages: tuple[int, ...]) -> State:
    return replace(state, settled=tuple(state.settled[p] or p in pages for p in PAGES))


def wake(state: State, page: int) -> State:
    """Whoever sleeps there looks again. A fault that was not read is forgotten."""
    return replace(
        state,
        threads=tuple(
            replace(thread, at=At.READY)
            if thread.at in (At.ASLEEP, At.ASKED) and thread.todo[0].page == page
            else thread
            for thread in state.threads
        ),
    )


def install(state: State, page: int, content: str) -> State:
    """UFFDIO_COPY or ZEROPAGE of a page that is missing."""
    loads = put_at(state.loads, page, state.loads[page] + (content == IMAGE))
    return wake(replace(state, pages=put_at(state.pages, page, content), loads=loads), page)


# The judge


def expect(state: State, page: int, contents: frozenset[str], child: frozenset[str]) -> State:
    """The page may hold these from now on; and in a child, if a fork is under way, those."""
    fork = state.fork and replace(state.fork, legal=put_at(state.fork.legal, page, child))
    return replace(state, legal=put_at(state.legal, page, contents), fork=fork)


def expect_zeros_too(state: State, page: int) -> State:
    """MADV_DONTNEED was called."""
    child = state.fork.legal[page] if state.fork else frozenset()
    return expect(state, page, state.legal[page] | {ZEROS}, child | {ZEROS})


def expect_zeros(state: State, page: int) -> State:
    """MADV_DONTNEED took the page out. A fork that was called before may have come before it."""
    child = state.fork.legal[page] if state.fork else frozenset()
    return expect(state, page, frozenset({ZEROS}), child | {ZEROS})


def expect_written(state: State, page: int, writer: str) -> State:
    contents = frozenset({writer, ZEROS} if state.is_dropped(page) else {writer})
    return expect(state, page, contents, contents)


def expect_read(state: State, page: int) -> State:
    """What was read once stays, unless the page is given up: zeros do not become bytes again."""
    seen = frozenset({state.pages[page] or ZEROS} | ({ZEROS} if state.is_dropped(page) else set()))
    return replace(state, legal=put_at(state.legal, page, seen))


def wrong(state: State) -> str | None:
    for page in PAGES:
        content, legal = state.pages[page], state.legal[page]
        if content and content not in legal:
            rather = " or ".join(sorted(legal))
            return f"the {state.process} finds {content} in page {page}, not {rather}"
    if max(state.loads) > 1:
        return "a page got the image's bytes a second time"
    return None


def is_finished(state: State) -> bool:
    return (
        not any(thread.todo for thread in state.threads)
        and state.feeder.at == Feed.DONE
        and state.pager.do == Do.POLL
        and not (state.pager.waiting or state.pager.removed)
    )


# Who does what. Each function gives the moves that one actor can make.

Moves = Iterator[Move[State]]


def owner_moves(state: State, rules: Rules, number: int) -> Moves:
    thread = state.threads[number]
    if not thread.todo:
        return
    call = thread.todo[0]
    page = call.page

    def go(words: str, at: At = At.READY, after: State = state) -> Move[State]:
        """He is there now; or done with the call, if he is ready."""
        todo = thread.todo[1:] if at == At.READY else thread.todo
        here = replace(after.threads[number], todo=todo, at=at)
        threads = put_at(after.threads, number, here)
        return Move(f"{thread.name} {words}", replace(after, threads=threads))

    def zapped() -> State:
        return expect_zeros(replace(state, pages=put_at(state.pages, page, None)), page)

    if thread.at == At.MISSED:
        # A kernel that looks again before it lets him sleep is kinder than is assumed here.
        yield go(f"asks for page {page} and sleeps", At.ASLEEP)
    elif thread.at == At.REMOVE_READ:
        yield go("is let go on in DONTNEED", At.ZAP)
    elif thread.at == At.FORK and not state.holder:
        yield go("has its memory copied", At.COPY)
    elif thread.at == At.COPY:
        yield from copy_moves(state, rules, thread)
    elif state.is_copied:
        return
    elif thread.at == At.ZAP:
        yield go(f"takes page {page} out: DONTNEED returns", after=zapped())
    elif thread.at != At.READY:
        return
    elif call.verb == "lock" and not state.holder:
        yield go("takes a lock", after=replace(state, holder=thread.name))
    elif call.verb == "unlock":
        yield go("gives the lock back", after=replace(state, holder=""))
    elif call.verb == "fork" and not state.fork:
        is_early = rules.sync_before_fork and state.pager.do in (Do.READ, Do.APPLY)
        after = replace(state, fork=Fork(state.legal))
        yield go("calls fork()", At.SYNC if is_early else At.FORK, after)
    elif call.verb == "drop" and state.is_registered and rules.remove_events:
        yield go(f"calls DONTNEED of page {page}", At.REMOVE, expect_zeros_too(state, page))
    elif call.verb == "drop":
        yield go(f"calls DONTNEED of page {page}, which nobody is told", after=zapped())
    elif call.verb in ("read", "write"):
        if state.pages[page] is None and state.is_registered:
            yield go(f"finds page {page} missing", At.MISSED)
        elif state.pages[page] is None:
            after = replace(state, pages=put_at(state.pages, page, ZEROS))
            yield Move(f"{thread.name} touches page {page}: the kernel puts zeros there", after)
        elif call.verb == "read":
            yield go(f"reads {state.pages[page]} in page {page}", after=expect_read(state, page))
        else:
            after = replace(state, pages=put_at(state.pages, page, thread.name))
            yield go(f"writes to page {page}", after=expect_written(after, page, thread.name))


def copy_moves(state: State, rules: Rules, thread: Thread) -> Moves:
    """Of the pager's memory each bit may be copied at another moment, while the pager works."""
    assert state.fork
    number = state.threads.index(thread)
    bits = dict(state.fork.bits)
    for page in PAGES:
        if page not in bits:
            copied = tuple(sorted((*state.fork.bits, (page, state.settled[page]))))
            yield Move(
                f"the kernel copies whether page {page} is settled: {state.settled[page]}",
                replace(state, fork=replace(state.fork, bits=copied)),
            )
    if len(bits) < len(PAGES):
        return
    todo = thread.todo[1:]
    parent = put_at(state.threads, number, replace(thread, at=At.READY, todo=()))
    yield Move(
        f"fork() returns in the parent; {thread.name} ends",
        replace(state, threads=parent, fork=None),
    )
    # They share nothing from here on, so each can be followed without the other.
    yield Move(
        "fork() returns in the child, which is followed from here",
        State(
            threads=(Thread(thread.name, todo),),
            feeder=Feeder(Feed.DONE),
            process="child",
            pages=state.pages,
            settled=tuple(bits[page] for page in PAGES),
            is_registered=rules.rearm_child,
            legal=state.legal if rules.strict_fork else state.fork.legal,
            loads=state.loads,
        ),
    )


def pager_moves(state: State, rules: Rules) -> Moves:
    pager = state.pager
    if not rules.serve_during_fork and any(t.at in (At.FORK, At.COPY) for t in state.threads):
        return
    if pager.do == Do.POLL:
        is_asked = any(thread.at in (At.ASLEEP, At.REMOVE) for thread in state.threads)
        # It waits for a while, which is longer than anything but a lock takes.
        is_put_off = rules.put_off_reads and not state.holder and state.fork
        if not is_put_off and (
            is_asked or pager.waiting or pager.removed or state.feeder.at == Feed.HANDED
        ):
            yield Move("the pager begins to read", to(state, Do.READ))
    elif pager.do == Do.READ:
        yield from read_moves(state)
        after = to(state, Do.APPLY) if rules.apply_first else to(go_on(state), Do.LOOK)
        yield Move("the pager has read what there is", after)
    elif pager.do == Do.APPLY and pager.removed:
        page = pager.removed[0]
        after = settle(to(state, Do.APPLY, removed=pager.removed[1:]), (page,))
        yield Move(f"the pager notes that page {page} was given up", after)
    elif pager.do == Do.APPLY:
        after = settle(go_on(state), pager.put)
        words = "the pager has noted all that was given up"
        yield Move(words, to(after, Do.LOOK if rules.apply_first else Do.POLL, put=()))
    elif pager.do == Do.LOOK:
        yield look(state, rules)
    elif pager.do == Do.PUT and not state.is_copied:
        yield put(state, rules)
    elif pager.do == Do.SETTLE:
        yield settle_run(state, rules)


def go_on(state: State) -> State:
    """The number that a fork waits for is even again."""
    threads = tuple(
        replace(thread, at=At.FORK) if thread.at == At.SYNC else thread for thread in state.threads
    )
    return replace(state, threads=threads)


def to(state: State, do: Do, **changes: object) -> State:
    """The state with the pager about to do this."""
    return replace(state, pager=replace(state.pager, do=do, **changes))  # type: ignore[arg-type]


def read_moves(state: State) -> Moves:
    """Faults come first. Who called DONTNEED goes on from here, whatever the pager does."""
    faults = [at for at, thread in enumerate(state.threads) if thread.at == At.ASLEEP]
    removes = [at for at, thread in enumerate(state.threads) if thread.at == At.REMOVE]
    for number in faults or removes:
        thread = state.threads[number]
        page = thread.todo[0].page
        if faults:
            at, what = At.ASKED, "fault"
            after = to(state, Do.READ, waiting=(*state.pager.waiting, page))
        else:
            at, what = At.REMOVE_READ, "DONTNEED"
            after = to(state, Do.READ, removed=(*state.pager.removed, page))
        threads = put_at(state.threads, number, replace(thread, at=at))
        words = f"the pager reads {thread.name}'s {what} of page {page}"
        yield Move(words, replace(after, threads=threads))


def look(state: State, rules: Rules) -> Move[State]:
    """Choose what to do next, by what is settled."""
    pager = state.pager
    missing = tuple(page for page in PAGES if not state.settled[page])
    if pager.waiting:
        page = pager.waiting[0]
        words = f"the pager serves the fault of page {page}"
        if state.settled[page]:
            gives = ZEROS if rules.zeros_once_settled else IMAGE
            return Move(f"{words}: it is settled", to(state, Do.PUT, run=(page,), gives=gives))
    elif state.feeder.at == Feed.HANDED:
        words = "the pager takes the job"
        missing = missing if rules.pager_looks else state.feeder.run
        if not missing:
            done = replace(state, feeder=Feeder(Feed.DONE, ()))
            return Move(f"{words}: all is settled", to(done, Do.POLL))
    else:
        return Move("the pager has no more to do", to(state, rest(pager)))
    if not rules.settle_after_put:
        state = settle(state, missing)
    what = " and ".join(map(str, missing))
    return Move(f"{words}: page {what} to be put", to(state, Do.PUT, run=missing, gives=IMAGE))


def rest(pager: Pager) -> Do:
    """Without the rule, what was given up is noted when all else is done."""
    return Do.APPLY if pager.removed else Do.POLL


def put(state: State, rules: Rules) -> Move[State]:
    """The next page of the run."""
    pager = state.pager
    page, run = pager.run[0], pager.run[1:]
    request = f"the pager's {'COPY' if pager.gives == IMAGE else 'ZEROPAGE'} of page {page}"
    if state.is_changing:
        return Move(f"{request} is refused: EAGAIN", to(state, Do.SETTLE))
    after = to(state, Do.PUT if run else Do.SETTLE, run=run, put=(*pager.put, page))
    if state.pages[page] is None:
        return Move(f"{request} puts {pager.gives} there", install(after, page, pager.gives))
    if rules.wake_on_eexist:
        return Move(f"{request} finds one there, and it wakes who waits", wake(after, page))
    return Move(f"{request} finds one there", after)


def settle_run(state: State, rules: Rules) -> Move[State]:
    """Settle what was put; and end, or put off, what it was for."""
    pager = state.pager
    put_pages = pager.put
    if rules.settle_at_once:
        state = settle(state, put_pages)
        put_pages = ()
    words = "the pager settles what it put" if rules.settle_at_once else "the pager goes on"
    if pager.run:  # EAGAIN
        waiting = pager.waiting if rules.keep_on_eagain else pager.waiting[1:]
        do = rest(pager) if rules.read_on_eagain else Do.LOOK
        words += ", and tries the rest later"
        after = to(state, do, waiting=waiting, run=(), put=put_pages, gives=IMAGE)
        return Move(words, after)
    if pager.waiting:
        after = to(state, Do.LOOK, waiting=pager.waiting[1:], put=put_pages, gives=IMAGE)
        return Move(f"{words}: the fault is served", after)
    after = to(state, rest(pager), put=put_pages, gives=IMAGE)
    return Move(f"{words}: the job is done", replace(after, feeder=Feeder(Feed.DONE, ())))


def feeder_moves(state: State, rules: Rules) -> Moves:
    feeder = state.feeder
    if feeder.at == Feed.DECODE:
        missing = tuple(page for page in PAGES if not state.settled[page])
        after = replace(state, feeder=Feeder(Feed.HAND_OVER, missing))
        yield Move("the feeder decodes the cluster", after)
    elif feeder.at == Feed.HAND_OVER and rules.one_installer:
        after = replace(state, feeder=replace(feeder, at=Feed.HANDED))
        yield Move("the feeder hands it over", after)
    elif feeder.at == Feed.HAND_OVER and not feeder.run:
        yield Move("the feeder is done", replace(state, feeder=Feeder(Feed.DONE, ())))
    elif feeder.at == Feed.HAND_OVER and not state.is_changing and not state.is_copied:
        page = feeder.run[0]
        after = replace(settle(state, (page,)), feeder=replace(feeder, run=feeder.run[1:]))
        if state.pages[page] is None:
            yield Move(f"the feeder's COPY of page {page}", install(after, page, IMAGE))
        else:
            yield Move(f"the feeder finds page {page} there, and wakes", wake(after, page))


def moves(state: State, rules: Rules) -> Moves:
    for number in range(len(state.threads)):
        yield from owner_moves(state, rules, number)
    yield from pager_moves(state, rules)
    yield from feeder_moves(state, rules)
