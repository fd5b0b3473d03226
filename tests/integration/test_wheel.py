"""The installed wheel: what it brings, what it says of what it lacks, and what a checker sees."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging_support import ROOT, files_of, install, needs_source_tree, run

import lazyrestore
from lazyrestore.cli import COMMANDS

pytestmark = [pytest.mark.slow, needs_source_tree]

NEEDED = {"cffi", "msgpack", "typer", "zstandard"}
# typer brings it; what draws with it asks first.
BROUGHT = {"rich"}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("-", "_")


@pytest.fixture(scope="module")
def told(wheel):
    """The wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return importlib.metadata.PathDistribution(zipfile.Path(archive, name).parent).metadata


@pytest.fixture(scope="module")
def extras(told) -> dict[str, set[str]]:
    """The packages of each extra; those of extras that it names stand for it."""
    found: dict[str, set[str]] = {extra: set() for extra in told.get_all("Provides-Extra")}
    for line in told.get_all("Requires-Dist"):
        if match := re.search(r"extra == '([^']*)'", line.replace('"', "'")):
            found[match[1]].add(name_of(line))
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory, venv, wheel):
    """The Python of an environment in which nothing but the wheel was asked for."""
    return install(venv, wheel, tmp_path_factory.mktemp("bare") / "v")


@pytest.fixture(scope="module")
def checked(tmp_path_factory, venv, wheel):
    """The Python of an environment that has numpy too, and no more: for the types of arrays."""
    return install(venv, wheel, tmp_path_factory.mktemp("checked") / "v", "numpy")


# ---- What comes with it --------------------------------------------------------------------------


def test_four_packages_are_needed(told) -> None:
    lines = told.get_all("Requires-Dist")
    assert {name_of(line) for line in lines if "extra ==" not in line} == NEEDED


def test_nothing_else_is_installed(bare) -> None:
    """And what does come is what these need"""
    listing = "from importlib.metadata import distributions as d; print(*{x.name for x in d()})"
    found = {name_of(name) for name in run(bare, "-c", listing, cwd="/").stdout.split()}
    assert {"lazyrestore", *NEEDED} <= found
    assert not found & {"numpy", "blake3", "matplotlib", "prometheus_client", "ml_dtypes"}


@pytest.mark.uffd
def test_it_is_used_with_nothing_else_there(bare, tmp_path) -> None:
    """The API, and each command: as `make try-wheel` does it in a Debian of its own"""
    said = run(bare, ROOT / "packaging/wheel/use_installed.py", cwd=tmp_path).stdout
    assert "restored lazily" in said
    assert f"{len(COMMANDS)} commands" in said


def test_manual_pages_and_completions_come_too(bare, wheel) -> None:
    share = bare.parents[1] / "share"
    pages = {path.name for path in (ROOT / "docs/man").glob("*.1")}
    assert "lazyrestore.1" in pages
    assert {path.name for path in (share / "man/man1").glob("*.1")} >= pages
    for name in (
        "bash-completion/completions/lazyrestore",
        "zsh/site-functions/_lazyrestore",
        "fish/vendor_completions.d/lazyrestore.fish",
    ):
        assert "lazyrestore" in (share / name).read_text()
    assert not [name for name in files_of(wheel) if name.endswith(".3")]


def test_the_processor_is_asked_by_ourselves() -> None:
    """By csrc/cpu.c: the compiler of the wheels answers no to its own question, always"""
    for path in (ROOT / "csrc").glob("*.c"):
        assert "__builtin_cpu_supports" not in path.read_text(), path.name


# ---- What does not -------------------------------------------------------------------------------

BFLOAT16 = """
with lazyrestore.ImageWriter("x.lzr") as writer:
    about = {"dtype": "bfloat16", "shape": [2], "order": "C"}
    writer.add_region("memory", metadata={"array": about})
    writer.write(b"1234")
"""
OBJECT = """
import numpy
lazyrestore.dump_pickle([numpy.zeros(9999)], "x.lzr")
"""
RESTORED = "lazyrestore.restore('x.lzr', lazy=False)"
# What makes an image where numpy is installed; what then needs an extra, and which.
LACKS = {
    "array": ("lazyrestore.dump(b'x', 'x.lzr')", f"{RESTORED}['memory'].array()", "numpy"),
    "load": ("lazyrestore.dump(b'x', 'x.lzr')", "lazyrestore.load('x.lzr')['memory']", "numpy"),
    "pickle": (OBJECT, "lazyrestore.load_pickle('x.lzr', trusted=True)", "numpy"),
    "bfloat16": (BFLOAT16, f"{RESTORED}['memory'].array()", "ml"),
}


