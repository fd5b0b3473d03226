"""The memory of a restored region: a buffer like any other, whose pages come when touched."""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self, SupportsIndex, cast, overload

from ._core import touch
from ._native import CData, check, ffi, lib, new_problem
from ._open import check_range
from .errors import ImageError, KernelError

if TYPE_CHECKING:
    import numpy
    from typing_extensions import Buffer

    from .reports import RegionInfo

# Without NORESERVE 64 GiB of lazy memory are more than the kernel would commit to.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


_COPY_BYTES = 64 << 20
_ZEROS = bytes(1 << 16)


class _Source(Protocol):
    """What regions need of an image."""

    def region(self, number: int) -> RegionInfo: ...
    def metadata(self, name: str) -> dict[str, object]: ...


class _Loader(Protocol):
    """What regions need of who loads their pages: a `Core`, or a service that was attached to."""

    def populate(self, number: int, offset: int, length: int, timeout: float | None) -> None: ...
    def forget(self, number: int) -> None: ...
    def remember(self, number: int) -> None: ...
    def detach(self, number: int) -> None: ...


class _LazyMemory:
    """What Region and PlacedRegion have in common: their place in the image, and who loads them."""

    _image: _Source
    _core: _Loader | None
    _number: int
    _waited: array[int]
    _end: CData | None = None
    _keeper: object = None  # of a region that was unpickled: the session that it shares
    address: int
    closed: bool

    def _begin(self, image: _Source, core: _Loader | None, number: int, waited: array[int]) -> None:
        self._image = image
        self._core = core
        self._number = number
        self._waited = waited

    @property
    def name(self) -> str:
        """The region's name in the image."""
        return self._image.region(self._number).name

    @property
    def length(self) -> int:
        """Its length in bytes, as it was dumped."""
        return self._image.region(self._number).length

    @property
    def metadata(self) -> dict[str, object]:
        """What its owner wanted kept when it was dumped (dtype and shape of an array, ...)."""
        return self._image.metadata(self.name)

    @property
    def resident_bytes(self) -> int:
        """Private page frames that it costs now. A zero page costs none until it is written."""
        if not self.length:
            return 0
        self._check_open()
        code = lib.lr_memory_get_resident(self.address, self.length)
        return check(code, what=f"cannot look at the memory of region {self.name!r}")

    def array(self, *, writable: bool = True) -> numpy.ndarray[Any, Any]:
        """A numpy array over this memory, with the dtype, shape and order that were dumped.

        A region that was not dumped from an array is one of bytes: uint8, shape (length,). The
        array keeps the region alive.

        Args:
            writable: True: it can be written to; what is written stays private to this process.
                False: writing to it raises, and no array made from it can be made writable. The
                region itself, and its other arrays, can still be written to.

        Raises:
            ModuleNotFoundError: numpy is not installed, or ml_dtypes where the dtype is of those.
            ImageError: the image's metadata do not describe an array of this length.
            ValueError: the region is closed.
        """
        if sys.modules.get("numpy") is None:
            from ._extras import require

            require("numpy", "numpy", "Region.array()")
        from ._arrays import as_array

        self._check_open()
        try:
            return as_array(self, self.length, self.metadata, writable=writable)
        except ImageError:
            self._check_open()  # another thread may have closed it meanwhile
            raise

    def populate(
        self, offset: int = 0, length: int | None = None, timeout: float | None = None
    ) -> None:
        """Load a range now, without the GIL, so that no touch of it waits.

        Makes a range safe for system calls where userfaultfd is user-mode-only. Zero pages are
        installed too, as the kernel's shared zero page.

        Args:
            offset: where to begin, in bytes.
            length: how many bytes; None: to the end.
            timeout: seconds; None: no limit. What is loaded by then stays.

        Raises:
            TimeoutError: it took longer.
            RestoreError: a cluster of it cannot be loaded; it says which. Its pages are fenced.
            ValueError: the range is not within the region, or the region is closed.
        """
        if length is None:
            length = self.length - offset
        check_range(self.name, offset, length, self.length)
        if not self.length:
            return
        self._check_open()
        if self._core is not None:
            self._core.populate(self._number, offset, length, timeout)

    def touch(
        self, count: int | None = None, *, order: str = "sequential", first: int = 0, seed: int = 0
    ) -> int:
        """Read one byte of each of a number of pages, and time it: for measurements.

        `SessionStats.touch_us` has the times of those that faulted.

        Args:
            count: how many pages; None: all.
            order: "sequential", or "random": a permutation of the region's pages.
            first: number of the first page in that order.
            seed: chooses the permutation.

        Returns:
            How many pages were read. Pages that cannot be loaded are left out: `Session.errors`
            has them.

        Raises:
            ValueError: there is no such order, a number is below 0, or the region is closed.
        """
        if order not in ("sequential", "random"):
            raise ValueError(f"order is {order!r}: it can be 'sequential' or 'random'")
        if first < 0 or (count is not None and count < 0):
            raise ValueError(f"first is {first} and count {count}: pages are counted from 0 on")
        if not self.length:
            return 0
        self._check_open()
        if count is None:
            count = (self.length + 4095) // 4096
        return touch(
            self.address,
            self.length,
            order=order,
            first=first,
            count=count,
            seed=seed,
            room=self._waited,
        )

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """A reference: the image's path and digest, and the region's name."""
        from ._references import to_region

        self._check_open()
        return to_region(self._image, self.name)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Region | PlacedRegion:
        """A copy of what is in it now, writes included: all loaded, and of this process alone.

        Raises:
            RestoreError: a cluster of it cannot be loaded.
        """
        self._check_open()
        copy = Region(self.length) if self.length else placed_region(0, 0)
        copy._begin(self._image, None, self._number, array("I"))
        with memoryview(cast("Buffer", self)) as raw, raw.cast("B") as view:
            for at in range(0, self.length, len(_ZEROS)):
                if at % _COPY_BYTES == 0:
                    self.populate(at, min(_COPY_BYTES, self.length - at))
                piece = bytes(view[at : at + len(_ZEROS)])
                if piece != _ZEROS:  # which cost no memory as long as nobody writes them
                    copy[at : at + len(piece)] = piece
        memo[id(self)] = copy
        return copy

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the region is closed: restore the image again")


