"""What a session writes of the clusters that were touched in it: `restore(..., record=PATH)`."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from ._core import Core
from ._paths import absolute
from ._workingset import WorkingSet, keep_apart

if TYPE_CHECKING:
    from ._open import Image


class Recording:
    """A working set in the making. Holds the core, and never a session or region."""

    def __init__(self, core: Core, path: str | os.PathLike[str]) -> None:
        # Also where the program is by the time it is written.
        self.path = absolute(os.fsdecode(path))
        self._core = core
        self._owner = os.getpid()
        self._is_saved = False

    def save(self, path: str | os.PathLike[str] | None) -> WorkingSet:
        """Write what was touched so far; see Session.save_working_set."""
        is_own = os.getpid() == self._owner
        if path is None and not is_own:
            raise ValueError(
                "this process is a forked child of the one that records: give a path of its own"
            )
        if path is not None:
            keep_apart(path, (self._core.image.path,))
        found = self.working_set()
        found.save(self.path if path is None else path)
        self._is_saved = self._is_saved or path is None
        return found

    def working_set(self) -> WorkingSet:
        """What was touched so far."""
        image = self._core.image
        clusters, times_us = self._core.touched()
        return WorkingSet(image.digest, image.cluster_size, image.cluster_count, clusters, times_us)

    def finish(self) -> None:
        """Write it at the end, unless it was written on demand, or this is a forked child."""
        if self._is_saved or os.getpid() != self._owner:
            return
        try:
            self.save(None)
        except OSError as error:
            warnings.warn(
                f"the working set cannot be written: {error}: nothing was recorded",
                RuntimeWarning,
                stacklevel=2,
            )


def check_target(path: str | os.PathLike[str], image: Image) -> None:
    """Find out early that a file cannot be written there, as far as that can be known.

    Raises:
        OSError: there is no such folder, or it is not writable.
        ValueError: it is the image.
    """
    import errno

    keep_apart(path, (image.path,))

    name = absolute(os.fsdecode(path))
    folder = os.path.dirname(name)
    os.stat(folder)
    if os.path.isdir(name):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
