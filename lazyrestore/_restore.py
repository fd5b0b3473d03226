"""Restoring an image into this process: `lazyrestore.restore`."""

from __future__ import annotations

import mmap
import os
import warnings
from array import array
from typing import Literal

from ._core import ON_ERROR, PRIVILEGES, Core
from ._open import Image
from .errors import KernelError
from .region import PlacedRegion, Region, placed_region
from .session import Session

_PREFETCH = ("none", "auto", "all")
_TRACE_MAX = 1 << 24


def restore(
    path: str | os.PathLike[str],
    *,
    lazy: bool | Literal["auto"] = "auto",
    prefetch: str = "auto",
    privilege: str = "full",
    on_error: str = "fence",
    at_original_address: bool = False,
    threads: int | None = None,
    trace: int = 0,
) -> Session:
    """Restore an image's regions into this process.

    Args:
        path: the image.
        lazy: True: map the regions empty and load each page when it is first touched, or raise.
            False: decode everything now, on all cores. "auto": lazily where the kernel allows it,
            else now, with one RuntimeWarning that says what to change.
        prefetch: what to load ahead of touches: "none"; "auto": the recorded working set, where
            there is one (none can be recorded yet, so this too is on demand only); "all":
            everything, in the background, at the lowest priority, as far as memory limits allow
            (`Session.wait`). `populate` of a region loads any range at any time.
        privilege: "full": faults of system calls on a region are served too. "user-mode-only":
            needs no right on any kernel since 5.11, but system calls on missing pages fail with
            EFAULT or stop short, unless they were populated. "auto": full, else user-mode-only.
        on_error: what becomes of pages that cannot be loaded, because the image is damaged, was
            changed or cannot be read. "fence": a touch raises SIGBUS (SIGSEGV before Linux 6.6), a
            system call fails with EFAULT, `Session.errors` says why; a cluster is read again by
            `populate`, which raises. "abort": the process ends with a message and SIGABRT.
        at_original_address: map each region where it was when it was dumped. Only page-aligned
            regions; nothing is ever replaced.
        threads: decode on so many threads where everything is decoded now; None: one a core.
        trace: keep up to so many faults for `Session.read_trace` (rounded up to a power of two).

    Returns:
        A Session: a mapping from names to regions, in dump order, and a context manager.

    Raises:
        OSError: the image is not there or cannot be read.
        ImageError: it is damaged, cut short, or not an image.
        ClusterError: with lazy=False, a cluster is damaged.
        KernelError: userfaultfd is not allowed or lacks something (lazy=True), or an original
            address is taken.
        ValueError: an argument is none of those above.
    """
    if lazy not in (True, False, "auto"):
        raise ValueError(f"lazy is {lazy!r}: it can be True, False or 'auto'")
    if prefetch not in _PREFETCH:
        raise ValueError(f"prefetch is {prefetch!r}: it can be {', '.join(map(repr, _PREFETCH))}")
    if privilege not in PRIVILEGES:
        raise ValueError(
            f"privilege is {privilege!r}: it can be {', '.join(map(repr, PRIVILEGES))}"
        )
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}: it can be {', '.join(map(repr, ON_ERROR))}")
    if not 0 <= trace <= _TRACE_MAX:
        raise ValueError(f"trace is {trace}: it can be from 0 to {_TRACE_MAX}")
    return map_image(
        Image(path),
        lazy=lazy,
        prefetch=prefetch,
        privilege=privilege,
        on_error=on_error,
        at_original_address=at_original_address,
        threads=threads,
        trace=trace,
    )


def map_image(
    image: Image,
    *,
    lazy: bool | Literal["auto"] = "auto",
    prefetch: str = "auto",
    privilege: str = "full",
    on_error: str = "fence",
    at_original_address: bool = False,
    threads: int | None = None,
    trace: int = 0,
    only: str | None = None,
) -> Session:
    """The second half of `restore`, with the same arguments. The session takes the image over.

    With `only`, the one region of that name is restored, and not all.
    """
    wanted = range(len(image.regions)) if only is None else (image.number(only),)
    core = _open_core(image, lazy, privilege, trace, on_error)
    waited = array("I")
    regions: dict[str, Region | PlacedRegion] = {}
    for number in wanted:
        info = image.regions[number]
        region: Region | PlacedRegion
        if at_original_address and info.length:
            region = _place(image, number)
        else:
            region = Region(info.length) if info.length else placed_region(0, 0)
        region._begin(image, core, number, waited)
        if core is not None and info.length:
            core.attach(number, region.address)
        regions[info.name] = region
    if core is None:
        from ._decode import decode_regions

        buffers = {image.number(name): region for name, region in regions.items()}
        decode_regions(image, buffers, threads=threads)
    elif prefetch == "all":
        core.fill()
    return Session(image, core, regions, waited)


def _open_core(
    image: Image, lazy: bool | str, privilege: str, trace: int, on_error: str
) -> Core | None:
    if not lazy:
        return None
    trace_records = 1 << (trace - 1).bit_length() if trace > 0 else 0
    try:
        return Core(image, privilege=privilege, trace_records=trace_records, on_error=on_error)
    except KernelError as error:
        if lazy != "auto":
            raise
        message = f"{error}. Restored eagerly instead: all pages were decoded at once"
        warnings.warn(message, RuntimeWarning, stacklevel=4)
        return None


def _place(image: Image, number: int) -> PlacedRegion:
    info = image.regions[number]
    if not info.address:
        raise ValueError(f"region {info.name!r} has no original address: restore it at any address")
    if info.address % mmap.PAGESIZE:
        raise ValueError(
            f"region {info.name!r} was at {info.address:#x}, which is not page-aligned: only such"
            " regions can go back to their address; restore it at any address"
        )
    try:
        return placed_region(info.length, info.address)
    except KernelError as error:
        raise KernelError(f"region {info.name!r}: {error}") from None
