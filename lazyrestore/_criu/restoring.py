"""`restore --lazy` of processes: a daemon that has the pages, and CRIU, which makes all the rest.

    with Restore(plan) as restore:
        running = restore.run()       # the processes run: their memory comes as it is touched
        code = restore.wait()         # or not: they are nobody's children then

What takes time overlaps: the daemon is forked first, and imports what it needs while this process
reads the image, and while CRIU starts; CRIU's connection waits in the socket's queue. Until the
processes run everything belongs to this process: if it fails, is interrupted or is killed, they
are ended, the daemon ends, and the folder is removed. From then on the daemon is on its own.

    this process ──fork──> daemon          imports, waits for "go", serves, ends with the last task
         └───────spawn───> criu restore    makes the tasks, and ends: they are ours, or init's
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from lazyrestore.errors import CriuError, LazyRestoreError

from .family import Family
from .find import Criu
from .folders import Pidfile, PrivateFolder
from .pager import ENDING, SOCKET_NAME, Daemon, listen

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .run import Running
    from .trees import RunningTree

_DAEMON_END_S = 20.0
_PASSED_ON = ENDING | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH}
_WAITED_FOR = _PASSED_ON | {signal.SIGCHLD}


class RestorePlan(NamedTuple):
    """What is to be restored, and how.

    Attributes:
        image: path.
        criu: what restores it.
        serve: what the daemon does, as `ServeOptions.to_record`; its image is this one.
        criu_options: more arguments of `criu restore`.
        pidfile: where the first process's number is written; None: nowhere.
        log: absolute path for what the daemon says; None: it tells this process, while that lives.
        begun_ns: time.perf_counter_ns() of the beginning: of the command, where there is one.
    """

    image: str
    criu: Criu
    serve: dict[str, object]
    criu_options: tuple[str, ...]
    pidfile: str | None
    log: str | None
    begun_ns: int


class NotProcesses(LazyRestoreError):
    """The image has memory, but no processes."""


class Interrupted(BaseException):
    """A signal came before the processes ran.

    Attributes:
        number: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Restore:
    """One restore; a context manager. To be used in the main thread, without other threads."""

    def __init__(self, plan: RestorePlan, daemon: Daemon | None = None) -> None:
        """Args:
        plan: what is to be done.
        daemon: one that was forked already; None: it is forked now.
        """
        self._plan = plan
        self._daemon = Daemon.fork() if daemon is None else daemon
        self._family = Family(mine=self._daemon.pid)
        self._folder: PrivateFolder | None = None
        self._pidfile: Pidfile | None = None
        self._runs = False
        self._root = 0
        self._mask: set[int] = set()

    def __enter__(self) -> Self:
        # They are waited for, and nothing interrupts what has to be undone.
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._runs:
                self._give_up()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def run(self) -> RunningTree:
        """Have CRIU restore the processes; returns when they run.

        Raises:
            CriuError: CRIU failed, or the daemon did.
            NotProcesses: the image has none.
            ImageError, OSError: the image cannot be used.
            Interrupted: a signal came.
        """
        plan = self._plan
        from lazyrestore._open import Image

        from .checkpoint import Checkpoint
        from .run import start

        image = Image(plan.image)
        checkpoint = Checkpoint.of(image)
        if checkpoint is None:
            raise NotProcesses(
                f"{plan.image} has memory, but no processes: dump one with"
                " `lazyrestore dump --process`"
            )
        self._folder = folder = PrivateFolder.make()
        listening = listen(os.path.join(folder.path, SOCKET_NAME))
        self._daemon.begin(plan.serve, folder, listening, plan.log)
        if plan.pidfile is not None:
            self._pidfile = Pidfile(plan.pidfile)
        images = os.path.join(folder.path, "images")
        os.mkdir(images, 0o700)
        checkpoint.write_lazy_folder(images)
        started = time.perf_counter_ns()
        arguments = ["--lazy-pages", "-d", "-D", images, "--pidfile", "pid", *plan.criu_options]
        criu = start(plan.criu, "restore", arguments, folder=folder.path)
        self._family.adopt_orphans()
        self._await(criu)
        ran = time.perf_counter_ns()
        self._root = folder.read_pid()
        if self._pidfile is not None:
            self._pidfile.commit(self._root)
        self._daemon.let_go()
        self._runs = True
        report = self._report(checkpoint, started, ran)
        folder.remove()
        return report

    def _report(self, checkpoint: Checkpoint, started: int, ran: int) -> RunningTree:
        lazy = sum(
            length
            for task in checkpoint.tasks
            for _, length, _, _ in checkpoint.lazy_ranges(task.pid)
        )
        begun = self._plan.begun_ns
        from .trees import RunningTree

        return RunningTree(
            path=self._plan.image,
            pid=self._root,
            tasks=checkpoint.tasks,
            daemon_pid=self._daemon.pid,
            lazy_bytes=lazy,
            ready_us=(started - begun) / 1e3,
            criu_us=(ran - started) / 1e3,
            run_us=(ran - begun) / 1e3,
        )

    def _await(self, criu: Running) -> None:
        """Wait until CRIU has ended well."""
        while True:
            self._family.look()
            code = self._family.code(criu.pid)
            ended = self._family.code(self._daemon.pid)
            if code == 0 and ended in (None, 0):
                return
            if ended is not None:
                raise CriuError(
                    f"the restore of {self._plan.image} was given up: the daemon that has its"
                    f" memory ended ({_how(ended)}){self._daemon.last_words()}: nothing is left of"
                    " it, try again"
                )
            if code is not None:
                criu.code = code
                raise self._failure(criu)
            number = signal.sigwaitinfo(_WAITED_FOR).si_signo
            if number in ENDING:
                raise Interrupted(number)

    @property
    def said(self) -> int:
        """Where the daemon says what happens; see `bad_news`."""
        return self._daemon.said

    def _failure(self, criu: Running) -> CriuError:
        error, words = criu.failure(), self._daemon.last_words()
        return CriuError(f"{error}; the daemon that has the memory says{words}") if words else error

    def wait(self) -> int:
        """Wait until the first process ends, and pass on to it the signals that come here.

        Returns:
            Its exit code; 128 + N where signal N ended it.
        """
        while True:
            self._family.look()
            code = self._family.code(self._root)
            if code is not None:
                return code if code >= 0 else 128 - code
            info = signal.sigwaitinfo(_WAITED_FOR)
            if info.si_signo != signal.SIGCHLD:
                self._pass_on(info)

    def _pass_on(self, info: signal.struct_siginfo) -> None:
        with contextlib.suppress(ProcessLookupError):
            # What a terminal sends (the kernel does), it sends to all of the group.
            if info.si_code <= 0 or os.getpgid(self._root) != os.getpgrp():
                os.kill(self._root, info.si_signo)

    def _give_up(self) -> None:
        """Leave nothing: no process, no daemon, no folder."""
        daemon = self._daemon
        self._family.end(but=[daemon.pid])
        if daemon.has_begun:
            daemon.give_up()
            self._family.end_child(daemon.pid, _DAEMON_END_S)
            self._family.end()
        else:
            daemon.discard()
        if self._pidfile is not None:
            self._pidfile.cancel()
        if self._folder is not None:
            self._folder.remove()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
