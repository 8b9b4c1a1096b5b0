"""What a study can ask of its teacher by now, found by taking its own steps without asking."""

from collections.abc import Sequence

from cfdistill.generate import counterfactual, rationale
from cfdistill.generate.counterfactual import Questions
from cfdistill.generate.replies import NOT_YET
from cfdistill.params import Params
from cfdistill.teacher import Teacher
from cfdistill.teacher.prompts import Prompt


class Collector(Teacher):
    """A teacher that never asks: it answers from the cache, and notes what is missing there."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.missing: dict[str, Prompt] = {}  # by key

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the answers that are there, and `NOT_YET` in place of the others."""
        wanted = {self.key(prompt): prompt for prompt in prompts}
        answers = self.known(wanted)
        self.missing |= {key: prompt for key, prompt in wanted.items() if key not in answers}
        return [answers[key].text if key in answers else NOT_YET for key in map(self.key, prompts)]


def collect(params: Params, originals: Questions, held_out: Questions, others: Questions = ()) -> Collector:
    """Return a Collector that knows all that can be asked by now; of the `others` only views are wanted."""
    teacher = Collector(params)
    for variant in params.variants().values() if params.has_counterfactuals else ():  # else a file explains
        candidates = counterfactual.make(variant, teacher, originals, held_out)
        kept = [c.question() for c in candidates if not c.reason]
        rationale.views([*originals, *kept, *others], teacher)
    return teacher
