"""Make docs/performance.md from docs/performance.in.md and what `make bench` measured.

    python docs/make_performance.py                     from benchmarks/results.json
    python docs/make_performance.py --from build/bench  take results and pictures from there first
    python docs/make_performance.py --rows build/bench  take only the rows that were measured there

The template's {{...}} are replaced:

    {{machine}}            what it was measured on
    {{targets}}            the rows that have a target
    {{missed}}             those that were missed, or were not measured
    {{serving}}            the rows of `lazyrestore serve`
    {{processes}}          the rows of whole processes
    {{arrays}}             the rows of arrays
    {{rows NAME ...}}      the rows of these groups that have none
    {{parts}}              what a fault is made of
    {{calls}}              its system calls
    {{ours ROW [N]}}       the median of the row's N-th line (from 0), with its unit; so peer
    {{ratio ROW [N]}}      theirs and ours, divided
    {{note ROW [N]}}       what stands beside it

A test compares the page with what this makes of the committed results.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
RESULTS = HOME / "benchmarks" / "results.json"
TEMPLATE = HOME / "docs" / "performance.in.md"
PAGE = HOME / "docs" / "performance.md"
PICTURES = HOME / "docs" / "pictures"
NAMES = ("latency", "first-access", "resident", "clusters", "scale")

Found = dict[str, Any]
_HEADS = ("", "what", "data", "ours", "against", "it", "ratio", "target", "")


def figure(value: float) -> str:
    """Three figures or so."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def with_unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{figure(value)} {unit}"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def line_of(row: Found, *, with_target: bool) -> list[str]:
    verdict = {True: "met", False: "**missed**", None: ""}[row["met"]]
    ratio = "" if row["ratio"] is None else f"{figure(row['ratio'])}×"
    against = row["peer_name"] or ""
    ours, peer = (with_unit(row[key], row["unit"]) for key in ("ours_median", "peer_median"))
    if not row["peer_name"]:
        peer = ""
    if with_target:
        note = row["note"] if not row["ours"] else verdict
        cells = [row["row"], row["what"], row["data"], ours, against, peer, ratio, row["target"]]
        return [*cells, note]
    return [row["what"], row["data"], ours, against, peer, ratio, row["note"]]


def targets(found: Found) -> str:
    """Rows with a target; of those that were not measured, one line."""
    shown = [row for row in found["rows"] if row["limit"] is not None or _is_missing(row)]
    shown = [row for row in shown if re.match(r"R\d", row["row"])]
    return table(_HEADS, [line_of(row, with_target=True) for row in shown])


def serving(found: Found) -> str:
    """All rows of others' memory."""
    return _all_of(found, r"S\d")


def processes(found: Found) -> str:
    """All rows of processes that are checkpointed and restored."""
    return _all_of(found, r"W\d")


def arrays(found: Found) -> str:
    """Arrays by their names."""
    return _all_of(found, r"P[1235]")


def planes(found: Found) -> str:
    """Byte planes."""
    return _all_of(found, r"P4")


def _all_of(found: Found, pattern: str) -> str:
    """Rows with a target and without; a line that says so where a run had none yet."""
    shown = [row for row in found["rows"] if re.match(pattern, row["row"])]
    if not shown:
        return "Not measured in this run."
    return table(_HEADS, [line_of(row, with_target=True) for row in shown])


def _is_missing(row: Found) -> bool:
    return not row["ours"]


def missed(found: Found) -> str:
    bad = [
        row
        for row in found["rows"]
        if row["met"] is False or (_is_missing(row) and re.match(r"[RSW]\d", row["row"]))
    ]
    if not bad:
        return "All targets were met in this run."
    lines = []
    for row in bad:
        ratio = f"{figure(row['ratio'])}×" if row["ratio"] is not None else row["note"]
        if row["ratio"] is None and row["ours_median"] is not None:
            ratio = with_unit(row["ours_median"], row["unit"])
        lines.append(f"* {row['row']}, {row['what']}: {ratio}; the target is {row['target']}.")
    return "\n".join(lines)


