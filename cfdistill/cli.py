"""The command `cfdistill`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType

from cfdistill import __version__
from cfdistill.errors import CfdistillError
from cfdistill.teacher import commands as teacher


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


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    raise Terminated


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cfdistill", description="A study of counterfactual distillation.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the notebooks of a study, reusing what is there")
    run.add_argument("profile", type=Path, help="parameters, such as params/offline.yaml")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides")
    run.add_argument("--only", default="", help="notebook numbers, such as 04,05")
    run.add_argument("--force", action="store_true", help="execute notebooks again (stages are reused)")
    run.set_defaults(command=_run)

    train = commands.add_parser("train", help="train a study's students only; torchrun can share the work")
    train.add_argument("profile", type=Path, help="parameters; stages up to the rationales must be there")
    train.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides"
    )
    train.set_defaults(command=_train)

    grid = commands.add_parser("grid", help="make the cells of a grid that are missing, and its tables")
    grid.add_argument("grid", type=Path, help="such as params/grids/smoke.yaml")
    grid.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides")
    grid.add_argument(
        "--cores", type=int, default=os.cpu_count(), help="cells trained at once, on a core each"
    )
    grid.add_argument("--profile", default="", help="slurm, kubernetes, or a Snakemake profile's folder")
    grid.add_argument("--dry-run", action="store_true", help="only print what would be made")
    grid.add_argument(
        "--import-runs", type=Path, metavar="RUN_ROOT", help="first take finished cells from another run_root"
    )
    grid.set_defaults(command=_grid)

    job = commands.add_parser("job", help="run one job of a grid's plan (Snakemake calls this)")
    job.add_argument("plan", type=Path)
    job.add_argument("name")
    job.set_defaults(command=_job)

    doctor = commands.add_parser("doctor", help="say what this machine has and what a study would use")
    doctor.add_argument("profile", type=Path, nargs="?", help="parameters; without: the default study")
    doctor.set_defaults(command=_doctor)

    clean = commands.add_parser("clean", help="remove what interrupted runs left, and nothing else")
    clean.add_argument("run_root", type=Path, nargs="?", default=Path("runs"), help="as in the parameters")
    clean.add_argument("--dry-run", action="store_true", help="only list it")
    clean.set_defaults(command=_clean)

    teacher.register(commands)

    asking = commands.add_parser("ask", help="put a question of your own to the trained students of a study")
    asking.add_argument("profile", type=Path, help="parameters, such as params/offline.yaml")
    asking.add_argument("question")
    asking.add_argument("--options", nargs="+", required=True, metavar="OPTION")
    asking.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides"
    )
    asking.set_defaults(command=_ask)

    report = commands.add_parser("report", help="build the static site of a finished study")
    report.add_argument("profile", type=Path, help="parameters, such as params/offline.yaml")
    report.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides"
    )
    report.add_argument("--out", type=Path, required=True, help="folder of the site, such as docs/site")
    report.add_argument("--also", type=Path, nargs="*", default=[], metavar="RESULTS", help="further results")
    report.set_defaults(command=_report)

    drawing = commands.add_parser("figures", help="draw table and figures anew from results folders alone")
    drawing.add_argument("results", type=Path, nargs="+", help="such as results/offline")
    drawing.set_defaults(command=_figures)

    readme = commands.add_parser("readme", help="write the numbers of results folders into README.md")
    readme.add_argument("results", type=Path, nargs="?", default=Path("results"), help="their parent")
    readme.set_defaults(command=_readme)
    return parser


def _run(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, _terminate)
    # Set before any kernel starts: more threads than cores make a CPU study ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    from cfdistill import metrics, runner, runs, tables

    only = [part for part in args.only.split(",") if part]
    overrides = dict(args.overrides)
    print("The same by hand:", *runner.commands(args.profile, overrides, only), sep="\n  ")
    params = runner.run(args.profile, overrides, only, force=args.force)
    print(f"\nExecuted notebooks: {runner.executed_folder(params)}")
    results = runs.results_folder(params)
    if (results / "manifest.json").is_file():
        print(f"Tables and figures: {results}\n")
        print(tables.to_text(*(metrics.read_csv(results, name) for name in metrics.FILES[:2])))


def _train(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, _terminate)
    from cfdistill import training
    from cfdistill.params import Params

    params = Params.from_yaml(args.profile, dict(args.overrides))
    is_first = os.environ.get("RANK", "0") == "0"  # set by torchrun; one process tells of all
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stdout if is_first else nowhere):
        for method in params.methods:
            print(training.build(method, params).path)


def _grid(args: argparse.Namespace) -> None:
    from cfdistill import grid

    wanted = grid.read(args.grid, dict(args.overrides))
    if args.import_runs:
        for name in grid.import_runs(wanted, args.import_runs):
            print(f"imported {name}")
    complete = grid.finished(wanted)
    print(grid.describe(wanted, complete), flush=True)
    grid.run(wanted, complete, args.cores, args.profile, dry_run=args.dry_run)
    if not args.dry_run:
        print(f"Tables: {wanted.folder}")


def _job(args: argparse.Namespace) -> None:
    from cfdistill import grid

    grid.run_job(args.plan, args.name)


def _doctor(args: argparse.Namespace) -> None:
    from cfdistill import doctor
    from cfdistill.params import Params

    params = Params.from_yaml(args.profile) if args.profile else Params()
    for subject, finding in doctor.report(params):
        print(f"{subject:>10}  {finding}")


def _ask(args: argparse.Namespace) -> None:
    from cfdistill import ask
    from cfdistill.params import Params

    params = Params.from_yaml(args.profile, dict(args.overrides))
    print(f"Log-likelihoods are per character, after the student's own words. Student {params.student}.\n")
    for answer in ask.ask(params, args.question, args.options):
        print(f"{answer}\n")


def _report(args: argparse.Namespace) -> None:
    from cfdistill import report
    from cfdistill.params import Params

    print(report.build(Params.from_yaml(args.profile, dict(args.overrides)), args.out, args.also))


def _figures(args: argparse.Namespace) -> None:
    from cfdistill import results

    for folder in args.results:
        print(f"{folder / 'figures'}: {', '.join(results.draw(folder))}")


def _clean(args: argparse.Namespace) -> None:
    from cfdistill import leftovers, runs

    for path in leftovers.clean(runs.resolve(str(args.run_root)), dry_run=args.dry_run):
        print("would remove" if args.dry_run else "removed", path)


def _readme(args: argparse.Namespace) -> None:
    from cfdistill import results, runs, tables

    blocks = results.readme_blocks(args.results)
    tables.write_readme(runs.project_root() / "README.md", blocks)
