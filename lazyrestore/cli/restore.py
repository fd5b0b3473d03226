"""`lazyrestore restore`."""

from __future__ import annotations

import time
from typing import Annotated, Literal, NoReturn

import typer

from lazyrestore._criu.peek import may_have_processes

from ._ahead import conflict
from ._arguments import (
    ImageArgument,
    JsonOption,
    ProgressOption,
    QuietOption,
    RegionOption,
    ThreadsOption,
    parse_count,
)
from ._errors import UsageError, usage_errors


def restore(
    context: typer.Context,
    image: ImageArgument,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Decode everything into FILE, now; - is standard output.",
        ),
    ] = None,
    format: Annotated[
        Literal["raw", "npy", "npz", "safetensors"] | None,
        typer.Option(
            help="With --output: raw is a region's bytes; the others are files of arrays, npz and"
            " safetensors of all regions unless --region names one.  [default: as FILE's name ends,"
            " else raw]"
        ),
    ] = None,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Map the image, touch pages of it, and report.")
    ] = False,
    region: RegionOption = None,
    touch: Annotated[
        Literal["first", "sequential", "random"] | None,
        typer.Option(
            help="With --lazy: which pages to read a byte of, without --count: only the first, or"
            " all.  [default: first]",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", parser=parse_count, help="With --lazy: touch N pages."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --touch random: chooses the order.  [default: 0]"),
    ] = None,
    prefetch: Annotated[
        Literal["none", "auto", "all"] | None,
        typer.Option(
            help="With --lazy: what to load ahead of touches, in the background: auto is the"
            " working set and then the rest, or nothing where there is no working set; all is"
            " everything.  [default: none; auto with --working-set or a COMMAND; all for processes,"
            " without --record]"
        ),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --lazy: write to FILE which clusters are touched: a working set.",
        ),
    ] = None,
    working_set: Annotated[
        str | None,
        typer.Option(
            "--working-set",
            metavar="FILE",
            help="With --lazy: load what FILE names first.  [default: IMAGE.ws, where it is there"
            " and --prefetch is auto or all]",
        ),
    ] = None,
    replay: Annotated[
        Literal["before", "beside"] | None,
        typer.Option(
            help="With --lazy: load the working set before the first touch, or beside the touches."
            "  [default: before]"
        ),
    ] = None,
    privilege: Annotated[
        Literal["full", "auto", "user-mode-only"] | None,
        typer.Option(
            help="With --lazy: the kind of userfaultfd. user-mode-only needs no rights, but does"
            " not serve system calls; auto is full where it is allowed.  [default: full]",
        ),
    ] = None,
    granularity: Annotated[
        Literal["cluster", "page"] | None,
        typer.Option(
            help="With --lazy: what a touch brings. cluster is all of the page's cluster, for the"
            " fewest faults; page is that page alone, for the least memory.  [default: cluster]",
        ),
    ] = None,
    fault_mode: Annotated[
        Literal["thread", "inline"] | None,
        typer.Option(
            help="With --lazy: who answers a fault: a thread of its own, or the one that touched,"
            " in a signal handler, which is faster, but system calls on missing pages fail."
            "  [default: thread]",
        ),
    ] = None,
    or_eager: Annotated[
        bool,
        typer.Option(
            "--or-eager",
            help="With --lazy: where the kernel does not allow it, decode everything instead.",
        ),
    ] = False,
    at_original_address: Annotated[
        bool,
        typer.Option(
            "--at-original-address", help="With --lazy: map regions where they were dumped."
        ),
    ] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="With --lazy: print each fault on standard error as it is served (with --json:"
            " one object a line).",
        ),
    ] = False,
    criu: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Of processes: write CRIU's image folder to DIR; with --lazy without the pages"
            " that can come later.",
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--restore-detached",
            "-d",
            help="Of processes: end when they run, rather than wait for the first to end.",
        ),
    ] = False,
    pidfile: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of processes: write the first one's number to FILE."),
    ] = None,
    criu_opt: Annotated[
        list[str] | None,
        typer.Option(
            "--criu-opt",
            metavar="OPTION",
            help="Of processes: one more option for criu restore, as --criu-opt=--shell-job."
            "  [can be given several times]",
        ),
    ] = None,
    criu_bin: Annotated[
        str | None,
        typer.Option(
            "--criu-bin",
            metavar="PATH",
            help="Of processes: the CRIU to use.  [default: CRIU= in the environment, or that of"
            " PATH]",
        ),
    ] = None,
    on_error: Annotated[
        Literal["kill", "poison", "log"] | None,
        typer.Option(
            help="Of processes: what becomes of one that touches what cannot be loaded. kill: it is"
            " ended; poison: the touch gives SIGBUS; log: it waits, and it is tried again."
            "  [default: kill]"
        ),
    ] = None,
    no_keeper: Annotated[
        bool,
        typer.Option(
            "--no-keeper",
            help="Of processes: no second process that takes over if the one with the pages dies;"
            " they are ended then.",
        ),
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Of processes: append to FILE what becomes of their memory."
        ),
    ] = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    shows_progress: ProgressOption = None,
    json: JsonOption = False,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND [ARG]...]",
            help="With --lazy: a program that restores the image, by lr_attach() or"
            " lazyrestore.attach(); it is served until it ends.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Decode an image into a file, or map it lazily, here or in another program; run processes.

    With --lazy the memory is mapped empty, and each page is loaded when it is first touched. The
    report says how long it took to open, to map, and to the first byte; how many faults were
    served, and how long each waited; and how much memory is resident.

    With a COMMAND, that program has the memory: it is started with LAZYRESTORE_SOCKET in its
    environment, gets the signals that are sent here, and its exit code is this command's.

    An image of processes (dump --process) has them run again with --lazy, by CRIU, before their
    memory is there: it comes as it is touched, and in the background. The command ends as the first
    of them does, to which it passes on signals; with -d as soon as they run.
    """
    begun_ns = time.perf_counter_ns() - time.process_time_ns()  # what starting Python took
    only_lazy = {
        "--touch": touch,
        "--count": count,
        "--seed": seed,
        "--prefetch": prefetch,
        "--record": record,
        "--working-set": working_set,
        "--replay": replay,
        "--privilege": privilege,
        "--granularity": granularity,
        "--fault-mode": fault_mode,
        "--or-eager": or_eager or None,
        "--at-original-address": at_original_address or None,
        "--trace": trace or None,
    }
    only_processes = {
        "--restore-detached": detach,
        "--pidfile": pidfile,
        "--criu-opt": criu_opt,
        "--criu-bin": criu_bin,
        "--on-error": on_error,
        "--no-keeper": no_keeper,
        "--log": log,
    }
    only_memory = {
        "--output": output,
        "--format": format,
        "--region": region,
        "--threads": threads,
        **only_lazy,
    }
    for name in ("--prefetch", "--record", "--working-set", "--granularity"):
        del only_memory[name]
    if criu is not None or (lazy and may_have_processes(image)):
        from . import _process

        if criu is not None:
            _process.refuse({**only_processes, **only_memory, **only_lazy, "COMMAND": command})
            _process.export(
                image, criu, lazy=lazy, json=json, quiet=quiet, shows_progress=shows_progress
            )
            return
        from lazyrestore._criu.request import ProcessOptions

        options = ProcessOptions()
        options.image, options.begun_ns = image, begun_ns
        options.detach, options.pidfile = detach, pidfile
        options.criu_bin, options.criu_options = criu_bin, tuple(criu_opt or ())
        options.prefetch, options.record, options.working_set = prefetch, record, working_set
        options.granularity, options.on_error = granularity, on_error
        options.keeper, options.log = not no_keeper, log
        options.json, options.quiet = json, quiet
        others = {**only_memory, "COMMAND": command}
        code = _process.run(options, others, context.obj)
        if code:
            raise typer.Exit(code)
        if code is not None:
            return
    for name, given in only_processes.items():
        if given:
            _refuse_memory(image, name, lazy=lazy)
    if command and not lazy:
        raise UsageError(f"{command[0]!r} would be a command to serve: add --lazy, or leave it out")
    if format is not None and output is None:
        raise UsageError("--format is of what is written: add --output FILE, or leave it out")
    if lazy:
        if output is not None:
            raise UsageError("--lazy and --output do not go together: give one of them")
        if command:
            served = {"--prefetch", "--record", "--working-set", "--granularity"}
            mine = {"--region": region, "--threads": threads, "--json": json or None, **only_lazy}
            for name, value in mine.items():
                if value is not None and name not in served:
                    raise UsageError(f"{name} is not for a COMMAND: leave out one of the two")
            _serve(image, command, prefetch, record, working_set, granularity)
            return
        from ._lazy import Plan, run

        plan = Plan(
            image=image,
            region=region,
            touch=touch or "first",
            count=count,
            seed=seed or 0,
            prefetch=prefetch or ("none" if working_set is None else "auto"),
            record=record,
            working_set=working_set,
            replay=replay or "before",
            privilege=privilege or "full",
            granularity=granularity or "cluster",
            fault_mode=fault_mode or "thread",
            or_eager=or_eager,
            at_original_address=at_original_address,
            trace=trace,
            threads=threads,
        )
        run(plan, json=json, quiet=quiet)
        return
    for name, value in only_lazy.items():
        if value is not None:
            raise UsageError(f"{name} is for a lazy restore: add --lazy, or leave it out")
    if output is None:
        if _has_processes(image):
            raise UsageError(
                "say what to do: add --lazy to have the processes run again, --criu DIR to write"
                " CRIU's folder, or --region NAME and --output FILE to decode memory of theirs"
            )
        raise UsageError(
            "say where to: add --output FILE to decode the image into a file,"
            " or --lazy to map it and load pages as they are touched"
        )
    from ._decode import decode

    decode(image, output, format, region, threads, quiet, json, shows_progress)


def _has_processes(image: str) -> bool:
    if not may_have_processes(image):
        return False
    from . import _process

    return _process.has_processes(image)


def _refuse_memory(image: str, name: str, *, lazy: bool) -> NoReturn:
    """An option was given that is only for processes."""
    from lazyrestore._open import Image

    if not lazy:
        raise UsageError(f"{name} is for running processes again: add --lazy, or leave it out")
    with Image(image):  # what cannot be opened says so itself
        raise UsageError(
            f"{name} is for images of processes, and {image} is one of memory alone: leave it out"
        )


def _serve(
    image: str,
    command: list[str],
    prefetch: str | None,
    record: str | None,
    working_set: str | None,
    granularity: str | None,
) -> None:
    why = conflict(prefetch, record, working_set)
    if why is not None:
        raise UsageError(why)

    from lazyrestore._serve.command import CommandNotStarted, run
    from lazyrestore._serve.options import ServeOptions

    from ._errors import complain, fail

    options = ServeOptions(
        image=image,
        on_error="poison",
        prefetch=prefetch or "auto",
        record=record,
        working_set=working_set,
        granularity=granularity or "cluster",
    )
    try:
        with usage_errors():
            code = run(options, command, complain)
    except CommandNotStarted as error:
        fail(error.code, str(error))
    if code:
        raise typer.Exit(code)
