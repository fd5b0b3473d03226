"""What a service says of itself, on standard error: lines for people, or JSON (--log-json).

    events = Events(is_json=options.log_json)
    events.emit("refused", peer=3, pid=4711, uid=1000, reason="...")

Nobody waits for whoever reads: what is said goes through a queue of limited length, and a thread
writes it. Where a pipe is full and the queue too, what comes then is dropped, and a later event
`dropped` says how much that was.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

QUEUE_MAX = 4096
_CLOSE_S = 1.0
_STANDARD_ERROR = 2
_TEXT_MAX = 4000

Fields = Mapping[str, object]


class Events:
    """Prints events. `emit` may be called from any thread, and never waits.

    Args:
        is_json: one JSON object a line, rather than text for people. It has `time` (RFC 3339, UTC),
            `event`, `service_pid` (whose words these are) and the event's own fields: of one about
            a peer `peer` (its number), `pid` and `uid`.
        fd: where to.
        verbosity: -1: only what goes wrong; 0; 1: text has what is of interest to few, too.

    Attributes:
        counts: how many of each name there were.
        dropped: how many could not be written.
    """

    def __init__(
        self, *, is_json: bool = False, fd: int = _STANDARD_ERROR, verbosity: int = 0
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped = 0
        self._is_json = is_json
        self._fd = fd
        self._verbosity = verbosity
        self._queue: deque[bytes] = deque()
        self._unsaid = 0  # dropped, and not yet told of
        self._is_closed = False
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None

    def emit(self, name: str, **fields: object) -> None:
        """Tell of one event."""
        now = time.time()
        with self._changed:
            self.counts[name] += 1
            if len(self._queue) >= QUEUE_MAX:
                self.dropped += 1
                self._unsaid += 1
                return
            if self._unsaid:
                self._put("dropped", now, {"count": self._unsaid})
                self._unsaid = 0
            self._put(name, now, fields)

    def _put(self, name: str, now: float, fields: Fields) -> None:
        if self._verbosity < 0 and name not in _TROUBLE:
            return
        if not self._is_json and self._verbosity < 1 and name in _SILENT:
            return
        line = _json_line(name, now, fields) if self._is_json else _text_line(name, fields)
        self._queue.append(line.encode("utf-8", "backslashreplace") + b"\n")
        if self._writer is None:
            self._writer = threading.Thread(
                target=self._write, name="lazyrestore-events", daemon=True
            )
            self._writer.start()
            atexit.register(self.close)
        self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._is_closed:
                        return
                    self._changed.wait()
                data = self._queue[0]
            _write_all(self._fd, data)
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Wait until all has been written, but for so long at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue, timeout_s)
        atexit.unregister(self.close)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # whoever gave it to us has made it so
            time.sleep(0.01)
        except OSError:
            return  # closed, or nobody reads: there is nobody to tell


# ---- JSON ----------------------------------------------------------------------------------------


def rfc3339(seconds: float) -> str:
    """A time.time() as "2026-11-21T13:05:00.123Z"."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


def _json_line(name: str, now: float, fields: Fields) -> str:
    record = {"time": rfc3339(now), "event": name, "service_pid": os.getpid(), **fields}
    return json.dumps(record, default=str)


# ---- Text ----------------------------------------------------------------------------------------


def _text_line(name: str, fields: Fields) -> str:
    """What people are told."""
    say = _WORDS.get(name)
    try:
        text = _generic(name, fields) if say is None else say(_Words(fields))
    except (TypeError, ValueError):  # a field is not what it should be: tell what there is
        text = _generic(name, fields)
    who = f"peer {fields['peer']}" if "peer" in fields else ""
    if who and fields.get("pid"):
        who += f" (process {fields['pid']})"
    line = f"lazyrestore: {who}: {text}" if who else f"lazyrestore: {text}"
    return _printable(line[:_TEXT_MAX])


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class _Words(dict[str, object]):
    """The fields of an event; those that are not there are empty."""

    def __missing__(self, key: str) -> str:
        return ""

    def size(self, key: str) -> str:
        """Bytes, as people read them."""
        value = float(str(self[key] or 0))
        for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
            if value < 1024 or unit == "TiB":
                break
            value /= 1024
        return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def _generic(name: str, fields: Fields) -> str:
    """Events that others add: their name, and what they come with."""
    rest = ", ".join(
        f"{key} {value}" for key, value in fields.items() if key not in ("peer", "pid", "uid")
    )
    return f"{name.replace('_', ' ')}: {rest}" if rest else name.replace("_", " ")


def _error(words: _Words) -> str:
    if "cluster" not in words:
        return str(words["reason"])
    actions = {
        "kill": "its process is ended",
        "poison": "a touch gives SIGBUS",
        "log": "who touches it waits, and it is tried again",
    }
    what = actions.get(str(words["action"]), "")
    return (
        f"cannot load {words.size('length')} at {words['offset']} of region {words['region']}"
        f" (cluster {words['cluster']}): {words['reason']}" + (f": {what}" if what else "")
    )


def peers(count: object) -> str:
    """As words: 1 peer, 2 peers."""
    return f"{count} peer" if count == 1 else f"{count} peers"


def _tasks(count: object) -> str:
    return f"{count} task" if count == 1 else f"{count} tasks"


# "serving" follows "admitted" at once, and who merely connects is of no interest.
_SILENT = frozenset({"connected", "admitted"})
_TROUBLE = frozenset({"refused", "error", "left", "dropped", "warden_lost", "keeper_lost"})
_WORDS: dict[str, Callable[[_Words], str]] = {
    "listening": lambda w: f"listening at {w['socket']}",
    "refused": lambda w: f"refused: {w['reason']}",
    "serving": lambda w: f"serving {w.size('bytes')} from {w['image']}",
    "restored": lambda w: f"restored by CRIU, process {w['criu']}: {_tasks(w['tasks'])}",
    "identified": lambda w: f"it is a child of peer {w['parent']}",
    "complete": lambda w: "complete: all has been loaded",
    "gone": lambda w: f"gone: {w['reason']}; {w['faults']} faults in {w['seconds']} s",
    "error": _error,
    "stopped": lambda w: f"stopped: {w['reason']}" if "reason" in w else "stopped",
    "taken_over": lambda w: f"took over {peers(w['peers'])} of process {w['from']}",
    "warden_started": lambda w: f"process {w['pid']} holds what only this one has",
    "warden_lost": lambda w: f"the warden, process {w['pid']}, is lost: {w['reason']}",
    "inherited": lambda w: f"got {w['children']} children from the warden of process {w['from']}",
    "keeper_started": lambda w: f"process {w['pid']} stands by to take over",
    "keeper_lost": lambda w: f"the keeper, process {w['pid']}, is lost: {w['reason']}",
    "grace": lambda w: f"ending: {peers(w['peers'])} to be filled, for {w['seconds']:g} s at most",
    "left": lambda w: f"not complete, {w.size('missing_bytes')} missing: left to {w['to']}",
    "metrics": lambda w: f"figures at http://{w['address']}/metrics",
    "dropped": lambda w: f"{w['count']} messages were dropped: nobody read them",
}
