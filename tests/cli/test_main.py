"""What all commands have in common: start-up, help, errors, pipes, signals."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import COMMAND, Image, environment, finish, run, start, temporary_files

import lazyrestore
from lazyrestore.cli import COMMANDS, _errors, main, make_app
from lazyrestore.cli._show import duration, size

HEAVY = ("numpy", "rich", "zstandard", "concurrent", "asyncio")


_LIST_MODULES = """
import sys
from lazyrestore.cli import main
code = main(sys.argv[1:])
print("\\n".join(sys.modules), file=sys.stderr)
sys.exit(code)
"""


def modules_of(*arguments: object) -> set[str]:
    """Everything that a command imports"""
    result = run(*arguments, command=(sys.executable, "-c", _LIST_MODULES))
    assert result.code == 0, result
    return set(result.err.split())


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str) -> None:
    """The package's own, and nothing else"""
    assert run(option).ok().out == f"lazyrestore {lazyrestore.__version__}\n"
    with open("/dev/full", "wb") as full:
        run(option, stdout=full).fails(1, "No space left on device")


def test_help_as_a_command() -> None:
    """As git and others have it"""
    assert run("help").ok().out == run("--help").ok().out
    assert run("help", "info").ok().out == run("info", "--help").ok().out
    run("help", "nonsense").fails(2, "nonsense")


@pytest.mark.uffd
def test_lazy_restore_imports_little(small: Image) -> None:
    """Start-up is part of the time to first access"""
    loaded = modules_of("restore", "--lazy", "--json", small.path)
    assert "lazyrestore.cli.restore" in loaded  # or this would prove nothing
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    assert "lazyrestore.reports" not in loaded  # all of them: several milliseconds
    others = {f"lazyrestore.cli.{name}" for name in COMMANDS} - {"lazyrestore.cli.restore"}
    assert loaded & others == set()


def test_version_imports_no_command() -> None:
    """Nor the C core, nor what reads arguments"""
    loaded = modules_of("--version")
    assert "typer" not in loaded
    assert not any(f"lazyrestore.cli.{name}" in loaded for name in COMMANDS)
    assert "lazyrestore._native" not in loaded


def test_every_command_has_help() -> None:
    """-h and --help, 80 columns, every option explained"""
    shown = run("--help").ok().out
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        text = run(name, "--help").ok().out
        assert text == run(name, "-h").ok().out
        assert max(map(len, text.splitlines())) <= 80


def test_help_is_in_groups_with_examples() -> None:
    """What is only for some uses stands apart, and no word of it is broken at a hyphen"""
    shown = run("restore", "--help").ok().out
    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert headings == ["Arguments", "Options", "With --lazy", "Of processes", "Examples"]
    assert "With --lazy: " not in shown.partition("\nOptions:")[2].replace(
        "With --lazy: a program", ""
    )
    assert "  --trace                         Print each fault" in shown
    assert run("--help").ok().out.count(":\n  ") >= 4
    for name in COMMANDS:
        text = run(name, "--help").ok().out
        assert "\nExamples:\n" in text
        assert not re.search(r"[a-z]-$", text, re.MULTILINE), name
        assert "{" not in text.partition("\n")[0]


def test_every_option_is_explained() -> None:
    import typer

    group = typer.main.get_command(make_app())
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), (name, parameter.name)


def test_every_command_takes_json() -> None:
    import typer

    group = typer.main.get_command(make_app())
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert any("--json" in parameter.opts for parameter in command.params), name


