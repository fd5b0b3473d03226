"""What pickles in images call to make objects over their buffers: see `_pickle`.

These functions stand in pickles by their names. So none can be renamed, moved, or take arguments
otherwise than here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ._extras import require

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ARRAYS = "an array of this pickle"
_TENSORS = "a tensor of this pickle"


def make_array(buffer: Buffer, dtype: Any, shape: tuple[int, ...], order: Literal["C", "F"]) -> Any:
    """A numpy array over a buffer; it is as writable as that is."""
    numpy = require("numpy", "numpy", _ARRAYS)
    return numpy.frombuffer(buffer, numpy.uint8).view(dtype).reshape(shape, order=order)


def make_view(array: Any, kind: type) -> Any:
    """An array as one of a subclass of numpy's."""
    return array.view(kind)


def make_masked(data: Any, mask: Any, fill_value: Any, is_hard: bool) -> Any:
    """A masked array of numpy's."""
    numpy = require("numpy", "numpy", _ARRAYS)
    return numpy.ma.MaskedArray(data, mask, fill_value=fill_value, hard_mask=is_hard)


def make_storage(buffer: Buffer) -> Any:
    """The memory of torch's tensors, over a buffer."""
    torch = require("torch", None, _TENSORS)
    if not len(memoryview(buffer)):
        return torch.UntypedStorage(0)
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def make_typed_storage(storage: Any, dtype: Any) -> Any:
    """The same with a type, as torch's own functions that make tensors want it."""
    torch = require("torch", None, _TENSORS)
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
