"""Memory of this process that a service restores: `lazyrestore.attach`."""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import NoReturn, Self

from ._core import PRIVILEGES, check_word, nanoseconds, touch
from ._native import CData, abandon, check, ffi, lib, new_problem
from ._open import unpack
from .errors import KernelError, RegionNotFound, RemoteError, RestoreError
from .region import PlacedRegion, Region, placed_region
from .reports import RegionInfo

_STATES = ("connected", "served", "resuming", "complete", "fenced", "closed")
_DEADLINE_S_MAX = 86400.0
# Between two looks at the deadline, and at Ctrl-C.
_SLICE_NS = 50_000_000
_PAGES_AT_ONCE = 64
_PAGE = 4096


def attach(
    socket: str | os.PathLike[str] | None = None,
    *,
    deadline: float = 5.0,
    privilege: str = "full",
) -> Attachment:
    """Have the regions of an image that another process serves in this one.

    As `restore`, but the image is read by a `lazyrestore serve`, which loads each page when it is
    touched here. If it ends, the next one at the same socket goes on; if none comes in time, pages
    that are still missing raise SIGBUS (SIGSEGV before Linux 6.6) when they are touched. Forked
    children do not have the regions: they get SIGSEGV. (What is complete they do have.)

    Args:
        socket: the service's; None: what LAZYRESTORE_SOCKET names.
        deadline: seconds: for the service to answer, and later for another one to take its place.
        privilege: the kind of userfaultfd; see `restore`.

    Returns:
        An Attachment: a mapping from names to regions, in dump order, and a context manager.

    Raises:
        RemoteError: the service refuses (it says why), is not one of ours, or there is none.
        OSError: the socket is not there or may not be used.
        TimeoutError: the service did not answer in time.
        KernelError: userfaultfd is not allowed.
        ValueError: an argument cannot be, or no socket is named.
    """
    check_word("privilege", privilege, PRIVILEGES)
    if not 0 < deadline <= _DEADLINE_S_MAX:
        raise ValueError(f"deadline is {deadline}: it can be up to {_DEADLINE_S_MAX:g} seconds")
    found = os.environ.get("LAZYRESTORE_SOCKET") if socket is None else os.fspath(socket)
    if not found:
        raise ValueError("give the path of a service's socket, or set LAZYRESTORE_SOCKET to it")
    try:
        core = AttachedCore(found, deadline, privilege)
    except KernelError as error:
        if privilege != "full" or "userfaultfd" not in str(error):
            raise
        from ._doctor import has_only_user_mode

        if not has_only_user_mode():
            raise
        raise KernelError(
            f"{error}, or attach with privilege='auto': all but system calls on pages that are not"
            " there works then"
        ) from None
    waited = array("I")
    regions: dict[str, Region | PlacedRegion] = {}
    for number, info in enumerate(core.source.regions):
        if not info.length:
            empty = placed_region(0, 0)
            empty._begin(core.source, None, number, waited)
            regions[info.name] = empty
            continue
        region = Region(info.length)
        core.add(number, region.address)
        region._begin(core.source, core, number, waited)
        regions[info.name] = region
    core.start()
    return Attachment(core, regions)


class AttachedSource:
    """What a service says of its image: as much as regions need of one.

    Attributes:
        path: of the socket.
        regions: what each region is, in the order in which they were dumped.
    """

    def __init__(self, path: str, regions: tuple[RegionInfo, ...], metadata: bytes) -> None:
        self.path = path
        self.regions = regions
        self._numbers = {info.name: number for number, info in enumerate(regions)}
        if len(self._numbers) != len(regions):
            raise RemoteError(
                f"{path}: two of the service's regions have the same name: serve a sound image"
            )
        self._metadata = metadata

    def region(self, number: int) -> RegionInfo:
        """One of `regions`."""
        return self.regions[number]

    def metadata(self, name: str) -> dict[str, object]:
        """What the owner wanted kept of a region; see `Image.metadata`."""
        maps = unpack(self._metadata, f"{self.path}: the image's metadata")
        found = maps[self._numbers[name]] if isinstance(maps, list) else None
        if not isinstance(found, dict):
            raise RemoteError(
                f"{self.path}: the metadata of region {name!r} is not a map: serve a sound image"
            )
        return found


