"""`python -m benchmarks [ROW ...]`: measure, print the table, and write JSON and pictures."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from . import (
    anatomy,
    dumps,
    faults,
    first,
    machine,
    planes,
    processes,
    python_data,
    scale,
    serving,
    starts,
    sweeps,
    working_set,
)
from .bench import Bench, Group
from .data import MIB, NAMES, ROOT, Data
from .runner import NotMeasuredError, Row, table

GROUPS: dict[str, Group] = {
    "R1": first.against_eager,
    "R2": first.sizes_alike,
    "R3": faults.demand,
    "R3b": faults.demand_confined,
    "R4": faults.inline,
    "R5": sweeps.against_hello,
    "R6": sweeps.against_squashfs,
    "R7": sweeps.fully_resident,
    "R8": faults.with_fill,
    "R9": working_set.replay,
    "R10": dumps.against_zstd,
    "R11": first.memory,
    "R12": first.zeros,
    "S1": serving.fault,
    "S2": serving.many,
    "S3": serving.first,
    "S4": serving.takeover,
    "S5": serving.idle,
    "W1": processes.eager,
    "W2": processes.lazy,
    "W3": processes.touches,
    "W4": processes.size,
    "W5": processes.memory,
    "W6": processes.several,
    "P1": python_data.against_loading,
    "P2": python_data.against_mapping,
    "P3": python_data.sums,
    "P4": planes.against_plain,
    "P5": python_data.imports,
    "first": first.against_others,
    "bytes": starts.bytes_read,
    "start": starts.commands,
    "resident": first.over_time,
    "zero": faults.zero_pages,
    "page": faults.granularity,
    "clusters": sweeps.no_fill,
    "raw": sweeps.raw_mmap,
    "npz": sweeps.npz,
    "segv": faults.against_signals,
    "sizes": scale.sizes,
    "threads": scale.threads,
    "sessions": scale.sessions,
    "anatomy": anatomy.parts,
    "calls": anatomy.system_calls,
}


def run(bench: Bench, wanted: list[str]) -> list[Row]:
    """Measure the groups of rows. One that fails does not end it: it says why."""
    rows = []
    for name in wanted:
        begin = time.monotonic()
        group = GROUPS[name]
        bench.say(f"{name}: {(group.__doc__ or '').splitlines()[0].removeprefix(f'{name}: ')}")
        try:
            rows += list(group(bench))
        except NotMeasuredError as error:
            rows.append(Row(name, group.__name__.replace("_", " "), note=f"not measured: {error}"))
        except Exception as error:
            if "--traceback" in sys.argv:
                traceback.print_exc()
            rows.append(Row(name, group.__name__.replace("_", " "), note=f"failed: {error}"))
        bench.say(f"  {time.monotonic() - begin:.0f} s")
    return rows


def _note_tools(say: Callable[[str], None]) -> None:
    """What is not installed: its rows are not measured."""
    tools = {"zstd": "zstd", "mksquashfs": "squashfs-tools", "strace": "strace", "gcc": "gcc"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if missing:
        say(f"some rows are not measured: apt-get install {' '.join(missing)}")


def _draw(found: dict[str, object], folder: Path) -> list[str]:
    """The pictures; none where nothing draws them."""
    try:
        from .plots import draw_all

        return draw_all(found, folder)
    except ImportError:
        print("no pictures: pip install matplotlib", file=sys.stderr)
    except Exception as error:  # a picture that fails shall not lose the figures
        print(f"no pictures: {error!r}", file=sys.stderr)
    return []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {' '.join(GROUPS)}; or all")
    parser.add_argument("--quick", action="store_true", help="64 MiB a data set, three turns")
    parser.add_argument("--repeats", type=int, help="turns of rows with a target (9, quick: 3)")
    parser.add_argument("--mib", type=int, help="of each data set (256, quick: 64)")
    parser.add_argument("--data", help=f"only these data sets, as python,numeric: {NAMES}")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench-data")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--traceback", action="store_true", help="of rows that fail")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in GROUPS]
    if unknown:
        parser.error(f"no such rows: {' '.join(unknown)}; there are {' '.join(GROUPS)}")
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:4.0f} s] {text}", file=sys.stderr, flush=True)

    _note_tools(say)
    mib = options.mib or (64 if options.quick else 256)
    bench = Bench(
        data=Data(options.folder, mib * MIB, say),
        repeats=options.repeats or (3 if options.quick else 9),
        is_quick=options.quick,
        say=say,
        names=tuple(options.data.split(",")) if options.data else NAMES,
    )
    rows = run(bench, options.rows or list(GROUPS))
    found = {
        "machine": machine.describe(),
        "quick": options.quick,
        "repeats": bench.repeats,
        "data_mib": mib,
        "seconds": time.monotonic() - begin,
        "rows": [row.plain() for row in rows],
        "series": bench.series,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / ("results.json" if not options.rows else "some.json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    made = _draw(found, options.results)
    print(f"written: {path}" + (f", and pictures: {', '.join(made)}" if made else ""))
    return int(options.check and any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
