"""`dump --npz, --npy, --safetensors` and `restore --output FILE.npz`: files of arrays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from cli_support import Old, environment, run, temporary_files

import lazyrestore


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    path = tmp_path / "x.npz"
    numpy.savez(path, x=numpy.arange(300_000.0), y=numpy.arange(12, dtype=">i2").reshape(3, 4))
    return path


@pytest.fixture
def image(arrays: Path) -> Path:
    path = arrays.with_name("x.lzr")
    run("dump", "--npz", arrays, path).ok()
    return path


def test_npz(arrays: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "x.lzr", tmp_path / "out.npz"
    report = json.loads(run("dump", "--npz", arrays, image, "--json").ok().out)
    assert [region["name"] for region in report["regions"]] == ["x", "y"]
    assert report["logical_bytes"] == 2_400_024
    text = run("restore", image, "--output", out).ok().out
    assert text.startswith(f"{out}: 2.3 MiB of 2 arrays, ")
    assert out.read_bytes() == arrays.read_bytes()
    assert temporary_files(tmp_path) == []


def test_npy(image: Path) -> None:
    out, again = image.with_name("y.npy"), image.with_name("again.lzr")
    assert "of array 'y'" in run("restore", image, "-o", out, "--region", "y").ok().out
    numpy.save(image.with_name("expected.npy"), numpy.arange(12, dtype=">i2").reshape(3, 4))
    assert out.read_bytes() == image.with_name("expected.npy").read_bytes()
    run("dump", "--npy", out, again, "--quiet").ok()
    assert numpy.array_equal(lazyrestore.load(again)["memory"], numpy.load(out))
    run("restore", image, "-o", out).fails(2, "--region", "x, y")


def test_safetensors(image: Path) -> None:
    out, again = image.with_name("x.safetensors"), image.with_name("again.lzr")
    report = json.loads(run("restore", image, "--output", out, "--json").ok().out)
    assert report["format"] == "safetensors"
    assert report["regions"] == ["x", "y"]
    assert report["logical_bytes"] == 2_400_024
    run("dump", "--safetensors", out, again).ok()
    with lazyrestore.load(again) as loaded:
        assert numpy.array_equal(loaded["y"], numpy.arange(12).reshape(3, 4))
        assert loaded["y"].dtype == "<i2"


def test_the_format_can_be_said(image: Path) -> None:
    """And is as the name ends where it is not"""
    plain, upper = image.with_name("plain"), image.with_name("UPPER.NPZ")
    run("restore", image, "-o", plain, "--format", "npz").ok()
    run("restore", image, "-o", upper).ok()
    assert plain.read_bytes() == upper.read_bytes() == image.with_name("x.npz").read_bytes()
    raw = image.with_name("raw.npz")
    run("restore", image, "-o", raw, "--format", "raw", "--region", "y").ok()
    assert raw.read_bytes() == numpy.arange(12, dtype=">i2").tobytes()
    run("restore", image, "-o", image.with_name("x.bin")).fails(2, "--region")


def test_arguments_that_do_not_go_together(image: Path, arrays: Path) -> None:
    run("dump", "--npz", arrays, "--npy", arrays, image).fails(2, "one of", "--safetensors FILE")
    run("dump", "--npz", "-", image).fails(2, "standard input")
    run("restore", image, "--format", "npz").fails(2, "--output")
    run("restore", image, "--lazy", "--format", "npz").fails(2, "--output")
    run("restore", image, "-o", "-", "--format", "npz").fails(2, "standard output")
    run("restore", image, "-o", image, "--format", "npz").fails(2, "image itself")
    run("restore", image, "-o", image.with_name("z.npz"), "--region", "z").fails(2, "'x', 'y'")


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    old = Old(tmp_path / "old")
    bad = tmp_path / "bad"
    bad.write_bytes(b"something else")
    old.beside = sorted(tmp_path.iterdir())
    for option, word in (
        ("--npz", "not a .npz"),
        ("--npy", "not in numpy's .npy format"),
        ("--safetensors", "not in the safetensors format"),
    ):
        run("dump", option, bad, old).fails(1, word, str(bad), "take another copy")
        run("dump", option, tmp_path / "none", old).fails(1, "none", "No such file")
        old.check()
    numpy.savez(bad.with_suffix(".npz"), a=numpy.array([None]))
    old.beside = sorted(tmp_path.iterdir())
    run("dump", "--npz", bad.with_suffix(".npz"), old).fails(1, "a.npy", "objects", "dump_pickle")
    old.check()


def test_what_a_format_does_not_have(tmp_path: Path) -> None:
    image, old = tmp_path / "x.lzr", Old(tmp_path / "old.safetensors")
    lazyrestore.dump({"when": numpy.array(["2026"], "M8[D]")}, image)
    old.beside = sorted(tmp_path.iterdir())
    run("restore", image, "-o", old).fails(2, "'when'", "<M8[D]", ".npz")
    old.check()


def test_images_with_metadata_are_no_processes(tmp_path: Path) -> None:
    """What safetensors files keep beside tensors is a file of the image, as processes have them"""
    path, image = tmp_path / "x.safetensors", tmp_path / "x.lzr"
    header = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    run("dump", "--safetensors", path, image).ok()
    nowhere = environment({"CRIU": "/nonexistent", "PATH": "/nonexistent"})
    run("restore", image, env=nowhere).fails(2, "--output FILE", "--lazy to map it")
    run("restore", image, "--lazy", "--or-eager", env=nowhere).ok()
    run("restore", image, "--lazy", env=nowhere).ok()
    run("restore", image, "-o", tmp_path / "y.safetensors", env=nowhere).ok()
    assert b'{"format":"pt"}' in (tmp_path / "y.safetensors").read_bytes()


def test_a_full_disk(image: Path, full_disk: Path) -> None:
    for ending in ("npz", "safetensors"):
        run("restore", image, "-o", full_disk / f"x.{ending}").fails(1, "No space left", ending)
    assert list(full_disk.iterdir()) == []


def test_no_numpy_is_needed(image: Path, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    for ending in ("npz", "safetensors"):
        run(
            "restore", image, "-o", tmp_path / f"n.{ending}", env=environment({"PYTHONPATH": path})
        ).ok()
        option = f"--{ending}"
        run(
            "dump", option, tmp_path / f"n.{ending}", image, env=environment({"PYTHONPATH": path})
        ).ok()
    check = [sys.executable, "-c", "import numpy"]
    failed = subprocess.run(check, env=environment({"PYTHONPATH": path}), capture_output=True)
    assert b"not here" in failed.stderr
