"""`lazyrestore restore --lazy`: the figures are those of the kernel and of the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import PAGE, Image, finish, interrupt, run, start
from restore_support import payloads, write_image
from seccomp_support import DENY

import lazyrestore

pytestmark = pytest.mark.uffd
MakeImage = Callable[..., Image]


def report_of(*arguments: object) -> dict[str, object]:
    return json.loads(run("restore", "--lazy", "--json", *arguments).ok().out)


def test_first_touch_by_default(small: Image) -> None:
    """One page, one fault, one cluster"""
    report = report_of(small.path)
    assert report["touched_pages"] == 1
    assert report["faults"] == 1
    assert report["clusters_decoded"] == 1
    assert report["pages_copied"] == 4  # the cluster
    assert report["pages_zeroed"] == 0
    assert report["resident_bytes"] == 4 * PAGE
    assert report["lazy"] is True
    assert report["privilege"] == "full"
    assert report["errors"] == []
    assert report["logical_bytes"] == sum(map(len, small.expected.values()))


def test_times_include_one_another(small: Image) -> None:
    """From opening to the first byte, everything between included"""
    report = report_of(small.path)
    assert report["open_us"] > 0
    assert report["map_us"] > 0
    touch = report["touch_us"]
    assert report["first_access_us"] >= report["open_us"] + report["map_us"] + touch["max"]
    assert touch["p50"] <= touch["p90"] <= touch["p99"] <= touch["max"]
    service = report["service_us"]
    assert service["count"] == 1
    assert service["p50"] <= service["p90"] <= service["p99"] <= service["max"]


def test_the_literal_promise(make_image: MakeImage) -> None:
    """In clusters of a page: as many faults as pages, data copied, zeros and holes not"""
    image = make_image({"memory": "dzhd" * 25}, cluster_size=4096)
    report = report_of(image.path, "--touch", "sequential")
    assert report["touched_pages"] == 100
    assert report["faults"] == 100
    assert report["pages_copied"] == 50
    assert report["pages_zeroed"] == 50
    assert report["resident_bytes"] == 50 * PAGE
    # A touch may have faulted without a message: two at one time on a page table.
    assert report["touch_us"]["count"] >= 100
    assert report["service_us"]["count"] == 100


@pytest.mark.parametrize("order", ["first", "sequential", "random"])
def test_count(make_image: MakeImage, order: str) -> None:
    """So many pages, over all regions"""
    image = make_image({"a": "d" * 30, "b": "d" * 30}, cluster_size=4096)
    report = report_of(image.path, "--touch", order, "--count", 40)
    assert report["touched_pages"] == 40
    assert report["faults"] == 40
    assert report["touch"] == order


def test_granularity(make_image: MakeImage) -> None:
    made = make_image({"a": "d" * 64}, cluster_size=65536)
    by_page = report_of(made.path, "--granularity", "page", "--count", "5")
    assert (by_page["faults"], by_page["pages_copied"], by_page["clusters_decoded"]) == (5, 5, 1)
    by_cluster = report_of(made.path, "--count", "5")
    assert (by_cluster["faults"], by_cluster["pages_copied"]) == (1, 16)


def test_fault_mode(make_image: MakeImage) -> None:
    """Inline, the threads that fault are the ones that touch: the main one, here."""
    made = make_image({"a": "dz" * 8}, cluster_size=4096)
    report = report_of(made.path, "--fault-mode", "inline", "--touch", "random")
    assert (report["faults"], report["pages_copied"], report["touch_us"]["count"]) == (16, 8, 16)


def test_more_than_there_are(make_image: MakeImage) -> None:
    image = make_image({"a": "d" * 3, "b": "d" * 2}, cluster_size=4096)
    for order in ("first", "sequential", "random"):
        assert report_of(image.path, "--touch", order, "--count", 99)["touched_pages"] == 5


def test_sequential_is_in_order_of_regions(make_image: MakeImage) -> None:
    image = make_image({"a": "d" * 4, "b": "d" * 4}, cluster_size=4096)
    lines = trace_of(image.path, "--touch", "sequential", "--count", 6)
    assert [(line["region"], line["offset"] // PAGE) for line in lines] == [
        *(("a", page) for page in range(4)),
        ("b", 0),
        ("b", 1),
    ]


def test_random_depends_on_the_seed(make_image: MakeImage) -> None:
    """And on nothing else; all regions have their share"""
    image = make_image({"a": "d" * 60, "b": "d" * 20}, cluster_size=4096)
    random = ("--touch", "random", "--count", 40)

    def pages(*seed: object) -> list[tuple[object, object]]:
        return [(line["region"], line["offset"]) for line in trace_of(image.path, *random, *seed)]

    first = pages()
    assert len(set(first)) == 40
    assert [region for region, _ in first].count("b") == 10
    assert first == pages("--seed", 0)
    assert first != pages("--seed", 1)
    assert first != sorted(first)


def test_one_region_only(small: Image) -> None:
    report = report_of(small.path, "--region", "more", "--touch", "sequential")
    assert report["regions"] == 1
    assert report["logical_bytes"] == len(small.expected["more"])
    assert report["touched_pages"] == 16
    run("restore", "--lazy", small.path, "--region", "nix").fails(2, "'nix'", "'data'", "'more'")


def test_nothing_to_touch(make_image: MakeImage) -> None:
    """No first access, no latencies; not a division by zero"""
    for layouts in ({}, {"empty": ""}):
        image = make_image(layouts)
        report = report_of(image.path)
        assert report["touched_pages"] == 0
        assert report["first_access_us"] is None
        assert report["touch_us"] is None
        assert report["service_us"] is None
        run("restore", "--lazy", image.path).ok()


def test_only_holes(make_image: MakeImage) -> None:
    """Zeros that cost no memory"""
    report = report_of(make_image({"memory": "h" * 64}).path, "--touch", "sequential")
    assert report["pages_copied"] == 0
    assert report["resident_bytes"] == 0


def test_text(small: Image) -> None:
    """Everything in words, within 80 columns"""
    text = run("restore", "--lazy", small.path, "--touch", "sequential").ok().out
    for word in ("open", "map", "first access", "faults", "resident", "p50", "touches by"):
        assert word in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    bars = re.findall(r"µs +(\d+)  [█▏]+$", text, re.MULTILINE)
    assert sum(map(int, bars)) >= 1


def test_quiet(small: Image) -> None:
    assert run("restore", "--lazy", "-q", small.path).ok().out == ""


# ---- Trace ---------------------------------------------------------------------------------------


def trace_of(*arguments: object) -> list[dict[str, object]]:
    result = run("restore", "--lazy", "--json", "--trace", *arguments)
    assert result.code == 0, result
    report = json.loads(result.out)
    lines = [json.loads(line) for line in result.err.splitlines()]
    assert len(lines) == report["faults"]
    assert report["trace_lost"] == 0
    return lines


def test_trace_as_json(make_image: MakeImage) -> None:
    """A line for each fault, with what was done"""
    image = make_image({"memory": "dzdz"}, cluster_size=4096)
    lines = trace_of(image.path, "--touch", "sequential")
    assert [line["action"] for line in lines] == ["COPY", "ZEROPAGE"] * 2
    assert [line["offset"] for line in lines] == [0, PAGE, 2 * PAGE, 3 * PAGE]
    addresses = [line["address"] for line in lines]
    assert [address - addresses[0] for address in addresses] == [0, PAGE, 2 * PAGE, 3 * PAGE]
    assert {line["bytes"] for line in lines} == {PAGE}
    assert {line["write"] for line in lines} == {False}
    assert {line["region"] for line in lines} == {"memory"}
    assert all(0 < line["service_us"] < 10e6 for line in lines)
    assert len({line["thread"] for line in lines}) == 1


def test_trace_as_text(make_image: MakeImage) -> None:
    image = make_image({"memory": "dz"}, cluster_size=4096)
    result = run("restore", "--lazy", "--trace", image.path, "--touch", "sequential")
    assert result.code == 0, result
    data, zero = result.err.splitlines()
    shape = r"0x[0-9a-f]+ (thread \d+ )?read memory\+{} {} 4096 bytes, [0-9.]+ µs"
    assert re.fullmatch(shape.format("0x0", "COPY"), data)
    assert re.fullmatch(shape.format("0x1000", "ZEROPAGE"), zero)


def test_trace_of_a_process_with_very_many_mappings(tmp_path: Path) -> None:
    """What it costs to look at them all is not paid for each of them: that took minutes"""
    with lazyrestore.ImageWriter(tmp_path / "x.lzr", cluster_size=4096) as image:
        for number in range(8000):
            image.add_region(f"region {number}")
            image.write(number.to_bytes(2, "little") * 2048)
    lines = trace_of(image.close().path, "--touch", "sequential")
    assert [line["region"] for line in lines] == [f"region {number}" for number in range(8000)]


def test_trace_of_more_than_it_has_room_for(tmp_path: Path) -> None:
    """The touching waits for it, so that nothing is lost"""
    path = tmp_path / "many.lzr"
    with lazyrestore.ImageWriter(path, cluster_size=4096) as image:
        image.add_region("memory")
        for page in range(20_000):
            image.write((page + 1).to_bytes(8, "little") * (PAGE // 8))
    assert len(trace_of(path, "--touch", "sequential")) == 20_000


def test_trace_comes_while_touching_goes_on(tmp_path: Path) -> None:
    """Faults are printed as they are served: the first lines are there long before the last"""
    path = tmp_path / "large.lzr"
    with lazyrestore.ImageWriter(path, cluster_size=4096) as image:
        image.add_region("memory")
        for _ in range(64):
            image.write((b"lazy" * 1024) * 1024)
    child = start("restore", "--lazy", "--trace", path, "--touch", "random")
    first = child.stderr.readline()
    assert b"COPY" in first
    assert child.poll() is None
    result = interrupt(child)
    assert result.code == 130, result
    assert result.err.splitlines()[-1] == "lazyrestore: interrupted"


def test_trace_that_nobody_reads_does_not_hold_up_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "large.lzr"
    with lazyrestore.ImageWriter(path, cluster_size=4096) as image:
        image.add_region("memory")
        for _ in range(64):
            image.write((b"lazy" * 1024) * 1024)
    read_end, write_end = os.pipe()
    child = start("restore", "--lazy", "--trace", path, "--touch", "random", stderr=write_end)
    os.close(write_end)
    assert os.read(read_end, 1)
    time.sleep(0.3)  # the pipe is full by now, and the trace thread waits
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    os.close(read_end)
    assert finish(child).code == 130


# ---- Where not all is well -----------------------------------------------------------------------


@pytest.fixture
def damaged(make_image: MakeImage) -> Image:
    """Cluster 2 of 8 (4 pages each) has a wrong byte."""
    image = make_image({"memory": "d" * 32}, cluster_size=16384)
    offset, _ = payloads(image.path, "memory")[2]
    data = bytearray(image.path.read_bytes())
    data[offset] ^= 1
    image.path.write_bytes(data)
    return image


def test_a_damaged_cluster(damaged: Image) -> None:
    """It is reported with its place; all others were loaded; nobody died of SIGBUS"""
    result = run("restore", "--lazy", "--json", damaged.path, "--touch", "sequential")
    result.fails(3, "'memory'", "offset 32768", "checksum", "verify")
    report = json.loads(result.out)
    assert report["touched_pages"] == 28
    assert report["pages_copied"] == 28
    (error,) = report["errors"]
    assert (error["region"], error["offset"], error["length"]) == ("memory", 32768, 16384)
    assert "checksum" in error["reason"]


def test_a_damaged_cluster_in_words(damaged: Image) -> None:
    result = run("restore", "--lazy", damaged.path, "--touch", "random", "--trace")
    assert result.code == 3, result
    assert "0x8000" in result.out
    assert "FENCE" in result.err
    assert result.err.splitlines()[-1].startswith("lazyrestore: ")


def test_a_damaged_cluster_that_is_not_touched(damaged: Image) -> None:
    """Is nobody's business"""
    run("restore", "--lazy", damaged.path, "--count", 8).ok()


