"""Restoring an image into this process: `lazyrestore.restore`."""

from __future__ import annotations

import contextlib
import mmap
import os
import warnings
from array import array
from functools import partial
from typing import TYPE_CHECKING, Literal

from ._core import Core, Serving
from ._open import Image
from .errors import KernelError, WorkingSetError
from .region import PlacedRegion, Region, placed_region
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._recording import Recording
    from ._workingset import WorkingSet

    WorkingSetChoice = str | os.PathLike[str] | WorkingSet | bool | None

_PREFETCH = ("none", "auto", "all")
_REPLAY = ("before", "beside")


def restore(
    path: str | os.PathLike[str],
    *,
    lazy: bool | Literal["auto"] = "auto",
    prefetch: str = "auto",
    privilege: str = "full",
    on_error: str = "fence",
    granularity: str = "cluster",
    fault_mode: str = "thread",
    at_original_address: bool = False,
    threads: int | None = None,
    trace: int = 0,
    record: str | os.PathLike[str] | None = None,
    working_set: WorkingSetChoice = None,
    replay: str = "before",
) -> Session:
    """Restore an image's regions into this process.

    Args:
        path: the image.
        lazy: True: map the regions empty and load each page when it is first touched, or raise.
            False: decode everything now, on all cores. "auto": lazily where the kernel allows it,
            else now, with one RuntimeWarning that says what to change.
        prefetch: what to load ahead of touches: "none"; "auto": where there is a working set, that
            one and then the rest, in the background, at the lowest priority, as far as memory
            limits allow (`Session.wait`), and nothing where there is none; "all": everything, the
            working set first. `populate` of a region loads any range at any time.
        privilege: "full": faults of system calls on a region are served too. "user-mode-only":
            needs no right on any kernel since 5.11, but system calls on missing pages fail with
            EFAULT or stop short, unless they were populated. "auto": full, else user-mode-only.
        on_error: what becomes of pages that cannot be loaded, because the image is damaged, was
            changed or cannot be read. "fence": a touch raises SIGBUS (SIGSEGV before Linux 6.6), a
            system call fails with EFAULT, `Session.errors` says why; a cluster is read again by
            `populate`, which raises. "abort": the process ends with a message and SIGABRT.
        granularity: what a touch brings. "cluster": all of the page's cluster, for the fewest
            faults. "page": that page alone, for the smallest resident set; each then decodes its
            cluster again, unless it was the last one.
        fault_mode: who answers a fault. "thread": a thread of the library's, which has to be woken.
            "inline": the thread that touched, in a handler of SIGBUS, several times as fast; it
            needs no right. Only for programs that never hand pages which are not there to system
            calls: these fail with EFAULT or stop short, with any `privilege`, unless the pages were
            populated. Nor may a thread that touches them block SIGBUS: that kills. A handler of
            SIGBUS that the program puts in place later gets these faults instead.
        at_original_address: map each region where it was when it was dumped. Only page-aligned
            regions; nothing is ever replaced.
        threads: decode on so many threads where everything is decoded now; None: one a core.
        trace: keep up to so many faults for `Session.read_trace` (rounded up to a power of two).
        record: write which clusters are touched to this file, as a working set: when the session
            ends, or when `Session.save_working_set` is called. Nothing is loaded ahead then, for
            what is there already is not seen to be touched. Nothing is written where the image was
            restored eagerly.
        working_set: what to load first: a file, a WorkingSet, None (or "auto"): the file beside
            the image with `.ws` appended, if it is there; False: none. One that is found there and
            cannot be used gives a RuntimeWarning.
        replay: "before": `restore` returns when the working set is loaded; "beside": at once, and
            it is loaded while the program runs, at the lowest priority.

    Returns:
        A Session: a mapping from names to regions, in dump order, and a context manager.

    Raises:
        OSError: the image is not there or cannot be read.
        ImageError: it is damaged, cut short, or not an image.
        WorkingSetError: `working_set` is damaged, or another image's.
        ClusterError: with lazy=False, a cluster is damaged.
        KernelError: userfaultfd is not allowed or lacks something (lazy=True), or an original
            address is taken.
        ValueError: an argument is none of those above.
    """
    check_ahead(lazy, prefetch)
    if replay not in _REPLAY:
        raise ValueError(f"replay is {replay!r}: it can be {', '.join(map(repr, _REPLAY))}")
    serving = Serving(privilege, on_error, granularity, trace, record is not None, fault_mode)
    image = Image(path)
    remember(
        image,
        {
            "lazy": lazy,
            "prefetch": prefetch,
            "privilege": privilege,
            "on_error": on_error,
            "granularity": granularity,
            "fault_mode": fault_mode,
            "at_original_address": at_original_address,
            "working_set": working_set,
            "replay": replay,
        },
    )
    return map_image(
        image,
        lazy=lazy,
        prefetch=prefetch,
        serving=serving,
        at_original_address=at_original_address,
        threads=threads,
        record=record,
        working_set=working_set,
        replay=replay,
    )


def check_ahead(lazy: object, prefetch: object) -> None:
    """See that these arguments of `restore` are what they can be, else ValueError."""
    if lazy not in (True, False, "auto"):
        raise ValueError(f"lazy is {lazy!r}: it can be True, False or 'auto'")
    if prefetch not in _PREFETCH:
        raise ValueError(f"prefetch is {prefetch!r}: it can be {', '.join(map(repr, _PREFETCH))}")


