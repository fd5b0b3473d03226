"""What becomes of an object that is pickled: a small pickle, and buffers as regions of an image."""

from __future__ import annotations

import ctypes
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from . import _rebuild
from .format import PLANES_WIDTHS
from .reports import Skipped
from .sources.base import Sink
from .sources.buffer import Piece

if TYPE_CHECKING:
    import numpy
    from typing_extensions import Buffer

    Array = numpy.ndarray[Any, Any]
    Reduced = str | tuple[Any, ...]

PROTOCOL = 5
PICKLE = "pickle"
"""The region with the pickle, and the key of what its metadata says."""

OUT_OF_BAND_BYTES = 16 << 10
"""Buffers from this length on lie outside of the pickle. Smaller ones cost less where they are."""

SINGLE_MAX = 512
"""Where there are more buffers, the smaller ones share regions: each region is a mapping, of which
a process can have 65,530, and takes its time to make."""
SHARED_BYTES_MAX = 1 << 20  # what is longer is a region of its own in any case
_PACK_BYTES = 64 << 20
ALIGNMENT = 64  # of buffers that share a region: what Arrow's have, and as long as a cache line


def buffer_name(number: int) -> str:
    """The name of the region that has one buffer; they count in the order of the pickle."""
    return f"buffer-{number}"


def pack_name(number: int) -> str:
    """The name of a region that several buffers share."""
    return f"shared-{number}"


class Pickled:
    """A source: a pickle and its buffers.

    Args:
        stream: the pickle.
        buffers: of it, in its order.
        kind: of the object.
    """

    def __init__(self, stream: memoryview, buffers: list[Piece], kind: type) -> None:
        self.skipped: list[Skipped] = []
        self.frozen_us: int | None = None
        self._kind = kind
        self._head = Piece(PICKLE, stream)
        self._head.address = 0  # it was nowhere that matters
        self._singles, self._packs = _sort(buffers)
        described: dict[str, object] = {"protocol": PROTOCOL, "buffers": len(buffers)}
        if self._packs:
            described["shared"] = [pack.describe() for pack in self._packs]
        self._head.metadata[PICKLE] = described

    def describe(self) -> str:
        """What was pickled."""
        return f"pickle of a {self._kind.__module__}.{self._kind.__qualname__}"

    def total_bytes(self) -> int | None:
        """Length of all regions."""
        alone = sum(len(piece.view) for piece in (self._head, *self._singles))
        return alone + sum(pack.length for pack in self._packs)

    def check(self, target: str) -> None:
        """Nothing can be wrong with a target."""

    def write_to(self, sink: Sink) -> None:
        """Write all regions."""
        for piece in (self._head, *self._singles):
            sink.add_region(
                piece.name,
                address=piece.address,
                protection=piece.protection,
                metadata=piece.metadata,
                width=piece.width,
            )
            for part in piece.parts():
                sink.write_stable(part)
        for number, pack in enumerate(self._packs):
            sink.add_region(pack_name(number), width=pack.width)
            pack.write_to(sink)


