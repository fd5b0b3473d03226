"""Objects of other packages in images: each test runs where its package is installed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from pickle_support import region_of, resident_at
from restore_support import PACKAGE_HOME, run_in_child

import lazyrestore

ROWS = 40_000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "object.lzr"


def again(obj: Any, path: Path) -> Any:
    """Loaded from the image, of which nothing but the pickle is in memory."""
    report = lazyrestore.dump_pickle(obj, path)
    lengths = {region.name: region.length for region in report.regions}
    assert sum(lengths.values()) > 8 * lengths["pickle"], lengths
    return lazyrestore.load_pickle(path, trusted=True, prefetch="none")


def resident_of(*arrays: Any) -> int:
    return sum(region_of(made).resident_bytes for made in arrays)


# ---- pandas --------------------------------------------------------------------------------------


def test_a_data_frame(image: Path) -> None:
    pandas = pytest.importorskip("pandas")
    numbers = numpy.arange(ROWS)
    frame = pandas.DataFrame(
        {
            "i": numbers,
            "j": numbers * 2,
            "f": numbers / 7,
            "b": numbers % 2 == 0,
            "t": pandas.date_range("2020", periods=ROWS, freq="h"),
            "z": pandas.date_range("2020", periods=ROWS, freq="h", tz="Europe/Paris"),
            "d": pandas.to_timedelta(numbers, unit="s"),
            "c": pandas.Categorical(numpy.array(["a", "b", "c"])[numbers % 3]),
            "n": pandas.array(numbers, dtype="Int64"),
            "s": [f"row {n}" for n in numbers],
            "p": pandas.period_range("2020", periods=ROWS, freq="D"),
        },
        index=pandas.Index(numbers * 3, name="key"),
    )
    frame.loc[6, "n"] = pandas.NA
    loaded = again(frame, image)
    values = loaded["i"].to_numpy(copy=False)
    assert resident_of(values) == 0  # making the frame has touched no column of it
    assert values[5] == 5
    pandas.testing.assert_frame_equal(loaded, frame)
    loaded.loc[3, "i"] = 77  # as any other frame
    assert loaded.loc[3, "i"] == 77
    again_loaded = lazyrestore.load_pickle(image, trusted=True)
    pandas.testing.assert_frame_equal(again_loaded, frame)


def test_a_series_with_several_indexes(image: Path) -> None:
    pandas = pytest.importorskip("pandas")
    index = pandas.MultiIndex.from_product([range(200), range(ROWS // 200)])
    series = pandas.Series(numpy.arange(ROWS, dtype="f4"), index=index)
    loaded = again(series, image)
    pandas.testing.assert_series_equal(loaded, series)
    assert loaded[7, 5] == series[7, 5]


# ---- scikit-learn --------------------------------------------------------------------------------


def test_estimators(image: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline

    random = numpy.random.default_rng(1)
    points = random.normal(size=(6000, 8))
    values = points @ numpy.arange(8)
    for model in (
        make_pipeline(PCA(4), KNeighborsRegressor(3)),
        RandomForestRegressor(10, random_state=1),
        make_pipeline(PCA(8), Ridge()),
    ):
        model.fit(points, values)
        lazyrestore.dump_pickle({"model": model, "points": points}, image)
        loaded = lazyrestore.load_pickle(image, trusted=True)
        given = loaded["points"][:50]
        assert numpy.array_equal(loaded["model"].predict(given), model.predict(points[:50]))


def test_sparse_matrices(image: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="comes with scikit-learn")
    made = sparse.random_array((2000, 2000), density=0.01, rng=1, format="csr")
    loaded = again(made, image)
    assert resident_of(loaded.data, loaded.indices) == 0
    assert (loaded != made).nnz == 0


# ---- Arrow ---------------------------------------------------------------------------------------


def test_an_arrow_table(image: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    numbers = numpy.arange(ROWS)
    table = pyarrow.table(
        {
            "i": numbers,
            "f": pyarrow.array(numbers / 7, mask=numbers % 5 == 0),
            "s": [f"row {n}" for n in range(ROWS)],
            "d": pyarrow.array(numpy.array(["x", "y"])[numbers % 2]).dictionary_encode(),
            "l": pyarrow.ListArray.from_arrays(numpy.arange(ROWS + 1), numbers),
            "t": numbers.astype("M8[us]"),
        },
        metadata={"about": "rows"},
    )
    loaded = again(table, image)
    with lazyrestore.open(image) as opened:
        assert len(opened.regions) > 6
    assert loaded.schema.equals(table.schema, check_metadata=True)
    assert loaded.equals(table)
    loaded.validate(full=True)
    assert loaded["i"].chunk(0).buffers()[1].size == ROWS * 8


def test_arrow_buffers_are_the_regions(image: Path) -> None:
    """Not copies of them: of the other column nothing is in memory"""
    pyarrow = pytest.importorskip("pyarrow")
    lazyrestore.dump_pickle({"a": pyarrow.array(numpy.arange(ROWS))}, image)
    loaded = lazyrestore.load_pickle(image, trusted=True, prefetch="none")
    values = loaded["a"].to_numpy(zero_copy_only=True)
    assert resident_at(values.ctypes.data) == 0
    assert values[77] == 77


# ---- ml_dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"])
def test_extension_types(name: str, image: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = numpy.dtype(getattr(ml_dtypes, name))
    made = (numpy.arange(ROWS) % 7).astype(kind)
    loaded = again(made, image)
    assert loaded.dtype == kind
    assert resident_of(loaded) == 0
    assert loaded.tobytes() == made.tobytes()


# ---- torch ---------------------------------------------------------------------------------------


def test_tensors(image: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    kinds = "float64 float32 float16 bfloat16 int64 int32 uint8 bool complex64".split()
    kinds += ["float8_e4m3fn", "float8_e5m2", "uint16"]
    made = {kind: (torch.randn(ROWS) * 4).abs().to(getattr(torch, kind)) for kind in kinds}
    made |= {"empty": torch.empty(0, 3), "small": torch.arange(3), "scalar": torch.tensor(5.0)}
    made["grown"] = torch.randn(ROWS, requires_grad=True)
    made["conjugate"] = made["complex64"].conj()
    loaded = again(made, image)
    assert list(loaded) == list(made)
    for name, tensor in made.items():
        same_tensor(loaded[name], tensor)
    loaded["float32"][5] = 9  # private
    same_tensor(lazyrestore.load_pickle(image, trusted=True)["float32"], made["float32"])


def same_tensor(a: Any, b: Any) -> None:
    assert (type(a), a.dtype, a.shape, a.stride()) == (type(b), b.dtype, b.shape, b.stride())
    assert a.requires_grad == b.requires_grad
    assert (
        a.detach().resolve_conj().flatten().tolist() == b.detach().resolve_conj().flatten().tolist()
    )


def test_tensors_that_share_memory(image: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(ROWS, dtype=torch.float32).reshape(200, 200)
    made = {"whole": whole, "turned": whole.t(), "part": whole[10:20, ::2], "numpy": whole.numpy()}
    made["half"] = whole.view(torch.bfloat16)
    loaded = again(made, image)
    assert lazyrestore.open(image).regions[1].length == ROWS * 4
    for name in ("whole", "turned", "part", "half"):
        same_tensor(loaded[name], made[name])
    loaded["whole"][10, 2] = 5555
    assert loaded["turned"][2, 10] == loaded["part"][0, 1] == 5555
    assert loaded["half"].data_ptr() == loaded["whole"].data_ptr()


def test_modules_and_their_states(image: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.Linear(200, 100))
    made = {"model": model, "state": model.state_dict(), "first": model[0].weight}
    loaded = again(made, image)
    given = torch.ones(200)
    assert torch.equal(loaded["model"](given), model(given))
    assert loaded["first"] is loaded["model"][0].weight
    assert isinstance(loaded["first"], torch.nn.Parameter)
    fresh = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.Linear(200, 100))
    fresh.load_state_dict(loaded["state"], assign=True)
    assert torch.equal(fresh(given), model(given))


def test_tensors_come_when_they_are_touched(image: Path) -> None:
    torch = pytest.importorskip("torch")
    (tensor,) = again([torch.randn(1 << 20)], image)
    assert resident_at(tensor.data_ptr()) == 0
    tensor[5].item()
    assert 0 < resident_at(tensor.data_ptr()) <= 64 << 10
    tensor.sum()
    assert resident_at(tensor.data_ptr()) == 4 << 20


# ---- The examples --------------------------------------------------------------------------------

_EXAMPLES: Mapping[str, tuple[str, str]] = {
    "pandas_frame.py": (
        "pandas",
        r"1,000,000 rows .*\n(.*\n)+.*mean reading: 20\.006\n.* 1,000,000$",
    ),
    "sklearn_model.py": ("sklearn", r"at \(0.5, 1.0, 2.0\): 2.4\d, and 2.48 would be right"),
    "arrow_table.py": ("pyarrow", r"'article 500000', 'sizes': \[1000000, 1000001\]"),
    "torch_tensors.py": ("torch", r"after all 8: \[-?\d"),
}


@pytest.mark.parametrize("name", _EXAMPLES)
def test_examples(name: str, image: Path) -> None:
    """Each run twice: the first makes the image, the second has it"""
    package, shown = _EXAMPLES[name]
    pytest.importorskip(package)
    program = str(PACKAGE_HOME / "examples" / name)
    script = f"import runpy; runpy.run_path({program!r}, run_name='__main__')"
    first = run_in_child(script, image, timeout=120).stdout
    second = run_in_child(script, image, timeout=120).stdout
    assert first.startswith("dumped ")
    assert second.startswith("loaded ")
    for text in (first, second):
        assert re.search(shown, text, re.MULTILINE), text
    # What is computed is the same, whether the image was there or not.
    cut = [
        re.sub(r"loaded.* in .*ms", "", text).strip() for text in (first.partition("\n")[2], second)
    ]
    assert cut[0] == cut[1]


def test_they_are_all_tried_in_ci() -> None:
    """All but torch: a package that is missing there would let its tests be skipped unseen"""
    if not os.environ.get("CI"):
        pytest.skip("only where CI=true: elsewhere what is installed is tried")
    for package in ("pandas", "sklearn", "pyarrow", "ml_dtypes", "safetensors"):
        __import__(package)
        assert package in sys.modules