def rows(found: Found, *groups: str) -> str:
    heads = ("what", "data", "ours", "against", "it", "ratio", "")
    shown = [row for row in found["rows"] if row["row"] in groups and row["limit"] is None]
    return table(heads, [line_of(row, with_target=False) for row in shown])


def parts(found: Found) -> str:
    lines = [
        [what.replace("  of that", "… of that"), f"{figure(us)} µs"]
        for what, us in found["series"].get("anatomy", [])
    ]
    return table(("", "median"), lines)


def calls(found: Found) -> str:
    lines = [
        [f"clusters of {label}", ", ".join(f"{name} {n:.2f}" for name, n in sorted(by.items()))]
        for label, by in found["series"].get("calls", {}).items()
    ]
    return table(("", "system calls a fault"), lines)


def machine(found: Found) -> str:
    at = found["machine"]
    kind = "virtual machine" if at["virtual"] else "machine"
    text = (
        f"A {kind} of {at['cores']} cores ({at['processor']}), {at['memory_gib']} GiB,"
        f" Linux {at['kernel']}, Python {at['python']}; idle driver {at['idle_driver'] or 'none'}"
    )
    if at.get("guest_halt_poll_ns") is not None:
        text += f", guest_halt_poll_ns {at['guest_halt_poll_ns']}"
    size = f"{found['data_mib']} MiB a data set, {found['repeats']} turns"
    return f"{text}. {size}, {max(1, round(found['seconds'] / 60))} min."


def one(found: Found, row: str, number: str = "0") -> Found:
    lines: list[Found] = [line for line in found["rows"] if line["row"] == row]
    if len(lines) <= int(number):
        return {"ours_median": None, "peer_median": None, "ratio": None, "unit": "", "note": ""}
    return lines[int(number)]


def ours(found: Found, *which: str) -> str:
    line = one(found, *which)
    return with_unit(line["ours_median"], line["unit"])


def peer(found: Found, *which: str) -> str:
    line = one(found, *which)
    return with_unit(line["peer_median"], line["unit"])


def ratio(found: Found, *which: str) -> str:
    value = one(found, *which)["ratio"]
    return "–" if value is None else f"{figure(value)}×"


def note(found: Found, *which: str) -> str:
    return str(one(found, *which)["note"])


FILLERS: dict[str, Callable[..., str]] = {
    filler.__name__: filler
    for filler in (
        *(machine, targets, missed, serving, processes, arrays, planes),
        *(rows, parts, calls, ours, peer, ratio, note),
    )
}


def make(found: Found, template: str) -> str:
    """The page."""

    def fill(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return FILLERS[name](found, *arguments)

    return re.sub(r"\{\{([^}]+)\}\}", fill, template)


def take(folder: Path) -> None:
    """Results and pictures of a whole run into the tree."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    # Points a few milliseconds apart are more than a picture shows.
    series = found["series"].get("resident", {})
    for name, points in series.items():
        series[name] = points[:: max(1, len(points) // 100)]
    RESULTS.write_text(json.dumps(_rounded(found), indent=1) + "\n", encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name in NAMES:
        if (folder / f"{name}.svg").exists():
            shutil.copy(folder / f"{name}.svg", PICTURES)


def take_rows(folder: Path) -> None:
    """Of a run of some rows, on the same machine, those rows into the results that there are."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    newer = json.loads((folder / "some.json").read_text(encoding="utf-8"))
    names = {row["row"] for row in newer["rows"]}
    found["rows"] = [row for row in found["rows"] if row["row"] not in names] + newer["rows"]
    RESULTS.write_text(json.dumps(_rounded(found), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--from", dest="folder", type=Path, help="where a whole run wrote")
    which.add_argument("--rows", type=Path, help="where a run of some rows wrote")
    options = parser.parse_args()
    folder = options.folder or options.rows
    if folder is not None:
        name = "results.json" if options.folder else "some.json"
        if not (folder / name).exists():
            print(f"{folder}/{name} is not there: make bench", file=sys.stderr)
            return 1
        (take if options.folder else take_rows)(folder)
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(make(found, TEMPLATE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
