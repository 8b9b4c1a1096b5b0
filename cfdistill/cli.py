"""The command `cfdistill`: what `commands.yaml` says, and one sentence for every error of the input."""

import argparse
import inspect
import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from cfdistill import __version__
from cfdistill.errors import CfdistillError, Terminated
from cfdistill.methods import LOADER
from cfdistill.params import Params


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns 0, or 1 after a one-sentence error, 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        if said := _call(**vars(_parser().parse_args(argv))):
            print(said)
    except CfdistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would end Python before its end
        # What papermill was at is left unfinished, of which asyncio would tell at the exit.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore", RuntimeWarning)
        print("stopped; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    return 0


def _call(calls: str, overrides: Sequence[tuple[str, str]] = (), **given: Any) -> Any:
    """Call a function, "module:name", and return what it has to say."""
    module, name = calls.split(":")
    function = getattr(import_module(f"cfdistill.{module}"), name)
    if "params" in inspect.signature(function).parameters:
        profile, values = given.pop("profile"), dict(overrides)
        given["params"] = Params.from_yaml(profile, values) if profile else Params.build(values)
    elif "overrides" in inspect.signature(function).parameters:
        given["overrides"] = dict(overrides)
    return function(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cfdistill", description="A study of counterfactual distillation.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    table = yaml.load(Path(__file__).with_name("commands.yaml").read_text(encoding="utf-8"), LOADER)
    _add(parser.add_subparsers(required=True, metavar="COMMAND"), table)
    return parser


def _add(commands: Any, table: dict[str, Any]) -> None:
    """Add the subcommands of a table such as commands.yaml."""
    for name, known in table.items():
        parser = commands.add_parser(name, help=known["help"])
        if "actions" in known:
            _add(parser.add_subparsers(required=True, metavar="ACTION"), known["actions"])
            continue
        for argument, how in known["arguments"].items():
            kind = {"type": TYPES[how["type"]]} if "type" in how else {}
            two = {"metavar": tuple(how["metavar"])} if how.get("nargs") == 2 else {}
            parser.add_argument(argument, **how | kind | two)
        parser.set_defaults(calls=known["calls"])


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _label(text: str) -> tuple[str, str]:
    method, label = text.split("=", 1)
    return method, label


TYPES = {"path": Path, "int": int, "words": _words, "label": _label}


if __name__ == "__main__":
    sys.exit(main())
