"""`lazyrestore restore` of an image of processes: have them run again, or write CRIU's folder."""

from __future__ import annotations

import os
import sys

from lazyrestore._paths import absolute

from ._ahead import conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lazyrestore._criu.pager import Daemon
    from lazyrestore._criu.request import ProcessOptions
    from lazyrestore._criu.restoring import Restore
    from lazyrestore._criu.trees import RunningTree

# What CRIU is told by us.
_OURS = {
    **dict.fromkeys(("-D", "--images-dir", "-W", "--work-dir", "-o", "--log-file"), ""),
    **dict.fromkeys(("--lazy-pages", "-t", "--tree", "--status-fd"), ""),
    "--pidfile": ": use --pidfile of this command",
    **dict.fromkeys(("-d", "--restore-detached"), ": use -d of this command"),
}


def refuse(others: Mapping[str, object]) -> None:
    """Name the first option that does not go with --criu."""
    for name, value in others.items():
        if is_given(value):
            raise _usage(f"{name} and --criu do not go together: leave out one of the two")


def is_given(value: object) -> bool:
    """If an option's value is not that of an option that was left out."""
    return value is not None and value is not False and value != []


def run_command(arguments: Sequence[str], daemon: Daemon) -> int | None:
    """`restore` in short: its exit code; None: the full way of reading arguments is to be taken.

    Args:
        arguments: of the program, without its name.
        daemon: forked already; it is used up, or is to be discarded.
    """
    import time

    begun_ns = time.perf_counter_ns() - time.process_time_ns()
    from lazyrestore._criu.request import read

    options = read(arguments[1:])
    if options is None:
        return None
    options.begun_ns = begun_ns
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = run(options, {}, daemon)
        sys.stdout.flush()
    except BaseException as error:
        from . import _errors

        return _errors.report(error, arguments)
    return code


def run(
    options: ProcessOptions, for_memory: Mapping[str, object], daemon: Daemon | None
) -> int | None:
    """Restore the processes lazily; the exit code, or None where the image has none.

    Args:
        options: what was asked for.
        for_memory: what was given, or not, that makes sense only where there are none.
        daemon: forked already, or None.
    """
    from lazyrestore._criu.restoring import NotProcesses
    from lazyrestore.errors import CriuError, KernelError

    given = next((name for name, value in for_memory.items() if is_given(value)), None)
    if given is not None:
        if not has_processes(options.image):
            return None
        raise _usage(
            f"{given} is for images of memory, and {options.image} is one of processes: leave it"
            " out"
        )
    try:
        return _restore(options, daemon)
    except NotProcesses:
        return None
    except (CriuError, KernelError):
        # Of what CRIU or its rights lack nobody has to hear who has no processes.
        if not has_processes(options.image):
            return None
        raise


def _usage(message: str) -> Exception:
    from ._errors import UsageError

    return UsageError(message)


def has_processes(image: str) -> bool:
    """Whether an image is one of processes, for certain."""
    from lazyrestore._criu.checkpoint import Checkpoint
    from lazyrestore._open import Image

    with Image(image) as opened:
        return Checkpoint.of(opened) is not None


def _restore(options: ProcessOptions, daemon: Daemon | None) -> int:
    from lazyrestore._criu.find import find_criu, may_use_criu
    from lazyrestore._criu.restoring import Interrupted, Restore, RestorePlan

    _check_criu_options(options.criu_options)
    serve = _serve_options(options)
    if not may_use_criu() and "--unprivileged" not in options.criu_options:
        from lazyrestore._sudo import sudo
        from lazyrestore.errors import KernelError

        raise KernelError(
            "processes are restored by CRIU, which needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE:"
            f" be root: {sudo('restore ...')}"
        )
    plan = RestorePlan(
        image=options.image,
        criu=find_criu(options.criu_bin),
        serve=serve,
        criu_options=options.criu_options,
        pidfile=options.pidfile,
        log=None if options.log is None else absolute(options.log),
        begun_ns=options.begun_ns,
    )
    try:
        with Restore(plan, daemon) as restore:
            running = restore.run()
            _tell(running, json=options.json, quiet=options.quiet)
            if options.detach:
                return 0
            _listen(restore)
            return restore.wait()
    except Interrupted as signal:
        raise _given_up(signal.number, options.image) from None


def _check_criu_options(given: tuple[str, ...]) -> None:
    for option in given:
        name = option.partition("=")[0]
        short = option[:2] if option[:1] == "-" and option[1:2] != "-" else name
        found = name if name in _OURS else short
        if found in _OURS:
            raise _usage(f"--criu-opt={option}: {found} is set here{_OURS[found]}")
        if not option.startswith("-"):
            raise _usage(
                f"--criu-opt={option} is no option: write an option's value behind it, as in"
                " --criu-opt=--ghost-limit=1G"
            )


