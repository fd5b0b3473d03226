"""Make the cffi binding from the public header: cut_cdef.py HEADER BINDING.

The binding is an out-of-line ABI-mode module: it needs no compiler, and no particular Python. Its
cdef is what stands in the header between the two cffi markers, so the two cannot differ. ABI mode
checks no struct layout; instead the binding holds the header's hash, and `lazyrestore._native`
compares it with the one in the library.

Beside BINDING (a .py file) a .pyi file is written with the type of every function and constant,
for mypy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import cffi
from cffi import model

BYTE_TYPES = ("char", "uint8_t")
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"

STUB = '''\
# Made by csrc/cut_cdef.py from csrc/lazyrestore.h.
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, SupportsIndex, overload

from typing_extensions import Buffer

HEADER_HASH: str

class CData:
    """A C value. What its attributes and elements are is known to C only: convert them at once."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    @overload
    def __getitem__(self, index: slice) -> CData: ...
    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Any) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def __int__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __add__(self, other: int) -> CData: ...
    def __hash__(self) -> int: ...
    def __enter__(self) -> CData: ...
    def __exit__(self, *error: object) -> None: ...

class CType:
    @property
    def fields(self) -> Any: ...

_Value = CData  # FFI has an attribute of that name

class FFI:
    NULL: ClassVar[_Value]
    CData: ClassVar[type]
    error: ClassVar[type[Exception]]
    errno: int

    def new(self, cdecl: str, init: Any = ...) -> _Value: ...
    def cast(self, cdecl: str, value: _Value | int) -> _Value: ...
    def gc(self, cdata: _Value, destructor: Callable[[_Value], None]) -> _Value: ...
    def release(self, cdata: _Value) -> None: ...
    def string(self, cdata: _Value, maxlen: int = ...) -> bytes: ...
    def unpack(self, cdata: _Value, length: int) -> bytes: ...
    def buffer(self, cdata: _Value, size: int = ...) -> memoryview: ...
    @overload
    def from_buffer(self, buffer: Buffer, *, require_writable: bool = ...) -> _Value: ...
    @overload
    def from_buffer(self, cdecl: str, buffer: Buffer, require_writable: bool = ...) -> _Value: ...
    def memmove(self, dest: _Value | Buffer, src: _Value | Buffer, n: int) -> None: ...
    def sizeof(self, cdecl: str | CType | _Value) -> int: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...
    def offsetof(self, cdecl: str, field: str) -> int: ...
    def typeof(self, cdecl: str | _Value) -> CType: ...
    def addressof(self, cdata: _Value, *field_or_index: str | int) -> _Value: ...
    def dlopen(self, path: str, flags: int = ...) -> Lib: ...

ffi: FFI

class Lib:
'''


def cut_cdef(header: str) -> str:
    """The text between the two markers, each of which stands in the header exactly once."""
    if header.count(BEGIN) != 1 or header.count(END) != 1:
        raise ValueError(f"the header must have {BEGIN!r} and {END!r} once each")
    return header[header.index(BEGIN) + len(BEGIN) : header.index(END)]


def python_type(ctype: model.BaseTypeByIdentity, *, parameter: bool) -> str:
    if isinstance(ctype, model.VoidType):
        return "None"
    if isinstance(ctype, (model.PrimitiveType, model.EnumType)):
        return "int"
    if parameter and isinstance(ctype, model.PointerType):
        pointed = ctype.totype
        if isinstance(pointed, model.VoidType) or getattr(pointed, "name", "") in BYTE_TYPES:
            return "CData | bytes"
    return "CData"


def make_stub(ffi: cffi.FFI) -> str:
    lines = []
    for key, (declared, _quals) in sorted(ffi._parser._declarations.items()):
        kind, _, name = key.partition(" ")
        if kind == "function":
            arguments = ["self"]
            for number, argument in enumerate(declared.args):
                arguments.append(f"a{number}: {python_type(argument, parameter=True)}")
            result = python_type(declared.result, parameter=False)
            lines.append(f"    def {name}({', '.join(arguments)}, /) -> {result}: ...")
    lines.extend(f"    {name}: int" for name in sorted(ffi._parser._int_constants))
    return STUB + "\n".join(lines) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write by renaming: a program that starts meanwhile sees the old file or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def main(header_path: Path, binding_path: Path) -> None:
    header = header_path.read_bytes()
    ffi = cffi.FFI()
    ffi.cdef(cut_cdef(header.decode()))
    ffi.set_source("lazyrestore._binding", None)
    with tempfile.TemporaryDirectory() as scratch:
        generated = Path(scratch) / "_binding.py"
        with contextlib.redirect_stdout(None):  # says what it writes
            ffi.emit_python_code(str(generated))
        code = generated.read_text()
    code += f'\nHEADER_HASH = "{hashlib.sha256(header).hexdigest()}"\n'
    write_whole(binding_path.with_suffix(".pyi"), make_stub(ffi))
    write_whole(binding_path, code)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: cut_cdef.py HEADER BINDING")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
