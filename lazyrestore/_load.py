"""Arrays by their names, for the plain case: `lazyrestore.load`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from ._core import Serving
from ._open import Image
from ._restore import check_ahead, map_image, remember

if TYPE_CHECKING:
    from types import TracebackType

    import numpy

    from .session import Session

    _Array = numpy.ndarray[Any, Any]

_MODES = ("c", "r")


def load(
    path: str | os.PathLike[str],
    *,
    mode: str = "c",
    names: Iterable[str] | None = None,
    lazy: bool | Literal["auto"] = "auto",
    prefetch: str = "auto",
    privilege: str = "full",
) -> Arrays:
    """Restore an image as a mapping from names to numpy arrays.

        with lazyrestore.load("state.lzr") as arrays:
            print(arrays["weights"][0])

    As `numpy.load` of an .npz file, but an array is there at once: what is touched of it is then
    read and decompressed.

    Args:
        path: the image.
        mode: "c": arrays can be written to, which changes neither the image nor what others see;
            "r": they are read-only.
        names: the regions that are wanted; None: all.
        lazy: as of `restore`.
        prefetch: as of `restore`.
        privilege: as of `restore`: with "auto" arrays are lazy also for who has no right to a full
            userfaultfd, but cannot be handed to system calls (`tofile`, sockets) before they are
            populated.

    Returns:
        Arrays: a mapping, in dump order or that of `names`, and a context manager.

    Raises:
        ModuleNotFoundError: numpy is not installed.
        RegionNotFound: there is no region of one of the names.
        OSError: the image is not there or cannot be read.
        ImageError: it is damaged, cut short, or not an image.
        KernelError: userfaultfd is not allowed or lacks something (lazy=True).
        ValueError: an argument is none of those above.
    """
    if mode not in _MODES:
        raise ValueError(
            f"mode is {mode!r}: it can be 'c' (what is written stays private) or 'r'; an image is"
            " never written to, but dumped again"
        )
    if isinstance(names, (str, bytes)):
        raise ValueError(f"names is {names!r}: it is a list of names")
    if sys.modules.get("numpy") is None:
        from ._extras import require

        require("numpy", "numpy", "lazyrestore.load()")
    check_ahead(lazy, prefetch)
    serving = Serving(privilege)
    image = Image(path)
    remember(image, {"lazy": lazy, "prefetch": prefetch, "privilege": privilege})
    only = None if names is None else tuple(dict.fromkeys(names))
    session = map_image(
        image, lazy=lazy, prefetch=prefetch, serving=serving, only=only, on_demand=True
    )
    return Arrays(session, mode)


class Arrays(Mapping[str, "_Array"]):
    """What `lazyrestore.load` returns: name → numpy array, in the order of the dump.

    An array is made when it is first asked for, and kept. A region that was not dumped from an
    array is one of bytes.

    A context manager. Leaving it, or `close`, lets go of the arrays: those that are still used go
    on to the end of their use. It can be pickled, as a reference: see `Region`.

    Attributes:
        session: the session, for `stats`, `errors`, `wait`, and the regions themselves.
        mode: "c" or "r".
    """

    def __init__(self, session: Session, mode: str) -> None:
        self.session = session
        self.mode = mode
        self._kept: dict[str, _Array] = {}

    def __getitem__(self, name: str) -> _Array:
        kept = self._kept.get(name)
        if kept is not None:
            return kept
        array = self.session[name].array(writable=self.mode == "c")
        return self._kept.setdefault(name, array)

    def __contains__(self, name: object) -> bool:
        return name in self.session

    def __iter__(self) -> Iterator[str]:
        return iter(self.session)

    def __len__(self) -> int:
        return len(self.session)

    # Those of a Mapping would load every array, and ask them for their truth.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def close(self) -> None:
        """Let go of all arrays, and of the session; does nothing the second time."""
        self._kept = {}
        self.session.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        from ._references import to_arrays

        return to_arrays(self.session._open_image(), self.session._names, self.mode)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Arrays:
        """Arrays over copies, of what was written too, that are all loaded."""
        from copy import deepcopy

        return Arrays(deepcopy(self.session, memo), self.mode)

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self)) if len(self) <= 8 else f"{len(self)} arrays"
        return f"<lazyrestore.Arrays {self.session.path!r}: {names or 'closed or empty'}>"
