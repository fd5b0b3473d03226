"""W1 to W6: whole processes, beside CRIU alone."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import checkpointed as how
from .bench import Bench, pick
from .checkpointed import Checkpoint, Restore
from .data import MIB
from .runner import NotMeasuredError, Row, in_turns

_TOUCHES, _QUICK_TOUCHES = 20_000, 4_000
_SLOW_NS = 3000  # more than a touch takes of a page that is there
_SPOTS = 10  # of 1 MiB
_KEYS, _QUICK_KEYS = 1_000_000, 100_000
_COPIES = 3


@contextlib.contextmanager
def _set(bench: Bench) -> Iterator[Checkpoint]:
    with how.heir():
        yield how.setting(bench.data, bench.is_quick)


def _size(bench: Bench) -> str:
    return "256 MiB" if bench.is_quick else "2 GiB"


def _first(at: Checkpoint, by: Callable[..., None], *options: object) -> float:
    """Milliseconds until the program's first progress."""
    with Restore(at, by, *options) as restore:
        return restore.first_ms


def eager(bench: Bench) -> Iterator[Row]:
    """W1: from the command to the first progress, against reading all of it before."""
    with _set(bench) as at:
        found = in_turns(
            {
                "ours": functools.partial(_first, at, how.ours),
                "eager": functools.partial(_first, at, how.eager),
            },
            bench.repeats,
        )
    yield Row(
        "W1",
        f"first progress of a process of {_size(bench)}",
        data="all three",
        unit="ms",
        ours=found["ours"],
        peer_name="criu restore",
        peer=found["eager"],
        is_faster=True,
        limit=10,
    )


def lazy(bench: Bench) -> Iterator[Row]:
    """W2: the same against CRIU's own daemon, with its start and without."""
    with _set(bench) as at:
        found = in_turns(
            {
                "ours": functools.partial(_first, at, how.ours),
                "theirs": functools.partial(_first, at, how.theirs),
                "ours up": functools.partial(_first, at, how.ours_with_daemon_up),
                "theirs up": functools.partial(_first, at, how.theirs, True),
            },
            bench.repeats,
        )
    for suffix, what, limit in (("", "", 1.6), (" up", ", daemon already up", 1.1)):
        yield Row(
            "W2",
            f"first progress of a process of {_size(bench)}{what}",
            data="all three",
            unit="ms",
            ours=found["ours" + suffix],
            peer_name="criu lazy-pages and restore",
            peer=found["theirs" + suffix],
            limit=limit,
        )


def _touches(
    at: Checkpoint, count: int, by: Callable[..., None], *options: object
) -> dict[str, Any]:
    """Random touches from the first moment on: those that waited, and until all is there."""
    order = {"order": how.TOUCH, "count": count, "seed": 11, "slow_ns": _SLOW_NS}
    begin = time.monotonic()
    with Restore(at, by, *options, **order) as restore:
        restore.board.wait_for("done")
        waits = restore.board.waits_us()
        if not options:
            restore.mark.wait_for_end()
        span_s = time.monotonic() - begin
    middle, last = (waits[int(share * len(waits))] for share in (0.5, 0.99))
    return {"p50": middle, "p99": last, "count": len(waits), "s": span_s, "sum": sum(waits) / 1000}


def touches(bench: Bench) -> Iterator[Row]:
    """W3: random touches while all of it is being loaded."""
    count = _QUICK_TOUCHES if bench.is_quick else _TOUCHES
    with _set(bench) as at:
        found = in_turns(
            {
                "ours": functools.partial(_touches, at, count, how.ours),
                "theirs": functools.partial(_touches, at, count, how.theirs),
                "on demand": functools.partial(_touches, at, count, how.ours, "--prefetch", "none"),
            },
            min(5, bench.repeats),
        )
    slow = " and ".join(
        f"{sorted(pick(found[name], 'count'))[len(found[name]) // 2]:,.0f} of {who}"
        for name, who in (("ours", "ours"), ("theirs", "theirs"))
    )
    for name, what in (("ours", "beside the fill"), ("on demand", "on demand only")):
        for key in ("p50", "p99"):
            is_target = name == "ours"
            yield Row(
                "W3",
                f"{key} of touches that waited, {what}",
                data="all three",
                ours=pick(found[name], key),
                peer_name="criu lazy-pages",
                peer=pick(found["theirs"], key),
                limit=0.5 if is_target else None,
                note=f"waited of {count:,}: {slow}" if is_target else "",
            )
    for key, what, unit in (
        ("sum", f"all waits of {count:,} touches", "ms"),
        ("s", "until all is there", "s"),
    ):
        yield Row(
            "W3",
            what,
            data="all three",
            unit=unit,
            ours=pick(found["ours"], key),
            peer_name="criu lazy-pages",
            peer=pick(found["theirs"], key),
        )


# ---- Size ----------------------------------------------------------------------------------------


def _users(count: int) -> Iterator[bytes]:
    """Commands that set keys as services do: JSON with names, times and a random token."""
    chance = random.Random(1)
    cities = ("Aberdeen", "Bergen", "Coimbra", "Debrecen", "Esbjerg", "Faro", "Ghent", "Hamar")
    for number in range(count):
        user = {
            "id": number,
            "name": f"user {number}",
            "city": chance.choice(cities),
            "seen": 1_700_000_000 + chance.randrange(10_000_000),
            "balance": round(chance.expovariate(0.01), 2),
            "token": f"{chance.getrandbits(64):016x}",
        }
        key, value = f"user:{number}".encode(), json.dumps(user).encode()
        yield b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)