@pytest.mark.parametrize("what", LACKS)
def test_who_needs_an_extra_says_so(bare, checked, tmp_path, what) -> None:
    make, code, extra = LACKS[what]
    run(checked, "-c", f"import lazyrestore\n{make}", cwd=tmp_path)
    python = bare if extra == "numpy" else checked
    result = run(python, "-c", f"import lazyrestore; {code}", cwd=tmp_path, ok=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert last.endswith(f"pip install 'lazyrestore[{extra}]'")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("bench", "hello", "--plot", "x.png"), "bench"),
        (("serve", "x.lzr", "--socket", "s", "--metrics", "9100"), "metrics"),
    ],
)
def test_commands_say_it_in_a_line(bare, tmp_path, arguments, extra) -> None:
    run(bare, "-c", "import lazyrestore; lazyrestore.dump(b'x', 'x.lzr')", cwd=tmp_path)
    result = run(bare, "-m", "lazyrestore", *arguments, cwd=tmp_path, ok=False)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"lazyrestore: {arguments[-2]} needs ")
    assert line.endswith(f"pip install 'lazyrestore[{extra}]'")


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Packages that are imported, but not for a type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno
        yield from imports_of(node)


def test_each_import_of_something_else_is_asked_for(extras) -> None:
    """By `require`, with the extra that brings it; or else the user sees a bare ImportError"""
    asked: dict[str, set[str | None]] = {}
    imported: dict[str, str] = {}
    for path in sorted((ROOT / "lazyrestore").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for name, line in imports_of(tree):
            if name not in {*sys.stdlib_module_names, "lazyrestore", *NEEDED, "_cffi_backend"}:
                imported.setdefault(name, f"{path.relative_to(ROOT)}:{line}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                module, extra = node.args[:2]
                assert isinstance(module, ast.Constant), f"{path.name}:{node.lineno}"
                assert isinstance(extra, ast.Constant), f"{path.name}:{node.lineno}"
                asked.setdefault(module.value.partition(".")[0], set()).add(extra.value)
    assert asked.keys() >= BROUGHT
    missing = {name: place for name, place in imported.items() if name not in asked}
    assert not missing
    for module, names in asked.items():
        for extra in names - {None}:
            assert module in extras[extra], f"lazyrestore[{extra}] does not bring {module}"


def test_all_brings_what_the_others_do(extras) -> None:
    others = extras.keys() - {"all", "dev", "docs"}
    assert extras["all"] == set().union(*(extras[name] for name in others))


# ---- Types ---------------------------------------------------------------------------------------


def check_types(python: Path, program: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What mypy says of a program, with the packages of that Python."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    # Not in the source tree: its pyproject.toml and its package would be taken.
    return run(
        sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--python-executable", python,
        program, cwd=cwd, ok=False,
    )  # fmt: skip


WRONG = """\
import lazyrestore

report = lazyrestore.dump(b"x", "x.lzr", level="high")  # arg-type
report.size  # attr-defined
with lazyrestore.restore("x.lzr", lazily=True) as session:  # call-arg
    text: str = session["memory"][0:4]  # assignment
    session.wait("long")  # arg-type
lazyrestore.ImageError.exit_code.upper()  # attr-defined
lazyrestore.opne("x.lzr")  # attr-defined
"""


def test_a_checker_is_content_with_a_program_that_uses_it_all(checked, tmp_path) -> None:
    """The installed package's own types: it has py.typed"""
    program = tmp_path / "typed_program.py"
    program.write_text((ROOT / "examples/typed_program.py").read_text())
    result = check_types(checked, program, tmp_path)
    assert result.returncode == 0, result.stdout
    assert "Success: no issues found in 1 source file" in result.stdout
    # All of it: what is not used there is not known to be typed.
    used = set(re.findall(r"lazyrestore\.(\w+)", program.read_text()))
    assert not set(lazyrestore.__all__) - used - {"__version__"}


def test_a_checker_sees_what_is_wrong(checked, tmp_path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text(WRONG)
    said = check_types(checked, program, tmp_path).stdout
    found = re.findall(r"^wrong\.py:(\d+): error: .*\[(.*)\]$", said, re.MULTILINE)
    lines = enumerate(WRONG.splitlines(), 1)
    wanted = [(str(n), line.partition("# ")[2]) for n, line in lines if "# " in line]
    assert sorted(set(found)) == sorted(wanted), said


def test_the_typed_program_runs(checked, tmp_path) -> None:
    said = run(checked, ROOT / "examples/typed_program.py", cwd=tmp_path).stdout
    assert "3 regions" in said
    assert "ImageError: " in said
