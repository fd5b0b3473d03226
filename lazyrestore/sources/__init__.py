"""Where the memory that is dumped comes from: buffers and arrays, files, core files, other
processes.

Names are imported when they are first used, as in the package itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .base import Sink, Source
    from .checkpoint import ProcessTree
    from .corefile import CoreFile
    from .criu import CriuFolder
    from .npy import NpyFile
    from .npz import NpzFile
    from .process import ProcessMemory
    from .rawfile import RawFile
    from .safetensors import SafetensorsFile

__all__ = [
    "CoreFile",
    "CriuFolder",
    "NpyFile",
    "NpzFile",
    "ProcessMemory",
    "ProcessTree",
    "RawFile",
    "SafetensorsFile",
    "Sink",
    "Source",
]

_HOME = {
    "CoreFile": "corefile",
    "CriuFolder": "criu",
    "NpyFile": "npy",
    "NpzFile": "npz",
    "ProcessMemory": "process",
    "ProcessTree": "checkpoint",
    "RawFile": "rawfile",
    "SafetensorsFile": "safetensors",
    "Sink": "base",
    "Source": "base",
}


if not TYPE_CHECKING:  # or a checker would take any name for one of these

    def __getattr__(name: str) -> object:
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
