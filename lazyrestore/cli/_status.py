"""Asking a service how it is, and what its answers say together: rates."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import NoReturn, Self

from lazyrestore.errors import RemoteError

ANSWER_S = 5.0
_ANSWER_BYTES_MAX = 64 << 20
_PIECE_BYTES = 1 << 16
_QUESTION = b'{"type":"status"}'

Fields = Mapping[str, object]

_NO_SERVICE = (
    "does not answer as lazyrestore serve does: give the socket of one, and of this version"
)


class ServiceGone(RemoteError):
    """Nobody listens there, or it does not answer: it may come again."""


def ask(path: str) -> Fields:
    """The answer of the service at `path`: see lazyrestore/_serve/status.py.

    Raises:
        ServiceGone: there is none.
        RemoteError: it refuses, or is no such service.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(os.fsencode(path))
            # Who is refused at once has an answer waiting, though nobody reads the question.
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(_QUESTION)
            data = _read_all(connection, path)
    except TimeoutError:
        raise ServiceGone(
            f"{path} does not answer within {ANSWER_S:g} s: is it stopped, or is"
            " the machine busy? try again"
        ) from None
    except OSError as error:
        _explain(path, error)
    if not data:
        raise ServiceGone(
            f"{path} closed the connection without an answer: its service ends, so start it again"
        )
    try:
        answer = json.loads(data)
    except ValueError:
        raise RemoteError(f"{path} {_NO_SERVICE}") from None
    if isinstance(answer, dict) and isinstance(refused := answer.get("error"), dict):
        raise RemoteError(f"{path} refuses: {refused.get('message')}")
    if not isinstance(answer, dict) or answer.get("type") != "status":
        raise RemoteError(f"{path} {_NO_SERVICE}")
    return answer


def _read_all(connection: socket.socket, path: str) -> bytes:
    deadline = time.monotonic() + ANSWER_S
    pieces, size, was_reset = [], 0, False
    while True:
        try:
            piece = connection.recv(_PIECE_BYTES)
        except ConnectionResetError:
            if was_reset:
                raise
            was_reset = True  # it is told once, and before what was sent
            continue
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if size > _ANSWER_BYTES_MAX:
            raise RemoteError(
                f"{path} answers with more than {_ANSWER_BYTES_MAX >> 20} MiB,"
                " as no service of ours does: give the socket of one"
            )
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(pieces)


def _explain(path: str, error: OSError) -> NoReturn:
    if error.errno == errno.ENOENT:
        raise ServiceGone(
            f"there is no socket at {path}, so no service listens there: start `lazyrestore serve"
            f" IMAGE --socket {path}`"
        ) from None
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
        if os.path.isfile(path):
            raise RemoteError(
                f"{path} is no socket: give one that `lazyrestore serve` listens at"
            ) from None
        raise ServiceGone(
            f"nobody listens at {path}: its service has ended, start it again"
        ) from None
    if error.errno in (errno.EACCES, errno.EPERM):
        raise RemoteError(
            f"not allowed to connect to {path}: be the service's own user, or root"
        ) from None
    raise RemoteError(f"cannot connect to {path}: {error.strerror or error}") from None


# ---- What an answer says -------------------------------------------------------------------------


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _text(fields: Fields, key: str) -> str:
    value = fields.get(key)
    return "" if value is None else str(value)


@dataclasses.dataclass(frozen=True, slots=True)
class PeerStatus:
    """A peer, as a service tells of it; see `status.py`. Bytes, µs, seconds."""

    peer: int
    pid: int
    command: str
    uid: int
    protocol: str
    socket: str
    image: str
    seconds: float
    total_bytes: int
    missing_bytes: int
    copied_bytes: int
    zeroed_bytes: int
    read_bytes: int
    faults: int
    errors: int
    fill: str
    is_complete: bool
    p50_us: float | None
    p99_us: float | None
    max_us: float | None

    @classmethod
    def of(cls, fields: Fields) -> Self:
        """Of one entry of `peers`."""
        latency = fields.get("service_us")
        times = latency if isinstance(latency, Mapping) else None
        counts = (
            *("total_bytes", "missing_bytes", "copied_bytes", "zeroed_bytes", "read_bytes"),
            *("faults", "errors"),
        )
        return cls(
            peer=int(_number(fields, "peer")),
            pid=int(_number(fields, "pid")),
            command=_text(fields, "command"),
            uid=int(_number(fields, "uid")),
            protocol=_text(fields, "protocol"),
            socket=_text(fields, "socket"),
            image=_text(fields, "image"),
            seconds=_number(fields, "seconds"),
            fill=_text(fields, "fill"),
            is_complete=bool(fields.get("is_complete")),
            p50_us=None if times is None else _number(times, "p50"),
            p99_us=None if times is None else _number(times, "p99"),
            max_us=None if times is None else _number(times, "max"),
            **{name: int(_number(fields, name)) for name in counts},
        )

    @property
    def filled_bytes(self) -> int:
        """Memory that was filled."""
        return self.copied_bytes + self.zeroed_bytes

    @property
    def loaded(self) -> float:
        """How much of its memory is there or was given up, from 0 to 1."""
        return 1 - self.missing_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """Of a peer: since the answer before, or since it connected where that is the first one."""

    faults_s: float
    filled_bytes_s: float


class Sample:
    """One answer, and what it says with the one before.

    Attributes:
        raw: the answer.
        service: what it says of the service.
        peers: what it says of each peer.
        rates: of each, by its number.
    """

    def __init__(self, raw: Fields, before: Sample | None = None) -> None:
        self.raw = raw
        self.at = time.monotonic()
        service = raw.get("service")
        self.service: Fields = service if isinstance(service, Mapping) else {}
        peers = raw.get("peers")
        self.peers = [
            PeerStatus.of(peer)
            for peer in (peers if isinstance(peers, list) else [])
            if isinstance(peer, Mapping)
        ]
        known: dict[int, PeerStatus] = {}
        if before is not None and before.number("pid") == self.number("pid"):
            known = {peer.peer: peer for peer in before.peers}
        passed = self.at - before.at if before is not None else 0.0
        # Who has taken over has counted no longer than it has been there.
        most = max(self.number("seconds"), 1e-3)
        self.rates = {
            peer.peer: _rates(peer, known.get(peer.peer), passed, most) for peer in self.peers
        }

    def number(self, key: str) -> float:
        """A number that the service has said of itself; 0 where it did not."""
        return _number(self.service, key)

    def text(self, key: str) -> str:
        """A text that it has said of itself."""
        return _text(self.service, key)

    def by_activity(self) -> list[PeerStatus]:
        """Those with most faults first."""
        return sorted(self.peers, key=lambda peer: (-self.rates[peer.peer].faults_s, peer.peer))

    def to_json(self) -> dict[str, object]:
        """The answer, and the rates of each peer in it."""
        raw = self.raw.get("peers")
        given = [peer for peer in raw if isinstance(peer, Mapping)] if isinstance(raw, list) else []
        with_rates = [
            {**peer, **dataclasses.asdict(self.rates[status.peer])}
            for peer, status in zip(given, self.peers, strict=True)
        ]
        return {**self.raw, "peers": with_rates}


def _rates(peer: PeerStatus, before: PeerStatus | None, passed: float, most: float) -> Rates:
    if before is None or before.faults > peer.faults or passed <= 0:
        passed = min(max(peer.seconds, 1e-3), most)
        return Rates(peer.faults / passed, peer.filled_bytes / passed)
    return Rates(
        (peer.faults - before.faults) / passed, (peer.filled_bytes - before.filled_bytes) / passed
    )
