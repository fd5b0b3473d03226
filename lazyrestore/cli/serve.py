"""`lazyrestore serve`."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from ._ahead import conflict
from ._arguments import ServiceQuietOption, ServiceVerboseOption, parse_seconds
from ._errors import UsageError, usage_errors


def _parse_uid(text: str) -> int:
    """A user, by number or name."""
    import pwd

    if text.isdecimal() and int(text) < 1 << 32:
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise typer.BadParameter(f"there is no user {text!r}") from None


def _parse_mode(text: str) -> int:
    """Permissions, octal."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise typer.BadParameter(f"{text!r} are no permissions: write 600 or 660")
    return mode


def serve(
    image: Annotated[
        str | None, typer.Argument(metavar="[IMAGE]", help="The image.", show_default=False)
    ] = None,
    socket: Annotated[
        list[str] | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            help="Listen at PATH; may be given several times. With --image-dir it can be a folder,"
            " which then gets a NAME.sock for each NAME.lzr.",
        ),
    ] = None,
    image_dir: Annotated[
        str | None,
        typer.Option(
            "--image-dir",
            metavar="DIR",
            help="Instead of IMAGE: who connects to NAME.sock is served from DIR/NAME.lzr.",
        ),
    ] = None,
    allow_uid: Annotated[
        list[int] | None,
        typer.Option(
            "--allow-uid",
            metavar="UID",
            parser=_parse_uid,
            help="Admit processes of that user too, beside this service's own and root; may be"
            " given several times.",
        ),
    ] = None,
    on_error: Annotated[
        Literal["kill", "poison", "log"],
        typer.Option(
            help="What becomes of a process that touches a page that cannot be loaded: kill ends"
            " it; poison gives it SIGBUS; log lets it wait, and tries again."
        ),
    ] = "kill",
    prefetch: Annotated[
        Literal["none", "auto", "all"],
        typer.Option(
            help="What to load ahead of touches, in the background: auto is the working set and"
            " then the rest, or nothing where there is no working set; all is everything."
        ),
    ] = "auto",
    record: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Write which clusters are touched, as a working set: to a file, or to a folder"
            " that gets one for each process.",
        ),
    ] = None,
    working_set: Annotated[
        str | None,
        typer.Option(
            "--working-set",
            metavar="FILE",
            help="Load what FILE names first.  [default: IMAGE.ws, where it is there]",
        ),
    ] = None,
    granularity: Annotated[
        Literal["cluster", "page"],
        typer.Option(
            help="What a touch brings: all of the page's cluster, or the page alone for the least"
            " memory."
        ),
    ] = "cluster",
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            parser=parse_seconds,
            show_default=False,
            help="On SIGTERM: fill every process for so long at most before this service ends."
            "  [default: 30]",
        ),
    ] = 30.0,
    status_fd: Annotated[
        int | None,
        typer.Option(
            "--status-fd", metavar="N", help="Write a line to descriptor N once all is ready."
        ),
    ] = None,
    keeper: Annotated[
        bool,
        typer.Option(
            "--keeper/--no-keeper",
            help="Whether a second process stands by, and serves on if this one is killed.",
        ),
    ] = True,
    takeover: Annotated[
        bool,
        typer.Option("--takeover", help="Take over from the service that listens at PATH now."),
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Serve figures for Prometheus at http://ADDRESS:PORT/metrics; without an address"
            " only this machine's own processes can ask.",
        ),
    ] = None,
    socket_mode: Annotated[
        int,
        typer.Option(
            "--socket-mode",
            metavar="MODE",
            parser=_parse_mode,
            show_default=False,
            help="Permissions of the sockets, octal.  [default: 600]",
        ),
    ] = "600",  # type: ignore[assignment]  # parsed as if it was given
    verbose: ServiceVerboseOption = False,
    quiet: ServiceQuietOption = False,
    log_json: Annotated[
        bool,
        typer.Option("--log-json", "--json", help="Events on standard error are JSON, one a line."),
    ] = False,
) -> None:
    """Serve an image's memory to other processes.

    A process that has restored its memory empty, as Firecracker does with a snapshot whose back end
    is Uffd, connects and hands over its userfaultfd: its pages are loaded when it touches them.
    """
    if (image is None) == (image_dir is None):
        raise UsageError("give an IMAGE, or a folder of images with --image-dir")
    if not socket and "LISTEN_FDS" not in os.environ:
        raise UsageError("say where to listen: add --socket PATH")
    why = conflict(prefetch, record, working_set)
    if why is not None:
        raise UsageError(why)
    if working_set is not None and image_dir is not None:
        raise UsageError("--working-set is for one image: with --image-dir, put it beside each")
    from lazyrestore._serve.options import ServeOptions
    from lazyrestore._serve.run import serve as run

    options = ServeOptions(
        image=image,
        image_dir=image_dir,
        sockets=tuple(socket or ()),
        allow_uids=tuple(allow_uid or ()),
        on_error=on_error,
        prefetch=prefetch,
        working_set=working_set,
        granularity=granularity,
        record=record,
        grace_s=grace,
        keeper=keeper,
        takeover=takeover,
        status_fd=status_fd,
        metrics=metrics,
        log_json=log_json,
        verbosity=int(verbose) - int(quiet),
        socket_mode=socket_mode,
    )
    with usage_errors():
        run(options)
