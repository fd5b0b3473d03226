"""Memory checkpoints that open at once: compressed, verified, and used like plain memory.

    import lazyrestore

    lazyrestore.dump({"weights": array}, "state.lzr")
    with lazyrestore.restore("state.lzr") as session:
        weights = session["weights"].array()

A dump writes the pages of memory regions into a compressed image. A restore maps them empty, and
fills each page when it is first touched. `open` reads an image without mapping it.

Names are imported when they are first used: start-up is part of the time to first access.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers take for True; typing itself is not needed at start-up
if TYPE_CHECKING:
    from ._attach import Attachment, attach
    from ._diff import diff
    from ._dump import dump
    from ._load import Arrays, load
    from ._open import Image, open
    from ._optimize import optimize
    from ._pickle import dump_pickle, load_pickle
    from ._restore import restore
    from ._workingset import WorkingSet
    from .errors import (
        ClusterError,
        CriuError,
        ImageError,
        KernelError,
        LazyRestoreError,
        ProcessError,
        RegionNotFound,
        RemoteError,
        RestoreError,
        WorkingSetError,
    )
    from .region import PlacedRegion, Region
    from .reports import (
        DiffReport,
        DumpReport,
        ImageInfo,
        LoadError,
        OptimizeReport,
        RegionInfo,
        SessionStats,
    )
    from .session import Session
    from .sources import (
        CoreFile,
        CriuFolder,
        NpyFile,
        NpzFile,
        ProcessMemory,
        ProcessTree,
        RawFile,
        SafetensorsFile,
    )
    from .writer import ImageWriter

__version__ = "0.1.0"

__all__ = [
    "Arrays",
    "Attachment",
    "ClusterError",
    "CoreFile",
    "CriuError",
    "CriuFolder",
    "DiffReport",
    "DumpReport",
    "Image",
    "ImageError",
    "ImageInfo",
    "ImageWriter",
    "KernelError",
    "LazyRestoreError",
    "LoadError",
    "NpyFile",
    "NpzFile",
    "OptimizeReport",
    "PlacedRegion",
    "ProcessError",
    "ProcessMemory",
    "ProcessTree",
    "RawFile",
    "Region",
    "RegionInfo",
    "RegionNotFound",
    "RemoteError",
    "RestoreError",
    "SafetensorsFile",
    "Session",
    "SessionStats",
    "WorkingSet",
    "WorkingSetError",
    "__version__",
    "attach",
    "diff",
    "dump",
    "dump_pickle",
    "load",
    "load_pickle",
    "open",
    "optimize",
    "restore",
]

_HOME = {
    "Arrays": "_load",
    "Attachment": "_attach",
    "ClusterError": "errors",
    "CoreFile": "sources",
    "CriuError": "errors",
    "CriuFolder": "sources",
    "DiffReport": "reports",
    "DumpReport": "reports",
    "Image": "_open",
    "ImageError": "errors",
    "ImageInfo": "reports",
    "ImageWriter": "writer",
    "KernelError": "errors",
    "LazyRestoreError": "errors",
    "LoadError": "reports",
    "NpyFile": "sources",
    "NpzFile": "sources",
    "OptimizeReport": "reports",
    "PlacedRegion": "region",
    "ProcessError": "errors",
    "ProcessMemory": "sources",
    "ProcessTree": "sources",
    "RawFile": "sources",
    "Region": "region",
    "RegionInfo": "reports",
    "RegionNotFound": "errors",
    "RemoteError": "errors",
    "RestoreError": "errors",
    "SafetensorsFile": "sources",
    "Session": "session",
    "SessionStats": "reports",
    "WorkingSet": "_workingset",
    "WorkingSetError": "errors",
    "attach": "_attach",
    "diff": "_diff",
    "dump": "_dump",
    "dump_pickle": "_pickle",
    "load": "_load",
    "load_pickle": "_pickle",
    "open": "_open",
    "optimize": "_optimize",
    "restore": "_restore",
}


if not TYPE_CHECKING:  # or a checker would take any name for one of these
    import os
    from _thread import RLock

    # While a name is imported. Python locks each module for that time, and a child that is forked
    # meanwhile by another thread would wait for the lock for good: so the fork waits.
    _importing = RLock()
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )

    def __getattr__(name: str) -> object:
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        with _importing:
            value: object = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
