"""Working sets of peers: one file, or a folder with a file for each.

What CRIU restores in one run is recorded together: clusters are numbered through the image.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from lazyrestore._paths import absolute
from lazyrestore._recording import check_target
from lazyrestore._workingset import SUFFIX, WorkingSet

if TYPE_CHECKING:
    from lazyrestore._open import Image

    from .peer import Peer


class Recordings:
    """Writes what peers touched when they end.

    Args:
        path: None: nothing is written. A folder: `IMAGE.PID.ws` for each peer, or run of CRIU. Else
            a file, which the first that ends gets.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else absolute(path)
        self._lock = threading.Lock()
        self._is_taken = False
        self._runs: dict[int, dict[int, int]] = {}  # by restore: when each cluster was touched

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
            clusters, times_us = core.touched()
        with self._lock:
            if peer.restore:
                self._gather(peer, clusters, times_us)
            else:
                self._write(peer, clusters, times_us, emit)

    def _gather(self, peer: Peer, clusters: array[int], times_us: array[int]) -> None:
        seen = self._runs.setdefault(peer.restore, {})
        for cluster, time_us in zip(clusters, times_us, strict=True):
            at_us = peer.served_us + time_us
            seen[cluster] = min(at_us, seen.get(cluster, at_us))

    def finish(self, peer: Peer, others: Collection[Peer], emit: Callable[..., None]) -> None:
        """Write what was touched in a run of CRIU, if a peer was the last of it."""
        if all(one.restore != peer.restore for one in others):
            with self._lock:
                seen = self._runs.pop(peer.restore, None)
                if seen is not None:
                    clusters = sorted(seen, key=seen.__getitem__)
                    since_us = seen[clusters[0]] if clusters else 0
                    times_us = [seen[cluster] - since_us for cluster in clusters]
                    self._write(peer, array("Q", clusters), array("Q", times_us), emit)

    def _write(
        self,
        peer: Peer,
        clusters: array[int],
        times_us: array[int],
        emit: Callable[..., None],
    ) -> None:
        image = peer.image
        target = self._target(peer)
        if target is None:
            emit(
                "error",
                peer=peer.id,
                pid=peer.pid,
                reason=f"its working set is not written: {self.path} has another's: give --record"
                " a folder",
            )
            return
        found = WorkingSet(
            image.digest, image.cluster_size, image.cluster_count, clusters, times_us
        )
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
