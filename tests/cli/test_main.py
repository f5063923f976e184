"""The command line: verbs, help, and every failure as one line with exit code 2."""

import dataclasses
import errno
import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from verim import __version__
from verim.cli import main as cli
from verim.errors import BusyError, CorruptError, InputError, SpaceError


@dataclass(frozen=True)
class PretendCommand:
    """A verb for these tests."""

    minutes: float = 5.0
    """How long."""

    kind: Literal["a", "b"] = "a"
    """Which."""

    def run(self) -> None:
        print(f"ran {self.minutes} {self.kind}")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A verb `pretend` whose class can be exchanged."""
    module = SimpleNamespace(PretendCommand=PretendCommand)
    monkeypatch.setitem(cli.VERBS, "pretend", "a verb for these tests")
    monkeypatch.setitem(sys.modules, "verim.cli.pretend", module)
    return module


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_verb(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    output = capsys.readouterr().out
    for verb, summary in cli.VERBS.items():
        assert f"{verb} " in output
        assert summary in output


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"verim {__version__}\n"


def test_options_reach_the_verb(pretend: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretend", "--minutes", "2", "--kind", "b") == 0
    assert capsys.readouterr().out == "ran 2.0 b\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "unknown verb 'nonsense': expected one of study, train, data, generate, "),
        (["pretend", "--nonsense"], "Unrecognized options: --nonsense; For full helptext, run verim pretend"),
        (["pretend", "--minute", "3"], "Perhaps you meant: --minutes"),
        (
            ["pretend", "--minutes", "x"],
            "Error parsing --minutes: could not convert string to float: 'x'; For",
        ),
        (["pretend", "--minutes"], "Missing value for argument '--minutes'"),
        (["pretend", "--kind", "c"], "invalid choice 'c' for argument '--kind'. Expected one of ('a', 'b')"),
        (["pretend", "file"], "Unrecognized options: file"),
    ],
)
@pytest.mark.parametrize("frames", ["unicode", "ascii"])
def test_what_cannot_be_parsed_is_one_line(
    pretend: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
    frames: str,
) -> None:
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", frames == "unicode", raising=False)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("verim: error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert not set("─│╭╰\x1b") & set(captured.err)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("minutes = 0:\n  expected at least 1"), "minutes = 0: expected at least 1"),
        (BusyError("in use"), "in use"),
        (CorruptError("damaged"), "damaged"),
        (
            SpaceError(errno.ENOSPC, "no space left to write x: free some"),
            "no space left to write x: free some",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/there"),
            "Permission denied: /there (name a place that you may use, or change its permissions)",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device (free some space there, or name another place)",
        ),
        (OSError("strange"), "strange"),
    ],
)
def test_errors_of_the_user_are_one_line_and_exit_code_2(
    pretend: SimpleNamespace, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    class FailingCommand(PretendCommand):
        def run(self) -> None:
            raise error

    pretend.PretendCommand = FailingCommand
    assert run("pretend") == 2
    assert capsys.readouterr().err == f"verim: error: {line}\n"


def test_an_interrupt_is_one_line(pretend: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    class InterruptedCommand(PretendCommand):
        def run(self) -> None:
            raise KeyboardInterrupt

    pretend.PretendCommand = InterruptedCommand
    assert run("pretend") == 130
    assert capsys.readouterr().err == "verim: interrupted\n"


def test_mistakes_of_ours_keep_their_traceback(pretend: SimpleNamespace) -> None:
    class WrongCommand(PretendCommand):
        def run(self) -> None:
            raise AssertionError("ours")

    pretend.PretendCommand = WrongCommand
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["pretend"])


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_keeps_the_grammar(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = getattr(importlib.import_module(f"verim.cli.{verb}"), f"{verb.title()}Command")
    assert dataclasses.is_dataclass(command)
    assert callable(command.run)
    assert run(verb, "--help") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert output.startswith(f"usage: verim {verb}")
    for field in dataclasses.fields(command):
        if field.name == "action":  # verbs of the verb
            assert "{" in output or "[" in output
        elif "Positional" not in str(field.type):  # these show by their metavar alone
            renamed = re.search(r"[(\s]name='([^']+)'", str(field.type))  # tyro's own name for the option
            assert f"--{renamed[1] if renamed else field.name.replace('_', '-')}" in output


def test_every_command_of_a_module_is_a_verb() -> None:
    for path in Path(cli.__file__).parent.glob("*.py"):
        assert (f"class {path.stem.title()}Command" in path.read_text()) == (path.stem in cli.VERBS), path.stem


def in_a_process(command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)


def test_the_version_does_not_wait_for_torch() -> None:
    script = "import sys, verim.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'numba')))"
    assert in_a_process(f'"{sys.executable}" -c "{script}"').returncode == 0


def test_as_a_module_with_a_reader_that_goes_and_a_full_device() -> None:
    verim = f'"{sys.executable}" -m verim'
    assert in_a_process(f"{verim} --version").stdout == f"verim {__version__}\n"
    gone = in_a_process(f"set -o pipefail; {verim} --help | true")
    assert gone.stderr == ""
    if os.path.exists("/dev/full"):
        full = in_a_process(f"{verim} --help > /dev/full")
        assert full.returncode == 2
        assert full.stderr.startswith("verim: error: No space left on device")
