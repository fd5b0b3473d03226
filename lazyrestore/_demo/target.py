"""The demo's side of the program that it dumps: start it, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lazyrestore.errors import LazyRestoreError

_TIMEOUT_S = 120.0


class Target:
    """A running `lazyrestore._demo.state`. A context manager that ends it, whatever happens.

    Attributes:
        pid: of the process.
        build_seconds: how long it took to build its state.
    """

    def __init__(self, nbytes: int) -> None:
        # -P keeps the current folder, whatever lies in it, out of the program's imports.
        command = [sys.executable, "-P", "-m", "lazyrestore._demo.state", str(nbytes)]
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C is for the demo, which then ends it: a starting interpreter would complain.
            process_group=0,
        )
        self.pid = self._process.pid
        self.build_seconds = 0.0

    def wait_ready(self) -> None:
        """Wait until it has built its state."""
        self.build_seconds = self._read()["build_seconds"]

    def describe(self) -> dict[str, Any]:
        """Where its buffers and some objects are, and their digests."""
        return self._ask({"describe": True})

    def ask(self, word: str) -> dict[str, Any]:
        """A question that it answers from its memory: `lines` with that word; `beats` counted."""
        return self._ask({"word": word})

    def _ask(self, question: dict[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: reading says so
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # A process that is stopped for good, or hangs, must not take the demo with it.
        timer = threading.Timer(_TIMEOUT_S, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            code = self._process.wait()
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise LazyRestoreError(
                f"the demo's program (pid {self.pid}) ended {how}: is there memory enough?"
                " Try a smaller --size"
            )
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
