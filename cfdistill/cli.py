"""The command `cfdistill`."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cfdistill import __version__, files
from cfdistill.errors import CfdistillError, StageError
from cfdistill.params import Params


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns 0, or 1 after a one-sentence error, 130 after Ctrl-C, 143 after SIGTERM."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except CfdistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        # What papermill was at is left unfinished, of which asyncio would tell at the exit.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore", RuntimeWarning)
        print("stopped; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: gracefully."""


def _terminate(*_: Any) -> None:
    raise Terminated


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cfdistill", description="A study of counterfactual distillation.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _add(commands, _run, "execute the notebooks of a study, reusing what is there", "profile")
    run.add_argument("--only", default="", help="notebook numbers, such as 04,05")
    run.add_argument("--force", action="store_true", help="execute notebooks again (stages are reused)")
    grid = _add(commands, _grid, "make the cells of a grid that are missing, and its tables", "grid")
    grid.add_argument("--cores", type=int, default=files.cores(), help="cells at once, on a core each")
    grid.add_argument("--profile", default="", help="slurm, kubernetes, or a Snakemake profile's folder")
    grid.add_argument("--dry-run", action="store_true", help="only print what would be made")
    job = _add(commands, _job, "make one cell of a grid's plan (Snakemake calls this)")
    job.add_argument("plan", type=Path)
    job.add_argument("name")
    _add(commands, _doctor, "say what this machine has and what a study would use", "profile", nargs="?")
    ask = _add(commands, _ask, "put a question of your own to the trained students of a study", "profile")
    ask.add_argument("question")
    ask.add_argument("--options", nargs="+", required=True, metavar="OPTION")
    report = _add(commands, _report, "build the static site of a finished study", "profile")
    report.add_argument("--out", type=Path, required=True, help="folder of the site, such as docs/site")
    report.add_argument("--also", type=Path, nargs="*", default=[], metavar="RESULTS", help="more results")
    drawing = _add(commands, _figures, "draw tables and figures anew from results folders alone")
    drawing.add_argument("results", type=Path, nargs="+", help="such as results/offline")
    teacher = commands.add_parser("teacher", help="count and move the teacher's answers")
    _add_teacher(teacher.add_subparsers(required=True, metavar="ACTION"))
    return parser


def _add_teacher(actions: Any) -> None:
    stats = _add(actions, _stats, "answers, tokens and dollars of a cache", "profile", "?")
    out = _add(actions, _export_cache, "write a cache's answers to a JSON Lines file", "profile", "?")
    into = _add(actions, _import_cache, "add the answers of a JSON Lines file to a cache", "profile", "?")
    asked = _add(actions, _batch_export, "write the missing answers' requests for the Batch API", "profile")
    answered = _add(actions, _batch_import, "store the answers of a Batch API's result file", "profile")
    for action in (stats, out, into):
        action.add_argument("--cache", type=Path, metavar="FILE", help="a cache file, not a profile's")
    for action in (out, into, asked, answered):
        action.add_argument("file", type=Path, metavar="FILE.jsonl")
    asked.add_argument("--max-requests", type=int, default=0, help="in the file (0: 50,000)")
    asked.add_argument("--max-tokens", type=int, default=0, help="of its requests, estimated")


def _add(
    commands: Any, command: Callable[[Any], None], text: str, first: str = "", nargs: str | None = None
) -> argparse.ArgumentParser:
    """Add a subcommand, named as its function; `first` is a YAML file whose parameters -p overrides."""
    name = command.__name__.lstrip("_").replace("_", "-")
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    if first:
        parser.add_argument(first, type=Path, nargs=nargs, metavar="PARAMS.yaml", help="in params/")
        parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.set_defaults(command=command)
    return parser


def _params(args: Any) -> Params:
    overrides = dict(args.p)
    return Params.from_yaml(args.profile, overrides) if args.profile else Params.build(overrides)