def test_sizes_in_json_are_bytes(small: Image, tmp_path: Path) -> None:
    """Whole numbers, of bytes; units are for people"""
    image, out = tmp_path / "x.lzr", tmp_path / "out"
    better = tmp_path / "y.lzr"
    lazyrestore.dump({"memory": os.urandom(1 << 20)}, image)
    lazyrestore.dump({"memory": os.urandom(1 << 19)}, better)
    for arguments in (
        ["dump", "--file", image, out],
        ["restore", image, "-o", tmp_path / "raw"],
        ["restore", "--lazy", "--or-eager", image],
        ["info", image],
        ["ls", image],
        ["verify", image],
        ["diff", image, better],
        ["cat", image, "--length", "64K"],
    ):
        result = run(*arguments, "--json")
        assert result.code in (0, 1), result
        found = list(leaves(json.loads(result.out)))
        sizes = [value for name, value in found if "bytes" in name or name == "length"]
        assert sizes, result
        assert all(value is None or type(value) is int for value in sizes), result
        texts = [value for _, value in found if isinstance(value, str)]
        assert not any(re.search(r"\d (B|[KMGT]iB)\b", text) for text in texts), result


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every value that is no map or list, with the key that leads to it"""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, name)
    else:
        yield name, value


def test_without_arguments() -> None:
    """The help, but a usage error: a script that forgot its arguments shall notice"""
    result = run()
    assert result.code == 2
    assert result.out == run("--help").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense", "lazyrestore --help"]),
        (["--nonsense"], ["--nonsense", "lazyrestore --help"]),
        (["info"], ["IMAGE", "lazyrestore info --help"]),
        (["info", "a", "b"], ["b", "lazyrestore info --help"]),
        (["verify", "a", "--threads", "0"], ["--threads", "from 1"]),
        (["verify", "a", "--threads", "many"], ["--threads", "many"]),
    ],
)
def test_usage_errors(arguments: list[str], words: list[str]) -> None:
    run(*arguments).fails(2, *words)


def test_an_error_as_json(tmp_path: Path) -> None:
    """One object on standard output, and the line on standard error as well"""
    missing = tmp_path / "missing.lzr"
    for arguments, code, kind in (
        (["info", missing, "--json"], 1, "FileNotFoundError"),
        (["info", Path(__file__), "--json"], 3, "ImageError"),
        (["restore", missing, "--json"], 2, "UsageError"),
        (["restore", missing, "--json", "--nonsense"], 2, "NoSuchOption"),
    ):
        result = run(*arguments).fails(code)
        error = json.loads(result.out)["error"]
        assert error["exit_code"] == code
        assert error["type"] == kind
        assert result.err == f"lazyrestore: {error['message']}\n"


def test_traceback_on_request(tmp_path: Path) -> None:
    """For who looks for a bug"""
    wanted = {"env": environment({"LAZYRESTORE_TRACEBACK": "1"})}
    result = run("info", tmp_path / "missing.lzr", **wanted)
    assert result.code == 1
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("lazyrestore: ")


def test_a_name_that_would_break_the_line(tmp_path: Path) -> None:
    """A newline or an escape sequence in a file's name stays within the line"""
    result = run("info", tmp_path / "a\nb\x1b[31m.lzr").fails(1, "a\\nb\\x1b[31m.lzr")
    assert "\x1b" not in result.err


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    """Nor does one fail to be printed"""
    result = run("info", os.fsdecode(os.fsencode(tmp_path) + b"/\xff.lzr"))
    result.fails(1, "No such file")


def test_text_where_only_ascii_can_be_printed(small: Image) -> None:
    """µ becomes an escape, not an error"""
    ascii_only = {"env": environment({"PYTHONIOENCODING": "ascii"})}
    assert "sound" in run("verify", small.path, **ascii_only).ok().out


@pytest.mark.parametrize("command", ["info", "ls", "verify"])
def test_a_reader_that_went_away(small: Image, command: str) -> None:
    """As any command that writes into a pipe: quiet, and the exit code of SIGPIPE"""
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = run(command, small.path, stdout=write_end)
    os.close(write_end)
    assert (result.code, result.err) == (141, "")


def test_a_full_standard_output(small: Image) -> None:
    buffered = {**environment(), "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "wb") as full:
        for command in (["info", small.path], ["--version"], ["--help"]):
            result = run(*command, stdout=full, env=buffered)
            result.fails(1, "standard output", "No space left on device")


_INTERRUPTED_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from lazyrestore.__main__ import main
sys.exit(main())
"""


def test_interrupted_before_it_began(small: Image) -> None:
    """Ctrl-C while modules are still imported: one line as ever, and no traceback"""
    command = (sys.executable, "-c", _INTERRUPTED_IMPORT)
    result = finish(start("info", small.path, command=command))
    assert (result.code, result.err) == (130, "lazyrestore: interrupted\n")


_NO_MORE_THREADS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
from lazyrestore.cli import main
sys.exit(main())
"""


def test_a_limit_of_threads(small: Image, nobody: object) -> None:
    """ulimit -u: named, and not taken for a mistake of the program"""
    copy = nobody.bring(small.path)
    for arguments in (("verify", copy), ("dump", "--file", copy, "x.lzr")):
        result = nobody.run(*arguments, script=_NO_MORE_THREADS)
        result.fails(1, "cannot start a thread", "ulimit -u")
    assert not (nobody.folder / "x.lzr").exists()
    assert temporary_files(nobody.folder) == []


CLOSED = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "-", *COMMAND)
NO_STDOUT = ("sh", "-c", 'exec "$@" >&-', "-", *COMMAND)


