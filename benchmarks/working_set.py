"""R9: a recorded working set, replayed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .bench import Bench, pick
from .data import ROOT, environment
from .runner import Row, in_turns

_CLUSTER = 65536


def replay(bench: Bench) -> Iterator[Row]:
    """R9: touch a recorded working set: replay against demand only, image cold and cached."""
    for number, name in enumerate(bench.names):
        image = bench.data.image(name, _CLUSTER)
        record = bench.data.folder / f"{name}.ws"
        record.unlink(missing_ok=True)
        made = bench.child(
            "record_working_set", image=image, record=record, cluster_size=_CLUSTER, seed=number
        )
        hot, why_not = _optimized(image, record)
        for is_cold, limit in ((True, 3.7), (False, 2.0)):
            candidates: dict[str, tuple[Path, dict[str, object]]] = {
                "replay before": (image, {"working_set": record, "replay": "before"}),
                "replay beside": (image, {"working_set": record, "replay": "beside"}),
                "demand": (image, {"prefetch": "none"}),
            }
            if hot is not None:
                wanted = {"working_set": record, "replay": "before"}
                candidates["optimized, replay before"] = (hot, wanted)
            found = in_turns(
                {
                    key: _use(bench, path, number, is_cold, options)
                    for key, (path, options) in candidates.items()
                },
                bench.repeats,
            )
            has_hot = is_cold and hot is not None
            best = "optimized, replay before" if has_hot else "replay before"
            for key in found:
                if key == "demand":
                    continue
                faults = sorted(pick(found[key], "faults"))[len(found[key]) // 2]
                yield Row(
                    "R9",
                    f"working set touched, {'cold' if is_cold else 'cached'}, {key}",
                    data=name,
                    unit="ms",
                    ours=[us / 1000 for us in pick(found[key], "us")],
                    peer_name="demand only",
                    peer=[us / 1000 for us in pick(found["demand"], "us")],
                    is_faster=True,
                    limit=limit if number == 0 and key == best else None,
                    note=f"{faults:.0f} faults left; recording of {made['bytes']} bytes"
                    + (f"; {why_not}" if why_not else ""),
                )


def _use(
    bench: Bench, path: Path, seed: int, is_cold: bool, options: dict[str, object]
) -> Callable[[], dict[str, object]]:
    return bench.task(
        "use_working_set",
        image=path,
        cluster_size=_CLUSTER,
        seed=seed,
        is_cold=is_cold,
        **options,
    )


def _optimized(image: Path, record: Path) -> tuple[Path | None, str]:
    """The image with its hot clusters at the front; or why there is none."""
    hot = image.with_name("hot-" + image.name)
    hot.unlink(missing_ok=True)
    command = [sys.executable, "-m", "lazyrestore", "optimize", str(image)]
    done = subprocess.run(
        [*command, "--working-set", record, "-o", hot],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["optimize failed"])[-1]
    return hot, ""