def test_a_damaged_cluster_restored_eagerly(damaged: Image, nobody: object) -> None:
    """What --or-eager decodes, it has to decode: all or an error"""
    copy = nobody.bring(damaged.path)
    result = nobody.run("restore", "--lazy", "--or-eager", copy)
    assert result.code == 3, result
    assert "offset 32768" in result.err.splitlines()[-1]


@pytest.mark.parametrize("option", ["--touch=first", "--count=1", "--trace", "--or-eager"])
def test_options_that_need_lazy(small: Image, tmp_path: Path, option: str) -> None:
    result = run("restore", small.path, "--output", tmp_path / "out", option)
    result.fails(2, option.partition("=")[0], "--lazy")
    assert not (tmp_path / "out").exists()


def test_lazy_and_output_exclude_each_other(small: Image, tmp_path: Path) -> None:
    run("restore", "--lazy", small.path, "-o", tmp_path / "out").fails(2, "--lazy", "--output")


@pytest.mark.parametrize("value", ["0", "-1", "all", "1.5"])
def test_bad_counts(small: Image, value: str) -> None:
    run("restore", "--lazy", small.path, f"--count={value}").fails(2, "--count", value)


def test_at_original_address(tmp_path: Path) -> None:
    """Where it was, if nothing is there; else who is"""
    free = 0x10_0000_0000
    path = tmp_path / "placed.lzr"
    write_image(path, {"memory": "d" * 4}, addresses={"memory": free})
    (line,) = trace_of(path, "--at-original-address")
    assert line["address"] == free

    write_image(path, {"memory": "d" * 4}, addresses={"memory": free + 1})
    run("restore", "--lazy", path, "--at-original-address").fails(2, "page-aligned")
    write_image(path, {"memory": "d" * 4})
    run("restore", "--lazy", path, "--at-original-address").fails(2, "no original address")


