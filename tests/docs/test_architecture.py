"""docs/architecture.md says of each module of the package what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
_NOT_OURS = {"__init__", "__main__", "_binding"}  # the last is generated
MODULES = sorted({path.stem for path in (HOME / "lazyrestore").glob("*.py")} - _NOT_OURS)


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_its_place(module: str) -> None:
    page = (HOME / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert any(
        line.startswith("|") and f"`{module}`" in line.split("|")[1] for line in page.splitlines()
    ), f"no table of docs/architecture.md names {module}"
