"""Runs the code blocks of a page, in order, in the current folder: run_page.py PAGE.

Prints each thing that it runs, with its place in the page, and its output. Ends with 1 after the
first that fails or prints something else than the page says. What it starts ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import BinaryIO

import criu_support
from page_blocks import Page, Step, differs, read_page

PR_SET_CHILD_SUBREAPER = 36

# Runs blocks in one namespace, as somebody would who pastes them. Line numbers are the page's.
INTERPRETER = r"""
import os, sys, traceback, types
requests, answers = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w")
main = types.ModuleType("__main__")
sys.modules["__main__"] = main
sys.argv = [""]
for request in requests:
    path, place, line, folder = request.rstrip("\n").split("\t")
    os.chdir(folder)
    with open(path, encoding="utf-8") as file:
        source = "\n" * (int(line) - 1) + file.read()
    try:
        exec(compile(source, place, "exec"), main.__dict__)
        result = "0"
    except BaseException:
        traceback.print_exc()
        result = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    print(result, file=answers, flush=True)
"""
SHELL = r"""
requests_fd=$1 answers_fd=$2 last_status=0
set --
while read -r block_path block_out <&"$requests_fd"; do
    (exit "$last_status")
    . "$block_path" > "$block_out" 2>&1 < /dev/null
    last_status=$?
    echo "$last_status" >&"$answers_fd"
done
"""


class Failed(Exception):
    """A block failed; the message says how."""


def why_not(needed: str) -> str | None:
    """Why something that a page needs is not here; None: it is.

    Raises:
        Failed: there is no such thing, or it is missing where it must not.
    """
    if needed == "root":
        return None if os.geteuid() == 0 else "needs root"
    if needed != "criu":
        raise Failed(f"a page cannot ask for {needed!r}")
    why = criu_support.why_not()
    if why is None:
        os.environ["CRIU"] = str(criu_support.find_criu())
    elif os.environ.get("CI") == "true":
        raise Failed(why)
    return why


class Worker:
    """A process that is told of files to run, and answers with a line when each is done.

    It gets two more arguments: the descriptors to read requests from and write answers to.
    """

    def __init__(self, command: list[str], output: BinaryIO | None, folder: str = ".") -> None:
        requests, self._to = os.pipe()
        self._from, answers = os.pipe()
        self.process = subprocess.Popen(
            [*command, str(requests), str(answers)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            pass_fds=(requests, answers),
        )
        os.close(requests)
        os.close(answers)

    def ask(self, request: str, limit_s: float) -> int:
        os.write(self._to, request.encode() + b"\n")
        if not select.select([self._from], [], [], limit_s)[0]:
            raise Failed(f"it was not done after {limit_s:.0f} s")
        answer = os.read(self._from, 16)
        if not answer:
            raise Failed(f"it ended the process: {self.process.wait()}")
        return int(answer)


class Runner:
    def __init__(self, page: Page, scratch: Path, limit_s: float) -> None:
        self._page, self._scratch, self._limit_s = page, scratch, limit_s
        self._number = 0
        self._python: Worker | None = None
        self._printed = scratch / "python.out"
        script = scratch / "shell"
        script.write_text(SHELL, encoding="utf-8")
        # Before the shell is started: it gets CRIU's path.
        self._lacking = {step.name: why_not(step.name) for step in page.steps if step.kind == "if"}
        self._shell = Worker(["bash", "--norc", str(script)], None)
        self._workers = {self._shell.process.pid}
        threading.Thread(target=reap_orphans, args=(self._workers,), daemon=True).start()

    def run(self) -> None:
        lacking: str | None = None
        for number, step in enumerate(self._page.steps):
            if step.kind in ("if", "fi"):
                lacking = self._lacking.get(step.name)
            if lacking:
                print(f"--- {self._page.path.name}:{step.line}: not run: {lacking}", flush=True)
                continue
            after = self._page.steps[number + 1] if number + 1 < len(self._page.steps) else None
            print(f"--- {self._page.path.name}:{step.line}: {step.kind} {step.name}", flush=True)
            if step.kind in ("skip", "file", "if", "fi"):
                if step.kind == "file":
                    Path(self._ask_shell("pwd")[0], step.name).write_text(step.text, "utf-8")
                continue
            print(step.text.rstrip(), flush=True)
            begin = time.monotonic()
            status, output = self._run_step(step)
            print("\n".join(output))
            print(f"--- {status}, {time.monotonic() - begin:.2f} s", flush=True)
            # A page shows a failure by asking for its exit code.
            if status and not (after and after.kind == step.kind and after.text == "echo $?"):
                raise Failed(f"it failed: {status}")
            if step.expected is not None:
                problem = differs(step.expected, output, loose=step.kind == "shell")
                if problem:
                    raise Failed(problem)

    def _run_step(self, step: Step) -> tuple[int, list[str]]:
        self._number += 1
        path = self._scratch / f"{self._number}.txt"
        path.write_text(step.text + "\n", encoding="utf-8")
        if step.kind == "shell":
            out = self._scratch / f"{self._number}.out"
            status = self._shell.ask(f"{path} {out}", self._limit_s)
            return status, out.read_text(encoding="utf-8", errors="replace").split("\n")
        # The shell's folder and, where the page made a venv, that one's interpreter.
        program, folder = self._ask_shell("command -v python; pwd")
        if self._python is None:
            with self._printed.open("wb") as output:
                self._python = Worker([program, "-c", INTERPRETER], output, folder)
            self._workers.add(self._python.process.pid)
        before = self._printed.stat().st_size
        request = f"{path}\t{self._page.path}\t{step.line}\t{folder}"
        status = self._python.ask(request, self._limit_s)
        printed = self._printed.read_bytes()[before:]
        return status, printed.decode(errors="replace").split("\n")

    def _ask_shell(self, command: str) -> list[str]:
        """The lines that a command prints in the page's shell."""
        path = self._scratch / "question"
        path.write_text(f"{command}; (exit $last_status)\n", encoding="utf-8")
        self._shell.ask(f"{path} {path}.out", self._limit_s)
        return Path(f"{path}.out").read_text(encoding="utf-8").splitlines()


def reap_orphans(workers: set[int]) -> None:
    """What a block has left in the background, and has ended, is waited for, as init would: its
    number is free then, which restored processes need. Ends with the first worker."""
    while True:
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            if ended is None or ended.si_pid in workers:
                return
            os.waitpid(ended.si_pid, 0)


def end_descendants() -> None:
    """Kill what is left, also what went into the background: it is all ours, as its subreaper."""
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def main() -> int:
    page = read_page(Path(sys.argv[1]).resolve())
    limit_s = float(os.environ.get("BLOCK_LIMIT_S", "120"))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="blocks-") as scratch:
        try:
            Runner(page, Path(scratch), limit_s).run()
        except Failed as failure:
            print(f"=== {failure}", flush=True)
            return 1
        finally:
            end_descendants()
    return 0


if __name__ == "__main__":
    sys.exit(main())
