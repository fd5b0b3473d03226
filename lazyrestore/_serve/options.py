"""What a service was asked for, as plain data that a keeper can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

from .images import Plan

ON_ERROR = ("kill", "poison", "log")


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """The options of `lazyrestore serve`.

    Attributes:
        image: the one image that is served, or None.
        image_dir: a folder of images, or None.
        sockets: paths to listen on; with image_dir also folders, for a socket for each image.
        allow_uids: users that are admitted beside the service's own and root.
        on_error: what becomes of a peer that touches what cannot be loaded: "kill": its process is
            ended; "poison": the touch gives SIGBUS; "log": it waits, and it is tried again.
        prefetch, working_set, granularity, record: see `Plan`.
        grace_s: how long peers are filled when the service is told to end.
        keeper: whether a keeper is started.
        takeover: take over also from a service that is well.
        status_fd: where readiness is told; None: nowhere.
        metrics: address to serve metrics on; None: nowhere.
        log_json: events are JSON lines.
        verbosity: -1: only events of what goes wrong; 1: also those that few want.
        socket_mode: permissions of the sockets.
        ends_with_peers: the service ends when a restore by CRIU is over, and nobody of it is left.
    """

    image: str | None = None
    image_dir: str | None = None
    sockets: tuple[str, ...] = ()
    allow_uids: tuple[int, ...] = ()
    on_error: str = "kill"
    prefetch: str = "auto"
    working_set: str | None = None
    granularity: str = "cluster"
    record: str | None = None
    grace_s: float = 30.0
    keeper: bool = True
    takeover: bool = False
    status_fd: int | None = None
    metrics: str | None = None
    log_json: bool = False
    verbosity: int = 0
    socket_mode: int = 0o600
    ends_with_peers: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error is {self.on_error!r}: it can be {', '.join(ON_ERROR)}")

    @property
    def plan(self) -> Plan:
        """What is loaded ahead of touches."""
        return Plan(self.prefetch, self.working_set, self.granularity, self.record)

    def to_record(self) -> dict[str, object]:
        """As JSON can say it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """Of `to_record`; what is not known is left out.

        Raises:
            TypeError, ValueError: it is not such a record.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        found = {key: value for key, value in record.items() if key in known}
        for key in ("sockets", "allow_uids"):
            if isinstance(value := found.get(key), list):
                found[key] = tuple(value)
        return cls(**found)  # type: ignore[arg-type]
