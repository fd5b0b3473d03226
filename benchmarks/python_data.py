"""P1, P2, P3, P5: arrays of a state, by their names, beside what Python programs use for that."""

from __future__ import annotations

import functools
import pickle
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import lazyrestore

from .bench import Bench, pick
from .data import GIB, MIB, environment, numeric_arrays
from .peers import timed
from .runner import Row, in_turns

SMALL = MIB
# Values with noise in every digit, as of a model; and such as instruments give them.
ARRAYS = ("embeddings", "sensors")
PEERS = {
    "npz": "numpy.load of a compressed npz",
    "joblib": "joblib.load (compressed)",
    "pickle": "pickle.load",
    "mmap": "numpy.load(mmap_mode)",
    "safetensors": "safetensors",
}


def _files(bench: Bench, nbytes: int) -> dict[str, str]:
    """One state in all ways: the names of the files."""
    arrays = functools.cache(lambda: numeric_arrays(nbytes))
    made: dict[str, Path] = {}

    def write(way: str, suffix: str, do: Callable[[Path], object]) -> None:
        made[way] = bench.data.made(f"state-{nbytes // MIB}m{suffix}", do)

    write("ours", ".lzr", lambda path: lazyrestore.dump(arrays(), path))
    write("mmap", "-npy", lambda path: _write_each(path, arrays()))
    write("pickle", ".pickle", lambda path: _write_pickle(path, arrays()))
    packers: list[tuple[str, str, Callable[[Path], object]]] = [
        ("npz", ".npz", lambda path: _write_npz(path, arrays()))
    ]
    try:
        import joblib  # type: ignore[import-untyped]

        packers.append(("joblib", ".joblib", lambda path: joblib.dump(arrays(), path, compress=3)))
    except ImportError:
        bench.say("joblib is missing: pip install joblib")
    try:
        from safetensors.numpy import save_file

        write("safetensors", ".safetensors", lambda path: save_file(arrays(), path))
    except ImportError:
        bench.say("safetensors is missing: pip install safetensors")
    arrays()
    # zlib takes a minute for each, in which it does not hold the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda packer: write(*packer), packers))
    return {way: str(path) for way, path in made.items()}


def _write_each(folder: Path, arrays: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _write_npz(path: Path, arrays: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _write_pickle(path: Path, arrays: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        pickle.dump(arrays, file, protocol=5)


def _state(bench: Bench) -> tuple[dict[str, str], dict[str, str], str]:
    nbytes = 256 * MIB if bench.is_quick else 2 * GIB
    return _files(bench, nbytes), _files(bench, SMALL), f"{nbytes / GIB:g} GiB"


def _tasks(
    bench: Bench, task: str, ways: tuple[str, ...], **arguments: Any
) -> tuple[dict[str, Callable[[], dict[str, Any]]], str]:
    files, small, size = _state(bench)
    given = {way: arguments.pop(way, {}) for way in ways}
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        way: functools.partial(
            bench.child,
            task,
            module="loaded",
            way=way,
            path=files[way],
            small=small,
            **arguments,
            **given[way],
        )
        for way in ways
        if way in files
    }
    return tasks, size


def _best(found: dict[str, list[dict[str, Any]]]) -> str:
    """Who of the peers is the fastest."""
    return min(
        (way for way in found if way != "ours"),
        key=lambda way: statistics.median(pick(found[way], "us")),
    )


def against_loading(bench: Bench) -> Iterator[Row]:
    """P1: one element of one array, against what loads all of the array, or all there is."""
    ways = ("ours", "npz", "joblib", "pickle")
    tasks, size = _tasks(bench, "first", ways, name=ARRAYS[0], ours={"repeats": 5})
    found = in_turns(tasks, bench.few, warm_up=0 if bench.is_quick else 1)
    best = _best(found)
    for way in ways[1:]:
        if way in found:
            yield Row(
                "P1",
                f"an element of one array, state of {size}",
                data=ARRAYS[0],
                ours=pick(found["ours"], "us"),
                peer_name=PEERS[way],
                peer=pick(found[way], "us"),
                is_faster=True,
                limit=100 if way == best else None,
                note="the best of them" if way == best else "",
            )


def against_mapping(bench: Bench) -> Iterator[Row]:
    """P2: the same against what maps a file that is not compressed, and is in the page cache."""
    for name in ARRAYS:
        ways = ("ours", "mmap", "safetensors")
        tasks, size = _tasks(bench, "first", ways, name=name, repeats=15)
        found = in_turns(tasks, bench.repeats)
        best = _best(found)
        for way in ways[1:]:
            if way in found:
                yield Row(
                    "P2",
                    f"an element of one array, state of {size}",
                    data=name,
                    ours=pick(found["ours"], "us"),
                    peer_name=PEERS[way],
                    peer=pick(found[way], "us"),
                    limit=3 if way == best else None,
                    note="the better of them" if way == best else "",
                )


def sums(bench: Bench) -> Iterator[Row]:
    """P3: the sum of one array, with a fill, against loading the compressed npz."""
    for number, name in enumerate(ARRAYS):
        options = {"names": [name], "prefetch": "all"}
        tasks, size = _tasks(bench, "total", ("ours", "npz"), name=name, ours=options)
        found = in_turns(tasks, bench.repeats if number == 0 else bench.few)
        if len({one["sum"] for turns in found.values() for one in turns}) != 1:
            raise RuntimeError("the sums differ")
        yield Row(
            "P3",
            f"sum of one array, state of {size}, prefetch='all'",
            data=name,
            unit="ms",
            ours=[us / 1000 for us in pick(found["ours"], "us")],
            peer_name=PEERS["npz"],
            peer=[us / 1000 for us in pick(found["npz"], "us")],
            is_faster=True,
            limit=1.5,
        )


def imports(bench: Bench) -> Iterator[Row]:
    """P5: import lazyrestore, above the start of Python; and all that a restore needs."""
    found = in_turns(
        {
            "pass": lambda: _started("pass"),
            "import": lambda: _started("import lazyrestore"),
            "restore": lambda: _started(
                "import lazyrestore; lazyrestore.restore, lazyrestore.load"
            ),
        },
        bench.repeats,
    )
    code = "import lazyrestore, sys; lazyrestore.restore; print('numpy' in sys.modules)"
    printed = subprocess.check_output([sys.executable, "-c", code], env=_compiled(), text=True)
    if printed.strip() != "False":
        raise RuntimeError("importing lazyrestore imports numpy")
    for way, what in (("import", "import lazyrestore"), ("restore", "… and .restore, .load")):
        yield Row(
            "P5",
            f"{what}, above `python -c pass`",
            unit="ms",
            ours=[
                (took - alone) / 1000 for took, alone in zip(found[way], found["pass"], strict=True)
            ],
            limit=60 if way == "import" else None,
            note="numpy is not imported",
        )


def _started(code: str) -> float:
    command = [sys.executable, "-c", code]
    return timed(*command, environment=_compiled())


def _compiled() -> dict[str, str]:
    """With what is compiled kept, as it is where it is installed."""
    kept = environment()
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept
