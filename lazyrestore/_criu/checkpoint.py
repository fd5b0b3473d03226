"""What an image of processes says of them, and the folders that CRIU reads, made from it."""

from __future__ import annotations

from lazyrestore._filemap import check_file_name
from lazyrestore.errors import ImageError

from .layout import FILE_PREFIX, RegionTable, object_of
from .pagemap import LAZY, PAGE_BYTES, Pagemap, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lazyrestore._open import Image
    from lazyrestore.reports import ProcessInfo

    from .inventory import Task

    Progress = Callable[[int, int | None], None]

OURS = "lazyrestore.json"
_PAGEMAP_PREFIX, _MM_PREFIX, _IMG = "pagemap-", "mm-", ".img"


class Checkpoint:
    """An image of processes. Made by `of`; needs its image to be open."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.table = RegionTable(image.regions)
        self._said: tuple[str, int, tuple[Task, ...]] | None = None

    @classmethod
    def of(cls, image: Image) -> Checkpoint | None:
        """What an image says of processes; None: it is one of memory only.

        Raises:
            ImageError: the image's files are damaged.
        """
        return cls(image) if image.has_files and OURS in image.files else None

    @property
    def criu_version(self) -> str:
        """What dumped the processes, as "4.1.1"; "" where that is not known."""
        return self._describe()[0]

    @property
    def root(self) -> int:
        """The number of the process that all others descend from."""
        return self._describe()[1]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All processes, parents before their children."""
        return self._describe()[2]

    @property
    def processes(self) -> tuple[ProcessInfo, ...]:
        """The same, as reports have them."""
        from .inventory import report

        return report(self.tasks)

    def _describe(self) -> tuple[str, int, tuple[Task, ...]]:
        if self._said is None:
            from .described import parse_description

            what = f"{self.image.path}: {OURS}"
            self._said = parse_description(self.image.files[OURS], what)
        return self._said

    def names(self) -> list[str]:
        """The files of CRIU's folder, but for those with pages of memory, in order.

        Raises:
            ImageError: one has a name that no file in a folder can have, or two have the same.
        """
        names = {name for name in self.image.files if name != OURS}
        for region in self.image.regions:
            if region.name.startswith(FILE_PREFIX):
                name = region.name.removeprefix(FILE_PREFIX)
                try:
                    check_file_name(name)  # it shall not lead out of the folder
                except ValueError as error:
                    raise ImageError(f"{self.image.path} is damaged: {error}") from None
                if name in names:
                    raise ImageError(f"{self.image.path} is damaged: it has two files {name!r}")
                names.add(name)
        return sorted(names)

    def is_long(self, name: str) -> bool:
        """True if a file is a region of the image: `content` would have all of it in memory."""
        return name not in self.image.files

    def content(self, name: str) -> bytes:
        """All of a file of CRIU's folder."""
        found = self.image.files.get(name)
        return self.image.read(FILE_PREFIX + name) if found is None else found

    def pagemap(self, name: str) -> Pagemap | None:
        """That of an object: a task's number, or "shmem-ID"; None where there is none."""
        file = f"{_PAGEMAP_PREFIX}{name}{_IMG}"
        try:
            data = self.content(file)
        except KeyError:  # RegionNotFound is one
            return None
        return parse(data, f"{self.image.path}: {file}")

    def lazy_pagemap(self, name: str, known: Pagemap | None = None) -> Pagemap | None:
        """As `pagemap`, where only what may come later is LAZY.

        CRIU counts all private anonymous memory for that. But memory that children find empty
        (MADV_WIPEONFORK) has to be there before any of them is forked: nothing tells a pager that a
        page of theirs is missing because it was wiped.
        """
        found = self.pagemap(name) if known is None else known
        if found is None or not name.isdigit():
            return found
        file = f"{_MM_PREFIX}{name}{_IMG}"
        try:
            data = self.content(file)
        except KeyError:
            return found
        from .mappings import not_lazy_in, wiped_on_fork

        spans = wiped_on_fork(data, f"{self.image.path}: {file}")
        if spans:
            found = Pagemap(found.pages_id, list(not_lazy_in(found.entries, spans)), found.is_wide)
        return found

    def lazy_ranges(self, pid: int) -> list[tuple[int, int, int, int]]:
        """Where a task's memory is that may be filled later, and where in the image its pages are.

        Args:
            pid: the task's number in the image.

        Returns:
            (address, bytes, offset in the region, number of the region), ascending, what lies
            together in one; [] for a zombie, and for a number that the image does not have.

        Raises:
            ImageError: the image is damaged.
        """
        pagemap = self.lazy_pagemap(str(pid))
        if pagemap is None:
            return []
        ranges: list[tuple[int, int, int, int]] = []
        append = ranges.append
        start = end = 0  # of a range that is not finished
        for address, pages, flags in pagemap.entries:
            if not flags & LAZY:
                continue
            if address != end:
                if end:
                    append(self._place(str(pid), start, end))
                start = address
            end = address + pages * PAGE_BYTES
        if end:
            append(self._place(str(pid), start, end))
        return ranges

    def _place(self, name: str, start: int, end: int) -> tuple[int, int, int, int]:
        first, number = self.find(name, start, end)
        return start, end - start, start - first, number

    def find(self, name: str, start: int, end: int) -> tuple[int, int]:
        """Where the region with some pages of an object begins, and its number.

        Raises:
            ImageError: they are not in the image.
        """
        found = self.table.find(name, start)
        if found is None or found[1] < end:
            raise ImageError(
                f"{self.image.path} is damaged: it does not have the pages of {name} from"
                f" {start:#x} to {end:#x}, of which {_PAGEMAP_PREFIX}{name}{_IMG} tells; take"
                " another copy, or dump again"
            )
        return found[0], found[2]

    def check(self) -> None:
        """See that all is there that the files tell of: the processes, and each page.

        Raises:
            ImageError: something is not.
        """
        from .folder import check_checkpoint

        check_checkpoint(self)

    def write_lazy_folder(self, folder: str) -> None:
        """Write what `criu restore --lazy-pages` needs: all but the pages that can come later.

        Args:
            folder: an empty folder, or one that is not there yet.

        Raises:
            OSError: it cannot be written; what was written is removed.
            ImageError: the image is damaged.
        """
        from .lazyfolder import write_lazy_folder

        write_lazy_folder(self, folder)

    def write_folder(self, folder: str, progress: Progress | None = None) -> None:
        """Write the folder of CRIU's images that this image was made of.

        Args:
            folder: an empty folder, or one that is not there yet.
            progress: called with the bytes that are written and their total.

        Raises:
            OSError: it cannot be written; what was written is removed.
            ImageError: the image is damaged.
        """
        from .export import write_folder

        write_folder(self, folder, progress)

    def objects(self) -> Iterator[str]:
        """All that has pages: tasks' numbers and "shmem-ID"."""
        return filter(None, map(object_of, self.names()))
