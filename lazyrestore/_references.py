"""Regions and sessions as references: what pickle makes of them, and what it makes them from.

A reference is the image's path and content digest, the arguments of `restore`, and a region's name.
A process restores such an image once, for all references to it that it unpickles, in the way in
which it was restored where they were pickled. It goes on until nothing holds a region of it.
"""

from __future__ import annotations

import os
import weakref
from _thread import RLock
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._open import Image
from .errors import ImageError
from .region import PlacedRegion, Region
from .session import MAPPING, Session

if TYPE_CHECKING:
    from ._load import Arrays

# What `restore` does unless told otherwise is not in a reference.
_DEFAULTS: dict[str, object] = {
    "lazy": "auto",
    "prefetch": "auto",
    "privilege": "full",
    "on_error": "fence",
    "granularity": "cluster",
    "fault_mode": "thread",
    "at_original_address": False,
    "working_set": None,
    "replay": "before",
}
_SERVING = {"privilege", "on_error", "granularity", "fault_mode"}

# By path, digest and arguments. A forked child goes on with what it inherits.
_sessions: weakref.WeakValueDictionary[tuple[object, ...], Session] = weakref.WeakValueDictionary()

# While an image is restored for references to it. That may take its time, and so a fork does not
# wait for it; a child in which nobody is left to let go of it has a new one.
_lock = RLock()


def _renew_lock() -> None:
    global _lock
    _lock = RLock()


os.register_at_fork(after_in_child=_renew_lock)


def to_region(image: object, name: str) -> tuple[Any, ...]:
    """What pickle has for a region."""
    return _region, (*_identify(image), name)


def to_session(image: object, names: Sequence[str] | None) -> tuple[Any, ...]:
    """What pickle has for a session of the regions of these names, None: of all."""
    return _session, (*_identify(image), names)


def to_arrays(image: object, names: Sequence[str] | None, mode: str) -> tuple[Any, ...]:
    """What pickle has for what `load` returned."""
    return _arrays, (*_identify(image), names, mode)


def _identify(image: object) -> tuple[str, str, dict[str, object]]:
    """Path, digest, and arguments of `restore` that are not what they are anyway."""
    if not isinstance(image, Image):
        raise TypeError(
            "a region that a service serves cannot be pickled: call lazyrestore.attach where it is"
            " needed"
        )
    path = os.path.abspath(os.path.join(image.folder, os.fsdecode(image.path)))
    arguments = dict(image.restored_with or {})
    working_set = arguments.get("working_set")
    if isinstance(working_set, (str, bytes, os.PathLike)) and working_set != "auto":
        working_set = os.path.join(image.folder, os.fsdecode(working_set))
        arguments["working_set"] = os.path.abspath(working_set)
    elif working_set is not False:
        # Also of a WorkingSet, which would make the reference as large as itself: where there is
        # no file of it, what it is for is loaded when touched.
        path_of_it = getattr(working_set, "path", None)
        arguments["working_set"] = os.path.abspath(path_of_it) if path_of_it else None
    told = {key: value for key, value in arguments.items() if value != _DEFAULTS[key]}
    return path, image.digest, told


def _restored(path: str, digest: str, arguments: dict[str, Any]) -> Session:
    """The session that all references to an image share in this process.

    Raises:
        ImageError: the image has changed.
    """
    key = (path, digest, *sorted(arguments.items()))
    with _lock:
        session = _sessions.get(key)
        if session is None:
            session = _sessions[key] = _restore(path, digest, arguments)
        return session


def _restore(path: str, digest: str, arguments: dict[str, Any]) -> Session:
    from ._core import Serving
    from ._restore import map_image, remember

    image = Image(path)
    if image.digest != digest:
        raise ImageError(
            f"{path} is another image than when the reference to it was pickled: its digest is"
            f" {image.digest}, that of the reference {digest}: put the old one back, or pickle"
            " again"
        )
    remember(image, arguments)
    serving = Serving(**{key: arguments[key] for key in _SERVING & arguments.keys()})
    others = {key: value for key, value in arguments.items() if key not in _SERVING}
    session = map_image(image, serving=serving, on_demand=True, **others)
    if session._make is not None:
        # Regions hold the session, and not it them: without users both are gone at once.
        session._regions = weakref.WeakValueDictionary()
    return session


def _get(session: Session, name: str) -> Region | PlacedRegion:
    with MAPPING:
        region = session[name]
        if region.closed and session._make is not None:
            del session._regions[name]
            region = session[name]
        region._keeper = session
        return region


def _region(path: str, digest: str, arguments: dict[str, Any], name: str) -> Region | PlacedRegion:
    return _get(_restored(path, digest, arguments), name)


def _session(
    path: str, digest: str, arguments: dict[str, Any], names: Sequence[str] | None
) -> Session:
    """A session of its own, of regions that are all references' to it."""
    shared = _restored(path, digest, arguments)
    image = shared._open_image()

    def make(number: int) -> Region | PlacedRegion:
        return _get(shared, image.regions[number].name)

    return Session(
        image,
        shared._core,
        {},
        shared._waited,
        working_set=shared.working_set,
        names=names,
        make=make,
        is_shared=True,
    )


def _arrays(
    path: str, digest: str, arguments: dict[str, Any], names: Sequence[str] | None, mode: str
) -> Arrays:
    from ._load import Arrays

    return Arrays(_session(path, digest, arguments, names), mode)