def test_at_an_address_that_is_taken(tmp_path: Path) -> None:
    """By the program itself: nothing is ever replaced"""
    program = shutil.which("setarch")
    if program is None:
        pytest.skip("setarch is not installed")
    command = (program, "-R", sys.executable, "-c")
    # Without randomisation the interpreter lies where it lay.
    show = "print(next(line for line in open('/proc/self/maps') if 'python' in line))"
    probe = run(show, command=command)
    if probe.code != 0:
        pytest.skip(f"setarch -R does not work here: {probe.err.strip()}")
    address = int(probe.out.split("-")[0], 16)
    path = tmp_path / "placed.lzr"
    write_image(path, {"memory": "d" * 4}, addresses={"memory": address})
    script = "import sys; from lazyrestore.cli import main; sys.exit(main())"
    result = run(script, "restore", "--lazy", "--at-original-address", path, command=command)
    result.fails(4, f"{address:#x}", "taken")


# ---- An ordinary user ----------------------------------------------------------------------------

needs_refusal = pytest.mark.skipif(
    not Path("/proc/sys/vm/unprivileged_userfaultfd").exists()
    or Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0",
    reason="vm.unprivileged_userfaultfd lets every user have one",
)


@needs_refusal
def test_no_right_to_it(nobody: object, small: Image) -> None:
    """Strict: exit code 4, what is missing and where to look"""
    copy = nobody.bring(small.path)
    nobody.run("restore", "--lazy", copy).fails(4, "userfaultfd", "lazyrestore doctor")
    result = nobody.run("restore", "--lazy", "--json", copy).fails(4)
    assert json.loads(result.out)["error"]["type"] == "KernelError"


