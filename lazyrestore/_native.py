"""The one module that speaks to the C core: loads it, and turns its error codes into exceptions.

    problem = new_problem()
    check(lib.lr_image_open(path, image, problem), problem, what=f"cannot open {name}", file=name)

The library is `liblazyrestore.so` beside this file, or what LAZYRESTORE_LIBRARY names. The binding
is made from the public header, and has to be of the same one as the library: their hashes are
compared here, once.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

from .errors import (
    ClusterError,
    ImageError,
    KernelError,
    LazyRestoreError,
    ProcessError,
    RegionNotFound,
    RemoteError,
)

try:
    from ._binding import HEADER_HASH, ffi
except ModuleNotFoundError as error:
    raise ImportError(
        "lazyrestore/_binding.py was not built: run `make` in the source tree,"
        " or install the package again with pip"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._binding import CData, Lib
else:
    CData = ffi.CData

__all__ = [
    "NOTHING",
    "CData",
    "abandon",
    "check",
    "error_name",
    "ffi",
    "lib",
    "new_problem",
    "remedy",
    "strerror",
]

NOTHING = (1 << 64) - 1
"""What a `struct lr_problem` has for a cluster or an offset that is not known."""


def _load() -> Lib:
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "liblazyrestore.so")
    path = os.environ.get("LAZYRESTORE_LIBRARY") or default
    again = (
        "run `make` in the source tree, or install the package again with pip"
        if path == default
        else "correct or unset LAZYRESTORE_LIBRARY"
    )
    try:
        library = ffi.dlopen(path)
    except OSError as error:
        raise ImportError(f"cannot load the C core of lazyrestore: {error}: {again}") from error
    try:
        built_from = ffi.string(library.lr_header_hash()).decode()
    except (AttributeError, ffi.error) as error:
        raise ImportError(f"{path} is not the C core of lazyrestore: {again}") from error
    if built_from != HEADER_HASH:
        raise ImportError(
            f"{path} was built from another lazyrestore.h ({built_from[:12]}) than the binding"
            f" ({HEADER_HASH[:12]}): {again}"
        )
    return library


def _make_types(library: Lib) -> None:
    """Have cffi make all types and functions now.

    It makes each when that is first used. If a garbage collection in between lets another thread
    go on, and that makes the same type, cffi ends the process by an assertion.
    """
    for name in ffi.list_types()[1]:
        made = ffi.typeof(f"struct {name}")
        try:
            ffi.sizeof(made)
        except ffi.error:  # opaque
            continue
        _ = made.fields
    for name in dir(library):
        getattr(library, name)


lib = _load()
_make_types(lib)

_DAMAGED = "take another copy, or make the dump again"
_AGAIN = "the dump was interrupted or the copy is incomplete: make it again"
_NEWER = "upgrade lazyrestore"
_DOCTOR = "run `lazyrestore doctor`"

_REMEDIES = {
    lib.LR_ERR_NOMEM: "free some memory, or allow overcommit (vm.overcommit_memory)",
    lib.LR_ERR_PERMISSION: _DOCTOR,
    lib.LR_ERR_UNSUPPORTED: _DOCTOR,
    lib.LR_ERR_BUSY: "end the other user of that memory, or let the kernel choose the address",
    lib.LR_ERR_TIMEOUT: "allow more time, or call again to go on",
    lib.LR_ERR_NO_ZSTD: "apt-get install libzstd1, or let LAZYRESTORE_LIBZSTD name the library",
    lib.LR_ERR_GONE: "start it again: nothing is left to read",
    lib.LR_ERR_LIMIT: "raise the limit (ulimit -n, ulimit -u, vm.max_map_count)",
    lib.LR_ERR_CLOSED: "use a region only while its session is open",
    lib.LR_ERR_PAGE_SIZE: "dump again with a larger --cluster-size, or restore with --or-eager",
    lib.LR_ERR_REFUSED: "see what the service says of it",
    lib.LR_ERR_PROTOCOL: "give the socket of a `lazyrestore serve`, of this version",
    lib.LR_ERR_STATE: "serve it anew, from the image that it was restored from",
    lib.LR_ERR_EMPTY: _AGAIN,
    lib.LR_ERR_MAGIC: "give a file that `lazyrestore dump` made",
    lib.LR_ERR_TRUNCATED: _AGAIN,
    lib.LR_ERR_FOOTER: _DAMAGED,
    lib.LR_ERR_VERSION: _NEWER,
    lib.LR_ERR_FEATURE: _NEWER,
    lib.LR_ERR_HEADER: _DAMAGED,
    lib.LR_ERR_ROOT: _DAMAGED,
    lib.LR_ERR_METADATA: _DAMAGED,
    lib.LR_ERR_NODE: _DAMAGED,
    lib.LR_ERR_ENTRY: _DAMAGED,
    lib.LR_ERR_SHORT: "take another copy, and do not change an image that is in use",
    lib.LR_ERR_CHECKSUM: _DAMAGED,
    lib.LR_ERR_FRAME: _DAMAGED,
    lib.LR_ERR_FILES: _DAMAGED,
}

_CLUSTER_CODES = frozenset(
    (
        lib.LR_ERR_NODE,
        lib.LR_ERR_ENTRY,
        lib.LR_ERR_SHORT,
        lib.LR_ERR_CHECKSUM,
        lib.LR_ERR_FRAME,
    )
)

_CLASSES: dict[int, type[Exception]] = {
    lib.LR_ERR_ARGUMENT: ValueError,
    lib.LR_ERR_NOMEM: MemoryError,
    lib.LR_ERR_IO: LazyRestoreError,
    lib.LR_ERR_NOT_FOUND: RegionNotFound,
    lib.LR_ERR_PERMISSION: KernelError,
    lib.LR_ERR_UNSUPPORTED: KernelError,
    lib.LR_ERR_BUSY: KernelError,
    lib.LR_ERR_TIMEOUT: TimeoutError,
    lib.LR_ERR_NO_ZSTD: KernelError,
    lib.LR_ERR_SYSTEM: LazyRestoreError,
    lib.LR_ERR_GONE: ProcessError,
    lib.LR_ERR_LIMIT: KernelError,
    lib.LR_ERR_CLOSED: ValueError,
    lib.LR_ERR_PAGE_SIZE: KernelError,
    lib.LR_ERR_STATE: RemoteError,
    lib.LR_ERR_REFUSED: RemoteError,
    lib.LR_ERR_PROTOCOL: RemoteError,
    lib.LR_ERR_EMPTY: ImageError,
    lib.LR_ERR_MAGIC: ImageError,
    lib.LR_ERR_TRUNCATED: ImageError,
    lib.LR_ERR_FOOTER: ImageError,
    lib.LR_ERR_VERSION: ImageError,
    lib.LR_ERR_FEATURE: ImageError,
    lib.LR_ERR_HEADER: ImageError,
    lib.LR_ERR_ROOT: ImageError,
    lib.LR_ERR_METADATA: ImageError,
    lib.LR_ERR_FILES: ImageError,
    **dict.fromkeys(_CLUSTER_CODES, ClusterError),
}

# Where these concern a path (`file=`), Python has exceptions: FileNotFoundError and the like.
_FILE_CODES = frozenset(
    (lib.LR_ERR_NOT_FOUND, lib.LR_ERR_PERMISSION, lib.LR_ERR_IO, lib.LR_ERR_SYSTEM)
)


def new_problem() -> CData:
    """A `struct lr_problem *` that says nothing yet."""
    problem = ffi.new("struct lr_problem *")
    problem.cluster = problem.file_offset = NOTHING
    return problem


def strerror(code: int) -> str:
    """One sentence for an LR_ERR_* code, without a full stop."""
    return ffi.string(lib.lr_strerror(code)).decode().rstrip(".")


def error_name(code: int) -> str:
    """The name of a code, as "LR_ERR_TRUNCATED"."""
    return ffi.string(lib.lr_error_name(code)).decode()


def remedy(code: int) -> str:
    """What to do about a code, or "" where that depends on what was asked."""
    return _REMEDIES.get(code, "")


def abandon(found: CData, close: Callable[[CData], object]) -> None:
    """Close what a call has opened that was not gone on with.

    Ctrl-C that comes during a call is raised right behind it: what was opened has no owner yet, and
    would stay open to the end of the process.

    Args:
        found: where the call put it, or NULL.
        close: what closes it.
    """
    handle, found[0] = found[0], ffi.NULL
    if handle:
        close(handle)


def check(
    code: int,
    problem: CData | None = None,
    *,
    what: str = "",
    where: str | None = None,
    file: str | os.PathLike[str] | None = None,
    pid: int | None = None,
    region: str | None = None,
    offset: int | None = None,
    cluster_error: type[ClusterError] = ClusterError,
) -> int:
    """Return `code` if it is 0 or more, else raise the exception that it stands for.

    Args:
        code: what a function of the core returned.
        problem: the `struct lr_problem *` that the function was given.
        what: what was attempted, as "cannot open state.lzr"; begins the message.
        where: the place, in words, as "region 'memory'".
        file: the path that the call was about; a missing or unreadable one raises an OSError.
        pid: the process that the call was about; a missing one raises a ProcessError.
        region: name of the region, for a ClusterError.
        offset: where in the region, in bytes, for a ClusterError.
        cluster_error: ClusterError, or RestoreError where a session wanted the cluster.
    """
    if code >= 0:
        return code
    os_error, cluster, file_offset = 0, NOTHING, NOTHING
    if problem is not None and int(problem.code) == code:
        os_error = int(problem.os_error)
        cluster = int(problem.cluster)
        file_offset = int(problem.file_offset)

    # A cluster that cannot be read is as lost as one that does not decode.
    is_cluster = code in _CLUSTER_CODES or (code == lib.LR_ERR_IO and cluster != NOTHING)
    if file is not None and code in _FILE_CODES and not is_cluster:
        _raise_for_file(code, os_error, file)

    places = [where] if where else []
    if region is not None:
        places.append(f"region {region!r}" + (f" at offset {offset}" if offset is not None else ""))
    if cluster != NOTHING:
        places.append(f"cluster {cluster}")
    # Of what is no image at all, no place is of interest.
    if file_offset != NOTHING and code not in (lib.LR_ERR_MAGIC, lib.LR_ERR_EMPTY):
        places.append(f"at byte {file_offset} of the file")
    message = f"{what}: {strerror(code)}" if what else strerror(code)
    if os_error:
        message += f": {os.strerror(os_error)}"
    if places:
        message += f" ({', '.join(places)})"
    kind = _CLASSES.get(code, LazyRestoreError)
    hint = remedy(code)
    if code == lib.LR_ERR_NOT_FOUND and (pid is not None or os_error == errno.ESRCH):
        kind, hint = ProcessError, "is it still running? `ps` lists processes"
    elif code == lib.LR_ERR_MAGIC and file is not None:
        from ._filekind import describe

        hint = describe(file) or hint
    elif code == lib.LR_ERR_PERMISSION and pid is not None:
        hint = "be its owner or root, and see kernel.yama.ptrace_scope"
    if hint:
        message += f"; {hint}"
    if is_cluster:
        known = cluster if cluster != NOTHING else None
        raise cluster_error(message, region=region, offset=offset, cluster=known)
    raise kind(message)


def _raise_for_file(code: int, os_error: int, file: str | os.PathLike[str]) -> NoReturn:
    """Raise what `open()` would raise for that path."""
    guesses = {lib.LR_ERR_NOT_FOUND: errno.ENOENT, lib.LR_ERR_PERMISSION: errno.EACCES}
    number = os_error or guesses.get(code, errno.EIO)
    raise OSError(number, os.strerror(number), os.fspath(file))
