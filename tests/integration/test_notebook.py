"""The example notebook: made in one kernel, and there at once in the next."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from restore_support import PACKAGE_HOME

import lazyrestore

MIB = 64  # of the state; 2048 for who runs it by hand
LIMIT_S = int(60 * float(os.environ.get("CHECK_TIME_FACTOR", "1")))

pytestmark = pytest.mark.uffd


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run it in a fresh kernel; what it printed."""
    for module in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    import nbclient
    import nbformat

    shutil.copy(PACKAGE_HOME / "examples" / "notebook.ipynb", tmp_path)
    notebook = nbformat.read(tmp_path / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE_HOME))
    monkeypatch.setenv("NOTEBOOK_MIB", str(MIB))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def work():
        client = nbclient.NotebookClient(
            notebook,
            timeout=LIMIT_S,
            startup_timeout=LIMIT_S,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        )
        client.execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert {output.name for output in outputs} == {"stdout"}, outputs
        return "".join(output.text for output in outputs)

    return work


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fresh_kernel_has_the_state_at_once(run, tmp_path):
    made = run()
    assert f"made {MIB} MiB" in made
    image = tmp_path / "notebook-state.lzr"
    with lazyrestore.open(image) as opened:
        assert opened.info.logical_bytes == MIB << 20
        digest = opened.digest
    again = run()
    assert "it is there already" in again
    assert "made" not in again
    for printed in (made, again):
        rows = MIB << 10
        assert f"vector {rows // 2} of {rows:,} after" in printed
        assert f"vectors  float32        ({rows}, 128)" in printed
        assert "datetime64[s]" in printed
        assert re.search(r"the middle identity is number \d+ of \d+\n", printed)
        found = re.search(r"(\d+) faults, ([\d.]+) MiB of 64 MiB are here, 0 errors", printed)
        assert found, printed
        assert 3 <= int(found[1]) < 100
        assert float(found[2]) < MIB / 10
    # What was written in the notebook is not in the image.
    with lazyrestore.open(image) as opened:
        assert opened.digest == digest
        assert opened.verify().damage == ()
