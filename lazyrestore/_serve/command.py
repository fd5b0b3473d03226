"""A program of one's own with a service beside it: `lazyrestore restore --lazy IMAGE -- COMMAND`.

The service runs in a thread of this process, on a private socket that COMMAND finds by
LAZYRESTORE_SOCKET. COMMAND stays in this process's group, so that what the terminal sends (Ctrl-C,
Ctrl-Z, the end of the session) reaches it by itself, once. What others send to this process alone
is passed on. This process waits, and ends as COMMAND did.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence

from lazyrestore.errors import LazyRestoreError

from . import listen
from .images import Images
from .options import ServeOptions
from .run import check_plan
from .service import Service

SOCKET_VARIABLE = "LAZYRESTORE_SOCKET"
NOT_FOUND = 127
NOT_STARTED = 126
_END_S = 5.0
_PASSED_ON = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGCONT,
}
# Ignored by Python, which programs do not expect.
_BACK_TO_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)

Say = Callable[[str], None]


class CommandNotStarted(LazyRestoreError):
    """COMMAND cannot be started.

    Attributes:
        code: what to end with: 127 where there is no such program, else 126.
    """

    def __init__(self, program: str, error: OSError) -> None:
        hint = "check the name"
        if error.errno == errno.EACCES and os.path.isfile(program):
            hint = f"make it a program: chmod +x {program}"
        elif error.errno == errno.ENOEXEC:
            hint = "it begins with no #! line: add one, as #!/bin/sh"
        super().__init__(f"cannot start {program}: {error.strerror or error}: {hint}")
        self.code = NOT_FOUND if error.errno == errno.ENOENT else NOT_STARTED


def run(options: ServeOptions, command: Sequence[str], say: Say) -> int:
    """Serve an image to COMMAND alone, until it ends.

    To be called in the main thread, which waits for signals meanwhile.

    Args:
        options: image, what is loaded ahead, and what becomes of errors.
        command: the program and its arguments.
        say: is given a line for each thing that goes wrong.

    Returns:
        Its exit code; 128 + N where signal N ended it.

    Raises:
        CommandNotStarted: it cannot be started.
        OSError, ImageError, WorkingSetError: the image or the working set cannot be used.
        ValueError: the options do not go together.
        LazyRestoreError: the socket cannot be made, or the service failed.
    """
    images = Images(options.image)
    images.check()
    check_plan(options, images)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    try:
        with _private_folder() as folder, _Beside(options, images, folder, say) as beside:
            environment = {**os.environ, SOCKET_VARIABLE: beside.path}
            pid = _start(command, environment, before, limit)
            return _Watched(pid).wait(beside)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    """A folder that only this user can look into, with a path short enough for sockets."""
    where = tempfile.gettempdir()
    if len(os.fsencode(where)) > listen.PATH_BYTES_MAX - 32:
        where = "/tmp"
    with tempfile.TemporaryDirectory(
        prefix="lazyrestore-", dir=where, ignore_cleanup_errors=True
    ) as folder:
        yield folder


def _start(
    command: Sequence[str],
    environment: dict[str, str],
    mask: Collection[int],
    limit: tuple[int, int],
) -> int:
    """Start COMMAND with the signals and limits that this process was started with; its pid."""
    raised = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    try:
        return os.posix_spawnp(
            command[0], list(command), environment, setsigmask=mask, setsigdef=_BACK_TO_DEFAULT
        )
    except OSError as error:
        raise CommandNotStarted(command[0], error) from None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, raised)


class _Beside:
    """A service in a thread of its own; a context manager that waits until it listens."""

    def __init__(self, options: ServeOptions, images: Images, folder: str, say: Say) -> None:
        self.path = os.path.join(folder, "pages.sock")
        self.failure: BaseException | None = None
        self._options = options
        self._images = images
        self._say = say
        self._is_ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self._thread = threading.Thread(target=self._run, name="lazyrestore-serve")

    def __enter__(self) -> _Beside:
        self._listener = listen.bind(self.path)
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        service, loop = self._service, self._loop
        if service is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # it has failed, and closed its loop
                loop.call_soon_threadsafe(service.ended.set)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.failure = error
        finally:
            self._is_ready.set()
            # Whoever waits for signals shall look.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGCHLD)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._service = service = Service(self._options, self._images, emit=self._emit)
        service.start()
        service.add_listener(self._listener)
        self._is_ready.set()
        await service.ended.wait()
        await service.close()

    def _emit(self, name: str, **fields: object) -> None:
        if name == "refused":
            self._say(f"process {fields.get('pid')} is not served: {fields.get('reason')}")
        elif name == "error" and "region" in fields:
            self._say(
                f"process {fields.get('pid')}: region {fields['region']!r} at offset"
                f" {fields.get('offset')} cannot be loaded: {fields.get('reason')}"
            )
        elif name == "error":
            self._say(str(fields.get("reason")))


class _Watched:
    """COMMAND, while it runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None
        self._is_stopped = False
        self._shall_stop = False

    def wait(self, beside: _Beside) -> int:
        """Pass signals on until it ends; its exit code."""
        try:
            while self._code is None:
                self._take(signal.sigwaitinfo(_PASSED_ON | {signal.SIGCHLD}))
                if beside.failure is not None:
                    raise LazyRestoreError(
                        f"the service has failed: {beside.failure!r}: the program is ended"
                    )
            return self._code
        finally:
            self._end()

    def _take(self, info: signal.struct_siginfo) -> None:
        if info.si_signo == signal.SIGCHLD:
            self._look()
        else:
            self._shall_stop = info.si_signo == signal.SIGTSTP
            # What the kernel sends, for the terminal, it sends to all of the group.
            if info.si_code <= 0:
                self._send(info.si_signo)
        if self._shall_stop and self._is_stopped:
            # As COMMAND is, so that the shell takes note. It goes on from here.
            self._shall_stop = False
            os.kill(os.getpid(), signal.SIGSTOP)

    def _look(self) -> None:
        while self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                self._is_stopped = True
            elif os.WIFCONTINUED(status):
                self._is_stopped = False
            else:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code

    def _send(self, number: int) -> None:
        if self._code is None:  # not waited for yet, so the number is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, number)

    def _end(self) -> None:
        """Where it is given up: let nobody be left behind."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._code is not None:
                return
            self._send(signal.SIGCONT)
            self._send(number)
            with contextlib.suppress(ChildProcessError):
                while self._code is None and signal.sigtimedwait([signal.SIGCHLD], _END_S):
                    self._look()
