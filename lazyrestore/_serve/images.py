"""The images that are served: one, or those of a folder, by the name of the socket."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lazyrestore._open import Image
from lazyrestore._paths import absolute
from lazyrestore.errors import ImageError, LazyRestoreError

if TYPE_CHECKING:
    from lazyrestore._workingset import WorkingSet

IMAGE_SUFFIX = ".lzr"
SOCKET_SUFFIX = ".sock"

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Plan:
    """What is loaded ahead of touches, for every peer; as in `lazyrestore.restore`.

    Attributes:
        prefetch: "none", "auto" or "all".
        working_set: a file, or None: the one beside the image, where it is there.
        granularity: "cluster" or "page".
        record: a file, or a folder with a file for each peer; None: nothing is recorded.
    """

    prefetch: str = "auto"
    working_set: str | None = None
    granularity: str = "cluster"
    record: str | None = None


class Images:
    """Opens images, each once as long as anyone is served from it.

    Attributes:
        single: the one image that is served, or None where there is a folder.
        folder: the folder, or None.
    """

    def __init__(self, single: str | None, folder: str | None = None) -> None:
        if (single is None) == (folder is None):
            raise ValueError("give an image, or a folder of images with --image-dir")
        self.single = None if single is None else absolute(single)
        self.folder = None if folder is None else absolute(folder)
        self._held: Image | None = None  # the single one is what it was at the start
        self._given: dict[str, Image] = {}
        self._open: weakref.WeakValueDictionary[tuple[str, _Stamp], Image] = (
            weakref.WeakValueDictionary()
        )

    @property
    def held(self) -> Image | None:
        """The one image that is served, once `check` has opened it."""
        return self._held

    def check(self) -> None:
        """Open what can be opened now, so that a mistake is known at the start.

        Raises:
            OSError, ImageError: the image, or the folder, cannot be used.
        """
        if self.single is not None:
            self._held = self._held or self.open(self.single)
        elif self.folder is not None and not os.path.isdir(self.folder):
            raise NotADirectoryError(20, os.strerror(20), self.folder)

    def for_socket(self, socket_path: str) -> Image:
        """The image for who connected to a socket.

        Raises:
            OSError, ImageError: it is not there, or cannot be used.
        """
        if self.single is not None:
            return self._held or self.open(self.single)
        return self.open(self.path_for(socket_path))

    def path_for(self, socket_path: str) -> str:
        """Where the image of a socket is: `FOLDER/NAME.lzr` of `NAME.sock`."""
        assert self.folder is not None
        return os.path.join(self.folder, Path(socket_path).stem + IMAGE_SUFFIX)

    def sockets_in(self, folder: str) -> list[str]:
        """Paths of the sockets in a folder, one for each image that there is now."""
        assert self.folder is not None
        names = sorted(
            name[: -len(IMAGE_SUFFIX)]
            for name in os.listdir(self.folder)
            if name.endswith(IMAGE_SUFFIX) and not name.startswith(".")
        )
        return [os.path.join(folder, name + SOCKET_SUFFIX) for name in names]

    def open(self, path: str, digest: str | None = None) -> Image:
        """An image as it is in its file now; the same one again until the file changes.

        Args:
            path: where it is.
            digest: what its content's digest has to be; None: any. One that was given (`give`) is
                what was open then, whatever has become of its file.

        Raises:
            OSError: it is not there or cannot be read.
            ImageError: it is damaged, or another one.
        """
        if digest is not None and (given := self._given.get(digest)) is not None:
            return given
        # Not blocking: a FIFO of that name must not be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        image = self._open.get((path, _stamp(fd)))
        if image is None:
            image = self._open_fd(fd, path)
        else:
            os.close(fd)
        if digest is not None and image.digest != digest:
            raise ImageError(
                f"{path} has digest {image.digest[:16]}..., and {digest[:16]}... is being served:"
                " put that image back"
            )
        return image

    def give(self, fd: int, path: str, digest: str) -> None:
        """Take an image that another process has opened; what it was opened as goes on.

        Args:
            fd: of its file; it stays the caller's.
            path: where it was.
            digest: of its content.

        Raises:
            OSError, ImageError: it cannot be used any more.
        """
        image = self._open_fd(os.dup(fd), path)
        if image.digest != digest:
            raise ImageError(f"{path} has been changed while it was served: put that image back")
        self._given[digest] = image
        if path == self.single:
            self._held = image

    def forget(self, digest: str) -> None:
        """Nobody is served any more from an image that was given."""
        self._given.pop(digest, None)

    def descriptor(self, digest: str) -> int | None:
        """A descriptor of an open image's file, open as long as the image; None: there is none."""
        for image in self._open.values():
            if image.digest == digest and image.opened is not None:
                return image.opened
        return None

    def _open_fd(self, fd: int, path: str) -> Image:
        """Open an image by a descriptor, which is the image's then."""
        try:
            image = Image(path, opened=fd)
        except BaseException:
            os.close(fd)
            raise
        weakref.finalize(image, os.close, fd)
        self._open[path, _stamp(fd)] = image
        return image


def choose_working_set(image: Image, plan: Plan) -> tuple[WorkingSet | None, str | None]:
    """What to load first, and what is to be said where a file beside the image is of no use.

    Raises:
        OSError, WorkingSetError: `plan.working_set` cannot be used.
    """
    from lazyrestore._workingset import WorkingSet, load_beside

    if plan.record is not None or plan.prefetch == "none":
        return None, None
    if plan.working_set is not None:
        return WorkingSet.load(plan.working_set).check(image), None
    try:
        return load_beside(image), None
    except (OSError, LazyRestoreError) as error:
        return None, f"{error}. Served without it"


def _stamp(fd: int) -> _Stamp:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