def _fill_redis(path: str, how_filled: str, keys: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        file = sock.makefile("rwb")
        if how_filled == "populate":
            file.write(b"DEBUG POPULATE %d\r\n" % keys)
            file.flush()
            answers = [file.readline()]
        else:
            commands, answers = _users(keys), []
            while piece := list(itertools.islice(commands, 2000)):
                file.write(b"".join(piece))
                file.flush()
                answers += [file.readline() for _ in piece]
        if set(answers) != {b"+OK\r\n"}:
            raise RuntimeError(f"redis-server said {set(answers)}")
        file.close()


def _redis_sizes(criu: str, how_filled: str, keys: int) -> dict[str, int]:
    server = shutil.which("redis-server")
    if server is None:
        raise NotMeasuredError("redis-server is missing: apt-get install redis-server")
    with tempfile.TemporaryDirectory(prefix="lazyrestore-bench-") as folder:
        path, theirs, image = f"{folder}/socket", Path(folder, "criu"), Path(folder, "redis.lzr")
        theirs.mkdir()
        options = f"--port 0 --unixsocket {path} --dir {folder} --enable-debug-command yes"
        process = subprocess.Popen(
            [server, *options.split(), "--save", ""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            how.wait_until("redis-server listens", lambda: os.path.exists(path))
            _fill_redis(path, how_filled, keys)
            time.sleep(0.5)  # until the client is forgotten
            how.run(
                [criu, "dump", "-R", "-D", str(theirs), "-o", "dump.log", "-t", str(process.pid)]
            )
            how.run(how.lazyrestore("dump", "--process", process.pid, image), how.with_criu(criu))
            return {"ours": image.stat().st_size, "theirs": how.folder_bytes(theirs)}
        finally:
            process.kill()
            process.wait()


def size(bench: Bench) -> Iterator[Row]:
    """W4: the image of redis-server with a million keys."""
    keys = _QUICK_KEYS if bench.is_quick else _KEYS
    criu = how.find_criu()
    for filled, what in (("users", "JSON"), ("populate", "DEBUG POPULATE")):
        with how.heir():
            found = _redis_sizes(criu, filled, keys)
        yield Row(
            "W4",
            f"image of redis-server, {keys:,} keys",
            data=what,
            unit="MiB",
            ours=[found["ours"] / MIB],
            peer_name="criu dump",
            peer=[found["theirs"] / MIB],
            limit=0.4 if filled == "users" else None,
        )


# ---- Memory --------------------------------------------------------------------------------------


def _resident(at: Checkpoint, *options: object) -> dict[str, float]:
    """MiB, a second after a restore on demand that touched some spots."""
    order = {"order": how.SPOTS, "count": _SPOTS, "seed": 5}
    with Restore(at, how.ours, "--prefetch", "none", *options, **order) as restore:
        begin = time.monotonic()
        restore.board.wait_for("done")
        time.sleep(max(0.0, begin + 1 - time.monotonic()))
        serving = restore.mark.processes()
        return {
            "process": how.memory_kib(at.pid, "Rss") / 1024,
            "daemon": max(how.memory_kib(pid, "Rss") for pid in serving) / 1024,
            "all": sum(how.memory_kib(pid, "Pss") for pid in serving) / 1024,
            "count": len(serving),
        }


def memory(bench: Bench) -> Iterator[Row]:
    """W5: what is resident where little was touched."""
    with _set(bench) as at:
        found = in_turns({"ours": functools.partial(_resident, at)}, bench.few)["ours"]
    what = f"of {_size(bench)}, {_SPOTS} MiB touched, on demand"
    count = found[0]["count"]
    for key, who, limit in (
        ("process", f"process {what}", 40.0),
        ("daemon", "its daemon", 32.0),
        ("all", f"the {count:g} processes that serve it, shared pages once", None),
    ):
        yield Row(
            "W5",
            f"resident memory: {who}",
            data="all three",
            unit="MiB",
            ours=pick(found, key),
            limit=limit,
        )


# ---- Several -------------------------------------------------------------------------------------


def several(bench: Bench) -> Iterator[Row]:
    """W6: three restores of one image at once, each in a PID namespace of its own."""
    if shutil.which("unshare") is None:
        raise NotMeasuredError("unshare is missing: apt-get install util-linux")
    pages = _QUICK_TOUCHES
    order = {"order": how.CHECK, "count": pages, "seed": 3}
    with _set(bench) as at:
        found = in_turns(
            {
                "three": functools.partial(how.at_once, at, _COPIES, **order),
                "one": functools.partial(how.at_once, at, 1, **order),
            },
            min(5, bench.repeats),
        )
    last = [first[-1] for first, _ in found["three"]]
    what = f"first progress of {_size(bench)}, the third of three at once"
    shared: dict[str, Any] = {"data": "all three", "unit": "ms", "ours": last}
    peer = [first[0] for first, _ in found["three"]]
    yield Row("W6", what, **shared, peer_name="the first of them", peer=peer, limit=1.5)
    alone = [first[0] for first, _ in found["one"]]
    yield Row("W6", what, **shared, peer_name="one alone", peer=alone)
    yield Row(
        "W6",
        f"wrong pages of {_COPIES * pages:,} that they checked",
        data="all three",
        unit="pages",
        ours=[float(wrong) for _, wrong in found["three"]],
        limit=0,
    )
