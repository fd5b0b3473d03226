"""How a service is watched: status, figures for Prometheus, events; while peers come and go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cli_support import environment, finish, run, start
from process_support import in_child
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from restore_support import payloads, write_image
from serve_peer import PAGE, Monitor
from serve_support import LIMIT_S, Service, eventually

from lazyrestore._serve.metrics import CONNECTIONS_MAX, REQUEST_BYTES_MAX

pytestmark = pytest.mark.uffd

PAGES = 256
CLUSTER = 65536
LAYOUT = "d" * (PAGES // 2) + "z" * (PAGES // 2)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "vm.lzr", {"memory": LAYOUT}, cluster_size=CLUSTER)
    return tmp_path / "vm.lzr"


def ask(path: str) -> dict[str, Any]:
    """What a service answers to whoever asks how it is."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT_S)
        connection.connect(path)
        connection.sendall(b'{"type": "status"}\n')
        data = b""
        while piece := connection.recv(65536):
            data += piece
    answer: dict[str, Any] = json.loads(data)
    return answer


def address_of(service: Service) -> str:
    return str(service.wait("metrics")["address"])


def fetch(address: str, accept: str = "*/*", path: str = "/metrics") -> tuple[str, str]:
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values_of(text: str, kinds: tuple[str, ...] = ()) -> Values:
    """Each sample's value, by its name and labels; of families of some types only, if any."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        if not kinds or family.type in kinds
        for sample in family.samples
        if sample.name.startswith("lazyrestore_")
    }


def value(values: Values, name: str, **labels: str) -> float:
    """The sum of all that have these labels."""
    found = [
        number
        for (each, its), number in values.items()
        if each == f"lazyrestore_{name}" and set(labels.items()) <= its
    ]
    assert found, (name, labels, values)
    return sum(found)


# ---- Status --------------------------------------------------------------------------------------


@in_child()
def test_status(image: Path, tmp_path: Path) -> None:
    """Of the service and of each peer, in exact figures"""
    with (
        Service(tmp_path / "s", image, "--prefetch", "none", keeper=True) as service,
        Monitor(PAGES) as monitor,
    ):
        empty = ask(service.path)
        assert (empty["type"], empty["version"], empty["peers"]) == ("status", 1, [])
        monitor.restore(service.path)
        monitor.read(0, 3 * CLUSTER)
        monitor.read(PAGES // 2 * PAGE, 2 * CLUSTER)
        with service.connect() as nonsense:
            nonsense.sendall(b"[1]")
            nonsense.recv(4096)
        service.wait("keeper_started")
        answer = ask(service.path)
        about, (peer,) = answer["service"], answer["peers"]
        assert about["pid"] == service.pid
        assert Path(f"/proc/{about['keeper_pid']}").exists()
        assert about["image"] == str(image)
        assert about["sockets"] == [service.path]
        assert (about["admitted"], about["gone"], about["connections"]) == (1, 0, 0)
        assert sum(about["refused"].values()) == 1
        assert about["resident_bytes"] > 1 << 20
        assert (about["is_admitting"], about["is_promoted"]) == (True, False)
        assert (peer["pid"], peer["uid"]) == (monitor.pid, os.geteuid())
        assert (peer["protocol"], peer["image"]) == ("firecracker", str(image))
        assert peer["total_bytes"] == PAGES * PAGE
        assert peer["missing_bytes"] == PAGES * PAGE - 5 * CLUSTER
        assert (peer["copied_bytes"], peer["zeroed_bytes"]) == (3 * CLUSTER, 2 * CLUSTER)
        assert peer["faults"] == 5
        assert peer["answers"]["read"] == {"data": 3, "zero": 2, "fenced": 0, "present": 0}
        assert (peer["errors"], peer["fill"], peer["is_complete"]) == (0, "none", False)
        assert peer["service_us"]["count"] == 5
        assert 0 < peer["service_us"]["p50"] <= peer["service_us"]["max"]


@in_child()
def test_status_of_what_fills(image: Path, tmp_path: Path) -> None:
    with (
        Service(tmp_path / "s", image, "--prefetch", "all") as service,
        Monitor(PAGES) as monitor,
    ):
        monitor.restore(service.path)
        service.wait("complete", pid=monitor.pid)
        (peer,) = ask(service.path)["peers"]
        assert (peer["fill"], peer["is_complete"], peer["missing_bytes"]) == ("complete", True, 0)
        assert ask(service.path)["service"]["keeper_pid"] is None


# ---- Figures -------------------------------------------------------------------------------------


@in_child()
def test_metrics_are_what_prometheus_reads(image: Path, tmp_path: Path) -> None:
    """In both of its formats: types, help, units; and the figures are right"""
    with (
        Service(tmp_path / "s", image, "--prefetch", "none", "--metrics", "0") as service,
        Monitor(PAGES) as monitor,
    ):
        address = address_of(service)
        assert address.startswith("127.0.0.1:")
        monitor.restore(service.path)
        monitor.read(0, 3 * CLUSTER)
        monitor.ask(f"maps[0][1].__setitem__({PAGES * PAGE - 1}, 1)")
        text, kind = fetch(address)
        assert kind.startswith("text/plain")
        families = [each for each in parse(text) if each.name.startswith("lazyrestore_")]
        assert len(families) > 15
        for family in families:
            assert family.documentation.endswith("."), family
            assert family.type in ("counter", "gauge", "histogram"), family
            # What is counted has no unit, what is measured has one of Prometheus's.
            assert not family.name.endswith(("_us", "_ns", "_pages", "_kib")), family
        lines = [line for line in text.splitlines() if line.startswith("lazyrestore_")]
        assert len(lines) == len(set(lines)), "a series is there twice"
        values = values_of(text)
        assert value(values, "faults_total", access="read", result="data") == 3
        assert value(values, "faults_total", access="write", result="zero") == 1
        assert value(values, "faults_total") == 4
        assert value(values, "fault_service_seconds_count") == 4
        assert value(values, "fault_service_seconds_bucket", le="+Inf") == 4
        assert 0 < value(values, "fault_service_seconds_sum") < LIMIT_S
        assert value(values, "filled_bytes_total", content="data") == 3 * CLUSTER
        assert value(values, "filled_bytes_total", content="zero") == CLUSTER
        assert value(values, "memory_bytes", state="resident") == 4 * CLUSTER
        assert value(values, "memory_bytes") == PAGES * PAGE
        assert value(values, "peers", image=str(image), fill="none") == 1
        assert value(values, "peers") == 1
        assert value(values, "peers_admitted_total") == 1
        assert value(values, "keeper_up") == 0
        assert "process_resident_memory_bytes" in text

        text, kind = fetch(address, "application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert len(list(parse_openmetrics(text))) >= len(families)


@in_child(120)
def test_counters_never_fall(image: Path, tmp_path: Path) -> None:
    """Figures are fetched all the time, while peers come, read, and die"""
    rounds, at_once = 6, 4
    with Service(tmp_path / "s", image, "--metrics", "0") as service:
        address = address_of(service)
        is_over, fetched, wrong = threading.Event(), [0], []

        def watch() -> None:
            last: Values = {}
            while not is_over.is_set() or not fetched[0]:
                text = fetch(address)[0]
                now = values_of(text, ("counter", "histogram"))
                wrong.extend(
                    (key, before, now.get(key))
                    for key, before in last.items()
                    if now.get(key, -1) < before
                )
                # All of one moment: as many times were measured as faults were answered.
                if (
                    now
                    and (
                        faults := [
                            n for (name, _), n in now.items() if name.endswith("faults_total")
                        ]
                    )
                    and sum(faults) != value(now, "fault_service_seconds_count")
                ):
                    wrong.append((faults, now))
                last = now
                fetched[0] += 1

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(rounds):
                monitors = [Monitor(PAGES) for _ in range(at_once)]
                for monitor in monitors:
                    monitor.restore(service.path)
                    monitor.order(f"read(0, {PAGES * PAGE}).__len__()")
                for monitor in monitors[::2]:
                    assert monitor.result() == PAGES * PAGE
                for monitor in monitors:  # half of them in the middle of it
                    service.wait("serving", pid=monitor.pid)
                    monitor.close()
            service.wait("gone", rounds * at_once)
        finally:
            is_over.set()
            watcher.join()
        assert wrong == []
        values = values_of(fetch(address)[0])
        gone = service.find("gone")
        assert value(values, "peers_gone_total") == len(gone) == rounds * at_once
        assert value(values, "peers_admitted_total") == rounds * at_once
        assert value(values, "peers") == 0
        assert value(values, "memory_bytes") == 0
        # Those that read everything were told of in full.
        assert value(values, "filled_bytes_total") >= rounds * at_once // 2 * PAGES * PAGE
        assert value(values, "faults_total") <= sum(each["faults"] for each in gone)


@in_child()
def test_errors_and_refusals_are_counted(image: Path, tmp_path: Path) -> None:
    """What could not be loaded; who was not admitted, by the reason"""
    with image.open("r+b") as file:
        offset, length = next(iter(payloads(image, "memory").values()))
        file.seek(offset)
        damaged = bytes(byte ^ 0xFF for byte in file.read(length))
        file.seek(offset)
        file.write(damaged)
    arguments = ("--on-error", "poison", "--metrics", "0", "--prefetch", "none")
    with Service(tmp_path / "s", image, *arguments) as service, Monitor(PAGES) as monitor:
        address = address_of(service)
        monitor.restore(service.path)
        monitor.order("read(0, 1)")  # SIGBUS ends it
        assert monitor.process.wait(LIMIT_S) == -signal.SIGBUS
        service.wait("gone", pid=monitor.pid)
        for nonsense in (b"[1]", b"[]", b"what?"):
            with service.connect() as connection:
                connection.sendall(nonsense)
                connection.recv(4096)
        values = values_of(fetch(address)[0])
        assert value(values, "load_errors_total") == 1
        assert value(values, "faults_total", result="fenced") == 1
        assert value(values, "errors_total") == 1
        (error,) = service.find("error", pid=monitor.pid)  # though it was dead by then
        assert (error["offset"], error["length"], error["action"]) == (0, CLUSTER, "poison")
        counted: dict[str, int] = {}
        for event in service.find("refused"):
            counted[event["code"]] = counted.get(event["code"], 0) + 1
        assert sum(counted.values()) == 3
        for code, number in counted.items():
            assert value(values, "refusals_total", reason=code) == number


@in_child()
def test_what_else_is_asked_of_the_metrics_port(image: Path, tmp_path: Path) -> None:
    """Other pages, other methods, too much, too many: an answer, and the service goes on"""
    with (
        Service(tmp_path / "s", image, "--metrics", "0") as service,
        Monitor(PAGES) as monitor,
    ):
        address = address_of(service)
        host, port = address.split(":")

        def say(data: bytes) -> bytes:
            with socket.create_connection((host, int(port)), LIMIT_S) as connection:
                connection.sendall(data)
                answer = b""
                try:
                    while piece := connection.recv(65536):
                        answer += piece
                except ConnectionResetError:  # it did not read all that was sent
                    pass
                return answer

        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(address, path="/")
        assert b" 200 OK\r\n" in say(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n")
        head = say(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 OK\r\n" in head
        assert head.endswith(b"\r\n\r\n")
        assert b" 405 " in say(b"POST /metrics HTTP/1.1\r\n\r\n")
        assert b" 405 " in say(b"\r\n\r\n")
        assert b" 431 " in say(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * REQUEST_BYTES_MAX * 2)
        idle = [
            socket.create_connection((host, int(port)), LIMIT_S) for _ in range(CONNECTIONS_MAX)
        ]
        assert b" 503 " in say(b"GET /metrics HTTP/1.1\r\n\r\n")
        monitor.restore(service.path)
        assert len(monitor.read_all()) == PAGES * PAGE
        for connection in idle:
            connection.close()

        def is_served() -> bool:
            try:
                return "lazyrestore_peers" in fetch(address)[0]
            except urllib.error.HTTPError:
                return False

        eventually("others are gone, and it answers", is_served)


def test_addresses_that_cannot_be(image: Path, tmp_path: Path) -> None:
    """Said at once, and nothing is served"""
    at = ("--socket", tmp_path / "s")
    run("serve", image, *at, "--metrics", "nowhere").fails(2, "--metrics", "nowhere")
    run("serve", image, *at, "--metrics", "192.0.2.1:9100").fails(1, "192.0.2.1:9100")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", image, *at, "--metrics", port, "--no-keeper")
        assert result.code == 1
        assert f"cannot serve metrics at 127.0.0.1:{port}: Address already in use" in result.err
    assert not (tmp_path / "s").exists()


def test_metrics_without_prometheus_client(image: Path, tmp_path: Path) -> None:
    """As where the package was installed without its extra"""
    code = (
        "import sys; sys.modules['prometheus_client'] = None;"
        "from lazyrestore.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = (sys.executable, "-c", code)
    arguments = ("serve", image, "--socket", tmp_path / "s", "--metrics", "9100")
    result = finish(start(*arguments, command=command))
    result.fails(1, "--metrics needs prometheus_client", "pip install 'lazyrestore[metrics]'")


@in_child()
def test_who_takes_over_serves_the_figures_too(image: Path, tmp_path: Path) -> None:
    """At the same address"""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = Service(tmp_path / "s", image, "--metrics", port, keeper=True)
    with Monitor(PAGES) as monitor:
        address = address_of(service)
        monitor.restore(service.path)
        monitor.read(0, CLUSTER)
        service.wait("keeper_started")
        service.process.kill()

        def promoted() -> Values | None:
            try:
                found = values_of(fetch(address)[0])
            except OSError:
                return None
            return found if value(found, "promoted") else None

        eventually("the keeper answers", promoted)
        assert ask(service.path)["service"]["is_promoted"]
        assert ask(service.path)["service"]["takeovers"] == 1
        assert len(monitor.read_all()) == PAGES * PAGE
        found = promoted()
        assert found is not None
        assert value(found, "peers") == 1
        assert value(found, "takeovers_total") == 1
        assert value(found, "faults_total") > 0
        keeper = ask(service.path)["service"]["pid"]
    eventually("it ends with its last peer", lambda: not Path(f"/proc/{keeper}").exists())
    service.process.wait(LIMIT_S)


# ---- Events --------------------------------------------------------------------------------------


def refuse(path: Path, number: int) -> None:
    """Connect with a handshake that is none, so often."""
    for _ in range(number):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT_S)
            connection.connect(str(path))
            connection.sendall(b"[1]")
            assert b"error" in connection.recv(4096)


@in_child()
def test_a_full_pipe_on_standard_error_holds_nobody_up(image: Path, tmp_path: Path) -> None:
    """Nobody reads what it says; it serves on, and what it says stays whole lines"""
    path = tmp_path / "s"
    service = start("serve", image, "--socket", path, "--log-json", "--no-keeper")
    assert service.stderr is not None
    try:
        eventually("it listens", path.exists)
        number = 600  # of refusals, 300 bytes each, beside as many connections: a pipe has 64 KiB
        refuse(path, number)
        with Monitor(PAGES) as monitor:
            monitor.restore(path)
            assert len(monitor.read_all()) == PAGES * PAGE
            assert ask(str(path))["service"]["refused"] == {"ranges": number}
        service.send_signal(signal.SIGTERM)
        said = service.stderr.read().splitlines()
        assert service.wait(LIMIT_S) == 0
    finally:
        service.kill()
        service.communicate()
    events = [json.loads(line)["event"] for line in said]
    assert events[0] == "listening"
    assert events.count("refused") == number
    assert events[-1] == "stopped"


@in_child()
def test_it_ends_though_nobody_reads(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    service = start("serve", image, "--socket", path, "--log-json", "--no-keeper")
    try:
        eventually("it listens", path.exists)
        refuse(path, 600)
        service.send_signal(signal.SIGTERM)
        assert service.wait(LIMIT_S) == 0
    finally:
        service.kill()
        service.communicate()


@in_child()
def test_the_last_words_of_who_leaves_peers_to_its_keeper(tmp_path: Path) -> None:
    """That process does not end as others do, but has said all before"""
    pages = 32 * PAGES  # more than can be filled in no time at all
    image = tmp_path / "large.lzr"
    expected = write_image(image, {"memory": "d" * pages})["memory"]
    arguments = ("--prefetch", "none", "--grace", "0", "--metrics", "0")
    with Monitor(pages) as monitor:
        with Service(tmp_path / "s", image, *arguments, keeper=True) as service:
            monitor.restore(service.path)
            monitor.read(0, CLUSTER)
            service.wait("keeper_started")
            service.process.send_signal(signal.SIGTERM)
            service.wait("left", pid=monitor.pid)
            assert "the keeper serves 1 peer on" in service.wait("stopped")["reason"]
            assert service.process.wait(LIMIT_S) == 0
        assert monitor.read(pages * PAGE - CLUSTER, CLUSTER) == expected[-CLUSTER:]


@in_child()
def test_text_for_people(image: Path, tmp_path: Path) -> None:
    """Without --log-json: lines that say who and what"""
    path = tmp_path / "s"
    service = start("serve", image, "--socket", path, "--no-keeper")
    try:
        eventually("it listens", path.exists)
        with Monitor(PAGES) as monitor:
            monitor.restore(path)
            monitor.read_all()
            pid = monitor.pid
        eventually("it has noticed", lambda: ask(str(path))["service"]["gone"] == 1)
        service.send_signal(signal.SIGTERM)
        lines = finish(service).err.splitlines()
    finally:
        service.kill()
    assert lines[0] == f"lazyrestore: listening at {path}"
    assert lines[1] == f"lazyrestore: peer 1 (process {pid}): serving 1.0 MiB from {image}"
    assert lines[-2].startswith(f"lazyrestore: peer 1 (process {pid}): gone: ")
    assert lines[-1] == "lazyrestore: stopped"


def test_starting_up_costs_nothing_more() -> None:
    """Commands that do not watch import nothing that watching needs"""
    code = (
        "import sys; from lazyrestore.cli import make_app; make_app(['restore']);"
        "print([m for m in ('rich', 'prometheus_client', 'asyncio') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert result.stdout.strip() == "[]"
