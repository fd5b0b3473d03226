"""`lazyrestore bench`: what it measures is there, adds up, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest
from cli_support import environment, run

from lazyrestore._bench.hello import explain
from lazyrestore._demo.images import write_text_image
from lazyrestore._wakeup import Wakeup
from lazyrestore.writer import ImageWriter

MIB = 1 << 20
WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
from lazyrestore.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def text_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "text.lzr"
    write_text_image(str(path), 4 * MIB)
    return path


@pytest.mark.uffd
def test_hello_as_json(tmp_path: Path) -> None:
    """One latency a page in the file, and the figures are of those"""
    raw = tmp_path / "latencies"
    report = json.loads(run("bench", "hello", "--pages", 777, "--raw", raw, "--json").ok().out)
    latencies = [int(line) for line in raw.read_text().splitlines()]
    assert report["pages"] == len(latencies) == 777
    assert min(latencies) > 0
    started = report["as_started"]["latency"]
    assert started["mean"] == pytest.approx(statistics.mean(latencies) / 1000, abs=0.01)
    assert started["max"] == pytest.approx(max(latencies) / 1000, abs=0.01)
    for way in ("as_started", "one_core"):
        found = report[way]["latency"]
        assert found["count"] == 777
        assert sum(count for _, _, count in found["histogram"]) == 777
        shares = [found["p50"], found["p90"], found["p99"], report[way]["p99_9"], found["max"]]
        assert shares == sorted(shares)
    assert report["wakeup"]["one_core_us"] > 0
    assert report["explanation"]


def test_what_is_said_of_waking() -> None:
    """Not that it is most of a fault where the same page shows that it was not"""
    wakeup = Wakeup(2.0, 22.0, None, None, None, False, False, 0)
    slow, quick = explain(46.0, 6.0, wakeup), explain(6.2, 6.0, wakeup)
    assert "halted cores is most of it" in slow[1]
    assert "had no halted core to wake" in quick[1]


@pytest.mark.uffd
def test_hello_as_text() -> None:
    """Both ways, from p50 to the longest, with histograms, and what waking costs"""
    text = run("bench", "hello", "--pages", 300).ok().out
    for word in ("mean", "p50", "p99.9", "max", "as started", "one core", "waking a thread"):
        assert word in text
    assert text.count(" µs to ") >= 2


@pytest.mark.uffd
def test_hello_of_one_page() -> None:
    """Fewer pages than turns"""
    report = json.loads(run("bench", "hello", "--pages", 1, "--json").ok().out)
    assert report["as_started"]["latency"]["count"] == 1


def test_hello_where_the_file_cannot_be_written(tmp_path: Path) -> None:
    """Found out before anything is measured"""
    run("bench", "hello", "--raw", tmp_path / "none" / "file").fails(1, "none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hello", "--quick"], ["--quick"]),
        (["hello", "--repeat", "2"], ["--repeat"]),
        (["hello", "--pages", "0"], ["from 1 on"]),
        (["hello", "--pages", "99999999999999"], ["--pages", "16777216"]),
        (["image.lzr", "--pages", "5"], ["--pages"]),
        (["image.lzr", "--raw", "file"], ["--raw"]),
        (["hello", "--plot", "picture.jpg"], [".png", ".svg"]),
    ],
)
def test_usage(arguments: list[str], words: list[str]) -> None:
    """What does not go together is refused"""
    run("bench", *arguments).fails(2, *words)


@pytest.mark.uffd
def test_an_image(text_image: Path, tmp_path: Path) -> None:
    """All rows; ratios of what stands beside them; the image stays, and nothing else"""
    found = run(
        *("bench", text_image, "--quick", "--repeat", 1, "--json"),
        env=environment({"TMPDIR": str(tmp_path)}),
    ).ok()
    report = json.loads(found.out)
    assert report["image"] == str(text_image)
    assert report["measured_bytes"] == 4 * MIB
    assert report["repeats"] == 1
    whats = {row["what"] for row in report["rows"]}
    assert whats >= {"first access", "fault, p50", "fault, p99", "all of it touched"}
    for row in report["rows"]:
        assert row["us"] > 0
        assert row["ratio"] == pytest.approx(row["us"] / row["other_us"], rel=0.01)
    assert {"lazyrestore", "hello"} <= set(report["faults"])
    # Each of ours brings a cluster of 16 pages, hello's one page; but who goes on before all of a
    # cluster is there may have to wait again.
    clusters = 4 * MIB // 65536
    assert clusters <= report["faults"]["lazyrestore"]["count"] <= 16 * clusters
    assert list(tmp_path.iterdir()) == []


@pytest.mark.uffd
def test_an_image_as_an_ordinary_user(nobody: object, text_image: Path) -> None:
    """All is touched by loads, for which no right is needed"""
    copy = nobody.bring(text_image)  # type: ignore[attr-defined]
    if nobody.run("bench", "hello", "--pages", 10).code == 4:  # type: ignore[attr-defined]
        pytest.skip("no userfaultfd for ordinary users here, not even for loads and stores")
    nobody.run("bench", copy, "--quick", "--repeat", 1).ok()  # type: ignore[attr-defined]


@pytest.mark.uffd
def test_a_part_of_an_image(text_image: Path, tmp_path: Path) -> None:
    """As much as was asked for, from the front to the end of it"""
    from lazyrestore._bench.sample import take
    from lazyrestore._open import Image

    sample = take(str(text_image), str(tmp_path), MIB)
    assert sample.nbytes == MIB
    whole, part = Image(text_image), Image(sample.path)
    all_of_it = whole.read("memory")
    found = part.read("memory")
    places = [
        all_of_it.index(found[at : at + 65536]) for at in range(0, len(found), sample.cluster_size)
    ]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


@pytest.mark.uffd
def test_without_an_image(tmp_path: Path) -> None:
    """A live program is dumped; nothing is left of it"""
    found = run(
        *("bench", "--quick", "--repeat", 1),
        env=environment({"TMPDIR": str(tmp_path)}),
    ).ok()
    assert "a program that was dumped for this" in found.out
    for word in ("first access", "fault, p50", "all of it touched", "zstd -d", "eager"):
        assert word in found.out
    assert list(tmp_path.iterdir()) == []


def test_an_image_without_data(tmp_path: Path) -> None:
    """There is nothing to measure in it"""
    path = tmp_path / "zeros.lzr"
    with ImageWriter(path) as image:
        image.add_region("memory")
        image.zero(MIB)
    run("bench", path).fails(1, "too few")


def test_no_image(tmp_path: Path) -> None:
    """As with every command"""
    run("bench", tmp_path / "none.lzr").fails(1, "none.lzr")


def test_plot_without_matplotlib(text_image: Path, tmp_path: Path) -> None:
    """It says what to install, before it measures"""
    picture = tmp_path / "picture.png"
    command = (sys.executable, "-c", WITHOUT_MATPLOTLIB)
    for what in ("hello", text_image):
        run("bench", what, "--plot", picture, command=command).fails(1, "lazyrestore[bench]")
    assert not picture.exists()


@pytest.mark.uffd
@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)
@pytest.mark.parametrize(("end", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plot(text_image: Path, tmp_path: Path, end: str, start: bytes) -> None:
    """A picture of the kind that the name says"""
    picture = tmp_path / f"picture.{end}"
    run("bench", "hello", "--pages", 100, "--plot", picture).ok()
    assert picture.read_bytes().startswith(start)
    picture.unlink()
    run("bench", text_image, "--quick", "--repeat", 1, "--plot", picture).ok()
    assert picture.read_bytes().startswith(start)
