"""The subcommands of `cfdistill teacher`: what a study would cost, and what its answers are."""

from __future__ import annotations

import argparse
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
    for name, command, text in (
        ("forecast", _forecast, "requests, tokens and dollars of a study, before any is spent"),
        ("stats", _stats, "answers, tokens, dollars and hit rate of a cache"),
        ("export-cache", _export_cache, "write a cache's answers to a JSON Lines file"),
        ("import-cache", _import_cache, "add the answers of a JSON Lines file to a cache"),
        ("batch-export", _batch_export, "write the missing answers' requests as a file for the Batch API"),
        ("batch-import", _batch_import, "store the answers of a Batch API's result file"),
        ("batch-submit", _batch_submit, "send the missing answers' requests to the endpoint"),
        ("batch-status", _batch_status, "say how far the batch under way is"),
        ("batch-fetch", _batch_fetch, "store the answers of the batch under way, once it has ended"),
    ):
        action = actions.add_parser(name, help=text)
        of_any_cache = name in ("stats", "export-cache", "import-cache")  # by default, the default study's
        action.add_argument(
            "profile",
            type=Path,
            nargs="?" if of_any_cache else None,
            metavar="PARAMS.yaml",
            help="parameters, such as params/offline.yaml",
        )
        action.add_argument(
            "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides"
        )
        if of_any_cache:
            action.add_argument("--cache", type=Path, metavar="FILE", help="a cache file, not a profile's")
        if name.partition("-")[0] in ("export", "import") or name in ("batch-export", "batch-import"):
            action.add_argument("file", type=Path, metavar="FILE.jsonl")
        action.set_defaults(command=command)


def _params(args: argparse.Namespace) -> Params:
    overrides = dict(args.overrides)
    return Params.from_yaml(args.profile, overrides) if args.profile else Params.build(overrides)


def _forecast(args: argparse.Namespace) -> None:
    from cfdistill.teacher import forecast

    print(forecast.to_text(forecast.forecast(_params(args))))


def _open(args: argparse.Namespace, *, read_only: bool) -> closing[Cache]:
    from cfdistill.teacher.client import cache_path

    return closing(Cache(args.cache or cache_path(_params(args)), read_only=read_only))


def _stats(args: argparse.Namespace) -> None:
    from cfdistill.teacher import spending

    params = _params(args)
    with _open(args, read_only=True) as cache:
        print(spending.stats(cache, params))
    if not args.cache:
        print(*spending.hit_rates(params), sep="\n")


def _export_cache(args: argparse.Namespace) -> None:
    with _open(args, read_only=True) as cache:
        print(f"{exchange.export_cache(cache, args.file)} answers of {cache.path} written to {args.file}")


def _import_cache(args: argparse.Namespace) -> None:
    with _open(args, read_only=False) as cache:
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
