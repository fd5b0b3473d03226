"""Doing for nobody what the first peer would wait for otherwise: imports, threads, memory."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from lazyrestore._core import Core, Serving, serve_state
from lazyrestore.errors import LazyRestoreError

if TYPE_CHECKING:
    from lazyrestore._open import Image

    from .service import Service

_ADDRESS = 1 << 32


async def rehearse(service: Service) -> None:
    """Before anybody is admitted; within the loop. What does not work out is said to nobody."""
    if (image := service.images.held) is not None:
        with contextlib.suppress(OSError, LazyRestoreError):
            await service.image_for("")
        await service.in_thread(_serve_nobody, image)


def _serve_nobody(image: Image) -> None:
    failures = (LazyRestoreError, OSError, ValueError, MemoryError)
    with contextlib.suppress(*failures):
        state = serve_state(image)
        try:
            # Refused, as it is no userfaultfd.
            Core.serve(image, uffd=state, ranges=[(_ADDRESS, 4096, 0, 0)], state=state)
        finally:
            os.close(state)
    with contextlib.suppress(*failures):
        Core(image, Serving()).close()
    with contextlib.suppress(*failures):
        image.read(image.regions[0].name, 0, 1)
