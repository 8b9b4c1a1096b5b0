"""The subcommands of `cfdistill teacher`: what a study would cost, and what its answers are."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfdistill.params import Params


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `teacher` and its subcommands to the command line."""
    teacher = commands.add_parser("teacher", help="forecast, limit and move the teacher's answers")
    actions = teacher.add_subparsers(required=True, metavar="ACTION")
    _add(actions, "forecast", "requests, tokens and dollars of a study, before any is spent", _forecast)


def _add(
    actions: argparse._SubParsersAction[Any],
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    """Add a subcommand that takes a profile and overrides, as `cfdistill run` does."""
    action: argparse.ArgumentParser = actions.add_parser(name, help=text)
    action.add_argument("profile", type=Path, help="parameters, such as params/offline.yaml")
    action.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides"
    )
    action.set_defaults(command=command)
    return action


def _params(args: argparse.Namespace) -> Params:
    return Params.from_yaml(args.profile, dict(args.overrides))


def _forecast(args: argparse.Namespace) -> None:
    from cfdistill.teacher import forecast

    print(forecast.to_text(forecast.forecast(_params(args))))
