"""Figures of docs/comparison.md: the same arrays kept by everything that people would use.

    python -m benchmarks.comparison [--mib 256] [--turns 5] [--write]

Each is used as its documentation says, with its defaults; where there is a choice of compression,
zstd of about our level. Each measurement is a fresh process that has imported what it uses, and all
take turns. Files are in the page cache (just written or read), but what a squashfs has decoded is
dropped before each. What is not installed is named and left out; `--write` puts the table into the
page, and a part of it into the README.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import machine, peers
from .data import ROOT, environment, numeric_arrays
from .runner import NotMeasuredError

PAGE, README = ROOT / "docs" / "comparison.md", ROOT / "README.md"
IN_README = ("lazyrestore", "npy", "safetensors", "blosc2", "npz", "joblib")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
MIB = 1 << 20
NAME = "embeddings"
PLACES = 1000
LIMIT_S = 300
Arrays = Mapping[str, Any]


# Each maker writes the arrays; each opener gives name → what can be indexed as an array.


def make_lazyrestore(arrays: Arrays, path: Path) -> None:
    import lazyrestore

    lazyrestore.dump(dict(arrays), path)


def open_lazyrestore(path: Path, everything: bool) -> Arrays:
    import lazyrestore

    return lazyrestore.load(path, prefetch="all" if everything else "auto")


def make_npy(arrays: Arrays, path: Path) -> None:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


def open_npy(path: Path, everything: bool) -> Arrays:
    return _Lazy(lambda name: np.load(path / f"{name}.npy", mmap_mode="c"), _stems(path))


def make_npz(arrays: Arrays, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def open_npz(path: Path, everything: bool) -> Arrays:
    found: Arrays = np.load(path)
    return found


def make_joblib(arrays: Arrays, path: Path) -> None:
    import joblib

    joblib.dump(dict(arrays), path, compress=3)


def open_joblib(path: Path, everything: bool) -> Arrays:
    import joblib

    found: Arrays = joblib.load(path)
    return found


def make_zarr(arrays: Arrays, path: Path) -> None:
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, array in arrays.items():
        group.create_array(name, data=array)


def open_zarr(path: Path, everything: bool) -> Arrays:
    import zarr

    found: Arrays = zarr.open_group(path, mode="r")
    return _Lazy(lambda name: found[name], _stems(path))


def make_blosc2(arrays: Arrays, path: Path) -> None:
    import blosc2

    path.mkdir()
    for name, array in arrays.items():
        blosc2.asarray(array, urlpath=str(path / f"{name}.b2nd"), mode="w")


def open_blosc2(path: Path, everything: bool) -> Arrays:
    import blosc2

    return _Lazy(lambda name: blosc2.open(str(path / f"{name}.b2nd"), mode="r"), _stems(path))


def make_safetensors(arrays: Arrays, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), path)


def open_safetensors(path: Path, everything: bool) -> Arrays:
    from safetensors import safe_open

    file = safe_open(path, framework="numpy")
    # A slice reads nothing until it is indexed; whole tensors come by another call.
    return _Lazy(file.get_tensor if everything else file.get_slice, list(file.keys()))


def make_squashfs(arrays: Arrays, path: Path) -> None:
    if shutil.which("mksquashfs") is None:
        raise NotMeasuredError("mksquashfs is missing: apt-get install squashfs-tools")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        make_npy(arrays, Path(folder) / "npy")
        options = [
            "-comp",
            "zstd",
            "-Xcompression-level",
            "3",
            "-noappend",
            "-quiet",
            "-no-progress",
        ]
        command = ["mksquashfs", str(Path(folder) / "npy"), str(path), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class _Lazy(Mapping[str, Any]):
    def __init__(self, get: Callable[[str], Any], names: list[str]) -> None:
        self._get, self._names = get, names

    def __getitem__(self, name: str) -> Any:
        return self._get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _stems(path: Path) -> list[str]:
    return [entry.stem for entry in path.iterdir() if not entry.name.startswith("zarr.")]


KINDS: dict[
    str, tuple[str, str, Callable[[Arrays, Path], None], Callable[[Path, bool], Arrays]]
] = {
    "lazyrestore": ("**lazyrestore**", "lazyrestore", make_lazyrestore, open_lazyrestore),
    "npy": ("numpy.memmap (.npy)", "numpy", make_npy, open_npy),
    "safetensors": ("safetensors", "safetensors", make_safetensors, open_safetensors),
    "squashfs": ("squashfs-zstd of .npy", "numpy", make_squashfs, open_npy),
    "blosc2": ("blosc2", "blosc2", make_blosc2, open_blosc2),
    "zarr": ("zarr", "zarr", make_zarr, open_zarr),
    "npz": ("npz, compressed", "numpy", make_npz, open_npz),
    "joblib": ("joblib, compressed", "joblib", make_joblib, open_joblib),
}


def child(kind: str, action: str, path: Path, small: Path) -> dict[str, float]:
    """One measurement: milliseconds, MiB by which the process's own memory grew, and a checksum."""
    opener = KINDS[kind][3]
    # What is imported when it is first used is imported: a small state of the same kind was opened.
    __import__(KINDS[kind][1])
    warm = opener(small, False)
    float(warm[NAME][1, 1])
    del warm
    chance = np.random.default_rng(7)
    before = _own_memory()
    begin = time.perf_counter_ns()
    arrays = opener(path, action == "sum")
    if action == "first":
        total = float(arrays[NAME][1234, 7])
    elif action == "rows":
        array = arrays[NAME]
        count = array.get_shape()[0] if kind == "safetensors" else array.shape[0]
        rows = chance.integers(0, count, PLACES)
        total = sum(float(array[int(row), :][0]) for row in rows)
    else:
        total = sum(float(np.sum(arrays[name][:], dtype=np.float64)) for name in arrays)
    spent = time.perf_counter_ns() - begin
    return {"ms": spent / 1e6, "mib": (_own_memory() - before) / MIB, "total": total}


