"""Python objects whose large buffers come when they are touched: `dump_pickle`, `load_pickle`.

An object is pickled by protocol 5, with every large buffer out of band: the pickle itself is small,
and each buffer is a region of its own. Loading reads the pickle, and maps the rest empty.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import reprlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from ._content import DEFAULT_LEVEL, BytePlanes
from ._core import Serving
from ._dump import dump
from ._open import Image
from ._pickling import PICKLE, PROTOCOL, Collector, Pickled, places
from ._restore import check_ahead, map_image
from .errors import ImageError
from .reports import DumpReport
from .writer import Progress

if TYPE_CHECKING:
    from .session import Session

__all__ = ["dump_pickle", "load_pickle"]


def dump_pickle(
    obj: object,
    path: str | os.PathLike[str],
    *,
    level: int = DEFAULT_LEVEL,
    cluster_size: int | None = None,
    threads: int | None = None,
    byte_planes: BytePlanes = "auto",
    progress: Progress | None = None,
) -> DumpReport:
    """Pickle an object into an image, with its large buffers in regions of their own.

    What supports protocol 5 of pickle has its memory out of band: numpy arrays, pandas objects,
    estimators of scikit-learn, Arrow's arrays and tables, bytearrays in a `pickle.PickleBuffer`;
    and so have torch's tensors in the CPU's memory. Buffers of less than 16 KiB stay in the pickle,
    as do `bytes` and `str` of any length, which Python cannot make of memory that is there. An
    array that is not contiguous is copied. Tensors that share memory go on sharing it.

    **`load_pickle` runs code that the image names, as every pickle does.** Whoever can change the
    image can have any program run by whoever loads it. For data from elsewhere dump arrays instead.

    Args:
        obj: anything that can be pickled. It must not change meanwhile.
        path: the image.
        level: of zstd, -7 to 22.
        cluster_size: bytes that are compressed together, and loaded at one touch: a power of two
            from 4 KiB to 2 MiB; None: 64 KiB.
        threads: that compress; None: one for each core that this process may use.
        byte_planes: as for `dump`; "auto" goes by the type of the numbers in each buffer.
        progress: called at most 20 times a second with the bytes that are done and their total.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; also TypeError, AttributeError and
            what else the objects' own methods raise.
        ValueError: a setting cannot be.
        OSError: the image cannot be written.
    """
    collector = Collector()
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, PROTOCOL, buffer_callback=collector.take)
    pickler.dispatch_table = copyreg.dispatch_table | collector.reducers()
    pickler.dump(obj)
    source = Pickled(stream.getbuffer(), collector.pieces, type(obj))
    return dump(
        source,
        path,
        level=level,
        cluster_size=cluster_size,
        threads=threads,
        byte_planes=byte_planes,
        progress=progress,
    )


def load_pickle(
    path: str | os.PathLike[str],
    *,
    trusted: bool = False,
    lazy: bool | Literal["auto"] = "auto",
    prefetch: str = "auto",
    privilege: str = "full",
) -> Any:
    """Load an object that `dump_pickle` wrote; its large buffers come when they are touched.

    **Loading a pickle runs code that the image names: any code, with your rights, before anything
    of it can be looked at.** Load only what you, or someone you trust, wrote, from where nobody
    else can write. The image's checksums show damage, not intent: who changes an image makes new
    ones. So `trusted=True` has to be said. `restore` and `load` run nothing of an image.

    Each buffer is private memory: writing to it changes neither the image nor what others load from
    it. One that nothing of the object uses any more is unmapped; the last one lets go of the image.
    What was read-only when it was dumped is so again.

    Args:
        path: the image.
        trusted: True: you know where the image comes from.
        lazy: True: buffers come when they are touched, or raise. False: all is decoded now. "auto":
            lazily where the kernel allows it, else now, with one RuntimeWarning.
        prefetch: as for `restore`: "none", "auto" or "all".
        privilege: as for `restore`: with "auto" lazy also for who has no right to a full
            userfaultfd, but system calls on what is missing fail.

    Raises:
        ValueError: `trusted` is not True, or an argument cannot be.
        OSError: the image is not there or cannot be read.
        ImageError: it is damaged, cut short, not an image, or holds no pickle.
        KernelError: userfaultfd is not allowed (lazy=True).
        ModuleNotFoundError: a module that the object needs is not installed. Any other exception
            may come from the code that the pickle runs.
    """
    if trusted is not True:
        raise ValueError(
            "loading a pickle runs code that the image names: give trusted=True if you know where"
            f" {os.fsdecode(path)} comes from and who could change it; restore() and load() read"
            " memory and arrays, and run nothing"
        )
    check_ahead(lazy, prefetch)
    serving = Serving(privilege)
    image = Image(path)
    found = _find_buffers(image)
    with map_image(image, lazy=lazy, prefetch=prefetch, serving=serving) as session:
        stream: Any = session[PICKLE]
        stream.populate()  # at once, and an exception rather than a signal if it is damaged
        try:
            return pickle.loads(stream, buffers=_buffers(session, found))
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_missing(image.path, error), name=error.name) from error


def _buffers(session: Session, places: Iterable[tuple[str, int, int]]) -> Iterator[memoryview]:
    """The buffers as the pickle asks for them; none is kept here, so that it ends with its user."""
    for name, offset, nbytes in places:
        yield memoryview(session[name])[offset : offset + nbytes]


def _find_buffers(image: Image) -> list[tuple[str, int, int]]:
    """Where the buffers are, in order; ImageError if it is not an image of a pickle."""
    lengths = {info.name: info.length for info in image.regions}
    described = image.metadata(PICKLE).get(PICKLE) if PICKLE in lengths else None
    if not isinstance(described, dict):
        raise ImageError(
            f"{image.path} holds no pickle, or none that dump_pickle wrote: read it with load() or"
            " restore()"
        )
    protocol = described.get("protocol")
    if type(protocol) is not int or protocol > pickle.HIGHEST_PROTOCOL:
        raise ImageError(
            f"{image.path} holds a pickle of protocol {reprlib.repr(protocol)}, and this Python"
            f" knows those up to {pickle.HIGHEST_PROTOCOL}: load it with a newer one"
        )
    try:
        return list(places(described, lengths))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ImageError(
            f"{image.path}: what it says of its pickle's buffers does not fit its regions: take"
            " another copy"
        ) from error


def _missing(path: str, error: ModuleNotFoundError) -> str:
    """That a module is missing which the pickle needs, and what to do."""
    package = (error.name or "").partition(".")[0]
    if package == "numpy":
        remedy = "pip install 'lazyrestore[numpy]'"
    else:
        remedy = "install what it was dumped with, or have Python find it (PYTHONPATH)"
    return f"the pickle in {path} needs {error.name or 'a module'}, which is not there: {remedy}"