def _serve_options(options: ProcessOptions) -> dict[str, object]:
    """As ServeOptions has them, whose import would take longer than their use here."""
    prefetch, record, working_set = options.prefetch, options.record, options.working_set
    why = conflict(prefetch, record, working_set)
    if why is not None:
        raise _usage(why)
    made: dict[str, object] = {
        "image": absolute(options.image),
        "on_error": options.on_error or "kill",
        # Until all is there the process can be dumped again by nobody, and the daemon has to live.
        "prefetch": prefetch or ("all" if record is None else "none"),
        "record": None if record is None else absolute(record),
        "working_set": None if working_set is None else absolute(working_set),
        "granularity": options.granularity or "cluster",
        "keeper": options.keeper,
        "log_json": options.log is None,
        "ends_with_peers": True,
    }
    if record is not None or working_set is not None:
        from lazyrestore._serve.images import Images
        from lazyrestore._serve.options import ServeOptions
        from lazyrestore._serve.run import check_plan

        from ._errors import usage_errors

        plan = ServeOptions.from_record(made)
        images = Images(plan.image)
        images.check()
        with usage_errors():
            check_plan(plan, images)
    return made


def _tell(running: RunningTree, *, json: bool, quiet: bool) -> None:
    if json:
        from ._show import print_json

        print_json(running)
    elif not quiet:
        from ._show import duration, one_line, size

        root = next((task for task in running.tasks if task.ppid == 0), running.tasks[0])
        others = len(running.tasks) - 1
        more = f", with {others} below it" if others else ""
        print(
            one_line(
                f"{running.path}: {root.comm!r} runs as process {running.pid}{more}, after"
                f" {duration(running.run_us)}; {size(running.lazy_bytes)} of memory come as they"
                " are touched"
            )
        )
    sys.stdout.flush()


def _listen(restore: Restore) -> None:
    """Pass on what the daemon says that went wrong, as long as this command lasts."""
    import threading

    from lazyrestore._criu.pager import bad_news

    from ._errors import complain

    def pass_on() -> None:
        with open(restore.said, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                text = bad_news(line.rstrip("\n"))
                if text is not None:
                    complain(text)

    threading.Thread(target=pass_on, daemon=True).start()


def _given_up(number: int, image: str) -> BaseException:
    import signal

    from ._errors import Terminated

    text = f"the restore of {image} was given up: nothing is left of it"
    if number == signal.SIGINT:
        return KeyboardInterrupt(text)
    error = Terminated(number)
    error.args = (text,)
    return error


def export(
    image: str,
    folder: str,
    *,
    lazy: bool,
    json: bool,
    quiet: bool,
    shows_progress: bool | None = None,
) -> None:
    """Write CRIU's folder of an image of processes.

    Raises:
        NotProcesses: the image has none.
        FileExistsError: the folder has something in it.
    """
    import time

    from lazyrestore._criu.checkpoint import Checkpoint
    from lazyrestore._criu.restoring import NotProcesses
    from lazyrestore._criu.trees import ExportReport
    from lazyrestore._open import Image

    from ._errors import stopping_means
    from ._progress import Progress

    begun = time.perf_counter()
    given_up = f"the restore was given up: what is in {folder} is not whole"
    with (
        Image(image) as opened,
        Progress("restore", quiet=quiet or lazy, wanted=shows_progress) as progress,
        stopping_means(given_up),
    ):
        checkpoint = Checkpoint.of(opened)
        if checkpoint is None:
            raise NotProcesses(
                f"{image} has memory, but no processes: leave out --criu, or dump one"
                " with `lazyrestore dump --process`"
            )
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.listdir(folder):
            raise _usage(f"{folder} is not empty: give a new folder, or empty it")
        if lazy:
            checkpoint.write_lazy_folder(folder)
        else:
            checkpoint.write_folder(folder, progress)
    report = ExportReport(
        path=image,
        folder=folder,
        lazy=lazy,
        files=len(os.listdir(folder)),
        bytes=sum(entry.stat().st_size for entry in os.scandir(folder)),
        criu_version=checkpoint.criu_version,
        seconds=time.perf_counter() - begun,
    )
    if json:
        from ._show import print_json

        print_json(report)
    elif not quiet:
        from ._show import count, duration, one_line, size

        wanted = ", for lazyrestore lazy-pages and criu restore --lazy-pages" if lazy else ""
        print(
            one_line(
                f"{folder}: {count(report.files, 'file')} of CRIU's, {size(report.bytes)}, in"
                f" {duration(report.seconds * 1e6)}{wanted}"
            )
        )
