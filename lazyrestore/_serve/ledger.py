"""Whom a service tells of all that must outlive it, and what it listens on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .peer import Record


class Listener(Protocol):
    """A socket that listens, and its path."""

    @property
    def sock(self) -> socket.socket: ...
    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...


class Ledger(Protocol):
    """Who is told of all that must outlive this process, before anything is done with it.

    Its descriptors are lent: they stay open until `gone`.
    """

    def accepted(self, key: str, fd: int) -> None:
        """Somebody has connected."""

    def peer(self, key: str, record: Record, fds: dict[str, int]) -> None:
        """Somebody is about to be served, or has changed: `Peer.record`, `PeerFds.by_role`."""

    def image(self, path: str, digest: str) -> None:
        """An image that somebody is about to be served from."""

    def gone(self, key: str) -> None:
        """A connection or a peer has ended; before its descriptors are closed."""


class NoLedger:
    """For a service without a keeper."""

    def accepted(self, key: str, fd: int) -> None: ...
    def peer(self, key: str, record: Record, fds: dict[str, int]) -> None: ...
    def image(self, path: str, digest: str) -> None: ...
    def gone(self, key: str) -> None: ...