def _own_memory() -> int:
    """Bytes that no other process has, without those of files that can be dropped."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Anonymous: +(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def ready(kind: str, path: Path) -> Iterator[Path]:
    """Where the arrays are to be opened."""
    if kind != "squashfs":
        yield path
        return
    with peers.mounted(path) as folder:
        yield folder


def drop(kind: str, folder: Path) -> None:
    """Forget what a squashfs has decoded: the others decode for every process anew."""
    if kind == "squashfs":
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def measure(nbytes: int, turns: int, folder: Path) -> dict[str, Any]:
    """All of it; name of the kind → its figures."""
    arrays = numeric_arrays(nbytes)
    small = {name: array[:64] for name, array in arrays.items()}
    raw = sum(array.nbytes for array in arrays.values())
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        places: dict[str, tuple[Path, Path]] = {}
        for kind, (_, module, make, _) in KINDS.items():
            path, few = folder / kind, folder / f"small-{kind}"
            try:
                __import__(module)
                make(small, few)
                begin = time.perf_counter()
                make(arrays, path)
                seconds = time.perf_counter() - begin
                place = stack.enter_context(ready(kind, path))
                places[kind] = (place, stack.enter_context(ready(kind, few)))
            except (ImportError, NotMeasuredError) as error:
                print(f"{kind}: not measured: {error}", file=sys.stderr)
                continue
            found[kind] = {"write_s": seconds, "bytes": size_of(path), "turns": {}}
        for turn in range(turns + 1):
            for kind, (place, few) in places.items():
                for action in ("first", "rows", "sum"):
                    drop(kind, place)
                    result = _run_child(kind, action, place, few)
                    if turn:  # the first one warms up
                        found[kind]["turns"].setdefault(action, []).append(result)
    for action in ("first", "rows", "sum"):
        totals = {kind: figures["turns"][action][0]["total"] for kind, figures in found.items()}
        # Others may add in another order.
        if not np.allclose(list(totals.values()), totals["lazyrestore"], rtol=1e-9):
            raise AssertionError(f"{action}: they do not have the same arrays: {totals}")
    return {"raw": raw, "kinds": found, "machine": machine.describe()}


def _run_child(kind: str, action: str, *paths: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.comparison", "--child", kind, action]
    command += [str(path) for path in paths]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE, timeout=LIMIT_S
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def table(result: dict[str, Any], kinds: Iterable[str], columns: int) -> str:
    """As Markdown: medians; the first so many columns of some kinds."""
    head = ["", "size", "first element", "1,000 random rows", "sum of all"]
    head += ["write", "memory, 1,000 rows"]
    rows = [head, ["---"] * len(head)]
    for kind in kinds:
        figures = result["kinds"].get(kind)
        if figures is None:
            continue
        spent = {
            action: statistics.median(turn["ms"] for turn in turns)
            for action, turns in figures["turns"].items()
        }
        memory = {
            action: statistics.median(turn["mib"] for turn in turns)
            for action, turns in figures["turns"].items()
        }
        row = [
            KINDS[kind][0],
            f"{100 * figures['bytes'] / result['raw']:.0f} %",
            *(_milliseconds(spent[action]) for action in ("first", "rows", "sum")),
            f"{figures['write_s']:.1f} s" if figures["write_s"] >= 0.05 else "< 0.1 s",
            f"{memory['rows']:.1f} MiB",
        ]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row[:columns])} |" for row in rows)


def _milliseconds(value: float) -> str:
    """Two digits: turns differ by more than the third."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f} ms" if rounded >= 10 else f"{rounded:g} ms"


def write_pages(result: dict[str, Any]) -> None:
    """Replace the figures in both."""
    about = result["machine"]
    said = (
        f"{result['raw'] // MIB} MiB in eight arrays, on {about['cores']} cores of"
        f" {about['processor']}, Linux {about['kernel'].split('-')[0]}; medians of"
        f" {len(result['kinds']['lazyrestore']['turns']['sum'])} turns."
    )
    for page, figures in (
        (PAGE, f"{said}\n\n{table(result, KINDS, 7)}"),
        (README, table(result, IN_README, 5)),
    ):
        head, rest = page.read_text(encoding="utf-8").split(BEGIN)
        _, tail = rest.split(END)
        page.write_text(f"{head}{BEGIN}\n{figures}\n{END}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; else a temporary one")
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/comparison.md"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, action, path, small = given.child
        print(json.dumps(child(kind, action, Path(path), Path(small))))
        return
    with tempfile.TemporaryDirectory(prefix="comparison-", dir=given.folder) as folder:
        result = measure(given.mib * MIB, given.turns, Path(folder))
    print(table(result, KINDS, 7))
    if given.write:
        write_pages(result)


if __name__ == "__main__":
    main()
