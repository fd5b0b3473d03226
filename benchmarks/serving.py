"""S1 to S5: memory of other processes, by `lazyrestore serve`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from .bench import Bench, pick
from .data import GIB, MIB, ROOT, environment
from .runner import NotMeasuredError, Row, in_turns

_PAGES, _QUICK_PAGES = 20_000, 5_000
_READY_S = 30
_PEERS = 16


class Peer:
    """A task of `served.py`, which waits until it is told to go on."""

    def __init__(self, task: str, **arguments: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.served", task, json.dumps(arguments)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> dict[str, Any]:
        """Its next object."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "missing" in found:
            raise NotMeasuredError(found["missing"])
        return found

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Service:
    """`lazyrestore serve` with its keeper, which loads nothing ahead.

    Attributes:
        path: of its socket.
        pid: of the process that serves first.
    """

    def __init__(self, image: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lazyrestore-bench-")
        self._stack = contextlib.ExitStack()
        self.path = str(Path(self._folder.name) / "socket")
        ready, write = os.pipe()
        options = ["--socket", self.path, "--prefetch", "none", "--status-fd", str(write)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lazyrestore", "serve", str(image), *options],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write],
            start_new_session=True,
        )
        self.pid = self._process.pid
        os.close(write)
        with open(ready, "rb") as file:
            if not file.read(1):
                raise NotMeasuredError("lazyrestore serve did not start here")
        _until(lambda: len(self.processes()) == 2, "its keeper starts")

    def peer(self, task: str, **arguments: Any) -> Peer:
        """Start one, which is ended with the service."""
        peer = Peer(task, path=self.path, **arguments)
        self._stack.callback(peer.close)
        return peer

    def measure(self, task: str, **arguments: Any) -> dict[str, Any]:
        """One peer by itself: what it found."""
        peer = self.peer(task, **arguments)
        peer.wait()
        peer.go_on()
        return peer.wait()

    def processes(self) -> list[int]:
        """The service, and the keeper that it started."""
        found = [self.pid]
        with contextlib.suppress(FileNotFoundError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        _end_all(self._process, self.path)
        self._folder.cleanup()


def _until(is_so: Any, what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it never happened that {what}")
        time.sleep(0.005)


def _end_all(process: subprocess.Popen[bytes], path: str) -> None:
    """The service, or whoever went on for it: that ends when its last peer is gone."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_READY_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- Rows ----------------------------------------------------------------------------------------


def _served(image: Path, task: str, **arguments: Any) -> dict[str, Any]:
    """A task by a peer of a service of its own."""
    with Service(image) as service:
        return service.measure(task, **arguments)


def fault(bench: Bench) -> Iterator[Row]:
    """S1: a fault of a peer, against one of a session in the process itself."""
    pages = min(_QUICK_PAGES if bench.is_quick else _PAGES, bench.data.pages)
    for number, name in enumerate(bench.names):
        image = bench.data.image(name, 4096)
        found = in_turns(
            {
                "served": functools.partial(_served, image, "faults", pages=pages),
                "own": bench.task("touch", image=image, pages=pages),
            },
            bench.repeats,
        )
        yield Row(
            "S1",
            "fault p50 of a served process, 4K",
            data=name,
            ours=pick(found["served"], "p50"),
            peer_name="in-process",
            peer=pick(found["own"], "p50"),
            limit=1.3 if number == 0 else None,
        )


def _fleet(image: Path, peers: int, pages: int) -> dict[str, Any]:
    """So many peers at once: faults a second of all, and of the slowest by the mean's."""
    with Service(image) as service:
        fleet = [service.peer("faults", pages=pages, seed=seed + 1) for seed in range(peers)]
        for peer in fleet:
            peer.wait()
        for peer in fleet:
            peer.go_on()
        found = [peer.wait() for peer in fleet]
    span_s = (max(one["end"] for one in found) - min(one["begin"] for one in found)) / 1e9
    rates = [one["count"] / (one["end"] - one["begin"]) * 1e9 for one in found]
    return {
        "rate": sum(one["count"] for one in found) / span_s,
        "slowest": min(rates) / statistics.mean(rates),
    }


def many(bench: Bench) -> Iterator[Row]:
    """S2: 16 peers of one image at once, against one that touches as much as all of them."""
    pages = min(1_600 if bench.is_quick else 4_800, bench.data.pages)
    name = bench.names[0]
    image = bench.data.image(name)
    found = in_turns(
        {
            "all": functools.partial(_fleet, image, _PEERS, pages // _PEERS),
            "one": functools.partial(_fleet, image, 1, pages),
        },
        bench.repeats,
    )
    yield Row(
        "S2",
        f"clusters a second, {_PEERS} served processes at once",
        data=name,
        unit="/s",
        ours=pick(found["all"], "rate"),
        peer_name="one alone",
        peer=pick(found["one"], "rate"),
        is_more=True,
        limit=1.0,
    )
    yield Row(
        "S2",
        "the slowest of them, by the mean",
        data=name,
        unit="×",
        ours=pick(found["all"], "slowest"),
        is_more=True,
        limit=0.5,
    )


def first(bench: Bench) -> Iterator[Row]:
    """S3: a guest's memory of 1 GiB, from connecting to its first page."""
    nbytes = GIB // 4 if bench.is_quick else GIB
    image = bench.data.large(nbytes)
    found = in_turns(
        {"ours": functools.partial(_served, image, "first_fault", length=nbytes)}, bench.repeats
    )
    yield Row(
        "S3",
        f"first page of {nbytes // MIB} MiB after connecting",
        data="all",
        unit="ms",
        ours=[us / 1000 for us in pick(found["ours"], "us")],
        limit=2.0,
    )


def takeover(bench: Bench) -> Iterator[Row]:
    """S4: from SIGKILL of who serves to the next page."""
    image = bench.data.image(bench.names[0], 4096)

    def kill() -> dict[str, Any]:
        with Service(image) as service:
            return service.measure("takeover", pid=service.pid)

    found = in_turns({"ours": kill}, bench.repeats)
    yield Row(
        "S4",
        "next page after the service was killed",
        data=bench.names[0],
        unit="ms",
        ours=[us / 1000 for us in pick(found["ours"], "us")],
        limit=200.0,
    )


def _resident_kib(processes: list[int]) -> int:
    """What they have of memory, with page tables."""
    total = 0
    for pid in processes:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        total += sum(int(found[key].split()[0]) for key in ("VmRSS", "VmPTE"))
    return total


def _memory(image: Path, peers: int) -> dict[str, Any]:
    """What service and keeper grow by for each peer after the first."""
    with Service(image) as service:
        sizes = []
        for _ in range(1 + peers):
            service.peer("idle", pages=100).wait()
            sizes.append(_resident_kib(service.processes()))
    return {"mib": (sizes[-1] - sizes[0]) / peers / 1024}


def idle(bench: Bench) -> Iterator[Row]:
    """S5: what the service keeps for a peer that does nothing any more."""
    image = bench.data.image(bench.names[0])
    found = in_turns(
        {"ours": functools.partial(_memory, image, 8 if bench.is_quick else 32)}, bench.few
    )
    yield Row(
        "S5",
        "resident memory of service and keeper, an idle process more",
        data=bench.names[0],
        unit="MiB",
        ours=pick(found["ours"], "mib"),
        limit=1.0,
    )