class _Pack:
    """Buffers that share a region, each from a multiple of ALIGNMENT on.

    Attributes:
        width: of all their numbers.
        length: of the region.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.length = 0
        self._buffers: list[tuple[int, Piece]] = []

    def add(self, number: int, piece: Piece) -> None:
        self._buffers.append((number, piece))
        self.length += aligned(len(piece.view))

    def describe(self) -> dict[str, object]:
        """Which buffers, and their lengths, in the order in which they lie."""
        return {
            "buffers": [number for number, _ in self._buffers],
            "bytes": [len(piece.view) for _, piece in self._buffers],
        }

    def write_to(self, sink: Sink) -> None:
        for _, piece in self._buffers:
            for part in piece.parts():
                sink.write(part)
            sink.zero(aligned(len(piece.view)) - len(piece.view))


def aligned(nbytes: int) -> int:
    """What a buffer of so many bytes takes in a region that it shares."""
    return nbytes + -nbytes % ALIGNMENT


def _sort(buffers: Iterable[Piece]) -> tuple[list[Piece], list[_Pack]]:
    """Which are regions of their own, and which share some."""
    pieces = list(buffers)
    if len(pieces) <= SINGLE_MAX:
        return pieces, []
    singles: list[Piece] = []
    packs: list[_Pack] = []
    filling: dict[int, _Pack] = {}
    for number, piece in enumerate(pieces):
        if len(piece.view) > SHARED_BYTES_MAX:
            singles.append(piece)
            continue
        pack = filling.get(piece.width)
        if pack is None or pack.length + len(piece.view) > _PACK_BYTES:
            pack = filling[piece.width] = _Pack(piece.width)
            packs.append(pack)
        pack.add(number, piece)
    return singles, packs


class Collector:
    """Takes the buffers out of an object's pickle while that is made.

    Attributes:
        pieces: the buffers, in the pickle's order.
    """

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._known: dict[int, tuple[pickle.PickleBuffer, object, int]] = {}
        self._widths: dict[int, int] = {}  # of torch's storages, by their address

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """The pickler has reached a buffer: True if it is to stay in the pickle."""
        with memoryview(buffer) as view:
            if view.nbytes < OUT_OF_BAND_BYTES or not view.contiguous:
                return True  # with gaps: the pickler refuses it
            width = _width(view)
        _, data, width = self._known.get(id(buffer), (buffer, None, width))
        self.pieces.append(_piece(buffer_name(len(self.pieces)), buffer, data, width))
        return False

    def reducers(self) -> dict[type, Callable[[Any], Reduced]]:
        """How to pickle what would not have its memory out of band, or not all of it.

        Of packages that are imported: of any other there is no object. numpy's own way leaves in
        the pickle what is not contiguous, of a subclass, or of a type that the buffer protocol does
        not know (dates, bfloat16); torch's all there is.
        """
        made: dict[type, Callable[[Any], Reduced]] = {}
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            made[numpy.ndarray] = made[numpy.memmap] = self._reduce_array
            made[numpy.recarray] = made[numpy.matrix] = self._reduce_view
            made[numpy.ma.MaskedArray] = self._reduce_masked
        storage = sys.modules.get("torch.storage")
        if storage is not None:
            made[sys.modules["torch"].Tensor] = self._reduce_tensor
            made[storage.TypedStorage] = self._reduce_typed_storage
            made[storage.UntypedStorage] = self._reduce_storage
        return made

    def _buffer(self, memory: Buffer, data: object, width: int) -> pickle.PickleBuffer:
        """A PickleBuffer of which `take` shall know more than its bytes."""
        buffer = pickle.PickleBuffer(memory)
        self._known[id(buffer)] = buffer, data, width  # kept, so that no other has its id
        return buffer

    # ---- numpy -----------------------------------------------------------------------------------

    def _reduce_array(self, array: Array) -> Reduced:
        if not _is_large(array):
            return array.__reduce_ex__(PROTOCOL)
        import numpy

        plain = array.view(numpy.ndarray)
        if not (plain.flags.c_contiguous or plain.flags.f_contiguous):
            plain = plain.copy()
            plain.flags.writeable = array.flags.writeable
        order = "C" if plain.flags.c_contiguous else "F"
        flat: Any = (plain if order == "C" else plain.T).reshape(-1).view(numpy.uint8)
        buffer = self._buffer(flat, plain, 0)
        return _rebuild.make_array, (buffer, array.dtype, array.shape, order)

    def _reduce_view(self, array: Array) -> Reduced:
        if not _is_large(array):
            return array.__reduce_ex__(PROTOCOL)
        import numpy

        return _rebuild.make_view, (array.view(array.dtype, numpy.ndarray), type(array))

    def _reduce_masked(self, array: Any) -> Reduced:
        if not _is_large(array):
            reduced: Reduced = array.__reduce_ex__(PROTOCOL)
            return reduced
        return _rebuild.make_masked, (array.data, array.mask, array._fill_value, array.hardmask)

    # ---- torch -----------------------------------------------------------------------------------

    def _reduce_tensor(self, tensor: Any) -> Reduced:
        """As torch does. What it makes of the newer types (float8 and the like) only torch.load can
        load: the function is given a storage without a type, and wants one with a type.
        """
        reduced: Reduced = tensor.__reduce_ex__(PROTOCOL)
        if not isinstance(reduced, tuple) or reduced[0].__name__ != "_rebuild_tensor_v3":
            return reduced
        rebuild, (untyped, *arguments), *state = reduced
        storages = sys.modules["torch.storage"]
        typed = storages.TypedStorage(wrap_storage=untyped, dtype=tensor.dtype, _internal=True)
        return rebuild, (typed, *arguments), *state

    def _reduce_typed_storage(self, storage: Any) -> Reduced:
        untyped = storage._untyped_storage
        if untyped.device.type != "cpu":
            reduced: Reduced = storage.__reduce_ex__(PROTOCOL)
            return reduced
        dtype = storage.dtype
        width = dtype.itemsize // (2 if dtype.is_complex else 1)
        self._widths.setdefault(untyped.data_ptr(), width)
        # Tensors that share memory have one untyped storage (since torch 2.1): it is pickled once.
        return _rebuild.make_typed_storage, (untyped, dtype)

    def _reduce_storage(self, storage: Any) -> Reduced:
        if storage.device.type != "cpu":
            reduced: Reduced = storage.__reduce_ex__(PROTOCOL)
            return reduced
        address, nbytes = storage.data_ptr(), storage.nbytes()
        width = self._widths.get(address, 0)
        memory: Any = bytearray()
        if nbytes:
            memory = (ctypes.c_ubyte * nbytes).from_address(address)
            memory.storage = storage  # whose memory it is
        return _rebuild.make_storage, (self._buffer(memory, None, width),)


def _is_large(array: Array) -> bool:
    """Whether an array has a buffer that is worth a region."""
    return array.nbytes >= OUT_OF_BAND_BYTES and not array.dtype.hasobject


def _piece(name: str, buffer: pickle.PickleBuffer, data: object, width: int) -> Piece:
    """A region of a buffer, described as the array that it is where that can be."""
    if data is not None:
        try:
            return Piece(name, data, warns=False)  # the pickle has all of its dtype
        except TypeError:  # an array of a type that has no description
            pass
    piece = Piece(name, buffer.raw())
    piece.width = width if width in PLANES_WIDTHS else 0
    return piece


def _width(view: memoryview) -> int:
    """Bytes of each of the numbers in a buffer, if its format says it; else 0."""
    kind = view.format.lstrip("@=<>!")
    if kind in ("Zf", "Zd"):  # complex: two numbers
        return view.itemsize // 2
    return view.itemsize if len(kind) == 1 else 0


def places(described: dict[str, object], lengths: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Where each buffer is, in the pickle's order: region, offset, length.

    Args:
        described: what the metadata of the pickle's region says.
        lengths: of the regions, by their names.

    Raises:
        ValueError, TypeError, KeyError, ...: it cannot be.
    """
    count = described["buffers"]
    packs: Any = described.get("shared", [])
    if type(count) is not int or count < 0:
        raise ValueError("the number of buffers is none")
    shared: dict[int, tuple[str, int, int]] = {}
    for number, pack in enumerate(packs):
        offset = 0
        for buffer, nbytes in zip(pack["buffers"], pack["bytes"], strict=True):
            if type(buffer) is not int or type(nbytes) is not int or nbytes < 0:
                raise ValueError("a buffer's place is not numbers")
            shared[buffer] = pack_name(number), offset, nbytes
            offset += aligned(nbytes)
        if offset != lengths[pack_name(number)]:
            raise ValueError("buffers do not fill the region that they share")
    # Each is there, so that no more are made than there are.
    if count != len(shared) + sum(name.startswith("buffer-") for name in lengths):
        raise ValueError("it is another number of buffers")
    for number in range(count):
        if number in shared:
            yield shared[number]
        else:
            yield buffer_name(number), 0, lengths[buffer_name(number)]
