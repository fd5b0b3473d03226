"""The tree of exceptions: what is under what, exit codes, and that errors.py draws it truly."""

from __future__ import annotations

import importlib.util
import pickle
import re
import sys
from pathlib import Path

import pytest

import lazyrestore
from lazyrestore import errors
from lazyrestore._sudo import sudo

TREE = {
    "LazyRestoreError": (Exception, 1),
    "ImageError": (errors.LazyRestoreError, 3),
    "ClusterError": (errors.ImageError, 3),
    "RestoreError": (errors.ClusterError, 3),
    "KernelError": (errors.LazyRestoreError, 4),
    "RemoteError": (errors.LazyRestoreError, 5),
    "CriuError": (errors.RemoteError, 5),
    "WorkingSetError": (errors.LazyRestoreError, 3),
    "ProcessError": (errors.LazyRestoreError, 1),
    "RegionNotFound": (errors.LazyRestoreError, 2),
}


@pytest.mark.parametrize("name", TREE)
def test_each_class_has_its_base_its_exit_code_and_a_docstring(name):
    base, code = TREE[name]
    kind = getattr(lazyrestore, name)
    assert base in kind.__bases__
    assert kind.exit_code == code
    assert kind.__doc__


@pytest.mark.parametrize("name", TREE)
def test_each_class_has_causes_and_what_helps(name):
    """Its own, in sentences"""
    kind = getattr(errors, name)
    assert "causes" in vars(kind)
    assert kind.causes
    for cause, remedy in kind.causes:
        assert cause.endswith("."), cause
        assert remedy.endswith("."), remedy


def test_the_page_is_made_from_the_classes():
    docs = Path(__file__).parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("make_errors", docs / "make_errors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (docs / "errors.md").read_text(encoding="utf-8")
    assert page == module.make(), "docs/errors.md is not what errors.py says: docs/make_cli.py"
    for name in TREE:
        assert f"\n### {name}\n" in page


def test_there_are_no_others():
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert found == set(TREE)


def test_the_drawing_in_the_docstring_is_true():
    drawn = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"[\s│├└─]*(\w+)\s+(?:exit code )?(\d)\b", line)
        if match:
            drawn[match[1]] = int(match[2])
    assert drawn == {name: code for name, (_, code) in TREE.items()}


def test_region_not_found_is_a_key_error_without_quotes_around_its_message():
    error = lazyrestore.RegionNotFound("there is no region 'x'")
    assert isinstance(error, KeyError)
    assert str(error) == "there is no region 'x'"
    assert str(lazyrestore.RegionNotFound()) == ""


def test_a_cluster_error_says_where():
    error = lazyrestore.RestoreError("broken", region="heap", offset=65536, cluster=7)
    assert (error.region, error.offset, error.cluster) == ("heap", 65536, 7)
    assert (lazyrestore.ClusterError("broken").region) is None


def test_a_cluster_error_survives_pickle():
    # multiprocessing and concurrent.futures send exceptions this way.
    error = lazyrestore.RestoreError("broken", region="heap", offset=65536, cluster=7)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is lazyrestore.RestoreError
    assert (str(again), again.region, again.offset, again.cluster) == ("broken", "heap", 65536, 7)


def test_every_export_is_there_and_documented():
    for name in lazyrestore.__all__:
        value = getattr(lazyrestore, name)
        assert name == "__version__" or value.__doc__, name


def test_public_methods_are_documented():
    for kind in (
        lazyrestore.Session,
        lazyrestore.Region,
        lazyrestore.PlacedRegion,
        lazyrestore.Image,
        lazyrestore.ImageWriter,
    ):
        for name, value in vars(kind).items():
            if not name.startswith("_") and (callable(value) or isinstance(value, property)):
                assert value.__doc__, f"{kind.__name__}.{name}"


def test_an_unknown_export_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = lazyrestore.no_such_thing


def test_root_is_told_where_the_command_is(monkeypatch, tmp_path):
    """sudo's PATH is root's own: what lies in a virtual environment is not in it"""
    program = tmp_path / "my venv" / "bin" / "lazyrestore"
    monkeypatch.setattr("sys.argv", [str(program), "doctor"])
    monkeypatch.setattr("sys.prefix", str(tmp_path / "my venv"))
    assert sudo("doctor") == f"sudo '{program}' doctor"
    monkeypatch.setattr("sys.prefix", sys.base_prefix)
    assert sudo("doctor") == "sudo lazyrestore doctor"
    monkeypatch.setattr("sys.prefix", "/venv")
    monkeypatch.setattr("sys.argv", ["/venv/lazyrestore/__main__.py"])
    assert sudo("doctor") == "sudo lazyrestore doctor"
