"""The command `verim`: finds the verb, parses its options, runs it, and says what went wrong in one line.

A new verb is a file `verim/cli/<verb>.py` with a dataclass `<Verb>Command`, whose fields are its options and
whose `run` does the work, and a line in `VERBS`. Only the chosen verb's module is loaded: `verim --version`
does not wait for torch.
"""

import contextlib
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

import tyro

from verim import __version__
from verim.errors import VerimError

VERBS = {
    "study": "from a folder of text to a trained model: measure, plan, train, prove",
    "train": "a language model on your data, within the time that you have",
    "data": "text to a data set: duplicates out, tokenizer trained, shards to train from",
    "generate": "a model goes on with your text: a run's, a downloaded one's",
    "scale": "a scaling law fitted to your runs, the published ones, models over the years",
    "plan": "what to train within a budget, how to lay it over devices, what to expect",
    "anatomy": "where every second, byte and FLOP of a training step goes",
    "whatif": "what that step would take on other hardware: seconds, memory, energy, cost",
    "doctor": "what this machine has, and what is missing for what",
    "launch": "the command that starts a training on many ranks: torchrun, SLURM, Ray",
    "recipe": "the experiments that come with Verim: list them, run one",
    "claims": "what the literature says about efficiency, measured and judged here",
    "bench": "the kernels beside other software, and beside what the machine can do",
}

SECOND_WORDS = {"anatomy sweep": "the same along one axis: curves, and where they bend"}
"""What a second word makes of a verb that does without one: a module `<verb>_<word>` of its own."""

_REMEDIES = {
    errno.ENOSPC: "free some space there, or name another place",
    errno.EDQUOT: "free some space there, or name another place",
    errno.EACCES: "name a place that you may use, or change its permissions",
    errno.EPERM: "name a place that you may use, or change its permissions",
    errno.EROFS: "name a place that can be written",
}


class Command(Protocol):
    """What a verb's dataclass does."""

    def run(self) -> None: ...


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line `arguments` (by default the process's) and exits.

    Exit codes: 0, all well; 2, what was asked cannot be done (one line on standard error says why); 130,
    interrupted from the keyboard. Anything else is a mistake of ours and shows its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output has gone (`verim doctor | head -1`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (VerimError, OSError) as error:
        _fail(_sentence(error))
    except KeyboardInterrupt:
        print("verim: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _dispatch(given: list[str]) -> None:
    verb, options = (given[0], given[1:]) if given else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(_overview())
    elif verb == "--version":
        print(f"verim {__version__}")
    elif verb == "recipe" and options[:1] == ["run"] and len(options) > 1 and not options[1].startswith("-"):
        importlib.import_module("verim.recipes").run_recipe(options[1], options[2:])  # its options are its own
    elif " ".join(given[:2]) in SECOND_WORDS:
        _parse(" ".join(given[:2]), options[1:]).run()
    elif verb in VERBS:
        _parse(verb, options).run()
    else:
        _fail(f"unknown verb {verb!r}: expected one of {', '.join(VERBS)}")


def _parse(verb: str, options: list[str]) -> Command:
    """The verb's dataclass, filled from the options; tyro's framed messages become one line."""
    module = importlib.import_module(f"verim.cli.{verb.replace(' ', '_')}")
    command_class = getattr(module, f"{verb.title().replace(' ', '')}Command")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Command = tyro.cli(command_class, prog=f"verim {verb}", args=options)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        _fail(_unframed(said.getvalue()))
    sys.stderr.write(said.getvalue())
    return command


def _overview() -> str:
    width = max(map(len, [*VERBS, *SECOND_WORDS]))
    verbs = "\n".join(f"  {verb:{width}}  {summary}" for verb, summary in VERBS.items())
    verbs += "".join(f"\n  {words:{width}}  {summary}" for words, summary in SECOND_WORDS.items())
    return f"usage: verim VERB [options]    (verim VERB --help tells the options)\n\n{verbs}\n\nverim --version"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):  # `SpaceError` too: its text is the message, its number is for programs
        place = f": {error.filename}" if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0) if not isinstance(error, VerimError) else None
        return f"{error.strerror or error}{place}" + (f" ({remedy})" if remedy else "")
    return str(error)


def _unframed(text: str) -> str:
    """A framed message of tyro's as one line: no title, sections between rules joined by semicolons."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    lines = [line.strip("│ ") for line in plain.splitlines()]
    within = "\n".join(lines[1:] or lines)
    sections = [" ".join(section.split()) for section in re.split(r"^\W?[─-]{3,}\W?$", within, flags=re.M)]
    return "; ".join(section for section in sections if section and not section.startswith("Argument helptext"))


def _fail(message: str) -> NoReturn:
    one_line = " ".join(message.split())
    print(f"verim: error: {one_line}", file=sys.stderr)
    sys.exit(2)
