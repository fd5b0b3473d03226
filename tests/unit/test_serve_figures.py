"""Figures of a service: sums that never fall, histograms, and nobody is waited for long."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from lazyrestore._latency import bucket_start
from lazyrestore._native import ffi
from lazyrestore._serve import figures
from lazyrestore._serve.figures import Figures, Tallies
from lazyrestore._serve.metrics import Metrics, _buckets, parse_address

PAGE = 4096


def stats(**fields: int) -> Any:
    """A `struct lr_session_stats *`."""
    return ffi.new("struct lr_session_stats *", fields)


def test_what_the_core_counts() -> None:
    """Pages become bytes of the peer's page size; answers are by access and result"""
    raw = stats(pages_copied=3, pages_zeroed=5, pages_total=20, pages_missing=7, faults=9, fill=1)
    raw.answers[0][1], raw.answers[1][4] = 6, 2
    raw.service.count, raw.service.sum_ns, raw.service.max_ns = 1, 5, 5
    raw.service.buckets[5] = 1
    found = Figures.of(raw, 2 << 20)
    assert (found.copied_bytes, found.zeroed_bytes) == (3 * (2 << 20), 5 * (2 << 20))
    assert (found.total_bytes, found.missing_bytes) == (20 * (2 << 20), 7 * (2 << 20))
    assert found.fill == "running"
    assert found.by_name() == {
        "read": {"data": 6, "zero": 0, "fenced": 0, "present": 0},
        "write": {"data": 0, "zero": 0, "fenced": 0, "present": 2},
    }
    twice = found + found
    assert (twice.faults, twice.latency_count, twice.buckets[5]) == (18, 2, 2)
    assert twice.past().missing_bytes == 0
    assert twice.past().faults == 18


def test_buckets_hold_what_they_say() -> None:
    """Against the same times, counted one by one"""
    chance = random.Random(1)
    times = [int(2 ** chance.uniform(0, 38)) for _ in range(5000)] + [1023, 1024, 1 << 30]
    raw = stats()
    for value in times:
        bucket = max(b for b in range(320) if bucket_start(b) <= value)
        raw.service.buckets[bucket] += 1
    raw.service.count = len(times)
    found = list(_buckets(Figures.of(raw, PAGE)))
    assert [float(bound) for bound, _ in found] == sorted(float(bound) for bound, _ in found)
    for bound, number in found:
        below = sum(value < round(float(bound) * 1e9) for value in times) if bound != "+Inf" else 0
        assert number == (below or len(times)), bound


class Stand:
    """In the place of a service: `Tallies` asks nothing else of one."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.peers: dict[int, Any] = {}
        self._executor = ThreadPoolExecutor(4)

    async def in_thread(self, call: Any, *arguments: Any) -> Any:
        return await self.loop.run_in_executor(self._executor, call, *arguments)

    def add(self, number: int, call: Any, image: str = "image") -> Any:
        peer = SimpleNamespace(
            id=number, image=SimpleNamespace(path=image), page_size=PAGE, stats=call
        )
        self.peers[number] = peer
        return peer


def test_nothing_is_counted_twice_or_forgotten() -> None:
    """Whatever moment a peer goes at: before, while and after it is asked"""

    async def run() -> None:
        service = Stand()
        tallies = Tallies(service)  # type: ignore[arg-type]
        release = threading.Event()

        def slow() -> Any:
            release.wait(60)
            return stats(faults=10)

        first = service.add(1, lambda: stats(faults=7))
        second = service.add(2, slow)
        asked = asyncio.create_task(tallies.snapshot())
        await asyncio.sleep(0)  # now they are being asked
        del service.peers[2]
        tallies.end(second, stats(faults=12))
        release.set()
        assert (await asked).sums["image"].faults == 19
        assert (await tallies.snapshot()).sums["image"].faults == 19
        del service.peers[1]
        assert (await tallies.snapshot()).sums["image"].faults == 19  # it is about to go
        tallies.end(first, None)
        assert (await tallies.snapshot()).sums["image"].faults == 19
        assert (await tallies.snapshot()).peers == []
        assert tallies.gone == 2

    asyncio.run(run())


def test_a_peer_that_does_not_answer_holds_nobody_up() -> None:
    """Its last figures are told; it is not asked again before it has answered"""

    async def run() -> None:
        service = Stand()
        tallies = Tallies(service)  # type: ignore[arg-type]
        release, calls = threading.Event(), []

        def slow() -> Any:
            calls.append(1)
            if len(calls) > 1:
                release.wait(60)
            return stats(faults=len(calls))

        service.add(1, slow)
        service.add(2, lambda: stats(faults=100))
        assert (await tallies.snapshot()).sums["image"].faults == 101
        before = time.monotonic()
        for _ in range(3):
            assert (await tallies.snapshot()).sums["image"].faults == 101
        assert time.monotonic() - before < 30
        assert len(calls) == 2
        release.set()
        while (await tallies.snapshot()).sums["image"].faults < 102:
            assert time.monotonic() - before < 60

    asyncio.run(run())


def test_images_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who serves a new image each minute does not get a new series each minute"""
    monkeypatch.setattr(figures, "IMAGES_MAX", 3)

    async def run() -> None:
        service = Stand()
        tallies = Tallies(service)  # type: ignore[arg-type]
        for number in range(10):
            peer = service.add(number, lambda: stats(faults=1), f"image {number}")
            await tallies.snapshot()
            del service.peers[number]
            tallies.end(peer, stats(faults=2))
        sums = (await tallies.snapshot()).sums
        assert {name: each.faults for name, each in sums.items()} == {
            "image 0": 2,
            "image 1": 2,
            "image 2": 2,
            figures.OTHERS: 14,
        }

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("9100", ("127.0.0.1", 9100)),
        (":9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9100", ("::1", 9100)),
        ("[::]:65535", ("::", 65535)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "127.0.0.1", "127.0.0.1:", "1:65536", "::1:9100", "a:b", " :1", "-1", "²"],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        parse_address(text)


def test_without_prometheus_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what to install"""
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lazyrestore\[metrics\]'"):
        Metrics("9100")
