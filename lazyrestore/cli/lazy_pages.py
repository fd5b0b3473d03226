"""`lazyrestore lazy-pages`."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from lazyrestore._paths import absolute

from ._ahead import conflict
from ._arguments import ServiceQuietOption, ServiceVerboseOption, parse_seconds
from ._errors import UsageError, usage_errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyrestore._serve.options import ServeOptions


def lazy_pages(
    images_dir: Annotated[
        str,
        typer.Option(
            "--images-dir",
            "-D",
            metavar="DIR",
            help="The folder that criu restore is given: of this image, with or without pages.",
        ),
    ],
    image: Annotated[str, typer.Option(metavar="IMAGE", help="The image that has the pages.")],
    work_dir: Annotated[
        str | None,
        typer.Option(
            "--work-dir",
            "-W",
            metavar="DIR",
            help="criu restore's: the socket is made there.  [default: that of --images-dir]",
        ),
    ] = None,
    prefetch: Annotated[
        Literal["none", "auto", "all"] | None,
        typer.Option(
            help="What to load ahead of touches, once the processes run: auto is the working set"
            " and then the rest, or nothing where there is no working set; all is everything,"
            " a working set first.  [default: all; none with --record]"
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
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write to FILE what is touched, by all processes together: a working set. With"
            " --keep a folder, which gets one for each restore.",
        ),
    ] = None,
    granularity: Annotated[
        Literal["cluster", "page"],
        typer.Option(
            help="What a touch brings: all of the page's cluster, or the page alone for the least"
            " memory."
        ),
    ] = "cluster",
    on_error: Annotated[
        Literal["kill", "poison", "log"],
        typer.Option(
            help="What becomes of a process that touches a page that cannot be loaded: kill ends"
            " it; poison gives it SIGBUS; log lets it wait, and tries again."
        ),
    ] = "kill",
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Serve any number of restores, one after another or at once, until SIGTERM."
            "  [default: one, and then end]",
        ),
    ] = False,
    daemon: Annotated[
        bool, typer.Option("--daemon", "-d", help="Return once it is ready; it goes on behind.")
    ] = False,
    pidfile: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write its process number to FILE.")
    ] = None,
    status_fd: Annotated[
        int | None,
        typer.Option(
            "--status-fd",
            metavar="N",
            help="Write a zero byte to descriptor N once criu restore can be started.",
        ),
    ] = None,
    log_file: Annotated[
        str | None,
        typer.Option(
            "--log-file",
            "-o",
            metavar="FILE",
            help="Append what happens to FILE.  [default: standard error; nowhere with --daemon]",
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
        typer.Option("--takeover", help="Take over from the daemon that listens there now."),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            parser=parse_seconds,
            show_default=False,
            help="On SIGTERM: fill every process for so long at most before this one ends."
            "  [default: 30]",
        ),
    ] = 30.0,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Serve figures for Prometheus at http://ADDRESS:PORT/metrics; without an address"
            " only this machine's own processes can ask.",
        ),
    ] = None,
    verbose: ServiceVerboseOption = False,
    quiet: ServiceQuietOption = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", "--json", help="Events are JSON, one a line.")
    ] = False,
) -> None:
    """Serve processes that 'criu restore --lazy-pages' restores, as 'criu lazy-pages' does.

    For those who drive CRIU themselves; 'lazyrestore restore --lazy' does both. It ends when no
    process of the restore needs it any more.
    """
    why = conflict(prefetch, record, working_set)
    if why is not None:
        raise UsageError(why)
    from lazyrestore._serve.criu_wire import SOCKET_NAME
    from lazyrestore._serve.options import ServeOptions

    options = ServeOptions(
        image=absolute(image),
        sockets=(os.path.join(absolute(work_dir or images_dir), SOCKET_NAME),),
        on_error=on_error,
        prefetch=prefetch or ("all" if record is None else "none"),
        working_set=None if working_set is None else absolute(working_set),
        granularity=granularity,
        record=None if record is None else absolute(record),
        grace_s=grace,
        keeper=keeper,
        takeover=takeover,
        metrics=metrics,
        log_json=log_json,
        verbosity=int(verbose) - int(quiet),
        ends_with_peers=not keep,
    )
    with usage_errors():
        _run(options, images_dir, daemon, pidfile, status_fd, log_file)


def _run(
    options: ServeOptions,
    images_dir: str,
    daemon: bool,
    pidfile: str | None,
    status_fd: int | None,
    log_file: str | None,
) -> None:
    from lazyrestore._serve.notify import StatusFd

    status = None if status_fd is None else StatusFd(status_fd, b"\0")
    log = None
    if log_file is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(log_file, flags, 0o600)
    detach = _fork() if daemon else _nothing

    def ready() -> None:
        if pidfile is not None:
            with open(pidfile, "w") as file:
                file.write(f"{os.getpid()}")
        if status is not None:
            status.ready()
        detach()

    from lazyrestore._serve.criu import check_folder, run_daemon

    check_folder(options.image or "", images_dir)
    if log is not None:
        os.dup2(log, 2)
    run_daemon(options, None, ready)


def _nothing() -> None:
    pass


def _fork() -> Callable[[], None]:
    """Go on in a child. This process ends with exit code 0 when what is returned is called there,
    else as the child does.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        code = 0 if os.read(reading, 1) else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        raise typer.Exit(code if code >= 0 else 128 - code)
    os.close(reading)
    os.setsid()
    before = os.fstat(2)

    def detach() -> None:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        now = os.fstat(2)
        has_log = (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino)
        for fd in (0, 1) if has_log else (0, 1, 2):
            os.dup2(nothing, fd)
        os.close(nothing)
        os.write(writing, b"\0")
        os.close(writing)

    return detach
