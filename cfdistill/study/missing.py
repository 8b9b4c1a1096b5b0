"""What a study can ask of its teacher by now, found by taking its own steps without asking."""

from contextlib import suppress

from cfdistill import pipeline
from cfdistill.errors import StageError
from cfdistill.generate import counterfactual, rationale
from cfdistill.generate.replies import Collector
from cfdistill.params import Params


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