@pytest.mark.parametrize("command", ["info", "ls", "verify", "doctor", "--help", "--version"])
def test_a_closed_standard_output(small: Image, command: str) -> None:
    """As /dev/null for text, for which nobody asked"""
    arguments = [small.path] if command in ("info", "ls", "verify") else []
    assert run(command, *arguments, command=NO_STDOUT).ok().out == ""


def test_memory_into_a_closed_standard_output(small: Image) -> None:
    """... but what was asked for is not thrown away, nor written over what has its number"""
    before = small.path.read_bytes()
    for command in (("cat",), ("restore", "-o", "-")):
        result = run(*command, small.path, "--region", "more", command=NO_STDOUT)
        result.fails(1, "standard output", "closed")
    assert small.path.read_bytes() == before


def test_all_standard_streams_closed(small: Image, tmp_path: Path) -> None:
    """As a service may be started: nothing is mixed up with the files that are written"""
    data, image, out = tmp_path / "data", tmp_path / "x.lzr", tmp_path / "out"
    data.write_bytes(bytes(range(256)) * 1000)
    assert run("dump", "--file", data, image, command=CLOSED).code == 0
    assert run("restore", image, "-o", out, command=CLOSED).code == 0
    assert out.read_bytes() == data.read_bytes()
    assert run("info", tmp_path / "nix.lzr", command=CLOSED).code == 1


def test_as_a_module_and_as_a_command(small: Image) -> None:
    """python -m lazyrestore, and what the wheel's entry point calls"""
    script = "import sys; from lazyrestore.cli import main; sys.exit(main())"
    by_name = run("info", small.path, command=(sys.executable, "-c", script))
    assert by_name.ok().out == run("info", small.path).ok().out


def test_in_this_process(small: Image, capsys: pytest.CaptureFixture[str]) -> None:
    """`main` returns, whatever happens"""
    assert main(["info", str(small.path)]) == 0
    assert main(["info", str(small.path) + "x"]) == 1
    captured = capsys.readouterr()
    assert "lazyrestore image" in captured.out
    assert captured.err.count("\n") == 1


def test_an_unexpected_exception(capsys: pytest.CaptureFixture[str]) -> None:
    """Says so in one line, with a way to learn more"""
    assert _errors.report(KeyError("x"), []) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "KeyError" in line
    assert "LAZYRESTORE_TRACEBACK=1" in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lazyrestore.ImageError("x"), 3),
        (lazyrestore.ClusterError("x"), 3),
        (lazyrestore.KernelError("x"), 4),
        (lazyrestore.RemoteError("x"), 5),
        (lazyrestore.ProcessError("x"), 1),
        (lazyrestore.RegionNotFound("x"), 2),
        (OSError(28, "No space left on device"), 1),
        (TimeoutError("x"), 1),
        (MemoryError(), 1),
        (KeyboardInterrupt(), 130),
        (_errors.Terminated(15), 143),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert _errors.report(error, []) == code
    line = capsys.readouterr().err
    assert line.startswith("lazyrestore: ")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (65536, "64.0 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 62, "4.0 EiB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "0.00 µs"),
        (3.24, "3.24 µs"),
        (99.96, "100 µs"),
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (12_345, "12.3 ms"),
        (1_500_000, "1.50 s"),
        (125_000_000, "2 min 5 s"),
    ],
)
def test_durations(microseconds: float, text: str) -> None:
    assert duration(microseconds) == text


def test_no_library(tmp_path: Path) -> None:
    """A C core that is not there: what to build"""
    missing = {"env": environment({"LAZYRESTORE_LIBRARY": str(tmp_path / "none.so")})}
    run("info", __file__, **missing).fails(1, "LAZYRESTORE_LIBRARY")


def test_no_libzstd(small: Image, tmp_path: Path) -> None:
    """The one library that is needed at run time: the package's name"""
    missing = {"env": environment({"LAZYRESTORE_LIBZSTD": str(tmp_path / "none.so")})}
    run("info", small.path, **missing).fails(4, "libzstd1")
