"""Figures for Prometheus: --metrics [ADDRESS:]PORT.

    metrics = Metrics("9100")                  # refuses what cannot be, before anything is served
    await metrics.start(service, status)

A small HTTP server in the service's own loop; the text is prometheus_client's. Series are by image,
not by peer: those come and go, and `lazyrestore top` shows them. Of what is limited, whoever asks
too much is sent away: connections, the length of a request, the time that it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import lazyrestore
from lazyrestore._extras import require

from .figures import ACCESSES, RESULTS, Figures, Snapshot
from .status import Status

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from .service import Service

LOOPBACK = "127.0.0.1"
CONNECTIONS_MAX = 16
REQUEST_BYTES_MAX = 8192
REQUEST_S = 5.0
ANSWER_S = 30.0
AGAIN_S = 0.5
_PORT_MAX = 65535
_LEAST_POWER, _MOST_POWER = 10, 30
_FILLS = ("none", "running", "complete", "stopped")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "9100", "127.0.0.1:9100" or "[::1]:9100"; loopback where there is no host.

    Raises:
        ValueError: it is none.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = port = ""
    if not (port.isascii() and port.isdecimal() and int(port) <= _PORT_MAX) or (
        colon and not host.strip() and text != f":{port}"
    ):
        raise ValueError(
            f"--metrics {text!r} is no address: write PORT, ADDRESS:PORT or [ADDRESS]:PORT, as"
            " 127.0.0.1:9100"
        )
    return host or LOOPBACK, int(port)


class Metrics:
    """Serves a service's figures by HTTP.

    Args:
        address: see `parse_address`; port 0: any that is free, which the event `metrics` tells.

    Raises:
        ValueError: it is none.
        ImportError: prometheus_client is not installed, or broken.
    """

    def __init__(self, address: str) -> None:
        self.host, self.port = parse_address(address)
        require("prometheus_client", "metrics", "--metrics")
        from prometheus_client import exposition

        self._choose_encoder: Callable[[str], tuple[Any, str]] = exposition.choose_encoder
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, service: Service, status: Status) -> None:
        """Begin to listen.

        Raises:
            OSError: the address is not this machine's, or the port is taken.
        """
        self._service, self._status = service, status
        try:
            self._server = await asyncio.start_server(
                self._converse, self.host, self.port, limit=REQUEST_BYTES_MAX, backlog=64
            )
        except OSError as error:
            where = f"{self.host}:{self.port}"
            known = error.errno if error.errno is not None and error.errno > 0 else 0
            reason = os.strerror(known) if known else str(error)
            raise OSError(error.errno, f"cannot serve metrics at {where}: {reason}") from None
        host, port = self._server.sockets[0].getsockname()[:2]
        service.emit("metrics", address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    async def start_at_last(self, service: Service, status: Status) -> None:
        """The same, but try it again: who served before may not have ended yet."""
        last = ""
        while True:
            try:
                await self.start(service, status)
                return
            except OSError as error:
                if last != (last := str(error.strerror)):
                    service.emit("error", reason=f"{last}: it is tried on")
            await asyncio.sleep(AGAIN_S)

    async def close(self) -> None:
        """Listen no more."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    # ---- HTTP ------------------------------------------------------------------------------------

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > CONNECTIONS_MAX:
                _respond(writer, "503 Service Unavailable", b"too many connections\n")
            else:
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                async with asyncio.timeout(ANSWER_S):
                    await self._answer(head.decode("latin-1"), writer)
        except asyncio.LimitOverrunError:
            _respond(writer, "431 Request Header Fields Too Large", b"too long\n")
        except (TimeoutError, EOFError, OSError):
            pass
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), REQUEST_S)

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.split("\r\n")
        method, _, rest = first.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            _respond(writer, "405 Method Not Allowed", b"only GET and HEAD\n", Allow="GET, HEAD")
        elif path != "/metrics":
            _respond(writer, "404 Not Found", b"lazyrestore: the figures are at /metrics\n")
        else:
            accept = next((line[7:].strip() for line in lines if line[:7].lower() == "accept:"), "")
            body, kind = await self._text(accept)
            _respond(writer, "200 OK", body, kind, is_head=method == "HEAD")
        await writer.drain()

    async def _text(self, accept: str) -> tuple[bytes, str]:
        from prometheus_client import CollectorRegistry, ProcessCollector

        snapshot = await self._service.tallies.snapshot()
        families = list(collect(self._service, self._status, snapshot))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Ready(families))
        ProcessCollector(registry=registry)
        encode, kind = self._choose_encoder(accept)
        body: bytes = await self._service.in_thread(encode, registry)
        return body, kind


