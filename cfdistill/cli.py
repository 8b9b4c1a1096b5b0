"""The command `cfdistill`."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from cfdistill import __version__, files
from cfdistill.errors import CfdistillError
from cfdistill.methods import LOADER
from cfdistill.params import Params
from cfdistill.progress import PAUSE, tell


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
        parser.set_defaults(command=COMMANDS[name])


def _words(text: str) -> list[str]:
    return text.split(",")


def _label(text: str) -> tuple[str, str]:
    method, label = text.split("=", 1)
    return method, label


def _params(args: Any) -> Params:
    overrides = dict(args.p)
    return Params.from_yaml(args.profile, overrides) if args.profile else Params.build(overrides)


def _run(args: Any) -> None:
    signal.signal(signal.SIGTERM, _terminate)
    # Set before any kernel starts: more threads than cores make a CPU study ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", str(files.cores()))
    # For the kernels, which do not see where their progress goes: lines, few of them in a file.
    os.environ |= {"TQDM_DISABLE": "1", PAUSE: "0" if sys.stderr.isatty() else "60"}
    from cfdistill.study import results, run

    only, overrides = [part for part in args.only.split(",") if part], dict(args.p)
    if args.verbose:
        print("The same by hand:", *run.commands(args.profile, overrides, only), sep="\n  ")
    params = run.run(args.profile, overrides, only, force=args.force)
    print(f"\nExecuted notebooks: {run.executed_folder(params)}")
    if results.is_whole(folder := results.folder(params)):
        print(f"Tables and figures: {folder}\n\n{(folder / 'figures' / 'table1.md').read_text('utf-8')}")
        if overrides:
            print(f"Drawn with others: cfdistill run {args.profile} --only 07 -p gather '{folder}'")


def _grid(args: Any) -> None:
    from cfdistill.study import grid

    wanted = grid.read(args.grid, dict(args.p))
    grid.run(wanted, args.cores or files.cores(), args.profile, dry_run=args.dry_run)
    if not args.dry_run:
        print(f"Tables: {wanted.folder}")


def _job(args: Any) -> None:
    from cfdistill.study import grid

    grid.run_job(args.plan, args.name)


def _doctor(args: Any) -> None:
    from cfdistill.study import run

    for subject, finding in run.doctor(_params(args)).items():
        print(f"{subject:>10}  {finding}")


def _ask(args: Any) -> None:
    from cfdistill import pipeline
    from cfdistill.evaluate import ask

    params, asked = _params(args), [[args.question, *args.options]]
    if args.ask_file:
        lines = args.ask_file.read_text(encoding="utf-8").splitlines()
        asked = [line.split("|") for line in lines if line.strip()]
    questions = [ask.own_question(stem, options) for stem, *options in asked]
    print(f"Log-likelihoods are per character, after the student's own words. Student {params.student}.\n")
    for method in params.methods:
        tell(f"loading {method} …")
        student = pipeline.trained(method, params)
        for question in questions:
            print(f"{question.stem}\n{ask.ask(student, method, question, params)}\n")


def _report(args: Any) -> None:
    from cfdistill.study import site

    print(site.build(_params(args), args.out, args.also))


def _figures(args: Any) -> None:
    from cfdistill.show import style
    from cfdistill.study import results

    width = style.COLUMN if args.width == "column" else style.PAGE
    for folder in args.results:
        target = args.out / folder.name if args.out and len(args.results) > 1 else args.out
        look = {"font": args.font, "labels": dict(args.label), "formats": args.format}
        drawn = results.draw(folder, args.only, target, width, **look)
        print(f"{target or folder / 'figures'}: {', '.join(drawn)}")


def _list(args: Any) -> None:
    from cfdistill.study import results

    print(results.listing(args.root))


def _stats(args: Any) -> None:
    from cfdistill.teacher import budget

    with _cache(args, read_only=True) as cache:
        print(budget.stats(cache, _params(args)))


def _cache(args: Any, *, read_only: bool) -> closing[Any]:
    from cfdistill.teacher import cache, cache_path

    return closing(cache.Cache(cache_path(_params(args)), read_only=read_only))


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
    from cfdistill.study import missing
    from cfdistill.teacher import batch

    with missing.collect(_params(args)) as teacher:
        limits = args.max_requests, args.max_tokens
        written, tokens = batch.write_requests(teacher, teacher.missing, args.file, *limits)
    tasks = ", ".join(f"{count} {task}" for task, count in written.items()) or "no answer is missing"
    print(f"{written.total()} requests of about {tokens:,} tokens written to {args.file} ({tasks})")
    if left := len(teacher.missing) - written.total():
        print(f"{left} more do not fit into one file; export again when these are imported")


def _batch_import(args: Any) -> None:
    from cfdistill.study import missing
    from cfdistill.teacher import batch

    with missing.collect(_params(args)) as teacher:
        counts, failure = batch.import_results(teacher, teacher.missing, args.file)
    print(f"{counts['new']} answers stored, {counts['known']} were there")
    if counts["failed"]:
        print(f"{counts['failed']} failed and stay missing (first: {failure})")
    if counts["unknown"]:
        print(f"{counts['unknown']} are not asked for by these parameters and were left out")


TYPES = {"path": Path, "int": int, "words": _words, "label": _label}
COMMANDS = {  # by name
    command.__name__[1:].replace("_", "-"): command
    for command in (
        *(_run, _grid, _job, _doctor, _ask, _report, _figures, _list),
        *(_stats, _export_cache, _import_cache, _batch_export, _batch_import),
    )
}


if __name__ == "__main__":
    sys.exit(main())
