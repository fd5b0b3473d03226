"""What must outlive a pager: descriptors, and what is known about them.

A pager keeps this of what is its own, and sends each change to its keeper. The keeper, and a
service that takes over, make the same of what they receive. `messages` says all of it at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from .handover import HandoverError, Message, close_all

Record = dict[str, object]

PEER_FDS = ("socket", "userfaultfd", "pidfd", "state")
"""What a peer may have; not all have all."""


@dataclass
class HeldListener:
    """A socket that listens: its path, device and inode of that where it is to be removed, and what
    it is for; see `listen.Listener`.
    """

    fd: int
    path: str
    identity: tuple[int, int] | None
    kind: str = ""


@dataclass
class HeldImage:
    """An image that peers are served from, whatever became of its path."""

    fd: int
    path: str
    digest: str


@dataclass
class HeldWarden:
    """Where to ask the warden of a process that has died: see `inheriting`."""

    page: int
    socket: int


@dataclass
class HeldPeer:
    """A connection; with a record when its handshake is done.

    Attributes:
        fds: by their roles, of `PEER_FDS`.
        record: what its server wrote down; None: its first message has not been taken yet.
        strikes: how many pagers ended while this peer alone had just begun to be served.
    """

    fds: dict[str, int]
    record: Record | None = None
    strikes: int = 0


@dataclass
class Holdings:
    """All of it.

    Attributes:
        options: of the service.
        promotions: when keepers became pagers, in seconds of CLOCK_MONOTONIC.
        trial: the peer that is just being tried alone; None: none is.
        is_leaving: the service ends on purpose, and admits nobody any more.
        wardens: by the number of the process whose table each shares.
        released: userfaultfds of CRIU's tasks, by inode, that are needed no more.
    """

    options: Record = field(default_factory=dict)
    listeners: dict[str, HeldListener] = field(default_factory=dict)
    images: dict[str, HeldImage] = field(default_factory=dict)
    peers: dict[str, HeldPeer] = field(default_factory=dict)
    promotions: list[float] = field(default_factory=list)
    trial: str | None = None
    is_leaving: bool = False
    wardens: dict[str, HeldWarden] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)

    def apply(self, message: Message) -> bool:
        """Take a message in, and its descriptors; False: it is of another kind.

        Raises:
            HandoverError: it is not what it should be.
        """
        take = _TAKE.get(message.kind)
        if take is None:
            return False
        try:
            take(self, message.fields, message)
        except (KeyError, TypeError, ValueError) as error:
            raise HandoverError(f"a message {message.kind!r} lacks something: {error!r}") from None
        finally:
            message.close()
        return True

    def messages(self) -> Iterator[Message]:
        """Everything, such that `apply` of another makes it the same. The descriptors are lent."""
        yield Message("options", {"options": self.options})
        yield Message("promotions", {"times_s": self.promotions})
        for key, listener in self.listeners.items():
            yield listener_message(key, listener)
        for key, image in self.images.items():
            yield image_message(key, image)
        for key, warden in self.wardens.items():
            yield warden_message(key, warden)
        for key, peer in self.peers.items():
            yield peer_message(key, peer)
        yield Message("trial", {"peer": self.trial})
        if self.is_leaving:
            yield Message("leaving")

    def close(self) -> None:
        """Close all descriptors; for those that own them."""
        close_all([held.fd for held in self.listeners.values()])
        close_all([held.fd for held in self.images.values()])
        for peer in self.peers.values():
            close_all(list(peer.fds.values()))
        for warden in self.wardens.values():
            close_all([warden.page, warden.socket])
        self.wardens.clear()
        self.listeners.clear()
        self.images.clear()
        self.peers.clear()

    def _take_options(self, fields: Record, _message: Message) -> None:
        options = fields["options"]
        if not isinstance(options, dict):
            raise TypeError("options")
        self.options = options

    def _take_promotions(self, fields: Record, _message: Message) -> None:
        times = fields["times_s"]
        if not isinstance(times, list):
            raise TypeError("times_s")
        self.promotions = [float(time_s) for time_s in times]

    def _take_listener(self, fields: Record, message: Message) -> None:
        key, path, identity = _text(fields, "key"), _text(fields, "path"), fields["identity"]
        (fd,) = message.fds
        made = None
        if isinstance(identity, list):
            device, inode = identity
            made = (int(device), int(inode))
        message.take_fds()
        old = self.listeners.pop(key, None)
        self.listeners[key] = HeldListener(fd, path, made, str(fields.get("kind", "")))
        if old is not None:
            close_all([old.fd])

    def _take_unlisten(self, fields: Record, _message: Message) -> None:
        held = self.listeners.pop(_text(fields, "key"), None)
        if held is not None:
            close_all([held.fd])

    def _take_image(self, fields: Record, message: Message) -> None:
        key, path, digest = (_text(fields, name) for name in ("key", "path", "digest"))
        (fd,) = message.fds
        message.take_fds()
        old = self.images.pop(key, None)
        self.images[key] = HeldImage(fd, path, digest)
        if old is not None:
            close_all([old.fd])

    def _take_unimage(self, fields: Record, _message: Message) -> None:
        held = self.images.pop(_text(fields, "key"), None)
        if held is not None:
            close_all([held.fd])

    def _take_peer(self, fields: Record, message: Message) -> None:
        key, roles, record = _text(fields, "key"), fields["roles"], fields["record"]
        if not isinstance(roles, list) or not isinstance(record, dict | None):
            raise TypeError("roles or record")
        if len(set(roles)) != len(roles) or not set(roles) <= set(PEER_FDS):
            raise ValueError("roles")
        held = HeldPeer(
            dict(zip(roles, message.fds, strict=True)), record, int(str(fields["strikes"]))
        )
        message.take_fds()
        old = self.peers.pop(key, None)
        self.peers[key] = held
        if old is not None:
            close_all(list(old.fds.values()))

    def _take_gone(self, fields: Record, _message: Message) -> None:
        held = self.peers.pop(_text(fields, "key"), None)
        if held is not None:
            if (held.record or {}).get("restore") and "userfaultfd" in held.fds:
                self.released.add(os.fstat(held.fds["userfaultfd"]).st_ino)
            close_all(list(held.fds.values()))

    def _take_warden(self, fields: Record, message: Message) -> None:
        key = _text(fields, "key")
        page, sock = message.fds
        message.take_fds()
        self.forget_warden(key)
        self.wardens[key] = HeldWarden(page, sock)

    def _take_unwarden(self, fields: Record, _message: Message) -> None:
        self.forget_warden(_text(fields, "key"))

    def forget_warden(self, key: str) -> None:
        """Close what it is asked by; for those that own that."""
        if (held := self.wardens.pop(key, None)) is not None:
            close_all([held.page, held.socket])

    def _take_trial(self, fields: Record, _message: Message) -> None:
        peer = fields["peer"]
        self.trial = None if peer is None else str(peer)

    def _take_leaving(self, _fields: Record, _message: Message) -> None:
        self.is_leaving = True


_TAKE = {
    "options": Holdings._take_options,
    "promotions": Holdings._take_promotions,
    "listener": Holdings._take_listener,
    "unlisten": Holdings._take_unlisten,
    "image": Holdings._take_image,
    "unimage": Holdings._take_unimage,
    "peer": Holdings._take_peer,
    "gone": Holdings._take_gone,
    "trial": Holdings._take_trial,
    "leaving": Holdings._take_leaving,
    "warden": Holdings._take_warden,
    "unwarden": Holdings._take_unwarden,
}


def _text(fields: Record, name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def listener_message(key: str, held: HeldListener) -> Message:
    """Says that a socket listens."""
    identity = None if held.identity is None else list(held.identity)
    fields: Record = {"key": key, "path": held.path, "identity": identity, "kind": held.kind}
    return Message("listener", fields, [held.fd])


def image_message(key: str, held: HeldImage) -> Message:
    """Says that an image is open."""
    fields: Record = {"key": key, "path": held.path, "digest": held.digest}
    return Message("image", fields, [held.fd])


def warden_message(key: str, held: HeldWarden) -> Message:
    """Says where a warden is asked."""
    return Message("warden", {"key": key}, [held.page, held.socket])


def peer_message(key: str, held: HeldPeer) -> Message:
    """Says that somebody has connected, or is about to be served."""
    fields: Record = {
        "key": key,
        "record": held.record,
        "roles": list(held.fds),
        "strikes": held.strikes,
    }
    return Message("peer", fields, list(held.fds.values()))
