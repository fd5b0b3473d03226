"""Working sets of peers: one file, or a folder with a file for each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lazyrestore._recording import check_target
from lazyrestore._workingset import SUFFIX, WorkingSet

if TYPE_CHECKING:
    from lazyrestore._open import Image

    from .peer import Peer


class Recordings:
    """Writes what peers touched when they end.

    Args:
        path: None: nothing is written. A folder: `IMAGE.PID.ws` for each peer. Else a file, which
            the first peer that ends gets.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else os.path.abspath(path)
        self._lock = threading.Lock()
        self._is_taken = False

    def check(self, image: Image | None) -> None:
        """Find out early that nothing can be written there.

        Raises:
            OSError: there is no such folder, or it is not writable.
            ValueError: it is the image.
        """
        if self.path is None:
            return
        if os.path.isdir(self.path):
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13), self.path)
        elif image is not None:
            check_target(self.path, image)
        else:
            os.stat(os.path.dirname(self.path))

    def save(self, peer: Peer, emit: Callable[..., None]) -> None:
        """Write what a peer touched; from any thread, while its session is there."""
        if self.path is None:
            return
        with peer.using_core() as core:
            if core is None:
                return
            image = core.image
            clusters, times_us = core.touched()
        found = WorkingSet(
            image.digest, image.cluster_size, image.cluster_count, clusters, times_us
        )
        with self._lock:
            target = self._target(peer)
            if target is None:
                emit(
                    "error",
                    peer=peer.id,
                    pid=peer.pid,
                    reason=f"its working set is not written: {self.path} has another's: give"
                    " --record a folder",
                )
                return
            try:
                found.save(target)
            except OSError as error:
                emit("error", peer=peer.id, pid=peer.pid, reason=f"cannot write {target}: {error}")

    def _target(self, peer: Peer) -> str | None:
        assert self.path is not None
        if not os.path.isdir(self.path):
            if self._is_taken:
                return None
            self._is_taken = True
            return self.path
        stem = f"{Path(peer.image.path).stem}.{peer.pid or 'peer'}"
        number = 1
        while True:
            name = stem + (f"-{number}" if number > 1 else "") + SUFFIX
            if not os.path.lexists(target := os.path.join(self.path, name)):
                return target
            number += 1
