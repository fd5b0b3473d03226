"""Packages that are not installed are asked for by name."""

from __future__ import annotations

import sys

import pytest

from lazyrestore._extras import require


def test_what_is_there_is_imported() -> None:
    assert require("json.decoder", "numpy", "This").JSONDecoder


@pytest.mark.parametrize(
    ("extra", "install"),
    [("numpy", "pip install 'lazyrestore[numpy]'"), (None, "pip install 'no_such_package'")],
)
def test_what_is_missing_is_named_with_the_remedy(extra: str | None, install: str) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        require("no_such_package.part", extra, "Region.array()")
    assert str(caught.value) == (
        f"Region.array() needs no_such_package, which is not installed: {install}"
    )
    assert caught.value.name == "no_such_package"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("import also_missing", "No module named 'also_missing'"),
        ("from json import no_such_thing", "cannot import name 'no_such_thing'"),
    ],
)
def test_what_is_broken_says_why(tmp_path, monkeypatch, content: str, why: str) -> None:
    """It is installed: to ask for it to be installed would not help."""
    (tmp_path / "broken_package.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(ImportError, match="cannot be imported") as caught:
            require("broken_package", "ml", "This")
    finally:
        sys.modules.pop("broken_package", None)
    assert not isinstance(caught.value, ModuleNotFoundError)
    assert why in str(caught.value)
    assert "pip install --force-reinstall 'lazyrestore[ml]'" in str(caught.value)


def test_a_part_that_an_old_release_lacks_says_so() -> None:
    with pytest.raises(ImportError, match=r"needs json\.no_such_part, which cannot be imported"):
        require("json.no_such_part", None, "This")
