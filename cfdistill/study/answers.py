"""The teacher's answers to a study: which are missing, and how all are counted and moved."""

from contextlib import closing, suppress
from pathlib import Path

from cfdistill import pipeline
from cfdistill.errors import StageError
from cfdistill.generate import counterfactual, rationale
from cfdistill.generate.replies import Collector
from cfdistill.params import Params
from cfdistill.teacher import batch, budget, cache_path
from cfdistill.teacher.cache import Cache


def collect(params: Params) -> Collector:
    """Take the teacher's stages as far as its cache goes; return who knows what it can be asked by now."""
    pipeline.build("data", params, dataset=params.train_dataset)
    asked, explained = Collector(params), []
    for method in params.variants():
        with suppress(StageError):  # how many more there are of some, follows from the rewrites
            explained += pipeline.originals(params, method)
    for variant in params.variants().values() if params.has_counterfactuals else ():  # else a file explains
        candidates = counterfactual.make(variant, asked, *pipeline.originals_and_held_out(params))
        rationale.views([*explained, *(c.question() for c in candidates if not c.reason)], asked)
    return asked


def batch_export(params: Params, file: Path, max_requests: int, max_tokens: int) -> str:
    """Write the requests for missing answers to a file, as `batch.write_requests`."""
    with collect(params) as teacher:
        written, tokens = batch.write_requests(teacher, teacher.missing, file, max_requests, max_tokens)
    tasks = ", ".join(f"{count} {task}" for task, count in written.items()) or "no answer is missing"
    told = f"{written.total()} requests of about {tokens:,} tokens written to {file} ({tasks})"
    left = len(teacher.missing) - written.total()
    return told + f"\n{left} more do not fit into one file; export again when these are imported" * (left > 0)


def batch_import(params: Params, file: Path) -> str:
    """Store the answers of a result file, as `batch.import_results`."""
    with collect(params) as teacher:
        counts, failure = batch.import_results(teacher, teacher.missing, file)
    told = [f"{counts['new']} answers stored, {counts['known']} were there"]
    if counts["failed"]:
        told.append(f"{counts['failed']} failed and stay missing (first: {failure})")
    if counts["unknown"]:
        told.append(f"{counts['unknown']} are not asked for by these parameters and were left out")
    return "\n".join(told)


def stats(params: Params) -> str:
    """Return what the answers in a cache are, took and cost."""
    with closing(Cache(cache_path(params), read_only=True)) as cache:
        return budget.stats(cache, params)


def export_cache(params: Params, file: Path) -> str:
    """Write all answers of a cache to a JSON Lines file."""
    with closing(Cache(cache_path(params), read_only=True)) as cache:
        return f"{batch.export_cache(cache, file)} answers of {cache.path} written to {file}"


def import_cache(params: Params, file: Path) -> str:
    """Add the answers of a JSON Lines file to a cache."""
    with closing(Cache(cache_path(params))) as cache:
        counts = batch.import_cache(file, cache)
    told = f"{counts['new']} answers added to {cache.path}, {counts['known']} were there, "
    return told + f"{counts['conflicting']} differ from what is there and were left out"