class AttachedCore:
    """An `lr_attachment`. Ends when nobody holds it: regions do, as they do a `Core`."""

    _handle: CData = ffi.NULL

    def __init__(self, path: str, deadline: float, privilege: str) -> None:
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise ValueError(f"the path {path!r} has a null character: no socket can have it")
        self.path = path
        options = ffi.new("struct lr_attach_options *")
        options.privilege = PRIVILEGES[privilege]
        options.deadline_ms = max(1, int(deadline * 1000))
        options.flags = lib.LR_ATTACH_METADATA
        found = ffi.new("lr_attachment **")
        problem = new_problem()
        try:
            code = lib.lr_attach_connect(encoded, options, found, problem)
        except BaseException:
            abandon(found, lib.lr_detach)
            raise
        self._check(code, problem)
        self._handle = found[0]
        self.addresses: dict[int, int] = {}
        self.source = self._read_source()

    def __del__(self) -> None:
        lib.lr_detach(self._handle)
        self._handle = ffi.NULL

    def _check(self, code: int, problem: CData) -> None:
        if code >= 0:
            return
        what = f"cannot attach to {self.path}"
        if code == lib.LR_ERR_REFUSED:
            said = ffi.string(lib.lr_attach_get_refusal(ffi.NULL)).decode(errors="replace")
            raise RemoteError(f"{what}: the service refused: {said}")
        if code == lib.LR_ERR_GONE:
            reason = os.strerror(problem.os_error)
            raise RemoteError(f"{what}: {reason}: start `lazyrestore serve` with that --socket")
        if code == lib.LR_ERR_ARGUMENT:
            raise ValueError(f"{what}: the path of a socket has 1 to 107 bytes")
        is_kernel = code in (lib.LR_ERR_PERMISSION, lib.LR_ERR_UNSUPPORTED)
        if is_kernel and not _may_connect(self.path):
            is_kernel = False
        check(
            code,
            problem,
            what=f"{what}: userfaultfd" if is_kernel else what,
            file=None if is_kernel else self.path,
        )

    def _read_source(self) -> AttachedSource:
        raw = ffi.new("struct lr_region_info *")
        regions = []
        for number in range(lib.lr_attachment_get_region_count(self._handle)):
            check(lib.lr_attachment_get_region(self._handle, number, raw))
            name = bytes(ffi.buffer(raw.name, raw.name_bytes)).decode(errors="replace")
            regions.append(RegionInfo(name, raw.address, raw.length, raw.protection))
        count = ffi.new("uint64_t *")
        metadata = lib.lr_attachment_get_metadata(self._handle, count)
        packed = bytes(ffi.buffer(metadata, count[0])) if metadata != ffi.NULL else b"\x90"
        return AttachedSource(self.path, tuple(regions), packed)

    def add(self, number: int, address: int) -> None:
        """Have an empty mapping restored."""
        problem = new_problem()
        memory = ffi.cast("void *", address)
        code = lib.lr_attachment_add(self._handle, number, memory, problem)
        name = self.source.regions[number].name
        check(code, problem, what=f"cannot attach to {self.path}", region=name)
        self.addresses[number] = address

    def start(self) -> None:
        """Hand all that was added over."""
        problem = new_problem()
        self._check(lib.lr_attachment_start(self._handle, problem), problem)

    def forget(self, number: int) -> None:
        """A region is about to be unmapped."""
        lib.lr_attachment_forget(self._handle, number)

    def remember(self, number: int) -> None:
        """Undo `forget`."""
        lib.lr_attachment_remember(self._handle, number)

    def detach(self, number: int) -> None:
        """Empty a region that nobody can touch any more. Does nothing for one that is unmapped."""
        lib.lr_attachment_release(self._handle, number)

    def populate(self, number: int, offset: int, length: int, timeout: float | None) -> None:
        """Load a range now; see Region.populate."""
        end = time.monotonic() + timeout if timeout is not None else None
        info = self.source.regions[number]
        page, last = offset // _PAGE, -(-(offset + length) // _PAGE)
        while page < last:
            count = min(_PAGES_AT_ONCE, last - page)
            got = touch(
                self.addresses[number],
                info.length,
                order="sequential",
                first=page,
                count=count,
                seed=0,
                room=array("I"),
            )
            if got < count:
                raise RestoreError(
                    f"region {info.name!r} at offset {page * _PAGE}: a page of these"
                    f" {count * _PAGE} bytes cannot be loaded: the service knows why",
                    region=info.name,
                    offset=page * _PAGE,
                )
            page += count
            if end is not None and page < last and time.monotonic() >= end:
                raise TimeoutError(
                    f"{(last - page) * _PAGE} bytes of region {info.name!r} were not loaded within"
                    f" {timeout} s: call populate() again to go on"
                )

    def wait(self, timeout_ns: int) -> int:
        """`lr_attachment_wait`."""
        return int(lib.lr_attachment_wait(self._handle, timeout_ns))

    def info(self) -> CData:
        """A `struct lr_attachment_info *`."""
        info = ffi.new("struct lr_attachment_info *")
        lib.lr_attachment_get_info(self._handle, info)
        return info


