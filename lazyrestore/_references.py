"""Regions and sessions as references: what pickle makes of them, and what it makes them from.

A reference is the image's path and content digest, the arguments of `restore`, and a region's name.
A process restores such an image once, for all references to it that it unpickles, in the way in
which it was restored where they were pickled. It goes on until nothing uses a region of it. Only
what is started to do others' tasks, one after another, keeps it for the next task.
"""

from __future__ import annotations

import os
import sys
import weakref
from _thread import RLock
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ._open import Image
from ._paths import absolute
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

# Of images that a worker process keeps, the last to be used: a task may have two, and memory is
# what they cost.
_KEPT_MAX = 2


class _Shared:
    """A session of this process, for all references to an image.

    Attributes:
        session: it.
        mapped: names of regions that were mapped: each can be only once in a session.
        keeps: it is a worker's: regions stay as long as the session. Otherwise a region holds the
            session, and not it them: without users both are gone at once.
    """

    def __init__(self, session: Session, keeps: bool) -> None:
        self.session = session
        self.mapped = set(session._regions)
        self.keeps = keeps
        if session._make is not None and not keeps:
            session._regions = weakref.WeakValueDictionary()

    def find(self, name: str) -> Region | PlacedRegion | None:
        """The region; None where it was mapped and is closed, or its last user has just gone."""
        with MAPPING:
            region = self.session._regions.get(name)
            if region is None and name not in self.mapped:
                region = self.session[name]
                self.mapped.add(name)
            if region is None or region.closed:
                return None
            if not self.keeps:
                region._keeper = self
            return region


class _Reference(NamedTuple):
    """What stands in a pickle.

    Attributes:
        path: absolute.
        digest: of the content, in hexadecimal.
        arguments: of `restore`, those that are not the default.
    """

    path: str
    digest: str
    arguments: dict[str, Any]

    @property
    def key(self) -> tuple[object, ...]:
        return (self.path, self.digest, *sorted(self.arguments.items()))


# By the key of their references. A forked child goes on with what it inherits.
_sessions: weakref.WeakValueDictionary[tuple[object, ...], _Shared] = weakref.WeakValueDictionary()
_kept: list[_Shared] = []

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


def to_session(image: object, names: Iterable[str] | None) -> tuple[Any, ...]:
    """What pickle has for a session of the regions of these names, None: of all."""
    return _session, (*_identify(image), _listed(names))


def to_arrays(image: object, names: Iterable[str] | None, mode: str) -> tuple[Any, ...]:
    """What pickle has for what `load` returned."""
    return _arrays, (*_identify(image), _listed(names), mode)


def _listed(names: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _identify(image: object) -> _Reference:
    if not isinstance(image, Image):
        raise TypeError(
            "a region that a service serves cannot be pickled: call lazyrestore.attach where it is"
            " needed"
        )
    path = absolute(os.fsdecode(image.path), image.folder)
    arguments = dict(image.restored_with or {})
    working_set = arguments.get("working_set")
    if isinstance(working_set, (str, bytes, os.PathLike)) and working_set != "auto":
        arguments["working_set"] = absolute(os.fsdecode(working_set), image.folder)
    elif working_set is not False:
        # Also of a WorkingSet, which would make the reference as large as itself: where there is
        # no file of it, what it is for is loaded when touched.
        path_of_it = getattr(working_set, "path", None)
        arguments["working_set"] = absolute(path_of_it) if path_of_it else None
    told = {key: value for key, value in arguments.items() if value != _DEFAULTS[key]}
    return _Reference(path, image.digest, told)


def _restored(reference: _Reference, instead_of: _Shared | None = None) -> _Shared:
    """The session that all references to an image share in this process.

    Raises:
        ImageError: the image has changed.
    """
    with _lock:
        shared = _sessions.get(reference.key)
        if shared is None or shared is instead_of:
            shared = _sessions[reference.key] = _Shared(_restore(reference), _is_worker())
        if shared.keeps:
            _kept[:] = [one for one in _kept if one not in (shared, instead_of)][1 - _KEPT_MAX :]
            _kept.append(shared)
        return shared


def _is_worker() -> bool:
    """Whether this process was started by multiprocessing, joblib or dask, for tasks to come."""
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


def _restore(reference: _Reference) -> Session:
    from ._core import Serving
    from ._restore import map_image, remember

    path, digest, arguments = reference
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
    return map_image(image, serving=serving, on_demand=True, **others)


def _find(reference: _Reference, name: str, shared: _Shared) -> Region | PlacedRegion:
    while (region := shared.find(name)) is None:
        shared = _restored(reference, instead_of=shared)
    return region


def _region(path: str, digest: str, arguments: dict[str, Any], name: str) -> Region | PlacedRegion:
    reference = _Reference(path, digest, arguments)
    return _find(reference, name, _restored(reference))


def _session(
    path: str, digest: str, arguments: dict[str, Any], names: Sequence[str] | None
) -> Session:
    """A session of its own, of regions that are all references' to it."""
    reference = _Reference(path, digest, arguments)
    shared = _restored(reference)
    session = shared.session
    image = session._open_image()

    def make(number: int) -> Region | PlacedRegion:
        return _find(reference, image.regions[number].name, shared)

    return Session(
        image,
        session._core,
        {},
        session._waited,
        working_set=session.working_set,
        names=names,
        make=make,
        is_shared=True,
    )


def _arrays(
    path: str, digest: str, arguments: dict[str, Any], names: Sequence[str] | None, mode: str
) -> Arrays:
    from ._load import Arrays

    return Arrays(_session(path, digest, arguments, names), mode)