def _run(args: Any) -> None:
    signal.signal(signal.SIGTERM, _terminate)
    # Set before any kernel starts: more threads than cores make a CPU study ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", str(files.cores()))
    from cfdistill.study import results, run

    only, overrides = [part for part in args.only.split(",") if part], dict(args.p)
    print("The same by hand:", *run.commands(args.profile, overrides, only), sep="\n  ")
    params = run.run(args.profile, overrides, only, force=args.force)
    print(f"\nExecuted notebooks: {run.executed_folder(params)}")
    if results.is_whole(folder := results.folder(params)):
        print(f"Tables and figures: {folder}\n\n{(folder / 'figures' / 'table1.md').read_text('utf-8')}")


def _grid(args: Any) -> None:
    from cfdistill.study import grid

    wanted = grid.read(args.grid, dict(args.p))
    grid.run(wanted, args.cores, args.profile, dry_run=args.dry_run)
    if not args.dry_run:
        print(f"Tables: {wanted.folder}")


def _job(args: Any) -> None:
    from cfdistill.study import grid

    grid.run_job(args.plan, args.name)


def _doctor(args: Any) -> None:
    from cfdistill.study import doctor

    for subject, finding in doctor.report(_params(args)).items():
        print(f"{subject:>10}  {finding}")


def _ask(args: Any) -> None:
    from cfdistill import pipeline
    from cfdistill.evaluate import ask

    params, question = _params(args), ask.own_question(args.question, args.options)
    print(f"Log-likelihoods are per character, after the student's own words. Student {params.student}.\n")
    for method in params.methods:
        print(f"{ask.ask(pipeline.trained(method, params), method, question, params)}\n")


def _report(args: Any) -> None:
    from cfdistill.study import site

    print(site.build(_params(args), args.out, args.also))


def _figures(args: Any) -> None:
    from cfdistill.study import results

    for folder in args.results:
        print(f"{folder / 'figures'}: {', '.join(results.draw(folder))}")


def _collect(args: Any) -> Any:
    """Return a teacher that knows what is missing."""
    from cfdistill import pipeline
    from cfdistill.generate import missing

    params = _params(args)
    pipeline.build("data", params, dataset=params.train_dataset)
    others: list[Any] = []
    for method in params.variants():
        with suppress(StageError):  # how many more there are of some, follows from the rewrites
            others += pipeline.originals(params, method)
    return missing.collect(params, *pipeline.originals_and_held_out(params), others)


def _stats(args: Any) -> None:
    from cfdistill.teacher import budget

    with _cache(args, read_only=True) as cache:
        print(budget.stats(cache, _params(args)))


def _cache(args: Any, *, read_only: bool) -> closing[Any]:
    from cfdistill.teacher import cache, cache_path

    return closing(cache.Cache(args.cache or cache_path(_params(args)), read_only=read_only))


def _export_cache(args: Any) -> None:
    from cfdistill.teacher import batch

    with _cache(args, read_only=True) as cache:
        print(f"{batch.export_cache(cache, args.file)} answers of {cache.path} written to {args.file}")


def _import_cache(args: Any) -> None:
    from cfdistill.teacher import batch

    with _cache(args, read_only=False) as cache:
        counts = batch.import_cache(args.file, cache)
    print(f"{counts['new']} answers added to {cache.path}, {counts['known']} were there, ", end="")
    print(f"{counts['conflicting']} differ from what is there and were left out")


def _batch_export(args: Any) -> None:
    from cfdistill.teacher import batch

    with _collect(args) as teacher:
        limits = (args.max_requests, args.max_tokens)
        written, tokens = batch.write_requests(teacher, teacher.missing, args.file, *limits)
    tasks = ", ".join(f"{count} {task}" for task, count in written.items()) or "no answer is missing"
    print(f"{written.total()} requests of about {tokens:,} tokens written to {args.file} ({tasks})")
    if left := len(teacher.missing) - written.total():
        print(f"{left} more do not fit into one file; export again when these are imported")


def _batch_import(args: Any) -> None:
    from cfdistill.teacher import batch

    with _collect(args) as teacher:
        counts, failure = batch.import_results(teacher, teacher.missing, args.file)
    print(f"{counts['new']} answers stored, {counts['known']} were there")
    if counts["failed"]:
        print(f"{counts['failed']} failed and stay missing (first: {failure})")
    if counts["unknown"]:
        print(f"{counts['unknown']} are not asked for by these parameters and were left out")


if __name__ == "__main__":
    sys.exit(main())