def _may_connect(path: str) -> bool:
    """Whether a refusal was not the socket's: by its permissions, for who asks."""
    return os.access(path, os.W_OK, effective_ids=True)


class Attachment(Mapping[str, Region | PlacedRegion]):
    """What `lazyrestore.attach` returns: name → region, in the order in which they were dumped.

    A context manager. Leaving it never raises: regions that still have views (an array, say) are
    served until the last view is gone.

    Attributes:
        path: of the service's socket, when it was attached to.
    """

    def __init__(self, core: AttachedCore, regions: Mapping[str, Region | PlacedRegion]) -> None:
        self.path = core.path
        self._core: AttachedCore | None = core
        self._regions = dict(regions)

    def __getitem__(self, name: str) -> Region | PlacedRegion:
        if self._core is None:
            self._fail_closed()
        try:
            return self._regions[name]
        except KeyError:
            names = ", ".join(map(repr, list(self._regions)[:8])) or "none"
            raise RegionNotFound(
                f"{self.path} serves no region {name!r}; its regions: {names}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def _fail_closed(self) -> NoReturn:
        raise ValueError(f"the attachment to {self.path} is closed: attach again")

    def _info(self) -> CData:
        if self._core is None:
            self._fail_closed()
        return self._core.info()

    @property
    def state(self) -> str:
        """How it stands.

        "served"; "resuming": the service has ended, and another is waited for; "complete": all was
        loaded, and no service is needed any more; "fenced": none came; "closed": it was closed, or
        this is a forked child, which has nothing of it.
        """
        return "closed" if self._core is None else _STATES[int(self._core.info().state)]

    @property
    def digest(self) -> str:
        """The image's content digest, in hexadecimal."""
        return bytes(ffi.buffer(self._info().digest)).hex()

    @property
    def privilege(self) -> str:
        """The kind of userfaultfd: "full" or "user-mode-only"."""
        return "full" if self._info().privilege == 0 else "user-mode-only"

    @property
    def resumes(self) -> int:
        """How often another service has gone on with it."""
        return int(self._info().resumes)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all pages are loaded, which a service does only where it prefetches.

        Args:
            timeout: seconds; None: no limit.

        Returns:
            True when all is there; False on timeout.

        Raises:
            RemoteError: nobody serves any more, for good.
            ValueError: it is closed.
        """
        left_ns = nanoseconds(timeout)
        while True:
            slice_ns = _SLICE_NS if left_ns is None else min(left_ns, _SLICE_NS)
            if self._core is None:
                self._fail_closed()
            code = self._core.wait(slice_ns)
            if code != lib.LR_ERR_TIMEOUT:
                break
            if left_ns is not None:
                left_ns -= slice_ns
                if left_ns <= 0:
                    return False
        if code == lib.LR_ERR_GONE:
            raise RemoteError(
                f"the service at {self.path} has ended, and none has taken its place: what was"
                " missing cannot be touched any more: start it again, and attach anew"
            )
        if code < 0:
            self._fail_closed()
        return True

    def close(self) -> None:
        """Unmap all regions, and let go of the service.

        Raises:
            BufferError: a region has views; nothing is changed.
        """
        held = [
            name
            for name, region in self._regions.items()
            if isinstance(region, Region) and region.has_views()
        ]
        if held:
            names = ", ".join(map(repr, held[:4])) + (", ..." if held[4:] else "")
            raise BufferError(
                f"{names}: there are views (arrays, memoryviews): let go of them first"
            )
        self._let_go()

    def _let_go(self) -> None:
        for region in self._regions.values():
            with contextlib.suppress(BufferError):
                region.close()
        # Regions that have views go on, and hold the connection; without any, it ends.
        self._regions = {}
        self._core = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()

    def __repr__(self) -> str:
        return f"<lazyrestore.Attachment {self.path!r}: {len(self._regions)} regions, {self.state}>"
