"""From exceptions to exit codes, and to one line that says what happened and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import ClassVar, NoReturn

import typer

from lazyrestore.errors import Causes, KernelError, LazyRestoreError

from ._show import one_line, paint

FAILED = 1
USAGE = 2
BAD_IMAGE = 3
BROKEN_PIPE = 128 + signal.SIGPIPE
INTERRUPTED = 128 + signal.SIGINT

# What the parser of arguments raises. Its module is another from one typer to the next.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]

_HINTS = {
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name",
    errno.EEXIST: "give another name",
    errno.ENOTEMPTY: "give another name, or empty it",
    errno.ELOOP: "check the links",
    errno.ENXIO: "nobody has it open at the other end: start that first",
    errno.EBUSY: "end its other user",
    errno.ETXTBSY: "end its other user",
    errno.ENODEV: "give a regular file",
    errno.EFBIG: "raise the limit (ulimit -f), or write to another file system",
    errno.EAGAIN: "try again, or raise the limit (ulimit -u)",
    errno.ETIMEDOUT: "try again: the other side does not answer",
    errno.ESTALE: "the server has another file there now: open it again",
    errno.ECONNREFUSED: "nobody listens there: start the service",
    errno.EADDRINUSE: "another program listens there: give another",
    errno.EBADF: "it is closed; redirect it",
    errno.ESPIPE: "give a regular file: an image is read at many places",
    errno.EACCES: "ask its owner for the right, or be another user",
    errno.EPERM: "be another user",
    errno.EISDIR: "give the name of a file",
    errno.EROFS: "write elsewhere",
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENFILE: "raise the limit (fs.file-max)",
    errno.ENOMEM: "free some memory",
    errno.EIO: "check the disk, and take another copy",
}


class UsageError(LazyRestoreError):
    """The arguments do not go together, or one of them cannot be."""

    exit_code = USAGE
    causes: ClassVar[Causes] = (
        (
            "An option that is not there, is for something else, or lacks another.",
            "The message names it; `lazyrestore COMMAND --help` has all, and examples.",
        ),
        (
            "The image has several regions, and none was named.",
            "Add `--region NAME`; `lazyrestore ls IMAGE` has the names.",
        ),
    )


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: everything is undone on the way out, as with Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def prepare() -> None:
    """Make signals exceptions, and streams such that no text can fail to be printed."""
    _fill_closed_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _fill_closed_streams() -> None:
    """Where standard streams are closed, no image shall get their numbers, and text goes nowhere.

    What is to be read or written there by its number is an error.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd else os.O_WRONLY)  # gets the lowest number: fd
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if fd else "r"))  # noqa: SIM115


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


@contextlib.contextmanager
def stopping_means(message: str) -> Iterator[None]:
    """What is to be said if Ctrl-C or SIGTERM ends what is done here."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        error.args = (message,)
        raise


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """A ValueError from here means that an argument cannot be."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def fail(exit_code: int, message: str) -> NoReturn:
    """End a command that has printed its result, with a line of why it failed."""
    sys.stdout.flush()
    complain(message)
    raise typer.Exit(exit_code)


def complain(message: str) -> None:
    """One line on standard error."""
    with contextlib.suppress(OSError):
        who = paint("lazyrestore:", "bold red", sys.stderr)
        print(f"{who} {one_line(message)}", file=sys.stderr, flush=True)


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Tell what ended the command; its exit code."""
    try:
        sys.stdout.flush()
    except OSError as broken:
        _let_go_of_stdout()
        if isinstance(error, typer.Exit):
            error = broken
        # The same error, from a print or the flush at the end, which do not say where.
        if isinstance(error, OSError) and error.errno == broken.errno and error.filename is None:
            error.filename = "standard output"
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _let_go_of_stdout()
        return BROKEN_PIPE
    exit_code, message = _explain(error, arguments)
    if exit_code == FAILED and _command_of(arguments) == "diff":
        exit_code = USAGE  # FAILED says that images differ
    if os.environ.get("LAZYRESTORE_TRACEBACK") == "1":
        import traceback

        traceback.print_exception(error)
    if "--json" in arguments:
        _print_error(type(error).__name__, message, exit_code)
    complain(message)
    return exit_code


def _command_of(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _print_error(kind: str, message: str, exit_code: int) -> None:
    from ._show import print_json

    try:
        print_json({"error": {"type": kind, "message": message, "exit_code": exit_code}})
        sys.stdout.flush()
    except OSError:
        _let_go_of_stdout()


def _let_go_of_stdout() -> None:
    """Nobody reads it, or it is full: the interpreter's own flush at the end shall not fail too."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException, arguments: Sequence[str]) -> tuple[int, str]:
    if isinstance(error, LazyRestoreError):
        return error.exit_code, str(error) + _lesser_way(error, arguments)
    if isinstance(error, Terminated):
        return error.exit_code, str(error) or "terminated"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, str(error) or "interrupted"
    if isinstance(error, _ParserError):
        return USAGE, _explain_parser(error)
    if isinstance(error, OSError):
        return FAILED, _explain_os_error(error)
    if isinstance(error, MemoryError):
        return FAILED, str(error) or "out of memory: free some, or use fewer --threads"
    if isinstance(error, ImportError):
        return FAILED, str(error)
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return FAILED, "cannot start a thread: raise the limit (ulimit -u, ulimit -v)"
    kind = type(error).__name__
    hint = "set LAZYRESTORE_TRACEBACK=1 to see where, and report it"
    return FAILED, f"this should not happen: {kind}: {error}; {hint}"


def _lesser_way(error: LazyRestoreError, arguments: Sequence[str]) -> str:
    """What `restore --lazy` could do with the rights there are, if it was told that it may."""
    mine = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if (
        not isinstance(error, KernelError)
        or "--lazy" not in mine
        or "userfaultfd" not in str(error)
    ):
        return ""
    if any(argument.partition("=")[0] == "--privilege" for argument in mine):
        return ""
    from lazyrestore._doctor import has_only_user_mode

    if not has_only_user_mode():
        return ""
    return ", or add --privilege auto: all but system calls on pages that are not there works then"


def _explain_parser(error: BaseException) -> str:
    text = getattr(error, "format_message", error.__str__)().rstrip(".")
    text = " ".join(str(text).split()) or "a command is missing"
    text = text.replace("is not a valid int", "is not a whole number")
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", None) or "lazyrestore"
    return f"{text}{' See' if text.endswith('?') else '; see'} '{path} --help'"


def _explain_os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    hint = _HINTS.get(error.errno or 0)
    text = reason
    if error.filename is not None:
        name = str(error.filename) if isinstance(error.filename, int) else error.filename
        text = f"{os.fsdecode(name) or repr('')}: {reason}"
        folder = os.path.dirname(os.fsdecode(name))
        if error.errno == errno.ENOENT and folder and not os.path.isdir(folder):
            hint = f"there is no folder {folder}: make it, or check the name"
    # Some say it already.
    return f"{text}: {hint}" if hint and ":" not in reason else text