def remember(image: Image, arguments: dict[str, object]) -> None:
    """Note how an image is restored, and where its path begins, for references to its regions."""
    image.restored_with = arguments
    if not os.path.isabs(image.path):
        with contextlib.suppress(OSError):
            image.folder = os.getcwd()


def map_image(
    image: Image,
    *,
    lazy: bool | Literal["auto"] = "auto",
    prefetch: str = "auto",
    serving: Serving = Serving(),  # noqa: B008 (it is frozen)
    at_original_address: bool = False,
    threads: int | None = None,
    record: str | os.PathLike[str] | None = None,
    working_set: WorkingSetChoice = None,
    replay: str = "before",
    only: str | Sequence[str] | None = None,
    on_demand: bool = False,
) -> Session:
    """The second half of `restore`, with the same arguments. The session takes the image over.

    With `only`, the region of that name is restored, or those of these names, and not all.
    With `on_demand`, regions are mapped when they are first asked for, where nothing is filled.
    """
    _check_choice(record, lazy, prefetch, working_set)
    if record is not None:
        from ._recording import check_target

        check_target(record, image)
    chosen = _choose_working_set(image, lazy, prefetch, record, working_set)
    names = (only,) if isinstance(only, str) else only
    wanted = None if names is None else [image.number(name) for name in names]
    core = _open_core(image, lazy, serving)
    waited = array("I")
    make = partial(_map_region, image, core, waited, at_original_address)
    if on_demand and not (core is None or chosen or prefetch == "all" or at_original_address):
        recording = _begin_recording(core, record)
        return Session(image, core, {}, waited, recording, names=names, make=make)
    regions: dict[str, Region | PlacedRegion] = {}
    for number in range(len(image.regions)) if wanted is None else wanted:
        region = make(number)
        regions[region.name] = region
    if core is None:
        from ._decode import decode_regions

        buffers = {image.number(name): region for name, region in regions.items()}
        decode_regions(image, buffers, threads=threads)
        chosen = None
    elif chosen is not None:
        core.fill(chosen, is_awaited=replay == "before")
        if replay == "before":
            core.wait_first(None)
    elif prefetch == "all":
        core.fill()
    recording = _begin_recording(core, record)
    return Session(image, core, regions, waited, recording, chosen, names=names)


def _map_region(
    image: Image, core: Core | None, waited: array[int], at_original_address: bool, number: int
) -> Region | PlacedRegion:
    length = image.region(number).length
    region: Region | PlacedRegion
    if at_original_address and length:
        region = _place(image, number)
    else:
        region = Region(length) if length else placed_region(0, 0)
    region._begin(image, core, number, waited)
    if core is not None and length:
        core.attach(number, region.address)
    return region


def _check_choice(
    record: object, lazy: bool | str, prefetch: str, working_set: WorkingSetChoice
) -> None:
    if record is None:
        if prefetch == "none" and not _is_automatic(working_set) and working_set is not False:
            raise ValueError(
                "prefetch is 'none', and so no working set is loaded: leave out one of the two"
            )
        return
    if not lazy:
        raise ValueError("record needs a lazy restore: leave out lazy=False")
    if prefetch == "all" or (not _is_automatic(working_set) and working_set is not False):
        raise ValueError(
            "record cannot see touches of what was loaded ahead: leave out prefetch and working_set"
        )


def _is_automatic(working_set: WorkingSetChoice) -> bool:
    return working_set is None or (isinstance(working_set, str) and working_set == "auto")


def _choose_working_set(
    image: Image,
    lazy: bool | str,
    prefetch: str,
    record: object,
    working_set: WorkingSetChoice,
) -> WorkingSet | None:
    if working_set is False or record is not None:
        return None
    if not _is_automatic(working_set):
        from ._workingset import WorkingSet

        if isinstance(working_set, WorkingSet):
            return working_set.check(image)
        if not isinstance(working_set, (str, os.PathLike)):
            raise ValueError(f"working_set is {working_set!r}: it can be a file or a WorkingSet")
        return WorkingSet.load(working_set).check(image)
    # Looked for before what would read it is imported: that takes longer than a restore.
    if not lazy or prefetch == "none" or not os.path.lexists(os.fsdecode(image.path) + ".ws"):
        return None
    from ._workingset import load_beside

    try:
        return load_beside(image)
    except (OSError, WorkingSetError) as error:
        warnings.warn(f"{error}. Restored without it", RuntimeWarning, stacklevel=4)
        return None


def _begin_recording(core: Core | None, record: str | os.PathLike[str] | None) -> Recording | None:
    if core is None or record is None:
        return None
    from ._recording import Recording

    return Recording(core, record)


def _open_core(image: Image, lazy: bool | str, serving: Serving) -> Core | None:
    if not lazy:
        return None
    try:
        return Core(image, serving)
    except KernelError as error:
        if lazy != "auto":
            raise
        message = f"{error}. Restored eagerly instead: all pages were decoded at once"
        if serving.record:
            message += ", and no working set is recorded"
        if serving.privilege == "full" and "userfaultfd" in message:
            from ._doctor import has_only_user_mode

            if has_only_user_mode():
                message += (
                    "; privilege='auto' is lazy here: all but system calls on pages that are not"
                    " there works then"
                )
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
