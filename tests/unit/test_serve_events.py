"""Events of a service: one line each, whatever is in it, and nobody waits for who reads."""

from __future__ import annotations

import json
import os
import re
import threading

import pytest
from process_support import in_child

from lazyrestore._serve.events import _SILENT, _WORDS, QUEUE_MAX, Events, rfc3339

NAMES = (
    *("listening", "connected", "admitted", "refused", "serving", "complete", "error", "gone"),
    *("taken_over", "keeper_started", "keeper_lost", "grace", "left", "stopped", "metrics"),
    *("warden_started", "warden_lost", "inherited", "dropped"),
)


class Pipe:
    """Events into a pipe, and what comes out of it."""

    def __init__(self, *, is_json: bool, verbosity: int = 0) -> None:
        self.reader, self.writer = os.pipe()
        self.events = Events(is_json=is_json, fd=self.writer, verbosity=verbosity)

    def lines(self) -> list[str]:
        """All that was said, until its end."""
        self.events.close(60)
        os.close(self.writer)
        with open(self.reader, encoding="utf-8") as file:
            return file.read().splitlines()


def test_json() -> None:
    """One object a line: when, what, who says so, and the event's own fields"""
    pipe = Pipe(is_json=True)
    pipe.events.emit("refused", peer=3, pid=4711, uid=1000, reason='two\nlines "and" more')
    pipe.events.emit("stopped")
    first, second = map(json.loads, pipe.lines())
    assert list(first)[:3] == ["time", "event", "service_pid"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert first["service_pid"] == os.getpid()
    assert (first["event"], first["peer"], first["pid"], first["uid"]) == (
        *("refused", 3, 4711, 1000),
    )
    assert first["reason"] == 'two\nlines "and" more'
    assert second["event"] == "stopped"


def test_times_are_utc() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1795266450.5519) == "2026-11-21T13:07:30.551Z"


@pytest.mark.parametrize("is_json", [False, True])
def test_whatever_is_in_it_is_one_line(is_json: bool) -> None:
    """Paths with line ends, terminal controls and bytes that are no text"""
    pipe = Pipe(is_json=is_json)
    odd = os.fsdecode(b"/tmp/\xff\n\x1b[2J")
    pipe.events.emit("listening", socket=odd)
    pipe.events.emit("something_new", peer=1, value=object(), path=odd)
    lines = pipe.lines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    if is_json:
        assert json.loads(lines[0])["socket"] == odd


def test_text() -> None:
    """For people: who, what, and nothing that says little"""
    pipe = Pipe(is_json=False)
    pipe.events.emit("connected", peer=3, pid=4711, uid=0, socket="/s")
    pipe.events.emit("refused", peer=3, pid=4711, uid=0, reason="it sent no userfaultfd")
    pipe.events.emit("serving", peer=4, pid=0, uid=0, image="vm.lzr", bytes=3 << 30)
    pipe.events.emit(
        "error",
        peer=4,
        pid=5,
        region="memory",
        offset=65536,
        length=65536,
        cluster=1,
        reason="its checksum is wrong",
        action="kill",
    )
    assert pipe.lines() == [
        "lazyrestore: peer 3 (process 4711): refused: it sent no userfaultfd",
        "lazyrestore: peer 4: serving 3.0 GiB from vm.lzr",
        "lazyrestore: peer 4 (process 5): cannot load 64.0 KiB at 65536 of region memory (cluster"
        " 1): its checksum is wrong: its process is ended",
    ]


@pytest.mark.parametrize("is_json", [False, True])
def test_only_what_goes_wrong(is_json: bool) -> None:
    """-q: of three events one, and still all are counted"""
    pipe = Pipe(is_json=is_json, verbosity=-1)
    for name in ("listening", "refused", "complete"):
        pipe.events.emit(name, peer=1, reason="x", socket="/s")
    (line,) = pipe.lines()
    assert "refused" in line
    assert sum(pipe.events.counts.values()) == 3


def test_who_connects_too() -> None:
    """-v: what is of interest to few"""
    pipe = Pipe(is_json=False, verbosity=1)
    pipe.events.emit("connected", peer=3, pid=4711, uid=0, socket="/s")
    assert pipe.lines() == ["lazyrestore: peer 3 (process 4711): connected: socket /s"]


@pytest.mark.parametrize("name", NAMES)
def test_every_event_has_words(name: str) -> None:
    """Its own, or it is left out; also where fields are missing it is told of"""
    assert (name in _WORDS) != (name in _SILENT)
    pipe = Pipe(is_json=False)
    pipe.events.emit(name)
    assert len(pipe.lines()) == (0 if name in _SILENT else 1)
    assert pipe.events.counts[name] == 1


@in_child()
def test_nobody_waits_for_a_full_pipe() -> None:
    """What there is no room for is dropped, and that is said once somebody reads"""
    pipe = Pipe(is_json=True)
    number = QUEUE_MAX + 2000
    for each in range(number):
        pipe.events.emit("refused", peer=each, reason="x" * 100)
    assert pipe.events.counts["refused"] == number
    assert pipe.events.dropped > 0
    said: list[str] = []

    def read() -> None:
        with open(pipe.reader, encoding="utf-8") as file:
            said.extend(file)

    reader = threading.Thread(target=read)
    reader.start()
    while pipe.events._queue:  # it goes on once there is room
        pass
    pipe.events.emit("stopped")
    pipe.events.close(60)
    os.close(pipe.writer)
    reader.join()
    events = [json.loads(line) for line in said]
    following = 0
    for event in events[:-1]:
        if event["event"] == "dropped":
            following += event["count"]
        else:
            assert event["peer"] == following
            following += 1
    assert following == number
    assert events[-1]["event"] == "stopped"
    assert pipe.events.dropped == number - [each["event"] for each in events].count("refused")


@in_child()
def test_the_end_does_not_wait_for_a_full_pipe() -> None:
    pipe = Pipe(is_json=True)
    for each in range(1000):
        pipe.events.emit("refused", peer=each, reason="x" * 200)
    pipe.events.close(0.1)  # and the process ends: see in_child


def test_nobody_is_there() -> None:
    """A closed descriptor, a pipe without a reader, one that does not block: no exception"""
    pipe = Pipe(is_json=True)
    os.close(pipe.reader)
    pipe.events.emit("stopped")
    pipe.events.close(60)
    os.close(pipe.writer)
    events = Events(is_json=True, fd=pipe.writer)
    events.emit("stopped")
    events.close(60)

    pipe = Pipe(is_json=True)
    os.set_blocking(pipe.writer, False)
    for each in range(2000):
        pipe.events.emit("refused", peer=each, reason="x" * 100)
    thread = threading.Thread(target=pipe.events.close, args=(60,))
    thread.start()
    data = b""
    while data.count(b"\n") < 2000:
        data += os.read(pipe.reader, 65536)
    thread.join()
    for fd in (pipe.reader, pipe.writer):
        os.close(fd)