class Region(_LazyMemory, mmap.mmap):
    """A restored region: an `mmap.mmap`, private and anonymous, of exactly the dumped length.

    Whatever takes a buffer takes it: slices, memoryview, numpy, `readinto`. It cannot be resized.
    It is served until its last view is gone.

    It is pickled as a reference, by the image's path and digest and its own name, and restored
    again where it is unpickled, in the same way; what was written to it does not travel. All that
    a process unpickles of an image shares one session. `pickle.PickleBuffer` of it is its content.

    Attributes:
        address: of its first byte in this process.
    """

    def _begin(self, image: _Source, core: _Loader | None, number: int, waited: array[int]) -> None:
        super()._begin(image, core, number, waited)
        if core is not None:
            self._end = _at_the_end(core.detach, number)

    def __new__(cls, length: int) -> Region:
        """Map empty memory; `lazyrestore.restore` then has it served."""
        return mmap.mmap.__new__(cls, -1, length, flags=_FLAGS)

    def __init__(self, length: int) -> None:
        # Ask for the address once: this view would keep the region from closing while it lives.
        with ffi.from_buffer(self) as view:
            self.address = int(ffi.cast("uintptr_t", view))

    def resize(self, newsize: int) -> None:
        """Refused: a region is as long as what was dumped."""
        raise ValueError("a restored region cannot be resized: copy it to where there is room")

    def has_views(self) -> bool:
        """True if something else uses its memory: an array, a memoryview."""
        if self.closed:
            return False
        try:
            # To the length that it has: changes nothing, but fails where there are views.
            super().resize(len(self))
        except BufferError:
            return True
        except (OSError, ValueError, SystemError):
            return False
        return False

    def close(self) -> None:
        """Unmap it.

        Raises:
            BufferError: there are views of it; nothing is changed.
        """
        if self.closed:
            return
        if self.has_views():
            raise BufferError(
                f"region {self.name!r} has views (arrays, memoryviews): let go of them first"
            )
        # Not suspended first: that lets go of the GIL, and a thread that then reads a byte of it
        # would wait with the GIL for good. The pager is told of the unmapping, and installs nothing
        # there from then on.
        if self._core is not None:
            self._core.forget(self._number)
        try:
            super().close()
        except BufferError:  # another thread has just made a view
            if self._core is not None:
                self._core.remember(self._number)
            raise
        if self._core is not None:
            self._core.detach(self._number)
        self._core = self._end = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.address:#x}"
        return f"<lazyrestore.Region {self.name!r}: {self.length} bytes {state}>"


