"""The subcommands of `cfdistill teacher`: what a study would cost, and what its answers are."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdistill.params import Params
from cfdistill.teacher import exchange
from cfdistill.teacher.cache import Cache

if TYPE_CHECKING:
    from cfdistill.teacher.batch import Imported


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `teacher` and its subcommands to the command line."""
    teacher = commands.add_parser("teacher", help="forecast, limit and move the teacher's answers")
    actions = teacher.add_subparsers(required=True, metavar="ACTION")
    _add(actions, "forecast", "requests, tokens and dollars of a study, before any is spent", _forecast)
    _add_exchange(actions)
    _add_batch(actions)


def _add_exchange(actions: argparse._SubParsersAction[Any]) -> None:
    """Add what looks into one cache: that of a profile, by default the default study's, or any file."""
    for name, text, command in (
        ("stats", "answers, tokens, dollars and hit rate of a cache", _stats),
        ("export-cache", "write a cache's answers to a JSON Lines file", _export_cache),
        ("import-cache", "add the answers of a JSON Lines file to a cache", _import_cache),
    ):
        action = _add(actions, name, text, command, optional=True)
        action.add_argument("--cache", type=Path, metavar="FILE", help="a cache file, instead of a profile's")
        if name != "stats":
            action.add_argument("file", type=Path, metavar="FILE.jsonl")


def _add_batch(actions: argparse._SubParsersAction[Any]) -> None:
    for name, text, command in (
        ("batch-export", "write the missing answers' requests as a file for the Batch API", _batch_export),
        ("batch-import", "store the answers of a Batch API's result file", _batch_import),
    ):
        _add(actions, name, text, command).add_argument("file", type=Path, metavar="FILE.jsonl")
    _add(actions, "batch-submit", "send the missing answers' requests to the endpoint", _batch_submit)
    _add(actions, "batch-status", "say how far the batch under way is", _batch_status)
    _add(actions, "batch-fetch", "store the answers of the batch under way, once it has ended", _batch_fetch)


def _add(
    actions: argparse._SubParsersAction[Any],
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], None],
    *,
    optional: bool = False,
) -> argparse.ArgumentParser:
    """Add a subcommand that takes a profile and overrides, as `cfdistill run` does."""
    action: argparse.ArgumentParser = actions.add_parser(name, help=text)
    action.add_argument(
        "profile",
        type=Path,
        nargs="?" if optional else None,
        metavar="PARAMS.yaml",
        help="parameters, such as params/offline.yaml",
    )
    action.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides"
    )
    action.set_defaults(command=command)
    return action


def _params(args: argparse.Namespace) -> Params:
    overrides = dict(args.overrides)
    return Params.from_yaml(args.profile, overrides) if args.profile else Params.build(overrides)


def _forecast(args: argparse.Namespace) -> None:
    from cfdistill.teacher import forecast

    print(forecast.to_text(forecast.forecast(_params(args))))


def _cache_file(args: argparse.Namespace) -> Path:
    from cfdistill.teacher.client import cache_path

    return args.cache or cache_path(_params(args))


def _stats(args: argparse.Namespace) -> None:
    from cfdistill.teacher import spending

    params = _params(args)
    with closing(Cache(_cache_file(args), read_only=True)) as cache:
        print(spending.stats(cache, params))
    if not args.cache:
        print(*spending.hit_rates(params), sep="\n")


def _export_cache(args: argparse.Namespace) -> None:
    with closing(Cache(_cache_file(args), read_only=True)) as cache:
        print(f"{exchange.export_cache(cache, args.file)} answers of {cache.path} written to {args.file}")


def _import_cache(args: argparse.Namespace) -> None:
    with closing(Cache(_cache_file(args))) as cache:
        counts = exchange.import_cache(args.file, cache)
        print(
            f"{counts['new']} answers added to {cache.path}, {counts['known']} were there, "
            f"{counts['conflicting']} differ from what is there and were left out"
        )


def _batch_export(args: argparse.Namespace) -> None:
    from cfdistill.teacher import batch

    written, left = batch.export(_params(args), args.file)
    tasks = ", ".join(f"{count} {task}" for task, count in written.items()) or "no answer is missing"
    print(f"{written.total()} requests written to {args.file} ({tasks})")
    if left:
        print(f"{left} more do not fit into one file; export again when these are imported")


def _batch_import(args: argparse.Namespace) -> None:
    from cfdistill.teacher import batch

    print(_told(batch.import_results(_params(args), args.file)))


def _batch_submit(args: argparse.Namespace) -> None:
    from cfdistill.teacher import batch

    made = batch.submit(_params(args))
    print(f"batch {made.batch_id} is under way: {made.requests} requests, begun {made.began}")


def _batch_status(args: argparse.Namespace) -> None:
    from cfdistill.teacher import batch

    print(batch.describe(batch.status(_params(args))))


def _batch_fetch(args: argparse.Namespace) -> None:
    from cfdistill.teacher import batch

    ended, imported = batch.fetch(_params(args))
    print(batch.describe(ended), _told(imported), sep="\n")


def _told(imported: Imported) -> str:
    counts = imported.counts
    text = f"{counts['new']} answers stored, {counts['known']} were there"
    if counts["failed"]:
        text += f", {counts['failed']} failed and stay missing (first: {imported.failure})"
    if counts["unknown"]:
        text += f", {counts['unknown']} are not asked for by these parameters and were left out"
    return text