@needs_refusal
def test_the_lesser_way_is_told_where_there_is_one(nobody: object, small: Image) -> None:
    """And works as it was told; but not who chose the kind himself, nor where it is refused too"""
    if json.loads(nobody.run("doctor", "--json").out)["level"] != "user-mode-only":
        pytest.skip("no user-mode-only userfaultfd for an ordinary user here")
    copy = nobody.bring(small.path)
    nobody.run("restore", "--lazy", copy).fails(
        4, ", or add --privilege auto: all but system calls"
    )
    assert nobody.run("restore", "--lazy", "--privilege", "auto", copy).code == 0
    for chosen in ("--privilege=full", "--privilege"):
        arguments = (chosen, *(("full",) if chosen == "--privilege" else ()), copy)
        result = nobody.run("restore", "--lazy", *arguments).fails(4, "lazyrestore doctor")
        assert "auto" not in result.err
    script = (
        f"{DENY}\ndeny_userfaultfd(1)\n"
        "from lazyrestore.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    result = nobody.run("restore", "--lazy", copy, script=script)
    if not result.out.startswith("skip"):
        assert "--privilege" not in result.fails(4, "lazyrestore doctor").err


@needs_refusal
def test_or_eager(nobody: object, small: Image) -> None:
    """Falls back and says so"""
    copy = nobody.bring(small.path)
    result = nobody.run("restore", "--lazy", "--or-eager", "--json", copy, "--touch", "sequential")
    assert result.code == 0, result
    assert result.err.count("\n") == 1
    assert "userfaultfd" in result.err
    assert "--or-eager" in result.err
    report = json.loads(result.out)
    assert report["lazy"] is False
    assert report["privilege"] == "none"
    assert report["faults"] == 0
    assert report["touched_pages"] == 80
    assert report["service_us"] is None
    text = nobody.run("restore", "--lazy", "--or-eager", copy)
    assert "eagerly" in text.out


@needs_refusal
@pytest.mark.parametrize("privilege", ["auto", "user-mode-only"])
def test_user_mode_only(nobody: object, small: Image, privilege: str) -> None:
    """What an ordinary user may have since Linux 5.11"""
    copy = nobody.bring(small.path)
    result = nobody.run("restore", "--lazy", "--json", f"--privilege={privilege}", copy)
    if result.code == 4:
        pytest.skip(f"no user-mode-only userfaultfd: {result.err}")
    report = json.loads(result.ok().out)
    assert report["privilege"] == "user-mode-only"
    assert report["faults"] == 1


def test_or_eager_is_lazy_where_it_can_be(small: Image) -> None:
    assert report_of(small.path, "--or-eager")["lazy"] is True


def test_leaves_nothing(small: Image) -> None:
    before = sorted(small.path.parent.iterdir())
    report_of(small.path)
    assert sorted(small.path.parent.iterdir()) == before
