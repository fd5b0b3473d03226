"""The benchmarks run, say what they could not measure, and the page shows what they found."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from restore_support import PACKAGE_HOME

sys.path.insert(0, str(PACKAGE_HOME))
from benchmarks.runner import Row, in_turns, table

DOCS = PACKAGE_HOME / "docs"


def bench(folder: Path, *arguments: str, **variables: str) -> tuple[dict[str, object], str]:
    """Run some rows on little data: what was written, and what was printed."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    small = ["--quick", "--mib", "4", "--repeats", "1", "--data", "numeric"]
    done = subprocess.run(
        [*command, *small, "--folder", str(folder / "data"), "--results", str(folder)],
        cwd=PACKAGE_HOME,
        env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME), **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "some.json").read_text()), done.stdout


# ---- Rows ----------------------------------------------------------------------------------------


def test_ratios_and_targets() -> None:
    """Less is better, so many times faster, and more of it: each the right way round"""
    less = Row("R", "x", ours=[1, 2, 9], peer_name="it", peer=[4, 4, 5], limit=0.5)
    assert (less.ratio, less.met, less.target) == (0.5, True, "≤ 0.5×")
    assert Row("R", "x", ours=[3], peer_name="it", peer=[4], limit=0.5).met is False
    faster = Row("R", "x", ours=[2], peer_name="it", peer=[5], is_faster=True, limit=3)
    assert (faster.ratio, faster.met, faster.target) == (2.5, False, "≥ 3×")
    more = Row("R", "x", ours=[500], peer_name="it", peer=[400], is_more=True, limit=1)
    assert (more.ratio, more.met) == (1.25, True)
    alone = Row("R", "x", unit="MiB", ours=[1.5], limit=2)
    assert (alone.ratio, alone.met, alone.target) == (None, True, "≤ 2 MiB")


def test_nothing_measured_is_not_met() -> None:
    """Neither met nor missed, and the table says why"""
    row = Row("R9", "replay", limit=2, peer_name="demand", note="not measured: no userfaultfd")
    assert row.met is None
    assert "not measured: no userfaultfd" in table([row])
    assert Row("R12", "frames", limit=0).met is None


def test_in_turns() -> None:
    """Forwards, backwards; the first turn is left out"""
    seen: list[str] = []

    def way(name: str) -> int:
        seen.append(name)
        return len(seen)

    found = in_turns({"a": lambda: way("a"), "b": lambda: way("b")}, 2)
    assert seen == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [4, 5], "b": [3, 6]}


def test_turns_that_differ_are_shown() -> None:
    """A median of what was 6 one time and 60 the other says little by itself"""
    row = Row("R3", "p50", ours=[10, 11], peer_name="hello", peer=[6, 60, 61])
    assert "hello: 6.00 to 61.0" in table([row])
    assert "lazyrestore:" not in table([row])


# ---- Runs ----------------------------------------------------------------------------------------


@pytest.mark.uffd
@pytest.mark.slow
def test_some_rows_on_little_data(tmp_path: Path) -> None:
    """Ours and the peer, in fresh processes; figures, table and pictures"""
    found, text = bench(tmp_path, "R12", "R3b", "R5", "sessions")
    rows = found["rows"]
    assert isinstance(rows, list)
    assert {row["row"] for row in rows} == {"R12", "R3b", "R5", "scale"}
    for row in rows:
        assert len(row["ours"]) > 0, row
        assert row["row"] in text
    frames = next(row for row in rows if row["row"] == "R12")
    assert frames["ours_median"] == 0
    assert frames["met"] is True
    fault = next(row for row in rows if row["row"] == "R3b")
    assert fault["ours_median"] > 0
    assert fault["ratio"] == fault["ours_median"] / fault["peer_median"]


@pytest.mark.uffd
@pytest.mark.slow
def test_rows_of_served_memory(tmp_path: Path) -> None:
    """A service, peers of it, and one that is killed"""
    found, _ = bench(tmp_path, "S1", "S4")
    rows = found["rows"]
    assert isinstance(rows, list)
    assert [row["row"] for row in rows] == ["S1", "S4"]
    for row in rows:
        assert row["ours_median"] > 0, row
    assert rows[0]["ratio"] == rows[0]["ours_median"] / rows[0]["peer_median"]


@pytest.mark.uffd
@pytest.mark.slow
def test_rows_that_cannot_be_measured(tmp_path: Path) -> None:
    """No programs of others here: those rows say which, and the next is measured"""
    found, text = bench(tmp_path, "R6", "R7", "R12", PATH=str(tmp_path))
    notes = {row["row"]: row["note"] for row in found["rows"]}  # type: ignore[attr-defined]
    assert "squashfs-tools" in notes["R6"]
    assert "zstd is missing" in notes["R7"]
    assert "not measured" not in notes["R12"]
    assert "not measured" in text


# ---- The page ------------------------------------------------------------------------------------


def test_the_page_is_made_from_the_results() -> None:
    """docs/performance.md shows what was measured, and nothing else"""
    spec = importlib.util.spec_from_file_location("make_performance", DOCS / "make_performance.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    results = json.loads((PACKAGE_HOME / "benchmarks" / "results.json").read_text())
    made = maker.make(results, (DOCS / "performance.in.md").read_text(encoding="utf-8"))
    assert (DOCS / "performance.md").read_text(encoding="utf-8") == made, (
        "docs/performance.md is not what was measured: python docs/make_performance.py"
    )
    assert "{{" not in made
    for name in maker.NAMES:
        if f"pictures/{name}.svg" in made:
            assert (DOCS / "pictures" / f"{name}.svg").exists()
