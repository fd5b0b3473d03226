"""One measurement of Python data in a fresh process, as in `child.py`.

    python -m benchmarks.loaded first '{"way": "npz", "path": "state.npz", "name": "prices"}'

Prints one JSON object. `WAYS` are those of getting at one array of a file.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

now = time.perf_counter_ns


def _ours(path: str, name: str, **options: Any) -> Any:
    import lazyrestore

    return lazyrestore.load(path, **options)[name]


def _npz(path: str, name: str) -> Any:
    import numpy as np

    return np.load(path)[name]


def _mmap(path: str, name: str) -> Any:
    import numpy as np

    return np.load(f"{path}/{name}.npy", mmap_mode="r")


def _safetensors(path: str, name: str) -> Any:
    from safetensors import safe_open

    opened: Any = safe_open(path, "np")
    return opened.get_slice(name)


def _joblib(path: str, name: str) -> Any:
    import joblib  # type: ignore[import-untyped]

    return joblib.load(path)[name]


def _pickle(path: str, name: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)[name]


WAYS: dict[str, Callable[..., Any]] = {
    "ours": _ours,
    "npz": _npz,
    "mmap": _mmap,
    "safetensors": _safetensors,
    "joblib": _joblib,
    "pickle": _pickle,
}
NEEDED = {"safetensors": "safetensors", "joblib": "joblib"}


def middle(array: Any) -> tuple[int, ...]:
    """An index in the middle of an array, or of what safetensors has in its place."""
    shape = array.get_shape() if hasattr(array, "get_shape") else array.shape
    return tuple(size // 3 for size in shape)


def first(way: str, path: str, name: str, repeats: int = 1, **options: Any) -> dict[str, Any]:
    """From the call to one element in the array's middle: the median of some."""
    load = WAYS[way]
    times = []
    # Twice before: what it imports, and the part of the file that is asked for, are there then.
    for turn in range(repeats + 2 if repeats > 1 else 1):
        begin = now()
        array = load(path, name, **options)
        float(array[middle(array)])
        if turn >= 2 or repeats == 1:
            times.append((now() - begin) / 1000)
        del array
    return {"us": sorted(times)[len(times) // 2]}


def total(way: str, path: str, name: str, **options: Any) -> dict[str, Any]:
    """From the call to the array's sum."""
    begin = now()
    array = WAYS[way](path, name, **options)
    found = float(array.sum(dtype="f8"))
    return {"us": (now() - begin) / 1000, "sum": found}


def _import_all(way: str, small: dict[str, str], name: str) -> None:
    """What is imported when it is first called is not what is measured: load a small file."""
    import numpy as np

    array = WAYS[way](small[way], name)
    np.asarray(array[:1]).sum(dtype="f8")
    del array
    gc.collect()


TASKS = {"first": first, "total": total}


def main() -> None:
    task, arguments = sys.argv[1], json.loads(sys.argv[2])
    needed = NEEDED.get(arguments["way"])
    if needed and importlib.util.find_spec(needed) is None:
        print(json.dumps({"missing": f"{needed} is missing: pip install {needed}"}))
        return
    _import_all(arguments["way"], arguments.pop("small"), arguments["name"])
    print(json.dumps(TASKS[task](**arguments)))


if __name__ == "__main__":
    main()