def _respond(
    writer: asyncio.StreamWriter,
    status: str,
    body: bytes,
    kind: str = "text/plain; charset=utf-8",
    *,
    is_head: bool = False,
    **headers: str,
) -> None:
    fields = {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Connection": "close",
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1"))
    if not is_head:
        writer.write(body)


class _Ready:
    """A collector of what was collected."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


# ---- Families ------------------------------------------------------------------------------------


def collect(service: Service, status: Status, snapshot: Snapshot) -> Iterator[Metric]:
    """All that there is to tell but what prometheus_client says of the process itself."""
    yield from _of_service(service, status, snapshot)
    yield from _of_memory(snapshot)
    yield from _of_faults(snapshot.sums)


def _of_service(service: Service, status: Status, snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily as Counter
    from prometheus_client.core import GaugeMetricFamily as Gauge
    from prometheus_client.core import InfoMetricFamily as Info

    yield Info("lazyrestore_build", "Version of lazyrestore.", {"version": lazyrestore.__version__})
    yield Gauge(
        "lazyrestore_keeper_up",
        "Whether a keeper stands by to take over.",
        int(status.keeper_pid() is not None),
    )
    yield Gauge(
        "lazyrestore_promoted",
        "Whether this process was a keeper, and took over.",
        int(status.is_promoted),
    )
    yield Gauge(
        "lazyrestore_connections",
        "Connections whose handshake is not whole.",
        len(service.connections),
    )
    peers = Gauge("lazyrestore_peers", "Processes that are served.", labels=["image", "fill"])
    counts: dict[tuple[str, str], int] = {}
    for image in snapshot.sums:
        counts.update({(image, fill): 0 for fill in _FILLS})
    for peer, figures in snapshot.peers:
        key = service.tallies.name(peer), figures.fill or _FILLS[0]
        counts[key] = counts.get(key, 0) + 1
    for (image, fill), number in counts.items():
        peers.add_metric([image, fill], number)
    yield peers
    yield Counter(
        "lazyrestore_peers_admitted", "Processes that were served, ever.", service.admitted
    )
    yield Counter(
        "lazyrestore_peers_gone", "Processes that are served no more.", service.tallies.gone
    )
    refused = Counter("lazyrestore_refusals", "Connections that were refused.", labels=["reason"])
    for reason, number in sorted(service.refused.items()):
        refused.add_metric([reason], number)
    yield refused
    said = status.events.counts
    yield Counter(
        "lazyrestore_takeovers",
        "How often this process took over what another had served.",
        said["taken_over"],
    )
    yield Counter("lazyrestore_keepers_started", "Keepers started.", said["keeper_started"])
    yield Counter("lazyrestore_errors", "Events named error.", said["error"])
    yield Counter(
        "lazyrestore_events_dropped",
        "Events that were not written, because nobody read them.",
        status.events.dropped,
    )


def _of_memory(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily as Gauge

    memory = Gauge(
        "lazyrestore_memory_bytes",
        "Memory of the processes that are served: loaded, or given up by them (resident); neither"
        " so far (missing).",
        labels=["image", "state"],
    )
    for image, figures in snapshot.sums.items():
        memory.add_metric([image, "resident"], figures.total_bytes - figures.missing_bytes)
        memory.add_metric([image, "missing"], figures.missing_bytes)
    yield memory


def _of_faults(sums: dict[str, Figures]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily as Counter
    from prometheus_client.core import HistogramMetricFamily as Histogram

    faults = Counter(
        "lazyrestore_faults",
        "Faults that were answered, by what: with data, with zeros, with a fence because the data"
        " cannot be loaded; or the page was there by then (present).",
        labels=["image", "access", "result"],
    )
    latency = Histogram(
        "lazyrestore_fault_service_seconds",
        "From reading a fault's message to the touched page being there.",
        labels=["image"],
    )
    filled = Counter(
        "lazyrestore_filled_bytes",
        "Memory that was filled, whether a fault asked for it or not.",
        labels=["image", "content"],
    )
    read = Counter(
        "lazyrestore_image_read_bytes", "Compressed data read of the image.", labels=["image"]
    )
    decoded = Counter("lazyrestore_clusters_decoded", "Clusters decoded.", labels=["image"])
    errors = Counter(
        "lazyrestore_load_errors", "Clusters that could not be loaded.", labels=["image"]
    )
    for image, figures in sums.items():
        for access, row in zip(ACCESSES, figures.answers, strict=True):
            for result, number in zip(RESULTS, row, strict=True):
                faults.add_metric([image, access, result], number)
        latency.add_metric([image], list(_buckets(figures)), figures.latency_sum_ns / 1e9)
        filled.add_metric([image, "data"], figures.copied_bytes)
        filled.add_metric([image, "zero"], figures.zeroed_bytes)
        read.add_metric([image], figures.read_bytes)
        decoded.add_metric([image], figures.clusters)
        errors.add_metric([image], figures.errors)
    yield from (faults, latency, filled, read, decoded, errors)


def _buckets(figures: Figures) -> Iterator[tuple[str, float]]:
    """Powers of two of ns, from 1 µs to 1 s: those are bounds of the core's buckets too."""
    for power in range(_LEAST_POWER, _MOST_POWER + 1):
        yield str((1 << power) / 1e9), sum(figures.buckets[: 8 * (power - 2)])
    yield "+Inf", figures.latency_count