class PlacedRegion(_LazyMemory):
    """A restored region at the address that it had when it was dumped, or an empty one.

    Has the buffer protocol and the methods of a Region, but is not an mmap: Python's cannot choose
    an address. It cannot tell its views either: closing only lets go of it, and the memory is
    unmapped with the last reference to it or to a view.

    Attributes:
        address: of its first byte in this process; 0 if it is empty.
        closed: True when it was closed.
    """

    closed = False

    if TYPE_CHECKING:

        def __buffer__(self, flags: int, /) -> memoryview: ...

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    def __getitem__(self, key: SupportsIndex | slice) -> int | bytes:
        view = self._view()
        return view[key].tobytes() if isinstance(key, slice) else view[key]

    @overload
    def __setitem__(self, key: SupportsIndex, value: int, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer, /) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None:
        self._view()[key] = value

    def _view(self) -> memoryview:
        self._check_open()
        return memoryview(self).cast("B")  # by ctypes, in `placed_region`

    def close(self) -> None:
        """Let go of the memory. What still uses it, views included, is served to its end."""
        self.closed = True

    def _begin(self, image: _Source, core: _Loader | None, number: int, waited: array[int]) -> None:
        super()._begin(image, core, number, waited)
        if self.length:
            self._end = _at_the_end(_unmap, core, number, self.address, self.length)

    def __repr__(self) -> str:
        return f"<lazyrestore.PlacedRegion {self.name!r}: {self.length} bytes at {self.address:#x}>"


class _End:
    """What is done when it is let go of. Then, and not before, `arguments` are too."""

    def __init__(self, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self._action = action
        self._arguments = arguments

    def __del__(self, _is_over: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _is_over():  # the interpreter's end is that of all memory too
            self._action(*self._arguments)


_ends: dict[weakref.ref[CData], _End] = {}


def _at_the_end(action: Callable[..., None], *arguments: object) -> CData:
    """Something to be kept in a region's `__dict__`: `action` is called when it is let go of.

    That is before the base class unmaps the memory, and after the last line of Python that could
    touch it. A `__del__` would not do: the collector of cycles calls it, and those of the objects
    that the region needs, in any order, while other objects of the cycle still use the memory.
    What cffi allocates is not the collector's. Meanwhile `arguments` are kept alive from outside.

    Where Ctrl-C comes in place of `action`, they are let go of all the same, since none of that is
    Python's code: with `weakref.finalize` they were kept for good.
    """
    token = ffi.new("char *")
    _ends[weakref.ref(token, _ends.pop)] = _End(action, arguments)
    return token


def _unmap(core: _Loader | None, number: int, address: int, length: int) -> None:
    # First: no page may be installed once the memory is gone, the address may be another's then.
    if core is not None:
        core.detach(number)
    lib.lr_memory_unmap(address, length)


def placed_region(length: int, address: int) -> PlacedRegion:
    """Map an empty region at `address`, and give it the buffer protocol.

    A class with that protocol cannot be written in Python before 3.12, but ctypes arrays have it,
    and can lie anywhere: so each placed region is of a class of its own length, made here.

    Raises:
        KernelError: something is at that address already; it says what.
    """
    if length:
        problem = new_problem()
        code = lib.lr_memory_map(address, length, problem)
        if code == lib.LR_ERR_BUSY:
            raise KernelError(_taken(address, length))
        check(code, problem, what=f"cannot map {length} bytes at {address:#x}")
    kind: Any = type("PlacedRegion", (PlacedRegion, ctypes.c_ubyte * length), {})
    region: PlacedRegion = kind.from_address(address) if length else kind()
    region.address = address
    return region


def _taken(address: int, length: int) -> str:
    message = f"cannot map {length} bytes at {address:#x}: that range is taken"
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            if start < address + length and address < end:
                message += f" by {' '.join(line.split())}"
                break
    return f"{message}: restore it at any address, or in a process that has nothing there"
